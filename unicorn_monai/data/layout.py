"""The folder of a data set: ``dataset.json`` and the files that it lists, each read with a message that names it.

    DATASET/dataset.json   images/*   labels/*      rows = depth, columns = A-scans

The file follows MONAI's datalist convention (``load_decathlon_datalist`` reads it). Everything is written under a
temporary name and renamed: nothing half-written has a final name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unicorn_monai.data.label_checks import require_label_table
from unicorn_monai.data.remote import Remote, is_url
from unicorn_monai.system.files import PathLike, parse_json
from unicorn_monai.system.intake import lies_there, require_regular
from unicorn_monai.system.records import COLOURS, SPACING, TEXT, take

SPLITS = ("training", "validation", "test")
HEADER = "dataset.json"
LABELS_EXAMPLE = '{"0": "vitreous", "1": "RNFL"}'
ITEM_EXAMPLE = '{"image": "images/000000.nii.gz", "label": "labels/000000.nii.gz", "subject": "s001"}'
_FILES = ("image", "label")
WEATHER = {"fog": "foggy scene", "night": "night scene", "rain": "rainy scene", "snow": "snowy scene"}


def read_header(dataset_dir: PathLike) -> dict[str, Any]:
    """Read and check ``dataset.json``; ``labels`` is {} where no image has a label map, whatever it says there."""
    dataset_dir = local_folder(dataset_dir)
    path = Path(dataset_dir) / HEADER
    if not Path(dataset_dir).is_dir():
        raise ValueError(f"Data set folder '{dataset_dir}' does not exist. Make one with `unicorn-monai prepare`.")
    if not lies_there(path):
        raise ValueError(f"'{dataset_dir}' holds no {HEADER}. Convert plain images with `unicorn-monai prepare`.")
    header = parse_json(path)
    if not isinstance(header, dict) or not isinstance(header.setdefault("labels", {}), dict):
        raise ValueError(f"'{path}' has no 'labels' table; expected e.g. {LABELS_EXAMPLE}.")
    require_label_table(header["labels"], f"'labels' of '{path}'")
    for split in SPLITS:
        items = header.get(split, [])
        if not isinstance(items, list) or not all(_is_item(item) for item in items):
            raise ValueError(f"'{split}' of '{path}' is not a list of items; expected e.g. [{ITEM_EXAMPLE}, ...].")
    if not any("label" in item for split in SPLITS for item in header.get(split, [])):
        header["labels"] = {}
    elif not header["labels"]:
        raise ValueError(f"'{path}' has label maps but no 'labels' table; expected e.g. {LABELS_EXAMPLE}.")
    return header


def _is_item(item: object) -> bool:
    return (
        isinstance(item, dict)
        and isinstance(item.get("image"), str)
        and isinstance(item.get("label", ""), str)
        and isinstance(item.get("subject", ""), str | int)
        and all(isinstance(item.get(key), str | None) for key in ("sub_domain", "prompt"))
        and all(isinstance(item.get(key), dict | None) for key in ("synthetic", "pseudo_label"))
    )


def layout_of(header: dict[str, Any]) -> dict[str, Any]:
    """What a data set made from another one takes over from its header: arguments of ``About``, of known types."""
    known = take(header, {"modality": TEXT, "spacing_mm": SPACING}, HEADER)
    return {
        "labels": {int(value): name for value, name in header["labels"].items()},
        "modality": known.get("modality", "OCT"),
        "spacing_mm": known.get("spacing_mm"),
        "suffix": ".png" if known.get("modality") == "RGB" else ".nii.gz",
    }


def colours_of(header: dict[str, Any]) -> dict[str, Any]:
    """The entry "colours" of a header, where there is one, to be taken over too."""
    return take(header, {"colours": COLOURS}, HEADER)


def index_of(item: Mapping[str, Any], path: PathLike) -> int:
    """The place of an item in a data set that this package wrote: its files are named by it."""
    number = Path(item["image"]).name.partition(".")[0]
    if not re.fullmatch("[0-9]{1,12}", number):
        raise ValueError(f"'{path}' has the image {item['image']!r}; expected a name that is a number, as 000000.png.")
    return int(number)


def label_map_counts(header: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Split -> how many of its images have a label map, and how many there are; of a ``dataset.json``."""
    found = {split: header.get(split, []) for split in SPLITS}
    return {split: (sum("label" in item for item in items), len(items)) for split, items in found.items()}


def label_names(dataset_dir: PathLike) -> list[str]:
    """Names of the labels, ordered by value; none where no image has a label map."""
    labels = read_header(dataset_dir)["labels"]
    return [labels[str(value)] for value in range(len(labels))]


def local_folder(dataset_dir: PathLike) -> PathLike:
    """A data set folder itself; of one with a URL (`data/remote.py`), a local copy of its files, brought up to date."""
    if not is_url(dataset_dir):
        return dataset_dir
    remote = Remote(dataset_dir)
    if not remote.receive([HEADER]):
        raise ValueError(f"'{remote.url}' holds no {HEADER}. Check the URL, and your credentials.")
    header = read_header(remote.folder)
    entries = [item[key] for split in SPLITS for item in header.get(split, []) for key in _FILES if key in item]
    for entry in entries:
        inside(remote.folder, entry, f"'{entry}' of '{remote.url}/{HEADER}'")
    remote.receive(entries)
    return remote.folder


def list_folders(dataset_dir: PathLike | Sequence[Any]) -> list[PathLike]:
    """One folder, or nested lists of folders, as a flat list; for URLs the folders of their local copies."""
    single = isinstance(dataset_dir, str | os.PathLike)
    return [local_folder(dataset_dir)] if single else [folder for part in dataset_dir for folder in list_folders(part)]


def resolve_item(folder: Path, item: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """An item that has all ``keys``, with absolute paths of files in the folder, and ``dataset``, the folder."""
    resolved = dict(item, dataset=str(folder))
    for key in keys:
        if key not in item:
            raise ValueError(
                f"Item '{item['image']}' of '{folder / HEADER}' has no '{key}', which this stage needs. "
                "Use a data set with labels here, or add the label file to the item."
            )
    for key in [key for key in _FILES if key in item]:
        path = inside(folder, item[key], f"'{key}': '{item[key]}' of '{folder / HEADER}'")
        if not lies_there(path):
            raise ValueError(f"'{path}', listed as '{key}' in '{folder / HEADER}', does not exist. Restore the file.")
        resolved[key] = str(require_regular(path))
    return resolved


def inside(folder: Path, entry: str, what: str) -> Path:
    """``folder / entry`` with links followed; refused by the name of ``what`` if that is not in the folder."""
    try:
        path = (folder / entry).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a zero byte; links that go round in circles
        raise ValueError(f"{what} is no path ({error}); refused.") from error
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{what} leaves the data set folder; refused.")
    return path
