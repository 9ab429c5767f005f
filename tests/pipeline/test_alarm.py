"""The alarm rings when the score rises and people turn away."""

from typing import Any

import pytest

from toolkit.pipeline.alarm import alarm_of, scores_of, win_rate

SIDES = ["reference", "reference", "policy", "policy"]


def rate(wins: int, trials: int) -> dict[str, Any]:
    return win_rate(
        [
            {"sides": SIDES, "best": 3 if i < wins else 0, "source": {"round": 1}}
            for i in range(trials)
        ]
    )


RISE, FALL = {"proxy_start": 0.0, "proxy_end": 1.0}, {"proxy_start": 1.0, "proxy_end": 0.5}


@pytest.mark.parametrize(
    ("before", "proxy", "now", "rings"),
    [
        (None, RISE, rate(10, 50), True),  # below a half, where it began
        (None, RISE, rate(25, 50), False),
        (rate(45, 50), RISE, rate(30, 50), True),
        (rate(45, 50), RISE, rate(43, 50), False),  # within the interval
        (rate(45, 50), FALL, rate(30, 50), False),  # both fall: no disagreement
        (rate(45, 50), RISE, rate(0, 0), False),  # nobody was asked
        (rate(0, 0), RISE, rate(10, 50), True),
        (rate(45, 50), {}, rate(10, 50), False),
    ],
)
def test_the_alarm_rings_when_the_score_rises_and_people_turn_away(
    before: Any, proxy: Any, now: Any, rings: bool
) -> None:
    assert (alarm_of(before, proxy, now) is not None) == rings


def test_the_scores_rise_is_over_quarters_of_the_rounds_updates() -> None:
    log = [
        {
            "update": u,
            "objective/scores": float(u),
            "objective/kl": 2.0 * u,
            "objective/kl_coef": 0.1,
        }
        for u in range(1, 17)
    ]
    found = scores_of(log, 9, 16)
    assert (found["proxy_start"], found["proxy_end"], found["kl"]) == (9.5, 15.5, 31.0)
    assert scores_of(log, 17, 20) == {}
