"""Judges over HTTP that lie, stall or are of no use: is any label, table or round made of it?

Each plays its part on a server of the loopback address. Afterwards an honest judge stands there,
and the same command has to bring every label that is due, the right one.
"""

import gzip
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from benchmarks.faulty.room import Fault, Room, Wrong
from toolkit.errors import InputError
from toolkit.evaluation.judges import AskJudge
from toolkit.labeling.labelers import ScriptedLabeler
from toolkit.labeling.store import Settings, Store
from toolkit.pipeline.picks import label_until
from toolkit.scoring.http_judge import HTTPJudge

KEY = "sk-KEEP-THIS-0123456789"
ITEMS = 45
Step = Callable[["Handler", str], None]  # the handler, and the honest answer


class Handler(BaseHTTPRequestHandler):
    """Plays the server's part; knows the honest answer: the longest completion."""

    server: "Liar"

    def do_POST(self) -> None:  # noqa: N802 (http.server's name)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        shown = re.findall(r"\n\[[A-Z] \w{8}\]\n([^\n]*)", text)
        best = max(range(len(shown)), key=lambda k: len(shown[k]))
        self.server.asked += 1
        self.server.step(self, "ABCD"[best])

    def do_GET(self) -> None:  # noqa: N802
        self.server.strayed.append(self.headers.get("Authorization"))

    def log_message(self, *_: Any) -> None:
        pass


