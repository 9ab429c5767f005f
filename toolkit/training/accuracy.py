"""How often a reward model agrees with the pick, and whether that can be luck."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from scipy.stats import t

from toolkit.maths.losses import best_of_k_loss
from toolkit.maths.statistics import design_effect, tail_probability, wilson_interval

Facts = dict[str, Any]
SURE, HINT = 0.001, 0.05  # probabilities of luck below which a model is trusted, or hoped for


def credit(scores: Sequence[float], best: int, texts: Sequence[Hashable]) -> float:
    """1 where the pick has the highest score, 0 where it has not, 1/m where m texts share it.

    Equal texts are one: a pick of either is right.
    """
    top = max(scores)
    tied = {text for text, score in zip(texts, scores, strict=True) if score == top}
    return 1 / len(tied) if texts[best] in tied else 0.0


def share(credits: Sequence[float], prompts: Sequence[Hashable]) -> Facts:
    """Mean with Wilson's 95 % interval, of as many trials as the rows are worth.

    Rows of one prompt may be right or wrong together; the interval is widened by what they show of
    that (``design_effect``).

    Returns:
        value, low, high, n (rows) and prompts.
    """
    n = len(credits)
    if not n:
        return {"value": 0.0, "low": 0.0, "high": 1.0, "n": 0, "prompts": 0}
    value = math.fsum(credits) / n
    trials = n / design_effect(credits, prompts)
    low, high = wilson_interval(value * trials, trials)
    return {"value": value, "low": low, "high": high, "n": n, "prompts": len(set(prompts))}


def luck(credits: Sequence[float], chances: Sequence[float], prompts: Sequence[Hashable]) -> float:
    """Probability of so many right ones by chance: exact, or by a t test over prompts if larger."""
    exact = tail_probability(math.floor(math.fsum(credits) + 1e-9), chances)
    groups = len(set(prompts))
    effect = design_effect(credits, prompts)
    if effect <= 1 or groups < 2:
        return exact
    spread = math.sqrt(effect * math.fsum(p * (1 - p) for p in chances))
    excess = math.fsum(credits) - math.fsum(chances)
    return max(exact, float(t.sf(excess / spread, groups - 1)))


def best_of_k_accuracy(
    scores: Sequence[Sequence[float]],
    best: Sequence[int],
    texts: Sequence[Sequence[Hashable]] | None = None,
    prompts: Sequence[Hashable] | None = None,
) -> Facts:
    """How often the highest score is the pick, with its interval, beside chance.

    Args:
        scores: raw, for each comparison.
        best: the picks.
        texts: what was scored, to know equal candidates; None takes all as different.
        prompts: by which rows belong together; None takes all as different.

    Returns:
        accuracy, accuracy_low, accuracy_high, p (``luck``), chance, loss, comparisons, prompts.
    """
    texts = texts or [range(len(row)) for row in scores]
    prompts = prompts or range(len(scores))
    credits = [credit(s, b, x) for s, b, x in zip(scores, best, texts, strict=True)]
    chances = [1 / len(row) for row in scores]
    found = share(credits, prompts)
    losses = [
        best_of_k_loss(torch.tensor([row], dtype=torch.float64), torch.tensor([b])).item()
        for row, b in zip(scores, best, strict=True)
    ]
    return {
        "accuracy": found["value"], "accuracy_low": found["low"], "accuracy_high": found["high"],
        "p": luck(credits, chances, prompts), "chance": math.fsum(chances) / len(chances),
        "loss": math.fsum(losses) / len(losses), "comparisons": found["n"],
        "prompts": found["prompts"],
    }  # fmt: skip


def judge(metrics: Facts) -> tuple[bool, str]:
    """Whether a reward model can be trusted, and a sentence that says why.

    Trusted: luck alone gives such an accuracy with a probability below 0.001.

    Args:
        metrics: of ``best_of_k_accuracy``.
    """
    figures = (
        f"{metrics['accuracy']:.1%} of {metrics['comparisons']} held-out picks right "
        f"[{metrics['accuracy_low']:.1%}, {metrics['accuracy_high']:.1%}], by chance "
        f"{metrics['chance']:.1%}; chance gives as many with probability {metrics['p']:.2g}"
    )
    if metrics["p"] < SURE:
        return True, f"It has learned what people pick: {figures}."
    if metrics["p"] < HINT:
        return False, (
            f"Probably better than chance, but not surely: {figures}. Hold out more (--eval_rows), "
            "or collect more comparisons."
        )
    return False, (
        f"Not to be told from chance: {figures}. PPO would learn nothing from it; try a higher "
        "--learning_rate, more --num_train_epochs, more comparisons, or hold out more of them."
    )
