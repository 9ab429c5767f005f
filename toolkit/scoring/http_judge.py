"""A picker that is asked over HTTP which completion is best: any OpenAI-compatible endpoint.

The completions are lettered, in an order that a hash of them decides: a judge who likes the first
one best thereby likes no index best, and the same completions make the same request whatever order
they come in. Anything but one letter is no answer. Nothing is sent anywhere but to ``base_url``.

A judge that is of no use ends the work (``UselessJudge``): one who gives no answer many times in a
row, and one who says the same letter again and again, and so knows nothing of the completions.
"""

import contextlib
import email.utils
import hashlib
import json
import math
import os
import queue
import re
import socket
import string
import threading
import time
from collections import Counter
from typing import Any, Self

import httpx2
from scipy.special import bdtrc

from toolkit.data.text import prompt_text
from toolkit.errors import InputError, check_range
from toolkit.scoring.picker import Fields
from toolkit.scoring.scorer import Prompt

QUESTION = "Which of these completions of the prompt is best?"
ANSWER = re.compile(r"""[\s*("'\[]*([A-Z])[\s*)"'\].:]*""")  # the letter, in marks but not in words
LARGEST = 1 << 20  # bytes of an answer; a letter's is under two thousand
MOST_TOKENS = 10**9  # of one answer; an endpoint that counts more has miscounted
# How unlikely a row of one letter has to be. All answers so far are looked at but once, so that is
# asked for less than a row that begins anywhere among hundreds of thousands.
UNLIKELY_FROM_THE_START, UNLIKELY = math.log(1e-6), math.log(1e-9)


_Answer = tuple[int, dict[str, str], bytes]  # status, headers, body


