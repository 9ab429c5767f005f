"""RewardBench 2, against numbers by hand: the best of four, and answers that tie."""

import math
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.evaluation.reward_bench import (
    as_comparisons,
    result_of,
    reward_bench,
    ties_result,
)


def row(subset: str, identity: str, right: int = 1, wrong: int = 3) -> dict[str, Any]:
    return {
        "id": identity,
        "prompt": f"p{identity}",
        "subset": subset,
        "chosen": [f"right {i}" for i in range(right)],
        "rejected": [f"wrong {i}" for i in range(wrong)],
    }


def comparisons(*rows: dict[str, Any], messages: bool = False) -> list[dict[str, Any]]:
    return [found for _, found in as_comparisons((("f:1", each) for each in rows), messages)]


def test_a_right_answer_that_shares_the_highest_score_counts_its_part() -> None:
    assert result_of([3.0, 1.0, 2.0, 0.0]) == 1.0
    assert result_of([3.0, 3.0, 2.0, 3.0]) == pytest.approx(1 / 3)
    assert result_of([1.0, 1.0, 2.0, 0.0]) == 0.0


def test_ties_are_scored_by_accuracy_and_by_margins_beside_single_answers() -> None:
    rows = comparisons(
        row("Ties", "ref:1", 1, 2),
        row("Ties", "ref:2", 1, 2),
        row("Ties", "tied:1", 3, 2),
        row("Ties", "tied:2", 2, 2),
    )
    raw = [[2.0, 1.0, 0.5], [1.0, 1.5, 0.2], [3.0, 2.8, 2.5, 1.0, 0.5], [2.0, 1.5, 1.3, 0.1]]
    found = ties_result(rows, raw)
    assert (found.tied, found.ref, found.apart, found.apart_with_ref) == (1.0, 0.5, 0.5, 0.5)
    # Spreads 0.5 and 0.5; the smaller margins are 1 and -0.5: tanh(1) and tanh(-2).
    margin = (math.tanh(1) + math.tanh(-2)) / 2
    assert margin == pytest.approx(-0.101217, abs=1e-6)
    assert found.score == pytest.approx(0.648988, abs=1e-6)
    assert found.score == pytest.approx(0.3 * 1.5 + 0.2 * 1 + 0.01 * margin)


def test_subsets_count_the_same_whatever_their_size() -> None:
    rows = comparisons(*[row("Math", str(i)) for i in range(3)], row("Focus", "9"))
    raw = [[2.0, 1.0, 1.0, 1.0]] * 3 + [[0.0, 1.0, 1.0, 1.0]]
    found = reward_bench(rows, raw, left_out=2)
    assert [(each.subset, each.accuracy.value, each.chance) for each in found.subsets] == [
        ("Math", 1.0, 0.25),
        ("Focus", 0.0, 0.25),
    ]
    assert (found.mean, found.ties, found.left_out) == (0.5, None, 2)
    with pytest.raises(InputError, match="NaN or infinite"):
        reward_bench(rows, [[math.nan] * 4] * 4)


def test_prompts_become_a_users_message_for_models_that_read_messages() -> None:
    (text,), (chat,) = (comparisons(row("Math", "1"), messages=m) for m in (False, True))
    assert text["prompt"] == "p1" and chat["prompt"] == [{"role": "user", "content": "p1"}]
    assert text["completions"] == ["right 0", "wrong 0", "wrong 1", "wrong 2"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (row("Math", "1") | {"chosen": "text"}, "f:1: is no row of RewardBench 2"),
        (row("Math", "1") | {"rejected": []}, "f:1: is no row of RewardBench 2"),
        (row("Math", "1") | {"prompt": None}, "f:1: is no row of RewardBench 2"),
        (row("Math", "1", right=2), "f:1: has 2 right answers"),
        (row("Ties", "7"), "id is '7', but must be ref:N or tied:N"),
        (row("Ties", "tied:7"), "f:1: has 1 right answers"),
    ],
)
def test_other_rows_are_refused_with_their_place(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        comparisons(wrong)


def test_ties_without_their_other_half_are_refused() -> None:
    rows = comparisons(row("Ties", "ref:1"), row("Ties", "tied:2", 2))
    with pytest.raises(InputError, match="no prompt of Ties has both of its rows"):
        ties_result(rows, [[1.0] * 4, [1.0] * 5])
