"""Progress in words: what a trainer logs, in lines that fit the terminal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from toolkit.training.progress import ProgressInWords, in_words, show_progress_in_words

LOGS = {"loss": 0.434871, "learning_rate": 7.5e-05, "rows": 3, "epoch": 1.934, "total_flos": 1e9}


def test_the_measures_that_people_look_at_are_words_with_the_epoch_first() -> None:
    assert in_words(LOGS) == "epoch 1.93: loss 0.4349, learning_rate 7.5e-05"
    assert in_words({"loss": 2.0}) == "loss 2"
    assert in_words({"my_measure": 0.123456, "epoch": 1.0}) == "epoch 1: my_measure 0.1235"


class Tiny(torch.nn.Module):
    """One weight, which learns nothing of use."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * x).mean()}


def trained(folder: Path, **options: Any) -> Trainer:
    args = TrainingArguments(
        str(folder), max_steps=2, logging_steps=1, use_cpu=True, report_to=[], save_strategy="no",
        **options,
    )  # fmt: skip
    rows = [{"x": 1.0}] * 16
    trainer = Trainer(Tiny(), args, train_dataset=rows, eval_dataset=rows)
    show_progress_in_words(trainer, "Training something small")
    trainer.train()
    return trainer


def test_a_trainer_prints_lines_that_fit_and_logs_what_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    trainer = trained(tmp_path)
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if line.strip()]
    assert sum(line.startswith("epoch ") for line in lines) == 2  # two steps, and no summary
    assert "Training something small: 100%" in printed.err
    assert "{" not in "".join(lines) and max(map(len, lines)) <= 60
    assert len([row for row in trainer.state.log_history if "loss" in row]) == 2


def test_without_a_bar_nothing_is_added(tmp_path: Path) -> None:
    handlers = trained(tmp_path, disable_tqdm=True).callback_handler.callbacks
    assert not [c for c in handlers if isinstance(c, ProgressInWords | ProgressCallback)]


def test_the_bar_of_an_evaluation_has_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trained(tmp_path)
    capsys.readouterr()
    trainer.evaluate()
    assert "Evaluating: 100%" in capsys.readouterr().err
