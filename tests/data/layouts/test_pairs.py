"""Pairs with and without a prompt, HH's dialogues, and RewardBench 2's sets."""

from collections import Counter
from pathlib import Path

import pytest

from tests.data.layouts.one_row import one, picked
from toolkit.data.convert import convert
from toolkit.data.tables import read_table


def shared(root: Path, *parts: str) -> Path:
    path = root.parent.joinpath("shared", "data", *parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)}, which is not part of this project")
    return path


def test_pairs_with_a_prompt_of_their_own() -> None:
    made = one({"prompt": "Hi.", "chosen": " good", "rejected": " bad", "margin": 1.5})
    assert made["prompt"] == "Hi." and picked(made) == " good" and made["margin"] == 1.5
    assert sorted(made["completions"]) == [" bad", " good"]


def test_pairs_without_one_share_their_beginning_up_to_a_word() -> None:
    made = one({"chosen": "The tea was good.", "rejected": "The tea was gone."})
    assert made["prompt"] == "The tea was" and picked(made) == " good."


def test_the_chosen_one_stands_first_about_as_often_as_second() -> None:
    best = [one({"prompt": "Hi.", "chosen": f" {i}", "rejected": " x"})["best"] for i in range(400)]
    assert 160 < sum(best) < 240


def test_csv_pairs_may_have_a_margin(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,margin\nHi., a, b,1.5\nHo., a, b,\n")
    first, second = convert(tmp_path / "a.csv")
    assert first["margin"] == 1.5 and "margin" not in second


def test_margins_come_from_scores_that_a_csv_file_holds_as_text() -> None:
    row = {"prompt": "Hi.", "chosen": "a", "rejected": "b"}
    assert one(row | {"score_chosen": "4.5", "score_rejected": "1"})["margin"] == 3.5
    assert "margin" not in one(row | {"score_chosen": "N/A", "score_rejected": "1"})
    assert "margin" not in one(row | {"margin": float("nan")})


def test_every_real_row_of_hh_becomes_a_comparison_or_says_why_not(root: Path) -> None:
    path = shared(root, "hh_helpful_base", "test.jsonl.gz")
    reasons: Counter[str] = Counter()
    made = list(convert(read_table(path, "--input"), dropped=reasons))
    assert len(made) == 2339 and sum(reasons.values()) == 15
    texts = [row["chosen"] for _, row in read_table(path, "--input")]
    for row in made[:200]:
        last = row["prompt"][-1]
        assert last["role"] == "user"
        assert any(last["content"] in text and picked(row) in text for text in texts)
    assert {row["best"] for row in made} == {0, 1}
