"""Agreement with the pick: ties, equal texts, rows that are not independent, and the verdict."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.stats import binom

from toolkit.maths.statistics import wilson_interval
from toolkit.scoring.accuracy import (
    RewardMetrics,
    best_of_k_accuracy,
    credit,
    cross_validated,
    judge,
    luck,
    share,
)


def test_accuracy_counts_the_highest_score_and_its_loss_is_the_softmaxs() -> None:
    facts = best_of_k_accuracy([[0.0, 2.0], [1.0, 0.0, 0.0]], [1, 2])
    assert facts.accuracy == 0.5 and facts.comparisons == 2
    assert facts.chance == pytest.approx((1 / 2 + 1 / 3) / 2)
    expected = torch.tensor(
        [
            -torch.tensor([0.0, 2.0]).log_softmax(0)[1],
            -torch.tensor([1.0, 0.0, 0.0]).log_softmax(0)[2],
        ]
    ).mean()
    assert facts.loss == pytest.approx(expected.item(), abs=1e-6)


def test_a_tie_is_worth_its_share_and_equal_texts_are_one() -> None:
    assert credit([1, 1, 0], 0, "abc") == credit([1, 1, 0], 1, "abc") == 0.5
    assert credit([1, 1, 0], 2, "abc") == 0
    assert credit([1, 0, 1], 2, "aba") == 1  # both of the best are the text that was picked
    assert credit([1, 1, 1], 0, "abb") == 0.5


def test_a_head_that_says_the_same_of_everything_is_at_chance_wherever_the_best_stands() -> None:
    facts = best_of_k_accuracy([[0.0, 0.0, 0.0]] * 60, [0] * 60)
    assert facts.accuracy == pytest.approx(1 / 3) and facts.p > 0.4
    assert judge(facts).answer == "no"  # a useful model would be right on more than half of 60


def test_independent_rows_have_wilsons_interval_and_the_binomial_test() -> None:
    right = [1.0] * 130 + [0.0] * 270
    found = share(right, range(400))
    assert (found.low, found.high) == wilson_interval(130, 400)
    expected = stats.binomtest(130, 400, 0.25, alternative="greater").pvalue
    assert luck(right, [0.25] * 400, range(400)) == pytest.approx(expected)


def test_rows_that_are_copies_of_each_other_count_once() -> None:
    right = [float(i % 3 == 0) for i in range(30) for _ in range(10)]
    prompts = [i for i in range(30) for _ in range(10)]
    found = share(right, prompts)
    assert (found.low, found.high) == pytest.approx(wilson_interval(10, 30))
    assert (found.n, found.prompts) == (300, 30)


def test_models_without_skill_are_seldom_trusted_though_prompts_are_few_and_rows_are_many() -> None:
    """Right or wrong for a prompt's 40 rows together, by a coin: no skill. Of 400 such models the
    row-by-row test trusts a fifth."""
    rng = np.random.default_rng(0)
    prompts = [i for i in range(5) for _ in range(40)]
    naive = trusted = 0
    for _ in range(400):
        right = [float(c) for c in rng.integers(0, 2, size=5) for _ in range(40)]
        naive += luck(right, [0.5] * 200, range(200)) < 0.001
        trusted += luck(right, [0.5] * 200, prompts) < 0.001
    assert naive > 40 and trusted <= 4


def measured(right: int, n: int, k: int = 2) -> RewardMetrics:
    """The figures of a model that is right on so many of n comparisons of k completions."""
    row = [1.0] + [0.0] * (k - 1)
    return best_of_k_accuracy([row] * n, [0] * right + [1] * (n - right))


@pytest.mark.parametrize(
    ("right", "n", "k", "answer", "begins"),
    [
        (300, 400, 2, "yes", "It has learned what people pick: 75.0% of 400"),
        (10, 10, 2, "yes", "It has learned"),  # by luck once in 1,024 times
        (12, 15, 2, "not decided", "Probably better than chance, but not surely"),
        (7, 15, 2, "not decided", "Too few comparisons to tell"),  # 15 labels say little
        (4, 15, 4, "not decided", "Too few comparisons to tell"),
        (20, 40, 2, "no", "Cannot be distinguished from chance"),
        (100, 400, 4, "no", "Cannot be distinguished from chance"),
        (120, 400, 2, "no", "Worse than chance"),  # labels turned round
        (2, 15, 2, "no", "Worse than chance"),
    ],
)
def test_the_verdict_is_yes_no_or_not_decided(
    right: int, n: int, k: int, answer: str, begins: str
) -> None:
    verdict = judge(measured(right, n, k))
    assert verdict.answer == answer and verdict.sentence.startswith(begins)
    assert f"{verdict.p:.2g}" in verdict.sentence
    side = "less" if begins.startswith("Worse") else "greater"
    assert verdict.p == pytest.approx(stats.binomtest(right, n, 1 / k, side).pvalue)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "k"), [(15, 2), (40, 2), (20, 4), (200, 4)])
def test_the_interval_is_clopper_and_pearsons(n: int, k: int) -> None:
    for right in range(0, n + 1, 3):
        facts = measured(right, n, k)
        theirs = stats.binomtest(right, n).proportion_ci(0.95, "exact")
        mine = facts.accuracy_low, facts.accuracy_high
        assert mine == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.slow
def test_no_verdict_contradicts_the_interval_beside_it() -> None:
    """Whatever was measured: right, wrong and tied picks, of several K, of repeated prompts."""
    rng = np.random.default_rng(0)
    answers = set()
    for _ in range(80):
        n, skill = int(rng.integers(2, 120)), rng.uniform(-2, 3)
        sizes = rng.integers(2, 6, size=n)
        scores = [[skill * (j == 0) + rng.normal() for j in range(k)] for k in sizes]
        scores = [[0.0] * len(row) if rng.random() < 0.05 else row for row in scores]
        prompts = [int(i) for i in rng.integers(0, max(2, n // 3), size=n)]
        facts = best_of_k_accuracy(scores, [0] * n, prompts=prompts if rng.random() < 0.5 else None)
        low, high, chance = facts.accuracy_low, facts.accuracy_high, facts.chance
        answers.add(verdict := judge(facts).answer)
        assert low <= facts.accuracy + 1e-9 and facts.accuracy - 1e-9 <= high
        assert (low > chance) == (facts.p < 0.025)
        assert (high < chance) == (facts.p_below < 0.025)
        if verdict == "yes":
            assert low > chance
        if verdict == "no":
            assert low <= chance
        if verdict == "not decided":
            assert high >= chance
    assert answers == {"yes", "no", "not decided"}


def test_rounding_is_no_sign_that_rows_hang_together() -> None:
    """2 of 15: the design effect is 1 but for the last digit, and the test stays the exact one."""
    right = [1.0] * 2 + [0.0] * 13
    expected = stats.binomtest(13, 15, 0.5, "greater").pvalue
    assert luck([1 - c for c in right], [0.5] * 15, range(15)) == pytest.approx(expected)


def folds_of(*right: tuple[int, int]) -> tuple[list, list, list, list]:
    """Folds of pairs, of which so many of so many are right; no prompt is repeated."""
    scores = [[[1.0, 0.0]] * r + [[0.0, 1.0]] * (n - r) for r, n in right]
    best = [[0] * n for _, n in right]
    texts = [[["a", "b"]] * n for _, n in right]
    prompts = [[f"{f}-{i}" for i in range(n)] for f, (_, n) in enumerate(right)]
    return scores, best, texts, prompts


def test_a_cross_validation_counts_every_fold_and_tells_the_adapters_own() -> None:
    found = cross_validated(*folds_of((14, 20), (30, 40), (26, 40)))
    whole = best_of_k_accuracy([[1.0, 0.0]] * 70 + [[0.0, 1.0]] * 30, [0] * 100)
    assert replace(found, folds=None, own=None) == whole  # 70 of 100
    own = found.own
    assert found.folds == 3 and own is not None
    assert (own.accuracy, own.comparisons) == (0.7, 20)
    assert own.p_below == pytest.approx(binom.cdf(14, 20, 56 / 80))
    said = judge(found)
    assert said.answer == "yes" and "in 3 folds, 70.0% of 100 picks, each held out" in said.sentence
    assert "eval_rows" not in judge(cross_validated(*folds_of((5, 9), (7, 9)))).sentence


def test_an_adapter_that_failed_where_the_other_folds_learned_is_not_trusted() -> None:
    found = cross_validated(*folds_of((15, 40), (38, 40), (37, 40)))
    verdict = judge(found)
    assert found.p < 1e-6 and verdict.answer == "not decided"
    assert "of the 40 picks held out from it, 37.5% are right" in verdict.sentence
    assert "another --seed" in verdict.sentence
