"""From checked comparisons to what the reward trainer reads: split, token ids on disk, prompts."""

import shutil
import weakref
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.compute
from datasets import Dataset

from toolkit.data.collators import ComparisonCollator
from toolkit.data.comparisons import Comparisons
from toolkit.data.encoded_rows import encode_to_disk
from toolkit.data.encoding import Encoder, best_of
from toolkit.data.leftovers import part_folder
from toolkit.data.prompts import Prompts
from toolkit.data.records import Row
from toolkit.errors import InputError
from toolkit.training.reward.config import BestOfKConfig


@dataclass
class RewardData:
    """One training run's data.

    Attributes:
        train, held_out: datasets of ``data.encoded_rows.SCHEMA``; their files go with this object.
        rows: the held-out rows themselves, ``held_out["row"]`` indexes them.
        prompts: prompts to normalize with, as PPO has them.
        score_mean, score_std: of the training rows' ``scores``; scalar losses train on
            (scores - mean) / std.
        pad_id: pads the rows: an id that no candidate ends in.
        facts: counts, for the log.
    """

    train: Dataset
    held_out: Dataset
    rows: list[Row]
    prompts: Prompts
    score_mean: float = 0.0
    score_std: float = 1.0
    pad_id: int = 0
    facts: Row = field(default_factory=dict)

    def collator(self) -> ComparisonCollator:
        """Batches of these rows."""
        return ComparisonCollator(self.pad_id, self.score_mean, self.score_std)

    def texts_and_prompts(self) -> tuple[list[list[str]], list[str]]:
        """Of each held-out row: its candidates, to know equal ones, and its prompt."""
        rows = [self.rows[i] for i in self.held_out["row"]]
        return [row["completions"] for row in rows], [repr(row["prompt"]) for row in rows]

    def probes(self, count: int = 8) -> list[list[int]]:
        """A few held-out candidates."""
        flat = (ids for row in self.held_out for ids in row["candidate_ids"])
        return list(islice(flat, count))


def prepare(
    comparisons: Comparisons,
    train: np.ndarray,
    held_out: np.ndarray,
    encoder: Encoder,
    config: BestOfKConfig,
    prompts: int,
    prompt_tokens: int,
    scratch: Path,
    end_id: int | None = None,
) -> RewardData:
    """Tokenize both sides of the split.

    Args:
        comparisons: checked.
        train, held_out: bool (rows,), which rows (``split_by_prompt``).
        encoder: the rule for long rows; counts them.
        config: what the loss needs of the rows is checked here.
        prompts: how many prompts to keep for normalizing.
        prompt_tokens: the longest of them.
        scratch: token ids go into a folder made here, which goes when the data do.
        end_id: closes every candidate; None for nothing.

    Raises:
        InputError: no row fits, no prompt does, or a row has no margin and one is wanted.
    """
    folder = part_folder(scratch / "tokens")
    try:
        train_set, eval_set, rows = _tokenize(comparisons, train, held_out, encoder, folder, end_id)
        none = sum(each.data.column("margin").null_count for each in (train_set, eval_set))
        if config.use_margin and none:
            raise InputError(f"{comparisons.source}: {none} rows have no margin", "use_margin")
        kept = _prompts(comparisons, train, encoder, prompts, prompt_tokens)
        data = RewardData(train_set, eval_set, rows, kept, pad_id=encoder.pad_id())
        if config.wants == "scores":
            data.score_mean, data.score_std = _moments(train_set, comparisons.source)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise

    if 2 * encoder.joined > len(comparisons) * (train | held_out).mean():
        print(
            f"warning: {encoder.joined} rows run from prompt to completion without a space, as "
            f"{encoder.example!r} (if that is no purpose: convert.py --add_space)"
        )
    for line in encoder.notes():
        print(line)

    weakref.finalize(data, shutil.rmtree, folder, ignore_errors=True)
    data.facts = {
        "source": comparisons.source,
        "digest": comparisons.digest,
        "rows": len(comparisons),
        "invalid_rows_skipped": comparisons.skipped,
        "train_comparisons": len(train_set),
        "held_out_comparisons": len(eval_set),
        "max_length": encoder.max_length,
        "rows_too_long": encoder.dropped,
        "rows_with_prompt_cut": encoder.truncated,
        "rows_refused": encoder.bad.count,
        "completions_with_an_end_token": encoder.ended,
    }
    return data


def _tokenize(
    comparisons: Comparisons,
    train: np.ndarray,
    held_out: np.ndarray,
    encoder: Encoder,
    folder: Path,
    end_id: int | None,
) -> tuple[Dataset, Dataset, list[Row]]:
    train_set = encode_to_disk(
        encoder, comparisons.where(train), folder / "train.arrow", int(train.sum()), end_id
    )
    placed = [(place, _with_best(row)) for place, row in comparisons.where(held_out)]
    eval_set = encode_to_disk(encoder, placed, folder / "eval.arrow", len(placed), end_id)
    if not len(train_set) or not len(eval_set):
        raise InputError(
            f"{comparisons.source}: no row of {'held-out' if len(train_set) else 'training'} ones "
            f"fits {encoder.max_length} tokens of prompt and completion (raise --max_length, if "
            "the model's context allows; or --long_rows truncate_prompt)"
        )
    return train_set, eval_set, [row for _, row in placed]


def _prompts(
    comparisons: Comparisons, train: np.ndarray, encoder: Encoder, count: int, longest: int
) -> Prompts:
    kept = Prompts()
    kept.chat = encoder.chat
    rows = []

    for _, row in comparisons.where(train):
        if len(kept) == count:
            break
        try:
            ids = encoder.prompt_ids(row["prompt"], row)
        except InputError:  # counted when the row was encoded
            continue
        if len(ids) <= longest:
            kept.given[len(kept)] = row["prompt"]
            kept.append(ids)
            rows.append(row)

    for name in ("tools", "chat_template_kwargs"):
        kept.columns[name] = [row.get(name) for row in rows]
    if count and not kept:
        raise InputError(
            f"{comparisons.source}: no prompt of {longest} tokens or fewer to normalize with "
            "(--normalize_samples 0 leaves the scores as they are)"
        )
    return kept


def _with_best(row: Row) -> Row:
    return row if row.get("best") is not None else row | {"best": best_of(row["scores"])}


def _moments(train_set: Dataset, source: str) -> tuple[float, float]:
    flat = pyarrow.compute.list_flatten(train_set.data.column("scores"))
    mean, std = pyarrow.compute.mean(flat).as_py(), pyarrow.compute.stddev(flat).as_py()
    if std <= 1e-12 * max(1.0, abs(mean)):
        raise InputError(f"{source}: all scores are {mean:g}, so there is nothing to learn")
    return mean, std
