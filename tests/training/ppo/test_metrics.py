"""The log's row of an update, by hand: means over completions, steps that learned, null values."""

import pytest
import torch

from toolkit.maths.kl_controllers import FixedKLController
from toolkit.training.distributed import Ranks
from toolkit.training.ppo.metrics import NAMES, batch_row, mean_statistics, step_row
from toolkit.training.ppo.rollouts import Rollout

END = 1


def rollout() -> Rollout:
    """Three completions of three tokens: whole, ended at the second, and one without a score."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]]).bool()
    return Rollout(
        prompt_ids=torch.zeros(3, 1, dtype=torch.long),
        prompt_mask=torch.ones(3, 1, dtype=torch.bool),
        completion_ids=torch.tensor([[5, 6, 7], [5, END, END], [5, 6, END]]),
        mask=mask,
        logprobs=torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 0.0], [-4.0, 0.0, 0.0]]),
        ref_logprobs=torch.zeros(3, 3),
        values=None,
        scores=torch.tensor([3.0, 1.0, 0.0]),
        valid=torch.tensor([True, False, True]),
        scored=torch.tensor([True, True, False]),
    )


def test_a_batchs_numbers_are_means_over_its_completions() -> None:
    kl = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 9.0], [0.0, 0.0, 0.0]])  # the 9 is padding
    returns = torch.tensor([[1.0, 1.0, 1.0], [3.0, 1.0, 9.0], [9.0, 9.0, 9.0]])
    row = batch_row(rollout(), kl, returns, FixedKLController(0.5), (END,), Ranks())
    assert row == pytest.approx(
        {
            "objective/kl": 2.0,  # (3 + 3 + 0) / 3
            "objective/kl_coef": 0.5,
            "objective/kl_target": None,
            "objective/scores": 2.0,  # of the two that have one
            "objective/scores_std": 1.0,
            "objective/non_score_reward": -1.0,
            "objective/rlhf_reward": 1.0,
            "objective/entropy": 4.0,  # (6 + 2 + 4) / 3
            "objective/valid": 2 / 3,
            "objective/scored": 2 / 3,
            "val/num_eos_tokens": 2,  # one of three is padding
            "val/returns_var": 0.64,  # of 1, 1, 1, 3, 1
        }
    )


def step(ratio: float, max_log_ratio: float) -> dict[str, float]:
    return {"ratio": ratio, "max_log_ratio": max_log_ratio, "policy": ratio}


def test_steps_that_learned_nothing_count_for_nothing_and_the_first_ratio_is_the_first() -> None:
    means = mean_statistics([{}, step(1.0, 0.1), step(3.0, 0.9)])
    assert means == pytest.approx(
        {"ratio": 2.0, "policy": 2.0, "ratio_var": 1.0, "first_max_log_ratio": 0.1}
    )


def test_a_value_explains_the_share_of_the_variance_that_its_error_leaves() -> None:
    assert step_row({"value_error": 0.5}, 2.0)["val/var_explained"] == 0.75
    assert step_row({"value_error": 2.0}, 2.0)["val/var_explained"] == 0.0
    assert step_row({}, 2.0)["val/var_explained"] is None


def test_a_skipped_batch_has_every_name_and_no_number() -> None:
    assert step_row({}, 1.0) == dict.fromkeys([*NAMES, "val/var_explained"])


def test_a_statistic_of_a_new_algorithm_is_logged_under_its_own_name() -> None:
    row = step_row({"ratio": 1.0, "value_error": 0.0, "surprise": 3.0}, 1.0)
    assert row["val/surprise"] == 3.0 and row["val/ratio"] == 1.0
    assert "val/value_error" not in row
