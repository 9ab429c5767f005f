"""The labeling page under abuse: is everybody who speaks served, is every label kept?

Each fault has a server of its own, the recipe's, and a person who labels before, during and after.
"""

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.faulty.room import Fault, Room, Wrong
from benchmarks.labeling_load import measure
from toolkit.labeling.backup import backup
from toolkit.labeling.quality import quality
from toolkit.labeling.store import Store

SERVED = "the others were served, no label lost"
DAY = 86_400.0


_here = threading.local()  # the pages of the fault that this thread tries


def _cleanly(run: Callable[..., str], *given: Any) -> str:
    """Try a fault, and leave no server behind."""
    _here.pages = []
    try:
        return run(*given)
    finally:
        for page in _here.pages:
            if not page.ended():
                page.process.kill()


def expect(holds: object, otherwise: str) -> None:
    """Raise Wrong unless this holds."""
    if not holds:
        raise Wrong(otherwise)


class Page:
    """A server of the recipe, its links, and what was acknowledged."""

    def __init__(
        self,
        room: Room,
        items: int = 60,
        text: str = "",
        people: str = "ann,bob",
        **options: object,
    ) -> None:
        rows = [
            {"prompt": f"Text {i}.", "completions": [f" {k} {i}.{text}" for k in "abcd"]}
            for i in range(items)
        ]
        room.write("samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self.room, self.said, self.before = room, {}, room.files()
        self.store = room.folder / "labels.sqlite"
        words = {
            "samples": "samples.jsonl",
            "store": self.store,
            "port": 0,
            "invite": people,
            "output": "picks.jsonl",
            "requests_per_second": 1e6,
            "overlap": 0,
            "repeats": 0,
            "gold_share": 0,
        } | options
        given = [word for name, value in words.items() for word in (f"--{name}", value)]
        out = room.folder / "stdout"
        out.unlink(missing_ok=True)
        self.process = room.start("label", "--serve", *given)
        _here.pages.append(self)
        room.until(lambda: out.is_file() and "Ctrl-C" in out.read_text() or self.ended())
        self.links = dict(re.findall(r"(\w+)(?: link)?: http://\S+/invite/(\S+)", out.read_text()))
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", out.read_text())
        expect(found, f"it did not start: {(room.folder / 'stderr').read_text()[-300:]}")
        assert found is not None
        self.port = int(found[1])
        self.host = f"127.0.0.1:{self.port}"
        self.secrets = list(self.links.values())
        self.ask("GET", "/static/label.css")  # it is ready, and knows what to do at a signal

    def ended(self) -> bool:
        return not self.process.is_alive()

    def speak(self, raw: bytes, seconds: float = 1.0) -> bytes:
        """Send bytes; what comes back until the server hangs up, or is silent for so long."""
        raw = raw.replace(b"HOST", self.host.encode())
        answer = b""
        one = socket.create_connection(("127.0.0.1", self.port), timeout=seconds)
        with one, contextlib.suppress(OSError):
            one.sendall(raw)
            while more := one.recv(1 << 16):
                answer += more
        return answer

    def ask(
        self, method: str, path: str, fields: Any = None, cookie: str = "", seconds: float = 20
    ) -> tuple[int, str, dict[str, str]]:
        """Status, text and headers."""
        headers = {"Origin": f"http://{self.host}"}
        headers |= {"Cookie": f"labelling={cookie}"} if cookie else {}
        body = None
        if fields is not None:
            body = urllib.parse.urlencode(fields)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), dict(answer.getheaders())

    def join(self, name: str) -> "Person":
        return Person(self, self.links[name])

    def end(self, by: int = signal.SIGTERM) -> str:
        """End the server; everything that was acknowledged is in the store and in the output."""
        os.kill(self.process.pid, by)
        ended = self.room.wait(self.process, 60)
        ended.expect(ended.code == 0, "the server did not end well")
        for secret in self.secrets:
            expect(secret[:16] not in ended.err, "a secret is in the log")
        expect(len(ended.err) < 20_000, f"the log has {len(ended.err)} characters")
        self.check()
        picks = (self.room.folder / "picks.jsonl").read_text().splitlines()
        wanted = sum(action.startswith("pick") for action in self.said.values())
        expect(len(picks) == wanted, f"{len(picks)} picks came out of {wanted}")
        return SERVED

    def check(self) -> None:
        """The store is whole, and what is in it is what was acknowledged."""
        with Store(self.store) as store:
            rows = store.db.execute("SELECT form, action, position, seconds FROM events").fetchall()
        found = {
            form: f"pick {position}" if action == "pick" else action
            for form, action, position, _ in rows
        }
        expect(found == self.said, f"{len(found)} labels are there, {len(self.said)} acknowledged")
        expect(all(row[3] is None or row[3] >= 0 for row in rows), "a negative time")


