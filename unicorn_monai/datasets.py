"""Data sets as lists of items, and the writer of new ones; what is read is looked over first (`dataset_checks`).

    from unicorn_monai.datasets import DatasetWriter, check, datalist

Rows = depth, columns = A-scans. Splits are by subject, never by image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unicorn_monai.dataset_checks import Problem, check, problems, require_sound
from unicorn_monai.dataset_files import (
    HEADER,
    IGNORE_LABEL,
    SPLITS,
    PathLike,
    label_names,
    list_folders,
    read_array,
    read_header,
    require_without_gaps,
    resolve_item,
    write_array,
    write_json,
    write_text,
)

__all__ = [
    "HEADER",
    "IGNORE_LABEL",
    "JOURNAL",
    "SPLITS",
    "DatasetWriter",
    "PathLike",
    "Problem",
    "check",
    "datalist",
    "image_size",
    "label_names",
    "list_folders",
    "num_labels",
    "problems",
    "read_array",
    "read_header",
    "write_array",
    "write_json",
]
JOURNAL = "items.jsonl"


def datalist(
    dataset_dir: PathLike | Sequence[PathLike], split: str | Sequence[str], keys: Sequence[str] = ("image",)
) -> list[dict[str, Any]]:
    """List the items of one or several data sets, with absolute paths.

    Args:
        dataset_dir: one data set folder, or several (also nested lists) that are concatenated in order.
        split: "training", "validation" or "test", or several of them.
        keys: what each item must have, e.g. ``("image", "label")``.

    Returns:
        One dictionary per image: the entries of ``dataset.json`` with paths made absolute, plus ``dataset`` (folder).

    Raises:
        ValueError: bad split, missing entry or file, path outside the data set, label tables that disagree, or what
            `dataset_checks.require_sound` refuses.
    """
    folders = list_folders(dataset_dir)
    splits = [split] if isinstance(split, str) else list(split)
    items: list[dict[str, Any]] = []
    if "label" in keys:
        tables = {str(folder): label_names(folder) for folder in folders}
        if len({tuple(names) for names in tables.values()}) > 1:
            raise ValueError(f"The data sets have different label tables: {tables}. Use sets with the same labels.")
    for folder in folders:
        header, own = read_header(folder), []
        for name in splits:
            if name not in SPLITS:
                raise ValueError(f"Unknown split '{name}'; expected one of {list(SPLITS)}.")
            if not header.get(name):
                found = [s for s in SPLITS if header.get(s)]
                raise ValueError(f"'{Path(folder) / HEADER}' has no items in split '{name}', only in {found}.")
            own += [resolve_item(Path(folder), item, keys) for item in header[name]]
        require_sound(folder, header, own)
        items += own
    return items


def image_size(dataset_dir: PathLike | Sequence[PathLike], split: str = "training") -> tuple[int, int]:
    """Rows and columns of a data set's first image."""
    return read_array(datalist(dataset_dir, split)[0]["image"]).shape[:2]  # type: ignore[return-value]


def num_labels(dataset_dir: PathLike | Sequence[PathLike]) -> int:
    """Number of labels of a data set, of the first of several (for configurations)."""
    return len(label_names(list_folders(dataset_dir)[0]))


def layout_of(header: dict[str, Any]) -> dict[str, Any]:
    """What a data set made from another one takes over from its header: arguments of :class:`DatasetWriter`."""
    return {
        "labels": {int(value): name for value, name in header["labels"].items()},
        "modality": header.get("modality", "OCT"),
        "spacing_mm": header.get("spacing_mm"),
        "suffix": ".png" if header.get("modality") == "RGB" else ".nii.gz",
        **({"colours": header["colours"]} if "colours" in header else {}),
    }


