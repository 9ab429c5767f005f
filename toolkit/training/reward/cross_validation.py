"""Cross-validation: one reward model for each fold, so that every comparison is held out once.

The first fold's model is the adapter that reward.py keeps. The others are trained by the same
settings on their own folds' rows, score the rows that were held out from them, and are dropped.
What a fold gave is kept in a file until all are done, so that a killed run goes on.
"""

import contextlib
import copy
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments

from toolkit import random_state
from toolkit.arguments.lora import StartedLoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.data.encoding import Encoder
from toolkit.data.files import read_jsonl, write_jsonl
from toolkit.data.from_arguments import RewardSplits
from toolkit.data.records import Row, from_row, to_row
from toolkit.data.splits import Split
from toolkit.errors import InputError
from toolkit.models.adapters import lora_config_like
from toolkit.models.from_arguments import base_of, lora_of
from toolkit.scoring.accuracy import RewardMetrics, cross_validated
from toolkit.scoring.reward_models import score_rows
from toolkit.terminal import counted
from toolkit.training.progress import ProgressInWords
from toolkit.training.reward.config import BestOfKConfig
from toolkit.training.reward.data import RewardData, prepare
from toolkit.training.reward.preflight import preflight
from toolkit.training.reward.trainer import BestOfKTrainer, score_in_buckets

FILE = "cross_validation.jsonl"  # in reward.py's folder: every comparison with its scores
KEPT = "folds_done"  # folder beside it, while the folds are being trained


@dataclass(frozen=True)
class HeldOut:
    """A comparison, and the scores of the model that it was held out from.

    Attributes:
        fold: number of that model; 1 is the adapter.
        train_comparisons: number that this model was trained on.
        raw: its score of each completion, before normalization.
        row: the comparison.
    """

    fold: int
    train_comparisons: int
    raw: list[float]
    row: dict[str, Any]


def write_held_out(path: Path, rows: list[HeldOut]) -> None:
    """Write ``cross_validation.jsonl`` atomically."""
    write_jsonl(path, (to_row(row) for row in rows))


def read_held_out(path: Path) -> list[HeldOut]:
    """Read ``cross_validation.jsonl``.

    Raises:
        InputError: it is missing or malformed.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, but the run was cross-validated")
    return [from_row(HeldOut, row, f"{path}:{number}") for number, row in read_jsonl(path)]


def by_fold(rows: list[HeldOut]) -> list[list[HeldOut]]:
    """Return the rows of each fold, the adapter's first."""
    folds: dict[int, list[HeldOut]] = {}
    for row in rows:
        folds.setdefault(row.fold, []).append(row)
    return [folds[number] for number in sorted(folds)]


def metrics_of(rows: list[HeldOut]) -> RewardMetrics:
    """Measure all folds together, and the adapter's alone."""
    folds = by_fold(rows)
    found = cross_validated(
        [[row.raw for row in fold] for fold in folds],
        [[row.row["best"] for row in fold] for fold in folds],
        [[row.row["completions"] for row in fold] for fold in folds],
        [[repr(row.row["prompt"]) for row in fold] for fold in folds],
    )
    return found


@dataclass(frozen=True)
class RewardTraining:
    """How one reward model is trained: what all folds have in common.

    Attributes:
        model_args, lora: the base, and the adapter on it.
        config: the training. A fold's seed is that of the run, plus its number, less one.
        tokenizer: of the base.
        encoder: makes the encoder of a fold's rows.
        end_id: token that closes every candidate; None for no token.
        head_seed: seed of the head's first weights; None for the fold's seed.
        batch_size: candidates in a pass without gradients.
        scratch: folder for token ids.
    """

    model_args: ModelArguments
    lora: StartedLoraArguments
    config: BestOfKConfig
    tokenizer: PreTrainedTokenizerBase
    encoder: Callable[[], Encoder]
    end_id: int | None
    head_seed: int | None
    batch_size: int
    scratch: Path

    def trainer(self, data: RewardData, config: BestOfKConfig | None = None) -> BestOfKTrainer:
        """Load the base and make the trainer; by default with the run's own settings."""
        config = config or self.config
        start = self.lora.start_adapter
        return BestOfKTrainer(
            base_of(self.model_args, score_head=True, seed=self.seed_of_head(config)),
            config,
            self.tokenizer,
            data.train,
            data.held_out,
            lora_of(self.lora, "SEQ_CLS") if start is None else lora_config_like(start, "SEQ_CLS"),
            data.collator(),
            start,
        )

    def seed_of_head(self, config: BestOfKConfig) -> int:
        """Return the seed of the score head's first weights."""
        return config.seed if self.head_seed is None else self.head_seed

    def of_fold(
        self,
        splits: RewardSplits,
        split: Split,
        fold: int,
        name: str,
        first_batch: Callable[[float, int], None] | None = None,
    ) -> list[HeldOut]:
        """Train a fold's model, and score the rows that were held out from it.

        Args:
            splits: the comparisons.
            split: the fold's rows, to train on and to hold out.
            fold: its number, from 1 on.
            name: what the progress bar is called.
            first_batch: is told, before the training, how many seconds a batch takes, forward and
                backward, and how many there are.
        """
        with contextlib.redirect_stdout(io.StringIO()):  # said once, of the run's own data
            data = prepare(
                splits.comparisons,
                *split,
                self.encoder(),
                self.config,
                0,
                0,
                self.scratch,
                self.end_id,
                splits.held_out,
            )
            trainer = self.trainer(data, self._config_of(fold))
            if trainer.pop_callback(ProgressInWords) is not None:
                trainer.add_callback(_BarAlone(name))

        preflight(trainer)  # as in a run of its own, which has drawn as many random numbers then
        if first_batch is not None:
            before = random_state.current()
            started = time.monotonic()
            preflight(trainer)  # timed only now, since the first pass is slower
            seconds = time.monotonic() - started
            random_state.restore(before)
            first_batch(seconds, batches(self.config, len(data.train)))
        with contextlib.redirect_stdout(io.StringIO()):  # the losses of this model
            trainer.train()
        raw = self._scores(trainer, data)

        rows = [data.rows[i] for i in data.held_out["row"]]
        found = [HeldOut(fold, len(data.train), s, row) for s, row in zip(raw, rows, strict=True)]
        del trainer  # the next one loads the base again: a card holds one of them
        clear_device_cache(garbage_collection=True)
        return found

    def _config_of(self, fold: int) -> BestOfKConfig:
        """Return the run's configuration with the fold's seed, and without outputs."""
        config = copy.copy(self.config)
        config.seed = (self.config.seed + fold - 1) % 2**32
        config.save_strategy = "no"
        config.report_to = []
        return config

    @torch.no_grad()
    def _scores(self, trainer: BestOfKTrainer, data: RewardData) -> list[list[float]]:
        """Score the held-out candidates, without the autocast that --bf16 puts around a pass."""
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()

        def score(ids: Tensor, mask: Tensor) -> Tensor:
            return score_in_buckets(model, ids, mask.long())[0]

        counts = [len(row["candidate_ids"]) for row in data.held_out]
        flat = [ids for row in data.held_out for ids in row["candidate_ids"]]
        device = next(model.parameters()).device
        scores = score_rows(score, flat, data.pad_id, self.batch_size, device).tolist()
        remaining = iter(scores)
        return [[next(remaining) for _ in range(count)] for count in counts]


