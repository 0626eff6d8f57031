"""The three charts of the report as inline SVG, drawn by matplotlib.

A chart is 400 units wide and is scaled to its column, so that its text stays readable on a phone. Colours are those of
``report.css`` (light, dark, print) by name; names stand beside what they name, so no colour has to be told from
another. The same values give the same text.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import IdentityTransform

WIDTH = 400
BINS = 48
COLOURS = ("accent", "soft", "ink", "line", "gap", "set-0", "set-1", "set-2", "set-3")
_CODE = "#f0d0{:02x}"  # stands for a colour's name until the text is written
TEXT = 12.5


def dots(rows: Sequence[tuple[str, float, tuple[float, float] | None]], main: str, gap: Sequence[float]) -> Markup:
    """One value per row on a common axis: of each its name, value and interval; the row ``main`` is stressed.

    ``gap`` are the ends of the range to shade; none for no range.
    """
    ticks = _ticks([*(value for _, value, _ in rows), *(end for _, _, interval in rows for end in interval or ())])
    axes = _axes(36 * len(rows) + 6, ticks)
    if gap:
        axes.axvspan(min(gap), max(gap), color=_colour("gap"), linewidth=0, clip_on=False, zorder=0)
    for index, (name, value, interval) in enumerate(rows):
        y, stressed = 36 * index + 27, name == main
        text, mark = ("accent", "accent") if stressed else ("ink", "soft")
        _write(axes, ticks[0], y - 10, name, text, bold=stressed)
        _write(axes, ticks[-1], y - 10, f"{value:.3f}", text, "right", bold=stressed)
        _line(axes, (ticks[0], ticks[-1]), (y, y), "line")
        if interval:
            _line(axes, interval, (y, y), mark, 2.5)
        _marker(axes, value, y, mark)
    return _svg(axes, "Score of every set-up")


def histograms(sets: Mapping[str, Sequence[float]], aim: float | None) -> Markup:
    """One histogram per row, each of values >= 0 scaled to its own peak, on a common axis from 0; dashed at ``aim``."""
    ticks, row, tall = _ticks([0.0, *(max(values) for values in sets.values())]), 66, 38
    axes = _axes(row * len(sets), ticks)
    for index, (name, values) in enumerate(sets.items()):
        counts, edges = np.histogram(values, BINS, (ticks[0], ticks[-1]))
        base, colour = row * (index + 1) - 6, _colour(f"set-{index % 4}")
        heights = base - tall * counts / counts.max()
        axes.stairs(heights, edges, baseline=base, fill=True, color=colour, alpha=0.75, clip_on=False)
        _line(axes, (ticks[0], ticks[-1]), (base, base), "line")
        _write(axes, ticks[-1], base - tall - 5, name, "ink", "right")
    if aim is not None:
        _line(axes, (aim, aim), (0, row * len(sets)), "ink", 1, "--")
    return _svg(axes, "Histogram per set")


def curve(series: Mapping[str, Sequence[tuple[float, float, float]]]) -> Markup:
    """Measured against requested values with the diagonal on which both agree.

    A curve's points are (requested, mean measured, its standard deviation), circles and squares in turn, as in the
    legend below the chart.
    """
    values = [v for points in series.values() for x, mean, std in points for v in (x, mean - std, mean + std)]
    ticks = _ticks([max(0.0, min(values)), *(max(v, 0.0) for v in values)])
    axes = _axes(264, ticks, square=True)
    axes.set_xlabel("requested", fontsize=TEXT, color=_colour("soft"))
    axes.set_ylabel("measured, mean \u00b1 std", fontsize=TEXT, color=_colour("soft"))
    _line(axes, (ticks[0], ticks[-1]), (ticks[0], ticks[-1]), "ink", 1, "--")
    for index, points in enumerate(series.values()):
        colour, shift = f"set-{2 + index % 2}", 3 * index * (ticks[-1] - ticks[0]) / WIDTH
        _line(axes, [x + shift for x, _, _ in points], [max(mean, ticks[0]) for _, mean, _ in points], colour, 2)
        for x, mean, std in points:
            low, high, middle = (max(v, ticks[0]) for v in (mean - std, mean + std, mean))
            _line(axes, (x + shift, x + shift), (low, high), colour, 1.5)
            _marker(axes, x + shift, middle, colour, index % 2 == 0)
    return _svg(axes, "Measured against requested uncertainty")


def _ticks(values: Sequence[float]) -> list[float]:
    """About five round ticks around all values."""
    least, most = min(values), max(values)
    more = max(0.0, 1e-3 - (most - least)) / 2
    return list(MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(least - more * (least > 0), most + more))


def _labels(ticks: Sequence[float]) -> list[str]:
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return [f"{tick:.{digits}f}" for tick in ticks]


def _axes(height: float, ticks: Sequence[float], square: bool = False) -> Axes:
    """Axes with a grid, whose ends stay inside the chart; rows have the same ticks, or are units from the top."""
    left, right, bottom, top = (62, 20, 46, 8) if square else (8, 8, 20, 8)
    whole = top + height + bottom
    figure = Figure((WIDTH / 72, whole / 72), dpi=72, frameon=False)
    box = (left / WIDTH, bottom / whole, (WIDTH - left - right) / WIDTH, height / whole)
    axes = figure.add_axes(box, frameon=False)
    axes.set(xlim=(ticks[0], ticks[-1]), ylim=(ticks[0], ticks[-1]) if square else (height, 0))
    axes.set_xticks(ticks, _labels(ticks), fontsize=TEXT, color=_colour("soft"))
    axes.tick_params(left=False, bottom=False, labelleft=square)
    if square:
        axes.set_yticks(ticks, _labels(ticks), fontsize=TEXT, color=_colour("soft"))
    else:
        axes.get_xticklabels()[0].set_horizontalalignment("left")
        axes.get_xticklabels()[-1].set_horizontalalignment("right")
    axes.grid(axis="both" if square else "x", color=_colour("line"), linewidth=0.6)
    axes.set_axisbelow(True)
    for line in (*axes.get_xgridlines(), *axes.get_ygridlines()):
        line.set_clip_on(False)
    return axes


def _colour(name: str) -> str:
    return _CODE.format(COLOURS.index(name))


def _write(axes: Axes, x: float, y: float, text: str, colour: str, align: str = "left", bold: bool = False) -> None:
    weight = "bold" if bold else "normal"
    axes.text(x, y, text, color=_colour(colour), ha=align, fontsize=TEXT, weight=weight, parse_math=False)


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, width: float = 1, style: str = "-") -> None:
    axes.plot(x, y, style, color=_colour(colour), lw=width, clip_on=False, solid_capstyle="butt")


def _marker(axes: Axes, x: float, y: float, colour: str, round_: bool = True) -> None:
    """A circle or a square, as a path of its own: what matplotlib does with markers refers to other parts of a file."""
    across, up = axes.transData.transform((x, y))
    shape = Circle((across, up), 4.7) if round_ else Rectangle((across - 4, up - 4), 8, 8)
    shape.set(color=_colour(colour), linewidth=0, clip_on=False, zorder=3, transform=IdentityTransform())
    axes.add_patch(shape)


def _svg(axes: Axes, label: str) -> Markup:
    """The drawing as a part of a page: without what a file of its own needs, texts as texts, colours by name."""
    figure, file = cast("Figure", axes.figure), io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "unicorn"}), warnings.catch_warnings(action="ignore"):
        figure.savefig(file, format="svg", metadata={"Date": None})  # it warns of letters its own font has not
    width, height = (72 * side for side in figure.get_size_inches())
    body = file.getvalue().partition("<svg")[2].partition(">")[2]
    body = re.sub(r"<(metadata|defs)>.*?</\1>|<!--.*?-->|\n\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", lambda tag: _in_page(tag[0]), body)
    head = f'<svg class="chart" role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}">'
    return Markup(head + body.strip())


def _in_page(tag: str) -> str:
    """A tag without its name, which another chart of the page has too, and with the page's letters and colours."""
    tag = re.sub(r"(?<=px; )font-family: [^;]*; | id=\"[^\"]*\"", "", tag)
    return re.sub(r"#f0d0([0-9a-f]{2})", lambda code: f"var(--{COLOURS[int(code[1], 16)]})", tag)
