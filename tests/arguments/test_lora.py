"""The adapter's flags have TRL's names, and an adapter on no layer is refused."""

import dataclasses

import pytest
from trl import ModelConfig

from toolkit.arguments.lora import (
    LoraArguments,
    PolicyArguments,
    StartArguments,
    StartedLoraArguments,
)
from toolkit.errors import InputError


def names(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


def test_the_flags_are_those_of_trls_model_config() -> None:
    assert names(LoraArguments) == {"lora_r", "lora_alpha", "lora_target_modules"}
    assert names(LoraArguments) <= names(ModelConfig)


@pytest.mark.parametrize("given", ["", " ", ", ,"])
def test_layers_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(InputError, match="lora_target_modules is empty") as caught:
        LoraArguments(lora_target_modules=given)
    assert caught.value.field == "lora_target_modules"


def test_a_rank_of_0_is_refused_and_a_rank_of_1_is_taken() -> None:
    assert LoraArguments(lora_r=1).lora_r == 1
    with pytest.raises(InputError, match="lora_r is 0, but must be at least 1"):
        LoraArguments(lora_r=0)


def test_a_policy_starts_from_the_base_and_texts_end_as_the_model_says_by_default() -> None:
    assert PolicyArguments().policy_adapter is None and StartArguments().stop_token is None


def test_an_adapter_that_may_be_a_copy_knows_which_of_its_flags_were_given() -> None:
    plain = StartedLoraArguments()
    assert (plain.lora_r, plain.lora_alpha, plain.lora_target_modules) == (16, 32, "all-linear")
    assert plain.given_defaults == set()
    assert StartedLoraArguments(lora_r=16, lora_alpha=8).given_defaults == {"lora_r", "lora_alpha"}
    with pytest.raises(InputError, match="lora_r is 0, but must be at least 1"):
        StartedLoraArguments(lora_r=0)
