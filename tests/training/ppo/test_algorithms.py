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
from toolkit.maths.kl import penalized_rewards
from toolkit.maths.masking import here, whiten
from toolkit.models.actors import TokenOutputs
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.training.ppo.algorithms import (
    PPO,
    Before,
    Credit,
    PolicyTerm,
    Siblings,
    Term,
    algorithm_of,
)
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


def test_ppo_with_one_pass_is_a2c() -> None:
    """An example by hand: the loss, its gradient on the log-probs, and that on the values."""
    flags = {"lam": 1.0, "whiten_rewards": False, "whiten_advantages": False}
    a2c = algorithm("ppo", **flags, vf_coef=0.1, entropy_coef=0.01)
    mask = torch.ones(1, 3, dtype=torch.bool)
    rollout = rollout_of([True], mask)
    rollout.values = torch.tensor([[0.5, 0.4, 0.3]])
    credit = a2c.credit(torch.tensor([[0.0, 0.0, 1.0]]), rollout, here)
    np.testing.assert_allclose(credit.advantages, [[0.5, 0.6, 0.7]], atol=1e-6)
    np.testing.assert_allclose(credit.returns, [[1.0, 1.0, 1.0]], atol=1e-6)

    logprobs = torch.tensor([[-1.0, -2.0, -0.5]], requires_grad=True)
    values = rollout.values.clone().requires_grad_()
    entropies = torch.tensor([[0.6, 0.9, 0.4]], requires_grad=True)
    then = Before(
        logprobs.detach(), rollout.values, *credit[:2], mask, logprobs.detach(), kl_coef=0.0
    )
    (term,) = a2c.loss(TokenOutputs(logprobs, entropies, values), None, then)
    found = torch.autograd.grad(term.loss, (logprobs, values, entropies))

    # -mean(A log pi) is .683333 here, the mean square of V - R .366667, and mean H .633333.
    policy = -(credit.advantages * logprobs).mean()
    critic = ((values - credit.returns) ** 2).mean()
    assert policy.item() == pytest.approx(0.683333, abs=1e-6)
    assert critic.item() == pytest.approx(0.366667, abs=1e-6)
    whole = policy + 0.1 * critic / 2 - 0.01 * entropies.mean()
    assert whole.item() == pytest.approx(0.701667 - 0.006333, abs=1e-6)
    assert (policy + 0.5 * critic - 0.01 * entropies.mean()).item() == pytest.approx(0.860333)
    for one, other in zip(
        found, torch.autograd.grad(whole, (logprobs, values, entropies)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=0)
    np.testing.assert_allclose(found[0], [[-0.166667, -0.2, -0.233333]], atol=1e-6)


@pytest.mark.parametrize(("alpha", "expected"), [(0.1, 0.740517), (0.05, 0.777864)])
def test_a_share_of_the_kl_in_the_loss_is_a_coefficient(alpha: float, expected: float) -> None:
    """alpha KL + (1 - alpha) A2C is (1 - alpha) times a loss with kl_coef alpha / (1 - alpha)."""
    p = torch.tensor([1.0, 0.0, -1.0]).softmax(0)
    kl = (p * (p / Q.float()).log()).sum().view(1, 1)
    logprob, one = p[0].log().view(1, 1).requires_grad_(), torch.ones(1, 1, dtype=torch.bool)
    coef = alpha / (1 - alpha)
    then = Before(logprob, None, torch.tensor([[2.0]]), logprob, one, logprob, coef)
    term = PolicyTerm(0.2, kl_loss="full")(TokenOutputs(logprob, logprob, None, kl), then)
    # At ratio 1 the loss is -A, where A2C's is -A log p; their gradients are the same.
    a2c = term.loss + 2.0 - 2.0 * logprob
    assert (1 - alpha) * a2c.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["trunk", "adapter"])
