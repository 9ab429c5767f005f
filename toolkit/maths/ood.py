"""Which points are unlike a set of others: Mahalanobis distances, and a few-shot classifier.

Points are activations of a language model on prompts, so (N, d) with d the model's width.
Source: arXiv 2204.05862, section 4.6 and appendix (detecting out-of-distribution prompts).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Inliers(NamedTuple):
    """What was fitted to N points.

    Attributes:
        mean: (d,) fp64.
        covariance: (d, d) fp64, divided by N.
    """

    mean: Tensor
    covariance: Tensor

    def mahalanobis(self, points: Tensor) -> Tensor:
        """m = (x - mu)' Sigma^-1 (x - mu) of points (M, d): (M,) fp64.

        Over the points of the fit itself its mean is exactly d, whatever they are, so that it says
        nothing about them.
        """
        centered = points.double() - self.mean
        return (centered * torch.linalg.solve(self.covariance, centered.T).T).sum(dim=1)

    def relative(self, points: Tensor) -> Tensor:
        """The simplified relative score: m minus the same with only the diagonal of Sigma: (M,).

        A point that is merely far out counts less than one that breaks the correlations.
        """
        centered = points.double() - self.mean
        alone = (centered**2 / self.covariance.diagonal()).sum(dim=1)
        return self.mahalanobis(points) - alone


def fit_inliers(points: Tensor, ridge: float = 0.0) -> Inliers:
    """Fit mean and covariance to points (N, d).

    Args:
        points: N > d of them; with fewer the covariance has no inverse, and every new point would
            lie outside of the space that they span.
        ridge: this times the mean variance, tr(Sigma) / d, is added to the diagonal.

    Raises:
        ValueError: N is not above d, or the covariance has no inverse.
    """
    points = points.double()
    count, width = points.shape
    if count <= width:
        raise ValueError(f"{count} points of width {width}: there must be more points than that")
    mean = points.mean(dim=0)
    centered = points - mean
    covariance = centered.T @ centered / count
    covariance += ridge * covariance.diagonal().mean() * torch.eye(width, dtype=torch.float64)

    # Where a direction does not vary at all, a distance along it would be a division by zero.
    lowest = torch.linalg.eigvalsh(covariance)[0]
    if not lowest > 1e-13 * covariance.diagonal().mean():
        raise ValueError("the points do not vary in some direction, so no distance can be told")
    return Inliers(mean, covariance)


def auroc(outliers: Tensor, inliers: Tensor) -> float:
    """The probability that an outlier's score is above an inlier's, a tie counting half.

    It is .5 for scores that tell nothing and 1 if all outliers lie above. (M,) and (N,) -> float.

    Raises:
        ValueError: one of them is empty.
    """
    if not len(outliers) or not len(inliers):
        raise ValueError("an AUROC needs outliers and inliers")
    ordered = inliers.double().sort().values
    wanted = outliers.double()
    below = torch.searchsorted(ordered, wanted, right=False)
    at_most = torch.searchsorted(ordered, wanted, right=True)
    return ((below + at_most).double() / 2).sum().item() / (len(outliers) * len(inliers))


class Classifier(NamedTuple):
    """A linear classifier of outliers.

    Attributes:
        mean, scale: (d,) fp64, by which points are standardized.
        weights: (d,) fp64.
        bias: a float.
    """

    mean: Tensor
    scale: Tensor
    weights: Tensor
    bias: float

    def scores(self, points: Tensor) -> Tensor:
        """The log-odds of being an outlier, of points (M, d): (M,) fp64."""
        return ((points.double() - self.mean) / self.scale) @ self.weights + self.bias


def fit_classifier(inliers: Tensor, outliers: Tensor, penalty: float = 1.0) -> Classifier:
    """Fit a logistic regression to N inliers and N // M copies of each of M outliers.

    So both kinds weigh about the same, though a person found only ten outliers. Points are
    standardized by the inliers' moments. The loss is the sum of the log losses plus
    penalty / 2 |weights|^2, since ten points can always be told from others by some direction; the
    minimum is found by Newton's method.

    Args:
        inliers: (N, d).
        outliers: (M, d), with M <= N.
        penalty: above 0.

    Raises:
        ValueError: there are no outliers, or more of them than inliers.
    """
    n, m = len(inliers), len(outliers)
    if not 1 <= m <= n:
        raise ValueError("a classifier needs an outlier, and no more outliers than inliers")
    inliers, outliers = inliers.double(), outliers.double()
    mean, scale = inliers.mean(dim=0), inliers.std(dim=0).clamp(min=1e-12)

    points = (torch.cat([inliers, outliers]) - mean) / scale
    design = torch.cat([points, torch.ones(n + m, 1, dtype=torch.float64)], dim=1)
    target = torch.cat([torch.zeros(n), torch.ones(m)]).double()
    times = torch.cat([torch.ones(n), torch.full((m,), float(n // m))]).double()
    pull = torch.full((design.shape[1],), penalty, dtype=torch.float64)
    pull[-1] = 1e-9  # the bias is free

    def loss(weights: Tensor) -> Tensor:
        logits = design @ weights
        each = torch.nn.functional.softplus(logits) - target * logits
        return (times * each).sum() + 0.5 * (pull * weights**2).sum()

    weights = torch.zeros(design.shape[1], dtype=torch.float64)
    for _ in range(100):
        p = (design @ weights).sigmoid()
        gradient = design.T @ (times * (p - target)) + pull * weights
        curvature = (design * (times * p * (1 - p)).unsqueeze(1)).T @ design + pull.diag()
        step = torch.linalg.solve(curvature, gradient)
        now = loss(weights)
        while loss(weights - step) > now + 1e-12 * now and step.abs().max() > 1e-12:
            step = step / 2
        weights = weights - step
        if step.abs().max() < 1e-10:
            break
    return Classifier(mean, scale, weights[:-1], weights[-1].item())
