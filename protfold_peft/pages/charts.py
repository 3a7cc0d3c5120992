"""Line and scatter charts as inline SVG, coloured by the style of the page and so readable in light and dark.

Written by hand where matplotlib would do, since its colours are fixed when it draws and a page is read in either theme.
Values that are not finite are left out: a line breaks there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# In SVG units, which a browser scales: the whole chart, and what stays free around the axes for numbers and labels.
WIDTH, HEIGHT = 340, 230
SIDE = 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 30, 40
# A longer line is drawn by the means of equal stretches: a browser takes long over more points than a screen shows.
MAX_POINTS = 2000
# Lines of so few points show each of them.
_MAX_MARKED = 40
# Of float32. What is beyond it is no value of a model, and no axis could show it.
_LARGEST = 3.4e38


@dataclass(frozen=True)
class Point:
    """A point of a scatter chart: its place, what is shown when it is pointed at, and an attribute for scripts."""

    x: float
    y: float
    label: str
    index: int


def finite(value: float | str | None) -> float | None:
    """The value as a number; None where it is none, NaN, infinity or larger than float32 holds."""
    try:
        found = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return found if abs(found) <= _LARGEST else None


def line_chart(
    title: str,
    x: Sequence[float],
    y: Sequence[float | None],
    *,
    x_label: str,
    reference: tuple[str, float] | None = None,
) -> str:
    """An SVG element of `y` over `x`; None in `y` breaks the line.

    Args:
        title: Above the chart; also its name for those who do not see it.
        x: As long as `y`, increasing, finite.
        y: Any unit.
        x_label: Below the axis.
        reference: Name and height of a dashed horizontal line.
    """
    known = [value for value in y if value is not None]
    if not known:
        return ""
    levels = [*known, reference[1]] if reference else known
    axes = _Axes.around(x, levels, WIDTH, HEIGHT)
    drawn_x, drawn_y = _thinned(x, y)
    runs: list[list[tuple[float, float]]] = [[]]
    for across, value in zip(drawn_x, drawn_y):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((axes.x(across), axes.y(value)))
    marked = len(known) <= _MAX_MARKED
    drawn = []
    for run in runs:
        if len(run) > 1:
            places = " L".join(f"{a:.1f},{b:.1f}" for a, b in run)
            drawn.append(f'<path class="line" d="M{places}"/>')
        if marked or len(run) == 1:
            drawn += [f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in run]
    described = f"{title}: {number(known[0])} at first, {number(known[-1])} at last, over {x_label}"
    if reference:
        height = axes.y(reference[1])
        name = f"{reference[0]} {number(reference[1])}"
        drawn.append(
            f'<line class="reference" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'
            f'<text class="reference-name" x="{WIDTH - _RIGHT}" y="{height - 4:.1f}" text-anchor="end">'
            f"{escape(name)}</text>"
        )
        described += f"; {name}"
    if len(drawn_x) < len(x):
        described += f"; means of stretches of {len(x)} values"
    return _svg(title, described, axes.draw(x_label=x_label) + "".join(drawn), WIDTH, HEIGHT)


def scatter_chart(title: str, points: Sequence[Point], *, x_label: str, y_label: str) -> str:
    """An SVG element with one range on both axes and the diagonal; every point tells its label."""
    if not points:
        return ""
    values = [value for point in points for value in (point.x, point.y)]
    axes = _Axes.around(values, values, SIDE, SIDE)
    low, high = max(axes.x_low, axes.y_low), min(axes.x_high, axes.y_high)
    drawn = [
        f'<line class="reference" x1="{axes.x(low):.1f}" y1="{axes.y(low):.1f}" '
        f'x2="{axes.x(high):.1f}" y2="{axes.y(high):.1f}"/>'
    ]
    drawn += [
        f'<circle class="point" data-target="{point.index}" r="4" '
        f'cx="{axes.x(point.x):.1f}" cy="{axes.y(point.y):.1f}">'
        f"<title>{escape(point.label)}</title></circle>"
        for point in points
    ]
    higher = sum(point.y > point.x for point in points)
    described = f"{title}: {len(points)} points, {higher} above the diagonal; the table has their values"
    return _svg(title, described, axes.draw(x_label=x_label, y_label=y_label) + "".join(drawn), SIDE, SIDE)


def number(value: float) -> str:
    """Four significant digits, as people write them."""
    return f"{value:.4g}"


@dataclass(frozen=True)
class _Axes:
    """Two linear axes with ticks at round numbers, `(x_low, y_low)` at the lower left."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: int
    height: int

    @classmethod
    def around(cls, x: Sequence[float], y: Sequence[float], width: int, height: int) -> _Axes:
        """Axes of this size on which all the values have room."""
        x_low, x_high = _range(x)
        y_low, y_high = _range(y)
        return cls(x_low, x_high, y_low, y_high, width, height)

    def x(self, value: float) -> float:
        """Horizontal place of a value in the picture."""
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Vertical place of a value in the picture, from the top down."""
        return (
            self.height - _BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (self.height - _TOP - _BOTTOM)
        )

    def draw(self, *, x_label: str, y_label: str = "") -> str:
        """Frame, ticks and labels."""
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        parts = [f'<path class="axis" d="M{_LEFT},{_TOP} V{bottom} H{right}"/>']
        for value in _ticks(self.x_low, self.x_high):
            parts.append(
                f'<path class="grid" d="M{self.x(value):.1f},{_TOP} V{bottom}"/>'
                f'<text x="{self.x(value):.1f}" y="{bottom + 15}" text-anchor="middle">{value:.6g}</text>'
            )
        for value in _ticks(self.y_low, self.y_high):
            parts.append(
                f'<path class="grid" d="M{_LEFT},{self.y(value):.1f} H{right}"/>'
                f'<text x="{_LEFT - 6}" y="{self.y(value) + 4:.1f}" text-anchor="end">{value:.6g}</text>'
            )
        middle = (_LEFT + right) / 2
        parts.append(f'<text x="{middle}" y="{self.height - 8}" text-anchor="middle">{escape(x_label)}</text>')
        if y_label:
            place = f"translate(14 {(_TOP + bottom) / 2}) rotate(-90)"
            parts.append(f'<text transform="{place}" text-anchor="middle">{escape(y_label)}</text>')
        return "".join(parts)


def _svg(title: str, described: str, content: str, width: int, height: int) -> str:
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {width} {height}" aria-label="{escape(described)}">'
        f'<text class="chart-title" x="{_LEFT}" y="16">{escape(title)}</text>{content}</svg>'
    )


def _thinned(x: Sequence[float], y: Sequence[float | None]) -> tuple[list[float], list[float | None]]:
    """At most `MAX_POINTS` points: the values, or means over stretches of them."""
    if len(x) <= MAX_POINTS:
        return list(x), list(y)
    size = math.ceil(len(x) / MAX_POINTS)
    means_x: list[float] = []
    means_y: list[float | None] = []
    for start in range(0, len(x), size):
        known = [value for value in y[start : start + size] if value is not None]
        stretch = x[start : start + size]
        means_x.append(sum(stretch) / len(stretch))
        means_y.append(sum(known) / len(known) if known else None)
    return means_x, means_y


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis: the values with a little room, never of no length."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(low) * 0.1 or 1.0
    else:
        room = (high - low) * 0.05
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within the range, two to six of them."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first, last = math.ceil(low / step), math.floor(high / step)
    # Rounding takes away what the product adds: 3 * 0.1 is not 0.3.
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(count * step, digits) + 0.0 for count in range(first, last + 1)]
