"""The one exception for people's mistakes, and the checks that raise it."""

import math
from dataclasses import dataclass, field

import pytest

from toolkit.errors import (
    BadRows,
    InputError,
    check_choice,
    check_finite,
    check_numbers,
    check_range,
    check_seed,
)


def test_bad_rows_are_counted_and_the_first_twenty_problems_are_shown() -> None:
    bad = BadRows()
    bad.refuse()  # nothing is wrong yet
    for i in range(30):
        bad.add(f"f:{i}: broken")
    with pytest.raises(InputError) as caught:
        bad.refuse(" (mend it)")
    assert str(caught.value) == "f:0: broken; 29 more bad rows (mend it)"
    assert caught.value.details == [f"f:{i}: broken" for i in range(1, 20)]


@pytest.mark.parametrize(
    ("value", "bounds", "said"),
    [(0.5, {"low": 1}, "x is 0.5, but must be at least 1"),
     (3, {"low": 1, "high": 2}, "x is 3, but must be at most 2"),
     (0, {"above": 0}, "x is 0, but must be above 0"),
     (math.nan, {"low": 0}, "x is nan, but must be"), (math.inf, {}, "x is inf, but must be")],
)  # fmt: skip
def test_a_number_out_of_range_is_named_with_its_bounds(
    value: float, bounds: dict[str, float], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_range("x", value, **bounds)
    assert str(caught.value).startswith(said) and caught.value.field == "x"


def test_bounds_are_reached_and_none_passes() -> None:
    check_range("x", 1, low=1, high=1)
    check_range("x", None, low=1)
    check_seed(2**32 - 1)
    check_choice("x", "a", ("a", "b"))
    with pytest.raises(InputError, match="x is 'c', but must be one of a, b"):
        check_choice("x", "c", ("a", "b"))
    for seed in (-1, 2**32):
        with pytest.raises(InputError, match="seed is"):
            check_seed(seed)


@dataclass
class Arguments:
    weights: dict[str, list[float]] = field(default_factory=dict)
    other: object = "inf"


def test_an_infinity_is_found_however_deep_and_words_and_whole_numbers_are_none() -> None:
    check_finite(Arguments({"a": [1.0]}), Arguments(other=10**400))
    with pytest.raises(InputError, match="weights is inf, but must be finite"):
        check_finite(Arguments(), Arguments({"a": [1.0, math.inf]}))
    with pytest.raises(InputError, match="y is nan, but must be finite"):
        check_numbers("y", [(1.0, {"z": math.nan})])
