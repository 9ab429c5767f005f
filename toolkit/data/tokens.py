"""Between text and token ids: end tokens, a tokenizer's prefix, and decoding."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_id(tokenizer: "PreTrainedTokenizerBase", text: str | None, what: str) -> int | None:
    """Return the id of the single token ``text``; "eos" is the end token; None for None.

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


def end_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Return the ids that close a completion, the tokenizer's own end token first.

    ``load_tokenizer`` also records those of generation_config.json and the chat template's end of
    turn. For a tokenizer that was loaded otherwise, only its own end token is known.
    """
    noted: tuple[int, ...] | None = getattr(tokenizer, "end_token_ids", None)
    if noted is not None:
        return noted
    own = getattr(tokenizer, "eos_token_id", None)
    return () if own is None else (own,)


def stop_ids(
    tokenizer: "PreTrainedTokenizerBase", stop_token: str | None, what: str = "stop_token"
) -> tuple[int, ...]:
    """Return the ids at which completions end.

    Args:
        tokenizer: of the policy.
        stop_token: "eos" for all end tokens, "none" for none, or one token's text. None means
            "eos" if the tokenizer has a chat template, else "none".
        what: the argument's name, for messages.

    Raises:
        InputError: the text is not one token, or the tokenizer has no end token.
    """
    if stop_token is None:
        return end_ids(tokenizer) if getattr(tokenizer, "chat_template", None) else ()
    if stop_token == "none":
        return ()
    if stop_token == "eos" and end_ids(tokenizer):
        return end_ids(tokenizer)
    found = token_id(tokenizer, stop_token, what)
    return () if found is None else (found,)


def closing_id(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> int | None:
    """Return the end token among ``ids`` that closes a text; None if there is none.

    It is the one with which the chat template closes a turn, or else the first.
    """
    turn = getattr(tokenizer, "turn_end_id", None)
    return turn if turn in ids else next(iter(ids), None)


def vocabulary_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash the tokens and their ids; with equal hashes, stored ids mean the same."""
    content = repr(sorted(tokenizer.get_vocab().items())).encode("utf-8", "replace")
    return hashlib.sha256(content).hexdigest()[:16]


def special_prefix(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids that the tokenizer puts before a text (a BOS, say).

    Ids that it appends, such as an end token, are not part of a prompt and are ignored.
    """
    (whole,) = tokenizer(["a"], add_special_tokens=True)["input_ids"]
    (inner,) = tokenizer(["a"], add_special_tokens=False)["input_ids"]
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return list(whole[:start])
    bos = getattr(tokenizer, "bos_token_id", None)
    return [bos] if bos is not None and whole[:1] == [bos] else []


def text_ids(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], prefix: list[int] | None = None
) -> list[list[int]]:
    """Token ids of texts as a model continues them: one BOS if the tokenizer adds it, no end token.

    A text that already begins with the BOS (written by a chat template) gets no second one.

    Args:
        tokenizer: of the model.
        texts: the texts.
        prefix: ``special_prefix(tokenizer)``, if it is already known.
    """
    if not texts:
        return []
    prefix = special_prefix(tokenizer) if prefix is None else prefix
    rows = tokenizer(
        list(texts),
        add_special_tokens=False,
        truncation=False,
        verbose=False,
        return_attention_mask=False,
    )["input_ids"]
    return [row if prefix and row[: len(prefix)] == prefix else prefix + row for row in rows]


def decode_pair(
    tokenizer: "PreTrainedTokenizerBase", prompt_ids: list[int], completion_ids: list[int]
) -> tuple[str, str]:
    """Decode prompt and completion so that, joined, they are the text of all the ids.

    A completion decoded by itself may lose its leading space (SentencePiece), so its text is what
    the whole has beyond the prompt. Special tokens are left out.
    """
    prompt = _decode(tokenizer, prompt_ids)
    whole = _decode(tokenizer, prompt_ids + completion_ids)
    if whole.startswith(prompt):
        return prompt, whole[len(prompt) :]
    return prompt, _decode(tokenizer, completion_ids)


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text