class UselessJudge(InputError):
    """A judge whose last ``count`` answers say nothing; those given out as labels are void."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


class HTTPJudge:
    """Picks by asking ``POST {base_url}/chat/completions``; use it as a context, or close it.

    Rate limits (429), the server's own errors (5xx) and connections that fail or stall are tried
    again, after as long as ``Retry-After`` says or 1, 2, 4, ... times ``backoff``.

    Args:
        base_url: of the endpoint, as ``http://localhost:8000/v1``. Redirects are not followed.
        model: as the endpoint calls it.
        key_variable: environment variable with the API key; none is sent where it is not set.
        question: what the judge is asked; completions and the form of the answer are added.
        max_tokens: of the answer. More than a letter takes: a judge who chats is thus found out.
            A model that thinks first needs thousands; what it puts before </think> is left out.
        timeout: seconds for one request, from looking up the address to the answer's last byte.
        patience: so many answers in a row that are no letter are the last ones (``UselessJudge``).
        retries: of one request.
        backoff: seconds before the first retry.
        longest_wait: seconds; a server that asks for more ends the work instead (what is labeled
            stays, and the rest can be gone on with).
        input_price: per million tokens of requests, in any currency.
        output_price: per million tokens of answers.

    Attributes:
        requests: sent, retries among them.
        retries: of these.
        answered: answers that were a letter.
        refused: answers that were not a letter.
        refusal: how the last of these begins.
        prompt_tokens: as the endpoint counts them, 0 if it does not.
        completion_tokens: likewise.

    Raises:
        InputError: an address or a key that can not be one, or a number out of range.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        question: str = QUESTION,
        max_tokens: int = 8,
        timeout: float = 60.0,
        patience: int = 20,
        retries: int = 4,
        backoff: float = 1.0,
        longest_wait: float = 120.0,
        input_price: float = 0.0,
        output_price: float = 0.0,
    ) -> None:
        check_range("max_tokens", max_tokens, low=1)
        check_range("patience", patience, low=1)
        check_range("timeout", timeout, above=0)
        check_range("retries", retries, low=0)
        check_range("backoff", backoff, low=0)
        check_range("longest_wait", longest_wait, low=0)
        check_range("input_price", input_price, low=0)
        check_range("output_price", output_price, low=0)

        self.base_url = _address(base_url)
        self.model = model
        self.question = question
        self.max_tokens = max_tokens
        self.timeout = timeout
        self.patience = patience
        self.tries = retries + 1
        self.backoff = backoff
        self.longest_wait = longest_wait
        self.input_price = input_price
        self.output_price = output_price

        self.requests = self.retries = self.answered = self.refused = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.refusal, self._why = "", ""
        self._letters = _Letters()
        self._row = 0  # of answers without a letter, up to the last

        self._key_variable = key_variable
        key = _key(key_variable)
        # The key lives in here and in the client, whose repr hides it, and in no attribute.
        self._hide = lambda text: text.replace(key, "[key]") if key else text
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"

        # A connection for each request: what an endpoint sends beyond an answer is never taken for
        # the next one.
        self._client = httpx2.Client(
            headers=headers,
            timeout=timeout,
            follow_redirects=False,
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def __repr__(self) -> str:
        return f"HTTPJudge({self.base_url!r}, {self.model!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @property
    def cost(self) -> float:
        """Of all requests so far, at the prices given."""
        spent = self.prompt_tokens * self.input_price + self.completion_tokens * self.output_price
        return spent / 1e6

    def best(
        self, prompt: Prompt, completions: list[str], fields: Fields | None = None
    ) -> list[int]:
        """The judge's ``pick`` as a ``Picker`` gives it; none if it refused. It sees no fields."""
        index = self.pick(prompt, completions)
        return [] if index is None else [index]

    def pick(self, prompt: Prompt, completions: list[str]) -> int | None:
        """The index of the best completion; None if the judge named none.

        Args:
            prompt: text or messages.
            completions: 2 to 26 texts.

        Raises:
            UselessJudge: it has named none, or the same letter, too often in a row.
            InputError: the endpoint refuses such requests (a wrong key, model or address), answers
                something else, or could not be reached however often it was tried.
        """
        count, letters = len(completions), string.ascii_uppercase
        if not 2 <= count <= len(letters):
            raise InputError(f"{count} completions, but a judge takes 2 to {len(letters)}")

        order = shown_order(prompt, completions)
        content = self.request_text(prompt, [completions[k] for k in order])
        answer = self._ask(content)
        match = ANSWER.fullmatch(_without_thoughts(answer)) if isinstance(answer, str) else None
        position = letters.index(match[1]) if match else count
        if position >= count:
            self._refuse(answer)
            return None

        self.answered += 1
        self._row = 0
        if self._letters.add(content, position, count, self.answered + self.refused):
            row = self._letters
            raise UselessJudge(
                f"{self.base_url}: {self.model!r} said {letters[position]} {row.length} times in a "
                "row, though completions are lettered by lot: it does not read them (another "
                "model?)",
                self.answered + self.refused - row.since + 1,
            )
        return order[position]

    def _refuse(self, answer: object) -> None:
        """Count an answer without a letter; raise UselessJudge where it is one too many."""
        self.refused += 1
        self._row += 1
        said = self._cut(answer if isinstance(answer, str) else json.dumps(answer), 80)
        self.refusal = repr(said) + self._why
        if self._row >= self.patience:
            raise UselessJudge(
                f"{self.base_url}: {self._row} answers in a row were not one letter; the last "
                f"begins {self.refusal} (does {self.model!r} follow such an instruction? "
                "--judge_patience bears with more)",
                self._row,
            )

    def doubt(self) -> str | None:
        """A line on letters that it says more often than chance would have it; None for none."""
        return self._letters.doubt(f"{self.base_url}: {self.model!r}")

    def request_text(self, prompt: Prompt, shown: list[str]) -> str:
        """What the judge reads: the completions in the order in which they are lettered."""
        # A completion can not write a heading of its own: it would have to know the mark, which
        # is a hash of all of them.
        mark = hashlib.sha256(json.dumps([prompt, shown]).encode()).hexdigest()[:8]

        letters = string.ascii_uppercase[: len(shown)]
        parts = [f"[Prompt {mark}]\n{prompt_text(prompt)}"]
        parts += [f"[{a} {mark}]\n{text}" for a, text in zip(letters, shown, strict=True)]
        ask = f"Answer with one letter, {letters[0]} to {letters[-1]}, and nothing else."
        return "\n\n".join([self.question, *parts, f"[End {mark}]", ask])

    def _ask(self, content: str) -> object:
        """The answer's text, after as many tries as it takes."""
        body = json.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": content}],
                "temperature": 0,
                "max_tokens": self.max_tokens,
            }
        ).encode()

        problem = ""
        for attempt in range(self.tries):
            self.requests += 1
            self.retries += attempt > 0
            asked: float | None = None
            try:
                status, headers, answer = self._post(body)
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if 200 <= status < 300:
                    return self._content(answer)
                problem = f"HTTP {status}: {answer.decode('utf-8', 'replace')}"
                if status != 429 and status < 500:
                    raise InputError(self._line(problem) + self._cure(status, headers))
                asked = _seconds(headers.get("retry-after"))

            if asked is not None and asked > self.longest_wait:
                raise InputError(f"{self._line(problem)} (asks for {asked:.0f} s: come back then)")
            if attempt + 1 < self.tries:
                own = min(self.backoff * 2**attempt, self.longest_wait)
                time.sleep(own if asked is None else asked)
        raise InputError(f"{self._line(problem)} (tried {self.tries} times)")

    def _post(self, body: bytes) -> _Answer:
        """Status, headers and at most LARGEST + 1 bytes of the answer, by the deadline.

        The client's own timeouts are for each read anew: a server that sends a byte now and then
        would keep it for ever. So a thread asks, and is hung up on when the time is over.
        """
        outcome: queue.SimpleQueue[_Answer | BaseException] = queue.SimpleQueue()
        call = _Call()

        def ask() -> None:
            try:
                outcome.put(self._exchange(body, call))
            except BaseException as error:
                outcome.put(error)

        threading.Thread(target=ask, name="judge", daemon=True).start()
        try:
            found = outcome.get(timeout=self.timeout)
        except queue.Empty:
            raise httpx2.ReadTimeout(f"no whole answer in {self.timeout:g} s") from None
        finally:
            call.hang_up()
        if isinstance(found, BaseException):
            raise found
        return found

    def _exchange(self, body: bytes, call: "_Call") -> _Answer:
        url = f"{self.base_url}/chat/completions"
        answer = b""
        extensions = {"trace": call.trace}
        with self._client.stream("POST", url, content=body, extensions=extensions) as response:
            for chunk in response.iter_raw():  # undecoded: nothing small can become large
                answer += chunk
                if len(answer) > LARGEST:
                    break
            return response.status_code, dict(response.headers), answer[: LARGEST + 1]

    def _content(self, answer: bytes) -> object:
        """``choices[0].message.content``, and the tokens that it took are counted."""
        if len(answer) > LARGEST:
            raise InputError(f"{self.base_url}: an answer of more than {LARGEST} bytes")

        try:
            value = json.loads(answer)
            choice = value["choices"][0]
            message, usage = choice["message"], value.get("usage")
            content = message.get("content")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            said = answer.decode("utf-8", "replace")
        else:
            counts = usage if isinstance(usage, dict) else {}
            self.prompt_tokens += _tokens(counts.get("prompt_tokens"))
            self.completion_tokens += _tokens(counts.get("completion_tokens"))
            self._why = ""
            if choice.get("finish_reason") == "length":
                self._why = (
                    f", cut at {self.max_tokens} tokens (a model that thinks first needs "
                    "thousands: --judge_max_tokens)"
                )
            return content or message.get("refusal") or content
        raise InputError(self._line(f"no chat completion: {said}"))

    def _line(self, problem: str) -> str:
        """A line with what the server said of it: no key, no control characters, no end of it."""
        return f"{self.base_url}: {self._cut(problem, 200)}"

    def _cut(self, text: str, length: int) -> str:
        # Cut only once the key is out of it: else a part of one could stay.
        words = "".join(c if c.isprintable() else " " for c in self._hide(text)).split()
        return " ".join(words)[:length]

    def _cure(self, status: int, headers: dict[str, str]) -> str:
        if 300 <= status < 400:
            there = self._cut(headers.get("location", "").split("?")[0], 100) or "nowhere"
            return f" (it redirects to {there}, which is not followed: give the right --judge_url)"
        cures = {
            401: f" (is {self._key_variable} set to a key of this endpoint?)",
            403: f" (may the key in {self._key_variable} use model {self.model!r}?)",
            404: f" (does base_url end as in .../v1, and is there a model {self.model!r}?)",
        }
        return cures.get(status, "")


