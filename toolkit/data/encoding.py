"""Comparisons to token ids: prompts of text or messages, a rule for long rows, a file on disk.

A candidate is the prompt and one completion as one text. For messages the prompt is what the chat
template makes of them, up to where the assistant's turn begins; nothing closes the turn, since the
scorer never sees a stop token in PPO either. (TRL's RewardTrainer appends an end-of-text token.)
"""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from toolkit.data.sources import Placed
from toolkit.errors import InputError, check_choice

Row = dict[str, Any]
LONG_ROWS = ("drop", "truncate_prompt")
# HH's layout (arXiv 2204.05862, appendix), for bases that were never taught a template.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '\n\n' + {'user': 'Human', 'assistant': 'Assistant', 'system': 'System', 'tool': 'Tool'}"
    "[message['role']] + ': ' + message['content'] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
SCHEMA = pyarrow.schema({
    "candidate_ids": pyarrow.list_(pyarrow.list_(pyarrow.int32())),
    "best": pyarrow.int32(),
    "ranking": pyarrow.list_(pyarrow.int32()),
    "scores": pyarrow.list_(pyarrow.float64()),
    "margin": pyarrow.float64(),
    "row": pyarrow.int64(),
})  # fmt: skip


class Encoder:
    """Turns rows into token ids and counts what did not fit.

    Args:
        tokenizer: of the base.
        max_length: tokens of prompt and completion; None for no limit.
        long_rows: for a row with a longer candidate: "drop" it, or "truncate_prompt": take so many
            tokens from the prompt's start (not its BOS), the same from each candidate, and drop the
            row only where no prompt would be left.
        chat_template: for prompts that are messages: None takes the tokenizer's own, "plain" is
            "Human: ... Assistant: ...", anything else is the path of a Jinja file.

    Attributes:
        rows, dropped, truncated: how many were encoded, did not fit, were made to fit.
        joined, example: how many run from a text prompt into a completion without a space between
            words, and where the first of them does.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        long_rows: str = "drop",
        chat_template: str | None = None,
    ) -> None:
        check_choice("long_rows", long_rows, LONG_ROWS)
        self.tokenizer, self.max_length, self.long_rows = tokenizer, max_length, long_rows
        self.template = _read_template(chat_template)
        self.plain = chat_template == "plain"
        self.rows = self.dropped = self.truncated = self.joined = 0
        self.example = ""

    def prompt_text(self, prompt: str | list[dict[str, str]]) -> str:
        """What the model reads before the completion.

        Raises:
            InputError: messages, but no template, or one that refuses them.
        """
        if isinstance(prompt, str):
            return prompt
        if self.template is None and self.tokenizer.chat_template is None:
            raise InputError(
                "the prompts are messages, but the tokenizer has no chat template (pass "
                "--chat_template plain, or a Jinja file)", "chat_template",
            )  # fmt: skip
        try:
            text = self.tokenizer.apply_chat_template(
                prompt, chat_template=self.template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program
            raise InputError(
                f"chat_template: refuses {prompt!r:.80}: {type(error).__name__}: {error}",
                "chat_template",
            ) from None
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"chat_template: makes nothing of {prompt!r:.80}", "chat_template")
        return text

    def ids(self, texts: list[str], chat: bool) -> list[list[int]]:
        """Token ids; special tokens are added unless a chat template has put them there."""
        return self.tokenizer(
            texts, truncation=False, verbose=False, add_special_tokens=self.plain or not chat,
            return_attention_mask=False,
        )["input_ids"]  # fmt: skip

    def prompt_ids(self, prompt: str | list[dict[str, str]]) -> list[int]:
        """Token ids of a prompt by itself, as PPO starts from."""
        return self.ids([self.prompt_text(prompt)], not isinstance(prompt, str))[0]

    def encode(self, rows: Iterable[Placed]) -> Iterator[Row]:
        """Rows of ``candidate_ids`` (K lists), the labels, and ``row``, which counts those given.

        Raises:
            InputError: a completion that ends in the text of the pad token, which transformers'
                pooling would take for padding (with the row's place).
        """
        number = 0
        for chunk in _chunks(rows, 512):
            texts: dict[bool, list[str]] = {False: [], True: []}
            for _, row in chunk:
                prompt = self.prompt_text(row["prompt"])
                chat = not isinstance(row["prompt"], str)
                if not chat and _runs_on(prompt, row["completions"]):
                    self.joined += 1
                    self.example = self.example or prompt[-10:] + row["completions"][0][:10]
                space = " " if chat and self.plain else ""  # "Assistant: ..."
                texts[chat] += [prompt + space + text.lstrip(" ") if space else prompt + text
                                for text in row["completions"]]  # fmt: skip
            ids = {chat: iter(self.ids(t, chat) if t else []) for chat, t in texts.items()}
            for place, row in chunk:
                chat = not isinstance(row["prompt"], str)
                candidates = [next(ids[chat]) for _ in row["completions"]]
                if any(c[-1] == self.tokenizer.pad_token_id for c in candidates):
                    raise InputError(
                        f"{place}: a completion ends in the pad token "
                        f"{self.tokenizer.pad_token!r} (cut it off)"
                    )
                fitting = self._fit(row, candidates)
                if fitting is None:
                    self.dropped += 1
                else:
                    self.rows += 1
                    yield _labels(row) | {
                        "candidate_ids": fitting,
                        "row": number,
                    }
                number += 1

    def _fit(self, row: Row, candidates: list[list[int]]) -> list[list[int]] | None:
        longest = max(map(len, candidates))
        if self.max_length is None or longest <= self.max_length:
            return candidates
        if self.long_rows == "drop":
            return None
        excess = longest - self.max_length
        prompt = self.prompt_ids(row["prompt"])
        keep = int(prompt[:1] == [self.tokenizer.bos_token_id])
        shared = os.path.commonprefix([prompt, *candidates])
        if keep + excess >= len(shared):
            return None
        self.truncated += 1
        return [ids[:keep] + ids[keep + excess :] for ids in candidates]


def _runs_on(prompt: str, completions: list[str]) -> bool:
    """Whether a word of a completion sticks to the prompt ("cafe.He")."""
    return not prompt[-1].isspace() and all(text[0].isalnum() for text in completions)


def best_of(scores: list[float]) -> int:
    """Index of the highest score, the first of them."""
    return max(range(len(scores)), key=scores.__getitem__)


def _labels(row: Row) -> Row:
    best, scores = row.get("best"), row.get("scores") or []
    if best is None:  # a row for scalar losses; its pick is only used to measure accuracy
        best = best_of(scores)
    return {
        "best": best, "ranking": row.get("ranking") or [best],
        "scores": scores or None, "margin": row.get("margin"),
    }  # fmt: skip


def _read_template(chat_template: str | None) -> str | None:
    if chat_template is None or chat_template == "plain":
        return PLAIN_TEMPLATE if chat_template else None
    try:
        return Path(chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"chat_template: {chat_template}: neither plain nor a Jinja file in UTF-8",
            "chat_template",
        ) from None


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def encode_to_disk(
    encoder: Encoder, rows: Iterable[Placed], path: Path, total: int | None = None
) -> Dataset:
    """Encode rows into an Arrow file and give it back as a dataset that reads from there.

    Memory does not grow with the rows: 512 are held at a time.

    Args:
        encoder: counts what is dropped and cut.
        rows: with their places.
        path: of the file, which must outlive the dataset.
        total: how many rows there are, for the progress bar.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = encoder.encode(tqdm(rows, desc="Tokenising", unit="row", total=total, mininterval=1))
    with pyarrow.ipc.new_stream(path, SCHEMA) as writer:
        for chunk in _chunks(encoded, 512):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(chunk, schema=SCHEMA))
    return Dataset.from_file(str(path))
