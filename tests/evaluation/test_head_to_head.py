"""Contenders against each other: counting, significance, ratings, KL, gaps."""

import math

import choix
import numpy as np
import pytest
from scipy.stats import permutation_test

from toolkit.errors import InputError
from toolkit.evaluation.contenders import Contender, Outputs
from toolkit.evaluation.head_to_head import (
    compare,
    contender_results,
    count_pair,
    gaps,
    length_lines,
    paired_p_value,
)
from toolkit.evaluation.ratings import rate_pairs
from toolkit.evaluation.result import SeenPrompts
from toolkit.maths.frontier import best_of_n_kl
from toolkit.maths.ratings import ELO_SCALE

NOT_TRAINED = SeenPrompts(trained_prompts=0, trained_prompts_note=None)


def outputs(texts: list[str], ratios: list[float] | None = None, more: float = 0.0) -> Outputs:
    return Outputs(texts, None, ratios, [len(t) for t in texts], more)


def test_ties_and_what_was_not_judged_are_shown_and_are_no_wins() -> None:
    row = count_pair([1, 1, 0, -1, None])
    assert (row.wins, row.ties, row.losses, row.not_judged) == (2, 1, 1, 1)
    assert row.win_rate == pytest.approx(2 / 3) and row.low < 2 / 3 < row.high
    assert row.p_value == pytest.approx(1.0)  # two of three, or worse, on either side


def test_only_ties_decide_nothing() -> None:
    row = count_pair([0, 0], np.zeros(2))
    assert (row.win_rate, row.low, row.high) == (0.5, 0.0, 1.0)
    assert row.p_value == row.p_scores == 1.0


def test_the_sign_test_is_the_binomials() -> None:
    # 9 of 10: 2 (C(10, 0) + C(10, 1)) / 2^10
    assert count_pair([1] * 9 + [-1]).p_value == pytest.approx(22 / 1024)


def test_the_paired_test_agrees_with_scipys_exact_one() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        differences = rng.normal(0.4, 1.0, size=11)
        exact = permutation_test(
            (differences,),
            np.mean,
            permutation_type="samples",
            n_resamples=np.inf,
            vectorized=True,
        ).pvalue
        assert paired_p_value(differences) == pytest.approx(exact, abs=0.015)


@pytest.mark.slow
def test_a_policy_against_itself_is_significant_in_five_of_a_hundred_repeats() -> None:
    """Two answers to each of 150 prompts, drawn from one distribution; many ties among them."""
    rng = np.random.default_rng(0)
    hard = rng.normal(size=150)  # prompts differ, which pairing takes out
    by_sign = by_score = 0
    for repeat in range(400):
        a, b = (np.round(hard + rng.normal(size=150), 1) for _ in range(2))
        row = count_pair(np.sign(a - b).astype(int).tolist(), a - b, repeat)
        by_sign += row.p_value < 0.05
        by_score += row.p_scores < 0.05
    # Three standard errors of 400 repeats at 5 %: 7 to 33. The sign test is discrete: at most 5 %.
    assert 7 <= by_score <= 33 and 5 <= by_sign <= 33


def test_a_difference_is_found_where_pairing_shows_it() -> None:
    rng = np.random.default_rng(0)
    hard = 10 * rng.normal(size=200)
    row = count_pair([1] * 200, hard + 0.3 - hard)
    assert row.p_scores < 0.001 and row.difference == pytest.approx(0.3)


def test_pair_ratings_are_choixs_with_ties_as_half_a_win_each() -> None:
    rng = np.random.default_rng(0)
    names = ["a", "b", "c", "d"]
    for _ in range(5):
        verdicts = {
            (x, y): rng.choice([1, 0, -1], p=[0.5, 0.2, 0.3], size=40).tolist()
            for i, x in enumerate(names)
            for y in names[:i]
        }
        doubled = [
            pair
            for (x, y), said in verdicts.items()
            for v in said
            for pair in {1: [(x, y)] * 2, -1: [(y, x)] * 2, 0: [(x, y), (y, x)]}[v]
        ]
        place = {name: i for i, name in enumerate(names)}
        theirs = choix.opt_pairwise(4, [(place[x], place[y]) for x, y in doubled], alpha=1e-9)
        ours = {r.name: r for r in rate_pairs(names, verdicts, resamples=20)}
        for name, strength in zip(names, theirs - theirs.mean(), strict=True):
            assert ours[name].rating == pytest.approx(1500 + ELO_SCALE * strength, abs=0.5)
            assert ours[name].low <= ours[name].rating <= ours[name].high


@pytest.mark.slow
def test_the_interval_of_a_rating_covers_the_truth() -> None:
    """Known strengths; the 95 % interval of the difference holds it in about 95 of 100 draws."""
    rng = np.random.default_rng(1)
    truth = 1 / (1 + math.exp(-0.8))
    held = 0
    for repeat in range(60):
        said = np.where(rng.random(200) < truth, 1, -1).tolist()
        (best, _) = rate_pairs(["a", "b"], {("a", "b"): said}, resamples=100, seed=repeat)
        held += best.low <= 1500 + ELO_SCALE * 0.4 <= best.high
    assert 51 <= held <= 60