class Person:
    """Somebody with a session."""

    def __init__(self, page: Page, token: str) -> None:
        self.page = page
        status, _, headers = page.ask("POST", "/invite", {"token": token})
        expect(status == 303, f"could not join: {status}")
        self.cookie = headers["set-cookie"].split("=", 1)[1].split(";")[0]
        page.secrets.append(self.cookie)

    def form(self) -> dict[str, str]:
        status, text, _ = self.page.ask("GET", "/", cookie=self.cookie)
        expect(status == 200, f"no page: {status}")
        return dict(re.findall(r'name="(csrf|form)" value="([^"]+)"', text))

    def answer(self, form: dict[str, str], action: str = "pick 1") -> int:
        """Answer; an acknowledged one is remembered."""
        fields = form | {"action": action, "reason": "other"}
        status, _, headers = self.page.ask("POST", "/label", fields, self.cookie)
        if status == 303 and headers["location"] == "/":
            self.page.said[form["form"]] = action
        return status

    def label(self, count: int = 1) -> None:
        for _ in range(count):
            form = self.form()
            self.page.secrets.append(form["csrf"])
            expect(self.answer(form) == 303, "a label was not taken")
            expect(form["form"] in self.page.said, "a label was not acknowledged")


# Requests that are none

GET = b"GET / HTTP/1.1\r\nHost: HOST\r\n"
POST = (
    b"POST /label HTTP/1.1\r\nHost: HOST\r\nOrigin: http://HOST\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\n"
)
ABUSE: dict[str, bytes] = {
    "nothing but a line's end": b"\r\n" * 2000,
    "bytes by lot": random.Random(1).randbytes(40_000),
    "zero bytes": bytes(40_000),
    "another protocol's greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "HTTP/1.0 without a host": b"GET / HTTP/1.0\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: HOST\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: HOST\r\nHost: evil.example\r\n\r\n",
    "a host with a name and password": b"GET / HTTP/1.1\r\nHost: a:b@HOST\r\n\r\n",
    "a method of a megabyte": b"G" * 1_000_000 + b" / HTTP/1.1\r\n\r\n",
    "a path of a megabyte": b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "a header of a megabyte": GET + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n",
    "a hundred thousand headers": GET + b"X: y\r\n" * 100_000 + b"\r\n",
    "a header with a line's end in it": GET + b"X: a\rb\nc\r\n\r\n",
    "a header without a name": GET + b": x\r\n\r\n",
    "a folded header": GET + b"X: a\r\n b\r\n\r\n",
    "bytes that are no text in a header": GET + b"Cookie: labelling=\xff\xfe\r\n\r\n",
    "bytes that are no text in a path": b"GET /\xff\xfe HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "a path of escapes that are no text": b"GET /invite/%ff%fe%00 HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "the address of another site": b"GET http://evil.example/ HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "CONNECT": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "an upgrade": GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "both lengths": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 50\r\n\r\nhello",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length of a thousand digits": POST + b"Content-Length: " + b"9" * 1000 + b"\r\n\r\n",
    "a chunk of no number": POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n",
    "a chunk of 2^64": POST + b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\nhello\r\n",
    "megabytes in chunks": POST
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"400\r\n" * 1
    + (b"x" * 1024 + b"\r\n400\r\n") * 3000,
    "an unknown coding": POST + b"Transfer-Encoding: gzip\r\n\r\nhello",
    "a hundred requests at once": (GET + b"\r\n") * 100,
    "a request behind a request that is refused": POST + b"Content-Length: 3\r\n\r\na=1" + GET * 2,
    "a form of a thousand fields": POST + b"Content-Length: 4000\r\n\r\n" + b"a=1&" * 1000,
    "a continuation that nobody gives": POST + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n",
    "cookies by the hundred": GET + b"Cookie: " + b"labelling=x; " * 900 + b"\r\n\r\n",
}


