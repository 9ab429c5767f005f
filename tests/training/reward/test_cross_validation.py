"""What a fold gave survives its file; how long a training is; what becomes of other settings."""

import json
from pathlib import Path

import pytest

from toolkit.errors import InputError
from toolkit.training.reward.config import BestOfKConfig
from toolkit.training.reward.cross_validation import (
    HeldOut,
    KeptFolds,
    batches,
    by_fold,
    duration,
    metrics_of,
    read_held_out,
    write_held_out,
)


def row(fold: int, number: int, right: bool = True) -> HeldOut:
    comparison = {"prompt": f"p{fold}-{number}", "completions": ["a", "b"], "best": 0, "by": "me"}
    return HeldOut(fold, 10 * fold, [0.1 + 0.2, 0.1] if right else [-1.0, 1 / 3], comparison)


def test_what_was_held_out_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [row(2, 0), row(1, 0), row(1, 1, right=False)]
    path = tmp_path / "cross_validation.jsonl"
    write_held_out(path, rows)
    assert read_held_out(path) == rows
    assert by_fold(rows) == [rows[1:], rows[:1]]
    with pytest.raises(InputError, match="no such file, but the run was cross-validated"):
        read_held_out(tmp_path / "nothing.jsonl")
    path.write_text(path.read_text() + json.dumps({"fold": 1, "raw": [1.0], "row": {}}) + "\n")
    with pytest.raises(InputError, match=r"cross_validation\.jsonl:4: train_comparisons: missing"):
        read_held_out(path)


def test_the_figures_are_of_all_folds_and_the_first_is_the_adapters() -> None:
    rows = [row(1, i, right=i < 3) for i in range(4)] + [row(2, i) for i in range(6)]
    found = metrics_of(rows)
    assert (found.accuracy, found.comparisons, found.folds) == (0.9, 10, 2)
    assert found.own is not None and (found.own.accuracy, found.own.comparisons) == (0.75, 4)


def test_a_kept_fold_is_of_the_same_settings_only(tmp_path: Path) -> None:
    kept = KeptFolds(tmp_path / "folds", {"told": {"learning_rate": 1e-3}, "base": "abc"})
    assert kept.get(2) is None
    rows = [row(2, 0), row(2, 1)]
    kept.put(2, rows)
    again = KeptFolds(tmp_path / "folds", {"base": "abc", "told": {"learning_rate": 1e-3}})
    assert again.get(2) == rows and again.get(3) is None
    other = KeptFolds(tmp_path / "folds", {"told": {"learning_rate": 2e-3}, "base": "abc"})
    assert other.get(2) is None


def test_a_training_has_as_many_batches_as_epochs_and_rows_need(tmp_path: Path) -> None:
    told = {"output_dir": str(tmp_path), "use_cpu": True, "per_device_train_batch_size": 8}
    assert batches(BestOfKConfig(**told, num_train_epochs=2), 17) == 6
    assert batches(BestOfKConfig(**told, num_train_epochs=0.5), 17) == 2
    steps = BestOfKConfig(**told, max_steps=5, gradient_accumulation_steps=3)
    assert batches(steps, 1000) == 15


def test_a_time_is_said_as_roughly_as_it_is_known() -> None:
    assert [duration(s) for s in (0.2, 42.3, 150, 600, 7000)] == [
        "1 s", "42 s", "2 minutes", "10 minutes", "1.9 hours",
    ]  # fmt: skip
