"""The benchmark as a picture: methods in rows, shifts in columns, mean IoU in the cells, the gap closed as colour.

    0 (white)  as the lower bound      1 (green)  as the upper bound      below 0 (red)  worse than the lower bound

An SVG file of its own, on white paper whatever the page around it, drawn by matplotlib as the report's charts are; the
same table gives the same text. The strongest opponent of a shift is framed, the network recommended without labels has
a dot, what was not computed is hatched. The numbers stand in the cells, so no colour has to be told from another.
"""

from __future__ import annotations

import io
import re
import warnings

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from unicorn_monai.report.benchmark_table import Cell, Shift, Table

WIDE, HIGH = 64, 33  # of a cell, in points
HEADS, FOOT, LETTER = 125, 62, 6.9  # above and below the cells; width of a letter of a name
INK, SOFT, NONE = "#16202a", "#56636f", "#eceff1"
WORST = -0.5  # of the gap, where the red is deepest
COLOURS = LinearSegmentedColormap.from_list("gap", [(0.0, "#d9705f"), (1 / 3, "#ffffff"), (1.0, "#1f8f7a")])


def draw(table: Table) -> str:
    """The picture as the text of an SVG file."""
    methods, columns = table.methods, [*table.shifts.items()]
    names = 24 + LETTER * max(map(len, methods), default=0)
    width = max(names + WIDE * len(columns) + 76, 560)  # the last name leans out of its column
    height = HEADS + HIGH * len(methods) + FOOT
    figure = Figure((width / 72, height / 72), dpi=72, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    axes.set(xlim=(-names, width - names), ylim=(height - HEADS, -HEADS), xticks=[], yticks=[])
    for row, method in enumerate(methods):
        _write(axes, -10, HIGH * (row + 0.5), method, 11, align="right")
        for column, (_, shift) in enumerate(columns):
            _cell(axes, WIDE * column, HIGH * row, shift, method)
    for column, (name, shift) in enumerate(columns):
        axes.text(WIDE * (column + 0.4), -8, name, rotation=35, fontsize=11, color=INK, parse_math=False)
        if shift.strongest in methods:
            corner = WIDE * column + 1.5, HIGH * methods.index(shift.strongest) + 1.5
            axes.add_patch(Rectangle(corner, WIDE - 3, HIGH - 3, fill=False, edgecolor=INK, linewidth=2.4, zorder=4))
    _legend(axes, 28 - names, HIGH * len(methods) + 22)
    return _text(figure)


def _cell(axes: Axes, left: float, top: float, shift: Shift, method: str) -> None:
    """A cell: colour, mean IoU, interval; the dot of the recommendation."""
    one, closed = shift.methods.get(method, Cell()), shift.closed(method)
    box = {"linewidth": 1, "edgecolor": "#ffffff"}
    if one.mean_iou is None:
        own = {"facecolor": "#ffffff", "edgecolor": "#b9c2c9", "linewidth": 0.6, "hatch": "////"}
        axes.add_patch(Rectangle((left + 0.5, top + 0.5), WIDE - 1, HIGH - 1, **own))
        return
    rgb = NONE if closed is None else COLOURS((closed - WORST) / (1 - WORST))
    axes.add_patch(Rectangle((left, top), WIDE, HIGH, facecolor=rgb, **box))
    ink = "#ffffff" if closed is not None and closed > 0.8 else INK
    middle = left + WIDE / 2
    _write(axes, middle, top + HIGH * (0.36 if one.ci95 else 0.5), f"{one.mean_iou:.3f}", 12, ink, "center")
    if one.ci95:
        _write(axes, middle, top + HIGH * 0.74, f"{one.ci95[0]:.2f} to {one.ci95[1]:.2f}", 8.5, ink, "center")
    if method == shift.recommendation.method:
        axes.add_patch(Circle((left + WIDE - 9, top + 9), 3.4, facecolor=INK, edgecolor="#ffffff", zorder=5))


def _legend(axes: Axes, left: float, top: float) -> None:
    """What colours, frame, dot and hatches say, in two lines."""
    steps, wide = 30, 5
    for step in range(steps):
        colour = COLOURS(step / (steps - 1))
        axes.add_patch(Rectangle((left + wide * step, top), wide + 0.3, 12, facecolor=colour, linewidth=0))
    for share in (WORST, 0.0, 1.0):
        x = left + wide * steps * (share - WORST) / (1 - WORST)
        _write(axes, x, top + 22, f"{100 * share:.0f} %".replace("-", "\u2212"), 9, SOFT, "center")
    _write(axes, left + wide * steps + 12, top + 6, "of the gap closed", 10, SOFT)
    x = left + wide * steps + 112
    axes.add_patch(Rectangle((x, top), 20, 12, fill=False, edgecolor=INK, linewidth=2.4))
    _write(axes, x + 28, top + 6, "strongest opponent", 10, SOFT)
    axes.add_patch(Circle((x + 10, top + 24), 3.4, facecolor=INK))
    _write(axes, x + 28, top + 24, "recommended without labels", 10, SOFT)
    x += 172
    axes.add_patch(Rectangle((x, top), 20, 12, facecolor="#ffffff", edgecolor="#b9c2c9", linewidth=0.6, hatch="////"))
    _write(axes, x + 28, top + 6, "not computed", 10, SOFT)


def _write(axes: Axes, x: float, y: float, text: str, size: float, colour: str = INK, align: str = "left") -> None:
    axes.text(x, y, text, fontsize=size, color=colour, ha=align, va="center_baseline", parse_math=False)


def _text(figure: Figure) -> str:
    """The drawing as a file: letters as letters, in the reader's own fonts, and nothing that changes with the day."""
    file, own = io.StringIO(), {"svg.fonttype": "none", "svg.hashsalt": "unicorn"}
    with rc_context(own), warnings.catch_warnings(action="ignore"):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, facecolor=figure.get_facecolor())
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", file.getvalue(), flags=re.DOTALL)
    text = re.sub(r' (?:clip-path="[^"]*"|id="(?!h)[^"]*")', "", text)  # h...: of the hatches
    return re.sub(r"\n\s*", "\n", text.replace("'DejaVu Sans'", "system-ui"))
