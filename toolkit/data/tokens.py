"""Token ids for tokens that a person names by their text."""

from transformers import PreTrainedTokenizerBase

from toolkit.errors import InputError


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