class _Call:
    """One request's connection, to be cut from another thread."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.over = threading.Event()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """What the client tells of each of its steps; the one that finds the call over ends it."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self.sockets.append(info["return_value"].get_extra_info("socket"))
        if self.over.is_set() and event.endswith(".started") and "close" not in event:
            raise httpx2.ReadTimeout("hung up")

    def hang_up(self) -> None:
        """Wake whoever waits for this connection; it is theirs to close."""
        self.over.set()
        for one in self.sockets:
            with contextlib.suppress(OSError):  # it is closed already
                socket.socket.shutdown(one, socket.SHUT_RDWR)


class _Letters:
    """Which positions a judge has named; by chance each is as likely, as the order is drawn."""

    def __init__(self) -> None:
        self.counts: dict[int, Counter[int]] = {}  # number of completions: positions
        self.position, self.chance = -1, 0.0  # of the present row: its letter, its log-probability
        self.requests: set[bytes] = set()  # of the row: one that comes again has the same answer
        self.length, self.since, self.unbroken = 0, 0, True

    def add(self, content: str, position: int, count: int, number: int) -> bool:
        """The answer of this number; whether the row of its letter is too long to be chance."""
        request = hashlib.sha256(content.encode("utf-8", "replace")).digest()

        if position != self.position:
            self.unbroken = self.position == -1
            self.position, self.chance = position, math.log(count)
            self.length, self.since = 0, number
            self.requests.clear()

        self.length += 1
        if request not in self.requests:
            self.requests.add(request)
            self.chance -= math.log(count)
            self.counts.setdefault(count, Counter())[position] += 1

        limit = UNLIKELY_FROM_THE_START if self.unbroken else UNLIKELY
        return self.chance < limit

    def doubt(self, who: str) -> str | None:
        """A line if a letter comes up so often that it is one in a thousand; None otherwise."""
        for count, positions in sorted(self.counts.items()):
            position, times = max(positions.items(), key=lambda pair: pair[1])
            total = sum(positions.values())
            p = count * float(bdtrc(times - 1, total, 1 / count))  # so often, or more
            if p < 1e-3:
                return (
                    f"{who} said {string.ascii_uppercase[position]} in {times} of {total} answers "
                    f"on {count} completions, which are lettered by lot (p = {min(p, 1):.1g}): it "
                    "goes by the place more than by the text"
                )
        return None


