"""Policies against best-of-n at equal KL, by hand arithmetic on a curve that is given."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from toolkit.evaluation.best_of_n import best_of_n_gain, best_of_n_lines, best_of_n_points
from toolkit.evaluation.result import (
    BestOfNPoint,
    Evaluation,
    Frontier,
    OptimalPoint,
    ScoreSummary,
)

Make = Callable[..., Any]
POINTS = [BestOfNPoint(1, 0.0, 0.0), BestOfNPoint(2, 0.2, 0.5), BestOfNPoint(4, 0.6, 1.0)]
CURVE = Frontier(4, 64, [OptimalPoint(0, 0, 64), OptimalPoint(2, 4, 20)], 1.5, POINTS)


def compared(make: Make, kl: float, gain: float, curve: Frontier | None = CURVE) -> Evaluation:
    """The reference, best of 4 with a gain of 1.0, and a policy; an error is 0.05 std."""

    def scored(gain: float) -> dict[str, ScoreSummary]:
        return {"rm": ScoreSummary(mean=2 * gain, error=0.1, gain=gain, std=2.0)}

    contenders = [
        make("reference", kind="reference", kl=0.0, scores=scored(0.0)),
        make("best-of-4", kind="best_of_n", source="reference", n=4, kl=0.6, scores=scored(1.0)),
        make("ppo", kind="adapter", kl=kl, scores=scored(gain)),
    ]
    return Evaluation(
        prompts=8,
        contenders=contenders,
        vocabulary=None,
        chat_template=None,
        chat_template_kwargs={},
        reference="reference",
        judges=[],
        pairs=[],
        frontier={} if curve is None else {"rm": curve},
    )


def test_between_two_n_the_gain_is_on_the_straight_line() -> None:
    assert best_of_n_gain(POINTS, 0.4) == pytest.approx(0.75)  # halfway from 0.5 to 1.0
    assert best_of_n_gain(POINTS, 0.6) == pytest.approx(1.0)
    assert best_of_n_gain(POINTS, 0.7) is None


@pytest.mark.parametrize(
    ("kl", "gain", "said"),
    [
        # Best-of-n gains 0.75 at 0.4 nats; two errors are 2 * sqrt(2) * 0.05 = 0.14.
        (0.4, 0.90, "ppo beats best-of-n at equal KL: ppo gains +0.90 and best-of-n +0.75, both"),
        (0.4, 0.88, "ppo and best-of-n cannot be told apart at equal KL: ppo gains +0.88"),
        (0.4, 0.60, "ppo does not beat best-of-n at equal KL: ppo gains +0.60 and best-of-n +0.75"),
        (5.0, 0.99, "ppo does not beat best-of-n at equal KL: ppo gains +0.99 at 5.00 nats, and "
                    "best of 4 +1.00 at 0.60 nats already."),
        (5.0, 1.20, "Whether ppo beats best-of-n at equal KL is not known: ppo gains +1.20 at 5.00 "
                    "nats, and best of 4 +1.00 at 0.60 nats, which is the largest n"),
    ],
)  # fmt: skip
def test_two_standard_errors_decide_whether_a_policy_beats_it(
    contender_result: Make, kl: float, gain: float, said: str
) -> None:
    line, _ = best_of_n_lines(compared(contender_result, kl, gain), "rm")
    assert line.startswith(said)


def test_its_distance_from_the_optimum_is_a_share_of_the_optimal_gain(
    contender_result: Make,
) -> None:
    _, line = best_of_n_lines(compared(contender_result, 0.4, 0.9), "rm")
    assert line.startswith("best-of-4 reaches 83% of the gain of the KL-optimal policy")
    assert "(+1.00 of +1.20)" in line  # the curve rises by 2 for each nat

    short = replace(CURVE, supported_kl=0.5)
    _, line = best_of_n_lines(compared(contender_result, 0.4, 0.9, short), "rm")
    assert line.endswith("is not known: its samples support the frontier up to 0.50 nats.")


def test_without_a_frontier_the_contenders_points_are_compared(contender_result: Make) -> None:
    result = compared(contender_result, 0.3, 0.9, curve=None)
    assert [(p.n, p.kl, p.gain) for p in best_of_n_points(result, "rm")] == [(1, 0, 0), (4, 0.6, 1)]
    line, other = best_of_n_lines(result, "rm")
    # Best of 2 was not measured. It gains 0.5 at 0.2 nats on the curve above, the line 0.33.
    assert line.startswith("Whether ppo beats best-of-n at equal KL is not known: ppo gains +0.90")
    assert "no best of n between 1 and 4 was measured. A mixture of the two gains +0.50" in line
    assert other.endswith("there is no frontier (--frontier_prompts, --frontier_samples).")

    # A line that is too low is no reason to doubt a policy that stays below it.
    line, _ = best_of_n_lines(compared(contender_result, 0.3, 0.2, curve=None), "rm")
    assert line.startswith("ppo does not beat best-of-n at equal KL: ppo gains +0.20 and")


def test_nothing_is_said_where_no_best_of_n_of_the_reference_or_no_policy_takes_part(
    contender_result: Make,
) -> None:
    result = compared(contender_result, 0.4, 0.9)
    reference, chosen, ppo = result.contenders
    assert best_of_n_lines(result, "people") == []  # who gives no scores
    for left in (
        [reference, ppo],
        [reference, chosen],
        [reference, ppo, replace(chosen, source="ppo")],
    ):
        assert best_of_n_lines(replace(result, contenders=left), "rm") == []
