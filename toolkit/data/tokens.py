"""Between text and token ids: end tokens, what a tokenizer puts before a text, and back to text."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_id(tokenizer: "PreTrainedTokenizerBase", text: str | None, what: str) -> int | None:
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


def end_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The ids that close a completion, the tokenizer's own end token first.

    ``load_tokenizer`` notes those of generation_config.json, and a chat template's end of turn; of
    a tokenizer that somebody else loaded only its own end token is known.
    """
    noted: tuple[int, ...] | None = getattr(tokenizer, "end_token_ids", None)
    if noted is not None:
        return noted
    own = getattr(tokenizer, "eos_token_id", None)
    return () if own is None else (own,)


def stop_ids(
    tokenizer: "PreTrainedTokenizerBase", stop_token: str | None, what: str = "stop_token"
) -> tuple[int, ...]:
    """The ids at which completions end.

    Args:
        tokenizer: of the policy.
        stop_token: "eos" for all end tokens, "none" for none, or one token's text. None stands for
            "eos" where the tokenizer has a chat template, and for "none" where it has not.
        what: the argument's name, for messages.

    Raises:
        InputError: not one token, or no end token where one is wanted.
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
    """The one of these end tokens that a text is closed with; None if there are none.

    That is the one with which the chat template closes a turn, or else the first.
    """
    turn = getattr(tokenizer, "turn_end_id", None)
    return turn if turn in ids else next(iter(ids), None)


def vocabulary_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash of the tokens and their ids: equal ones make equal ids of what is kept in ids."""
    content = repr(sorted(tokenizer.get_vocab().items())).encode("utf-8", "replace")
    return hashlib.sha256(content).hexdigest()[:16]


def special_prefix(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids that the tokenizer puts before a text by itself (a BOS, say).

    What it puts behind one (some append their end token) is no part of any prompt, so it is not
    asked for.
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
    """Token ids of texts as a model continues them: BOS once, where the tokenizer adds one, no end.

    A text that begins with the BOS already (a chat template wrote it) gets no second one.

    Args:
        tokenizer: of the model.
        texts: any number of them.
        prefix: ``special_prefix(tokenizer)``, where that is known.
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
    """Prompt and completion as text, such that joined they are the text of all the ids.

    A completion decoded by itself may lose its leading space (SentencePiece), so it is what the
    whole has more than the prompt. Special tokens are left out.
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
