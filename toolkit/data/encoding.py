"""Turning prompts and completions into token ids: the one place, shared by every stage.

Sampling, reward training, PPO, SFT, preference training and evaluation read the same tokens:

    prompt        text: its tokens with one BOS and no end token. Messages: the tokens of what the
                  chat template writes, up to where the assistant begins
    completion    the tokens that follow the prompt's, as if they had been sampled. (Tokenizing the
                  joined text could put one token across the border, for example if the prompt ends
                  in a space.) It ends before its first end token; text after that is left out. Both
                  cases are counted
    candidate     prompt, completion and, if the stage closes its texts, an end token

By default nothing closes a candidate of a reward model, as PPO's scorer never sees a stop token,
either. (TRL's RewardTrainer appends an end token.)
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar, get_args

from toolkit.arguments.comparisons import LongRows
from toolkit.data.chat import Chat, kind_of, rendering
from toolkit.data.records import Placed, Row
from toolkit.data.text import runs_on
from toolkit.data.tokens import decode_pair, end_ids, special_prefix, text_ids
from toolkit.errors import BadRows, InputError, check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
HALF = "\ufffd"  # what a tokenizer decodes a part of a character to
# What a row counts in the loss. No field of a user has this name, since it has a space.
WEIGHT = "preftune weight"


class Encoded(NamedTuple):
    """A row in token ids: the prompt, and K completions that each follow it."""

    row: Row
    number: int
    prompt: list[int]
    completions: list[list[int]]


class _Asked(NamedTuple):
    """A row whose prompt was turned into text."""

    number: int
    place: str
    row: Row
    text: str
    chat: bool


class Encoder:
    """Turns rows into token ids, and counts what did not fit or was unusual.

    Args:
        tokenizer: of the base.
        max_length: most tokens of prompt and completion; None for no limit.
        long_rows: what to do with a row that has a longer candidate: "drop" it, or
            "truncate_prompt": remove tokens from the prompt's start (but keep its BOS), and drop
            the row only if no prompt would be left.
        chat: how prompts that are messages become text; None for the tokenizer's own template.
        skip_invalid: skip rows that a template refuses, or with a completion that is only an end
            token, instead of raising; ``bad`` counts and shows them.

    Attributes:
        rows, dropped, truncated: rows that were encoded, did not fit, or were shortened to fit.
        hopeless, longest: those that did not fit and would not with a shorter prompt either, and
            the tokens of the longest row that did not fit.
        joined, example: rows in which a text prompt runs into a completion without a space between
            words, and the text at the border of the first.
        ended, behind: completions with an end token, and those with text after it.
        rendered: text prompts that already begin with the BOS.
        kinds: kinds of prompts: "messages" (also text that a template had rendered), "text".
        spaced: text prompts that end in a space.
        told: the template's arguments for messages: one set, or two if rows differ.
        template_notes: problems with the template that the first messages showed (``Chat.notes``).
        last_ids: the last tokens of candidates.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int | None,
        long_rows: str = "drop",
        chat: Chat | None = None,
        skip_invalid: bool = False,
    ) -> None:
        check_choice("long_rows", long_rows, get_args(LongRows))
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.long_rows = long_rows
        self.chat = chat or Chat()
        self.skip_invalid = skip_invalid
        self.bad = BadRows()

        self.rows = self.dropped = self.truncated = self.joined = 0
        self.hopeless = self.longest = 0
        self.ended = self.behind = self.rendered = self.spaced = 0
        self.example = ""
        self.last_ids: set[int] = set()
        self.kinds: set[str] = set()
        self.told: list[Row] = []
        self.template_notes: list[str] = []

        self.ends = end_ids(tokenizer)
        self.prefix = special_prefix(tokenizer)
        # A token that only pads is a mistake in a text, but <unk> or an end token may stand there.
        pad, unknown = tokenizer.pad_token_id, getattr(tokenizer, "unk_token_id", None)
        self.padding = None if pad in (*self.ends, unknown) else pad

    def prompt_text(self, prompt: str | list[dict[str, str]], row: Row | None = None) -> str:
        """Return the text that the model reads before the completion.

        Args:
            prompt: text or messages.
            row: its ``tools`` and ``chat_template_kwargs`` go to the template, as in TRL.

        Raises:
            InputError: there is no template for messages, or it refuses them.
        """
        if isinstance(prompt, str):
            return prompt
        if self.chat.template is None and self.tokenizer.chat_template is None:
            raise InputError(
                "the prompts are messages, but the tokenizer has no chat template (pass "
                "--chat_template plain, or a Jinja file)",
                "chat_template",
            )
        text = self.chat.render(self.tokenizer, prompt, row, ask=True)
        self._note(prompt, row)
        return text

    def _note(self, messages: list[dict[str, str]], row: Row | None) -> None:
        told = self.chat.told(row)
        if len(self.told) < 2 and told not in self.told:
            self.told.append(told)
        self.template_notes += self.chat.notes(self.tokenizer, messages, row)

    def rendering(self) -> Row:
        """How the encoded rows were rendered, for toolkit.json."""
        return rendering(self.chat, self.kinds, self.told)

    def prompt_ids(self, prompt: str | list[dict[str, str]], row: Row | None = None) -> list[int]:
        """Token ids of a prompt alone, from which PPO samples."""
        (ids,) = self._prompts([(self.prompt_text(prompt, row), not isinstance(prompt, str))])
        return ids

    def _prompts(self, texts: list[tuple[str, bool]]) -> list[list[int]]:
        """Token ids of prompts; special tokens are not added to those from a chat template."""
        found, prefix = self._tokenize(texts), self.prefix
        for (text, chat), ids in zip(texts, found, strict=True):
            if chat:
                continue
            self.spaced += text.endswith(" ")
            bos = self.tokenizer.bos_token
            self.rendered += bool(prefix and bos and text.startswith(bos) and ids[:1] == prefix[:1])
        return found

    def _tokenize(self, texts: list[tuple[str, bool]]) -> list[list[int]]:
        raw = {chat: [text for text, c in texts if c == chat] for chat in (False, True)}
        if self.chat.plain or not raw[True]:
            bare = text_ids(self.tokenizer, raw[True], self.prefix)
        else:  # the template has written the special tokens
            bare = self.tokenizer(
                raw[True],
                truncation=False,
                verbose=False,
                add_special_tokens=False,
                return_attention_mask=False,
            )["input_ids"]
        rows = {False: iter(text_ids(self.tokenizer, raw[False], self.prefix)), True: iter(bare)}
        return [next(rows[chat]) for _, chat in texts]

    def pieces(self, rows: Iterable[Placed], end_id: int | None = None) -> Iterator[Encoded]:
        """Yield rows in token ids: the prompt, and each completion as it follows the prompt.

        Args:
            rows: rows with their places; ``number`` counts all of them, also dropped ones.
            end_id: token that closes completions; None for no such token.

        Raises:
            InputError: a template refuses a row, or a completion has no token; the message has the
                row's place.
        """
        number = -1
        for chunk in chunks(rows, 512):
            asked: list[_Asked] = []
            for place, row in chunk:
                number += 1
                one = self._asked(number, place, row)
                if one is not None:
                    asked.append(one)

            # Tokenize all texts of a chunk at once, which is many times faster.
            prompts = self._prompts([(one.text, one.chat) for one in asked])
            texts = [
                (one.text + completion, one.chat)
                for one in asked
                for completion in self._completions(one.row, one.chat)
            ]
            wholes = iter(self._tokenize(texts))

            for one, prompt in zip(asked, prompts, strict=True):
                completions = [
                    self._behind(prompt, next(wholes), completion)
                    for completion in self._completions(one.row, one.chat)
                ]
                problem = self._problem_of(one.row, completions)
                if problem is not None:
                    self._refuse(one.place, problem)
                    continue

                if end_id is not None:
                    completions = [[*ids, end_id] for ids in completions]
                fitting = self._fit(prompt, completions)
                if fitting is None:
                    self.dropped += 1
                    continue
                self.rows += 1
                self.last_ids.update(ids[-1] for ids in completions)
                yield Encoded(one.row, one.number, fitting, completions)

    def _asked(self, number: int, place: str, row: Row) -> _Asked | None:
        """Turn a row's prompt into text and count what is unusual; None if it is refused."""
        chat = not isinstance(row["prompt"], str)
        self.kinds.add(kind_of(row["prompt"]))
        try:
            text = self.prompt_text(row["prompt"], row)
        except InputError as error:
            if error.field == "chat_template" and "no chat template" in str(error):
                raise  # a mistake of the run, not of the row
            self._refuse(place, str(error))
            return None

        if not chat and runs_on(text, row["completions"]):
            self.joined += 1
            self.example = self.example or text[-10:] + row["completions"][0][:10]
        return _Asked(number, place, row, text, chat)

    def _problem_of(self, row: Row, completions: list[list[int]]) -> str | None:
        """Why a row's completions (in token ids) cannot be used; None if they can."""
        if not all(completions):
            empty = row["completions"][[not ids for ids in completions].index(True)]
            return (
                f"completions: {empty!r:.40} is only an end token (delete the row or give it text)"
            )
        if any(ids[-1] == self.padding for ids in completions):
            return f"a completion ends in the pad token {self.tokenizer.pad_token!r} (remove it)"
        return None

    def _refuse(self, place: str, problem: str) -> None:
        if not self.skip_invalid:
            raise InputError(f"{place}: {problem} (--skip_invalid skips such rows)")
        self.bad.add(f"{place}: {problem}")

    def _completions(self, row: Row, chat: bool) -> list[str]:
        """The texts as they follow the prompt; after "Assistant:" comes a space."""
        spaced = chat and self.chat.plain
        return [f" {text.lstrip(' ')}" if spaced else text for text in row["completions"]]

    def completion_ids(
        self, prompt: list[int], text: str, completion: str, chat: bool
    ) -> list[int]:
        """Token ids of one completion after a prompt, cut at its first end token.

        Args:
            prompt, text: the prompt as token ids and as text.
            completion: its text, as it follows the prompt.
            chat: whether a chat template wrote the text.
        """
        (whole,) = self._tokenize([(text + completion, chat)])
        return self._behind(prompt, whole, completion)

    def _behind(self, prompt: list[int], whole: list[int], completion: str) -> list[int]:
        """Return the completion's part of the tokens of prompt and completion as one text.

        If the tokens of the whole begin with the prompt's, that is the rest. Otherwise a token
        crosses the border, which sampling never does, and the completion is tokenized alone.
        """
        if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
            ids = whole[len(prompt) :]
        else:
            ids = _alone(self.tokenizer, prompt, completion)
        for place, token in enumerate(ids):
            if token in self.ends:
                self.ended += 1
                self.behind += any(t not in self.ends for t in ids[place:])
                return ids[:place]
        return ids

    def encode(self, rows: Iterable[Placed], end_id: int | None = None) -> Iterator[Row]:
        """Yield rows of ``candidate_ids`` (K lists), labels, and ``row``, the row's number."""
        for row, number, prompt, completions in self.pieces(rows, end_id):
            yield _labels(row) | {
                "candidate_ids": [prompt + ids for ids in completions],
                "row": number,
            }

    def _fit(self, prompt: list[int], completions: list[list[int]]) -> list[int] | None:
        """Cut the prompt's start so that the longest candidate fits; None if that cannot be."""
        whole = len(prompt) + max(map(len, completions))
        excess = whole - (self.max_length or 1 << 60)
        if excess <= 0:
            return prompt
        keep = int(prompt[:1] == [self.tokenizer.bos_token_id])
        start = len(prompt)
        if keep + excess < len(prompt):
            start = first_whole(self.tokenizer, prompt, keep + excess)
        hopeless = start >= len(prompt)
        if self.long_rows == "drop" or hopeless:
            self.hopeless += hopeless
            self.longest = max(self.longest, whole)
            return None
        self.truncated += 1
        return prompt[:keep] + prompt[start:]

    def pad_id(self) -> int:
        """A padding id that no candidate ends in; transformers' pooling finds padding by the id."""
        own = self.tokenizer.pad_token_id
        if own not in self.last_ids:
            return own
        return min(set(range(len(self.last_ids) + 1)) - self.last_ids)

    def notes(self) -> list[str]:
        """One line for each thing that was unusual about the texts."""
        names = [self.tokenizer.convert_ids_to_tokens(i) for i in self.ends]
        lines = [*self.template_notes]
        if self.ended:
            lines.append(
                f"{self.ended} completions carry an end token ({', '.join(map(str, names))}): each "
                f"is cut before it ({self.behind} had text after it)"
            )

        if self.rendered:
            lines.append(
                f"{self.rendered} prompts begin with {self.tokenizer.bos_token} as text (perhaps "
                "from a chat template): no second one is added"
            )

        if self.spaced:
            lines.append(
                f"{self.spaced} prompts end in a space: it stays a token of its own, here as in "
                "PPO, and completions follow it"
            )

        if self.bad.count:
            lines.append(f"{self.bad.count} rows skipped; the first: {self.bad.shown[0]}")

        if self.dropped:
            lines.append(
                f"warning: {self.dropped} of {self.rows + self.dropped} rows are left out, because "
                f"they are longer than {self.max_length} tokens: {self.cure()}"
            )
        return lines

    def cure(self) -> str:
        """What helps if rows did not fit, or if none is left."""
        if not self.dropped:
            return f"{self.bad.count} rows were skipped as invalid"
        longer = (
            f"the longest has {self.longest}; raise --max_length if the model's context and the "
            "memory allow it"
        )
        cut = self.dropped - self.hopeless
        if not cut:
            return (
                f"{longer}. A shorter prompt would not help: their completions alone are too long"
            )
        kept = f"{cut} of them" if self.hopeless else "them"
        return f"{longer}, or keep {kept} with --long_rows truncate_prompt"


