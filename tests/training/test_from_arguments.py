"""What flags say of the sampling becomes token ids."""

import pytest

from toolkit.arguments.lora import LoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import PromptArguments
from toolkit.arguments.sampling import SamplingArguments
from toolkit.errors import InputError
from toolkit.models.loading import load_tokenizer
from toolkit.training.chosen import passes_of
from toolkit.training.from_arguments import memory_planner, rule_of
from toolkit.training.ppo.config import PPOConfig


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


def test_a_run_without_a_value_is_planned_without_one(demo_model: str) -> None:
    def planned(**flags: str) -> int:
        config = PPOConfig(use_cpu=True, per_device_train_batch_size=8, **flags)
        model = ModelArguments(model_name_or_path=demo_model, precision="fp32")
        plan = memory_planner(model, LoraArguments(), PromptArguments(), config, 0, 20, "cpu")
        return plan(passes_of(config, model)).peak

    without, trunk = planned(algorithm="group_relative"), planned(value="trunk")
    assert without < trunk < planned(value="adapter")
