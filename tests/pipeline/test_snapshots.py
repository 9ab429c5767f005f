"""Ratings of the online loop's policies."""

import math

import numpy as np
import pytest

from toolkit.maths.ratings import ELO_SCALE
from toolkit.pipeline.snapshots import elo_above, elo_sentence


def test_sixty_of_a_hundred_picks_are_seventy_points_above_the_start() -> None:
    rows = [{"models": ["start", "round-000"], "best": int(i < 60)} for i in range(100)]
    found = elo_above([*rows, {"best": 0}], "start")  # a pick without models does not count
    assert found is not None and list(found) == ["round-000"]
    assert found["round-000"]["points"] == pytest.approx(70.436504, abs=1e-5)
    assert found["round-000"]["error"] == pytest.approx(35.459996, abs=1e-5)
    assert elo_sentence(found) == "Elo above the start: round-000 +70 ± 35"


def test_the_order_of_snapshots_comes_out_of_noisy_picks_between_uneven_mixtures() -> None:
    """Three snapshots in rows of four, the newest writing two; a fifth of the picks are random."""
    rng = np.random.default_rng(0)
    true = {"start": 0.0, "round-000": 0.5, "round-001": 1.0}
    models = ["round-001", "round-001", "round-000", "start"]
    levels = np.array([true[name] for name in models])
    rows = []
    for _ in range(3000):
        best = (
            int(rng.integers(4))
            if rng.random() < 0.2
            else int((levels + rng.gumbel(size=4)).argmax())
        )
        rows.append({"models": models, "best": best})
    found = elo_above(rows, "start")
    assert found is not None

    # What random picks leave of the odds, by counting: .8 p + .2 / 4 a text.
    p = np.exp(levels) / np.exp(levels).sum()
    left = np.log(0.8 * p + 0.05)
    for name, k in (("round-000", 2), ("round-001", 0)):
        expected = ELO_SCALE * (left[k] - left[3])
        assert abs(found[name]["points"] - expected) < 2 * found[name]["error"]
        assert found[name]["points"] < ELO_SCALE * true[name]  # noise pulls them together
    assert 0 < found["round-000"]["points"] < found["round-001"]["points"]
    assert math.isfinite(found["round-000"]["error"])


def test_nothing_is_said_where_no_pick_tells() -> None:
    assert elo_above([], "start") is None
    assert elo_above([{"models": ["start", "start"], "best": 0}], "start") is None
    assert elo_above([{"models": ["start", "round-000"], "best": 1}] * 9, "start") is None
