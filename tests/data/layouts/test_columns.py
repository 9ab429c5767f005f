"""A column for each completion, however its header is written, and OpenAI's token ids."""

from pathlib import Path
from typing import Any

import pytest

from tests.data.layouts.one_row import one, picked
from toolkit.data.convert import convert, converted, load_decoder
from toolkit.data.layouts.named import NamedColumns
from toolkit.data.layouts.reader import LayoutReader
from toolkit.data.layouts.registry import detect
from toolkit.data.tables import read_table
from toolkit.errors import InputError


def shared(root: Path, *parts: str) -> Path:
    path = root.parent.joinpath("shared", "data", *parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)}, which is not part of this project")
    return path


def test_one_column_a_completion_as_csv_has_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion1,completion2,best,labeler\nHi., a, b,2,ann\n")
    (made,) = convert(read_table(path, "--input"))
    assert made == {
        "prompt": "Hi.",
        "completions": [" a", " b"],
        "best": 1,
        "labeler": "ann",
        "source": "a.csv:2",
    }
    path.write_text("prompt,chosen,rejected\nHi., a, b\n")
    (made,) = convert(read_table(path, "--input"))
    assert picked(made) == " a"


def test_openai_label_files_are_token_ids(tmp_path: Path, demo_model: str, root: Path) -> None:
    from toolkit.models.loading import load_tokenizer

    tokenizer = load_tokenizer(demo_model)
    pad = [50259] * 3
    row = {"query": tokenizer("We went.")["input_ids"] + pad, "best": 3} | {
        f"sample{k}": tokenizer(f" It was {w}.")["input_ids"] + pad
        for k, w in enumerate(["bad", "dull", "plain", "great"])
    }
    made = one(row, decode=load_decoder(demo_model))
    assert made["prompt"] == "We went." and picked(made) == " It was great."
    with pytest.raises(InputError, match="token ids .give their --tokenizer"):
        one(row)
    with pytest.raises(InputError, match=r"f:1: token id 99999 is too large: the tokenizer has"):
        one(row | {"sample0": [99999]}, decode=load_decoder(demo_model))


def test_real_best_of_four_keeps_its_ratings(root: Path) -> None:
    path = shared(root, "human_best_of_4", "movie_sentiment_best_of_4.dev.jsonl")
    made = list(convert(read_table(path, "--input")))
    assert len(made) == 1444
    for row in made:
        assert row["scores"][row["best"]] == max(row["scores"])
        assert row["margin"] >= 0 and len(row["ratings"]) == 4


def test_a_table_whose_picks_cannot_be_read_is_refused_once() -> None:
    columns = {"Prompt": "Hi.", "Answer A": "a", "Answer B": "b"}
    with pytest.raises(
        InputError, match="f:1: no column is called best; there are Prompt, Answer A"
    ):
        detect(columns | {"Winner": "A"}, "f:1")
    with pytest.raises(InputError, match="f:1: best is the number 2, .*pass --first 1"):
        detect(columns | {"best": "2"}, "f:1")
    assert detect(columns | {"best": "2"}, "f:1", first=1) == "columns"
    assert detect(columns | {"best": "B"}, "f:1") == "columns"


def test_columns_keep_their_ranks_and_refuse_one_number_twice() -> None:
    row = {"query": "Hi.", "sample0": "a", "sample1": "b", "sample2": "c", "best": 1}
    assert one(row | {"rank": [5, 0, 4]})["ranking"] == [1, 2, 0]
    assert one(row | {"worst": "2"})["worst"] == one(row | {"worst": "sample2"})["worst"] == 2
    with pytest.raises(InputError, match="two columns have the same number: sample0, .*answer0"):
        one(row | {"answer0": "x"})


def named(*headers: str, **kwargs: Any) -> dict:
    """A table of two answers under these headers; the second is "b"."""
    columns = NamedColumns({"completions": list(headers)})
    return {"columns": columns, **kwargs}


def table(headers: tuple[str, str], best: object) -> dict:
    return {"prompt": "Hi.", headers[0]: "a", headers[1]: "b", "best": best}


@pytest.mark.parametrize(
    ("headers", "best", "first", "text"),
    [
        (("Answer A", "Answer B"), "B", None, "b"),
        (("Answer B", "Answer A"), "B", None, "a"),  # the letter in the header, not the place
        (("Antwort B", "Antwort A"), "B", None, "a"),
        (("Left", "Right"), "B", None, "b"),  # headers without letters: A is the first
        (("Left", "Right"), "right ", None, "b"),
        (("Left", "Right"), "b", None, "b"),  # the letter and the text agree
        (("Left", "Right"), 2, 1, "b"),
        (("Left", "Right"), "0", 0, "a"),
        (("Antwort 1", "Antwort 2"), "1", None, "a"),
        (("Antwort 2", "Antwort 1"), 1, None, "b"),
    ],
)
def test_a_pick_names_a_column_by_number_letter_header_or_text(
    headers: tuple[str, str], best: object, first: int | None, text: str
) -> None:
    assert picked(one(table(headers, best), **named(*headers, first=first))) == text


@pytest.mark.parametrize(
    "headers",
    [
        ("GPT-3", "GPT-4"),
        ("Left", "Right"),
        ("A 1", "B 2"),
        ("Base", "Answer 1"),
        ("Answer 1", "A"),
    ],
)
def test_a_number_needs_first_if_the_headers_do_not_count(headers: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="^f:1: best is the number 1, .*pass --first 1"):
        one(table(headers, "1"), **named(*headers))


def test_a_pick_that_may_mean_two_completions_is_refused_by_name() -> None:
    headers = ("Left", "Right")
    row = {"prompt": "Hi.", "Left": "B", "Right": "A", "best": "A"}
    with pytest.raises(InputError, match="'A' is the letter of one completion and the text of ano"):
        one(row, **named(*headers))
    row = {"prompt": "Hi.", "completion0": "1", "completion1": "0", "best": "1"}
    with pytest.raises(InputError, match="'1' is the number of one completion and the text of ano"):
        one(row)
    assert one(row | {"best": 1})["best"] == 1  # a number in JSON is no text
    row = {"prompt": "Hi.", "Left": "same", "Right": "same", "Third": "c", "best": "same"}
    with pytest.raises(InputError, match="the text of one completion and the text of another"):
        one(row, **named("Left", "Right", "Third"))


def test_letters_that_do_not_begin_with_a_name_their_own_columns() -> None:
    row = {"prompt": "Hi.", "answer_b": "b", "answer_c": "c", "best": "B"}
    assert picked(one(row)) == "b"
    with pytest.raises(InputError, match="best: 'A', but must be"):
        one(row | {"best": "A"})


def test_how_picks_were_read_is_counted() -> None:
    reader = LayoutReader(columns=NamedColumns({"completions": ["Left", "Right"]}))
    bests = ["Left", "B", "a", "first answer"]
    rows = [(f"f:{n}", table(("Left", "Right"), best)) for n, best in enumerate(bests)]
    rows[3][1]["Left"] = "first answer"
    assert [row["best"] for _, row in converted(rows, reader)] == [0, 1, 0, 0]
    assert reader.labels == {"column": 1, "letter": 2, "text": 1}
