"""A picker that asks an OpenAI-compatible HTTP endpoint which completion is best.

The completions are lettered in an order that a hash of them decides. So a judge who prefers the
first one prefers no index, and the same completions make the same request in any order. Only one
letter counts as an answer. Nothing is sent anywhere but to ``base_url``.

A useless judge ends the work (``UselessJudge``): one that gives no answer many times in a row, or
one that says the same letter again and again, and so ignores the completions.
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
ANSWER = re.compile(
    r"""[\s*("'\[]*([A-Z])[\s*)"'\].:]*"""
)  # the letter, in punctuation but not in words
LARGEST = 1 << 20  # most bytes of an answer; one with a letter has under two thousand
MOST_TOKENS = 10**9  # of one answer; if an endpoint counts more, it has miscounted
# How unlikely a run of one letter must be. Answers are looked at only once, so this demands less
# than finding such a run anywhere among hundreds of thousands.
UNLIKELY_FROM_THE_START, UNLIKELY = math.log(1e-6), math.log(1e-9)


_Answer = tuple[int, dict[str, str], bytes]  # status, headers, body


class UselessJudge(InputError):
    """Raised if a judge's last ``count`` answers mean nothing; labels from them are void."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


class HTTPJudge:
    """Picks by ``POST {base_url}/chat/completions``; use it as a context manager, or close it.

    Rate limits (429), server errors (5xx) and connections that fail or stall are retried after the
    time in ``Retry-After``, or after 1, 2, 4, ... times ``backoff``.

    Args:
        base_url: address of the endpoint, for example ``http://localhost:8000/v1``. Redirects are
            not followed.
        model: its name at the endpoint.
        key_variable: environment variable with the API key; if it is not set, no key is sent.
        question: the question to the judge; completions and the form of the answer are added.
        max_tokens: most tokens of an answer. It allows more than a letter, to detect a judge who
            chats. A model that thinks needs thousands; its text up to </think> is ignored.
        timeout: seconds for one request, from looking up the address to the answer's last byte.
        patience: answers without a letter in a row that end the work (``UselessJudge``).
        retries: most retries of one request.
        backoff: seconds before the first retry.
        longest_wait: seconds. If a server asks for more, the work ends (labels are kept, and the
            rest can be done later).
        input_price: price per million tokens of requests, in any currency.
        output_price: price per million tokens of answers.

    Attributes:
        requests: requests sent, including retries.
        retries: retries among them.
        answered: answers that were a letter.
        refused: answers that were not a letter.
        refusal: the beginning of the last refused answer.
        prompt_tokens: as the endpoint counts them; 0 if it does not.
        completion_tokens: likewise.

    Raises:
        InputError: the address or key is impossible, or a number is out of range.
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
        self._row = 0  # answers without a letter in a row, up to the last

        self._key_variable = key_variable
        key = _key(key_variable)
        # The key is kept here and in the client, whose repr hides it, but not in an attribute.
        self._hide = lambda text: text.replace(key, "[key]") if key else text
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"

        # Each request has its own connection, so that bytes that an endpoint sends after an answer
        # are never taken for the next one.
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
        """Cost of all requests so far, at the given prices."""
        spent = self.prompt_tokens * self.input_price + self.completion_tokens * self.output_price
        return spent / 1e6

    def best(
        self, prompt: Prompt, completions: list[str], fields: Fields | None = None
    ) -> list[int]:
        """Return the judge's pick in a list, empty if it refused; it does not see the fields."""
        index = self.pick(prompt, completions)
        return [] if index is None else [index]

    def pick(self, prompt: Prompt, completions: list[str]) -> int | None:
        """Return the index of the best completion; None if the judge named none.

        Args:
            prompt: text or messages.
            completions: 2 to 26 texts.

        Raises:
            UselessJudge: it named none, or the same letter, too often in a row.
            InputError: the endpoint refuses the request (a wrong key, model or address), answers
                something else, or cannot be reached after all retries.
        """
        count, letters = len(completions), string.ascii_uppercase
        if not 2 <= count <= len(letters):
            raise InputError(f"{count} completions, but a judge can compare 2 to {len(letters)}")

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
                "row, though completions are lettered at random: it does not read them (another "
                "model?)",
                self.answered + self.refused - row.since + 1,
            )
        return order[position]

    def _refuse(self, answer: object) -> None:
        """Count an answer without a letter; raise UselessJudge if it is one too many."""
        self.refused += 1
        self._row += 1
        said = self._cut(answer if isinstance(answer, str) else json.dumps(answer), 80)
        self.refusal = repr(said) + self._why
        if self._row >= self.patience:
            raise UselessJudge(
                f"{self.base_url}: {self._row} answers in a row were not one letter; the last "
                f"begins {self.refusal} (does {self.model!r} follow this instruction? "
                "--judge_patience allows more)",
                self._row,
            )

    def doubt(self) -> str | None:
        """A warning if it says a letter more often than chance explains; else None."""
        return self._letters.doubt(f"{self.base_url}: {self.model!r}")

    def request_text(self, prompt: Prompt, shown: list[str]) -> str:
        """Return the text that the judge reads, with the completions in lettered order."""
        # A completion cannot fake a heading, because it would have to know the mark, which is a
        # hash of all of them.
        mark = hashlib.sha256(json.dumps([prompt, shown]).encode()).hexdigest()[:8]

        letters = string.ascii_uppercase[: len(shown)]
        parts = [f"[Prompt {mark}]\n{prompt_text(prompt)}"]
        parts += [f"[{a} {mark}]\n{text}" for a, text in zip(letters, shown, strict=True)]
        ask = f"Answer with one letter, {letters[0]} to {letters[-1]}, and nothing else."
        return "\n\n".join([self.question, *parts, f"[End {mark}]", ask])

    def _ask(self, content: str) -> object:
        """Return the answer's text, after retries if needed."""
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
                raise InputError(
                    f"{self._line(problem)} (asks to wait {asked:.0f} s: run this then)"
                )
            if attempt + 1 < self.tries:
                own = min(self.backoff * 2**attempt, self.longest_wait)
                time.sleep(own if asked is None else asked)
        raise InputError(f"{self._line(problem)} (tried {self.tries} times)")

    def _post(self, body: bytes) -> _Answer:
        """Return status, headers and at most LARGEST + 1 bytes of the answer, by the deadline.

        The client's own timeouts start anew at each read, so a server that sends a byte now and
        then would keep it forever. So a thread asks, and its connection is cut at the deadline.
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
            raise httpx2.ReadTimeout(f"no complete answer in {self.timeout:g} s") from None
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
            for chunk in response.iter_raw():  # undecoded, so that nothing small can become large
                answer += chunk
                if len(answer) > LARGEST:
                    break
            return response.status_code, dict(response.headers), answer[: LARGEST + 1]

    def _content(self, answer: bytes) -> object:
        """Return ``choices[0].message.content``, and count its tokens."""
        if len(answer) > LARGEST:
            raise InputError(f"{self.base_url}: the answer has more than {LARGEST} bytes")

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
        """Make a line from a server's message: short, without key and control characters."""
        return f"{self.base_url}: {self._cut(problem, 200)}"

    def _cut(self, text: str, length: int) -> str:
        # Cut only after the key is removed, or a part of it could stay.
        words = "".join(c if c.isprintable() else " " for c in self._hide(text)).split()
        return " ".join(words)[:length]

    def _cure(self, status: int, headers: dict[str, str]) -> str:
        if 300 <= status < 400:
            there = self._cut(headers.get("location", "").split("?")[0], 100) or "nowhere"
            return f" (it redirects to {there}, which is not followed: pass the right --judge_url)"
        cures = {
            401: f" (is {self._key_variable} set to a key of this endpoint?)",
            403: f" (may the key in {self._key_variable} use model {self.model!r}?)",
            404: f" (does base_url end in /v1, and is there a model {self.model!r}?)",
        }
        return cures.get(status, "")