def _abuse(raw: bytes, room: Room) -> str:
    page = Page(room)
    ann = page.join("ann")
    ann.label()
    held = ann.form()
    crowd = [threading.Thread(target=page.speak, args=(raw, 0.3)) for _ in range(8)]
    for one in crowd:
        one.start()
    expect(ann.answer(held) == 303, "a label meanwhile was not taken")
    for one in crowd:
        one.join()
    answer = page.speak(raw, 0.3)
    expect(b"Traceback" not in answer and not answer.startswith(b"HTTP/1.1 500"), "a bug")
    ann.label(2)
    return page.end()


# Connections that say nothing

SILENT = {
    "say nothing": b"",
    "stop within the headers": GET + b"X-",
    "stop within a form": POST + b"Content-Length: 99\r\n\r\na=",
    "say nothing behind a request": GET + b"\r\n",
    "stop within a second request": GET + b"\r\n" + GET,
}


@contextlib.contextmanager
def _silent(page: Page, raw: bytes, count: int) -> Iterator[list[socket.socket]]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 6000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(6000, hard), hard))
    held: list[socket.socket] = []
    try:
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", page.port), timeout=20)
            held.append(one)
            one.sendall(raw.replace(b"HOST", page.host.encode()))
        yield held
    finally:
        for one in held:
            one.close()


def _two_thousand(raw: bytes, room: Room) -> str:
    page = Page(room)
    ann = page.join("ann")
    with _silent(page, raw, 2000):
        began = time.monotonic()
        ann.label(3)
        bob = page.join("bob")
        bob.label(3)
        seconds = time.monotonic() - began
    expect(seconds < 10, f"six labels took {seconds:.1f} s")
    ann.label()
    return page.end()


def _deaf(room: Room) -> str:
    """A hundred ask for a page of megabytes and read nothing of it."""
    page = Page(room, 30, "x" * 500_000, lease_minutes=60)
    ann, bob = page.join("ann"), page.join("bob")
    raw = GET + b"Cookie: labelling=" + ann.cookie.encode() + b"\r\n\r\n"
    with _silent(page, raw, 100):
        bob.label(3)
    ann.label()
    return page.end()


def _ended_with_silent_ones(room: Room) -> str:
    page = Page(room)
    ann = page.join("ann")
    ann.label(2)
    with _silent(page, GET + b"X-", 300):
        return page.end(signal.SIGINT)


# Many, and much


def _hundred(action: str, room: Room) -> str:
    names = [f"p{n}" for n in range(100)]
    page = Page(room, 420, people=",".join(names))
    problems: list[str] = []

    def work(name: str) -> None:
        try:
            person = page.join(name)
            for _ in range(4):
                person.answer(person.form(), action)
        except Exception as problem:
            problems.append(f"{name}: {problem!r}")

    crowd = [threading.Thread(target=work, args=(name,)) for name in names]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    expect(not problems, f"{len(problems)} of 100 were not served: {problems[:1]}")
    expect(len(page.said) == 400, f"{len(page.said)} of 400 labels were acknowledged")
    return page.end()


