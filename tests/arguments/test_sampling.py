"""How completions come about: the flags have TRL's names and refuse what cannot be sampled by."""

import dataclasses

import pytest

from toolkit.arguments.sampling import CompletionArguments, SamplingArguments
from toolkit.errors import InputError
from toolkit.trl_compat import PPOConfig


def test_sampling_arguments_check_their_ranges() -> None:
    with pytest.raises(InputError, match="temperature is 0"):
        SamplingArguments(temperature=0)
    with pytest.raises(InputError, match="response_length is 0"):
        SamplingArguments(response_length=0)
    assert SamplingArguments(truncate_after=0).truncate_after == 0


def test_the_flags_that_trl_had_have_its_names() -> None:
    ours = {f.name for f in dataclasses.fields(CompletionArguments)}
    theirs = {f.name for f in dataclasses.fields(PPOConfig)}
    assert {"response_length", "temperature", "stop_token"} <= ours & theirs