def test_all_pairs_and_ratings_of_scores_and_of_verdicts() -> None:
    scores = {"s": {"ref": [0.0, 0.0, 1.0], "x": [1.0, 0.0, 2.0], "y": [2.0, 3.0, 0.0]}}
    verdicts = {"people": {("x", "ref"): [1, None, -1], ("y", "ref"): [None, None, None]}}
    pairs, ratings = compare(["ref", "x", "y"], scores, verdicts)
    found = {(p.judge, p.a, p.b): (p.wins, p.ties, p.losses) for p in pairs}
    assert found == {
        ("s", "x", "ref"): (2, 1, 0),
        ("s", "y", "ref"): (2, 0, 1),
        ("s", "y", "x"): (2, 0, 1),
        ("people", "x", "ref"): (1, 0, 1),
        ("people", "y", "ref"): (0, 0, 0),
    }
    assert [r.name for r in ratings["s"]][-1] == "ref"
    assert "people" not in ratings  # y was not judged by them
    assert all(p.p_holm >= p.p_value for p in pairs)


def test_a_contenders_row_has_kl_with_its_error_and_gain_in_the_references_deviations() -> None:
    contenders = [
        Contender("ref", "reference"),
        Contender("b4", "best_of_n", "ref", 4),
        Contender("other", "model", "x/y"),
    ]
    made = {
        "ref": outputs(["a b", "c d", "e"], [0.0, 0.0, 0.0]),
        "b4": outputs(["a", "b", "c"], [0.0, 1.0, 2.0], best_of_n_kl(4)),
        "other": outputs(["x", "y", "z"], None),
    }
    scores = {"s": {"ref": [0.0, 1.0, 5.0], "b4": [1.0, 2.0, 6.0], "other": [0.0] * 3}}
    ref, b4, other = contender_results(
        contenders, made, scores, ["p"] * 3, dict.fromkeys(made, NOT_TRAINED)
    )
    assert b4.kl == pytest.approx(1.0 + math.log(4) - 3 / 4)
    assert b4.kl_error == pytest.approx(np.std([0, 1, 2], ddof=1) / math.sqrt(3))
    assert b4.scores["s"].gain == pytest.approx(1 / np.std([0, 1, 5]))
    assert ref.scores["s"].gain == ref.kl == 0.0
    assert other.kl is None and other.kl_error is None


def test_what_length_is_worth_on_the_references_texts_is_taken_off_a_gain() -> None:
    scores = {"s": {"ref": [1.0, 1.5, 2.5, 3.0], "long": [4.0, 4.0, 5.0, 5.0]}}
    tokens = {"ref": [10, 20, 30, 40], "long": [30, 50, 50, 70]}
    (line,) = length_lines("ref", {"s": scores["s"]}, tokens).values()
    assert (line.slope, line.length) == (pytest.approx(0.07), 25.0)  # 35 / 500, by hand

    contenders = [Contender("ref", "reference"), Contender("long", "adapter", "x")]
    made = {c.name: outputs(["x"] * 4, [0.0] * 4) for c in contenders}
    trained = dict.fromkeys(made, NOT_TRAINED)
    ref, long = contender_results(contenders, made, {"s": scores["s"]}, ["p"] * 4, trained, tokens)
    assert (ref.length, long.length) == (25.0, 50.0)
    spread = np.std([1.0, 1.5, 2.5, 3.0])
    assert ref.scores["s"].gain_at_equal_length == 0.0
    assert long.scores["s"].gain == pytest.approx(2.5 / spread)
    assert long.scores["s"].gain_at_equal_length == pytest.approx((2.5 - 0.07 * 25) / spread)

    # If all the reference's texts are equally long, nobody knows what a token is worth.
    alike = {"ref": [24] * 4, "long": [24] * 4}
    assert length_lines("ref", {"s": scores["s"]}, alike) == {}
    _, long = contender_results(contenders, made, {"s": scores["s"]}, ["p"] * 4, trained, alike)
    assert long.scores["s"].gain_at_equal_length is None and long.length == 24.0


def test_a_gain_that_only_the_training_reward_sees_raises_the_alarm() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=200)
    scores = {
        "rm": {"ref": noise.tolist(), "hacked": (noise + 2).tolist(), "good": (noise + 2).tolist()},
        "truth": {
            "ref": noise.tolist(),
            "hacked": (noise - 0.5).tolist(),
            "good": (noise + 1).tolist(),
        },
    }
    contenders = [Contender(n, "adapter", n) for n in ("ref", "hacked", "good")]
    made = {c.name: outputs(["x"] * 200, [0.0] * 200) for c in contenders}
    rows = contender_results(
        contenders, made, scores, ["p"] * 200, dict.fromkeys(made, NOT_TRAINED)
    )
    pairs, _ = compare(["ref", "hacked", "good"], scores, {})
    found = {g.name: g for g in gaps(rows, pairs, "rm")}
    assert found["hacked"].alarm and not found["good"].alarm
    assert found["hacked"].gap > found["good"].gap > 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_ranks_nobody(value: float) -> None:
    scores = {"judge": {"reference": [0.0, 1.0], "policy": [2.0, value]}}
    with pytest.raises(InputError, match="judge: a score of policy is NaN or infinite"):
        compare(["reference", "policy"], scores, {})
