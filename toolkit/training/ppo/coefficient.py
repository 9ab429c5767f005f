"""``kl_coef: auto``: the coefficient at which the best policy would have the target KL."""

from typing import NamedTuple

from torch import Tensor

from toolkit.data.prompts import Prompts
from toolkit.errors import InputError
from toolkit.maths.frontier import Coefficient, coefficient_at, mixture_logprobs
from toolkit.training.ppo.algorithms import KLUnit

PROMPTS = 16  # enough for the mean; more completions of each reach farther than more prompts


class Estimate(NamedTuple):
    """An estimated coefficient, and a line that says what it rests on."""

    kl_coef: float
    line: str


def prompts_for(prompts: Prompts) -> Prompts:
    """Return the prompts to estimate from, spread evenly over all of them (at least one)."""
    count = min(len(prompts), PROMPTS)
    return prompts.pick([place * len(prompts) // count for place in range(count)])


def estimate_of(
    scores: Tensor, kl_target: float, unit: KLUnit = "score", log_ratios: Tensor | None = None
) -> Estimate:
    """Estimate the coefficient from scores of the reference's completions.

    Args:
        scores: (P, N); NaN where there is no score, and such a prompt is left out.
        kl_target: nats.
        unit: what the coefficient is measured in (``kl_unit_of``).
        log_ratios: (P, N), if half of the completions are the policy's (``mixture_logprobs``); only
            for a coefficient in the unit "score".

    Raises:
        InputError: too few completions have scores, or their scores do not differ.
    """
    if log_ratios is not None and unit != "score":
        raise ValueError(f"in the unit {unit!r} an estimate is of the reference's samples alone")
    whole = ~scores.isnan().any(dim=1)
    known = scores[whole]
    if 2 * len(known) < len(scores):
        raise InputError(
            f"kl_coef: auto needs scores of all completions, but {len(scores) - len(known)} of "
            f"{len(scores)} prompts have some without (give a number instead)",
            "kl_coef",
        )

    if unit != "score":
        apart = known - known.mean(dim=1, keepdim=True)
        deviation = {
            "all": known.std(),
            "batch": apart.std(),
            "siblings": apart.std(dim=1, keepdim=True),
        }[unit]
        known = apart / (deviation + 1e-4)

    try:
        logprobs = None if log_ratios is None else mixture_logprobs(log_ratios[whole])
        found = coefficient_at(known, kl_target, logprobs=logprobs)
    except ValueError as error:
        raise InputError(
            f"kl_coef: auto is not possible: {error} (give a number)", "kl_coef"
        ) from None
    source = "the reference" if log_ratios is None else "reference and policy"
    return Estimate(found.kl_coef, _line(found, f"{known.numel():,}", source, kl_target))


def _line(found: Coefficient, samples: str, source: str, kl_target: float) -> str:
    line = (
        f"kl_coef: {found.kl_coef:.3g}, estimated from {samples} completions of {source}, "
        f"which support it up to {found.supported_kl:.2g} nats"
    )
    if found.supported_kl < 0.99 * kl_target:
        line += f"; from there to {kl_target:g} it is extrapolated"
    return line