@pytest.mark.parametrize("size", [8, 2])
def test_entropy_and_whole_kl_in_the_loss_have_the_gradients_of_whole_logits(
    new_trainer: Make, demo_model: str, value: str, size: int
) -> None:
    """A2C with a deeper value head, in one micro-batch and in four."""
    torch.manual_seed(0)
    lora = lora_config(4, 8, "all-linear", "CAUSAL_LM")
    model = Roles(load_base(demo_model, "fp32"), lora, value=value, value_hidden=[6, 5])
    trainer = new_trainer(
        model=model,
        value=value,
        value_hidden=[6, 5],
        per_device_train_batch_size=size,
        gradient_accumulation_steps=8 // size,
        learning_rate=0.0,
        num_ppo_epochs=1,
        entropy_coef=0.3,
        kl_in="loss",
        kl_coef=0.7,
        vf_coef=0.4,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    rollout = trainer.collect(1)
    rollout.mask &= torch.arange(8) < torch.tensor([8, 2, 5, 4, 1, 7, 3, 6]).unsqueeze(1)
    everything = torch.arange(8)
    passage, mask = rollout.passage(everything), rollout.mask
    advantages, returns = torch.randn((2, 8, 8), generator=generator)
    trainer._step(rollout, Credit(advantages, returns), everything)
    found = [p.grad.clone() for p in trainer.parameters]

    with torch.no_grad():
        log_q = (model.logits("reference", *passage, 8) / 0.7).log_softmax(-1)
    log_p = (model.logits("policy", *passage, 8) / 0.7).log_softmax(-1)
    p = log_p.exp()
    chosen = log_p.gather(-1, rollout.completion_ids[..., None])[..., 0]
    loss = -advantages * chosen + 0.3 * (p * log_p).sum(-1) + 0.7 * (p * (log_p - log_q)).sum(-1)
    policy = loss[mask].mean()
    expected = torch.autograd.grad(policy, trainer.parameters, allow_unused=True)
    critic = ((model.values(*passage, 8) - returns) ** 2)[mask].mean()
    more = torch.autograd.grad(0.2 * critic, trainer.parameters, allow_unused=True)
    for one, first, second in zip(found, expected, more, strict=True):
        whole = sum(part for part in (first, second) if part is not None)
        torch.testing.assert_close(one, whole, atol=5e-6, rtol=1e-3)


SCORES = torch.tensor([1.0, 0.0, 0.5, -1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 1.0, 1.0, 3.0])


def algorithm(name: str, **flags: Any) -> Any:
    return algorithm_of(PPOConfig(use_cpu=True, algorithm=name, **flags))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rloo", [1.166667, -0.166667, 0.5, -1.5, 0, 0, 0, 0, 4 / 3, -4 / 3, -4 / 3, 4 / 3]),
        (
            "grpo",
            [1.024575, -0.146368, 0.439104, -1.317311, 0, 0, 0, 0]
            + [0.865950, -0.865950, -0.865950, 0.865950],
        ),
        ("dr_grpo", [0.875, -0.125, 0.375, -1.125, 0, 0, 0, 0, 1, -1, -1, 1]),
        (
            "reinforce_plus_plus",
            [-0.329293, -1.207407, -0.768350, -2.085521, 0.548821, 0.548821, 0.548821, 0.548821]
            + [1.426935, -0.329293, -0.329293, 1.426935],
        ),
        (
            "reinforce_plus_plus_baseline",
            [1.218544, -0.174078, 0.522233, -1.566699, 0, 0, 0, 0]
            + [1.392621, -1.392621, -1.392621, 1.392621],
        ),
    ],
)
def test_each_sibling_has_its_papers_advantages(name: str, expected: list[float]) -> None:
    mask = torch.ones(12, 2, dtype=torch.bool)
    rewards = torch.stack([torch.zeros(12), SCORES], dim=1)
    credit = algorithm(name).credit(rewards, rollout_of([True] * 12, mask), here)
    np.testing.assert_allclose(credit.advantages, np.stack([expected] * 2, axis=1), atol=2e-6)


