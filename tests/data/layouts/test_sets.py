"""Sets of answers with a rank or a score each: the best is the lowest rank or the highest score."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.data.layouts.one_row import dropped, one, picked
from toolkit.data.convert import convert
from toolkit.data.tables import read_table
from toolkit.errors import InputError


def shared(root: Path, *parts: str) -> Path:
    path = root.parent.joinpath("shared", "data", *parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)}, which is not part of this project")
    return path


def answer(text: str, overall: Any, finer: Any = 4.0) -> dict:
    return {
        "model": f"m-{text}",
        "response": text,
        "overall_score": overall,
        "fine-grained_score": finer,
    }


def test_the_lowest_rank_is_the_best_and_a_reply_that_nobody_ranked_is_left_out() -> None:
    row = {"prompt": "Hi.", "responses": ["a", "b", "c", "d"], "rank": [2, None, 0, 1]}
    made = one(row)
    assert made["completions"] == ["a", "c", "d"]
    assert (made["best"], made["ranking"]) == (1, [1, 2, 0])
    assert picked(one(row | {"rank": ["10", "9", float("nan"), None]})) == "b"  # numbers, not text
    assert dropped(row | {"rank": [2, None, None, None]}) == "fewer than two ranked replies"


def test_a_scored_set_takes_its_best_and_drops_ties() -> None:
    def scored(*scores: float) -> dict:
        return {
            "instruction": "Do it.",
            "completions": [
                {"model": f"m{i}", "response": f"r{i}", "overall_score": s}
                for i, s in enumerate(scores)
            ],
        }

    made = one(scored(3, 8.5, 7, 1))
    assert (made["prompt"], made["best"], made["ranking"]) == ("Do it.", 1, [1, 2, 0, 3])
    assert made["scores"] == [3, 8.5, 7, 1] and made["models"] == ["m0", "m1", "m2", "m3"]
    assert "ranking" not in one(scored(3, 8.5, 3, 1))  # a tie below the top orders nothing
    assert dropped(scored(8.5, 8.5, 7, 1)) == "a tie at the top"


def test_real_rankings_agree_with_their_best_of_four(root: Path) -> None:
    sets = list(convert(read_table(shared(root, "oasst_ranked", "ranked_sets.jsonl"), "--input")))
    assert Counter(min(4, len(row["completions"])) for row in sets) == {2: 57, 3: 117, 4: 38}
    assert all(len(row["ranking"]) == len(row["completions"]) for row in sets)
    order = {
        json.dumps(row["prompt"]): [row["completions"][k] for k in row["ranking"]] for row in sets
    }
    fours = list(convert(read_table(shared(root, "oasst_ranked", "best_of_4.jsonl"), "--input")))
    assert len(fours) == 38
    for row in fours:  # four of the replies, of which the best ranked one
        ranked = order[json.dumps(row["prompt"])]
        assert picked(row) == min(row["completions"], key=ranked.index)


def test_ultrafeedbacks_mistaken_ten_is_left_out_and_a_true_one_is_the_best() -> None:
    noted: Counter[str] = Counter()
    row = {
        "instruction": "Do it.",
        "models": ["m-a", "m-b", "m-c"],
        "completions": [answer("a", 10, 1.0), answer("b", 7), answer("c", 8.5)],
    }
    made = one(row, noted=noted)
    assert made["completions"] == ["b", "c"] and picked(made) == "c"
    assert made["models"] == ["m-b", "m-c"] and made["scores"] == [7, 8.5]
    assert list(noted) == ["answers of overall_score 10, fine-grained_score 2 or less left out"]
    row["completions"][0]["fine-grained_score"] = 4.75
    assert picked(one(row)) == "a"
    row["completions"] = row["completions"][:1] + [answer("b", 10, "1.5")]
    assert dropped(row) == "fewer than two scored answers"


def test_a_score_that_is_no_number_is_refused_by_its_name() -> None:
    row = {"instruction": "Do it.", "completions": [answer("a", "seven"), answer("b", 3)]}
    with pytest.raises(InputError, match=r"f:1: completions\[0\].overall_score: 'seven', but must"):
        one(row)
