"""A label names one completion, however it is written and wherever its file begins to count."""

from typing import Any

import numpy as np
import pytest

from toolkit.data.convert import convert
from toolkit.data.numbering import Numbering, as_index, file_of, with_whole_numbers
from toolkit.data.problems import problems_of
from toolkit.errors import InputError


def one(row: dict, **kwargs: Any) -> dict:
    (made,) = convert([("f:1", row)], **kwargs)
    assert problems_of(made, "best") == []
    return made


def picked(row: dict) -> str:
    return row["completions"][row["best"]]


def rows_of(*rows: dict, **kwargs: Any) -> list[dict]:
    return list(convert([(f"f:{n}", row) for n, row in enumerate(rows, start=1)], **kwargs))


COLUMNS = {"prompt": "Hi.", "completion1": "a", "completion2": "b", "completion3": "c"}


NATIVE = {"prompt": "Hi.", "completions": ["a", "b", "c"]}


@pytest.mark.parametrize("best", [2, 2.0, "2", "2.0", np.int64(2), np.float32(2), "B", "b",
                                  "completion2", " Completion2 "])  # fmt: skip
def test_the_second_column_is_named_in_many_ways(best: Any) -> None:
    assert one(COLUMNS | {"best": best})["best"] == 1
    if not str(best).strip().lower().startswith("c"):
        number = best if str(best).lower() == "b" else type(best)(1)
        assert one(NATIVE | {"best": number})["best"] == 1


@pytest.mark.parametrize("best", [True, 1.5, "best", "D", "completion4", -1, [2], "", None,
                                  float("nan")])  # fmt: skip
def test_a_label_that_names_no_completion_is_refused_with_its_place(best: Any) -> None:
    for row in (COLUMNS, NATIVE):
        with pytest.raises(InputError, match="^f:1: best"):
            one(row | {"best": best})


def test_a_letter_that_is_also_another_completions_text_is_refused() -> None:
    row = {"prompt": "Which?", "completions": ["B", "A"], "best": "A"}
    with pytest.raises(
        InputError, match="'A' is the letter of one completion and the text of another"
    ):
        one(row)
    assert one(row | {"completions": ["A", "B"]})["best"] == 0


def test_columns_with_letters_are_read_and_numbers_need_to_say_where_they_begin() -> None:
    row = {"prompt": "Hi.", "Response A": "a", "Response B": "b"}
    assert picked(one(row | {"best": "B"})) == "b"
    assert picked(one(row | {"best": "response b"})) == "b"
    with pytest.raises(
        InputError, match="f:1: best is the number 1, .*pass --first 1 if .*, or --first 0"
    ):
        one(row | {"best": 1})
    assert picked(one(row | {"best": 1}, first=1)) == "a"
    assert picked(one(row | {"best": 1}, first=0)) == "b"


def test_first_says_from_where_best_and_ranking_count() -> None:
    for row in (NATIVE, COLUMNS):
        made = one(row | {"best": 3, "ranking": [3, 1, 2]}, first=1)
        assert (made["best"], made["ranking"]) == (2, [2, 0, 1])
        made = one(row | {"best": 0, "ranking": [0, 2, 1]}, first=0)
        assert (made["best"], made["ranking"]) == (0, [0, 2, 1])
    assert one(COLUMNS | {"best": 1, "ranking": "1>3>2"})["ranking"] == [0, 2, 1]
    with pytest.raises(InputError, match=r"f:1: best: 0, but the completions are \[1, 2, 3\]"):
        one(NATIVE | {"best": 0}, first=1)


@pytest.mark.parametrize(
    ("row", "bests", "cure"),
    [(NATIVE, [1, 2, 3], 1), (NATIVE, [1.0, 3.0], 1), (COLUMNS, [0, 1, 2], 0),
     ({"query": "q", "sample0": "a", "sample1": "b"}, [1, 2, 2], 1)],
)  # fmt: skip
def test_labels_that_count_from_another_number_are_never_skipped_to_shifted_ones(
    row: dict, bests: list, cure: int
) -> None:
    rows = [row | {"prompt": f"p{i}", "best": best} for i, best in enumerate(bests)]
    for skip in (False, True):
        with pytest.raises(InputError, match=f"--first {cure}"):
            rows_of(*rows, skip_invalid=skip)
    low = min(bests)
    assert [r["best"] for r in rows_of(*rows, first=cure)] == [best - low for best in bests]


def test_a_whole_number_is_one_however_a_table_holds_it_and_a_truth_value_is_none() -> None:
    for value in (1, 1.0, "1", " +1 ", "1.0", "1.", np.int8(1), np.float16(1)):
        assert as_index(value) == 1 and type(as_index(value)) is int, value
    for value in (True, np.bool_(True), 1.5, "1.5", "one", "", None, [1], float("inf")):
        assert as_index(value) is None, value


def test_a_row_without_anything_to_mend_is_the_same_row() -> None:
    row = {"best": 1, "ranking": [1, 0], "prompt": "1"}
    assert with_whole_numbers(row) is row
    assert with_whole_numbers(row | {"best": "1", "ranking": [1.0, "x"]}) == row | {
        "ranking": [1, "x"]
    }


@pytest.mark.parametrize(
    ("labels", "first", "shifted"),
    [
        ([0, 1, 2], 0, False),
        ([1, 2, 3], 0, True),
        ([0, 3], 0, False),  # as many of the first as of one too high
        ([1, 2, 3], 1, False),
        ([0, 1, 2], 1, True),
        ([0] * 4 + [3] + [1] * 15, 0, False),  # of twenty rows, four of the first to one too high
        ([0] * 3 + [3] + [1] * 16, 0, True),
    ],
)
def test_labels_one_too_high_outweigh_those_of_the_first(
    labels: list[int], first: int, shifted: bool
) -> None:
    """Of three completions; in a file of twenty rows or more, one counts as much as four."""
    numbering = Numbering()
    for line, label in enumerate(labels):
        numbering.see(f"f.jsonl:{line}", [label], first, 3)
    assert (numbering.shifted() is not None) == shifted


def test_a_file_of_twenty_rows_in_which_nobody_picked_the_first_gets_a_note() -> None:
    for count, noted in ((19, False), (20, True)):
        numbering = Numbering()
        for line in range(count):
            numbering.see(f"f.jsonl:{line}", [1], 0, 3)
        assert (numbering.note() is not None) == noted and numbering.shifted() is None
    assert file_of("a:b.jsonl:7") == "a:b.jsonl" and file_of("name") == "name"
