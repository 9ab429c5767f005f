"""``kl_coef: auto``: the coefficient at which the best policy would have the target KL."""

from typing import NamedTuple

from torch import Tensor

from toolkit.data.prompts import Prompts
from toolkit.errors import InputError
from toolkit.maths.frontier import Coefficient, coefficient_at
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


def estimate_of(scores: Tensor, kl_target: float, unit: KLUnit = "score") -> Estimate:
    """Estimate the coefficient from scores of the reference's completions.

    Args:
        scores: (P, N); NaN where there is no score, and such a prompt is left out.
        kl_target: nats.
        unit: what the coefficient is measured in (``kl_unit_of``).

    Raises:
        InputError: too few completions have scores, or their scores do not differ.
    """
    known = scores[~scores.isnan().any(dim=1)]
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
        found = coefficient_at(known, kl_target)
    except ValueError as error:
        raise InputError(
            f"kl_coef: auto is not possible: {error} (give a number)", "kl_coef"
        ) from None
    return Estimate(found.kl_coef, _line(found, known.numel(), kl_target))


def _line(found: Coefficient, samples: int, kl_target: float) -> str:
    line = (
        f"kl_coef: {found.kl_coef:.3g}, estimated from {samples:,} completions of the reference, "
        f"which support it up to {found.supported_kl:.2g} nats"
    )
    if found.supported_kl < 0.99 * kl_target:
        line += f"; from there to {kl_target:g} it is extrapolated"
    return line
