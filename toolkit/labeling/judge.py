"""A judge that is asked over HTTP which completion is best: any OpenAI-compatible endpoint.

The completions are lettered, in an order that a hash of them decides: a judge who likes the first
one best thereby likes no index best, and the same completions make the same request whatever order
they come in. Anything but one letter is no answer. Nothing is sent anywhere but to ``base_url``.
"""

import email.utils
import hashlib
import json
import os
import re
import string
import time
from typing import Any

import httpx2

from toolkit.data.text import prompt_text
from toolkit.errors import InputError, check_range

QUESTION = "Which of these completions of the prompt is best?"
ANSWER = re.compile(r"""[\s*("'\[]*([A-Z])[\s*)"'\].:]*""")  # the letter, in marks but not in words
LARGEST = 1 << 20  # bytes of an answer; a letter's is under two thousand


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
        timeout: seconds to connect, to wait for a next byte, and for an answer's whole body.
        retries: of one request.
        backoff: seconds before the first retry.
        longest_wait: seconds; a server that asks for more ends the work instead (what is labelled
            stays, and the rest can be gone on with).
        input_price: per million tokens of requests, in any currency.
        output_price: per million tokens of answers.

    Attributes:
        requests: sent, retries among them.
        retries: of these.
        refused: answers that were not a letter.
        prompt_tokens: as the endpoint counts them, 0 if it does not.
        completion_tokens: likewise.

    Raises:
        InputError: an address or a key that can not be one, or a number out of range.
    """

    def __init__(
        self, base_url: str, model: str, key_variable: str = "OPENAI_API_KEY",
        question: str = QUESTION, max_tokens: int = 8, timeout: float = 60.0, retries: int = 4,
        backoff: float = 1.0, longest_wait: float = 120.0, input_price: float = 0.0,
        output_price: float = 0.0,
    ) -> None:  # fmt: skip
        check_range("max_tokens", max_tokens, low=1)
        check_range("timeout", timeout, above=0)
        for name, value in [("retries", retries), ("backoff", backoff),
                            ("longest_wait", longest_wait), ("input_price", input_price),
                            ("output_price", output_price)]:  # fmt: skip
            check_range(name, value, low=0)
        self.base_url, self.model, self.question = _address(base_url), model, question
        self.max_tokens, self.timeout, self.backoff = max_tokens, timeout, backoff
        self.tries, self.longest_wait = retries + 1, longest_wait
        self.input_price, self.output_price = input_price, output_price
        self.requests = self.retries = self.refused = 0
        self.prompt_tokens = self.completion_tokens = 0
        self._key_variable = key_variable
        key = _key(key_variable)
        # The key lives in here and in the client, whose repr hides it, and in no attribute.
        self._hide = lambda text: text.replace(key, "[key]") if key else text
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx2.Client(headers=headers, timeout=timeout, follow_redirects=False)

    def __repr__(self) -> str:
        return f"HTTPJudge({self.base_url!r}, {self.model!r})"

    def __enter__(self) -> "HTTPJudge":
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

    def pick(self, prompt: str | list[dict[str, str]], completions: list[str]) -> int | None:
        """The index of the best completion; None if the judge named none.

        Args:
            prompt: text or messages.
            completions: 2 to 26 texts.

        Raises:
            InputError: the endpoint refuses such requests (a wrong key, model or address), answers
                something else, or could not be reached however often it was tried.
        """
        count, letters = len(completions), string.ascii_uppercase
        if not 2 <= count <= len(letters):
            raise InputError(f"{count} completions, but a judge takes 2 to {len(letters)}")
        order = shown_order(prompt, completions)
        content = self.request_text(prompt, [completions[k] for k in order])
        answer = self._ask(content)
        match = ANSWER.fullmatch(answer) if isinstance(answer, str) else None
        position = letters.index(match[1]) if match else count
        if position >= count:
            self.refused += 1
            return None
        return order[position]

    def request_text(self, prompt: str | list[dict[str, str]], shown: list[str]) -> str:
        """What the judge reads: the completions in the order in which they are lettered."""
        # A completion can not write a heading of its own: it would have to know the mark, which
        # is a hash of all of them.
        mark = hashlib.sha256(json.dumps([prompt, shown]).encode()).hexdigest()[:8]
        letters = string.ascii_uppercase[: len(shown)]
        parts = [f"[Prompt {mark}]\n{prompt_text(prompt)}"]
        parts += [f"[{a} {mark}]\n{text}" for a, text in zip(letters, shown, strict=True)]
        ask = f"Answer with one letter, {letters[0]} to {letters[-1]}, and nothing else."
        return "\n\n".join([self.question, *parts, f"[End {mark}]", ask])

    def _ask(self, content: str) -> Any:
        """The answer's text, after as many tries as it takes."""
        body = json.dumps({
            "model": self.model, "messages": [{"role": "user", "content": content}],
            "temperature": 0, "max_tokens": self.max_tokens,
        }).encode()  # fmt: skip
        problem = ""
        for attempt in range(self.tries):
            self.requests += 1
            self.retries += attempt > 0
            asked: float | None = None
            try:
                status, header, answer = self._post(body)
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if 200 <= status < 300:
                    return self._content(answer)
                problem = f"HTTP {status}: {answer.decode('utf-8', 'replace')}"
                if status != 429 and status < 500:
                    raise InputError(self._line(problem) + self._cure(status))
                asked = _seconds(header)
            if asked is not None and asked > self.longest_wait:
                raise InputError(f"{self._line(problem)} (asks for {asked:.0f} s: come back then)")
            if attempt + 1 < self.tries:
                own = min(self.backoff * 2**attempt, self.longest_wait)
                time.sleep(own if asked is None else asked)
        raise InputError(f"{self._line(problem)} (tried {self.tries} times)")

    def _post(self, body: bytes) -> tuple[int, str | None, bytes]:
        """Status, Retry-After and at most LARGEST + 1 bytes of the answer."""
        deadline = time.monotonic() + self.timeout
        url = f"{self.base_url}/chat/completions"
        answer = b""
        with self._client.stream("POST", url, content=body) as response:
            for chunk in response.iter_raw():  # undecoded: nothing small can become large
                answer += chunk
                if len(answer) > LARGEST:
                    break
                if time.monotonic() > deadline:  # the client's own is for each read anew
                    raise httpx2.ReadTimeout(f"no whole answer in {self.timeout:g} s")
            return response.status_code, response.headers.get("retry-after"), answer[: LARGEST + 1]

    def _content(self, answer: bytes) -> Any:
        """``choices[0].message.content``, and the tokens that it took are counted."""
        if len(answer) > LARGEST:
            raise InputError(f"{self.base_url}: an answer of more than {LARGEST} bytes")
        try:
            value = json.loads(answer)
            content = value["choices"][0]["message"].get("content")
            usage = value.get("usage") or {}
            spent = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            said = answer.decode("utf-8", "replace")
        else:
            counted = [n if type(n) is int and n > 0 else 0 for n in spent]
            self.prompt_tokens += counted[0]
            self.completion_tokens += counted[1]
            return content
        raise InputError(self._line(f"no chat completion: {said}"))

    def _line(self, problem: str) -> str:
        """A line with what the server said of it: no key, no control characters, no end of it."""
        # Cut only once the key is out of it: else a part of one could stay.
        words = "".join(c if c.isprintable() else " " for c in self._hide(problem)).split()
        return f"{self.base_url}: {' '.join(words)[:200]}"

    def _cure(self, status: int) -> str:
        cures = {
            401: f" (is {self._key_variable} set to a key of this endpoint?)",
            403: f" (may the key in {self._key_variable} use model {self.model!r}?)",
            404: f" (does base_url end as in .../v1, and is there a model {self.model!r}?)",
        }
        return cures.get(status, "")


def shown_order(prompt: str | list[dict[str, str]], completions: list[str]) -> list[int]:
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
