"""The data set on disk: ``dataset.json`` beside ``images/`` and ``labels/``; reading, writing and checking it.

The file follows MONAI's datalist convention (``load_decathlon_datalist`` reads it). Rows = depth, columns = A-scans.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

SPLITS = ("training", "validation", "test")
IGNORE_LABEL = 255
HEADER = "dataset.json"
JOURNAL = "items.jsonl"
LABELS_EXAMPLE = '{"0": "vitreous", "1": "RNFL"}'
ITEM_EXAMPLE = '{"image": "images/000000.nii.gz", "label": "labels/000000.nii.gz", "subject": "s001"}'

PathLike = str | os.PathLike[str]


def read_header(dataset_dir: PathLike) -> dict[str, Any]:
    """Read and check ``dataset.json``.

    Raises:
        ValueError: if the folder or the file is missing, is not JSON, or has no proper labels or items.
    """
    path = Path(dataset_dir) / HEADER
    if not Path(dataset_dir).is_dir():
        raise ValueError(f"Data set folder '{dataset_dir}' does not exist. Make one with `unicorn-monai prepare`.")
    if not path.is_file():
        raise ValueError(f"'{dataset_dir}' holds no {HEADER}. Convert plain images with `unicorn-monai prepare`.")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"'{path}' is not valid JSON ({error}). Repair it or write the data set again.") from error
    if not isinstance(header, dict) or not isinstance(header.get("labels"), dict) or not header["labels"]:
        raise ValueError(f"'{path}' has no 'labels' table; expected e.g. {LABELS_EXAMPLE}.")
    _require_without_gaps(header["labels"], path)
    for split in SPLITS:
        items = header.get(split, [])
        if not isinstance(items, list) or not all(_is_item(item) for item in items):
            raise ValueError(f"'{split}' of '{path}' is not a list of items; expected e.g. [{ITEM_EXAMPLE}, ...].")
    return header


def _require_without_gaps(labels: dict[str, str], path: PathLike) -> None:
    if set(labels) != {str(value) for value in range(len(labels))}:
        raise ValueError(f"'labels' of '{path}' has the values {list(labels)}; expected 0, 1, ... without gaps.")


def _is_item(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("image"), str) and isinstance(item.get("label", ""), str)


def label_names(dataset_dir: PathLike) -> list[str]:
    """Names of the labels, ordered by value."""
    labels = read_header(dataset_dir)["labels"]
    return [labels[key] for key in sorted(labels, key=int)]


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
        ValueError: bad split, missing entry or file, path outside the data set, label tables that disagree.
    """
    folders = list_folders(dataset_dir)
    splits = [split] if isinstance(split, str) else list(split)
    items: list[dict[str, Any]] = []
    if "label" in keys:
        tables = {str(folder): label_names(folder) for folder in folders}
        if len({tuple(names) for names in tables.values()}) > 1:
            raise ValueError(f"The data sets have different label tables: {tables}. Use sets with the same labels.")
    for folder in folders:
        header = read_header(folder)
        for name in splits:
            if name not in SPLITS:
                raise ValueError(f"Unknown split '{name}'; expected one of {list(SPLITS)}.")
            if not header.get(name):
                found = [s for s in SPLITS if header.get(s)]
                raise ValueError(f"'{Path(folder) / HEADER}' has no items in split '{name}', only in {found}.")
            items += [_resolve(Path(folder), item, keys) for item in header[name]]
    return items


def list_folders(dataset_dir: PathLike | Sequence[Any]) -> list[PathLike]:
    """One folder, or nested lists of folders, as a flat list."""
    single = isinstance(dataset_dir, str | os.PathLike)
    return [dataset_dir] if single else [folder for part in dataset_dir for folder in list_folders(part)]


def _resolve(folder: Path, item: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    resolved = dict(item, dataset=str(folder))
    for key in keys:
        if key not in item:
            raise ValueError(
                f"Item '{item['image']}' of '{folder / HEADER}' has no '{key}', which this stage needs. "
                "Use a data set with labels here, or add the label file to the item."
            )
    for key in [key for key in ("image", "label") if key in item]:
        path = (folder / item[key]).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f"'{key}': '{item[key]}' of '{folder / HEADER}' leaves the data set folder; refused.")
        if not path.is_file():
            raise ValueError(f"'{path}', listed as '{key}' in '{folder / HEADER}', does not exist. Restore the file.")
        resolved[key] = str(path)
    return resolved


def image_size(dataset_dir: PathLike | Sequence[PathLike], split: str = "training") -> tuple[int, int]:
    """Rows and columns of a data set's first image."""
    return read_array(datalist(dataset_dir, split)[0]["image"]).shape[:2]  # type: ignore[return-value]


def read_array(path: PathLike) -> np.ndarray:
    """Read one image or label file as (rows, columns) or (rows, columns, 3), whatever the format.

    Raises:
        ValueError: the file cannot be read, or is not two-dimensional.
    """
    path = Path(path)
    try:
        if path.name.endswith((".nii", ".nii.gz")):
            array = np.asarray(nib.Nifti1Image.from_filename(path).dataobj)
        else:
            with Image.open(path) as image:
                array = np.asarray(image.convert("RGB") if image.mode in ("P", "RGBA", "CMYK") else image)
    except Exception as error:
        raise ValueError(f"Cannot read '{path}' ({error}). Expected a readable NIfTI or PNG file.") from error
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] == 3):
        raise ValueError(f"'{path}' has shape {array.shape}; expected (rows, columns) or (rows, columns, 3).")
    return array


