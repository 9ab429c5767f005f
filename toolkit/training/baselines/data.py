"""From comparisons, text and prompts to the rows for TRL's trainers: token ids, split.

TRL would append an end token to text and tokenize prompts differently from PPO. So its trainers get
token ids.
"""

import hashlib
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from toolkit.data.comparisons import Comparisons
from toolkit.data.encoding import Encoder
from toolkit.data.leftovers import part_folder
from toolkit.data.plain_text import learned_ids, read_texts
from toolkit.data.prompts import Prompts
from toolkit.data.records import Placed, Row
from toolkit.data.splits import split_by_prompt
from toolkit.errors import InputError
from toolkit.training.baselines.config import PreferenceConfig
from toolkit.training.methods import METHODS

IDS = pyarrow.list_(pyarrow.int32())
SFT_SCHEMA = pyarrow.schema({"input_ids": IDS, "labels": IDS})
PAIR_SCHEMA = pyarrow.schema({"prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": IDS})
KTO_SCHEMA = pyarrow.schema({"prompt_ids": IDS, "completion_ids": IDS, "label": pyarrow.bool_()})


@dataclass
class BaselineData:
    """One run's rows.

    Attributes:
        train, held_out: what the trainer reads, in files that are deleted with this object.
        probes: token ids of a few held-out texts, to check the saved adapter with.
        facts: counts, for the log.
    """

    train: Dataset
    held_out: Dataset
    probes: list[list[int]]
    facts: Row


def complete(encoder: Encoder, rows: Iterable[Placed], stop_id: int | None) -> Iterator[Row]:
    """Yield prompts and completions as token ids, as PPO would read and sample them.

    >>> next(complete(encoder, rows, stop_id=None))
    {'prompt_ids': [1, 306, 5446], 'completion_ids': [[29889], [727]], 'best': 1, 'scores': None}

    Nothing is appended unless ``stop_id`` is given.

    Args:
        encoder: makes the tokens. A row is as long as its longest completion.
        rows: comparisons, with their places.
        stop_id: token that ends completions; None for no token.
    """
    for row, _, prompt, completions in encoder.pieces(rows, stop_id):
        labels = {name: row.get(name) for name in ("best", "scores")}
        yield {"prompt_ids": prompt, "completion_ids": completions, **labels}


def sft_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the pick after its prompt; labels are -100 where nothing is learned."""
    for row in rows:
        prompt, picked = row["prompt_ids"], row["completion_ids"][row["best"]]
        yield {"input_ids": prompt + picked, "labels": [-100] * len(prompt) + picked}


def others(row: Row, number: int, rejected: str, seed: int) -> list[list[int]]:
    """Return the completions that differ from the pick; one at random if ``rejected`` is one."""
    picked = row["completion_ids"][row["best"]]
    left = [c for k, c in enumerate(row["completion_ids"]) if k != row["best"] and c != picked]
    if rejected == "one" and left:
        return [left[np.random.default_rng([seed, number]).integers(len(left))]]
    return left


def pair_rows(rows: Iterable[Row], rejected: str, seed: int) -> Iterator[Row]:
    """Yield the pick against each other completion: K - 1 pairs for a row of K."""
    for number, row in enumerate(rows):
        chosen = {
            "prompt_ids": row["prompt_ids"],
            "chosen_ids": row["completion_ids"][row["best"]],
        }
        yield from (chosen | {"rejected_ids": c} for c in others(row, number, rejected, seed))


def kto_rows(rows: Iterable[Row], rejected: str, seed: int) -> Iterator[Row]:
    """Yield each completion by itself; its label is True for the pick."""
    for number, row in enumerate(rows):
        prompt, left = row["prompt_ids"], others(row, number, rejected, seed)
        if left:
            picked = row["completion_ids"][row["best"]]
            yield {"prompt_ids": prompt, "completion_ids": picked, "label": True}
        yield from ({"prompt_ids": prompt, "completion_ids": c, "label": False} for c in left)


def with_kl_rows(dataset: Dataset, batch_size: int, seed: int) -> Dataset:
    """Shuffle KTO's rows, and add to each another prompt's completion from its batch.

    KTO estimates the KL from these mismatched pairs and needs them in the batch's order. TRL makes
    them of neighbors in the file, which would share a prompt here.
    """

    def rotate(batch: Row) -> Row:
        ids = batch["completion_ids"]
        return {"KL_completion_ids": ids[-1:] + ids[:-1]}

    shuffled = dataset.shuffle(seed=seed)
    return shuffled.map(rotate, batched=True, batch_size=batch_size)


@contextmanager
def _scratch(near: Path) -> Iterator[Path]:
    folder = part_folder(near / "tokens")
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _to_disk(rows: Iterable[Row], schema: pyarrow.Schema, path: Path) -> Dataset:
    """Write the rows to a file and return a dataset that reads it; 512 are in memory at a time."""
    iterator = iter(rows)
    with pyarrow.ipc.new_stream(path, schema) as writer:
        while chunk := list(islice(iterator, 512)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(chunk, schema=schema))
    return Dataset.from_file(str(path))


Shape = Callable[[Iterable[Row]], Iterator[Row]]


def preference_shape(config: PreferenceConfig) -> tuple[Shape, pyarrow.Schema]:
    """Return the function that shapes the method's rows, and their schema."""
    if METHODS[config.method].learns_from == "completions":
        return lambda rows: kto_rows(rows, config.rejected, config.seed), KTO_SCHEMA
    return lambda rows: pair_rows(rows, config.rejected, config.seed), PAIR_SCHEMA


