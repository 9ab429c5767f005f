"""Labels are due when the schedule says, and whole."""

import os
import sys
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.pipeline.schedule import linear, quadratic, schedule_of, wanted_labels


@pytest.mark.parametrize(
    ("share", "labels"), [(0, 7500), (0.25, 30468.75), (0.5, 46875), (0.75, 56718.75), (1, 60000)]
)
def test_the_quadratic_schedule_is_the_specs(share: float, labels: float) -> None:
    assert quadratic(share * 2e6, 2e6, 7500, 60000) == pytest.approx(labels, abs=1e-6)


def test_each_schedule_starts_and_ends_where_it_says() -> None:
    assert [linear(n, 100, 10, 50) for n in (0, 25, 100)] == [10, 20, 50]
    assert schedule_of("all_at_once")(0, 100, 10, 50) == 50
    for name in ("quadratic", "linear", "all_at_once"):
        assert schedule_of(name)(100, 100, 10, 50) == 50


def test_labels_are_whole_and_a_schedule_of_ones_own_is_checked() -> None:
    assert wanted_labels(quadratic, [0, 1, 3], 10, 20) == [10, 16, 20]  # 15.56 is not enough
    assert schedule_of("math:fsum") is not None
    bads: list[Any] = [lambda *a: float("nan"), lambda *a: None, lambda n, *a: 10 - n, lambda *a: 0]
    for bad in bads:
        with pytest.raises(InputError, match="schedule"):
            wanted_labels(bad, [0, 5], 1, 2)
    for name in ("cubic", "math:no", "no_module:f"):
        with pytest.raises(InputError, match="schedule") as caught:
            schedule_of(name)
        assert "reward_function" not in str(caught.value)


def test_a_schedule_is_a_guest() -> None:
    def leaves(*_: float) -> float:
        sys.exit(0)

    def wanders(n: float, *_: float) -> float:
        os.chdir("/")
        return n + 1

    with pytest.raises(InputError, match=r"schedule: .*it called sys.exit\(0\)"):
        wanted_labels(leaves, [0, 5], 1, 2)
    here = os.getcwd()
    assert wanted_labels(wanders, [0, 5], 1, 2) == [1, 6]
    assert os.getcwd() == here
