"""Between text and token ids, and text made safe to show."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from toolkit.errors import InputError

if TYPE_CHECKING:  # the labelling page starts without transformers
    from transformers import PreTrainedTokenizerBase


def token_id(tokenizer: PreTrainedTokenizerBase, text: str | None, what: str) -> int | None:
    """The id of the one token that ``text`` is; "eos" is the tokenizer's end; None for None.

    Raises:
        InputError: ``text`` is not a single token.
    """
    if text is None:
        return None
    if text == "eos":
        if tokenizer.eos_token_id is None:
            raise InputError(f"{what} is 'eos', but the tokenizer has no end-of-text token", what)
        return tokenizer.eos_token_id
    vocabulary = tokenizer.get_vocab()
    if text in vocabulary:
        return vocabulary[text]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InputError(f"{what} is {text!r}, which is {len(ids)} tokens, not one", what)
    return ids[0]


def decode_pair(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], completion_ids: list[int]
) -> tuple[str, str]:
    """Prompt and completion as text, such that joined they are the text of all the ids.

    A completion decoded by itself may lose its leading space (SentencePiece), so it is what the
    whole has more than the prompt. Special tokens are left out.
    """
    prompt = _decode(tokenizer, prompt_ids)
    whole = _decode(tokenizer, prompt_ids + completion_ids)
    if whole.startswith(prompt):
        return prompt, whole[len(prompt) :]
    return prompt, _decode(tokenizer, completion_ids)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def printable(text: str) -> str:
    """``text`` with what a terminal would obey, or an eye would miss, written out as escapes.

    Control characters but newline and tab (ANSI sequences begin with one), and formatting
    characters: bidirectional overrides, zero-width ones; and half characters.

    >>> print(printable("red \x1b[31m, hidden \u202e"))
    red \\x1b[31m, hidden \\u202e
    """
    return "".join(
        ascii(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t" else c
        for c in text
    )
