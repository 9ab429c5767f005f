"""Completions take the prompt's form, and text that is shown is harmless."""

import doctest

import pytest

from toolkit.data import text
from toolkit.data.text import answer_text, answers, printable, prompt_text

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]


def test_the_docstrings_show_what_comes_out() -> None:
    result = doctest.testmod(text)
    assert result.attempted >= 2 and not result.failed


def test_an_answers_text_is_the_completion_whatever_form_the_prompt_gave_it() -> None:
    completions = [" a", "b"]
    made = answers(["text", MESSAGES], completions)
    assert [type(one) for one in made] == [str, list]
    assert [answer_text(one) for one in made] == completions


def test_a_prompt_for_every_completion_or_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        answers(["one", "two"], ["a"])


def test_people_read_messages_with_their_roles_and_text_as_it_is() -> None:
    assert prompt_text(MESSAGES) == "system: Be brief.\n\nuser: Hi."
    assert prompt_text("user: Hi.\x1b") == "user: Hi.\x1b"


def test_what_is_written_out_can_be_read_back_and_lines_stay_lines() -> None:
    hidden = "a\x00\x1b[2J\u202eb\u200b\ud800"
    shown = printable(hidden)
    assert shown == "a\\x00\\x1b[2J\\u202eb\\u200b\\ud800"
    assert shown.encode("ascii").decode("unicode_escape") == hidden
    assert printable("für\tdich\n你好 🙂") == "für\tdich\n你好 🙂"
