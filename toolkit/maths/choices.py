"""Strengths of players by the choices made between their texts, with errors.

``maths.ratings`` has Elo's own arithmetic, and ``evaluation.ratings`` ratings that are pulled
together a little, with bootstrap intervals.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from toolkit.maths.ratings import ELO_SCALE


class Strengths(NamedTuple):
    """Log-strengths of M players by maximum likelihood.

    Attributes:
        values: (M,) fp64, nats, mean 0.
        covariance: (M, M) fp64, the pseudo-inverse of the Fisher information. Only differences of
            players have an error, so it has no part along their common level.
        log_likelihood: of the choices, at these values.
    """

    values: Tensor
    covariance: Tensor
    log_likelihood: float

    def above(self, player: int) -> tuple[list[float], list[float]]:
        """Return each player's points on Elo's scale above one of them, with standard errors.

        Its own are 0 and 0. A lead of 174 points is one nat: it wins 73 % of the time.
        """
        c = self.covariance
        variance = c.diagonal() + c[player, player] - 2 * c[player]
        points = ELO_SCALE * (self.values - self.values[player])
        errors = ELO_SCALE * variance.clamp(min=0).sqrt()
        return points.tolist(), errors.tolist()


def fit_choices(shown: Tensor, chosen: Tensor, times: Tensor | None = None) -> Strengths:
    """Fit log-strengths to choices: P(player i is chosen) = n_i exp(s_i) / sum_j n_j exp(s_j).

    n_i is how many of the texts shown are player i's, so that one who wrote two of three texts is
    not rated higher for that. With two texts of two players this is the Bradley-Terry model, and
    with more the choice axiom of Luce (1959). The maximum is found by Newton's method; nothing
    pulls the strengths together. Errors come from the Fisher information, and take choices for
    independent.
    Source of the use for snapshots of a policy: arXiv 2204.05862, section 4.5.

    Args:
        shown: (R, M), how many texts of each player choice r is between.
        chosen: int (R,), whose text was chosen.
        times: (R,), how often; once by default.

    Raises:
        ValueError: there is no maximum, because some players were never chosen over the others
            (one never lost or never won, or two groups never met); or a player was chosen whose
            text was not shown.
    """
    shown = shown.double()
    rows, players = shown.shape
    times = torch.ones(rows, dtype=torch.float64) if times is None else times.double()
    if not bool((shown[torch.arange(rows), chosen] > 0).all()):
        raise ValueError("a player was chosen whose text was not shown")

    # A row between texts of one player says nothing.
    said = ((shown > 0).sum(dim=1) > 1) & (times > 0)
    shown, chosen, times = shown[said], chosen[said], times[said]
    _check_maximum(shown, chosen)
    wins = torch.zeros(players, dtype=torch.float64).index_add(0, chosen, times)

    def likelihood(values: Tensor) -> tuple[Tensor, Tensor]:
        """The log-likelihood, and each choice's probabilities (R, M)."""
        logits = shown.log() + values
        picked = logits[torch.arange(len(chosen)), chosen]
        total = (times * (picked - logits.logsumexp(dim=1))).sum()
        return total, logits.softmax(dim=1)

    values = torch.zeros(players, dtype=torch.float64)
    best, p = likelihood(values)
    for _ in range(100):
        gradient = wins - (times.unsqueeze(1) * p).sum(dim=0)
        step = _covariance(p, times) @ gradient
        moved, p_moved = likelihood(values + step)
        while moved < best - 1e-12 * abs(best) and step.abs().max() > 1e-12:
            step = step / 2
            moved, p_moved = likelihood(values + step)
        values, best, p = values + step, moved, p_moved
        if step.abs().max() < 1e-11:
            break
    return Strengths(values - values.mean(), _covariance(p, times), best.item())


class Misfit(NamedTuple):
    """How far choices are from any strengths at all.

    Attributes:
        statistic: twice the log of the likelihood ratio; chi-squared, if strengths explain all.
        freedom: its degrees of freedom.
        p_value: the probability of a statistic as large by chance.
    """

    statistic: float
    freedom: int
    p_value: float


LEAST_EXPECTED = 5.0  # choices of each player in a group; with fewer it is not chi-squared


def misfit(shown: Tensor, chosen: Tensor) -> Misfit | None:
    """Test whether choices follow strengths on one scale, by the ratio of likelihoods.

    Choices between the same texts' writers are a group, and each group may have probabilities of
    its own in place of those of the strengths. Those who choose at random now and then do not fit:
    whatever the strengths, a share of their choices falls on the weaker text, so that far apart
    players seem nearer than the sum of the steps between them. Groups in which a player is expected
    to be chosen fewer than five times are left out.

    Args:
        shown, chosen: as for ``fit_choices``; choices are taken for independent.

    Returns:
        None if nothing can be tested: no freedom is left, or no strength fits best.
    """
    groups, group = torch.unique(shown.double(), dim=0, return_inverse=True)
    counts = torch.zeros_like(groups)
    counts.index_put_((group, chosen), torch.ones(len(chosen), dtype=counts.dtype), accumulate=True)

    # Leave groups out until all that are left have enough choices under their own fit.
    kept = (groups > 0).sum(dim=1) > 1
    while True:
        if not bool(kept.any()):
            return None
        shared, seen = groups[kept], counts[kept]
        here = (shared > 0).any(dim=0)  # a player of none of these groups is of no interest
        shared, seen = shared[:, here], seen[:, here]
        try:
            rows, players = (seen > 0).nonzero(as_tuple=True)
            fitted = fit_choices(shared[rows], players, seen[rows, players])
        except ValueError:
            return None
        p = (shared.log() + fitted.values).softmax(dim=1)
        expected = seen.sum(dim=1, keepdim=True) * p
        enough = (expected.masked_fill(shared == 0, math.inf) >= LEAST_EXPECTED).all(dim=1)
        if bool(enough.all()):
            break
        kept[kept.nonzero().squeeze(1)[~enough]] = False

    freedom = int(((shared > 0).sum(dim=1) - 1).sum()) - (shared.shape[1] - 1)
    if freedom < 1:
        return None
    statistic = 2 * float(torch.xlogy(seen, seen / expected.clamp(min=1e-300)).sum())
    half = torch.tensor([freedom, statistic], dtype=torch.float64) / 2
    return Misfit(statistic, freedom, torch.special.gammaincc(half[0], half[1]).item())


def _covariance(p: Tensor, times: Tensor) -> Tensor:
    """The pseudo-inverse of sum_r t_r (diag(p_r) - p_r p_r'), (M, M)."""
    weighted = times.unsqueeze(1) * p
    information = weighted.sum(dim=0).diag() - weighted.T @ p

    # The common level has no information. It gets some and loses it again: to tell by a tolerance
    # that its eigenvalue is 0 would fail where rounding makes it a little more.
    level = torch.full_like(information, 1 / len(information))
    size = information.trace() / len(information)
    return torch.linalg.inv(information + size * level) - level / size


def _check_maximum(shown: Tensor, chosen: Tensor) -> None:
    """Raise ValueError unless a maximum exists: everybody beats everybody, through third players.

    Source: D. R. Hunter (2004), Annals of Statistics 32:384-406, assumption 1.
    """
    players = shown.shape[1]
    reach = torch.eye(players, dtype=torch.float64)
    for row, winner in zip(shown, chosen.tolist(), strict=True):
        reach[winner, row > 0] = 1.0
    for _ in range(max(1, players.bit_length())):
        reach = (reach @ reach > 0).double()
    if not bool((reach > 0).all()):
        raise ValueError("some were never chosen over the others, so no strength fits best")