KL = torch.tensor([[0.1, 0.2, 0.2], [0.3, 0.3, 0.4], [0.0, 0.0, 0.0], [1.0, 0.5, 0.5]])


def test_rloo_is_gae_with_lambda_one_and_a_value_that_is_the_siblings_mean() -> None:
    mask = torch.ones(4, 3, dtype=torch.bool)
    rewards = penalized_rewards(SCORES[:4], KL, 0.2, mask)
    rollout = rollout_of([True] * 4, mask)
    credit = algorithm("rloo").credit(rewards, rollout, here)
    expected = [
        [1.266667, 1.286667, 1.326667],
        [-0.2, -0.14, -0.08],
        [0.733333, 0.733333, 0.733333],
        [-1.8, -1.6, -1.5],
    ]
    np.testing.assert_allclose(credit.advantages, expected, atol=2e-6)

    baselines = torch.tensor([-0.366667, 0.0, -0.233333, 0.4])
    values = baselines.unsqueeze(1).expand(4, 3)
    ppo = PPO(False, 1.0, 1.0, PolicyTerm(0.2), 0.2, 0.1)
    rollout.values = values
    whitened = ppo.credit(rewards, rollout, here).advantages
    torch.testing.assert_close(whitened, whiten(credit.advantages), atol=1e-5, rtol=0)

    # A ratio for each completion needs one advantage for each: that of its first token.
    whole = algorithm("rloo", ratio_of="completion").credit(rewards, rollout, here)
    assert torch.equal(whole.advantages, credit.advantages[:, :1].expand(4, 3))


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo", "reinforce_plus_plus_baseline"])
def test_what_has_no_score_moves_no_sibling(name: str) -> None:
    """Two of three scored are compared with each other, and one of three with nothing."""
    scored = [True, False, True, True, False, False]
    mask = torch.ones(6, 1, dtype=torch.bool)
    rewards = torch.tensor([[1.0], [50.0], [3.0], [-7.0], [50.0], [50.0]])
    found = algorithm(name, num_generations=3, per_device_train_batch_size=6).credit(
        rewards, rollout_of(scored, mask), here
    )
    apart = {"rloo": 2.0, "grpo": 1 / 2**0.5, "dr_grpo": 1.0, "reinforce_plus_plus_baseline": 1.0}
    gap = apart[name]
    np.testing.assert_allclose(found.advantages[:, 0], [-gap, 0, gap, 0, 0, 0], atol=1e-4)


def test_near_equal_scores_are_not_blown_up_beyond_grpos_own_constant() -> None:
    """Scores that are equal but for rounding must not become advantages of plus and minus 1."""
    scores = torch.tensor([0.1, 0.1 + 1e-8, 0.1, 0.1]).unsqueeze(1)
    mask = torch.ones(4, 1, dtype=torch.bool)
    found = algorithm("grpo").credit(scores, rollout_of([True] * 4, mask), here)
    assert found.advantages.abs().max() < 1e-3


@pytest.mark.parametrize(
    ("length_mean", "expected"), [("completions", 0.0), ("tokens", 1 / 3), ("constant", 0.25)]
)
def test_lengths_weigh_as_each_mean_says(length_mean: str, expected: float) -> None:
    """Advantages 1 and -1, ratio 1, completions of 2 and 4 tokens, of at most 4."""
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    flags = {"num_generations": 2, "length_mean": length_mean, "kl_in": "reward"}
    sibling = algorithm("dr_grpo", **flags)
    rewards = torch.zeros(2, 4)
    rewards[0, 1], rewards[1, 3] = 1.0, -1.0
    credit = sibling.credit(rewards, rollout_of([True, True], mask), here)
    weights = None if credit.weights is None else credit.weights * (6 / 2)
    same = torch.zeros(2, 4)
    then = Before(same, None, credit.advantages, credit.returns, mask, same, 0.0, weights)
    (term,) = sibling.loss(TokenOutputs(same, same, None), None, then)
    assert term.loss.item() == pytest.approx(expected, abs=1e-6)


