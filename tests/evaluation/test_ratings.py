"""Ratings against choix, closed forms and strengths that are known."""

import math
from collections import Counter

import choix
import numpy as np
import pytest

from toolkit.errors import InputError
from toolkit.evaluation.ratings import (
    WORST,
    contests_between_models,
    rate,
    said_of_misfit,
    scores_from_rankings,
    strengths,
    with_predictions,
)
from toolkit.maths.ratings import ELO_SCALE, elo_ratings


def contests(rows: list[dict]) -> list:
    return contests_between_models((f"f:{n}", row) for n, row in enumerate(rows, start=1))


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
    met = [
        (tuple("abcde"[i] for i in order), (0, 1, 2, 3), str(n)) for n, order in enumerate(orders)
    ]
    expected = choix.ilsr_rankings(5, [tuple(order) for order in orders], alpha=0.01)
    found = {r.name: r.rating for r in rate(met, "plackett_luce", resamples=20)}
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
        models = [f"m{i}" for i in shown]
        rows.append(
            {
                "prompt": str(len(rows)),
                "completions": ["x"] * 4,
                "models": models,
                "best": shown.index(order[0]),
            }
        )
    ratings = rate(contests(rows), "plackett_luce", resamples=100)
    assert [r.name for r in ratings] == ["m0", "m1", "m2", "m3"]
    inside = 0
    for r in ratings:
        true = 1500 + ELO_SCALE * theta[int(r.name[1])]
        assert r.low < r.rating < r.high and r.contests == 500
        inside += r.low <= true <= r.high
    assert inside >= 3 and sum(r.wins for r in ratings) == 500


def test_elo_goes_through_the_pairs_in_their_order() -> None:
    met = [(("a", "b", "c"), (1,), "p"), (("a", "b"), (0,), "q")]  # b beats a and c; a beats b
    found = {r.name: r.rating for r in rate(met, "elo", resamples=20)}
    expected = elo_ratings([(1, 0), (1, 2), (0, 1)], 3)
    assert [found[n] for n in "abc"] == pytest.approx(expected)


def test_bradley_terry_and_plackett_luce_are_one_for_two() -> None:
    met = [(("a", "b"), (int(i > 5),), str(i)) for i in range(8)]
    by = {
        m: {r.name: r.rating for r in rate(met, m, 20)} for m in ("plackett_luce", "bradley_terry")
    }
    assert by["plackett_luce"] == pytest.approx(by["bradley_terry"])


def test_one_who_never_lost_stays_finite() -> None:
    (first, second) = rate([(("a", "b"), (0,), "p")] * 10, "plackett_luce", 20)
    assert first.name == "a" and math.isfinite(first.rating) and first.rating > second.rating + 200


def test_a_model_is_not_compared_with_itself() -> None:
    met = [(("a", "a", "b"), (0,), "p")] * 5 + [(("a", "b", "b"), (1,), "q")] * 5
    assert {r.name: r.wins for r in rate(met, "plackett_luce", 20)} == {"a": 5, "b": 5}


@pytest.mark.parametrize("method", ["plackett_luce", "bradley_terry"])
def test_one_who_wrote_two_of_four_texts_is_not_rated_higher_for_it(method: str) -> None:
    texts = ("new", "new", "old", "older")  # as the online loop mixes them
    met = [(texts, (i % 4,), str(i)) for i in range(80)]  # picked at random
    found = [r.rating for r in rate(met, method, 20)]
    assert found == pytest.approx([1500] * 3, abs=3)


def test_two_texts_each_have_the_log_odds_of_their_sides() -> None:
    met = [(("a", "a", "b", "b"), (0 if i % 4 else 2,), str(i)) for i in range(100)]
    first, second = rate(met, "plackett_luce", 20)
    assert first.rating - second.rating == pytest.approx(ELO_SCALE * math.log(3), abs=2)


