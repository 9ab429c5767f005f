"""Plain text: rows of ``text``, checked, and as the token ids that a language model learns from."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from toolkit.data.tables import read_table
from toolkit.data.tokens import end_ids, text_ids
from toolkit.errors import BadRows, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextRows(NamedTuple):
    """Texts as token ids.

    Attributes:
        rows: the ids of each text, in the file's order; two or more.
        cut: how many texts were longer, and were cut.
        short: how many were left out, because nothing is predicted in a text of one token.
    """

    rows: list[list[int]]
    cut: int
    short: int


def read_texts(source: str, what: str) -> Iterator[str]:
    """Yield each row's ``text``.

    Args:
        source: what ``read_table`` reads.
        what: the argument that names it, for messages.

    Raises:
        InputError: rows have no text (twenty are shown, all are counted); only after all rows.
    """
    bad = BadRows()
    for place, row in read_table(source, what, bad.add):
        text = row.get("text")
        if isinstance(text, str) and text.strip():
            yield text
        else:
            bad.add(f"{place}: text: {text!r:.40}, but must be text (delete or correct the row)")
    bad.refuse()


def learned_ids(
    tokenizer: "PreTrainedTokenizerBase", text: str, stop_id: int | None = None
) -> list[int]:
    """Return a text's ids: the tokenizer's prefix (a BOS, say), the text, ``stop_id`` if given.

    An end token that the text itself ends with is dropped: one rule ends all texts.
    """
    (ids,) = text_ids(tokenizer, [text])
    if ids and ids[-1] in end_ids(tokenizer):
        ids = ids[:-1]
    return ids if stop_id is None else [*ids, stop_id]


def text_rows(
    source: str, tokenizer: "PreTrainedTokenizerBase", max_length: int, what: str
) -> TextRows:
    """Read a file of texts as token ids, without an end token, cut at ``max_length``.

    Args:
        source: what ``read_table`` reads.
        tokenizer: of the model.
        max_length: most tokens of a text, 2 or more.
        what: the argument that names the file, for messages.

    Raises:
        InputError: a row has no text, or no text has two tokens.
    """
    rows: list[list[int]] = []
    cut = short = 0
    for text in read_texts(source, what):
        ids = learned_ids(tokenizer, text)
        cut += len(ids) > max_length
        if len(ids) < 2:
            short += 1
        else:
            rows.append(ids[:max_length])
    if not rows:
        raise InputError(f"{what}: {source}: no text has two tokens or more")
    return TextRows(rows, cut, short)
