"""What flags name of a model is found, and refused where it does not fit."""

from pathlib import Path

import pytest

from tests.models.conftest import saved
from toolkit.arguments.lora import LoraArguments, StartedLoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import PromptArguments
from toolkit.errors import InputError
from toolkit.models.from_arguments import (
    check_length,
    check_lora_for_trl,
    check_reward_start,
    longest_text,
    lora_of,
    prompts_or_demo,
    reference_role,
    tokenizer_of,
)

CONTEXT = 256  # max_position_embeddings of the embedded model


def test_prompts_that_are_given_go_with_any_model_and_the_embedded_one_has_its_own(
    demo_model: str, tmp_path: Path
) -> None:
    given = "data/prompts.jsonl"
    assert prompts_or_demo(ModelArguments("org/other"), given) == given
    for name in (demo_model, "data/model", "./data/model/"):
        assert prompts_or_demo(ModelArguments(name), None) == "data/prompts.jsonl"
    with pytest.raises(InputError, match="prompts: none were given, and .* org/other continues"):
        prompts_or_demo(ModelArguments("org/other"), None)


def test_the_longest_text_is_the_shorter_of_limit_and_context(demo_model: str) -> None:
    args = ModelArguments(demo_model)
    assert [longest_text(args, n) for n in (None, 64, 10_000)] == [CONTEXT, 64, CONTEXT]


def test_a_prompt_whose_completion_would_not_fit_is_refused(demo_model: str) -> None:
    args = ModelArguments(demo_model)
    check_length(args, [[1], [1] * 200], CONTEXT - 200)
    with pytest.raises(InputError, match=str(CONTEXT)):
        check_length(args, [[1], [1] * 200], CONTEXT - 199)


def test_trl_trains_no_lora_on_the_output_head() -> None:
    head = LoraArguments(lora_target_modules="q_proj, model.lm_head")
    with pytest.raises(InputError, match="TRL's trainers refuse LoRA on the output head"):
        check_lora_for_trl(head)
    check_lora_for_trl(head, head=False)
    check_lora_for_trl(LoraArguments())


def test_lora_is_as_the_flags_say() -> None:
    made = lora_of(LoraArguments(lora_r=3, lora_alpha=7, lora_target_modules="q_proj"), "SEQ_CLS")
    assert (made.r, made.lora_alpha, made.target_modules) == (3, 7, {"q_proj"})


def test_the_reference_is_an_adapter_only_where_the_policy_starts_from_one() -> None:
    assert reference_role(PromptArguments()) == "base"
    assert reference_role(PromptArguments(policy_adapter="a")) == "policy_adapter"
    assert reference_role(PromptArguments(policy_adapter="a", reference="base")) == "base"


def test_the_tokenizer_beside_an_adapter_is_taken_and_said(
    demo_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ModelArguments(demo_model)
    assert capsys.readouterr().out == ""
    tokenizer = tokenizer_of(args, str(tmp_path))  # an adapter without one
    assert capsys.readouterr().out == ""
    tokenizer.save_pretrained(tmp_path)
    tokenizer_of(args, str(tmp_path))
    assert f"tokenizer: from {tmp_path}" in capsys.readouterr().out


def test_a_reward_model_takes_rank_scale_and_layers_from_its_start(
    demo_model: str, tmp_path: Path
) -> None:
    folder = str(saved(demo_model, tmp_path / "adapter"))
    model = ModelArguments(demo_model)
    lora = StartedLoraArguments(start_adapter=folder, lora_target_modules="v_proj, q_proj")
    check_reward_start(lora, model)
    assert (lora.lora_r, lora.lora_alpha, lora.lora_target_modules) == (4, 8, "q_proj,v_proj")
    check_reward_start(StartedLoraArguments(), model)  # nothing to start from

    for name, value in {"lora_r": 16, "lora_alpha": 32, "lora_target_modules": "q_proj"}.items():
        with pytest.raises(
            InputError, match=f"{name} is {value}, but .*leave {name} out"
        ) as caught:
            check_reward_start(StartedLoraArguments(start_adapter=folder, **{name: value}), model)
        assert caught.value.field == name