def test_predictions_are_174_points_a_nat_within_comparisons_and_blind_to_hard_prompts() -> None:
    rng = np.random.default_rng(0)
    level = {"start": 0.0, "one": 0.4, "two": 1.0}
    met, scores = [], []
    for i in range(60):
        names = ("start", "one", "one") if i % 2 else ("start", "two", "one")
        hard = 5.0 * (i % 2)  # of the comparisons without the best writer
        met.append((names, (int(rng.integers(3)),), str(i // 2)))
        scores.append([level[name] + hard + 0.01 * rng.normal() for name in names])
    found = with_predictions(rate(met, "plackett_luce", 20), met, scores, "plackett_luce", 50)
    predicted = {r.name: r.predicted for r in found}
    assert None not in predicted.values()
    middle = sum(level.values()) / 3
    for name, p in predicted.items():
        assert p is not None and p.points == pytest.approx(
            1500 + ELO_SCALE * (level[name] - middle), abs=2
        )
        assert p.low <= p.points <= p.high and p.high - p.low < 5
    assert sum(p.points for p in predicted.values() if p) == pytest.approx(4500)


def test_a_reward_models_choices_are_rated_like_peoples() -> None:
    rng = np.random.default_rng(1)
    met = [(("a", "b"), (int(rng.integers(2)),), str(i)) for i in range(40)]
    scores = [[float(order[0] == k) for k in range(2)] for _, order, _ in met]  # as people chose
    for r in with_predictions(rate(met, "bradley_terry", 20), met, scores, "bradley_terry", 20):
        assert r.predicted is not None and r.predicted.by_choices == pytest.approx(r.rating)


def test_picks_that_no_scale_explains_are_named_and_others_are_not() -> None:
    """Of the start and two policies: how often the second won in each pair."""
    pairs = (("start", "one"), ("one", "two"), ("start", "two"))
    for won, fits in (((750, 750, 900), True), ((900, 900, 900), False)):
        met = [
            (pair, (int(i < of),), f"{pair}{i}")
            for pair, of in zip(pairs, won, strict=True)
            for i in range(1000)
        ]
        said = said_of_misfit(met)
        assert (said is None) == fits
        assert fits or (said is not None and "1 degree of freedom" in said)


def test_rows_must_say_who_wrote_what() -> None:
    with pytest.raises(InputError, match="f:1: models: missing, or not one for each"):
        contests([{"prompt": "p", "completions": ["x", "y"], "best": 0, "models": ["m"]}])


def test_an_elo_rating_lies_in_its_interval_though_order_matters() -> None:
    met = [(("a", "b"), (int(i >= 60),), str(i)) for i in range(120)]  # a wins 60, then b 60
    for r in rate(met, "elo", resamples=50):
        assert r.low <= r.rating <= r.high


def test_the_interval_is_wide_where_all_contests_are_of_few_prompts() -> None:
    many = [(("a", "b"), (int(i % 4 == 0),), str(i)) for i in range(200)]
    few = [(c, o, str(i % 4)) for i, (c, o, _) in enumerate(many)]
    width = {n: rate(m, "plackett_luce", 100)[0] for n, m in (("many", many), ("few", few))}
    spread = {n: r.high - r.low for n, r in width.items()}
    assert spread["few"] > 2 * spread["many"]


def test_models_that_never_met_are_not_compared() -> None:
    met = [(("a", "b"), (0,), "p")] * 3 + [(("c", "d"), (0,), "q")] * 3
    with pytest.raises(InputError, match="a, b and c, d never met"):
        rate(met, "plackett_luce", 20)
    assert len(rate([*met, (("b", "c"), (0,), "r")], "plackett_luce", 20)) == 4


def test_one_ranking_becomes_scores_in_its_order() -> None:
    row = {"prompt": "Hi.", "completions": ["a", "b", "c"], "best": 2, "ranking": [2, 0, 1]}
    (made,) = scores_from_rankings([row])
    assert made["ranking"] == [2, 0, 1] and made["best"] == 2 and made["labels"] == 1
    assert np.mean(made["scores"]) == pytest.approx(0, abs=1e-9)
    assert np.std(made["scores"]) == pytest.approx(1)


def test_many_labels_of_one_prompt_are_put_together_whatever_was_shown_with_what() -> None:
    rows = [
        {"prompt": "Hi.", "completions": ["a", "b", "c"], "best": 0},
        {"prompt": "Hi.", "completions": ["c", "a", "b"], "best": 1},  # a, too
        {"prompt": "Hi.", "completions": ["b", "c", "a"], "best": 0},  # b
        {"prompt": "Ho.", "completions": ["a", "b"], "best": 1},
        {"prompt": "Hm.", "completions": ["a", "b"], "best": 1},
        {"prompt": "Hm.", "completions": ["a", "b"], "best": 0},  # they cancel out
        {"prompt": "Ha.", "completions": ["a", "b"], "best": 0},
        {"prompt": "Ha.", "completions": ["c", "b"], "best": 1},  # a before b before c
    ]
    hi, ho, ha = scores_from_rankings(rows)
    assert hi["completions"] == ["a", "b", "c"] and hi["ranking"] == [0, 1, 2]
    assert hi["labels"] == 3 and ho["scores"] == pytest.approx([-1, 1])
    assert [ha["completions"][k] for k in ha["ranking"]] == ["a", "b", "c"]


def test_a_tie_is_neither_a_best_nor_a_ranking() -> None:
    labels = [[0, 2, 1], [0, 1, 2]]  # one and two change places
    rows = [
        {"prompt": "Hi.", "completions": ["a", "b", "c"], "best": r[0], "ranking": r}
        for r in labels
    ]
    (made,) = scores_from_rankings(rows)
    assert made["best"] == 0 and "ranking" not in made
    assert made["scores"] == pytest.approx([1.414214, -0.707107, -0.707107], abs=1e-5)
    tied = [
        row | {"best": r[0], "ranking": r}
        for row, r in zip(rows, [[0, 1, 2], [1, 0, 2]], strict=True)
    ]
    assert scores_from_rankings(tied) == []


def test_the_worst_of_three_is_the_whole_order_and_that_of_four_is_counted() -> None:
    row = {"prompt": "p", "completions": ["x", "y", "z"], "models": ["a", "b", "c"], "best": 2}
    noted: Counter[str] = Counter()

    def order(row: dict) -> tuple[int, ...]:
        ((_, order, _),) = contests_between_models([("f:1", row)], noted)
        return order

    assert order(row | {"worst": 0}) == order(row | {"ranking": [2, 1, 0]}) == (2, 1, 0)
    (made,) = scores_from_rankings([row | {"worst": 0}], noted=noted)
    assert made["ranking"] == [2, 1, 0] and not noted

    four = row | {"completions": ["x", "y", "z", "w"], "models": ["a", "b", "c", "d"], "worst": 0}
    assert order(four) == (2,) and noted == {WORST: 1}
    assert order(four | {"ranking": [2, 1, 3, 0]}) == (2, 1, 3, 0) and noted == {WORST: 1}
    scores_from_rankings([four], noted=noted)
    assert noted == {WORST: 2}
