"""A picker that asks an OpenAI-compatible HTTP endpoint which completion is best.

The completions are lettered in an order that a hash of them decides. So a judge who prefers the
first one prefers no index, and the same completions make the same request in any order. Only one
letter counts as an answer. Nothing is sent anywhere but to ``base_url``.

A useless judge ends the work (``UselessJudge``): one that gives no answer many times in a row, or
one that says the same letter again and again, and so ignores the completions.
"""

import hashlib
import json
import math
import re
import string
from collections import Counter
from typing import Self

from scipy.special import bdtrc

from toolkit.data.text import prompt_text
from toolkit.errors import InputError, check_range
from toolkit.scoring.endpoint import Endpoint
from toolkit.scoring.picker import Fields
from toolkit.scoring.scorer import Prompt

QUESTION = "Which of these completions of the prompt is best?"
ANSWER = re.compile(
    r"""[\s*("'\[]*([A-Z])[\s*)"'\].:]*"""
)  # the letter, in punctuation but not in words
MOST_TOKENS = 10**9  # of one answer; if an endpoint counts more, it has miscounted
# How unlikely a run of one letter must be. Answers are looked at only once, so this demands less
# than finding such a run anywhere among hundreds of thousands.
UNLIKELY_FROM_THE_START, UNLIKELY = math.log(1e-6), math.log(1e-9)


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
        check_range("input_price", input_price, low=0)
        check_range("output_price", output_price, low=0)

        self._endpoint = Endpoint(
            base_url,
            key_variable,
            timeout,
            retries,
            backoff,
            longest_wait,
            flag="judge_url",
            cures={
                401: f"is {key_variable} set to a key of this endpoint?",
                403: f"may the key in {key_variable} use model {model!r}?",
                404: f"does base_url end in /v1, and is there a model {model!r}?",
            },
        )
        self.base_url = self._endpoint.base_url
        self.model = model
        self.question = question
        self.max_tokens = max_tokens
        self.patience = patience
        self.input_price = input_price
        self.output_price = output_price

        self.answered = self.refused = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.refusal, self._why = "", ""
        self._letters = _Letters()
        self._row = 0  # answers without a letter in a row, up to the last

    def __repr__(self) -> str:
        return f"HTTPJudge({self.base_url!r}, {self.model!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    @property
    def requests(self) -> int:
        """Requests sent, including retries."""
        return self._endpoint.requests

    @property
    def retries(self) -> int:
        """Retries among the requests."""
        return self._endpoint.retries

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
        said = self._endpoint.cut(answer if isinstance(answer, str) else json.dumps(answer), 80)
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
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        return self._content(self._endpoint.ask("/chat/completions", request))

    def _content(self, answer: bytes) -> object:
        """Return ``choices[0].message.content``, and count its tokens."""
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
        raise InputError(self._endpoint.line(f"no chat completion: {said}"))


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


def _without_thoughts(answer: str) -> str:
    """Return what comes after a block in which a model thinks.

    Many chat templates open the block themselves, so that the answer has only its end, on a line.
    """
    thinks = answer.lstrip().startswith("<think>") or "</think>\n" in answer
    return answer.rpartition("</think>")[2] if thinks else answer


def _tokens(count: object) -> int:
    """Return a count of tokens, or 0 if the value cannot be one."""
    return count if type(count) is int and 0 < count <= MOST_TOKENS else 0
