"""The KL's estimators, and the place where it enters the rewards."""

import torch
from torch import Tensor

from toolkit.maths.sequences import last_real_token


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled.

    With r = p_ref / p_policy:  k1 = -ln r,  k2 = (ln r)^2 / 2,  k3 = (r - 1) - ln r.
    k1 is unbiased and can be negative; k2 is biased and never negative; k3 is both unbiased and
    never negative. Source: J. Schulman, "Approximating KL divergence" (2020).

    Args:
        logprobs, ref_logprobs: (B, C), of the sampled tokens, in nats.

    Returns:
        (B, C).
    """
    log_ratio = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return log_ratio**2 / 2
    if estimator == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"estimator is {estimator!r}, but must be k1, k2 or k3")


def penalized_rewards(scores: Tensor, kl: Tensor, kl_coef: float, mask: Tensor) -> Tensor:
    """Rewards per token: r_t = -kl_coef * kl_t, plus the score on the last real token.

    Source: arXiv 1909.08593 section 2.2 (R = r - beta log(pi / rho)); placement as in
    openai/lm-human-preferences lm_human_preferences/train_policy.py:149-155, where every completion
    is full and the last token is C - 1.

    Args:
        scores: (B,), one for each whole completion.
        kl: (B, C), nats per token.
        kl_coef: the controller's present value.
        mask: bool (B, C), True = real token.

    Returns:
        (B, C), 0 outside the mask.
    """
    rewards = -kl_coef * kl * mask
    last = last_real_token(mask).unsqueeze(1)
    return rewards.scatter_add(1, last, scores.to(rewards.dtype).unsqueeze(1))
