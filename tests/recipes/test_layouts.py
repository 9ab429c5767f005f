"""Recipes that need no model read a spreadsheet with headers of its own."""

import json
from pathlib import Path

import pytest

from toolkit.cli import call, recipe
from toolkit.errors import InputError

WORDS = ["prompt=Frage", "completions=Links,Rechts", "best=Wahl", "labeler=Wer"]


@pytest.fixture
def picks(tmp_path: Path) -> str:
    rows = [f"Tee {i}?;{'good'[: 3 + i % 2]} {i};bad {i};Rechts;Anna" for i in range(6)]
    path = tmp_path / "picks.csv"
    path.write_bytes("\r\n".join(["sep=;", "Frage;Links;Rechts;Wahl;Wer", *rows]).encode("utf-16"))
    return str(path)


def rows_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_convert_and_label_read_the_same_answers(picks: str, tmp_path: Path) -> None:
    made, lexicon = tmp_path / "made.jsonl", tmp_path / "words.txt"
    lexicon.write_text("good\t1\n")
    words = ["--input", picks, "--columns", *WORDS, "--output", str(made), "--as_messages"]
    call(recipe("convert").main, words)
    labeled = tmp_path / "labeled.jsonl"
    words = ["--samples", picks, "--columns", *WORDS[:2], "--lexicon", str(lexicon)]
    call(recipe("label").main, [*words, "--ties", "random", "--output", str(labeled)])
    first, other = rows_in(made)[1], rows_in(labeled)[1]
    assert first["prompt"] == [{"role": "user", "content": "Tee 1?"}]
    assert first["completions"] == other["completions"] == ["good 1", "bad 1"]
    assert (first["best"], other["best"]) == (1, 0)  # Anna's pick, and the lexicon's
    assert (first["labeler"], other["labeler"]) == ("Anna", "lexicon")


def test_what_is_shown_is_what_would_be_written(
    picks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.jsonl"
    words = ["--input", picks, "--columns", *WORDS, "--add_space", "--output", str(out)]
    call(recipe("convert").main, [*words, "--show", "1"])
    shown = capsys.readouterr().out
    assert not out.exists() and "picks.csv:3\n  prompt: Tee 0?\n" in shown
    call(recipe("convert").main, words)
    first = rows_in(out)[0]["completions"]
    assert first == [" goo 0", " bad 0"] and all(f'"{text}"' in shown for text in first)


def test_a_report_describes_a_spreadsheet(picks: str, tmp_path: Path) -> None:
    from toolkit.arguments.layouts import LayoutArguments
    from toolkit.evaluation.run_report import data_sheet

    sheet = data_sheet(picks, LayoutArguments(columns=WORDS))
    assert (sheet.comparisons, sheet.labellers, sheet.positions) == (6, {"Anna": 6}, [0, 6])
    with pytest.raises(InputError, match="picks.csv:3: columns: best=Pick, but no column has"):
        data_sheet(picks, LayoutArguments(columns=["best=Pick"]))


def test_what_only_convert_can_read_is_said_by_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps([{"query": [5], "sample0": [6], "sample1": [7], "best": 0}]))
    with pytest.raises(InputError, match="give their --tokenizer, which preftune convert takes"):
        call(recipe("ratings").main, ["--comparisons", str(path)])


def test_two_sources_for_sft_are_refused_before_a_model_is_loaded() -> None:
    words = ["--text", "a.jsonl", "--demonstrations", "b.jsonl"]
    with pytest.raises(InputError, match="demonstrations stand beside text"):
        call(recipe("sft").main, words)


def test_prompts_of_a_spreadsheet_are_split(picks: str, tmp_path: Path) -> None:
    made, other = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    words = ["--prompts", picks, "--columns", *WORDS[:3], "--as_messages"]
    call(recipe("split").main, [*words, "--output", str(made), "--held_out", str(other)])
    found = [row["prompt"][0]["content"] for file in (made, other) for row in rows_in(file)]
    assert sorted(found) == [f"Tee {i}?" for i in range(6)] and len(rows_in(other)) == 2
