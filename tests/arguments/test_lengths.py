"""The flags on length: they change nothing unless they are given, and a price may be negative."""

import math

import pytest

from toolkit.arguments.lengths import LengthArguments
from toolkit.errors import InputError
from toolkit.training.ppo.config import PPOConfig


def test_runs_from_before_are_resumed_since_only_a_given_price_is_noted() -> None:
    names = {"length_penalty", "regress_length", "reference_samples", "disagreement_alarm"}
    assert names.isdisjoint(PPOConfig(use_cpu=True, disagreement_alarm=3.0).identity())
    noted = PPOConfig(use_cpu=True, length_penalty=-0.1, regress_length=True).identity()
    assert (noted["length_penalty"], noted["regress_length"]) == (-0.1, True)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_price_is_a_number(wrong: float) -> None:
    with pytest.raises(InputError, match="length_penalty is"):
        LengthArguments(length_penalty=wrong)