def _megabytes(text: str, room: Room) -> str:
    page = Page(room, 8, text)
    people = [page.join("ann"), page.join("bob")]
    for person in people:
        person.label(2)
    status, shown, _ = page.ask("GET", "/", cookie=people[0].cookie)
    expect(status == 200 and len(shown) > len(text), "the text is not on the page")
    return page.end()


def _import_of_megabytes(room: Room) -> str:
    page = Page(room)
    admin = Person(page, page.links["admin"])
    _, text, _ = page.ask("GET", "/admin", cookie=admin.cookie)
    csrf = re.search(r'name="csrf" value="([^"]+)"', text)
    assert csrf is not None
    rows = "".join(
        json.dumps({"prompt": f"new {i}", "completions": ["x" * 400_000, "y"]}) + "\n"
        for i in range(30)
    )
    parts = {"csrf": csrf[1], "format": "native"}
    body = "".join(
        f'--B\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n'
        for n, v in parts.items()
    )
    body += (
        f'--B\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n{rows}\r\n--B--'
    )
    head = (
        "POST /admin/import HTTP/1.1\r\nHost: HOST\r\nOrigin: http://HOST\r\nConnection: close\r\n"
        f"Cookie: labelling={admin.cookie}\r\nContent-Type: multipart/form-data; boundary=B\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    ann = page.join("ann")
    page.speak((head + body)[: len(body) // 2].encode(), 0.2)  # half of it, and away
    ann.label()
    answer = page.speak((head + body).encode(), 30)
    expect(b"30 items and 0 picks came in" in answer, f"not taken in: {answer[:200]!r}")
    ann.label()
    return page.end()


# Clocks. To the store it is the same whether the clock is set back or what it holds is later.


def _clock(by: float, again: bool, room: Room) -> str:
    page = Page(room, 2)
    ann, bob = page.join("ann"), page.join("bob")
    forms = [ann.form(), bob.form()]
    with contextlib.closing(sqlite3.connect(page.store, timeout=20)) as db, db:
        db.execute("UPDATE leases SET since = since + ?, expires = expires + ?", (by, by))
        db.execute("UPDATE sessions SET created = created + ?", (by,))
    if abs(by) > 30 * DAY:
        expect(page.ask("GET", "/", cookie=ann.cookie)[0] == 401, "a session of another year holds")
        ann, bob = page.join("ann"), page.join("bob")
    if again:
        expect(bob.answer(forms[1]) == 303, "the late answer was not taken")
    for person in (bob, ann):  # both items are free again, whoever had them
        for _ in range(2):
            form = person.form()
            if "form" in form:
                person.answer(form)
    expect(len(page.said) == 2, f"{len(page.said)} of 2 items could be labeled")
    with Store(page.store) as store:
        found = quality(store)
        seconds = [w.seconds for w in found.labelers if w.seconds is not None]
        expect(all(0 <= s < 600 for s in seconds), f"seconds an item: {seconds}")
        expect(found.left == 0 and sum(found.hourly) == 2, "figures of the hours are wrong")
    return page.end()


def _future_labels(by: float, room: Room) -> str:
    """Labels that were made before the clock was set back: they count, but in no hour."""
    page = Page(room, 6)
    ann = page.join("ann")
    ann.label(3)
    page.end()
    with Store(page.store) as store:
        with contextlib.closing(sqlite3.connect(page.store, timeout=20)) as db, db:
            db.execute("DROP TRIGGER events_stay")
            db.execute("UPDATE events SET at = at + ?", (by,))
        found = quality(store)
        expect(found.labels == found.done == 3, "labels are not counted")
        late = found.labelers[0].last_hour + sum(found.hourly)
        expect(late == 0 and min(found.hourly) >= 0, f"{late} labels of an hour that is not yet")
    return "figures are sane"


# Kills, backups, invitations, a store that fails


def _kills(seed: int, room: Room) -> str:
    found = measure(labels=160, labelers=4, kills=3, folder=room.folder, seed=seed)
    lost = {name: found[name] for name in ("lost", "doubled", "changed")}
    expect(not any(lost.values()) and found["labels"] >= 150, f"{lost} of {found['labels']}")
    return "every acknowledged label was there, once"


def _killed_with_a_hundred(by: int, room: Room) -> str:
    page = Page(room, 300, people=",".join(f"p{n}" for n in range(20)))
    people = [page.join(f"p{n}") for n in range(20)]
    asked: set[str] = set()

    def work(person: Person) -> None:
        with contextlib.suppress(Exception):  # the server is gone
            while True:
                form = person.form()
                asked.add(form["form"])
                person.answer(form)

    crowd = [threading.Thread(target=work, args=(person,)) for person in people]
    for one in crowd:
        one.start()
    room.until(lambda: len(page.said) > 40)
    os.kill(page.process.pid, by)
    page.process.join(60)
    for one in crowd:
        one.join()
    with Store(page.store) as store:
        found = {row[0] for row in store.db.execute("SELECT form FROM events")}
    expect(set(page.said) <= found, f"{len(set(page.said) - found)} acknowledged labels are lost")
    expect(found <= asked, "labels that nobody made")
    return "every acknowledged label was there, once"


def _backup_meanwhile(room: Room) -> str:
    page = Page(room, 200)
    ann = page.join("ann")
    ann.label(10)
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            ann.label()

    worker = threading.Thread(target=work)
    worker.start()
    before = len(page.said)
    words = ("--store", page.store, "--backup", "copy.sqlite")
    said = room.recipe("label", *words).done().out
    over.set()
    worker.join()
    expect("copy.sqlite (a copy of" in said, "it does not say what it did")
    with Store(room.folder / "copy.sqlite") as copy:
        forms = {row[0] for row in copy.db.execute("SELECT form FROM events")}
    expect(before <= len(forms) and forms <= set(page.said), "the copy lacks labels")
    page.end()
    room.recipe("label", *words).refused("--overwrite")
    return "a whole copy; no label lost"


def _backup_killed(after: float, room: Room) -> str:
    with Store(room.folder / "labels.sqlite") as store:
        store.add_items({"prompt": f"{i}", "completions": ["x" * 20_000, "y"]} for i in range(2000))
    room.killed("label", "--store", "labels.sqlite", "--backup", "copy.sqlite", after=after)
    if (room.folder / "copy.sqlite").exists():
        with Store(room.folder / "copy.sqlite") as copy:
            expect(copy.progress()["items"] == 2000, "half a copy")
    with Store(room.folder / "labels.sqlite") as store:
        expect(store.progress()["items"] == 2000, "the store lost items")
    backup(room.folder / "labels.sqlite", room.folder / "again.sqlite")
    return "a whole copy, or none"


def _invited_again(room: Room) -> str:
    page = Page(room)
    ann, admin = page.join("ann"), Person(page, page.links["admin"])
    _, text, _ = page.ask("GET", "/admin", cookie=admin.cookie)
    csrf = re.search(r'name="csrf" value="([^"]+)"', text)
    assert csrf is not None
    held = ann.form()
    for name in ("ann", " ann ", "ann\u0020"):
        _, text, _ = page.ask(
            "POST", "/admin/invite", {"csrf": csrf[1], "name": name}, admin.cookie
        )
        expect("already has a link" in text, "it did not ask")
    expect(ann.answer(held) == 303, "her session was ended unasked")
    page.join("ann").label()  # and her link works
    return page.end()


def _started_again(room: Room) -> str:
    page = Page(room)
    link = page.links["ann"]
    page.end()
    (room.folder / "picks.jsonl").unlink()
    again = Page(room)
    out = (room.folder / "stdout").read_text()
    expect("ann already has a link (--reinvite" in out, "it does not name the flag")
    Person(again, link).label()
    return again.end()


def _store_gone_bad(kind: str, room: Room) -> str:
    page = Page(room, 40, "x" * 3000)
    ann = page.join("ann")
    ann.label(2)
    form, link = ann.form(), page.links["bob"]
    page.secrets.append(form["csrf"])
    whole = backup(page.store, room.folder / "whole.sqlite")
    if kind == "a column renamed":
        with contextlib.closing(sqlite3.connect(page.store, timeout=20)) as db, db:
            db.execute("ALTER TABLE labellers RENAME COLUMN name TO named")
    elif kind == "tables dropped":
        with contextlib.closing(sqlite3.connect(page.store, timeout=20)) as db, db:
            db.execute("PRAGMA foreign_keys = OFF")
            for table in ("sessions", "labellers", "leases"):
                db.execute(f"DROP TABLE {table}")
    statuses = [
        page.ask("GET", f"/invite/{link}")[0],
        page.ask("POST", "/invite", {"token": link})[0],
        ann.answer(form),
        page.ask("GET", "/", cookie=ann.cookie)[0],
    ]
    expect(all(status in (500, 503) for status in statuses), f"statuses {statuses}")
    page.process.kill()
    page.process.join()
    err = (room.folder / "stderr").read_text()
    expect(err, "nothing was logged")
    for secret in page.secrets:
        expect(secret[:16] not in err, "a secret is in the log")
    with Store(whole) as store:
        expect(len(list(store.picks())) == 2, "the copy lacks labels")
    return "told with 503; no secret in the log"


def _faults() -> Iterator[Fault]:
    def of(kind: str, name: str, run: Callable[..., str], *given: Any) -> Fault:
        return Fault(kind, name, partial(_cleanly, run, *given))

    for name, raw in ABUSE.items():
        yield of("page: requests that are none", name, _abuse, raw)
    for name, raw in SILENT.items():
        yield of("page: 2,000 silent connections", f"that {name}", _two_thousand, raw)
    yield of("page: 2,000 silent connections", "a hundred read nothing", _deaf)
    yield of("page: 2,000 silent connections", "Ctrl-C among 300", _ended_with_silent_ones)
    for action in ("pick 1", "skip"):
        yield of("page: 100 labelers at once", action, _hundred, action)
    for name, text in {
        "a megabyte of letters": "x" * 250_000,
        "of tags": "<b>" * 100_000,
        "of Chinese": "\u4f60\u597d" * 100_000,
        "of emoji": "\U0001f642" * 100_000,
        "of hidden characters": "\u200d" * 50_000,
    }.items():
        yield of("page: items of megabytes", name, _megabytes, text)
    yield of("page: items of megabytes", "an import", _import_of_megabytes)
    set_to = {
        "back a day": DAY,
        "back a year": 365 * DAY,
        "forward a day": -DAY,
        "forward a year": -365 * DAY,
        "back an hour and a half": 5400.0,
    }
    for name, by in set_to.items():
        for again in (True, False)[abs(by) > 30 * DAY :]:  # a session is over by then
            late = ", a late answer" if again else ""
            yield of("page: clocks", f"set {name}{late}", _clock, by, again)
    for name, by in {"a day": DAY, "two hours": 7200.0, "a year": 365 * DAY}.items():
        yield of("page: clocks", f"labels {name} ahead", _future_labels, by)
    for seed in range(3):
        yield of("page: kills while labels come in", f"lot {seed}", _kills, seed)
    for name, by in {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}.items():
        yield of("page: kills while labels come in", name, _killed_with_a_hundred, by)
    yield of("page: backups", "while people label", _backup_meanwhile)
    for after in (0.05, 0.1, 0.2, 0.4, 0.8):
        yield of("page: backups", f"killed after {after} s", _backup_killed, after)
    yield of("page: invitations", "of a name that has a link", _invited_again)
    yield of("page: invitations", "the same command again", _started_again)
    for kind in ("a column renamed", "tables dropped"):
        yield of("page: a store that fails", kind, _store_gone_bad, kind)


FAULTS = list(_faults())
