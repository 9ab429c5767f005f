"""From checked comparisons to the reward trainer's data: token ids on disk, and prompts."""

import hashlib
import json
import shutil
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.compute
from datasets import Dataset

from toolkit.data.collators import ComparisonCollator
from toolkit.data.comparisons import Comparisons
from toolkit.data.encoded_rows import encode_to_disk
from toolkit.data.encoding import WEIGHT, Encoder, best_of
from toolkit.data.leftovers import part_folder
from toolkit.data.prompts import Prompts
from toolkit.data.records import Placed, Row, source_of
from toolkit.data.splits import Split
from toolkit.errors import InputError
from toolkit.training.reward.config import BestOfKConfig


@dataclass
class RewardData:
    """One training run's data.

    Attributes:
        train, held_out: datasets of ``data.encoded_rows.SCHEMA``; their files are deleted
            with this object.
        rows: the held-out rows themselves, indexed by ``held_out["row"]``.
        prompts: prompts for normalizing, as in PPO.
        score_mean, score_std: of the training rows' ``scores``; scalar losses train on
            (scores - mean) / std.
        pad_id: id that pads the rows; no candidate ends in it.
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
        """Make the collator of these rows."""
        return ComparisonCollator(self.pad_id, self.score_mean, self.score_std)

    def texts_and_prompts(self) -> tuple[list[list[str]], list[str]]:
        """Return each held-out row's candidates, to find equal ones, and its prompt."""
        rows = [self.rows[i] for i in self.held_out["row"]]
        return [row["completions"] for row in rows], [repr(row["prompt"]) for row in rows]

    def chances(self, everything: bool = False) -> list[float]:
        """Return the probability that luck picks right, for each held-out row.

        Args:
            everything: also for the rows that are trained on, as a cross-validation holds them out.
        """
        found = []
        for each in (self.held_out, self.train) if everything else (self.held_out,):
            lengths = pyarrow.compute.list_value_length(each.data.column("candidate_ids"))
            found += [1 / count for count in lengths.to_pylist()]
        return found

    def digest(self) -> str:
        """Return a digest of all candidates' tokens, in which template and tokenizer show."""
        found = hashlib.sha256()
        for each in (self.held_out, self.train):
            for batch in each.select_columns(["candidate_ids"]).iter(256):
                found.update(json.dumps(batch["candidate_ids"]).encode())
        return found.hexdigest()

    def probes(self, count: int = 8) -> list[list[int]]:
        """Return a few held-out candidates."""
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
    other: Comparisons | None = None,
) -> RewardData:
    """Tokenize both sides of the split.

    Args:
        comparisons: checked comparisons.
        train, held_out: bool (rows,), the split (``data.splits``).
        encoder: the rule for long rows; counts them.
        config: determines what the loss needs in the rows, which is checked here.
        prompts: number of prompts to keep for normalizing.
        prompt_tokens: most tokens of such a prompt.
        scratch: token ids go into a folder made here, which is deleted with the data.
        end_id: token that closes every candidate; None for no token.
        other: where the rows of ``held_out`` are, if not in ``comparisons``.

    Raises:
        InputError: no row fits, no prompt fits, or a row lacks the margin or the source that the
            loss needs.
    """
    weights = scaled_weights(comparisons, train, config.weights())
    folder = part_folder(scratch / "tokens")
    try:
        apart = other or comparisons
        train_set, eval_set, rows = _tokenize(
            _weighted(comparisons.where(train), weights),
            [(place, _with_best(row)) for place, row in apart.where(held_out)],
            int(train.sum()),
            encoder,
            folder,
            end_id,
            comparisons.source,
        )
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

    if 2 * encoder.joined > train.sum() + held_out.sum():
        print(
            f"warning: {encoder.joined} rows have no space between prompt and completion, as in "
            f"{encoder.example!r} (if that is not intended: preftune convert --add_space)"
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
    if weights:
        data.facts["source_weights"] = weights
    if other is not None:
        data.facts |= {"held_out_source": other.source, "held_out_digest": other.digest}
    return data


def check_weights(
    comparisons: Comparisons, folds: Sequence[Split], given: Mapping[str, float]
) -> None:
    """Check that each fold has rows of every source that has a weight, before one is trained.

    Args:
        comparisons: checked comparisons.
        folds: of the adapter, and of the other models of a cross-validation.
        given: weights by source; empty for none.

    Raises:
        InputError: as for ``scaled_weights``; it names the fold if only that lacks a source.
    """
    if not given:
        return
    # First all together: a source that is nowhere is missing in every fold.
    scaled_weights(comparisons, np.any([train for train, _ in folds], axis=0), given)
    for number, (train, _) in enumerate(folds, start=1):
        scaled_weights(comparisons, train, given, f" in fold {number} of {len(folds)}")


def scaled_weights(
    comparisons: Comparisons, train: np.ndarray, given: Mapping[str, float], fold: str = ""
) -> dict[str, float]:
    """Scale the weights of sources so that their mean over the training rows is 1.

    So a learning rate means the same with and without them.

    Args:
        comparisons: checked comparisons.
        train: bool (rows,), those that are trained on.
        given: weights by source; empty for none.
        fold: of which of several folds the rows are, for messages.

    Raises:
        InputError: a row has a source without a weight, or a weight's source has no row.
    """
    if not given:
        return {}
    counts: Counter[str] = Counter()
    for place, row in comparisons.where(train):
        source = source_of(row)
        if source is None or source not in given:
            found = "has no source" if source is None else f"source: {source!r:.60} has no weight"
            raise InputError(
                f"{place}: {found} (with --source_weights every source needs one: add NAME=1)",
                "source_weights",
            )
        counts[source] += 1
    if missing := sorted(given.keys() - counts.keys()):
        raise InputError(
            f"source_weights: no row to train on has the source {missing[0]!r}{fold} (the sources "
            f"are {', '.join(sorted(counts))}{'; --folds 0 leaves the folds out' if fold else ''})",
            "source_weights",
        )
    mean = sum(given[name] * count for name, count in counts.items()) / counts.total()
    return {name: weight / mean for name, weight in given.items()}


def _weighted(rows: Iterator[Placed], weights: Mapping[str, float]) -> Iterator[Placed]:
    """Yield rows with what their source counts."""
    for place, row in rows:
        yield place, (row | {WEIGHT: weights[str(source_of(row))]} if weights else row)


def _tokenize(
    train: Iterator[Placed],
    held_out: list[Placed],
    count: int,
    encoder: Encoder,
    folder: Path,
    end_id: int | None,
    source: str,
) -> tuple[Dataset, Dataset, list[Row]]:
    train_set = encode_to_disk(encoder, train, folder / "train.arrow", count, end_id)
    eval_set = encode_to_disk(encoder, held_out, folder / "eval.arrow", len(held_out), end_id)
    if not len(train_set) or not len(eval_set):
        raise InputError(
            f"{source}: no {'held-out' if len(train_set) else 'training'} row "
            f"fits {encoder.max_length} tokens of prompt and completion ({encoder.cure()})"
        )
    return train_set, eval_set, [row for _, row in held_out]


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
            f"{comparisons.source}: no prompt has at most {longest} tokens, as normalizing needs "
            "(--normalize_samples 0 leaves the scores unchanged)"
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