class Liar(ThreadingHTTPServer):
    """A server on the loopback address, and another to which it may redirect."""

    daemon_threads = True

    def __init__(self, step: Step) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.step, self.asked, self.strayed = step, 0, []
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client hung up, as it should

    def end(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


def said(content: Any, **more: Any) -> bytes:
    """A chat completion."""
    return json.dumps({"choices": [{"message": {"content": content} | more}]}).encode()


def reply(body: Any, status: int = 200, **headers: str) -> Step:
    """Answer with bytes, or with what a function makes of the honest letter."""

    def step(handler: Handler, honest: str) -> None:
        content = body(honest) if callable(body) else body
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return step


def raw(*parts: bytes, times: int = 1, pause: float = 0.03) -> Step:
    """Answer with these bytes, the last of them so many times."""

    def step(handler: Handler, honest: str) -> None:
        for part in [*parts[:-1], *[parts[-1]] * times]:
            handler.wfile.write(part)
            if handler.server.over.wait(pause if times > 1 else 0):
                return

    return step


def honest(handler: Handler, letter: str) -> None:
    """Say what is true."""
    reply(said(letter))(handler, letter)


def cut(handler: Handler, _: str) -> None:
    """Say nothing."""


def stall(handler: Handler, _: str) -> None:
    """Say nothing, and keep the connection."""
    handler.server.over.wait(3)


def after(count: int, step: Step) -> Step:
    """Be honest so many times first."""

    def play(handler: Handler, letter: str) -> None:
        (honest if handler.server.asked <= count else step)(handler, letter)

    return play


def every_other(step: Step) -> Step:
    """Be honest every other time."""

    def play(handler: Handler, letter: str) -> None:
        (honest if handler.server.asked % 2 else step)(handler, letter)

    return play


def length(body: Callable[[str], bytes]) -> Step:
    """An answer whose model spent its tokens."""

    def play(handler: Handler, letter: str) -> None:
        value = json.loads(body(letter))
        value["choices"][0]["finish_reason"] = "length"
        reply(json.dumps(value).encode())(handler, letter)

    return play


def elsewhere(status: int) -> Step:
    """Redirect to a place that notes the key."""

    def play(handler: Handler, letter: str) -> None:
        reply(b"", status, Location=f"{handler.server.url}/stray")(handler, letter)

    return play


def echo(handler: Handler, letter: str) -> None:
    """Give the key away."""
    key = handler.headers["Authorization"]
    reply(f"{key} is wrong: {key * 9}".encode(), 401)(handler, letter)


OK = b"HTTP/1.1 200 OK\r\n"
NO_USE: dict[str, Step] = {
    "empty answers": reply(said("")),
    "null": reply(said(None)),
    "blanks": reply(said(" \n\t ")),
    "refusals": reply(said("I'm sorry, but I can't help with that.")),
    "a refusal in its own field": reply(said(None, refusal="I can't.")),
    "refusals of a megabyte less a little": reply(said("no " * 300_000)),
    "lower case": reply(lambda a: said(a.lower())),
    "JSON": reply(lambda a: said(json.dumps({"answer": a}))),
    "sentences": reply(lambda a: said(f"The best is {a}.")),
    "a list of parts": reply(lambda a: said([{"type": "text", "text": a}])),
    "a number": reply(said(1)),
    "a letter beyond": reply(said("Z")),
    "a letter of another alphabet": reply(said("\u0410")),
    "two letters": reply(said("A B")),
    "thinking that was cut": length(lambda a: said(f"<think>Perhaps {a}")),
    "thinking elsewhere that was cut": length(lambda a: said("", reasoning_content="Let me see")),
    "control characters": reply(said("\x1b[2J\x00\u202e")),
    "always A": reply(said("A")),
    "always B": reply(said("B")),
    "ten good answers, then none": after(10, reply(said("no"))),
    "ten good answers, then always A": after(10, reply(said("A"))),
}
NO_ANSWER: dict[str, Step] = {
    "a page of HTML": reply(b"<!doctype html><title>Sign in</title>"),
    "an error with status 200": reply(b'{"error": {"message": "quota", "code": 429}}'),
    "a stream": reply(b'data: {"choices": [{"delta": {"content": "A"}}]}\n\ndata: [DONE]\n\n'),
    "gzip": reply(lambda a: gzip.compress(said(a)), Content_Encoding="gzip"),
    "no choices": reply(b'{"choices": []}'),
    "a list": reply(b"[]"),
    "nesting without end": reply(b"[" * 200_000),
    "a length that cuts it": reply(lambda a: said(a), Content_Length="20"),
    "megabytes": raw(OK + b"\r\n", b" " * (1 << 20), times=9, pause=0),
    "no content": reply(b"", 204),
    "a wrong key, said aloud": echo,
    "no such model": reply(b"no model m", 404),
    "no such request": reply(b"max_tokens is not supported", 400),
    "another form of it": reply(b"{}", 422),
    "an hour's wait": reply(b"quota", 429, Retry_After="3600"),
    **{f"a redirect, {n}": elsewhere(n) for n in (301, 302, 303, 307, 308)},
}
FAILING: dict[str, Step] = {
    "a server's error": reply(b"\x1b[31mTraceback\n" * 99, 500),
    "overload": reply(b"", 503, Retry_After="0"),
    "connections cut": cut,
    "half of the headers": raw(OK + b"Content-Le"),
    "silence": stall,
    "headers one by one": raw(OK, b"X: y\r\n", times=60),
    "one header without end": raw(OK + b"X: ", b"x", times=60),
    "a status line without end": raw(b"HTTP/1.1 2", b"0", times=60),
    "continuations without end": raw(b"HTTP/1.1 100 Continue\r\n\r\n", times=60),
    "a body byte by byte": raw(OK + b"\r\n", b" ", times=60),
    "chunks without end": raw(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", times=60),
    "a length that is never reached": reply(lambda a: said(a), Content_Length="99999"),
    "a header of megabytes": raw(OK + b"X: " + b"x" * 3_000_000 + b"\r\n\r\n"),
    "another protocol": raw(b"SSH-2.0-OpenSSH_9.6\r\n" * 3),
    "a chunk of no number": raw(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "seven good answers, then silence": after(7, stall),
    "seven good answers, then refusals and a cut": after(
        7, lambda h, a: (reply(said("no")) if h.server.asked < 12 else cut)(h, a)
    ),
}


def twice(handler: Handler, letter: str) -> None:
    """Each answer two times, on a connection that stays open."""
    body = said(letter)
    head = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n" % len(body)
    handler.wfile.write((head + body) + head + said("A"))


def used(**usage: Any) -> Step:
    """A good answer whose tokens are counted so."""
    return reply(
        lambda a: json.dumps(
            {"choices": [{"message": {"content": a}}], "usage": usage.get("usage", usage)}
        ).encode()
    )


ODD: dict[str, Step] = {
    "negative usage": used(prompt_tokens=-(10**6), completion_tokens=-1),
    "usage of 400 digits": used(prompt_tokens=10**400, completion_tokens=1),
    "usage that is a list": used(usage=[1, 2]),
    "usage of text": used(prompt_tokens="many"),
    "letters in marks": reply(lambda a: said(f" **({a})**.\n")),
    "thoughts before the letter": reply(lambda a: said(f"<think>A, B, C?\n</think>\n\n{a}")),
    "each answer twice": twice,
    "a continuation first": lambda h, a: (
        h.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n"),
        honest(h, a),
    )[0],
    "an answer of half a megabyte": reply(lambda a: said(a, padding="x" * 500_000)),
    "a limit now and then": lambda h, a: (
        honest if h.server.asked % 5 else reply(b"", 429, Retry_After="0")
    )(h, a),
}


def fill(room: Room) -> None:
    """Items whose longest completion is best."""
    with Store(room.folder / "labels.sqlite", Settings(overlap=0.0)) as store:
        store.add_items(
            {
                "prompt": f"p {i}",
                "completions": ["x", "xxx", "xx", "x" * (4 + i)][:: 1 - 2 * (i % 2)],
            }
            for i in range(ITEMS)
        )


def check(room: Room, labeled: int) -> None:
    """So many picks are in the store, each the right one, and the key nowhere."""
    with Store(room.folder / "labels.sqlite") as store:
        picks = list(store.picks())
    wrong = sum(len(p["completions"][p["best"]]) < 4 for p in picks)
    if wrong or len(picks) != labeled:
        raise Wrong(f"{len(picks)} labels, not {labeled}; {wrong} of them are wrong")
    for path in room.folder.rglob("*"):
        if path.is_file() and b"KEEP-THIS" in path.read_bytes():
            raise Wrong(f"the key is in {path.name}")


def words(liar: Liar) -> list[object]:
    """The command line."""
    return ["label", "--store", "labels.sqlite", "--judge_url", liar.url, "--judge_model", "m",
            "--judge_timeout", 2, "--overlap", 0, "--output", "picks.jsonl"]  # fmt: skip


def with_liar(run: Callable[..., str], step: Step, *given: Any) -> str:
    """Run with a server that plays this part; no key strays from it."""
    room, liar = given[-1], Liar(step)
    os.environ["NO_PROXY"] = "127.0.0.1"
    os.environ["OPENAI_API_KEY"] = KEY
    try:
        happened = run(room, liar, *given[:-1])
        if liar.strayed:
            raise Wrong("it followed a redirect")
        return happened
    finally:
        liar.end()


def refused(room: Room, liar: Liar, good: int) -> str:
    """label.py ends in a line; mended, the same command brings all labels."""
    fill(room)
    environment = {"OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    ended = room.recipe(*words(liar), **environment)
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    ended.expect(ended.code == 2 and len(lines) == 1, "not one line and exit code 2")
    ended.expect(lines[0].isprintable() and len(lines[0]) < 700, "a line that no one can read")
    ended.expect(not (room.folder / "picks.jsonl").exists(), "labels were written")
    ended.expect(liar.asked <= ITEMS, f"it was asked {liar.asked} times")
    check(room, good)
    liar.step = honest
    again = room.recipe(*words(liar), **environment).done()
    again.expect("0 refused" in again.out, "it does not say what was done")
    check(room, ITEMS)
    return "refused in one line; mended, all were labeled"


def odd(room: Room, liar: Liar) -> str:
    """label.py labels all, rightly."""
    fill(room)
    ended = room.recipe(*words(liar), "--judge_prices", 1, 1, OPENAI_API_KEY=KEY, NO_PROXY="*")
    ended.done().expect("cost -" not in ended.out, "a negative cost")
    check(room, ITEMS)
    return "labeled rightly"


def failing(room: Room, liar: Liar, good: int) -> str:
    """The labeler ends in a line in time; mended, it brings all labels."""
    fill(room)
    with Store(room.folder / "labels.sqlite", Settings(overlap=0.0)) as store:
        with HTTPJudge(liar.url, "m", timeout=0.4, retries=1, backoff=0.01) as judge:
            labeler, began = ScriptedLabeler("m", judge), time.monotonic()
            try:
                labeler.work(store, progress=False)
            except InputError as problem:
                line = str(problem)
            else:
                raise Wrong("it went on")
        if time.monotonic() - began > 6:  # two tries of 0.4 s; single reads never take so long
            raise Wrong(f"it took {time.monotonic() - began:.1f} s")
        if "\n" in line or not line.isprintable() or len(line) > 500:
            raise Wrong(f"a line that no one can read: {line[:300]!r}")
        check(room, good)
        liar.step = honest
        with HTTPJudge(liar.url, "m") as judge:
            ScriptedLabeler("m", judge).work(store, progress=False)
    check(room, ITEMS)
    return "ended in one line; mended, all were labeled"


def evaluated(room: Room, liar: Liar) -> str:
    """An evaluation gets no verdicts of it, so that no table is made."""
    questions = [(f"p {i}", "x" * (3 + i), "x") for i in range(60)]
    with HTTPJudge(liar.url, "m", timeout=0.4, retries=1, backoff=0.01) as judge:
        try:
            AskJudge("h", judge).verdicts(questions)
        except InputError as problem:
            if "\n" in str(problem) or KEY in str(problem):
                raise Wrong(f"badly said: {problem}") from None
        else:
            raise Wrong("a table was made of it")
    liar.step = honest
    with HTTPJudge(liar.url, "m") as judge:
        if AskJudge("h", judge).verdicts(questions) != [1] * 60:
            raise Wrong("an honest judge's verdicts are wrong")
    return "no table; mended, the right one"


def online(room: Room, liar: Liar) -> str:
    """A round of the online loop ends, and does not sample without end."""
    fill(room)
    batches: list[int] = []

    def more(count: int) -> None:
        batches.append(count)
        if len(batches) > 3:
            raise Wrong("it samples without end")
        with Store(room.folder / "labels.sqlite") as other:
            other.add_items(
                {"prompt": f"more {len(batches)} {i}", "completions": ["x", "xxxxx"]}
                for i in range(count)
            )

    with Store(room.folder / "labels.sqlite", Settings(overlap=0.0)) as store:
        with HTTPJudge(liar.url, "m", timeout=0.4, retries=1, backoff=0.01) as judge:
            labeler = ScriptedLabeler("m", judge)
            try:
                label_until(store, 0, 40, True, labeler, more, lambda: None)
            except InputError:
                pass
            else:
                raise Wrong("a round was made of it")
        liar.step = honest
        with HTTPJudge(liar.url, "m") as judge:
            labeler = ScriptedLabeler("m", judge)
            picks = label_until(store, 0, 40, True, labeler, more, lambda: None)
    if len(picks) < 40 or any(len(p["completions"][p["best"]]) < 4 for p in picks):
        raise Wrong("mended, it did not bring the round's labels")
    return "no round; mended, all its labels"


def asked_again(room: Room, liar: Liar) -> str:
    """What it refused now and then is skipped, and labeled with --ask_again."""
    fill(room)
    environment = {"OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    ended = room.recipe(*words(liar), **environment).done()
    ended.expect("--ask_again" in ended.out, "it does not name the flag")
    with Store(room.folder / "labels.sqlite") as store:
        first = len(list(store.picks()))
    ended.expect(15 < first < ITEMS, f"{first} picks")
    liar.step = honest
    room.recipe(*words(liar), "--overwrite", **environment).done()
    check(room, first)  # as was said: not asked of them again unless told
    room.recipe(*words(liar), "--overwrite", "--ask_again", **environment).done()
    check(room, ITEMS)
    return "skipped; asked again, all were labeled"


def gone(room: Room, liar: Liar) -> str:
    """The endpoint is not there any more."""
    liar.step = honest
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with HTTPJudge(f"http://127.0.0.1:{port}/v1", "m", retries=1, backoff=0.01) as judge:
        try:
            judge.pick("p", ["a", "b"])
        except InputError as problem:
            if "\n" in str(problem):
                raise Wrong(f"badly said: {problem}") from None
            return "ended in one line"
    raise Wrong("it answered")


def _faults() -> Iterator[Fault]:
    for name, step in NO_USE.items():
        good = 10 if name.startswith("ten good") else 0
        yield Fault("judge: of no use", name, partial(with_liar, _last(refused, good), step))
        if not good:
            yield Fault("judge: in an evaluation", name, partial(with_liar, evaluated, step))
    for name, step in NO_ANSWER.items():
        yield Fault(
            "judge: something else than an answer",
            name,
            partial(with_liar, _last(refused, 0), step),
        )
    for name, step in FAILING.items():
        good = 7 if name.startswith("seven good") else 0
        yield Fault(
            "judge: stalls, cuts, errors", name, partial(with_liar, _last(failing, good), step)
        )
    for name in ("a page of HTML", "an error with status 200", "a redirect, 307"):
        step = NO_ANSWER[name]
        yield Fault("judge: in an evaluation", name, partial(with_liar, evaluated, step))
    for name in ("headers one by one", "silence", "connections cut"):
        yield Fault("judge: in an evaluation", name, partial(with_liar, evaluated, FAILING[name]))
    for name, step in ODD.items():
        yield Fault("judge: odd but right", name, partial(with_liar, odd, step))
    chosen = {n: NO_USE[n] for n in ("empty answers", "refusals", "always A", "lower case")}
    chosen |= {n: FAILING[n] for n in ("silence", "headers one by one")}
    for name, step in chosen.items():
        yield Fault("judge: in an online round", name, partial(with_liar, online, step))
    for name, step in {"refusals": reply(said("no")), "null": reply(said(None))}.items():
        yield Fault(
            "judge: refuses every other", name, partial(with_liar, asked_again, every_other(step))
        )
    yield Fault("judge: stalls, cuts, errors", "nobody there", partial(with_liar, gone, honest))


def _last(run: Callable[..., str], *more: Any) -> Callable[..., str]:
    return lambda room, liar: run(room, liar, *more)


FAULTS = list(_faults())
