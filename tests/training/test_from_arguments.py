"""What flags say of the sampling becomes token ids."""

import pytest

from toolkit.arguments.sampling import SamplingArguments
from toolkit.errors import InputError
from toolkit.models.loading import load_tokenizer
from toolkit.training.from_arguments import rule_of


def test_the_rule_has_the_flags_numbers_and_the_tokens_ids(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    args = SamplingArguments(
        response_length=9, temperature=0.5, stop_token="eos", truncate_token=".", truncate_after=4
    )
    rule = rule_of(args, tokenizer, penalty=-2.0)
    (stop,) = tokenizer("<|endoftext|>")["input_ids"]
    (period,) = tokenizer(".")["input_ids"]
    assert (rule.response_length, rule.temperature, rule.penalty) == (9, 0.5, -2.0)
    assert (rule.stop_ids, rule.truncate_id, rule.truncate_after) == ((stop,), period, 4)


def test_a_text_that_is_no_token_is_refused_by_its_flag(demo_model: str) -> None:
    with pytest.raises(InputError, match="truncate_token") as caught:
        rule_of(SamplingArguments(truncate_token="no token"), load_tokenizer(demo_model))
    assert caught.value.field == "truncate_token"
