"""The three charts of the report as inline SVG, drawn by plain string code.

A chart is 400 units wide and is scaled to its column, so that its text stays readable on a phone. Colours are classes
of ``report.css`` (light, dark, print); names stand beside what they name, so no colour has to be told from another.
All texts handed in must be HTML already.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

WIDTH = 400
BINS = 48


def dots(rows: list[tuple[str, float, tuple[float, float] | None]], main: str, gap: tuple[float, float] | None) -> str:
    """One value per row on a common axis.

    Args:
        rows: name, value and interval of each row.
        main: name of the row to stress.
        gap: range to shade.
    """
    ends = [end for _, _, interval in rows for end in interval or ()]
    axis = Axis.around([*(value for _, value, _ in rows), *ends], 8, WIDTH - 8)
    height = 36 * len(rows) + 6
    parts = axis.columns(height - 4, height)
    if gap:
        left, right = sorted(map(axis, gap))
        parts.insert(0, f'<rect class="gap" x="{left:.1f}" y="0" width="{right - left:.1f}" height="{height}"/>')
    for index, (name, value, interval) in enumerate(rows):
        y, kind = 36 * index + 27, "main" if name == main else "other"
        parts += [f'<text class="{kind}" x="8" y="{y - 10}">{name}</text>']
        parts += [f'<text class="end {kind}" x="{WIDTH - 8}" y="{y - 10}">{value:.3f}</text>']
        parts += [_line(8, y, WIDTH - 8, y, "track")]
        parts += [_line(axis(interval[0]), y, axis(interval[1]), y, f"whisker {kind}")] if interval else []
        parts += [f'<circle class="{kind}" cx="{axis(value):.1f}" cy="{y}" r="5"/>']
    return _svg(parts, height + 20, "Score of every set-up")


def histograms(sets: dict[str, list[float]], aim: float | None) -> str:
    """One histogram per row, each scaled to its own peak, on a common axis from 0.

    Args:
        sets: name and values (at least one, all >= 0) of each row.
        aim: where to draw the dashed line.
    """
    axis, row, tall = Axis.around([0.0, *(max(values) for values in sets.values())], 8, WIDTH - 8), 66, 38
    bottom, width = row * len(sets), (axis.high - axis.low) / BINS
    parts = axis.columns(0, bottom)
    for index, (name, values) in enumerate(sets.items()):
        counts, base = [0] * BINS, row * (index + 1) - 6
        for value in values:
            counts[min(int((value - axis.low) / width), BINS - 1)] += 1
        heights = (base - tall * count / max(counts) for count in counts)
        steps = "".join(f"V{y:.1f}H{axis(axis.low + (i + 1) * width):.1f}" for i, y in enumerate(heights))
        parts += [f'<path class="set-{index % 4}" d="M{axis(axis.low):.1f} {base}{steps}V{base}Z"/>']
        parts += [_line(8, base, WIDTH - 8, base, "track")]
        parts += [f'<text class="end name" x="{WIDTH - 8}" y="{base - tall - 5}">{name}</text>']
    parts += [_line(axis(aim), 0, axis(aim), bottom, "aim")] if aim is not None else []
    return _svg(parts, bottom + 20, "Histogram per set")


def curve(series: dict[str, list[tuple[float, float, float]]]) -> tuple[str, str]:
    """Measured against requested values with the diagonal on which both agree.

    Args:
        series: name and points (requested, mean measured, its standard deviation) of each curve.

    Returns:
        The chart and its legend.
    """
    left, right, top, bottom = 46, WIDTH - 10, 8, 272
    values = [v for points in series.values() for x, mean, std in points for v in (x, mean - std, mean + std)]
    across = Axis.around([max(0.0, min(values)), *(max(v, 0.0) for v in values)], left, right)
    up = Axis(across.low, across.high, across.step, bottom, top)
    parts = [*across.columns(top, bottom), *up.rows(left, right), _line(left, bottom, right, top, "aim")]
    parts += [f'<text class="mid" x="{(left + right) / 2}" y="{bottom + 34}">requested</text>']
    parts += ['<text class="mid" x="11" y="140" transform="rotate(-90 11 140)">measured, mean \u00b1 std</text>']
    legend = ""
    for index, (name, points) in enumerate(series.items()):
        kind = f"set-{2 + index % 2}"
        at = [(across(x) + 3 * index, *(up(max(v, up.low)) for v in (m, m - s, m + s))) for x, m, s in points]
        parts += [f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in at)}"/>']
        parts += [_line(x, low, x, high, kind) + _marker(index, x, y, kind) for x, y, low, high in at]
        key = f'<svg viewBox="0 0 16 12" aria-hidden="true">{_marker(index, 8, 6, kind)}</svg>'
        legend += f"<span>{key}{name}</span>"
    return _svg(parts, bottom + 42, "Measured against requested uncertainty"), legend


@dataclass(frozen=True)
class Axis:
    """Maps ``low`` to ``high``, both multiples of ``step``, onto ``start`` to ``end`` of the drawing."""

    low: float
    high: float
    step: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Iterable[float], start: float, end: float) -> Axis:
        """The axis with about five round ticks that holds all values."""
        least, most = (function(values) for function in (min, max)) if (values := list(values)) else (0.0, 1.0)
        raw = max(most - least, 1e-3) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
        low = math.floor(least / step + 1e-9) * step
        return cls(low, max(math.ceil(most / step - 1e-9) * step, low + step), step, start, end)

    def __call__(self, value: float) -> float:
        """Position of a value in the drawing."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Position and text of every tick."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        values = (self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1))
        return [(self(value), f"{value:.{digits}f}") for value in values]

    def columns(self, top: float, bottom: float) -> list[str]:
        """Vertical lines of the grid with the ticks' texts below; the outer texts stay inside the chart."""
        ticks, parts = self.ticks(), []
        for x, text in ticks:
            kind = "end" if x > WIDTH - 16 else "start" if x < 16 else "mid"
            parts += [
                _line(x, top, x, bottom, "grid"),
                f'<text class="{kind}" x="{x:.1f}" y="{bottom + 15}">{text}</text>',
            ]
        return parts

    def rows(self, left: float, right: float) -> list[str]:
        """Horizontal lines of the grid with the ticks' texts on the left."""
        texts = (f'<text class="end" x="{left - 6}" y="{y + 4:.1f}">{text}</text>' for y, text in self.ticks())
        return [*(_line(left, y, right, y, "grid") for y, _ in self.ticks()), *texts]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _marker(index: int, x: float, y: float, kind: str) -> str:
    if index % 2:
        return f'<rect class="{kind}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'


def _svg(parts: list[str], height: float, label: str) -> str:
    return f'<svg class="chart" role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {height}">{"".join(parts)}</svg>'
