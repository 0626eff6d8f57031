"""What the label maps of a whole data set tell of their labels: which occur, how much is ignored, which are rims only.

A rim is what interpolation leaves: between the labels 0 and 4 it makes up 1, 2 and 3, wherever the two meet, one or two
pixels wide. So a label is taken for made up if none of its pixels lies in a square of 3 x 3 of that label (nothing is
left by an opening), each has a lower and a higher label within two pixels, and so has each label up to the next that
covers areas. Thin labels of street scenes fail the second test (the same label is on both sides of a pole), thin layers
the third, or their maps are layered: with depth the values only rise, and a thin layer looks like a rim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unicorn_monai.images.surfaces import IGNORE

MUCH = 0.5  # of the pixels
THICK, THIN = 0.9, 0.02  # shares of a label's pixels in squares of 3 x 3
BETWEEN = 0.95  # share of a rim's pixels with a lower and a higher label near
LAYERED = 0.95  # share of the columns in which the labels only rise

Finding = tuple[str, str, str, bool]  # found, expected, remedy, fatal


def require_label_table(labels: dict[str, str], what: str) -> None:
    """Refuse a label table, value (as text) -> name, that is none: in a message that begins with ``what``."""
    if set(labels) != {str(value) for value in range(len(labels))}:
        raise ValueError(f"{what} has the values {list(labels)}; expected 0, 1, ... without gaps.")
    if len(labels) > IGNORE:
        raise ValueError(
            f"{what} has {len(labels)} labels; expected at most {IGNORE}, 0 to {IGNORE - 1}: "
            f"{IGNORE} means ignore, and label maps have 8 bits. Leave some out, or join some."
        )
    if not all(isinstance(name, str) for name in labels.values()):
        raise ValueError(f"{what} has the names {list(labels.values())}; expected texts.")
    names = [name.strip() for name in labels.values()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{what} gives the names {twice} twice; expected one label of each name. Rename or join them.")


class LabelSurvey:
    """Counts of the label maps of a data set with these labels, value (as text) -> name."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.names = [labels[str(value)] for value in range(len(labels))]
        self.maps = 0
        # Pixels of each label: all; in a square of 3 x 3 of it; between a lower and a higher one; looked at for rims.
        self.pixels, self.inner, self.between, self.seen = np.zeros((4, IGNORE + 1), dtype=np.int64)
        self.columns = np.zeros(2, dtype=np.int64)  # of these maps: in which the labels only rise, and all

    def add(self, label: NDArray, rims: bool) -> None:
        """Take note of a label map of named values, (rows, columns); of its rims too if asked for."""
        label = label.astype(np.uint8)
        self.maps += 1
        self.pixels += np.bincount(label.ravel(), minlength=IGNORE + 1)
        if not rims:
            return
        uniform = ndimage.minimum_filter(label, 3) == ndimage.maximum_filter(label, 3)
        inner = ndimage.maximum_filter(uniform, 3)
        lowest = ndimage.minimum_filter(label, 5)
        highest = ndimage.maximum_filter(np.where(label == IGNORE, 0, label), 5)
        between = (lowest < label) & (label < highest)
        for counts, which in ((self.inner, inner), (self.between, between), (self.seen, slice(None))):
            counts += np.bincount(label[which].ravel(), minlength=IGNORE + 1)
        known = (label[1:] != IGNORE) & (label[:-1] != IGNORE)
        rising = (~known | (label[1:] >= label[:-1])).all(axis=0)
        self.columns += rising.sum(), rising.size

    def findings(self, need_labels: bool) -> Iterator[Finding]:
        """What is wrong with the labels; nothing where there is no label map."""
        if not self.maps:
            return
        occurring, ignored = np.flatnonzero(self.pixels[: len(self.names)]), self.pixels[IGNORE]
        absent = [value for value in range(len(self.names)) if value not in occurring]
        share = ignored / self.pixels.sum()
        if len(occurring) < 2 and absent and (ignored or need_labels):
            found = self._shown(occurring.tolist()) if len(occurring) else "no label"
            found = f"nothing but {found}{' and 255 (ignore)' if ignored else ''} in all {self.maps} label maps"
            remedy = "Look which values the label files hold."
            if ignored:
                remedy = (
                    "Are they masks of 0 and 255? 255 means ignore: convert again with "
                    f'"values": {{"255": {absent[0]}}} in the --labels file.'
                )
            yield found, "two labels or more, which a network could tell apart", remedy, True
        elif absent:
            hint = f" 255 (ignore) fills {share:.1%} of the pixels: is it one of these?" if ignored else ""
            remedy = f"Leave them out of the table, or look which values the label files hold.{hint}"
            yield f"no pixel of {self._shown(absent)}", "every label that is named to occur", remedy, False
        if share > MUCH and len(occurring) > 1:
            remedy = 'Is 255 a label in the files? Convert again with "values" in the --labels file.'
            yield f"255 (ignore) in {share:.1%} of the pixels", f"at most {MUCH:.0%}", remedy, False
        if rims := self.rims():
            remedy = (
                "Were the label images resampled with interpolation, which makes up the values between two labels? "
                "Export them anew (nearest neighbour); if they were drawn so, all is well."
            )
            found = f"{self._shown(rims)} only as rims of one or two pixels between lower and higher labels"
            yield found, "labels that cover areas", remedy, False

    def rims(self) -> list[int]:
        """Labels that occur as rims between others only, and so were probably made up by interpolation."""
        if self.columns[1] and self.columns[0] >= LAYERED * self.columns[1]:
            return []
        present = [value for value in range(len(self.names)) if self.seen[value]]
        inner = {value: self.inner[value] / self.seen[value] for value in present}
        thin = [v for v in present if inner[v] <= THIN and self.between[v] >= BETWEEN * self.seen[v]]
        found: list[int] = []
        for value in thin:
            below = max((v for v in present if v < value and v not in thin), default=None)
            above = min((v for v in present if v > value and v not in thin), default=None)
            if below is not None and above is not None and min(inner[below], inner[above]) >= THICK:
                found.append(value)
        return found

    def _shown(self, values: list[int]) -> str:
        few = ", ".join(f"{value} '{self.names[value]}'" for value in values[:8])
        return f"{few}{f' and {len(values) - 8} more' if len(values) > 8 else ''}"
