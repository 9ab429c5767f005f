"""Converting other people's files to comparisons, and comparisons to TRL's preference pairs.

``data.layouts.registry`` has the table of layouts. Prompts that completions repeat are cut off
(``data.repeated_prompts``, ``data.dialogues``).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tqdm.auto import tqdm

from toolkit.data.layouts.reader import LayoutReader
from toolkit.data.problems import problems_of
from toolkit.data.records import Placed, Row
from toolkit.data.tables import read_table
from toolkit.errors import InputError


def convert(
    source: str | Path | Iterable[Placed],
    form: str | None = None,
    decode: Callable[[list[int]], str] | None = None,
    skip_invalid: bool = False,
    dropped: Counter[str] | None = None,
    first: int | None = None,
    repeated_prompt: str = "auto",
    noted: Counter[str] | None = None,
    **settings: Any,
) -> Iterator[Row]:
    """Convert rows to comparisons; all rows of a file have the same format.

    ``source`` becomes the file and line where a row has none.

    Args:
        source: what ``read_table`` reads, or rows with their places.
        form: a name in ``LAYOUTS``; None detects it from the first row of each file.
        decode: token ids to text, for ``openai``.
        skip_invalid: count bad rows in ``dropped`` instead of refusing them.
        dropped: reasons why rows made no comparison, with counts; filled as rows are read.
        first: number of the first completion in ``best`` and ``ranking``, 0 or 1; None for the
            number in its column's name, or 0.
        repeated_prompt: what to do if completions begin with a text prompt: "auto" decides as in
            ``data.repeated_prompts``, "cut" cuts it off, "keep" keeps it.
        noted: changes to rows that were kept, with counts; filled as rows are read.
        settings: of ``LayoutReader``.

    Raises:
        InputError: as ``converted``.
    """
    reader = LayoutReader(
        form=form,
        decode=decode,
        skip_invalid=skip_invalid,
        first=first,
        repeated_prompt=repeated_prompt,
        **settings,
    )
    reader.dropped = reader.dropped if dropped is None else dropped
    reader.noted = reader.noted if noted is None else noted
    for _, row in converted(source, reader):
        yield row


WANTS = {"comparisons": "best", "demonstrations": "demonstration", "prompts": "prompt"}


def converted(source: str | Path | Iterable[Placed], reader: LayoutReader) -> Iterator[Placed]:
    """Yield what the reader makes of a source, checked, with places; count what was left out.

    Raises:
        InputError: rows are bad (twenty are shown, all are counted, after all are read); a format
            cannot be detected; or, even with ``skip_invalid``, labels seem to count from another
            number.
    """
    bad = reader.bad
    if isinstance(source, str | Path):
        source = read_table(source, "--input", bad.add)
    rows = tqdm(source, desc="Converting", unit="row", mininterval=1)

    for place, made in reader.rows(rows):
        if problems := problems_of(made, WANTS[reader.wanted]):
            bad.add(*(f"{place}: {problem}" for problem in problems))
        else:
            yield place, made

    if not reader.skip_invalid:
        bad.refuse(" (--skip_invalid skips them)")
    elif shifted := reader.numbering.shifted():
        raise InputError(shifted, "first")
    if bad.count:
        reader.dropped[f"bad, the first: {bad.shown[0]}"] += bad.count
    if note := reader.numbering.note():
        print(note)


def with_space(row: Row) -> Row:
    """Put a space before each completion of a text prompt, if there is none."""
    if not isinstance(row["prompt"], str) or row["prompt"][-1:].isspace():
        return row
    spaced = [text if text[:1].isspace() else f" {text}" for text in row["completions"]]
    return row | {"completions": spaced}


MARGIN = (
    "rows lost their margin, which says how far the best leads the next one: only two completions "
    "tell which pair that is"
)


def to_pairs(row: Row, noted: Counter[str] | None = None) -> list[Row]:
    """Convert a comparison to TRL's preference pairs: its best against each of the others.

    Rows with messages become conversational ones. ``group`` is a hash of the prompt; splitting by
    group keeps all pairs of a prompt together. ``margin`` is there if the row has scores that agree
    with the pick, or if it has a margin itself and two completions.

    Args:
        row: a comparison.
        noted: what of the rows could not be kept, with counts.
    """
    chat = not isinstance(row["prompt"], str)
    group = hashlib.blake2b(json.dumps(row["prompt"]).encode(), digest_size=8).hexdigest()
    best, scores, lead = row["best"], row.get("scores"), row.get("margin")
    scored = scores is not None and scores[best] == max(scores)
    if noted is not None and lead is not None and not scored and len(row["completions"]) > 2:
        noted[MARGIN] += 1

    pairs = []
    for k, completion in enumerate(row["completions"]):
        if k == best or completion == row["completions"][best]:
            continue
        texts = {"chosen": row["completions"][best], "rejected": completion}
        pair: Row = {"prompt": row["prompt"]}
        for name, text in texts.items():
            pair[name] = [{"role": "assistant", "content": text}] if chat else text
        pair |= {
            name: row[name]
            for name in ("tools", "chat_template_kwargs")
            if row.get(name) is not None
        }
        pair["group"] = group
        if scores is not None and scored:
            pair["margin"] = round(scores[best] - scores[k], 6)
        elif lead is not None and len(row["completions"]) == 2:
            pair["margin"] = lead
        pairs.append(pair)

    return pairs


def to_demonstration(row: Row) -> Row:
    """Convert a comparison with one completion to TRL's form: ``prompt, completion``."""
    (text,) = row["completions"]
    chat = not isinstance(row["prompt"], str)
    completion = [{"role": "assistant", "content": text}] if chat else text
    rest = {n: v for n, v in row.items() if n not in ("prompt", "completions", "best")}
    return {"prompt": row["prompt"], "completion": completion} | rest


def load_decoder(name: str) -> Callable[[list[int]], str]:
    """Load a function that converts token ids to text, from a tokenizer's files.

    Args:
        name: a folder with tokenizer.json, or with GPT-2's byte-level BPE: encoder.json (or
            vocab.json) and vocab.bpe (or merges.txt); or a tokenizer's id on the Hub.

    Raises:
        InputError: there is no tokenizer. Decoding raises it for an id beyond the vocabulary.
    """
    folder = Path(name)
    pairs = [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")]
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif folder.is_dir():
            files = [(folder / v, folder / m) for v, m in pairs]
            found = next(((v, m) for v, m in files if v.is_file() and m.is_file()), None)
            if found is None:
                raise InputError(
                    f"tokenizer: {name} has neither tokenizer.json nor encoder.json with vocab.bpe",
                    "tokenizer",
                )
            tokenizer = _byte_level(*found)
        else:
            tokenizer = Tokenizer.from_pretrained(name)
    except InputError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions
        reason = str(error).split("\n")[0]
        raise InputError(f"tokenizer: {name} cannot be loaded: {reason}", "tokenizer") from None
    size = tokenizer.get_vocab_size()

    def decode(ids: list[int]) -> str:
        if ids and max(ids) >= size:
            raise ValueError(f"token id {max(ids)} is too large: the tokenizer has {size} tokens")
        return tokenizer.decode(ids, skip_special_tokens=False)

    return decode


def _byte_level(vocabulary: Path, merges: Path) -> Tokenizer:
    from tokenizers import decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
