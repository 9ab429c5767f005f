"""Agreement with the pick: ties, equal texts, rows that are not independent, and the verdict."""

import numpy as np
import pytest
import torch
from scipy import stats

from toolkit.maths.statistics import wilson_interval
from toolkit.training.accuracy import best_of_k_accuracy, credit, judge, luck, share


def test_accuracy_counts_the_highest_score_and_its_loss_is_the_softmaxs() -> None:
    facts = best_of_k_accuracy([[0.0, 2.0], [1.0, 0.0, 0.0]], [1, 2])
    assert facts["accuracy"] == 0.5 and facts["comparisons"] == 2
    assert facts["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    expected = torch.tensor([-torch.tensor([0.0, 2.0]).log_softmax(0)[1],
                             -torch.tensor([1.0, 0.0, 0.0]).log_softmax(0)[2]]).mean()  # fmt: skip
    assert facts["loss"] == pytest.approx(expected.item(), abs=1e-6)


def test_a_tie_is_worth_its_share_and_equal_texts_are_one() -> None:
    assert credit([1, 1, 0], 0, "abc") == credit([1, 1, 0], 1, "abc") == 0.5
    assert credit([1, 1, 0], 2, "abc") == 0
    assert credit([1, 0, 1], 2, "aba") == 1  # both of the best are the text that was picked
    assert credit([1, 1, 1], 0, "abb") == 0.5


def test_a_head_that_says_the_same_of_everything_is_at_chance_wherever_the_best_stands() -> None:
    facts = best_of_k_accuracy([[0.0, 0.0, 0.0]] * 60, [0] * 60)
    assert facts["accuracy"] == pytest.approx(1 / 3) and facts["p"] > 0.4
    assert not judge(facts)[0]


def test_independent_rows_have_wilsons_interval_and_the_binomial_test() -> None:
    right = [1.0] * 130 + [0.0] * 270
    found = share(right, range(400))
    assert (found["low"], found["high"]) == wilson_interval(130, 400)
    expected = stats.binomtest(130, 400, 0.25, alternative="greater").pvalue
    assert luck(right, [0.25] * 400, range(400)) == pytest.approx(expected)


def test_rows_that_are_copies_of_each_other_count_once() -> None:
    right = [float(i % 3 == 0) for i in range(30) for _ in range(10)]
    prompts = [i for i in range(30) for _ in range(10)]
    found = share(right, prompts)
    assert (found["low"], found["high"]) == pytest.approx(wilson_interval(10, 30))
    assert (found["n"], found["prompts"]) == (300, 30)


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


def test_the_verdict_has_three_answers() -> None:
    def of(right: int, n: int) -> tuple[bool, str]:
        return judge(best_of_k_accuracy([[1.0, 0.0]] * n, [0] * right + [1] * (n - right)))

    good, sentence = of(300, 400)
    assert good and sentence.startswith("It has learned what people pick: 75.0% of 400")
    good, sentence = of(12, 15)
    assert not good and sentence.startswith("Probably better than chance") and "0.018" in sentence
    good, sentence = of(10, 20)
    assert not good and sentence.startswith("Not to be told from chance")
