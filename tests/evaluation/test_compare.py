"""Policy against reference: counting, KL, fixed seeds."""

import math

import numpy as np
import pytest
import torch

from toolkit.evaluation.compare import compare, summarize
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.roles import Roles
from toolkit.training.rollouts import sampling_rule


def rows_of(pairs: list[tuple[float, float]]) -> list[dict]:
    return [
        {"policy_score": p, "reference_score": r, "kl": float(i)} for i, (p, r) in enumerate(pairs)
    ]


def test_ties_are_shown_and_not_counted_as_wins() -> None:
    summary = summarize(rows_of([(1, 0), (2, 0), (0, 0), (0, 3)]))
    assert (summary["wins"], summary["ties"], summary["losses"]) == (2, 1, 1)
    assert summary["win_rate"] == pytest.approx(2 / 3)
    assert summary["win_rate_low"] < 2 / 3 < summary["win_rate_high"]


def test_scores_and_kl_come_with_their_errors() -> None:
    summary = summarize(rows_of([(1, 0), (2, 1), (4, 5)]))
    assert summary["policy_score"] == pytest.approx(7 / 3)
    assert summary["policy_score_error"] == pytest.approx(np.std([1, 2, 4], ddof=1) / math.sqrt(3))
    assert summary["kl"] == 1.0
    assert summary["reference_score_std"] == pytest.approx(np.std([0, 1, 5]))
    assert summary["score_gain"] == pytest.approx((7 / 3 - 2) / np.std([0, 1, 5]))


def test_only_ties_decide_nothing() -> None:
    summary = summarize(rows_of([(1, 1), (0, 0)]))
    assert (summary["win_rate"], summary["win_rate_low"]) == (0.5, 0.0)


def test_an_untrained_policy_is_no_better_and_no_farther(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    roles = Roles(load_base(demo_model, "fp32"))
    prompts = tokenizer(["We went to the market.", "I met my aunt at the cafe by the river."] * 20)
    rule = sampling_rule(tokenizer, 8, 0.7)

    def length(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(text)) for text in completions]

    args = (roles, prompts["input_ids"], rule, tokenizer, length)
    summary, rows = compare(*args, seed=0)
    assert abs(summary["kl"]) < 1e-6
    assert summary["win_rate_low"] < 0.5 < summary["win_rate_high"]
    assert rows[0]["prompt"] == "We went to the market."
    again, rows_again = compare(*args, seed=0, batch_size=40)
    assert rows_again == rows and again == summary
    assert compare(*args, seed=1)[1] != rows


def test_kl_is_positive_for_a_policy_that_differs(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    torch.manual_seed(0)  # before peft draws the adapter's A
    roles = Roles(load_base(demo_model, "fp32"))
    for name, parameter in roles.named_parameters():
        if "lora_B.policy" in name:
            torch.nn.init.normal_(parameter, std=0.06)
    prompts = tokenizer(["We went to the market."] * 256)["input_ids"]
    rule = sampling_rule(tokenizer, 8, 0.7)
    summary, _ = compare(
        roles, prompts, rule, tokenizer, lambda prompts, completions: [0.0] * 256, 0
    )
    assert summary["kl"] > 4 * summary["kl_error"] > 0
