"""KL: its estimators, the place where it enters the rewards, and the controllers of its weight."""

import math
from typing import Any

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
    """Rewards per token: r_t = -kl_coef * kl_t, and the score on the last real token.

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


class FixedKLController:
    """The coefficient stays as it is."""

    def __init__(self, kl_coef: float) -> None:
        self.value = kl_coef

    def update(self, kl: float, episodes: int) -> None:
        """Nothing to learn from the ``kl`` observed."""

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class AdaptiveKLController(FixedKLController):
    """Proportional control in log space: the KL above its target raises the coefficient.

    e = clip(KL / target - 1, -0.2, 0.2);  value *= 1 + e * episodes / horizon.
    Source: openai/lm-human-preferences lm_human_preferences/train_policy.py:115-124. The paper
    (arXiv 1909.08593 section 2.2) writes value *= 1 + K e with K = 0.1: the same thing with
    ``kl_horizon`` = 10 x the batch.

    Args:
        kl_coef: where it starts.
        kl_target: nats, for the sum over a completion's tokens, averaged over completions.
        kl_horizon: episodes; the shorter, the faster the coefficient moves.
    """

    def __init__(self, kl_coef: float, kl_target: float, kl_horizon: float) -> None:
        super().__init__(kl_coef)
        self.kl_target = kl_target
        self.kl_horizon = kl_horizon

    def update(self, kl: float, episodes: int) -> None:
        """Adjust by the KL seen on the last rollouts.

        Args:
            kl: nats; mean over all ranks' sequences of the sum over tokens.
            episodes: sequences in it, all ranks together.

        Raises:
            ValueError: the KL is not finite; the coefficient is left as it was.
        """
        if not math.isfinite(kl):
            raise ValueError(f"KL is {kl}: the policy has diverged, or a log-prob is not finite")
        error = min(max(kl / self.kl_target - 1, -0.2), 0.2)
        self.value *= 1 + error * episodes / self.kl_horizon
