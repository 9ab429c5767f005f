"""ILQL (implicit language Q-learning): its losses, its targets, and how it steers logits.

Offline: it learns from completions with rewards, without sampling. States h_t stand before each
completion token a_t; rewards r_t are 0 but at the last token. Two Q heads with slowly moving
targets Q', and one value head V. Source: arXiv 2206.11871, by the authors' code
(Sea-Snell/Implicit-Language-Q-Learning at 0dc5561) and CarperAI/trlx at 3340c2f.

Each loss is a sum over the batch's real tokens divided by their number ``count``, so that the
losses of the parts of a batch add up to the loss of the whole.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def final_rewards(rewards: Tensor, mask: Tensor) -> Tensor:
    """Return per-token rewards (B, C): a completion's reward at its last real token, 0 elsewhere.

    The reward of a completion that was cut off is at its last token, too.

    Args:
        rewards: (B,).
        mask: bool (B, C), True from the first token to the last.
    """
    last = mask & ~pad(mask[:, 1:], (0, 1))
    return last * rewards.unsqueeze(1)


def td_targets(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Return what Q is to become: r_t + gamma V(h_{t+1}), and r_t alone at the last token.

    Behind the last token there is no state, so nothing is added there (a common mistake).

    Args:
        rewards: (B, C).
        values: (B, C), V of the state before each token. They get no gradient.
        mask: bool (B, C), True = real token.
        gamma: discount.
    """
    alive = pad(mask[:, 1:], (0, 1))
    following = pad(values.detach()[:, 1:], (0, 1))
    return rewards + gamma * alive * following


def q_loss(taken: Iterable[Tensor], targets: Tensor, mask: Tensor, count: Tensor | int) -> Tensor:
    """Return the sum over all Q heads of mean (Q(h, a) - target)^2, without a half.

    Args:
        taken: of each head (B, C), Q of the tokens that were taken.
        targets: (B, C), of ``td_targets``.
        mask: bool (B, C).
        count: number of real tokens in the whole batch.
    """
    errors = torch.stack([(q - targets) ** 2 for q in taken])
    return (errors * mask).sum() / count


def advantages(targets: Sequence[Tensor], values: Tensor) -> Tensor:
    """Return u = min(Q'_1, Q'_2) - V; shapes are equal, or such that V can be subtracted."""
    return torch.stack(list(targets)).amin(dim=0) - values


def expectile_loss(u: Tensor, tau: float, mask: Tensor, count: Tensor | int) -> Tensor:
    """Return mean |tau - 1(u < 0)| u^2, whose minimum over V is the tau-expectile of Q'.

    At tau 0.5 that is the mean. Towards 1 it becomes the best outcome, be it skill or luck.

    Args:
        u: (B, C), of ``advantages``; Q' without a gradient.
        tau: above 0 and below 1.
        mask, count: as for ``q_loss``.
    """
    weights = torch.where(u < 0, 1 - tau, tau)
    return (weights * u**2 * mask).sum() / count


def cql_loss(logprobs: Iterable[Tensor], mask: Tensor, count: Tensor | int) -> Tensor:
    """Return the sum over all Q heads of the cross-entropy of softmax(Q / temperature) and a.

    It keeps Q of tokens that were never taken low. With too little of it they are arbitrary, and a
    large ``beta`` picks them.

    Args:
        logprobs: of each head (B, C), log softmax(Q(h, .) / temperature) at the token taken.
        mask, count: as for ``q_loss``.
    """
    return -(torch.stack(list(logprobs)) * mask).sum() / count


def likelihood_loss(
    logprobs: Tensor, u: Tensor, beta: float, mask: Tensor, count: Tensor | int
) -> Tensor:
    """Return mean exp(beta u) * (-log pi(a)); at beta 0 the plain likelihood of all the data.

    Args:
        logprobs: (B, C), of the policy, with gradients.
        u: (B, C), of ``advantages``; it gets no gradient.
        beta: 0 in every published configuration.
        mask, count: as for ``q_loss``.
    """
    weights = (beta * u.detach()).exp() if beta else torch.ones_like(logprobs)
    return -(weights * logprobs * mask).sum() / count


def standardized(rewards: Tensor) -> Tensor:
    """Return (r - mean) / std over a data set, with the sample's std (divided by n - 1), as trlX.

    Args:
        rewards: fp64 (N,).

    Raises:
        ValueError: there are fewer than two, or all are equal.
    """
    if len(rewards) > 1:
        std = rewards.std(correction=1)
        if bool(std > 1e-12 * rewards.abs().max().clamp(min=1.0)):
            return (rewards - rewards.mean()) / std
    raise ValueError("standardized: all rewards are equal, so they say nothing")


@torch.no_grad()
def polyak(targets: Iterable[Tensor], online: Iterable[Tensor], alpha: float) -> None:
    """Move each target this share of the way to its online weights: Q' <- alpha Q + (1 - alpha) Q'.

    Args:
        targets, online: tensors of the same shapes, in the same order; the targets are changed.
        alpha: from 0 to 1.
    """
    for target, weight in zip(targets, online, strict=True):
        target.lerp_(weight, alpha)


def steered(
    logits: Tensor, u: Tensor, beta: float, temperature: float, clipped: bool = False
) -> Tensor:
    """Return logits whose softmax(. / T) is softmax(logits / T + beta u).

    So the temperature is the language model's alone, as in the authors' code. trlX divides the sum
    by it; its beta is this one times T. V shifts all logits alike, so it matters only if the shift
    is ``clipped`` at 0 from above, which the authors do for Wordle.

    Args:
        logits: (..., V) fp32, of the policy.
        u: (..., V), of ``advantages``: of each next token.
        beta: how strongly; 0 leaves the policy as it is.
        temperature: T, by which the sampler will divide.
        clipped: whether no token gains.
    """
    shift = beta * u
    return logits + temperature * (shift.clamp(max=0.0) if clipped else shift)
