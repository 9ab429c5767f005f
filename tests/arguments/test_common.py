"""The flags of nearly every recipe: a seed that every library takes, and nothing lost unasked."""

import numpy as np
import pytest

from toolkit.arguments.common import InvalidRowsArguments, OverwriteArguments, SeedArguments
from toolkit.errors import InputError


def test_the_largest_seed_is_the_largest_that_numpy_takes() -> None:
    np.random.RandomState(SeedArguments(seed=2**32 - 1).seed)
    with pytest.raises(ValueError, match="Seed must be between"):
        np.random.RandomState(2**32)
    with pytest.raises(InputError, match="seed is 4294967296, but must be at most 4294967295"):
        SeedArguments(seed=2**32)


def test_nothing_is_replaced_and_no_row_is_passed_over_unasked() -> None:
    assert not OverwriteArguments().overwrite and not InvalidRowsArguments().skip_invalid
