"""How a reward model reads a text: what it expects after a completion.

A reward model reads its score on the last token of a text. If a text ends differently from those of
its training, the score silently means nothing (a stock TRL model's accuracy fell from 0.987 to
0.427). What closes a text:

    trained here             what toolkit.json says: nothing, or one end token, after the tokens of
                             prompt and completion
    trained by TRL, text     the tokenizer's end token (trl 1.16 reward_trainer.py:684)
    trained by TRL, chat     what the chat template writes after the assistant's message; messages
                             are rendered whole, because a template may write a finished turn
                             differently from one that is begun
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from toolkit.data.chat import Chat, chat_of, kind_of, named
from toolkit.data.encoding import Encoder
from toolkit.data.prompts import Prompts
from toolkit.data.records import Messages
from toolkit.data.text import answer_text
from toolkit.data.tokens import decode_pair, special_prefix, text_ids, token_id
from toolkit.errors import InputError
from toolkit.models.toolkit_json import FACTS, read_facts


@dataclass(frozen=True)
class Reading:
    """How a reward model's texts looked in training.

    Attributes:
        ends_with: the id of the token that closes each text; None for no token.
        whole: whether messages are rendered whole, including the assistant's, as in TRL.
        chat: how messages became text in training.
        told: the template's arguments then; None if unknown, or if rows differed.
        trained_on: "messages" (or text that a template had rendered), "text", or "both".
        padding: an id that transformers' pooling takes for padding, and so skips, at a text's end;
            None for no such id.
    """

    ends_with: int | None = None
    whole: bool = False
    chat: Chat = field(default_factory=Chat)
    told: dict[str, Any] | None = None
    trained_on: str = "both"
    padding: int | None = None

    def check(self, prompts: Prompts) -> None:
        """Raise InputError if the policy's messages are rendered differently from these."""
        if self.trained_on != "both":
            kinds = {kind_of(given) for given in prompts.given.values()}
            other = next((kind for kind in sorted(kinds) if kind != self.trained_on), None)
            if other is not None:
                raise InputError(
                    f"reward_adapter: it was trained on {self.trained_on}, but there are prompts "
                    f"of {other}, whose scores mean nothing (use prompts as in its training)"
                )

        if not prompts.messages or self.whole:
            return
        if self.chat.template != prompts.chat.template:
            raise InputError(
                "chat_template: the reward adapter was trained on messages by "
                f"{named(self.chat.template)}, but the prompts are rendered by "
                f"{named(prompts.chat.template)} (pass the same --chat_template)",
                "chat_template",
            )

        told = map(prompts.told, prompts.messages)
        now = next((now for now in told if self.told not in (None, now)), None)
        if now is not None:
            raise InputError(
                f"chat_template_kwargs: the reward adapter was trained on messages with "
                f"{json.dumps(self.told)}, but there are prompts with {json.dumps(now)} "
                "(pass the same --chat_template_kwargs)",
                "chat_template_kwargs",
            )

    def rows(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[list[int]],
        kept: Sequence[list[int]],
    ) -> list[list[int]]:
        """Make the token ids to score from prompts and completions in the policy's tokens.

        Args:
            tokenizer: of the policy, whose base the reward model shares.
            prompts: token ids; ``Prompts`` know which of them are messages.
            kept: the visible part of each completion, without a stop token.
        """
        if isinstance(prompts, Prompts):
            self.check(prompts)
        closing = self._closing(tokenizer)
        rows = []
        for i, (prompt, completion) in enumerate(zip(prompts, kept, strict=True)):
            given = prompts.given.get(i) if isinstance(prompts, Prompts) else None
            if self.whole and given is not None and not isinstance(given, str):
                assert isinstance(prompts, Prompts)
                text = decode_pair(tokenizer, prompt, completion)[1]
                row = self._turn(tokenizer, given, text, prompts.row(i), prompts.chat)
            else:
                row = prompt + completion + closing
            rows.append(self._read(row))
        return rows

    def text_rows(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str | Messages],
        completions: Sequence[Any],
        columns: dict[str, list[Any]] | None = None,
    ) -> list[list[int]]:
        """Make the token ids to score from texts or messages, for a model with its own tokens.

        Args:
            tokenizer: the reward model's.
            prompts: each text or messages.
            completions: each text, or a list with the assistant's message.
            columns: further fields of the prompts' rows.
        """
        encoder = Encoder(tokenizer, None, chat=self.chat)
        rows = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            row = {name: values[i] for name, values in (columns or {}).items()}
            text = answer_text(completion)
            if isinstance(prompt, str) and self.whole:  # one text, as in TRL's rows
                end = self._end_text(tokenizer)
                whole = prompt + text
                whole = whole if whole.endswith(end) else whole + end
                ids: list[int] = tokenizer(whole, truncation=False, verbose=False)["input_ids"]
            elif self.whole:
                assert not isinstance(prompt, str)
                ids = self._turn(tokenizer, prompt, text, row, self.chat)
            else:
                ids = self._pieces(encoder, prompt, text, row)
            rows.append(self._read(ids))
        return rows

    def _pieces(self, encoder: Encoder, prompt: str | Messages, text: str, row: Any) -> list[int]:
        asked, chat = encoder.prompt_text(prompt, row), not isinstance(prompt, str)
        ids = encoder.prompt_ids(prompt, row)
        follows = f" {text.lstrip(' ')}" if chat and encoder.chat.plain else text
        whole = ids + encoder.completion_ids(ids, asked, follows, chat)
        return whole if self.ends_with is None else [*whole, self.ends_with]

    def _closing(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids after a completion; for TRL's text also those that the tokenizer appends."""
        if self.ends_with is None:
            return []
        if not self.whole:
            return [self.ends_with]
        ids: list[int] = tokenizer([self._end_text(tokenizer)])["input_ids"][0]
        return ids[len(special_prefix(tokenizer)) :]

    def _end_text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        if self.ends_with is None:
            return ""
        text = tokenizer.convert_ids_to_tokens(self.ends_with)
        assert isinstance(text, str)
        return text

    @staticmethod
    def _turn(
        tokenizer: PreTrainedTokenizerBase,
        prompt: Messages,
        text: str,
        row: Any,
        chat: Chat,
    ) -> list[int]:
        dialogue = [*prompt, {"role": "assistant", "content": text}]
        whole = chat.render(tokenizer, dialogue, row)
        if chat.plain:
            return text_ids(tokenizer, [whole])[0]
        ids: list[int] = tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _read(self, row: list[int]) -> list[int]:
        """Return the row up to the token on which pooling reads the score."""
        end = len(row)
        while end > 1 and row[end - 1] == self.padding:
            end -= 1
        return row[:end]


def other_rendering(adapter: str | Path | None, prompts: Prompts, name: str) -> list[str]:
    """Return a line for each difference between a policy's prompts and those of its training.

    Args:
        adapter: its folder, where toolkit.json records the training; None for no adapter.
        prompts: the prompts that it will answer.
        name: its name in the lines.
    """
    then = {} if adapter is None else read_facts(adapter)
    if not prompts.messages or then.get("trained_on") not in ("messages", "both"):
        return []
    now, lines = prompts.rendering(), []
    if then.get("chat_template") != now["chat_template"]:
        here, there = named(prompts.chat.template), named(chat_of(then).template)
        lines.append(
            f"{name} was trained on messages rendered by {there}, but the prompts use {here}"
        )
    told, tells = then.get("chat_template_kwargs"), now["chat_template_kwargs"]
    if told is not None and told != tells:
        have = "various ones" if tells is None else json.dumps(tells)
        lines.append(
            f"{name} was trained with chat_template_kwargs {json.dumps(told)}, but the prompts "
            f"have {have}"
        )
    return lines


def reading_of(
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    end_token: str = "auto",
    padding: int | None = None,
) -> Reading:
    """Return how the reward model in ``folder`` reads.

    Args:
        folder: an adapter's, or a whole model's folder or Hub id.
        tokenizer: the tokenizer of its texts.
        end_token: "auto" for what it was trained with, "none", "eos", or a token's text.
        padding: for a whole model, what its config says; for an adapter, its own tokenizer's pad
            token or else this tokenizer's, as in TRL.

    Raises:
        InputError: ``end_token`` is not a token.
    """
    facts = read_facts(folder) if (Path(folder) / FACTS).is_file() else None
    if facts is not None:
        found = Reading(
            token_id(tokenizer, facts.get("ends_with"), f"{folder}: ends_with"),
            whole=bool(facts.get("whole_turns")),
            trained_on=facts.get("trained_on", "both"),
            chat=chat_of(facts),
            told=facts.get("chat_template_kwargs"),
        )
    else:
        pad = padding if padding is not None else _stock_padding(folder, tokenizer)
        found = Reading(tokenizer.eos_token_id, whole=True, padding=pad)
    if end_token == "auto":
        return found
    if end_token == "none":
        return replace(found, ends_with=None, whole=False)
    wanted = token_id(tokenizer, end_token, "reward_end_token")
    return replace(found, ends_with=wanted, whole=False, padding=None)


def _stock_padding(folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return TRL's pad token: its tokenizer's, or else the end token (trl 1.16, line 563)."""
    own: Any = tokenizer
    if (Path(folder) / "tokenizer_config.json").is_file():
        own = AutoTokenizer.from_pretrained(str(folder))
        pad = own.pad_token_id
    else:
        pad = getattr(own, "stock_pad_token_id", own.pad_token_id)
    return own.eos_token_id if pad is None else pad


def said(reading: Reading, tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """Return a line on how a reward model reads."""
    end = "nothing"
    if reading.ends_with is not None and reading.ends_with != reading.padding:
        end = f"{tokenizer.convert_ids_to_tokens(reading.ends_with)}"
    turns = (
        ", and messages with what the chat template writes after a turn" if reading.whole else ""
    )
    return f"{name}: texts are scored with {end} after them{turns}"
