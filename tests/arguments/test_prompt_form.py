"""A form has a place for the prompt."""

import pytest

from toolkit.arguments.prompt_form import MessageArguments, PromptFormArguments
from toolkit.errors import InputError


@pytest.mark.parametrize("form", ["TL;DR:", "", "{prompt} {prompt}", "{Prompt}"])
def test_a_form_without_one_place_for_the_prompt_is_refused(form: str) -> None:
    with pytest.raises(InputError, match="prompt_form: .* must have {prompt} in it, once"):
        PromptFormArguments(form)


def test_by_default_prompts_stay_what_they_are() -> None:
    assert PromptFormArguments().prompt_form is None and not MessageArguments().as_messages
    assert PromptFormArguments("{prompt}?").prompt_form == "{prompt}?"