def shown_order(prompt: Prompt, completions: list[str]) -> list[int]:
    """The completions' indices as they are lettered: by a hash of prompt and completion."""

    def place(k: int) -> bytes:
        return hashlib.sha256(json.dumps([prompt, completions[k]]).encode()).digest()

    return sorted(range(len(completions)), key=place)


def _address(base_url: str) -> str:
    try:
        url = httpx2.URL(base_url)
    except (httpx2.InvalidURL, TypeError):
        raise InputError("base_url: not an address", "base_url") from None
    if url.userinfo or url.query or url.fragment:
        raise InputError("base_url: has a name, password or query in it (leave it out)", "base_url")
    try:
        url.host.encode("idna")
    except UnicodeError:
        raise InputError(f"base_url: {base_url!r:.80}: no such host", "base_url") from None
    if url.scheme not in ("http", "https") or not url.host or " " in base_url:
        raise InputError(
            f"base_url: {base_url!r:.80}, but must be like http://localhost:8000/v1", "base_url"
        )
    return base_url.rstrip("/")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or any(not 32 < ord(c) < 127 for c in key):  # no header can hold these
        raise InputError(
            f"{variable}: has spaces or characters in it that no key has (set it anew)"
        )
    return key


def _without_thoughts(answer: str) -> str:
    """What comes after a block in which a model thinks.

    Many a chat template opens the block itself, so that the answer has its end alone, on a line.
    """
    thinks = answer.lstrip().startswith("<think>") or "</think>\n" in answer
    return answer.rpartition("</think>")[2] if thinks else answer


def _tokens(count: object) -> int:
    """A count of tokens, or 0 where it can be none."""
    return count if type(count) is int and 0 < count <= MOST_TOKENS else 0


def _seconds(header: str | None) -> float | None:
    """What Retry-After says, seconds or a date; None if that is nothing."""
    if header is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", header.strip(), re.ASCII):
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