class _Call:
    """One request's connection, which another thread can cut."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.over = threading.Event()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Receive the client's events; end the connection if the call is over."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self.sockets.append(info["return_value"].get_extra_info("socket"))
        if self.over.is_set() and event.endswith(".started") and "close" not in event:
            raise httpx2.ReadTimeout("hung up")

    def hang_up(self) -> None:
        """Wake the thread that waits for this connection, which then closes it."""
        self.over.set()
        for one in self.sockets:
            with contextlib.suppress(OSError):  # it is closed already
                socket.socket.shutdown(one, socket.SHUT_RDWR)


class _Letters:
    """The positions that a judge has named; by chance all are equally likely."""

    def __init__(self) -> None:
        self.counts: dict[int, Counter[int]] = {}  # number of completions: positions
        self.position, self.chance = -1, 0.0  # of the current row: its letter, its log-probability
        self.requests: set[bytes] = set()  # of the row: a repeated request has the same answer
        self.length, self.since, self.unbroken = 0, 0, True

    def add(self, content: str, position: int, count: int, number: int) -> bool:
        """Add an answer; return whether its letter's row is too long for chance."""
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
        """A warning if by chance a letter would be so frequent once in a thousand; else None."""
        for count, positions in sorted(self.counts.items()):
            position, times = max(positions.items(), key=lambda pair: pair[1])
            total = sum(positions.values())
            p = count * float(bdtrc(times - 1, total, 1 / count))  # this often, or more often
            if p < 1e-3:
                return (
                    f"{who} said {string.ascii_uppercase[position]} in {times} of {total} answers "
                    f"on {count} completions, which are lettered at random (p = {min(p, 1):.1g}): "
                    "it goes by the place more than by the text"
                )
        return None


def shown_order(prompt: Prompt, completions: list[str]) -> list[int]:
    """Return the completions' indices in lettered order: by a hash of prompt and completion."""

    def place(k: int) -> bytes:
        return hashlib.sha256(json.dumps([prompt, completions[k]]).encode()).digest()

    return sorted(range(len(completions)), key=place)


def _address(base_url: str) -> str:
    try:
        url = httpx2.URL(base_url)
    except (httpx2.InvalidURL, TypeError):
        raise InputError("base_url: not an address", "base_url") from None
    if url.userinfo or url.query or url.fragment:
        raise InputError("base_url has a name, password or query in it (leave it out)", "base_url")
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
    if not key.isascii() or any(not 32 < ord(c) < 127 for c in key):  # a header cannot hold these
        raise InputError(f"{variable} has spaces or characters that no key has (set it again)")
    return key


def _without_thoughts(answer: str) -> str:
    """Return what comes after a block in which a model thinks.

    Many chat templates open the block themselves, so that the answer has only its end, on a line.
    """
    thinks = answer.lstrip().startswith("<think>") or "</think>\n" in answer
    return answer.rpartition("</think>")[2] if thinks else answer


def _tokens(count: object) -> int:
    """Return a count of tokens, or 0 if the value cannot be one."""
    return count if type(count) is int and 0 < count <= MOST_TOKENS else 0


def _seconds(header: str | None) -> float | None:
    """Parse Retry-After (seconds or a date) to seconds; None if it is neither."""
    if header is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", header.strip(), re.ASCII):
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
