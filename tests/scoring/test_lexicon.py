"""Scripted labellers."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.errors import InputError
from toolkit.scoring.functions import call_reward_function, load_function
from toolkit.scoring.lexicon import Lexicon, pick_best


@pytest.fixture
def lexicon(tmp_path: Path) -> Lexicon:
    path = tmp_path / "lexicon.txt"
    path.write_text("# words\ngood\t2.0\t0.5\t[1, 3]\nbad\t-2.5\ndon't\t-0.5\n\n")
    return Lexicon(path)


def test_lexicon_sums_the_valences_of_whole_words(lexicon: Lexicon) -> None:
    texts = [" Good, GOOD bad.", " goodness", "", " Don't!"]
    assert lexicon([""] * 4, texts) == [1.5, 0.0, 0.0, -0.5]


def test_lexicon_does_not_count_the_prompt(lexicon: Lexicon) -> None:
    assert lexicon(["good good"], [" bad"]) == [-2.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [("good 2\n", r"l\.txt:1: 'good 2' is not"), ("good\ttwo\n", r"l\.txt:1"), ("", "no words"),
     *((f"bad\t-1\ngood\t{word}\n", r"l\.txt:2: the valence of 'good' is .*finite number")
       for word in ("nan", "NaN", "inf", "-Infinity", "1e999"))],
)  # fmt: skip
def test_broken_lexicon_is_named_by_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "l.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        Lexicon(path)


def test_the_best_is_the_highest_score() -> None:
    assert pick_best([0.0, 3.0, -1.0, 2.0], "drop", 0.0, random.Random(0)) == 1


def test_ties_are_dropped_or_broken_by_the_seed() -> None:
    rng = random.Random(0)
    assert pick_best([3.0, 3.0, 1.0], "drop", 0.0, rng) is None
    picks = [pick_best([3.0, 3.0, 1.0], "random", 0.0, rng) for _ in range(200)]
    assert 70 < picks.count(0) < 130 and picks.count(2) == 0


def test_noise_picks_by_lot_that_often() -> None:
    rng = random.Random(0)
    picks = [pick_best([0.0, 1.0, 0.0, 0.0], "drop", 0.4, rng) for _ in range(2000)]
    assert 0.66 < picks.count(1) / 2000 < 0.74  # 0.6 + 0.4 / 4


def test_a_rows_tie_does_not_shift_another_rows_luck() -> None:
    def picks(first: list[float]) -> list[int | None]:
        rng = random.Random(5)
        rows = [first] + [[1.0, 1.0, 0.0]] * 20
        return [pick_best(row, "random", 0.3, rng) for row in rows][1:]

    assert picks([1.0, 0.0, 0.0]) == picks([1.0, 1.0, 1.0])


def test_a_function_is_found_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_scores_xyz.py").write_text(
        "def length(prompts, completions, **columns):\n    return [len(c) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    function = load_function("my_scores_xyz:length")
    assert call_reward_function(function, ["a", "b"], ["xx", "y"], {}) == [2.0, 1.0]


def test_a_function_that_raises_is_named_with_its_line() -> None:
    def fails(prompts: list[str], completions: list[str]) -> list[float]:
        raise KeyError("missing")

    with pytest.raises(InputError, match=r"fails: .*test_lexicon.py:\d+: KeyError"):
        call_reward_function(fails, ["p"], ["a"], {})


def test_arrays_and_tensors_are_scores_too() -> None:
    for scores in (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])):
        assert call_reward_function(lambda s=scores, **_: s, ["p"] * 2, ["a"] * 2, {}) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [([1.0], "1 scores for 2 completions"), (["x", 1], "not numbers"), (None, "not numbers"),
     ([1.0, float("nan")], "scored 'bb' as nan"), ([1.0, float("inf")], "as inf")],
)  # fmt: skip
def test_a_function_that_returns_rubbish_is_named(returned: object, message: str) -> None:
    def rubbish(prompts: list[str], completions: list[str]) -> object:
        return returned

    with pytest.raises(InputError, match=f"reward function rubbish.*{message}"):
        call_reward_function(rubbish, ["p", "p"], ["a", "bb"], {})  # type: ignore[arg-type]
