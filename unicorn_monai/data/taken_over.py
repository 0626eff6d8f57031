"""What a data set that is made from another one takes over from it: known entries, of known types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicorn_monai.data.layout import HEADER
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.records import COLOURS, SPACING, TEXT, take


def layout_of(header: dict[str, Any]) -> dict[str, Any]:
    """What a data set made from another one takes over from its header: arguments of ``writer.About``.

    Raises:
        ValueError: one of them is of another type.
    """
    known = take(header, {"modality": TEXT, "spacing_mm": SPACING}, HEADER)
    return {
        "labels": {int(value): name for value, name in header["labels"].items()},
        "modality": known.get("modality", "OCT"),
        "spacing_mm": known.get("spacing_mm"),
        "suffix": ".png" if known.get("modality") == "RGB" else ".nii.gz",
    }


def colours_of(header: dict[str, Any]) -> dict[str, Any]:
    """The entry "colours" of a header, where there is one, to be taken over too.

    Raises:
        ValueError: it is something else than colours of labels.
    """
    return take(header, {"colours": COLOURS}, HEADER)


def index_of(item: Mapping[str, Any], path: PathLike) -> int:
    """The place of an item in a data set that this package wrote: its files are named by it.

    Raises:
        ValueError: the name is no number.
    """
    number = Path(item["image"]).name.partition(".")[0]
    if not re.fullmatch("[0-9]{1,12}", number):
        raise ValueError(f"'{path}' has the image {item['image']!r}; expected a name that is a number, as 000000.png.")
    return int(number)