P = torch.tensor([0.665241, 0.244728, 0.090031]).double()
Q = torch.tensor([0.5, 0.3, 0.2]).double()


@pytest.mark.parametrize(
    ("estimator", "towards"),
    [
        ("k2", [0.144545, -0.066540, -0.078005]),  # the gradient of KL(p || q)
        ("k3", [0.165241, -0.055272, -0.109969]),  # that of KL(q || p): p - q
        ("k3_weighted", [0.144545, -0.066540, -0.078005]),
    ],
)
def test_a_kl_in_the_loss_pulls_where_the_help_says(estimator: str, towards: list[float]) -> None:
    """The expected gradient on the logits (1, 0, -1), over a token drawn from p."""
    logits = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    logprobs = logits.log_softmax(0).unsqueeze(1)  # (3, 1): one row for each token
    zero, mask = torch.zeros(3, 1).double(), torch.ones(3, 1, dtype=torch.bool)
    weights = 3 * P.unsqueeze(1)  # so that the mean over rows is the expectation
    then = Before(logprobs.detach(), None, zero, zero, mask, Q.log().unsqueeze(1), 1.0, weights)
    term = PolicyTerm(0.2, kl_loss=estimator)(TokenOutputs(logprobs, zero, None), then)
    (gradient,) = torch.autograd.grad(term.loss, logits)
    np.testing.assert_allclose(gradient, towards, atol=2e-6)


