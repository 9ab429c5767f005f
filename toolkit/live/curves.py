"""Draw curves as SVG, without a library: they are drawn anew at every look at a run.

The style sheet colors them, so that they are light or dark as the page is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 520, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 34  # room for the labels around the plot
MOST = 300  # points that are drawn; more are averaged in groups
MARKED = 40  # a curve of at most so many points has a marker at each
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A curve of a chart.

    Attributes:
        name: shown at its points.
        points: (x, y); None for a y that was not measured, which leaves a gap.
        look: class of the style sheet, "main" or "other".
        always_marked: whether each point has a marker, however many there are.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    look: str = "main"
    always_marked: bool = False


def chart(title: str, curves: Sequence[Curve], target: float | None = None) -> Markup:
    """Draw curves over updates.

    Args:
        title: what is drawn, for those who do not see it.
        curves: at least one.
        target: y of a dashed line, which is always in the picture.
    """
    thinned = [_thinned(curve.points) for curve in curves]
    known = [(x, y) for points in thinned for x, y in points if y is not None]
    if not known:
        return Markup('<p class="none">not measured yet</p>')

    xs = [x for x, _ in known]
    ys = [y for _, y in known] + ([] if target is None else [target])
    plot = _Plot(*_around(min(xs), max(xs), whole=True), *_around(min(ys), max(ys)))

    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, f"{title}: {_last(known)}"
        )
    ]
    parts += plot.axes()
    if target is not None:
        parts.append(plot.line(target, "target"))
    for curve, points in zip(curves, thinned, strict=True):
        parts += plot.curve(curve, points)
    return Markup("").join([*parts, Markup("</svg>")])


def number(value: float) -> str:
    """A number with as many digits as one reads at a glance.

    >>> number(0.06999), number(12.345), number(-3200.0), number(4.9e-07)
    ('0.0700', '12.3', '-3,200', '4.9e-07')
    """
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e7):
        return f"{value:.2g}"
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 0.1 or not size else 4
    return f"{value:,.{digits}f}"


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from ``low`` to ``high``, some ``about`` + 1 of them.

    >>> ticks(0.3, 5.2)
    [1.0, 2.0, 3.0, 4.0, 5.0]
    """
    step = _step(high - low, about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _step(width: float, about: int) -> float:
    """Return 1, 2 or 5 times a power of ten."""
    rough = 0.75 * width / about
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))


def _around(low: float, high: float, whole: bool = False) -> tuple[float, float]:
    """Return bounds with some air, so that no curve is cut by an axis."""
    if whole:  # updates: there is nothing between two of them
        return low, max(high, low + 1)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - air, high + air


def _last(known: Sequence[Point]) -> str:
    return f"{number(known[-1][1])} at update {known[-1][0]:g}"


def _thinned(
    points: Sequence[tuple[float, float | None]],
) -> list[tuple[float, float | None]]:
    """Average groups of neighbors if there are more than ``MOST``; the last point stays."""
    size = math.ceil(len(points) / MOST)
    if size <= 1:
        return list(points)
    thin: list[tuple[float, float | None]] = []
    for start in range(0, len(points) - 1, size):
        group = points[start : min(start + size, len(points) - 1)]
        ys = [y for _, y in group if y is not None]
        thin.append((group[-1][0], sum(ys) / len(ys) if ys else None))
    return [*thin, points[-1]]


@dataclass(frozen=True)
class _Plot:
    """The area between the axes, which places what is drawn."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> str:
        share = (value - self.left) / (self.right - self.left)
        return f"{LEFT + share * (WIDTH - LEFT - RIGHT):.1f}"

    def y(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM):.1f}"

    def axes(self) -> list[Markup]:
        """Grid lines with their numbers."""
        parts = []
        for value in ticks(self.low, self.high):
            parts.append(self.line(value, "grid"))
            parts.append(
                Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}</text>').format(
                    LEFT - 7, f"{float(self.y(value)) + 4:.1f}", _tick(value, self.high - self.low)
                )
            )
        for value in ticks(self.left, self.right):
            if value == int(value):
                parts.append(
                    Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>')
                    .format(self.x(value), HEIGHT - BOTTOM + 17, f"{value:,.0f}")
                )  # fmt: skip
        parts.append(
            Markup('<text class="label" x="{}" y="{}" text-anchor="end">update</text>').format(
                WIDTH - RIGHT, HEIGHT - 3
            )
        )
        return parts

    def line(self, value: float, look: str) -> Markup:
        """A level line across the plot."""
        return Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            look, LEFT, WIDTH - RIGHT, self.y(value), self.y(value)
        )

    def curve(self, curve: Curve, points: Sequence[tuple[float, float | None]]) -> list[Markup]:
        """A line through the known points, broken where one is unknown, and its markers."""
        path, pen_up = [], True
        for x, y in points:
            if y is not None:
                path.append(f"{'M' if pen_up else 'L'}{self.x(x)} {self.y(y)}")
            pen_up = y is None
        parts = [Markup('<path class="curve {}" d="{}"/>').format(curve.look, " ".join(path))]

        known = [(x, y) for x, y in points if y is not None]
        marked = curve.always_marked or len(known) <= MARKED
        for x, y in known if marked else known[-1:]:
            parts.append(
                Markup('<circle class="{}" cx="{}" cy="{}" r="3"><title>{}</title></circle>')
                .format(curve.look, self.x(x), self.y(y), f"{curve.name} {number(y)}, update {x:g}")
            )  # fmt: skip
        return parts


def _tick(value: float, width: float) -> str:
    """A tick's number, with as many digits as tell it from its neighbors."""
    step = _step(width, 4)
    if abs(value) < step / 2:
        return "0"
    if step < 1e-4 or abs(value) >= 1e6:
        return f"{value:.2g}"
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
