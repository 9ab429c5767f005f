"""The prompts' flags: defaults that are there, held-out ones apart from those trained on."""

import pytest

from toolkit.arguments.prompts import (
    DEMO_PROMPTS,
    HELD_OUT,
    LaterPromptArguments,
    PromptArguments,
    PromptLengthArguments,
    prompts_help,
)
from toolkit.data.files import read_jsonl
from toolkit.errors import InputError


def test_no_held_out_prompt_of_the_demo_is_one_that_is_trained_on(
    root: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(root))
    trained, held_out = (
        [row["prompt"] for _, row in read_jsonl(file)] for file in (DEMO_PROMPTS, HELD_OUT)
    )
    assert (len(trained), len(held_out)) == (2000, 600)
    assert not set(trained) & set(held_out)


def test_each_recipes_help_names_its_own_demo_prompts() -> None:
    assert prompts_help(HELD_OUT).endswith("embedded model is demo:prompts.heldout.jsonl.")
    assert prompts_help(DEMO_PROMPTS).endswith("embedded model is demo:prompts.jsonl.")


@pytest.mark.parametrize("name", ["max_prompt_length", "prompt_tokens"])
def test_a_prompt_has_a_token_or_more(name: str) -> None:
    assert getattr(PromptLengthArguments(**{name: 1}), name) == 1
    with pytest.raises(InputError, match=f"{name} is 0, but must be at least 1"):
        PromptLengthArguments(**{name: 0})


def test_none_are_passed_over_or_more_but_never_fewer() -> None:
    assert LaterPromptArguments(skip=0).skip == 0
    with pytest.raises(InputError, match="skip is -1"):
        LaterPromptArguments(skip=-1)
    with pytest.raises(InputError, match="eval_skip is -1"):
        PromptArguments(eval_skip=-1)


def test_a_policy_that_starts_from_an_adapter_is_held_near_it_unless_told_otherwise() -> None:
    assert PromptArguments().reference == "policy_adapter"
    with pytest.raises(InputError, match="must be one of policy_adapter, base"):
        PromptArguments(reference="none")  # type: ignore[arg-type]