def test_group_relative_credit_is_what_is_still_to_come_less_the_siblings_mean() -> None:
    rewards = torch.tensor([[-0.1, 0.2, 1.0], [0.3, 0.5, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 4.0]])
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1, 2] = False
    credit = Siblings(2, PolicyTerm(0.2)).credit(rewards, rollout_of([True] * 4, mask), lambda x: x)
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
    constants = {"whiten_rewards": False, "gamma": 1.0, "cliprange_value": 0.2}
    rewards = torch.tensor([[0.0, 0.0, 1.0]])

    def credit(lam: float, lam_value: float | None) -> Credit:
        algorithm = PPO(
            **constants, lam=lam, vf_coef=0.1, lam_value=lam_value, policy=PolicyTerm(0.2)
        )
        return algorithm.credit(rewards, rollout, lambda x: x)

    both = credit(0.0, 1.0)
    np.testing.assert_allclose(both.returns, [[1.0, 1.0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(both.advantages, credit(0.0, None).advantages)
    np.testing.assert_allclose(credit(0.0, None).returns, [[0.4, 0.3, 1.0]], atol=1e-6)


def test_a_completion_whose_siblings_have_no_score_moves_nothing() -> None:
    mask = torch.ones(4, 2, dtype=torch.bool)
    rewards = torch.tensor([[0.0, 3.0], [0.0, 5.0], [0.0, 1.0], [0.0, 2.0]])
    rollout = rollout_of([True, False, True, True], mask)
    credit = Siblings(2, PolicyTerm(0.2)).credit(rewards, rollout, lambda x: x)
    np.testing.assert_allclose(credit.advantages, [[0, 0], [0, 0], [-1, -1], [1, 1]], atol=1e-6)


def roles_without_value(model: str) -> Roles:
    torch.manual_seed(0)
    return Roles(load_base(model, "fp32"), lora_config(4, 8, "all-linear", "CAUSAL_LM"))


LOSSES = {
    "grpo": lambda x, n: (x.sum(1) / n).mean(),
    "dr_grpo": lambda x, n: (x.sum(1) / 8).mean(),
    "reinforce_plus_plus_baseline": lambda x, n: x.sum() / n.sum(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_papers_whatever_the_micro_batches(
    new_trainer: Make, demo_model: str, name: str
) -> None:
    """Completions of many lengths, one without a score; written anew on whole logits."""
    gradients = []
    for size in (8, 2):
        options = {"algorithm": name, "value": "adapter", "kl_coef": 0.7}
        trainer = new_trainer(
            str(size),
            model=roles_without_value(demo_model),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            learning_rate=0.0,
            **options,
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in trainer.parameters:  # away from the reference
                parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
        rollout = trainer.collect(1)
        rollout.scored[3] = False
        rollout.mask &= torch.arange(8) < torch.tensor([8, 2, 5, 4, 1, 7, 3, 6]).unsqueeze(1)
        rollout.logprobs += 0.3 * torch.randn(rollout.logprobs.shape, generator=generator)
        advantages = torch.randn(rollout.logprobs.shape, generator=generator)
        weights = trainer.algorithm.credit(advantages, rollout, here).weights
        trainer._step(rollout, Credit(advantages, advantages, weights), torch.arange(8))
        gradients.append([p.grad.clone() for p in trainer.parameters])

    logits = trainer.model.logits("policy", *rollout.passage(torch.arange(8)), 8)
    now = (logits / 0.7).log_softmax(-1).gather(-1, rollout.completion_ids[..., None])[..., 0]
    ratio = (now - rollout.logprobs).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clip(0.8, 1.2))
    apart = rollout.ref_logprobs - now
    k2, k3 = apart**2 / 2, apart.exp() - 1 - apart
    loss = (loss + 0.7 * (k2 if name == "reinforce_plus_plus_baseline" else k3)) * rollout.learned
    lengths = rollout.learned.sum(1)
    assert lengths[3] == 0
    kept = lengths > 0
    expected_ones = torch.autograd.grad(LOSSES[name](loss[kept], lengths[kept]), trainer.parameters)
    for expected, *found in zip(expected_ones, *gradients, strict=True):
        for each in found:
            torch.testing.assert_close(each, expected, atol=2e-6, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["group_relative", "grpo"])
def test_a_run_with_siblings_makes_no_value_pass_and_resumes_exactly(
    new_trainer: Make,
    demo_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    algorithm: str,
) -> None:
    def refuse(*args: Any) -> Tensor:
        raise AssertionError("a value pass was made")

    monkeypatch.setattr(Roles, "values", refuse)
    options = {
        "algorithm": algorithm,
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
    if algorithm == "group_relative":  # the earlier name of rloo, and still the same run
        options["algorithm"] = "rloo"
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


def test_a_coefficient_is_not_estimated_beside_rewards_of_another_unit() -> None:
    """In the loss the KL stands beside advantages that whitened rewards have divided."""
    flags = {"kl_coef": "auto", "kl_in": "loss", "whiten_advantages": False}
    with pytest.raises(InputError, match="from scores, which whiten_rewards divides"):
        PPOConfig(use_cpu=True, **flags)
    PPOConfig(use_cpu=True, **flags, whiten_rewards=False)
    PPOConfig(use_cpu=True, kl_coef="auto", algorithm="grpo")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"algorithm": "group_relative", "value_init": "reward"}, "value_init"),
        ({"algorithm": "group_relative", "value": "trunk"}, "value"),
        ({"algorithm": "group_relative", "lam": 1.0}, "lam"),
        ({"num_generations": 8}, "num_generations"),
        ({"length_mean": "constant"}, "length_mean"),
        ({"algorithm": "grpo", "value_hidden": [8]}, "value_hidden"),
        ({"algorithm": "rloo", "whiten_advantages": False}, "whiten_advantages"),
        ({"ratio_of": "completion"}, "ratio_of"),
        ({"algorithm": "reinforce_plus_plus", "num_generations": 8}, "num_generations"),
        ({"algorithm": "grpo", "kl_in": "reward", "kl_loss": "k3"}, "kl_loss"),
    ],
)
def test_a_flag_of_another_algorithm_is_refused(flags: dict, name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} is not used by") as caught:
        PPOConfig(use_cpu=True, **flags)
    assert caught.value.field == name
