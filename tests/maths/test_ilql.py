"""ILQL's losses and targets, against the numbers of the specification, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from toolkit.maths.ilql import (
    advantages,
    cql_loss,
    expectile_loss,
    final_rewards,
    likelihood_loss,
    polyak,
    q_loss,
    standardized,
    steered,
    td_targets,
)


def near(value: float, rel: float = 1e-5) -> object:
    return pytest.approx(value, rel=rel, abs=1e-6)


# Three tokens of one completion; V also has a value behind the last one, which must not count.
ACTIONS = torch.tensor([[2, 0, 1]])
REWARDS, VALUES = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.6, 0.3, 0.7]])
MASK = torch.ones(1, 3, dtype=torch.bool)
Q = [
    torch.tensor([[[0.0, 0.5, 1.0], [0.2, 0.4, 0.6], [1.0, 0.8, 0.6]]]),
    torch.tensor([[[0.1, 0.4, 0.9], [0.3, 0.3, 0.5], [0.9, 1.0, 0.5]]]),
]
TARGETS = [
    torch.tensor([[[0.0, 0.4, 0.8], [0.1, 0.3, 0.5], [0.7, 0.6, 0.9]]]),
    torch.tensor([[[0.2, 0.3, 0.9], [0.0, 0.2, 0.4], [0.8, 0.9, 0.4]]]),
]
LOGITS = torch.tensor([[[1.0, 0.0, -1.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]]])


def taken(table: Tensor) -> Tensor:
    return table.gather(-1, ACTIONS.unsqueeze(-1)).squeeze(-1)


def logprob(table: Tensor, temperature: float = 1.0) -> Tensor:
    return taken(torch.log_softmax(table / temperature, dim=-1))


def test_td_targets_add_the_next_value_but_nothing_behind_the_last_token() -> None:
    found = td_targets(REWARDS, VALUES, MASK, 0.99)
    torch.testing.assert_close(found, torch.tensor([[0.297, 0.693, 1.0]]))

    # The same completion in a wider batch: what stands in the padding changes nothing.
    wide = torch.tensor([[0.6, 0.3, 0.7, 0.5]])
    mask = torch.tensor([[True, True, True, False]])
    rewards = final_rewards(torch.tensor([1.0]), mask)
    assert rewards.tolist() == [[0.0, 0.0, 1.0, 0.0]]
    torch.testing.assert_close(td_targets(rewards, wide, mask, 0.99)[:, :3], found)
    assert not td_targets(REWARDS, VALUES.clone().requires_grad_(), MASK, 0.99).requires_grad


def test_the_q_loss_adds_up_both_heads_without_a_half() -> None:
    aims = td_targets(REWARDS, VALUES, MASK, 0.99)
    first, second = (q_loss([taken(q)], aims, MASK, 3).item() for q in Q)
    assert (first, second) == (near(0.259086), near(0.172686))
    assert q_loss(map(taken, Q), aims, MASK, 3).item() == near(0.431772)


@pytest.mark.parametrize(
    ("tau", "loss"),
    [(0.5, 0.023333), (0.6, 0.021333), (0.7, 0.019333), (0.8, 0.017333), (0.9, 0.015333)],
)
def test_the_value_loss_weighs_by_the_sign_of_the_advantage(tau: float, loss: float) -> None:
    u = advantages([taken(q) for q in TARGETS], VALUES)
    torch.testing.assert_close(u, torch.tensor([[0.2, -0.3, -0.1]]))
    assert expectile_loss(u, tau, MASK, 3).item() == near(loss, rel=3e-5)


def test_the_value_loss_has_the_gradient_of_the_online_value() -> None:
    values = VALUES.clone().requires_grad_()
    expectile_loss(advantages([taken(q) for q in TARGETS], values), 0.7, MASK, 3).backward()
    torch.testing.assert_close(
        values.grad, torch.tensor([[-0.093333, 0.06, 0.02]]), rtol=1e-4, atol=1e-6
    )


def test_cql_is_the_cross_entropy_of_q_and_the_token_taken() -> None:
    each = [cql_loss([logprob(q)], MASK, 3).item() for q in Q]
    assert each == [near(1.034691), near(0.937113)]
    assert cql_loss(map(logprob, Q), MASK, 3).item() == near(1.971804)
    assert cql_loss([logprob(Q[0], 2.0)], MASK, 3).item() == near(1.057741)


@pytest.mark.parametrize(("beta", "loss"), [(0.0, 1.639024), (1.0, 1.652283), (3.0, 1.909144)])
def test_the_likelihood_is_weighted_by_the_exponential_of_the_advantage(
    beta: float, loss: float
) -> None:
    u = advantages([taken(q) for q in TARGETS], VALUES)
    assert likelihood_loss(logprob(LOGITS), u, beta, MASK, 3).item() == near(loss)


@pytest.mark.parametrize(("tau", "weight", "whole"), [(0.7, 0.1, 2.287309), (0.6, 0.25, 2.585080)])
def test_the_total_is_that_of_trlx_and_of_the_toxicity_task(
    tau: float, weight: float, whole: float
) -> None:
    u = advantages([taken(q) for q in TARGETS], VALUES)
    total = q_loss(map(taken, Q), td_targets(REWARDS, VALUES, MASK, 0.99), MASK, 3)
    total = total + expectile_loss(u, tau, MASK, 3)
    total = total + weight * cql_loss(map(logprob, Q), MASK, 3)
    total = total + likelihood_loss(logprob(LOGITS), u, 0.0, MASK, 3)
    assert total.item() == near(whole)


def test_parts_of_a_batch_add_up_to_the_whole_and_padding_counts_for_nothing() -> None:
    rng = torch.Generator().manual_seed(0)
    u, logprobs = torch.randn(2, 4, 5, generator=rng)
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2]).unsqueeze(1)
    count = int(mask.sum())
    for loss in (
        lambda s: expectile_loss(u[s], 0.7, mask[s], count),
        lambda s: cql_loss([logprobs[s], u[s]], mask[s], count),
        lambda s: likelihood_loss(logprobs[s], u[s], 2.0, mask[s], count),
        lambda s: q_loss([u[s]], logprobs[s], mask[s], count),
    ):
        whole = loss(slice(0, 4))
        torch.testing.assert_close(whole, loss(slice(0, 1)) + loss(slice(1, 4)))
    plain = (u[mask] - logprobs[mask]).square().mean()
    torch.testing.assert_close(q_loss([u], logprobs, mask, count), plain)


def expectile(outcomes: Tensor, weights: Tensor, tau: float) -> float:
    """The value at which the loss's gradient is 0, by bisection."""
    low, high = outcomes.min().item(), outcomes.max().item()
    for _ in range(60):
        middle = torch.tensor((low + high) / 2, dtype=torch.float64, requires_grad=True)
        u = (outcomes - middle).repeat_interleave(weights).unsqueeze(0)
        loss = expectile_loss(u, tau, torch.ones_like(u, dtype=torch.bool), u.numel())
        (slope,) = torch.autograd.grad(loss, middle)
        low, high = (low, middle.item()) if slope > 0 else (middle.item(), high)
    return (low + high) / 2


