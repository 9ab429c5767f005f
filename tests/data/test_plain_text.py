"""Rows of text: refused if they are none, cut, and ended by one rule."""

import json
from pathlib import Path

import pytest

from toolkit.data.plain_text import learned_ids, read_texts, text_rows
from toolkit.errors import InputError
from toolkit.models.loading import load_tokenizer


def written(folder: Path, *rows: dict) -> str:
    file = folder / "text.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_texts_are_read_in_order_and_every_row_without_text_is_told(tmp_path: Path) -> None:
    file = written(tmp_path, {"text": "One."}, {"text": "Two."})
    assert list(read_texts(file, "--text")) == ["One.", "Two."]
    file = written(tmp_path, {"text": "One."}, {"text": " "}, {"prompt": "Three."})
    with pytest.raises(InputError) as caught:
        list(read_texts(file, "--text"))
    told = " ".join([str(caught.value), *caught.value.details])
    assert "text.jsonl:2" in told and "text.jsonl:3" in told


def test_a_text_ends_by_one_rule_whatever_it_contains(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    plain = learned_ids(tokenizer, "We went home.")
    end = tokenizer.eos_token
    assert learned_ids(tokenizer, f"We went home.{end}") == plain
    assert learned_ids(tokenizer, "We went home.", 7) == [*plain, 7]


def test_long_texts_are_cut_and_those_of_one_token_left_out(
    demo_model: str, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(demo_model)
    (one,) = (t for t in ["."] if len(learned_ids(tokenizer, t)) == 1)
    long = "We went to the market and then we went home."
    found = text_rows(written(tmp_path, {"text": long}, {"text": one}), tokenizer, 4, "--text")
    assert found.rows == [learned_ids(tokenizer, long)[:4]] and (found.cut, found.short) == (1, 1)
    with pytest.raises(InputError, match="--text: .*no text has two tokens or more"):
        text_rows(written(tmp_path, {"text": one}), tokenizer, 4, "--text")
