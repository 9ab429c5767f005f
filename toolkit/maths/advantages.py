"""Generalised advantage estimation."""

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, gamma: float, lam: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, backwards in time.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  R_t = A_t + V_t,
    with V = A = 0 behind the last token (an episode ends there).
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
