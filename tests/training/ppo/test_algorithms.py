"""The seam between the loop and what is learned: two hooks, and a run without a value."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from toolkit.errors import InputError
from toolkit.models.actors import TokenOutputs
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.training.ppo.algorithms import PPO, Before, Credit, GroupRelative, Term
from toolkit.training.ppo.config import PPOConfig
from toolkit.training.ppo.rollouts import Rollout

Make = Callable[..., Any]


def rollout_of(scored: list[bool], mask: Tensor) -> Rollout:
    empty = torch.zeros_like(mask, dtype=torch.float32)
    ids = torch.zeros_like(mask, dtype=torch.long)
    flags = torch.tensor(scored)
    return Rollout(
        ids[:, :1], mask[:, :1], ids, mask, empty, empty, None, empty[:, 0], flags, flags
    )


def test_group_relative_credit_is_what_is_still_to_come_less_the_siblings_mean() -> None:
    rewards = torch.tensor([[-0.1, 0.2, 1.0], [0.3, 0.5, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 4.0]])
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1, 2] = False
    credit = GroupRelative(2, 0.2).credit(rewards, rollout_of([True] * 4, mask), lambda x: x)
    # Totals 1.1 and 0.8, 2 and 4; each is compared with the other one of its pair.
    expected = [
        [1.1 - 0.8, 1.2 - 0.8, 1.0 - 0.8],
        [0.8 - 1.1, 0.5 - 1.1, 0.0],
        [2 - 4, 2 - 4, 2 - 4],
        [4 - 2, 4 - 2, 4 - 2],
    ]
    np.testing.assert_allclose(credit.advantages, expected, atol=1e-6)
    np.testing.assert_allclose(credit.returns[0], [1.1, 1.2, 1.0], atol=1e-6)


def test_the_value_can_learn_other_returns_than_the_advantages_come_from() -> None:
    """Rewards (0, 0, 1), values (.5, .4, .3): whole returns are 1; lambda 0 looks one token on."""
    rollout = rollout_of([True], torch.ones(1, 3, dtype=torch.bool))
    rollout.values = torch.tensor([[0.5, 0.4, 0.3]])
    constants = {"whiten_rewards": False, "gamma": 1.0, "cliprange": 0.2, "cliprange_value": 0.2}
    rewards = torch.tensor([[0.0, 0.0, 1.0]])

    def credit(lam: float, lam_value: float | None) -> Credit:
        algorithm = PPO(**constants, lam=lam, vf_coef=0.1, lam_value=lam_value)
        return algorithm.credit(rewards, rollout, lambda x: x)

    both = credit(0.0, 1.0)
    np.testing.assert_allclose(both.returns, [[1.0, 1.0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(both.advantages, credit(0.0, None).advantages)
    np.testing.assert_allclose(credit(0.0, None).returns, [[0.4, 0.3, 1.0]], atol=1e-6)


def test_a_completion_whose_siblings_have_no_score_moves_nothing() -> None:
    mask = torch.ones(4, 2, dtype=torch.bool)
    rewards = torch.tensor([[0.0, 3.0], [0.0, 5.0], [0.0, 1.0], [0.0, 2.0]])
    rollout = rollout_of([True, False, True, True], mask)
    credit = GroupRelative(2, 0.2).credit(rewards, rollout, lambda x: x)
    np.testing.assert_allclose(credit.advantages, [[0, 0], [0, 0], [-1, -1], [1, 1]], atol=1e-6)


def roles_without_value(model: str) -> Roles:
    torch.manual_seed(0)
    return Roles(load_base(model, "fp32"), lora_config(4, 8, "all-linear", "CAUSAL_LM"))


@pytest.mark.slow
def test_a_group_relative_run_makes_no_value_pass_and_resumes_exactly(
    new_trainer: Make, demo_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Tensor:
        raise AssertionError("a value pass was made")

    monkeypatch.setattr(Roles, "values", refuse)
    options = {
        "algorithm": "group_relative",
        "value": "adapter",
        "num_generations": 4,
        "total_episodes": 32,
    }

    def run(name: str, **more: Any) -> Any:
        trainer = new_trainer(name, model=roles_without_value(demo_model), **(options | more))
        trainer.train(more.get("resume"))
        return trainer

    whole = run("whole")
    rows = [json.loads(x) for x in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and rows[0]["loss/value_avg"] is None
    assert rows[-1]["val/first_max_log_ratio"] < 1e-4

    run("cut", stop_at_update=2, save_steps=1)
    again = run("cut", resume="auto")
    for (_, one), (_, other) in zip(whole.model.trainable(), again.model.trainable(), strict=True):
        assert torch.equal(one, other)


def test_each_prompt_comes_in_a_row_as_often_as_its_group_is_large(
    new_trainer: Make, demo_model: str
) -> None:
    trainer = new_trainer(
        model=roles_without_value(demo_model),
        algorithm="group_relative",
        value="adapter",
        num_generations=4,
        total_episodes=512,
    )
    seen = []
    for update in range(1, 33):
        prompts = [tuple(prompt) for prompt in trainer.prompts_of(update)]
        assert all(len(set(prompts[i : i + 4])) == 1 for i in (0, 4))
        seen += prompts[::4]
    everything = sorted(tuple(prompt) for prompt in trainer.train_dataset)
    assert len(seen) == 64 and sorted(seen) == everything


def test_a_group_that_would_be_split_up_is_refused(new_trainer: Make, demo_model: str) -> None:
    with pytest.raises(InputError, match="num_generations is 3, but must divide the batch of 8"):
        new_trainer(
            model=roles_without_value(demo_model),
            algorithm="group_relative",
            value="adapter",
            num_generations=3,
        )


def test_roles_with_a_value_that_nothing_would_train_are_refused(new_trainer: Make) -> None:
    with pytest.raises(InputError, match="group_relative has no value, but the roles do"):
        new_trainer(algorithm="group_relative", value="adapter")


@dataclass(frozen=True)
class Reinforce:
    """An algorithm that somebody adds: the score less its mean over the batch, no clip."""

    uses_value: bool = False
    group_size: int = 1
    statistics: tuple[str, ...] = ("policy", "ratio", "weight_of_the_first")

    def credit(self, rewards: Tensor, rollout: Rollout, total: Any) -> Credit:
        gain = rewards.sum(dim=1, keepdim=True)
        return Credit((gain - gain.mean()).expand_as(rewards), rewards)

    def loss(self, now: TokenOutputs, values: Callable[[], Tensor], then: Before) -> Any:
        loss = -(now.logprobs * then.advantages)[then.mask].mean()
        ratio = (now.logprobs - then.logprobs).detach().exp()
        counted = {"policy": loss, "ratio": ratio.mean(), "weight_of_the_first": ratio[0, 0]}
        yield Term(loss, counted | {"max_log_ratio": ratio.log().abs().max()})


def test_a_new_algorithm_is_one_class_and_its_statistics_are_logged(
    new_trainer: Make, demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.training.ppo.trainer.algorithm_of", lambda config: Reinforce())
    trainer = new_trainer(model=roles_without_value(demo_model), num_ppo_epochs=1)
    before = [p.detach().clone() for p in trainer.parameters]
    row = trainer.train()[0]
    assert row["val/weight_of_the_first"] == pytest.approx(1.0, abs=1e-4)
    assert row["policy/clipfrac_avg"] is None
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"algorithm": "group_relative", "value_init": "reward"}, "value_init"),
        ({"algorithm": "group_relative", "value": "trunk"}, "value"),
        ({"algorithm": "group_relative", "lam": 1.0}, "lam"),
        ({"num_generations": 8}, "num_generations"),
    ],
)
def test_a_flag_of_another_algorithm_is_refused(flags: dict, name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} is not used by") as caught:
        PPOConfig(use_cpu=True, **flags)
    assert caught.value.field == name
