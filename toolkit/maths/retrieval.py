"""Retrieval of an expert: a prompt votes for the expert whose library has the nearest instance.

Source: joeljang/ELM (arXiv 2302.03202): each expert has a library of training instances, the
nearest one by dot product names the expert, and the first 32 instances of a task vote. Embeddings
have length 1 here, since a dot product of others favors long texts.

A language model's own states all point nearly one way, and differ most in what every text has, such
as how it begins. Whitening takes that out (arXiv 2103.15316, for sentence embeddings of BERT).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

AS_NEAR = 1e-6  # cosines that differ by less are equal: passes of other batches differ by as much


class Vote(NamedTuple):
    """What the prompts of a task voted.

    Attributes:
        nearest: int64 (Q,): for each query, the nearest instance of the library.
        counts: int64 (E,): votes of each expert.
    """

    nearest: Tensor
    counts: Tensor

    @property
    def order(self) -> list[int]:
        """The experts by their votes, the most first; of a tie, the earlier expert comes first."""
        return self.counts.argsort(descending=True, stable=True).tolist()

    @property
    def margin(self) -> float:
        """By which share of all votes the first expert leads the second; 1 without a second."""
        first, *rest = sorted(self.counts.tolist(), reverse=True)
        return (first - (rest[0] if rest else 0)) / len(self.nearest)

    def shares(self, chosen: Sequence[int]) -> list[float]:
        """Each chosen expert's share of the votes for all chosen; they sum to 1.

        Raises:
            ValueError: nobody voted for any of them.
        """
        votes = self.counts[list(chosen)].tolist()
        if not sum(votes):
            raise ValueError("shares: the chosen experts have no votes")
        return [count / sum(votes) for count in votes]


def whitened(library: Tensor, others: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return both without the library's mean, and scaled to equal variance in all directions.

        x <- (x - mean) V (diag(w) + shrinkage * mean(w))^(-1/2),  cov(library) = V diag(w) V'

    The shrinkage keeps directions in which the library hardly varies from being blown up; with few
    instances there always are some. It is not in the paper, which drops such directions instead.

    Args:
        library: (N, d) embeddings, from which mean and covariance are taken; N of 2 or more.
        others: (Q, d) embeddings.
        shrinkage: above 0, a share of the mean variance.

    Raises:
        ValueError: all of the library's embeddings are equal.
    """
    if len(library) < 2:
        raise ValueError("the library has a single embedding")
    wide = library.double()
    mean = wide.mean(dim=0)
    variances, directions = torch.linalg.eigh(torch.cov((wide - mean).T))
    variances = variances.clamp(min=0)
    if not float(variances.mean()) > 0:
        raise ValueError("all embeddings of the library are equal")
    scaled = directions / (variances + shrinkage * variances.mean()).sqrt()
    return (wide - mean) @ scaled, (others.double() - mean) @ scaled


def normalized(embeddings: Tensor) -> Tensor:
    """Return embeddings (N, d) of length 1 in fp64.

    Raises:
        ValueError: one is zero, infinite or NaN, and so has no direction.
    """
    wide = embeddings.double()
    lengths = wide.norm(dim=1, keepdim=True)
    if not bool((lengths.isfinite() & (lengths > 0)).all()):
        raise ValueError("an embedding is zero, infinite or NaN")
    return wide / lengths


def vote(queries: Tensor, library: Tensor, owners: Sequence[int], experts: int) -> Vote:
    """Let each query vote for the owner of its nearest instance, by cosine similarity.

    Of equally near instances the earlier one counts.

    Args:
        queries: (Q, d) embeddings, Q of 1 or more.
        library: (N, d) embeddings of all instances, N of 1 or more.
        owners: the expert of each instance, N numbers from 0.
        experts: number E of experts.
    """
    similar = normalized(queries.cpu()) @ normalized(library.cpu()).T
    best = similar.amax(dim=1, keepdim=True)
    nearest = (similar >= best - AS_NEAR).long().argmax(dim=1)  # the first of them
    named = torch.tensor(list(owners))[nearest]
    return Vote(nearest, torch.bincount(named, minlength=experts))
