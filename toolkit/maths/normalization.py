"""Normalizing scores on reference samples, and the reward head's initial scale."""

import math

from torch import Tensor


def gain_and_bias(
    scores: Tensor, target_mean: float = 0.0, target_std: float = 1.0
) -> tuple[float, float]:
    """Return (gain, bias) so that gain * scores + bias has the target mean and population std.

    One kl_coef then means the same for every reward model.
    Source: openai/lm-human-preferences lm_human_preferences/rewards.py:73-89.

    Args:
        scores: (N,), raw (gain 1, bias 0), of samples from the reference.

    Raises:
        ValueError: there are fewer than two scores, all are equal, or one is not finite.
    """
    scores = scores.double()
    if scores.numel() < 2 or not bool(scores.isfinite().all()):
        raise ValueError("gain_and_bias: needs at least two scores, all finite")
    mean, std = scores.mean().item(), scores.std(correction=0).item()
    if std <= 1e-12 * max(1.0, abs(mean)):
        raise ValueError(
            "gain_and_bias: all reference samples have the same score; the head learned nothing"
        )
    gain = target_std / std
    return gain, target_mean - gain * mean


def head_init_std(hidden_size: int) -> float:
    """1 / sqrt(d + 1), the initial standard deviation of the reward head (its bias starts at 0).

    Source: openai/lm-human-preferences lm_human_preferences/language/model.py:248-255,368.
    transformers initializes ``score`` with 0.02, whatever the width.
    """
    return 1 / math.sqrt(hidden_size + 1)
