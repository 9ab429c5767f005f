"""Linear and spherical interpolation of vectors that are known by their inner products alone.

    LERP    (1 - l) a + l b
    SLERP   sin((1 - l) W) / sin W a  +  sin(l W) / sin W b,   W the angle between a and b

SLERP of two vectors of one length keeps that length; LERP is shorter. Source: WARP, arXiv
2406.16768, section 3.2, which applies it to each layer's change of weights.
"""

import math

import torch
from torch import Tensor

# Below this angle in radians, sin W loses digits and LERP differs by less than they are worth.
NEARLY_PARALLEL = 1e-3


def angle(gram: Tensor) -> float:
    """Return the angle in radians between two vectors; NaN if one of them is zero.

    Args:
        gram: fp64 (2, 2), their inner products.
    """
    lengths = math.sqrt(float(gram[0, 0]) * float(gram[1, 1]))
    if lengths == 0:
        return math.nan
    return math.acos(max(-1.0, min(1.0, float(gram[0, 1]) / lengths)))


def slerp_weights(gram: Tensor, share: float) -> Tensor:
    """Return the weights fp64 (2,) of two vectors by which SLERP adds them.

    They are LERP's for a zero vector and for an angle below ``NEARLY_PARALLEL``.

    Args:
        gram: fp64 (2, 2), the vectors' inner products.
        share: l, the second vector's share, from 0 to 1.

    Raises:
        ValueError: the vectors point in opposite directions, between which there is no shortest
            way.
    """
    between = angle(gram)
    if math.isnan(between) or between < NEARLY_PARALLEL:
        return torch.tensor([1 - share, share], dtype=torch.float64)
    if between > math.pi - NEARLY_PARALLEL:
        raise ValueError("they point in opposite directions")
    parts = [math.sin((1 - share) * between), math.sin(share * between)]
    return torch.tensor(parts, dtype=torch.float64) / math.sin(between)


def slerp_in_turn(gram: Tensor) -> Tensor:
    """Return the weights fp64 (n,) by which n vectors are merged in turn, each with share 1 / m.

    The second is merged with the first by half, the third with the result by a third, and so on.
    For more than two vectors the result depends on their order.

    Args:
        gram: fp64 (n, n), the vectors' inner products.

    Raises:
        ValueError: as for ``slerp_weights``.
    """
    weights = torch.ones(1, dtype=torch.float64)
    for m in range(2, gram.shape[0] + 1):
        merged = torch.cat([weights, weights.new_zeros(1)])
        newest = torch.zeros_like(merged)
        newest[-1] = 1
        pair = torch.stack([merged, newest])
        parts = slerp_weights(pair @ gram[:m, :m] @ pair.T, 1 / m)
        weights = parts @ pair
    return weights
