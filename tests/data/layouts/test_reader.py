"""One reader for all: convert, reward, sft, label and prompts read a layout alike."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.layouts.one_row import picked, user
from tests.data.layouts.published import ASK, COMPARED, DEMONSTRATED, MESSAGE
from toolkit.arguments.layouts import LayoutArguments
from toolkit.data.comparisons import open_comparisons, read_rows
from toolkit.data.convert import convert
from toolkit.data.layouts.named import NamedColumns
from toolkit.data.layouts.reader import LayoutReader, prompt_in
from toolkit.errors import InputError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(*rows: dict) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return written


@pytest.mark.parametrize("name", [name for name in COMPARED if name != "native"])
def test_recipes_read_what_convert_makes_of_a_layout(
    write: Write, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(COMPARED[name], COMPARED[name])
    found = open_comparisons(path, "best", "--comparisons")
    assert [row for _, row in found] == list(convert(path))
    assert [row for _, row in found] == list(convert(path))  # and again, as each epoch does
    assert f"read as {name}: 2 comparisons" in capsys.readouterr().out


def test_rows_of_our_own_layout_are_taken_as_they_stand(write: Write) -> None:
    """Completions that repeat the prompt are convert's business, not a recipe's."""
    row = {
        "prompt": "How was the tea?",
        "completions": ["How was the tea? A", "How was the tea? B"],
    }
    path = write(row | {"best": 1.0, "ranking": ["1", 0]})
    assert read_rows(path, "best", "--comparisons") == [row | {"best": 1, "ranking": [1, 0]}]
    assert next(convert(path))["completions"] == [" A", " B"]


@pytest.mark.parametrize("name", COMPARED)
def test_recipes_take_our_own_completions_whatever_else_a_row_has(write: Write, name: str) -> None:
    row = {**COMPARED[name], **COMPARED["native"]}
    assert read_rows(write(row), "best", "--comparisons") == [row]
    assert read_rows(write(row), "completions", "--samples") == [row]


def test_a_best_that_its_rank_contradicts_is_refused_everywhere(write: Write) -> None:
    row = {"prompt": "Hi.", "completions": ["a", "b", "c"], "best": 1}
    said = "rows.jsonl:2: best: 1, but by rank the best is completion 0"
    path = write(row | {"rank": [2, 1, 3]}, row | {"rank": [1, 2, 3]})
    with pytest.raises(InputError, match=said):
        list(convert(path))
    with pytest.raises(InputError, match=said):
        read_rows(path, "best", "--comparisons")

    # Both agree, if labels count from 1; and the rank of an earlier file's answers says nothing.
    path = write(row | {"rank": [1, 2, 3]})
    assert [made["best"] for made in convert(path, first=1)] == [0]
    path = write(row | {"rank": [1, 2, 3], "responses": ["d", "e", "f"]})
    assert [made["completions"][made["best"]] for made in convert(path)] == ["b"]
    assert read_rows(path, "best", "--comparisons")[0]["best"] == 1


def test_columns_and_messages_are_read_alike_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Frage;A;B;Wahl\nTee?;Ja.;Nein.;B\nKuchen?;Ja.;Nein.;Ja.\n")
    words = ["prompt=Frage", "completions=A,B", "best=Wahl"]
    rows = read_rows(path, "best", "--c", layout=LayoutArguments(columns=words, as_messages=True))
    assert [row["prompt"] for row in rows] == [[user("Tee?")], [user("Kuchen?")]]
    assert [picked(row) for row in rows] == ["Nein.", "Ja."]
    columns = NamedColumns(LayoutArguments(columns=words).mapping)
    assert list(convert(path, columns=columns, as_messages=True)) == rows

    # A labeler needs no picks, and is not shown those of others.
    for named in (words, words[:2]):
        asked = read_rows(path, "completions", "--s", layout=LayoutArguments(columns=named))
        assert asked[0]["completions"] == ["Ja.", "Nein."] and "best" not in asked[0]


def test_numbers_of_a_recipes_table_count_from_where_first_says(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,answer a,answer b,best\nTea?,Yes.,No.,1\n")
    with pytest.raises(InputError, match="pass --first 1"):
        read_rows(path, "best", "--comparisons")
    (row,) = read_rows(path, "best", "--comparisons", layout=LayoutArguments(first=1))
    assert picked(row) == "Yes."


def test_what_is_left_out_is_told_and_bad_rows_keep_their_places(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    arena = COMPARED["arena"]
    path = write(arena, arena | {"winner": "tie"}, arena | {"winner": "x"})
    with pytest.raises(InputError, match=r"rows.jsonl:3: winner: 'x'"):
        open_comparisons(path, "best", "--comparisons")
    found = open_comparisons(path, "best", "--comparisons", skip_invalid=True)
    assert len(found) == len(list(found)) == 1
    out = capsys.readouterr().out
    assert "1 left out: a tie" in out and "1 bad rows skipped; the first: " in out


def test_a_first_row_that_is_bad_does_not_hide_the_layout_of_the_others(write: Write) -> None:
    pair, native = COMPARED["pairs"], COMPARED["native"]
    for row in (pair, native):
        path = write({"prompt": ASK}, row, row)
        found = open_comparisons(path, "best", "--comparisons", skip_invalid=True)
        assert (len(found), found.skipped) == (2, 1)
    with pytest.raises(InputError, match="rows.jsonl:1: prompt: missing"):
        read_rows(write({"best": 1}, native), "best", "--comparisons")


def test_rows_with_one_answer_are_no_comparisons_but_demonstrations(write: Write) -> None:
    path = write(DEMONSTRATED["alpaca"])
    with pytest.raises(InputError, match="rows.jsonl:1: the layout alpaca .*--demonstrations"):
        open_comparisons(path, "best", "--comparisons")
    ((_, row),) = open_comparisons(path, "demonstration", "--demonstrations")
    assert (row["prompt"], row["completions"], row["best"]) == (ASK, ["We loved it."], 0)


def test_a_prompt_is_found_in_a_row_of_any_layout_that_has_one() -> None:
    for name in ("shp", "arena", "nectar", "oasst_tree", "sharegpt", "pairs"):
        row = {**COMPARED, **DEMONSTRATED}[name]
        asked = prompt_in(row)
        assert asked in (ASK, [user(ASK)]), name
    assert prompt_in({"words": "a"}) is None and prompt_in({"text": "a"}) is None
    implicit = {"chosen": "Tea was good.", "rejected": "Tea was bad."}
    assert prompt_in(implicit) == "Tea was"
    with pytest.raises(ValueError, match="prompt: missing, and chosen equals rejected"):
        prompt_in(implicit | {"chosen": "Tea was bad."})
    with pytest.raises(ValueError, match="oasst_messages has none .*convert --to prompts"):
        prompt_in(MESSAGE)


def test_a_reader_made_anew_has_counted_nothing() -> None:
    reader = LayoutReader(first=1, skip_invalid=True)
    reader.dropped["a tie"] += 1
    assert reader.anew().dropped == {} and reader.anew().first == 1


def test_a_layout_that_somebody_names_is_checked_like_one_that_is_detected() -> None:
    both = COMPARED["safe_rlhf"] | {"safer_response_id": 0}
    with pytest.raises(InputError, match="two labels"):
        list(convert([("f:1", both)], form="safe_rlhf"))
    with pytest.raises(InputError, match="f:1: the layout stepwise .*PRMTrainer"):
        list(convert([("f:1", COMPARED["native"])], form="stepwise"))
    with pytest.raises(InputError, match="f:1: columns: prompt=Frage, but no column"):
        columns = NamedColumns({"prompt": ["Frage"]})
        list(convert([("f:1", COMPARED["pairs"])], form="pairs", columns=columns))
    assert picked(next(convert([("f:1", COMPARED["pairs"])], form="pairs"))) == "We loved it."
