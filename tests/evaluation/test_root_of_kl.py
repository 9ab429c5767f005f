"""Gain over the root of the KL in the report."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.evaluation.result import ContenderResult, Evaluation
from toolkit.evaluation.root_of_kl import fit_of, root_lines, series_of
from toolkit.training.log_rows import LoggedUpdate

KL = (1.0, 4.0, 9.0, 16.0)


@pytest.fixture
def result(kept_runs: Path) -> Evaluation:
    """An evaluation whose checkpoints gain .5 + 2 sqrt(KL), judged by the training reward."""
    found = Evaluation.read(kept_runs / "evaluation" / "evaluation.json", "--evaluation")
    reference = found.contenders[0]
    judge = found.judges[0].name

    def checkpoint(number: int, kl: float) -> ContenderResult:
        score = replace(reference.scores[judge], gain=0.5 + 2 * math.sqrt(kl))
        name = f"ppo@{number}"
        return replace(reference, name=name, kind="checkpoint", kl=kl, scores={judge: score})

    checkpoints = [checkpoint(i, kl) for i, kl in enumerate(KL)]
    judges = [replace(found.judges[0], training_reward=True)]
    return replace(found, contenders=[reference, *checkpoints], judges=judges)


def test_checkpoints_on_a_root_are_said_to_be_on_it(result: Evaluation) -> None:
    (line,) = root_lines(result, result.judges[0].name, {})
    assert line.startswith("ppo, checkpoints: the gain is about 0.50 +2.00 √KL (the slope ± 0.00")
    assert "R² 1.000" in line


def test_a_log_is_put_on_the_scale_of_gains_for_the_judge_that_it_was_trained_on(
    result: Evaluation,
) -> None:
    judge = result.judges[0].name
    reference = result.contenders[0].scores[judge]
    log = [
        LoggedUpdate(
            i, i, reference.mean + reference.std * 3 * root, kl, None, None, None, None, {}
        )
        for i, (kl, root) in enumerate([(-0.01, 0.0), *((kl, math.sqrt(kl)) for kl in KL)])
    ]
    points = series_of(result, judge, {"ppo": log})["ppo, while training"]
    fit = fit_of(points)
    assert fit is not None and (fit.intercept, fit.slope) == pytest.approx((0, 3), abs=1e-6)
    watching = replace(result, judges=[replace(result.judges[0], training_reward=False)])
    assert list(series_of(watching, judge, {"ppo": log})) == ["ppo, checkpoints"]


def test_two_points_are_too_few_for_a_line() -> None:
    assert fit_of([(1.0, 1.0), (4.0, 2.0)]) is None
    assert fit_of([(-0.1, 1.0), (-0.2, 1.1), (4.0, 2.0)]) is None
