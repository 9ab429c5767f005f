"""What is summed up, and texts that nobody samples."""

import pytest

from toolkit.data.prompts import Prompts
from toolkit.errors import InputError
from toolkit.evaluation.source_text import (
    check_fits,
    column_texts,
    continues,
    lead,
    sentences_of,
    sources_of,
)
from toolkit.models.loading import load_tokenizer

POST = 'Mr. T. Fox came at 3.30 a.m. from the U.S. today. Was he late?! "Yes." He said\nso it is'


def asked(*given: object, **columns: list[object]) -> Prompts:
    prompts = Prompts([[5]] * len(given), dict(columns))
    prompts.given = dict(enumerate(given))  # type: ignore[arg-type]
    return prompts


def test_sentences_end_at_marks_and_lines_but_not_after_titles_and_initials() -> None:
    assert sentences_of(POST) == [
        "Mr. T. Fox came at 3.30 a.m. from the U.S. today.",
        "Was he late?!",
        '"Yes."',
        "He said",
        "so it is",
    ]
    assert sentences_of(" \n ") == [] and sentences_of("It was I. He left.")[0] == "It was I."


def test_the_lead_is_the_first_sentences_or_all() -> None:
    assert lead("One. Two!\nThree?", 2) == "One. Two!"
    assert lead("One. Two!\nThree?", 9) == "One. Two! Three?"


def test_the_text_is_the_column_or_what_the_form_is_put_around(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    form = "Article:\\n\\n{prompt}\\n\\nTL;DR:"
    prompts = asked("Article:\n\nHe came.\n\nTL;DR:", post=[" The post. "])
    assert sources_of(prompts, tokenizer) == ["Article:\n\nHe came.\n\nTL;DR:"]
    assert sources_of(prompts, tokenizer, form=form) == ["He came."]
    assert sources_of(prompts, tokenizer, column="post", form=form) == ["The post."]
    message = [
        {"role": "system", "content": "x"},
        {"role": "user", "content": "He came.\n\nSum up."},
    ]
    found = sources_of(asked(message), tokenizer, form="{prompt}\\n\\nSum up.\\n")
    assert found == ["He came."]  # a message has no line end at its sides


def test_a_prompt_that_is_not_in_the_form_is_refused(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    for text in ("He came.", "TL;DR", ""):
        with pytest.raises(InputError, match=r"is not in the form '\{prompt\} TL;DR:'"):
            sources_of(asked(text), tokenizer, form="{prompt} TL;DR:")
    prompts = asked("He came. TL;DR:", "He came.")
    prompts.places[1] = "posts.jsonl:7"
    with pytest.raises(InputError, match="prompt_form: posts.jsonl:7: the prompt 'He came.' is"):
        sources_of(prompts, tokenizer, form="{prompt} TL;DR:")


def test_a_column_has_a_text_in_each_row_or_is_refused() -> None:
    prompts = asked("p", "q", given_completion=[" one ", [{"role": "assistant", "content": "two"}]])
    assert column_texts(prompts, "completion", "reference_column") == ["one", "two"]
    with pytest.raises(InputError, match="no column 'summary' .they have given_completion."):
        column_texts(prompts, "summary", "reference_column")
    for missing in (None, " ", 3, [], [{"role": "assistant"}]):
        with pytest.raises(InputError, match="column: the prompt at place 2: summary is .*, but"):
            column_texts(asked("p", "q", summary=["one", missing]), "summary", "reference_column")
    prompts = asked("p", "q", summary=["one", None])
    prompts.places = {0: "posts.jsonl:3", 1: "posts.jsonl:7"}
    with pytest.raises(InputError, match="contenders: posts.jsonl:7: summary is None, but must"):
        column_texts(prompts, "summary", "contenders")


def test_a_text_continues_a_prompt_after_a_blank() -> None:
    assert continues("TL;DR:", "He came.") == " He came."
    assert continues("TL;DR:\n", "He came.") == "He came."


def test_a_text_that_is_too_long_for_the_base_is_refused_by_name(demo_model: str) -> None:
    check_fits("lead-2", demo_model, "main", [[1] * 200], [[1] * 56])  # 256 tokens of context
    with pytest.raises(InputError, match="contenders: lead-2: 257 tokens of prompt and completion"):
        check_fits("lead-2", demo_model, "main", [[1], [1] * 200], [[1], [1] * 57])