class DatasetWriter:
    """Stream a data set to disk; what is interrupted can be resumed, and nothing half-written has a final name.

    Every item's files are renamed into place before its line is appended to a journal; ``dataset.json`` is written
    when the block ends without an exception. With ``resume`` earlier items count as written (``index in writer``).

    Args:
        root: folder of the data set; created.
        name: name of the data set.
        device: the device the images come from, e.g. "Spectralis".
        labels: value -> name.
        modality: "OCT", "RGB", ...
        spacing_mm: (axial, lateral) in millimetres, or None where unknown.
        suffix: ".nii.gz" (keeps the spacing) or ".png".
        resume: go on where a writer stopped, instead of refusing a folder in use.
        settings: what decides the items (size, seed, ...); a writer with others does not go on. Kept in the header.
        **fields: more top-level entries of ``dataset.json``.
    """

    def __init__(
        self,
        root: PathLike,
        *,
        name: str,
        device: str,
        labels: dict[int, str],
        modality: str = "OCT",
        spacing_mm: Sequence[float] | None = None,
        suffix: str = ".nii.gz",
        resume: bool = False,
        settings: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        self.root = Path(root)
        self.header: dict[str, Any] = {
            "name": name,
            "modality": modality,
            "device": device,
            "labels": {str(value): text for value, text in sorted(labels.items())},
            "spacing_mm": None if spacing_mm is None else [float(s) for s in spacing_mm],
            **({} if settings is None else {"settings": json.loads(json.dumps(settings))}),
            **fields,
        }
        require_without_gaps(self.header["labels"], self.root)
        self.suffix = suffix
        self.items: dict[int, dict[str, Any]] = {}
        journal = self.root / JOURNAL
        if not resume and ((self.root / HEADER).exists() or journal.exists()):
            raise ValueError(f"'{self.root}' already holds a data set. Choose another folder, or remove it first.")
        if (self.root / HEADER).exists():
            self._read_finished()
        if journal.exists():
            self._read_journal(journal)
        for folder in ("images", "labels"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
            for leftover in (self.root / folder).glob(".tmp-*"):
                leftover.unlink()
        self._journal = journal.open("a", encoding="utf-8")
        if self._journal.tell() == 0:
            self._append({key: self.header.get(key) for key in ("labels", "settings")})

    def _read_finished(self) -> None:
        header = read_header(self.root)
        self._require_same(header)
        for split in SPLITS:
            for item in header.get(split, []):
                self.items[int(Path(item["image"]).name.split(".")[0])] = {"split": split, **item}

    def _read_journal(self, journal: Path) -> None:
        lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # one torn by a crash: its files are written again
        write_text(journal, "".join(whole))
        for row in map(json.loads, whole):
            if "index" in row:
                self.items[row.pop("index")] = row
            else:
                self._require_same(row)

    def _require_same(self, begun: dict[str, Any]) -> None:
        for key in ("labels", "settings"):
            if begun.get(key) != self.header.get(key):
                raise ValueError(
                    f"'{self.root}' was begun with the {key} {begun.get(key)}, not {self.header.get(key)}; resume with "
                    "these, or begin anew."
                )

    def _append(self, row: dict[str, Any]) -> None:
        self._journal.write(json.dumps(row) + "\n")
        self._journal.flush()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        self._journal.close()
        if exception_type is None:
            self.close()

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, index: int) -> bool:
        return index in self.items

    def add(
        self,
        split: str,
        image: np.ndarray,
        label: np.ndarray | None = None,
        *,
        subject: str,
        index: int | None = None,
        **fields: Any,
    ) -> None:
        """Write one image, its label map if there is one, and its journal line.

        Args:
            split: "training", "validation" or "test".
            image: (rows, columns) or (rows, columns, 3), uint8.
            label: (rows, columns), uint8; values of ``labels`` or 255 (ignore).
            subject: pseudonym of the subject; splits are by subject.
            index: position in the data set; the next free one by default.
            **fields: more entries of the item, e.g. ``synthetic={...}``.

        Raises:
            ValueError: unknown split, an index that is taken, an image or label map of wrong type, shape or values.
        """
        if split not in SPLITS:
            raise ValueError(f"Unknown split '{split}'; expected one of {list(SPLITS)}.")
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise ValueError(f"Image has dtype {image.dtype} and shape {image.shape}; expected uint8, 2D or RGB.")
        index = max(self.items, default=-1) + 1 if index is None else index
        if index in self.items:
            raise ValueError(f"Item {index} of '{self.root}' is written already; skip it, or give another index.")
        name = f"{index:06d}{self.suffix}"
        row: dict[str, Any] = {"split": split, "image": f"images/{name}"}
        spacing = fields.get("spacing_mm", self.header["spacing_mm"])
        if label is not None:
            if label.shape != image.shape[:2]:
                raise ValueError(f"Label map has shape {label.shape}, its image {image.shape}; expected the same size.")
            unknown = set(np.unique(label).tolist()) - {int(v) for v in self.header["labels"]} - {IGNORE_LABEL}
            if unknown:
                raise ValueError(f"Label map {index} holds {sorted(unknown)}, which 'labels' does not name.")
            row["label"] = f"labels/{name}"
            write_array(self.root / row["label"], label.astype(np.uint8), spacing)
        write_array(self.root / row["image"], image, spacing)
        row |= {"subject": subject, **fields}
        self._append({"index": index, **row})
        self.items[index] = row

    def close(self) -> None:
        """Write ``dataset.json`` and remove the journal."""
        splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        for _, row in sorted(self.items.items()):
            splits[row["split"]].append({key: value for key, value in row.items() if key != "split"})
        write_json(self.root / HEADER, self.header | splits)
        self._journal.close()
        (self.root / JOURNAL).unlink(missing_ok=True)
