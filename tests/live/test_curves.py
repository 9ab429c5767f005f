"""Curves as SVG: all of them inside the axes, at the places that arithmetic gives."""

import re
from xml.etree import ElementTree

import pytest

from toolkit.live.curves import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MARKED,
    MOST,
    RIGHT,
    TOP,
    WIDTH,
    Curve,
    chart,
    number,
    ticks,
)


def places(svg: str) -> list[tuple[float, float]]:
    found = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", svg)
    return [(float(x), float(y)) for x, y in found]


def test_points_stand_where_their_values_are_and_inside_the_axes() -> None:
    svg = chart("KL", [Curve("KL", [(1, 0.0), (2, 1.0), (3, 4.0)])], target=5.0)
    (x1, y1), (x2, y2), (x3, y3) = places(svg)
    assert (x1, x3) == (LEFT, WIDTH - RIGHT) and x2 == pytest.approx((x1 + x3) / 2, abs=0.1)
    assert (y1 - y3) == pytest.approx(4 * (y1 - y2), abs=0.3)  # up is more
    assert TOP < y3 < y2 < y1 < HEIGHT - BOTTOM

    # The target is above all of them, and in the picture.
    lines = ElementTree.fromstring(svg).findall("line[@class='target']")
    y_target = float(lines[0].get("y1", ""))
    assert TOP < y_target < y3 and y1 - y_target == pytest.approx(5 * (y1 - y2), abs=0.4)


def test_a_few_points_are_marked_and_many_are_averaged_without_losing_the_last() -> None:
    few = chart("score", [Curve("score", [(u, float(u)) for u in range(MARKED)])])
    assert few.count("<circle") == MARKED

    many = [(u, 1.0 if u % 2 else 3.0) for u in range(10 * MOST)] + [(10 * MOST, 9.0)]
    svg = chart("score", [Curve("score", many)])
    found = places(svg)
    assert len(found) <= MOST + 1 and svg.count("<circle") == 1
    ys = [y for _, y in found[:-1]]  # near 2, halfway between the 1 and 3 of neighbors
    assert max(ys) - min(ys) < 0.1 * (max(ys) - found[-1][1])
    assert "score 9.00, update 3000" in svg


def test_an_unknown_value_leaves_a_gap_and_no_value_at_all_is_said() -> None:
    svg = chart("score", [Curve("score", [(1, 1.0), (2, None), (3, 2.0), (4, 2.5)])])
    path = re.search(r' d="([^"]*)"', svg)
    assert path is not None and [s[0] for s in path[1].split() if s[0] in "ML"] == ["M", "M", "L"]
    assert "not measured yet" in chart("score", [Curve("score", [(1, None)])])


@pytest.mark.parametrize("points", [[(1, 0.0)], [(1, 5.0), (2, 5.0)], [(1, -1e-9), (2, 1e9)]])
def test_one_point_a_level_line_and_a_wide_range_are_drawn(
    points: list[tuple[float, float]],
) -> None:
    svg = chart("score", [Curve("score", points)])
    ElementTree.fromstring(svg)
    assert all(TOP <= y <= HEIGHT - BOTTOM for _, y in places(svg))


def test_names_are_escaped() -> None:
    svg = chart('"><script>', [Curve("<script>", [(1, 1.0)])])
    assert "<script>" not in svg
    ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.3, 5.2, [1, 2, 3, 4, 5]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.1, 0.1, [-0.1, -0.05, 0, 0.05, 0.1]),
        (18_000, 31_000, [20_000, 25_000, 30_000]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.00"),
        (0.06999, "0.0700"),
        (12.345, "12.3"),
        (-3200.0, "-3,200"),
        (4.9e-7, "4.9e-07"),
    ],
)
def test_numbers_have_as_many_digits_as_one_reads(value: float, shown: str) -> None:
    assert number(value) == shown
