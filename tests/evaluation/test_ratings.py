"""Ratings against choix, closed forms and strengths that are known."""

import math

import choix
import numpy as np
import pytest

from toolkit.errors import InputError
from toolkit.evaluation.ratings import (
    contests_between_models,
    rate,
    scores_from_rankings,
    strengths,
)
from toolkit.maths.ratings import ELO_SCALE, elo_ratings


def draw(rng: np.random.Generator, theta: np.ndarray, size: int) -> list[int]:
    """An order of ``size`` competitors, by Plackett-Luce (Gumbel noise)."""
    chosen = rng.permutation(len(theta))[:size]
    noisy = theta[chosen] + rng.gumbel(size=size)
    return [int(i) for i in chosen[np.argsort(-noisy)]]


def test_two_players_rating_is_the_log_odds_of_their_wins() -> None:
    picks = [(0, (1,))] * 75 + [(1, (0,))] * 25
    fitted = strengths(picks, 2, alpha=0.0)
    assert fitted[0] - fitted[1] == pytest.approx(math.log(3), abs=1e-6)


def test_rankings_give_choixs_own_estimate() -> None:
    rng = np.random.default_rng(0)
    theta = np.array([0.8, 0.2, 0.0, -0.4, -0.6])
    orders = [draw(rng, theta, 4) for _ in range(300)]
    contests = [(tuple("abcde"[i] for i in order), (0, 1, 2, 3)) for order in orders]
    expected = choix.ilsr_rankings(5, [tuple(order) for order in orders], alpha=0.01)
    found = {r.name: r.rating for r in rate(contests, "plackett_luce", resamples=20)}
    for i, name in enumerate("abcde"):
        point = 1500 + ELO_SCALE * (expected[i] - expected.mean())
        assert found[name] == pytest.approx(point, abs=0.5)


def test_known_strengths_lie_in_their_intervals() -> None:
    rng = np.random.default_rng(1)
    theta = np.array([0.9, 0.3, -0.3, -0.9])
    rows = []
    for _ in range(500):  # best of four, only the pick is known
        order = draw(rng, theta, 4)
        shown = [int(i) for i in rng.permutation(order)]
        rows.append({"completions": ["x"] * 4, "models": [f"m{i}" for i in shown],
                     "best": shown.index(order[0])})  # fmt: skip
    ratings = rate(contests_between_models(rows), "plackett_luce", resamples=100)
    assert [r.name for r in ratings] == ["m0", "m1", "m2", "m3"]
    inside = 0
    for r in ratings:
        true = 1500 + ELO_SCALE * theta[int(r.name[1])]
        assert r.low < r.rating < r.high and r.contests == 500
        inside += r.low <= true <= r.high
    assert inside >= 3 and sum(r.wins for r in ratings) == 500


def test_elo_goes_through_the_pairs_in_their_order() -> None:
    contests = [(("a", "b", "c"), (1,)), (("a", "b"), (0,))]  # b beats a and c, then a beats b
    found = {r.name: r.rating for r in rate(contests, "elo", resamples=20)}
    expected = elo_ratings([(1, 0), (1, 2), (0, 1)], 3)
    assert [found[n] for n in "abc"] == pytest.approx(expected)


def test_bradley_terry_and_plackett_luce_are_one_for_two() -> None:
    contests = [(("a", "b"), (0,))] * 6 + [(("a", "b"), (1,))] * 2
    by = {m: {r.name: r.rating for r in rate(contests, m, 20)} for m in
          ("plackett_luce", "bradley_terry")}  # fmt: skip
    assert by["plackett_luce"] == pytest.approx(by["bradley_terry"])


def test_one_who_never_lost_stays_finite() -> None:
    (first, second) = rate([(("a", "b"), (0,))] * 10, "plackett_luce", 20)
    assert first.name == "a" and math.isfinite(first.rating) and first.rating > second.rating + 200


def test_a_model_is_not_compared_with_itself() -> None:
    contests = [(("a", "a", "b"), (0,))] * 5 + [(("a", "b", "b"), (1,))] * 5
    assert {r.name: r.wins for r in rate(contests, "plackett_luce", 20)} == {"a": 5, "b": 5}


def test_rows_must_say_who_wrote_what() -> None:
    with pytest.raises(InputError, match="models: missing, or not one for each"):
        contests_between_models([{"completions": ["x", "y"], "best": 0, "models": ["m"]}])


def test_one_ranking_becomes_scores_in_its_order() -> None:
    row = {"prompt": "Hi.", "completions": ["a", "b", "c"], "best": 2, "ranking": [2, 0, 1]}
    (made,) = scores_from_rankings([row])
    assert made["ranking"] == [2, 0, 1] and made["best"] == 2 and made["labels"] == 1
    assert np.mean(made["scores"]) == pytest.approx(0, abs=1e-9)
    assert np.std(made["scores"]) == pytest.approx(1)


def test_many_labels_of_one_item_are_put_together_whatever_order_they_were_shown_in() -> None:
    rows = [
        {"prompt": "Hi.", "completions": ["a", "b", "c"], "best": 0},
        {"prompt": "Hi.", "completions": ["c", "a", "b"], "best": 1},  # a, too
        {"prompt": "Hi.", "completions": ["b", "c", "a"], "best": 0},  # b
        {"prompt": "Ho.", "completions": ["a", "b"], "best": 1},
        {"prompt": "Hm.", "completions": ["a", "b"], "best": 1},
        {"prompt": "Hm.", "completions": ["a", "b"], "best": 0},  # they cancel out
    ]
    hi, ho = scores_from_rankings(rows)
    assert hi["completions"] == ["a", "b", "c"] and hi["ranking"] == [0, 1, 2]
    assert hi["labels"] == 3 and ho["scores"] == pytest.approx([-1, 1])
