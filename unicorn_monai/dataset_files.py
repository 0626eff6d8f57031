"""The files of a data set on disk: ``dataset.json``, images and label maps, each read with a message that names it.

    DATASET/dataset.json   images/*   labels/*      rows = depth, columns = A-scans

The file follows MONAI's datalist convention (``load_decathlon_datalist`` reads it). Everything is written under a
temporary name and renamed: nothing half-written has a final name.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from unicorn_monai.durable import atomic
from unicorn_monai.failures import NotFinite
from unicorn_monai.faithful_pictures import require_faithful, require_faithful_page, require_quick_jpeg, turn_upright
from unicorn_monai.intake import lies_there, read_text, require_regular, require_unpackable
from unicorn_monai.label_checks import require_label_table
from unicorn_monai.storage import PathLike, Remote, is_url
from unicorn_monai.volume_files import open_nifti

SPLITS = ("training", "validation", "test")
IGNORE_LABEL = 255
HEADER = "dataset.json"
LABELS_EXAMPLE = '{"0": "vitreous", "1": "RNFL"}'
ITEM_EXAMPLE = '{"image": "images/000000.nii.gz", "label": "labels/000000.nii.gz", "subject": "s001"}'
_FILES = ("image", "label")
COLOURS = {"P": "RGB", "RGBA": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "RGB": "RGB", "LA": "L"}  # mode -> read as
MILLIMETRES = {"mm": 1.0, "micron": 1e-3, "meter": 1e3, "unknown": 1.0}  # units of NIfTI
MOST_PAGES = 5_000  # of one file
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # of Pillow's modes; 4 in all others
MOST_PIXELS = 100_000_000  # an image beyond this is a mistake, or an attack on the memory
FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "GIF", "PPM", "WEBP")  # Pillow starts Ghostscript for EPS


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


def parse_json(path: PathLike) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: not JSON, not even text, or nested too deeply.
    """
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not valid JSON ({error}). Repair it or write it again.") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not valid JSON ({error}). Repair it or write it again.") from error


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
    """A data set folder itself; of one with a URL (see `storage.py`), a local copy of its files, brought up to date.

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


def read_array(path: PathLike) -> np.ndarray:
    """Read one image or label file as (rows, columns) or (rows, columns, 3), whatever the format.

    Raises:
        ValueError: the file cannot be read, is not two-dimensional, holds several pages or more than 100 megapixels.
    """
    path = Path(path)
    try:
        if _is_nifti(path):
            image = open_nifti(path)
            _require_not_huge(image.shape)
            array = np.asarray(image.dataobj)
            if array.dtype.kind not in "biuf":
                raise ValueError(f"it holds pixels of type {array.dtype}, expected whole or floating-point numbers")
        else:
            with open_picture(path) as picture:
                array = np.asarray(picture.convert(COLOURS[picture.mode]) if picture.mode in COLOURS else picture)
    except Exception as error:
        told = error if str(error) else type(error).__name__
        raise ValueError(f"Cannot read '{path}' ({told}). Expected a readable NIfTI or PNG file.") from error
    return _require_plane(path, array)


def read_shape(path: PathLike) -> tuple[int, ...]:
    """Rows, columns (and 3 for colours) of a file by its header alone.

    Raises:
        ValueError: as :func:`read_array`, as far as the header tells.
    """
    path = Path(path)
    try:
        if _is_nifti(path):
            shape = open_nifti(path).shape
        else:
            with open_picture(path) as picture:
                colours = COLOURS.get(picture.mode, picture.mode) == "RGB"
                shape = (picture.height, picture.width, *((3,) if colours else ()))
        _require_not_huge(shape)
    except Exception as error:
        raise ValueError(f"Cannot read '{path}' ({error}). Expected a readable NIfTI or PNG file.") from error
    return _require_plane(path, np.broadcast_to(np.uint8(0), shape)).shape


def read_spacing(path: PathLike) -> tuple[float, float] | None:
    """(axial, lateral) pixel spacing stored in a NIfTI file, mm; None for other formats."""
    if not _is_nifti(Path(path)):
        return None
    header = open_nifti(Path(path)).header
    try:
        unit = MILLIMETRES[str(header.get_xyzt_units()[0])]
    except KeyError:  # a number that stands for no unit
        unit = 1.0
    zooms = [float(z) * unit for z in header.get_zooms()]
    return zooms[0], zooms[1]


def read_affine(path: PathLike) -> np.ndarray | None:
    """The 4 x 4 affine of a NIfTI file: pixel (i, j, 0) -> millimetres; None for other formats, which have none."""
    return open_nifti(Path(path)).affine if _is_nifti(Path(path)) else None


def file_axes(path: PathLike, plane: Any) -> Any:
    """(rows, columns) -> (i, j), the axes in which viewers count the pixels of a file, or back.

    In a picture i runs along the columns; in a NIfTI file along the first axis of the array, which is the rows.
    """
    return plane if _is_nifti(Path(path)) else plane.swapaxes(0, 1)


def _is_nifti(path: Path) -> bool:
    return path.name.endswith((".nii", ".nii.gz"))


def open_picture(path: Path, pages: bool = False) -> Image.Image:
    """Open an image file with Pillow, upright by its EXIF orientation, as viewers show it.

    Not if it is too large or, without `pages`, holds several; nor if it would be read otherwise than it is stored.

    Raises:
        ValueError: naming what was found.
    """
    with warnings.catch_warnings():  # Pillow only warns between 89 and 179 megapixels
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        require_quick_jpeg(require_regular(path))
        try:
            picture = Image.open(path, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise ValueError(f"{error}; expected at most {MOST_PIXELS // 1_000_000} megapixels") from error
    with ExitStack() as refused:
        refused.callback(picture.close)
        _require_not_huge(picture.size)
        if getattr(picture, "is_animated", False):
            count = _require_few_pages(picture)
            if not pages:
                raise ValueError(f"it holds {count} pages, expected one image")
        require_faithful(picture, path)
        turn_upright(picture, path)
        refused.pop_all()
    return picture


def _require_few_pages(picture: Image.Image) -> int:
    """Number of pages, unless they unpack to too much; those of a TIFF have sizes of their own, in their headers."""
    count, size = 0, 0
    if picture.format == "TIFF":  # counted here, since Pillow counts any number of them
        with suppress(EOFError):
            while count <= MOST_PAGES:
                picture.seek(count)
                count += 1
                size += picture.width * picture.height * _PIXEL_BYTES.get(picture.mode, 4)
        picture.seek(0)
    else:
        count = getattr(picture, "n_frames", 1)
        size = count * picture.width * picture.height * _PIXEL_BYTES.get(picture.mode, 4)
    if count > MOST_PAGES:
        raise ValueError(f"it holds more than {MOST_PAGES} pages")
    require_unpackable(size, "its pages")
    return count


def turn_to(picture: Image.Image, page: int) -> None:
    """Go to a page of an image file, unless that is too large: each has a size of its own.

    Raises:
        ValueError: naming what was found.
    """
    picture.seek(page)
    _require_not_huge(picture.size)
    require_faithful_page(picture)


def _require_not_huge(shape: Sequence[int]) -> None:
    if math.prod(int(n) for n in shape) > 3 * MOST_PIXELS or math.prod(int(n) for n in shape[:2]) > MOST_PIXELS:
        raise ValueError(f"it has shape {tuple(shape)}, expected at most {MOST_PIXELS // 1_000_000} megapixels")


def _require_plane(path: Path, array: np.ndarray) -> np.ndarray:
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] == 3):
        raise ValueError(f"'{path}' has shape {array.shape}; expected (rows, columns) or (rows, columns, 3).")
    return array


def write_array(path: Path, array: np.ndarray, spacing_mm: Sequence[float] | None = None, lasting: bool = True) -> None:
    """Write one image or label file atomically: a temporary name first, then renamed.

    Args:
        path: ``.nii.gz`` keeps the spacing; ``.png`` holds RGB or gray images.
        array: (rows, columns) or (rows, columns, 3), uint8.
        spacing_mm: (axial, lateral) pixel spacing in millimetres.
        lasting: see `durable.atomic`.
    """
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    if suffix not in (".nii.gz", ".png"):  # JPEG would change label values
        raise ValueError(f"Cannot write '{path}': expected a name that ends in .nii.gz or .png.")
    with atomic(path, lasting) as temporary:
        if suffix == ".nii.gz":
            affine = np.diag([*(spacing_mm or (1.0, 1.0)), 1.0, 1.0])
            nib.save(nib.Nifti1Image(array, affine), temporary)
        else:
            Image.fromarray(array).save(temporary)


def write_json(path: PathLike, content: Any) -> None:
    """Write JSON atomically.

    Raises:
        NotFinite: NaN or infinity, which JSON does not have; the entry is named.
    """
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except ValueError:
        for entry, value in _not_finite(content):
            raise NotFinite(
                f"'{entry}' of '{path}' is {value}; expected a finite number, or null for what was not computed. The "
                "file was not written."
            ) from None
        raise
    write_text(Path(path), text + "\n")


def require_finite(content: Any, what: str) -> None:
    """Refuse NaN and infinity anywhere in what was read from JSON, which Python takes for numbers.

    Raises:
        ValueError: naming the entry.
    """
    for entry, value in _not_finite(content):
        raise ValueError(f"'{entry}' of the {what} is {value}; expected a finite number. Correct it.")


def _not_finite(content: Any, entry: str = "") -> Iterator[tuple[str, float]]:
    """Every number that is not finite, and where it stands."""
    if isinstance(content, float) and not math.isfinite(content):
        yield entry, content
    children = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list | tuple)
        else ()
    )
    for key, value in children:
        yield from _not_finite(value, f"{entry}::{key}".removeprefix("::"))


def or_none(value: Any) -> Any:
    """The same with None for what is not a finite number, also within lists and arrays, for JSON and tables."""
    if isinstance(value, np.ndarray | list | tuple):
        return [or_none(v) for v in value]
    return value if isinstance(value, int) else float(value) if np.isfinite(value) else None


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