def prepare_completions(
    comparisons: tuple[Comparisons, np.ndarray, np.ndarray],
    encoder: Encoder,
    stop_id: int | None,
    shape: Shape,
    schema: pyarrow.Schema,
    scratch: Path,
) -> BaselineData:
    """Tokenize both sides of the split, and shape them for a trainer.

    Args:
        comparisons: checked rows, and which of them to train on and to hold out.
        encoder: the rule for long rows; counts them.
        stop_id: token that ends completions; None for no token.
        shape: ``sft_rows``, ``pair_rows`` or ``kto_rows``.
        schema: of the rows that ``shape`` makes.
        scratch: token ids go into a folder made here, which is deleted with the data.

    Raises:
        InputError: no row fits.
    """
    source, *sides = comparisons
    sets, counts = [], []

    with _scratch(scratch) as folder:
        for name, wanted in zip(("train", "held-out"), sides, strict=True):
            before = encoder.rows
            placed = tqdm(
                source.where(wanted),
                desc="Tokenizing",
                unit="row",
                total=int(wanted.sum()),
                mininterval=1,
            )
            rows = shape(complete(encoder, placed, stop_id))
            sets.append(_to_disk(rows, schema, folder / f"{name}.arrow"))
            counts.append(encoder.rows - before)
            if not len(sets[-1]):
                raise InputError(
                    f"{source.source}: no {name} row fits {encoder.max_length} tokens of prompt "
                    f"and completion ({encoder.cure()})"
                )

    data = BaselineData(
        sets[0],
        sets[1],
        [_text_of(row) for row in islice(sets[1], 8)],
        {
            "source": source.source,
            "digest": source.digest,
            "rows": len(source),
            "invalid_rows_skipped": source.skipped,
            "train_comparisons": counts[0],
            "held_out_comparisons": counts[1],
            "train_rows": len(sets[0]),
            "held_out_rows": len(sets[1]),
            "max_length": encoder.max_length,
            "stop_id": stop_id,
            "rows_too_long": encoder.dropped,
            "rows_with_prompt_cut": encoder.truncated,
            "rows_refused": encoder.bad.count,
            "completions_with_an_end_token": encoder.ended,
        },
    )

    for line in encoder.notes():
        print(line)
    weakref.finalize(data, shutil.rmtree, folder, ignore_errors=True)
    return data


def _text_of(row: Row) -> list[int]:
    if "input_ids" in row:
        return list(row["input_ids"])
    return [*row["prompt_ids"], *(row.get("chosen_ids") or row["completion_ids"])]


def prepare_text(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    stop_id: int | None,
    eval_rows: int | None,
    seed: int,
    scratch: Path,
) -> BaselineData:
    """Prepare rows of ``text`` for SFT on every token; texts are cut at ``max_length``.

    Equal texts are on the same side of the split.

    Args:
        source: what ``read_table`` reads.
        tokenizer: its own special tokens (a BOS, say) are added.
        max_length: most tokens of a text.
        stop_id: token that ends texts that were not cut; None for no token.
        eval_rows: rows to hold out; None for 200, or a fifth if that is fewer.
        seed: seed of the split.
        scratch: as for ``prepare_completions``.

    Raises:
        InputError: rows have no text (twenty are shown, all are counted), or there are too few.
    """
    order, cut = [], 0

    for text in read_texts(source, "--text"):
        order.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))
    if len(order) < 2:
        raise InputError(f"{source}: only {len(order)} rows of text (--text needs two or more)")

    hashes = np.array(order, dtype=np.uint64)
    sides = split_by_prompt(hashes, eval_rows or max(1, min(200, len(order) // 5)), seed)

    def tokenize(wanted: np.ndarray) -> Iterator[Row]:
        nonlocal cut
        for wants, text in zip(wanted, read_texts(source, "--text"), strict=True):
            if wants:
                ids = learned_ids(tokenizer, text, stop_id)
                cut += len(ids) > max_length
                yield {"input_ids": ids[:max_length], "labels": ids[:max_length]}

    with _scratch(scratch) as folder:
        train, held_out = (
            _to_disk(tokenize(wanted), SFT_SCHEMA, folder / f"{i}.arrow")
            for i, wanted in enumerate(sides)
        )

    data = BaselineData(
        train,
        held_out,
        [_text_of(row) for row in islice(held_out, 8)],
        {
            "source": source,
            "rows": len(order),
            "train_rows": len(train),
            "held_out_rows": len(held_out),
            "max_length": max_length,
            "stop_id": stop_id,
            "rows_cut": cut,
        },
    )
    weakref.finalize(data, shutil.rmtree, folder, ignore_errors=True)
    return data


def prompt_rows(prompts: Prompts, first: int = 0) -> Dataset:
    """Make prompts for ``SampledRLOOTrainer``; ``row`` finds their other columns."""
    rows = range(first, first + len(prompts))
    return Dataset.from_dict({"prompt": list(prompts), "row": list(rows)})
