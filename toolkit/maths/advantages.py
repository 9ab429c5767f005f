"""Advantages: generalized advantage estimation, and baselines from a completion's siblings."""

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, gamma: float, lam: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute advantages and returns, backwards in time.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  R_t = A_t + V_t,
    with V = A = 0 after the last token, where an episode ends.
    Source: Schulman et al. arXiv 1506.02438 eq. 16; openai/lm-human-preferences
    lm_human_preferences/train_policy.py:324-336. Returns are taken before any whitening.

    Args:
        rewards: (B, C), r_t for the action that picked token t.
        values: (B, C), V of the state *before* token t.
        gamma: discount.
        lam: 0 gives one-step differences, 1 the whole return.
        mask: bool (B, C), True = real token; padding only at the end of a row.

    Returns:
        advantages (B, C) and returns (B, C), 0 outside the mask.
    """
    if mask is not None:
        rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    next_value = torch.zeros_like(rewards[:, 0])
    running = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = delta + gamma * lam * running
        advantages[:, t] = running
        next_value = values[:, t]
    returns = advantages + values
    return advantages, returns


def leave_one_out(totals: Tensor, scored: Tensor, size: int) -> Tensor:
    """The mean total of each completion's siblings: b_i = mean over j != i of R_j in its group.

    R_i - b_i = n/(n-1) (R_i - mean R) for the n scored completions of a group.
    Source: RLOO, arXiv 2402.14740 eq. 7.

    Args:
        totals: (B,); each run of ``size`` entries belongs to one prompt.
        scored: bool (B,); a completion without a score does not count as a sibling.
        size: completions in a group.

    Returns:
        (B,); 0 where a completion has no scored sibling.
    """
    groups, counts = totals.view(-1, size), scored.view(-1, size).to(totals.dtype)
    known = groups * counts
    others = counts.sum(dim=1, keepdim=True) - counts
    return ((known.sum(dim=1, keepdim=True) - known) / others.clamp(min=1)).view(-1)


def group_moments(totals: Tensor, scored: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each completion's group, itself included.

    The deviation is the sample's, divided by n - 1 for n scored completions.
    Source: GRPO, arXiv 2402.03300 section 4.1.2; trl/trainer/grpo_trainer.py:
    _generate_and_score_completions, which divides by n - 1.

    Args:
        totals, scored, size: as for leave_one_out.

    Returns:
        means (B,) and deviations (B,); both 0 where nothing is scored, and the deviation is 0
        where only one completion is.
    """
    groups, counts = totals.view(-1, size), scored.view(-1, size).to(totals.dtype)
    number = counts.sum(dim=1, keepdim=True)

    mean = (groups * counts).sum(dim=1, keepdim=True) / number.clamp(min=1)
    squares = ((groups - mean) ** 2 * counts).sum(dim=1, keepdim=True)
    deviation = (squares / (number - 1).clamp(min=1)).sqrt()

    return mean.expand_as(groups).reshape(-1), deviation.expand_as(groups).reshape(-1)