def first_whole(tokenizer: "PreTrainedTokenizerBase", ids: list[int], start: int) -> int:
    """Return the first index from ``start`` on before which no character is split."""
    while start < len(ids) and _text(tokenizer, ids[start : start + 8])[:1] == HALF:
        start += 1
    return start


def last_whole(tokenizer: "PreTrainedTokenizerBase", ids: list[int], stop: int) -> int:
    """Return the last index up to ``stop`` after which no character is split."""
    while stop and _text(tokenizer, ids[max(0, stop - 8) : stop])[-1:] == HALF:
        stop -= 1
    return stop


def _text(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    text = tokenizer.decode(ids)
    assert isinstance(text, str)
    return text


def _alone(tokenizer: "PreTrainedTokenizerBase", prompt: list[int], completion: str) -> list[int]:
    """Tokenize a completion alone: as it is, without its first space, or after a newline.

    SentencePiece puts a space before a text, so the first of these that reads correctly after the
    prompt is taken.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    anchored = ids(f"\n{completion}")[len(ids("\n")) :]
    tries = [ids(completion), ids(completion.removeprefix(" ")), anchored]
    right = (t for t in tries if t and decode_pair(tokenizer, prompt, t)[1] == completion)
    return next(right, tries[0])


def best_of(scores: list[float]) -> int:
    """Index of the highest score; the first one on a tie."""
    return max(range(len(scores)), key=scores.__getitem__)


def _labels(row: Row) -> Row:
    best, scores = row.get("best"), row.get("scores") or []
    if best is None:  # rows for scalar losses: the pick only serves to measure accuracy
        best = best_of(scores)
    return {
        "best": best,
        "ranking": row.get("ranking") or [best],
        "worst": row.get("worst"),
        "scores": scores or None,
        "margin": row.get("margin"),
        "weight": row.get(WEIGHT),
    }


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of ``size``; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
