"""How completions come about: the flags have TRL's names and refuse what cannot be sampled by."""

import pytest

from toolkit.arguments.sampling import SamplingArguments
from toolkit.errors import InputError


def test_sampling_arguments_check_their_ranges() -> None:
    with pytest.raises(InputError, match="temperature is 0"):
        SamplingArguments(temperature=0)
