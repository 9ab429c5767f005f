"""How much of a reward model's ranking is length, on comparisons whose answers are known."""

import numpy as np
import pytest

from toolkit.evaluation.reward_lengths import length_bias, without_length


def test_a_model_that_likes_length_is_found_out() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(400):
        texts = [f"text {j} " + "x" * int(rng.integers(1, 60)) for j in range(4)]
        rows.append({"prompt": f"p{i}", "completions": texts, "best": int(rng.integers(4))})
    lengths = [[float(len(t)) for t in row["completions"]] for row in rows]
    guesses = [int(np.argmax(each)) for each in lengths]
    bias = length_bias(rows, lengths, guesses)
    assert bias.rank_correlation.model == pytest.approx(1.0)
    assert abs(bias.rank_correlation.people) < 0.1
    assert bias.picks_longest.model.value == 1.0
    assert bias.accuracy_if_best_is_longest.value == 1.0
    assert bias.accuracy_if_not.value == 0.0


def test_how_much_of_a_ranking_is_length_is_told_by_what_is_left_without_it() -> None:
    """Two comparisons: the scores are 0.5 a character, and in the second 3 for the right one."""
    texts = [["a", "aaa"], ["aa", "aaaa"]]
    rows = [{"prompt": f"p{i}", "completions": each, "best": 0} for i, each in enumerate(texts)]
    raw = [[10.5, 11.5], [4.0, 2.0]]  # the first is length alone: within it, the scores differ by 1
    found = without_length(rows, raw, [1, 0])
    # Lengths -1, 1, -1, 1 and scores -0.5, 0.5, 1, -1 about their means: the slope is -1 / 4.
    assert found is not None and found.slope == pytest.approx(-0.25)
    assert found.explained == pytest.approx(0.25 / 2.5)  # slope^2 * 4, of 0.25 + 0.25 + 1 + 1
    # What is left is 10.75, 12.25 and 4.5, 3: the same picks, one of them right.
    assert (found.same_picks.value, found.accuracy.value) == (1.0, 0.5)

    only_length = [[0.5 * len(text) for text in row["completions"]] for row in rows]
    found = without_length(rows, only_length, [1, 1])
    assert found is not None and found.explained == pytest.approx(1.0)
    alike = [row | {"completions": ["ab", "cd"]} for row in rows]
    assert without_length(alike, raw, [1, 0]) is None


def test_pairs_of_about_the_same_length_are_counted_apart() -> None:
    """The pick has 20 characters. Texts of 18 to 22 are as long as it, within a tenth."""
    rows = [
        {"prompt": "a", "completions": ["p" * 20, "x" * 18, "y" * 17, "z" * 22], "best": 0},
        {"prompt": "b", "completions": ["q" * 20, "p" * 20, "p" * 20, "r" * 40], "best": 1},
    ]
    raw = [[1.0, 0.0, 2.0, 2.0], [3.0, 3.0, 3.0, 0.0]]
    found = length_bias(rows, raw, [2, 1])
    # As long: above 18, below 22; level with the q's. All: also below 17 and above 40. The pick's
    # equal is no other text.
    assert found.equal_pairs is not None and found.all_pairs is not None
    assert (found.equal_pairs.n, found.equal_pairs.value) == (3, pytest.approx(1.5 / 3))
    assert (found.all_pairs.n, found.all_pairs.value) == (5, pytest.approx(2.5 / 5))
    assert found.all_pairs.prompts == 2

    apart = [{"prompt": "a", "completions": ["a", "aaa"], "best": 0}]
    assert length_bias(apart, [[1.0, 0.0]], [0]).equal_pairs is None
