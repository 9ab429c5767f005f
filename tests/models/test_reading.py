"""How a reward model reads a text: what stands behind a completion, and where pooling looks."""

from pathlib import Path

import pytest

from toolkit.data.files import write_json
from toolkit.models.loading import load_tokenizer
from toolkit.models.reading import Reading, reading_of, said
from toolkit.models.toolkit_json import FACTS

END = 1  # of the embedded model


def test_one_end_token_closes_each_text_and_nothing_is_read_without_one(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    pieces = [[5, 6], [7]], [[8], [9, 10]]
    assert Reading().rows(tokenizer, *pieces) == [[5, 6, 8], [7, 9, 10]]
    assert Reading(ends_with=END).rows(tokenizer, *pieces) == [[5, 6, 8, END], [7, 9, 10, END]]


def test_a_row_ends_before_the_padding_that_pooling_passes_over_but_is_never_empty(
    demo_model: str,
) -> None:
    tokenizer = load_tokenizer(demo_model)
    reading = Reading(padding=9)
    rows = reading.rows(tokenizer, [[5, 9], [9]], [[6, 9, 9], [9, 9]])
    assert rows == [[5, 9, 6], [9]]  # within a row it is a token like others


def test_texts_and_their_token_ids_are_read_alike(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    reading = Reading(ends_with=END)
    prompt, completion = "We went to the market.", " It rained."
    ids = [tokenizer(text)["input_ids"] for text in (prompt, completion)]
    assert reading.text_rows(tokenizer, [prompt], [completion]) == reading.rows(
        tokenizer, ids[:1], ids[1:]
    )


@pytest.mark.parametrize(
    ("flag", "ends_with", "whole"),
    [("auto", END, True), ("none", None, False), ("eos", END, False)],
)
def test_a_model_without_facts_is_read_as_trl_trained_it_unless_a_flag_says_otherwise(
    flag: str, ends_with: int | None, whole: bool, demo_model: str, tmp_path: Path
) -> None:
    reading = reading_of(tmp_path, load_tokenizer(demo_model), flag)
    assert (reading.ends_with, reading.whole) == (ends_with, whole)


def test_a_model_with_facts_ends_as_they_say(demo_model: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(demo_model)
    write_json(tmp_path / FACTS, {"ends_with": None, "trained_on": "text"})
    reading = reading_of(tmp_path, tokenizer)
    assert reading == Reading(None, whole=False, trained_on="text")
    assert said(reading, tokenizer, "rm") == "rm: texts are scored with nothing after them"
