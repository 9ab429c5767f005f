"""The names that all recipes share are flags, each in one group."""

import dataclasses

from toolkit.arguments.chat import ChatArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.sampling import SamplingArguments
from toolkit.arguments.shared import CHAT, MODEL, SAMPLING, USUAL


def test_each_shared_name_is_a_flag_of_the_class_that_it_is_listed_for() -> None:
    for names, owner in ((MODEL, ModelArguments), (CHAT, ChatArguments), (SAMPLING, None)):
        fields = {f.name for f in dataclasses.fields(owner or SamplingArguments)}
        assert set(names) <= fields
    everything = (*MODEL, *CHAT, *SAMPLING, *USUAL)
    assert len(everything) == len(set(everything))