def write_array(path: Path, array: np.ndarray, spacing_mm: Sequence[float] | None = None) -> None:
    """Write one image or label file atomically: a temporary name first, then renamed.

    Args:
        path: ``.nii.gz`` keeps the spacing; ``.png`` holds RGB or gray images.
        array: (rows, columns) or (rows, columns, 3), uint8.
        spacing_mm: (axial, lateral) pixel spacing in millimetres.
    """
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    if suffix not in (".nii.gz", ".png"):  # JPEG would change label values
        raise ValueError(f"Cannot write '{path}': expected a name that ends in .nii.gz or .png.")
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name.removesuffix(suffix)}{suffix}")
    try:
        if suffix == ".nii.gz":
            affine = np.diag([*(spacing_mm or (1.0, 1.0)), 1.0, 1.0])
            nib.save(nib.Nifti1Image(array, affine), temporary)
        else:
            Image.fromarray(array).save(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: PathLike, content: Any) -> None:
    """Write JSON atomically."""
    _write_text(Path(path), json.dumps(content, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
        **fields: Any,
    ) -> None:
        self.root = Path(root)
        self.header: dict[str, Any] = {
            "name": name,
            "modality": modality,
            "device": device,
            "labels": {str(value): text for value, text in sorted(labels.items())},
            "spacing_mm": None if spacing_mm is None else [float(s) for s in spacing_mm],
            **fields,
        }
        _require_without_gaps(self.header["labels"], self.root)
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
            self._append({"labels": self.header["labels"]})

    def _read_finished(self) -> None:
        header = read_header(self.root)
        self._require_same(header["labels"])
        for split in SPLITS:
            for item in header.get(split, []):
                self.items[int(Path(item["image"]).name.split(".")[0])] = {"split": split, **item}

    def _read_journal(self, journal: Path) -> None:
        lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]  # one torn by a crash: its files are written again
        _write_text(journal, "".join(whole))
        for row in map(json.loads, whole):
            if "index" in row:
                self.items[row.pop("index")] = row
            else:
                self._require_same(row["labels"])

    def _require_same(self, labels: dict[str, str]) -> None:
        if labels != self.header["labels"]:
            raise ValueError(f"'{self.root}' was begun with the labels {labels}; resume with these, or begin anew.")

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


def check(dataset_dir: PathLike, need_labels: bool = False) -> list[str]:
    """Look for what would poison an experiment.

    Args:
        dataset_dir: the data set folder.
        need_labels: every image must have a label map.

    Returns:
        One line per problem (file, field, found, expected, remedy); empty if there is none.
    """
    header = read_header(dataset_dir)
    values = {int(v) for v in header["labels"]} | {IGNORE_LABEL}
    problems: list[str] = []
    subjects: dict[str, set[str]] = {}
    shapes: dict[tuple[int, ...], str] = {}  # size -> first image of it
    images: set[str] = set()
    keys = ("image", "label") if need_labels else ("image",)
    for split in SPLITS:
        for item in header.get(split, []):
            if "subject" in item:
                subjects.setdefault(str(item["subject"]), set()).add(split)
            else:
                problems.append(f"'{item['image']}' has no 'subject'. Expected a pseudonym; splits are by subject.")
            if item["image"] in images:
                problems.append(f"'{item['image']}' is listed more than once. Expected one item per image; remove one.")
            images.add(item["image"])
            try:
                resolved = _resolve(Path(dataset_dir), item, keys)
                image = read_array(resolved["image"])
                label = read_array(resolved["label"]) if "label" in resolved else None
            except ValueError as error:
                problems.append(str(error))
                continue
            shapes.setdefault(image.shape, item["image"])
            problems += _check_pixels(item, image, label, values)
    if not images:
        problems.append(f"'{Path(dataset_dir) / HEADER}' lists no images. Expected some in {list(SPLITS)}.")
    if len(shapes) > 1:
        problems.append(f"Images differ in size: {shapes}. Expected one size; resample with the `--size` of data_prep.")
    for subject, splits in sorted(subjects.items()):
        if len(splits) > 1:
            problems.append(f"Subject '{subject}' is in {sorted(splits)}. Expected one split per subject; split anew.")
    return problems


def _check_pixels(item: dict[str, Any], image: np.ndarray, label: np.ndarray | None, values: set[int]) -> Iterable[str]:
    if not np.isfinite(image).all():
        yield f"'{item['image']}' holds NaN or infinite pixels. Expected finite grey values; repair or drop it."
    elif image.min() == image.max():
        yield f"'{item['image']}' is constant (value {image.min()}). Expected an image; drop it."
    if label is None:
        return
    if label.shape != image.shape[:2]:
        yield f"'{item['label']}' has shape {label.shape}, its image {image.shape}. Expected the same; convert again."
    unknown = set(np.unique(label).tolist()) - values
    if unknown:
        yield f"'{item['label']}' holds {sorted(unknown)}, which 'labels' does not name. Extend 'labels' or repair it."