@pytest.mark.parametrize(
    ("tau", "value"),
    [(0.5, 0.25), (0.6, 1 / 3), (0.7, 0.4375), (0.8, 0.571429), (0.9, 0.75), (0.99, 0.970588)],
)
def test_the_least_value_loss_is_at_the_expectile(tau: float, value: float) -> None:
    outcomes = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    found = expectile(outcomes, torch.ones(4, dtype=torch.long), tau)
    assert found == near(value) and found == near(tau * 0.25 / (tau * 0.25 + (1 - tau) * 0.75))


@pytest.mark.parametrize(
    ("tau", "after", "first", "chosen"),
    [(0.5, 0.5, 0.125, 0.711235), (0.7, 0.7, 0.30625, 0.845716), (0.9, 0.9, 0.675, 0.924239)],
)
def test_towards_1_tau_takes_luck_for_skill(
    tau: float, after: float, first: float, chosen: float
) -> None:
    """a (.75) gives 0; b (.25) gives 1 or 0, by luck. The higher tau, the better b seems."""
    outcomes = torch.tensor([0.0, 1.0], dtype=torch.float64)
    of_b = expectile(outcomes, torch.tensor([1, 1]), tau)
    assert of_b == near(after)
    at_start = torch.tensor([0.0, of_b], dtype=torch.float64)
    assert expectile(at_start, torch.tensor([3, 1]), tau) == near(first)

    policy = torch.tensor([0.75, 0.25], dtype=torch.float64).log()
    u = advantages([at_start, at_start], torch.tensor(first))
    assert steered(policy, u, 4.0, 1.0).softmax(-1)[1].item() == near(chosen)


def test_the_temperature_is_the_language_models_alone() -> None:
    logits, q = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([2.0, 0.0, 1.0])
    u = advantages([q, q + 1], torch.tensor(1.0))
    ours = (steered(logits, u, 1.0, 0.7) / 0.7).softmax(-1)
    assert ours.tolist() == near_list(0.517438, 0.292207, 0.190355)
    # trlX divides the sum: its beta of 1 is one of 1 / T here.
    theirs = (steered(logits, u, 1.0 / 0.7, 0.7) / 0.7).softmax(-1)
    assert theirs.tolist() == near_list(0.675994, 0.162003, 0.162003)
    # V shifts nothing, unless the shift is clipped.
    assert steered(logits, u + 5, 1.0, 0.7).softmax(-1).tolist() == near_list(
        *steered(logits, u, 1.0, 0.7).softmax(-1).tolist()
    )


def near_list(*values: float) -> object:
    return pytest.approx(list(values), abs=2e-6)


def test_wordles_clip_lets_no_token_gain() -> None:
    logits, q = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([2.0, 0.0, 1.0])
    found = steered(logits, q - 1.0, 16.0, 1.0, clipped=True).softmax(-1)
    assert found.tolist() == near_list(0.5, 0.0, 0.5)


@pytest.mark.parametrize(
    ("alpha", "after"),
    [(0.005, (1.048890, 1.394230, 1.993346)), (0.001, (1.009955, 1.095208, 1.632305))],
)
def test_targets_follow_slowly(alpha: float, after: tuple[float, ...]) -> None:
    target, online = torch.ones(1, dtype=torch.float64), torch.full((1,), 2.0, dtype=torch.float64)
    found = []
    for sync in range(1, 1001):
        polyak([target], [online], alpha)
        if sync in (10, 100, 1000):
            found.append(target.item())
    assert found == pytest.approx(after, abs=1e-6) and online.item() == 2.0


def test_rewards_are_standardized_by_the_samples_deviation() -> None:
    found = standardized(torch.tensor([1.0, 2.0, 4.0, 5.0], dtype=torch.float64))
    assert found.tolist() == near_list(-1.095445, -0.547723, 0.547723, 1.095445)
    assert math.isclose(found.std().item(), 1.0)
    for equal in ([3.0, 3.0, 3.0], [1.0]):
        with pytest.raises(ValueError, match="all rewards are equal"):
            standardized(torch.tensor(equal, dtype=torch.float64))
