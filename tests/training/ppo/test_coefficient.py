"""``kl_coef: auto``: where the estimate comes from, and what a run does with it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from toolkit.data.prompts import Prompts
from toolkit.errors import InputError
from toolkit.training.ppo.algorithms import AlgorithmArguments, kl_unit_of
from toolkit.training.ppo.coefficient import estimate_of, prompts_for

Make = Callable[..., Any]


def test_prompts_are_spread_over_the_data() -> None:
    assert list(prompts_for(Prompts([[i] for i in range(64)]))) == [[i] for i in range(0, 64, 4)]
    assert list(prompts_for(Prompts([[1], [2]]))) == [[1], [2]]


def test_the_line_says_how_far_the_samples_reach() -> None:
    scores = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    near, far = estimate_of(scores, 0.5), estimate_of(scores, 5.0)
    assert near.kl_coef == pytest.approx(1.0, rel=0.1) and "extrapolated" not in near.line
    assert far.kl_coef == pytest.approx(1 / math.sqrt(10), rel=0.25)
    assert "4,096 completions" in far.line and "to 5 it is extrapolated" in far.line


def test_prompts_with_missing_scores_are_left_out_unless_they_are_most() -> None:
    scores = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    holes = scores.clone()
    holes[:3, 0] = math.nan
    assert estimate_of(holes, 0.5).kl_coef == estimate_of(scores[3:], 0.5).kl_coef
    holes[3:5, 7] = math.nan
    with pytest.raises(InputError, match="5 of 8 prompts have some without"):
        estimate_of(holes, 0.5)


def test_beside_scaled_advantages_the_coefficient_is_in_their_unit() -> None:
    """Two kinds of prompts, with scores that spread by 1 and by 3: over all by sqrt(5)."""
    scores = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    wide = scores * torch.tensor([1.0, 3.0]).repeat(32).unsqueeze(1)
    siblings = estimate_of(wide, 0.5, "siblings").kl_coef
    assert siblings == pytest.approx(estimate_of(scores, 0.5).kl_coef, rel=0.02)
    everything = estimate_of(wide + 100 * torch.arange(64).unsqueeze(1), 0.5, "all").kl_coef
    assert everything < 0.01 * siblings
    batch = estimate_of(wide, 0.5, "batch").kl_coef
    assert batch == pytest.approx(estimate_of(wide, 0.5).kl_coef / 5**0.5, rel=0.02)


@pytest.mark.parametrize(
    ("flags", "unit"),
    [
        ({}, "score"),
        ({"kl_in": "loss"}, "batch"),
        ({"kl_in": "loss", "whiten_advantages": False}, "score"),
        ({"algorithm": "rloo"}, "score"),
        ({"algorithm": "grpo"}, "siblings"),
        ({"algorithm": "dr_grpo"}, "score"),
        ({"algorithm": "reinforce_plus_plus"}, "score"),
        ({"algorithm": "reinforce_plus_plus", "kl_in": "loss"}, "all"),
        ({"algorithm": "reinforce_plus_plus_baseline"}, "batch"),
    ],
)
def test_each_algorithm_has_its_unit(flags: dict[str, Any], unit: str) -> None:
    assert kl_unit_of(AlgorithmArguments(**flags)) == unit


def test_equal_scores_are_refused() -> None:
    with pytest.raises(InputError, match="same score"):
        estimate_of(torch.ones(4, 128), 5.0)


@pytest.mark.slow
def test_a_run_starts_at_the_estimate_and_goes_on_exactly_without_another(
    new_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """The estimate takes nothing from the noise of sampling: a given number gives the same run."""
    options = {
        "kl_coef": "auto",
        "kl_controller": "adaptive_pi",
        "kl_target": 0.05,
        "save_steps": 1,
    }
    options |= {"kl_coef_samples": 1024, "total_episodes": 64, "kl_horizon": 16}
    whole = new_trainer("whole", **options).train()
    out = capsys.readouterr().out
    assert "estimated from 1,024 completions of the reference" in out
    assert whole[0]["objective/kl_coef"] > 0
    assert whole[-1]["objective/kl_coef"] != whole[0]["objective/kl_coef"]

    new_trainer("cut", **options, stop_at_update=2).train()
    capsys.readouterr()
    assert new_trainer("cut", **options, resume="auto").train() == whole
    assert "estimated from" not in capsys.readouterr().out

    given = options | {"kl_coef": whole[0]["objective/kl_coef"]}
    assert new_trainer("given", **given).train() == whole
