"""The folder of a data set: ``dataset.json`` and the files that it lists, each read with a message that names it.

    DATASET/dataset.json   images/*   labels/*      rows = depth, columns = A-scans

The file follows MONAI's datalist convention (``load_decathlon_datalist`` reads it). Everything is written under a
temporary name and renamed: nothing half-written has a final name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unicorn_monai.data.label_checks import require_label_table
from unicorn_monai.data.remote import Remote, is_url
from unicorn_monai.system.files import PathLike, parse_json
from unicorn_monai.system.intake import lies_there, require_regular

SPLITS = ("training", "validation", "test")
HEADER = "dataset.json"
LABELS_EXAMPLE = '{"0": "vitreous", "1": "RNFL"}'
ITEM_EXAMPLE = '{"image": "images/000000.nii.gz", "label": "labels/000000.nii.gz", "subject": "s001"}'
_FILES = ("image", "label")


WEATHER = {"fog": "foggy scene", "night": "night scene", "rain": "rainy scene", "snow": "snowy scene"}


def read_header(dataset_dir: PathLike) -> dict[str, Any]:
    """Read and check ``dataset.json``; ``labels`` is {} where no image has a label map, whatever the file says there.

    Raises:
        ValueError: if the folder or the file is missing, is not JSON, or has no proper labels or items.
    """
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


def label_map_counts(header: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Split -> how many of its images have a label map, and how many there are; of a ``dataset.json``."""
    found = {split: header.get(split, []) for split in SPLITS}
    return {split: (sum("label" in item for item in items), len(items)) for split, items in found.items()}


def label_names(dataset_dir: PathLike) -> list[str]:
    """Names of the labels, ordered by value; none where no image has a label map."""
    labels = read_header(dataset_dir)["labels"]
    return [labels[key] for key in sorted(labels, key=int)]


def local_folder(dataset_dir: PathLike) -> PathLike:
    """A data set folder itself; of one with a URL (`data/remote.py`), a local copy of its files, brought up to date.

    Raises:
        ValueError: no data set there, or an entry that leaves its folder.
    """
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
    """An item with absolute paths, and ``dataset`` (its folder).

    Raises:
        ValueError: an entry of ``keys`` is missing, or a file does not exist or lies outside the folder.
    """
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
    """``folder / entry`` with links followed, if that is in the folder.

    Raises:
        ValueError: it is not, or it is no path; begins with ``what``.
    """
    try:
        path = (folder / entry).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a zero byte; links that go round in circles
        raise ValueError(f"{what} is no path ({error}); refused.") from error
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{what} leaves the data set folder; refused.")
    return path
