"""What a source reads, file by file, and the report of what happened to it."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.privacy import one_form

SHOWN = 10  # skipped files that are told one by one
MANY = 0.1  # of the images: a label that vanishes in so many is told


@dataclass
class Scan:
    """One B-scan as read: rows = depth, columns = A-scans."""

    image: NDArray[np.uint8]  # (rows, columns) or (rows, columns, 3)
    spacing_mm: tuple[float, float] | None = None  # (axial, lateral) of this image, where known
    # Rows by name, (columns,), or all, (surfaces, columns); 0-based, NaN where not annotated.
    surfaces: Mapping[str, NDArray] | NDArray | None = None
    label: NDArray | None = None  # (rows, columns), instead of surfaces
    valid: NDArray[np.bool_] | None = None  # (rows, columns), which pixels exist; all by default
    device: str | None = None  # model
    turned: bool = False  # or mirrored, as the EXIF orientation of the picture says
    fields: dict[str, Any] = field(default_factory=dict)  # more entries of the item, none of them identifying


@dataclass
class Source:
    """A file or volume: where it lies (for messages), whose eye it shows, how to read its B-scans, and its split.

    Without a split, subjects are divided by the shares of `--split`. A name in two Unicode forms is one subject.
    """

    path: Path
    subject: str
    read: Callable[[], Iterator[Scan | ValueError]]
    split: str | None = None

    def __post_init__(self) -> None:
        self.subject = one_form(self.subject)


@dataclass
class Report:
    """What happened, for the summary; nothing is skipped in silence."""

    strict: bool = False
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    crossing: list[float] = field(default_factory=list)
    pixels: NDArray[np.integer] = field(default_factory=lambda: np.zeros(256, dtype=np.int64))  # of each label
    held: Counter[int] = field(default_factory=Counter)  # images of the input that have a label
    vanished: Counter[int] = field(default_factory=Counter)  # of these, those that have lost it by resizing
    unlabelled: list[str] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)  # models, one unless the user names the domain
    spacings: list[tuple[float, float]] = field(default_factory=list)  # of the images as written
    label_files: list[str] | None = None  # those found, where the source looks for files and tells which it misses

    def skip(self, path: Path | str, reason: object) -> None:
        """Leave something out, or stop here if that was asked for."""
        if self.strict:
            raise ValueError(f"{path}: {reason}")
        self.skipped.append((str(path), str(reason)))

    def first_reasons(self) -> str:
        """Why the first files were left out."""
        return "; ".join(f"{path}: {reason}" for path, reason in self.skipped[:3])

    def note(self, text: str) -> None:
        """Count something worth knowing."""
        self.notes[text] += 1

    def note_unlabelled(self, total: int) -> None:
        """Tell how many images came without labels, for sources that do not look for files of labels."""
        if self.unlabelled:
            names = ", ".join(f"'{where}'" for where in self.unlabelled[:3])
            more = ", ..." if len(self.unlabelled) > 3 else ""
            self.note(f"no labels for {len(self.unlabelled)} of {total} images: {names}{more}")

    def leave_out(self, name: str, count: int) -> None:
        """Count files that are hidden, or that another program left: those of a name, or in a folder of that name."""
        if count:
            self.left_out[name] += count

    def header(self, device_name: str | None, modality: str) -> dict[str, Any]:
        """Device and spacing for ``dataset.json``; what is not known is noted."""
        device = device_name or next(iter(self.devices), "unknown")
        if device == "unknown":
            self.note("device unknown: give --device-name, it names the domain")
        if self.spacings:
            return {"device": device, "spacing_mm": [round(float(s), 7) for s in np.median(self.spacings, axis=0)]}
        if modality == "OCT":
            self.note("no spacing: give --spacing-mm, thicknesses need it")
        return {"device": device}

    def vanished_lines(self, names: Mapping[str, str]) -> list[str]:
        """One line for each label that is lost in many images by resizing."""
        return [
            f"note: label {value} {names[str(value)]} vanishes on resizing in {count} of the {self.held[value]} images "
            "that have it; a larger --size keeps it"
            for value, count in sorted(self.vanished.items())
            if count >= MANY * self.held[value]
        ]

    def left_out_lines(self) -> list[str]:
        """One line on what was left out, if anything was."""
        if not self.left_out:
            return []
        names = [f"'{name}' ({count})" for name, count in sorted(self.left_out.items())]
        more = f" and {len(names) - SHOWN} more names" if len(names) > SHOWN else ""
        count = sum(self.left_out.values())
        return [f"left out {count} file(s), hidden or of other programs: {', '.join(names[:SHOWN])}{more}"]