class _BarAlone(ProgressInWords):
    """The bar of one fold's model, without its losses."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print nothing: the losses of several models one after the other tell nothing."""


def batches(config: BestOfKConfig, rows: int) -> int:
    """Return how many batches a training on so many rows takes, forward and backward."""
    if config.max_steps > 0:
        return config.max_steps * config.gradient_accumulation_steps
    in_pass = math.ceil(rows / config.per_device_train_batch_size)
    return math.ceil(in_pass * config.num_train_epochs)


class KeptFolds:
    """The folds that are done, in files: a killed cross-validation goes on after them.

    Args:
        folder: where the files are.
        identity: all that decides what a fold gives. A fold of another identity is not used.
    """

    def __init__(self, folder: Path, identity: Row) -> None:
        self.folder = folder
        text = json.dumps(identity, sort_keys=True, default=str)
        self.digest = hashlib.sha256(text.encode()).hexdigest()

    def _path(self, fold: int) -> Path:
        return self.folder / f"fold-{fold}.jsonl"

    def get(self, fold: int) -> list[HeldOut] | None:
        """Return what a fold gave; None if it is not done, or was done by other settings."""
        path = self._path(fold)
        if not path.is_file():
            return None
        (_, head), *rows = read_jsonl(path)
        if head.get("identity") != self.digest:
            return None
        return [from_row(HeldOut, row, f"{path}:{number}") for number, row in rows]

    def put(self, fold: int, rows: list[HeldOut]) -> None:
        """Keep what a fold gave."""
        self.folder.mkdir(exist_ok=True)
        lines = [{"identity": self.digest}, *map(to_row, rows)]
        write_jsonl(self._path(fold), lines)


def other_folds(
    training: RewardTraining,
    splits: RewardSplits,
    kept: KeptFolds,
    say: Callable[[str], None],
) -> Iterator[HeldOut]:
    """Train the models of all folds but the first, which is the adapter's; yield what they gave.

    Before the first training it says how long all of them take.

    Args:
        training: how each is trained.
        splits: the folds.
        kept: those that are done.
        say: prints a line.
    """
    count = splits.validated
    done = {fold: kept.get(fold) for fold in range(2, count + 1)}
    left = [fold for fold, rows in done.items() if rows is None]
    for fold in done.keys() - set(left):
        say(f"Fold {fold} of {count} was trained before, and is kept.")

    def announce(seconds: float, in_each: int) -> None:
        each = seconds * in_each
        say(
            f"Cross-validation: {counted(len(left), 'reward model')} "
            f"{'is' if len(left) == 1 else 'are'} trained, one for each other fold, and then the "
            f"adapter. As the first batch went, each takes about {duration(each)}, and all of "
            f"them {duration(each * (len(left) + 1))}. (--folds 0 leaves the "
            "cross-validation out.)"
        )

    for fold in range(2, count + 1):
        rows = done[fold]
        if rows is None:
            told = announce if fold == left[0] else None
            name = f"fold {fold} of {count}"
            rows = training.of_fold(splits, splits.folds[fold - 1], fold, name, told)
            kept.put(fold, rows)
        yield from rows


def duration(seconds: float) -> str:
    """Return a time in words, rounded as an estimate is.

    >>> duration(42.3), duration(600), duration(7000)
    ('42 s', '10 minutes', '1.9 hours')
    """
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
