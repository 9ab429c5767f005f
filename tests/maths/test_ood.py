"""M12: distances from a set of points, and a classifier of the few that are unlike it."""

import numpy as np
import pytest
import torch

from toolkit.maths.ood import auroc, fit_classifier, fit_inliers

POINTS = torch.tensor([[0, 0], [1, 1], [2, 1], [1, 2], [3, 3], [2, 3]])


def test_distances_have_the_figures_of_m12() -> None:
    fitted = fit_inliers(POINTS)
    assert fitted.mean.tolist() == pytest.approx([1.5, 1.666667], abs=1e-6)
    assert fitted.covariance.flatten().tolist() == pytest.approx(
        [0.916667, 0.833333, 0.833333, 1.222222], abs=1e-6
    )
    points = torch.tensor([[3, 0], [4, 4]])
    assert fitted.mahalanobis(points).tolist() == pytest.approx([22.217391, 6.826087], abs=1e-6)
    diagonal = fitted.mahalanobis(points) - fitted.relative(points)
    assert diagonal.tolist() == pytest.approx([4.727273, 11.272727], abs=1e-6)
    assert fitted.relative(points).tolist() == pytest.approx([17.490119, -4.446640], abs=1e-6)
    assert fitted.mahalanobis(POINTS).mean().item() == pytest.approx(2)


def test_distances_are_numpys() -> None:
    rng = np.random.default_rng(0)
    points, others = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(7, 5))
    centered = others - points.mean(axis=0)
    precision = np.linalg.inv(np.cov(points.T, bias=True))
    expected = np.einsum("ni,ij,nj->n", centered, precision, centered)
    fitted = fit_inliers(torch.tensor(points))
    assert fitted.mahalanobis(torch.tensor(others)).numpy() == pytest.approx(expected)


def test_a_turned_and_stretched_space_has_the_same_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    turn = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    plain, turned = fit_inliers(points[:30]), fit_inliers(points[:30] @ turn + 5)
    assert turned.mahalanobis(points[30:] @ turn + 5).tolist() == pytest.approx(
        plain.mahalanobis(points[30:]).tolist()
    )


def test_a_ridge_is_a_share_of_the_mean_variance() -> None:
    ridged = fit_inliers(POINTS, ridge=0.1).covariance - fit_inliers(POINTS).covariance
    share = 0.1 * (0.916667 + 1.222222) / 2
    assert ridged.flatten().tolist() == pytest.approx([share, 0, 0, share], abs=1e-6)


def test_too_few_points_and_points_in_a_plane_are_refused() -> None:
    with pytest.raises(ValueError, match="2 points of width 2"):
        fit_inliers(POINTS[:2])
    flat = torch.stack([POINTS[:, 0], 2 * POINTS[:, 0]], dim=1)
    with pytest.raises(ValueError, match="do not vary"):
        fit_inliers(flat)


def test_auroc_is_a_count_of_pairs_with_ties_as_halves() -> None:
    found = auroc(torch.tensor([2, 3, 5]), torch.tensor([1, 2, 4, 0]))
    assert found == pytest.approx(0.791667, abs=1e-6)
    rng = np.random.default_rng(0)
    out, within = rng.integers(0, 6, 40), rng.integers(0, 5, 50)
    pairs = (out[:, None] > within) + 0.5 * (out[:, None] == within)
    assert auroc(torch.tensor(out), torch.tensor(within)) == pytest.approx(pairs.mean())
    with pytest.raises(ValueError, match="needs outliers and inliers"):
        auroc(torch.tensor([]), torch.tensor([1.0]))


def test_the_classifiers_minimum_is_a_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    inliers = torch.randn(90, 3, generator=generator, dtype=torch.float64)
    outliers = torch.randn(10, 3, generator=generator, dtype=torch.float64) + 1
    fitted = fit_classifier(inliers, outliers)

    # By autograd, with the copies written out: nine of each outlier.
    bias = torch.tensor([fitted.bias], dtype=torch.float64)
    weights = torch.cat([fitted.weights, bias]).requires_grad_()
    points = torch.cat([inliers, outliers.repeat(9, 1)])
    logits = ((points - fitted.mean) / fitted.scale) @ weights[:-1] + weights[-1]
    target = torch.cat([torch.zeros(90), torch.ones(90)]).double()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    (loss + 0.5 * weights[:-1].square().sum()).backward()
    assert weights.grad is not None and weights.grad.abs().max() < 1e-6
    assert fitted.scores(points).tolist() == pytest.approx(logits.tolist())


def test_ten_outliers_of_a_kind_reveal_the_others() -> None:
    generator = torch.Generator().manual_seed(1)
    shift = torch.zeros(20)
    shift[3] = 3.0
    inliers = torch.randn(400, 20, generator=generator)
    outliers = torch.randn(60, 20, generator=generator) + shift
    fitted = fit_classifier(inliers[:300], outliers[:10])
    assert auroc(fitted.scores(outliers[10:]), fitted.scores(inliers[300:])) > 0.9


def test_a_classifier_needs_outliers_and_more_inliers() -> None:
    for few, many in ((3, 0), (3, 4)):
        with pytest.raises(ValueError, match="needs an outlier"):
            fit_classifier(torch.randn(few, 2), torch.randn(many, 2))
