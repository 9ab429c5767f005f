"""The flags of the online loop."""

from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.pipeline.arguments import OnlineArguments


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounds": 0},
        {"validation": 1.1},
        {"total_labels": 10, "initial_labels": 20},
        {"on_alarm": "ring"},
        {"poll_seconds": 0},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        OnlineArguments(**wrong)


def test_the_plan_cuts_the_updates_evenly() -> None:
    plan = OnlineArguments(rounds=3, initial_labels=400, total_labels=1200).plan(640, 64)
    assert plan.stops == [3, 7, 10]
    assert plan.wanted[0] == 400 and plan.wanted[-1] == 1200
    with pytest.raises(InputError, match="rounds is 3, but must be at most 2"):
        OnlineArguments(rounds=3).plan(100, 64)
