"""The score of the best possible policy at a given KL: the curve that runs are compared with."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Tilt(NamedTuple):
    """Reference samples reweighted by exp(score / kl_coef).

    Attributes:
        score: mean score under the tilted policy, averaged over prompts.
        kl: nats from the reference, averaged over prompts.
        effective_samples: 1 / sum w^2 of the prompt where it is least; do not trust a small one.
    """

    score: float
    kl: float
    effective_samples: float


def exponential_tilt(scores: Tensor, kl_coef: float, logprobs: Tensor | None = None) -> Tilt:
    """The optimum of E[r] - kl_coef KL(pi || rho): pi proportional to rho exp(r / kl_coef).

    Samples get self-normalized importance weights w_i = softmax(r_i / kl_coef), and
    KL = sum_i w_i log(N w_i), which cannot exceed ln N. If the reference can be enumerated, pass
    its log-probabilities; the result is then exact. Samples of other distributions need their
    weights (``mixture_logprobs``).
    Source: arXiv 1909.08593 section 3.1.1, figure 3.

    Args:
        scores: (P, N), N samples of the reference for each of P prompts.
        kl_coef: weight of the KL, in score per nat.
        logprobs: (P, N), of an enumerated reference, or logs of weights that sum to 1 and make the
            samples stand for it; by default log(1 / N) for each sample.
    """
    scores = scores.double()
    n = scores.shape[1]
    base = torch.full_like(scores, -math.log(n)) if logprobs is None else logprobs.double()
    log_weights = torch.log_softmax(base + scores / kl_coef, dim=1)
    weights = log_weights.exp()
    kl = (weights * (log_weights - base)).sum(dim=1)
    return Tilt(
        score=(weights * scores).sum(dim=1).mean().item(),
        kl=kl.mean().item(),
        effective_samples=(1 / (weights**2).sum(dim=1)).min().item(),
    )


def mixture_logprobs(log_ratios: Tensor) -> Tensor:
    """Logs of the weights by which samples of reference and policy stand for the reference's.

    With as many samples of the one as of the other, a sample comes from their even mixture, and its
    weight is rho / ((rho + pi) / 2) (the balance heuristic of multiple importance sampling). So
    the tilt can be estimated far from the reference: near the policy there are samples enough.

    Args:
        log_ratios: (P, N), log pi - log rho of each sample, in nats; half of a row's samples are
            the reference's and half are the policy's.

    Returns:
        (P, N) fp64; their exponentials sum to 1 in each row.
    """
    ratios = log_ratios.double()
    return torch.log_softmax(-torch.logaddexp(torch.zeros_like(ratios), ratios), dim=1)


def tilt_at_kl(scores: Tensor, kl: float, logprobs: Tensor | None = None) -> Tilt:
    """Find the tilt whose KL is ``kl`` nats, by bisection over kl_coef; arguments as above.

    If the samples cannot represent that KL (ln N is the most), return the farthest that they can.
    """
    spread = max(float(scores.max() - scores.min()), 1e-9)
    low, high = 1e-4 * spread, 1e4 * spread
    tilt = exponential_tilt(scores, low, logprobs)
    if tilt.kl <= kl:
        return tilt
    for _ in range(50):
        middle = math.sqrt(low * high)
        tilt = exponential_tilt(scores, middle, logprobs)
        low, high = (middle, high) if tilt.kl > kl else (low, middle)
    return tilt


STEEPEST = 2.0  # slope at which log kl_coef is extrapolated over log KL


class Coefficient(NamedTuple):
    """A KL coefficient, and the KL in nats up to which samples support the estimate."""

    kl_coef: float
    supported_kl: float


def coefficient_at(
    scores: Tensor, kl: float, least: float = 10.0, logprobs: Tensor | None = None
) -> Coefficient:
    """Estimate the coefficient at which the optimum of E[r] - kl_coef KL has this KL.

    It is that of the tilt with this KL, if half of the prompts or more have at least ``least``
    effective samples there. If the samples do not reach so far, the coefficient is taken where they
    do, and log kl_coef goes on as a straight line over log KL, at the slope that it has between
    half of that KL and it. For normally distributed scores the line is straight, at a slope of
    -1/2: KL = std^2 / (2 kl_coef^2) (arXiv 1909.08593 section 3.1.1). For bounded ones it is
    steeper.

    Args:
        scores: (P, N), N samples of the reference for each of P prompts.
        kl: nats.
        least: effective samples, 1 / sum w^2.
        logprobs: (P, N), as for ``exponential_tilt``.

    Raises:
        ValueError: the scores of every prompt are all equal, so that no policy is better; or the
            best policy never has this KL.
    """
    scores = scores.double()
    if not (scores.max(dim=1).values > scores.min(dim=1).values).any():
        raise ValueError("all completions of a prompt have the same score")
    spread = float(scores.max() - scores.min())

    def lowest(fits: Callable[[float], bool]) -> float:
        """The lowest coefficient that fits, by bisection; all that are higher fit, too."""
        low, high = 1e-4 * spread, 1e4 * spread
        for _ in range(50):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high

    def supported(kl_coef: float) -> bool:
        tilted = scores / kl_coef if logprobs is None else logprobs + scores / kl_coef
        weights = torch.softmax(tilted, dim=1)
        return (1 / (weights**2).sum(dim=1)).median().item() >= least

    kl_coef = lowest(lambda c: exponential_tilt(scores, c, logprobs).kl <= kl and supported(c))
    reached = exponential_tilt(scores, kl_coef, logprobs).kl
    if reached < 0.99 * kl and kl_coef < 1e-3 * spread:
        # However low the coefficient, many samples share the best score.
        raise ValueError(
            f"so many completions share the best score that the best policy is never further than "
            f"{reached:.2g} nats from the reference"
        )
    if reached > 0.99 * kl:
        return Coefficient(kl_coef, reached)

    half_way = lowest(lambda c: exponential_tilt(scores, c, logprobs).kl <= reached / 2)
    # How log kl_coef falls as log KL rises. Near the KL of always taking the best score the line is
    # so steep that it says nothing of what lies beyond.
    slope = min(math.log(half_way / kl_coef) / math.log(2), STEEPEST)
    return Coefficient(kl_coef * (reached / kl) ** slope, reached)


def supported_kl(scores: Tensor, least: float = 10.0) -> float:
    """The KL up to which each prompt's tilt has at least ``least`` effective samples.

    Beyond it the estimate depends on the few best samples that were drawn, and is too low.
    """
    spread = max(float(scores.max() - scores.min()), 1e-9)
    low, high = 1e-4 * spread, 1e4 * spread  # a lower kl_coef leaves fewer effective samples
    if exponential_tilt(scores, high).effective_samples < least:
        return 0.0
    for _ in range(50):
        middle = math.sqrt(low * high)
        enough = exponential_tilt(scores, middle).effective_samples >= least
        low, high = (low, middle) if enough else (middle, high)
    return exponential_tilt(scores, high).kl


def best_of_n_score(scores: Tensor, n: int, by: Tensor | None = None) -> float:
    """Mean score of the best of n samples, estimated without bias from N >= n of each prompt.

    Sort the samples by what they are picked by. The i-th of N is then the best of n, drawn without
    replacement, with probability C(i - 1, n - 1) / C(N, n). Ties are broken at random.

    Args:
        scores: (P, N), what the picked one is judged by.
        n: 1 to N.
        by: (P, N), what it is picked by; ``scores`` by default.
    """
    scores = scores.double()
    by = scores if by is None else by.double()
    count = scores.shape[1]
    if not 1 <= n <= count:
        raise ValueError(f"best of {n} needs at least as many samples, not {count}")
    at_most = torch.searchsorted(by.sort(dim=1).values, by, right=True).double()
    below = torch.searchsorted(by.sort(dim=1).values, by, right=False).double()

    def all_within(rank: Tensor) -> Tensor:  # P(n draws are all among the `rank` lowest)
        logs = (
            torch.lgamma(rank + 1)
            - torch.lgamma((rank - n + 1).clamp(min=1.0))
            - math.lgamma(count + 1)
            + math.lgamma(count - n + 1)
        )
        return torch.where(rank >= n, logs.exp(), 0.0)

    # Samples of equal value share the probability that this value is the greatest of n.
    weights = (all_within(at_most) - all_within(below)) / (at_most - below)
    return (weights * scores).sum(dim=1).mean().item()


def best_of_n_kl(n: int) -> float:
    """ln n - (n - 1) / n: KL in nats of picking the best of n samples (no ties)."""
    return math.log(n) - (n - 1) / n


class SqrtFit(NamedTuple):
    """A straight line of scores over the square root of the KL.

    Attributes:
        intercept: score at a KL of 0.
        slope: score per square root of a nat.
        r2: share of the scores' variance that the line explains; nan if they are all equal.
        intercept_error, slope_error: standard errors, from n - 2 degrees of freedom; nan for n = 2.
        slope_from_first: slope of the line that is made to go through the first point.
        kl_r2: share that a straight line over the KL itself explains, to compare with.
    """

    intercept: float
    slope: float
    r2: float
    intercept_error: float
    slope_error: float
    slope_from_first: float
    kl_r2: float


def sqrt_fit(kl: Sequence[float], score: Sequence[float]) -> SqrtFit:
    """Fit score = a + b sqrt(KL) by least squares.

    While a policy is not yet far from its reference, a reward model's score grows about like the
    square root of the KL. Two runs can then be compared by their slopes, wherever each of them
    stopped. Source: arXiv 2204.05862, section 4.3.

    The errors take the points for independent. The updates of one run are not, so for them the
    errors are too small.

    Args:
        kl: nats, none below 0.
        score: as many scores.

    Raises:
        ValueError: there are fewer than two different KLs, or one is below 0.
    """
    x = torch.tensor(kl, dtype=torch.float64)
    y = torch.tensor(score, dtype=torch.float64)
    if len(x) != len(y) or len(x.unique()) < 2 or bool((x < 0).any()):
        raise ValueError("a line needs two different KLs, and none below 0")
    intercept, slope, r2, intercept_error, slope_error = _line(x.sqrt(), y)

    ahead, up = x.sqrt() - x[0].sqrt(), y - y[0]
    from_first = (ahead * up).sum() / (ahead**2).sum()
    return SqrtFit(
        intercept, slope, r2, intercept_error, slope_error, from_first.item(), _line(x, y)[2]
    )


def _line(x: Tensor, y: Tensor) -> tuple[float, float, float, float, float]:
    """Return intercept, slope, R^2 and the two standard errors of a least-squares line."""
    n, dx, dy = len(x), x - x.mean(), y - y.mean()
    spread, total = (dx**2).sum(), (dy**2).sum()
    slope = (dx * dy).sum() / spread
    left = (dy - slope * dx).square().sum()

    # Of two points nothing is left over to tell the noise by.
    noise = left / (n - 2) if n > 2 else left.new_tensor(math.nan)
    errors = (noise * (1 / n + x.mean() ** 2 / spread)).sqrt(), (noise / spread).sqrt()
    r2 = 1 - left / total if total > 0 else left.new_tensor(math.nan)
    intercept = y.mean() - slope * x.mean()
    return intercept.item(), slope.item(), r2.item(), errors[0].item(), errors[1].item()
