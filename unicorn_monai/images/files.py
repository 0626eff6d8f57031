"""Image files: pixels, sizes, spacing and axes of PNG, TIFF, JPEG and NIfTI, read whole or refused by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from unicorn_monai.images.faithful_pictures import make_faithful, require_faithful_page, require_quick_jpeg
from unicorn_monai.images.volume_files import open_nifti
from unicorn_monai.system.files import PathLike, atomic
from unicorn_monai.system.intake import require_regular, require_unpackable

IGNORE_LABEL = 255
COLOURS = {"P": "RGB", "RGBA": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "RGB": "RGB", "LA": "L"}  # mode -> read as
MILLIMETRES = {"mm": 1.0, "micron": 1e-3, "meter": 1e3, "unknown": 1.0}  # units of NIfTI
MOST_PAGES = 5_000  # of one file
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # of Pillow's modes; 4 in all others
MOST_PIXELS = 100_000_000  # an image beyond this is a mistake, or an attack on the memory
FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "GIF", "PPM", "WEBP")  # Pillow starts Ghostscript for EPS


def read_array(path: PathLike) -> np.ndarray:
    """Read one image or label file as (rows, columns) or (rows, columns, 3), whatever the format.

    Refused is what cannot be read, is not two-dimensional, holds several pages or more than 100 megapixels.
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
    """Rows, columns (and 3 for colours) of a file by its header alone; refused as by :func:`read_array`."""
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
    unit = 1.0
    with suppress(KeyError):  # a number that stands for no unit
        unit = MILLIMETRES[str(header.get_xyzt_units()[0])]
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
        make_faithful(picture, path)
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
    """Go to a page of an image file, unless that is too large: each has a size of its own."""
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


def write_array(
    path: PathLike, array: np.ndarray, spacing_mm: Sequence[float] | None = None, lasting: bool = True
) -> None:
    """Write (rows, columns) or (rows, columns, 3) uint8 atomically: ``.nii.gz``, which keeps the spacing, or ``.png``.

    ``spacing_mm``: (axial, lateral); ``lasting``: see `system.files.atomic`.
    """
    path = Path(path)
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    if suffix not in (".nii.gz", ".png"):  # JPEG would change label values
        raise ValueError(f"Cannot write '{path}': expected a name that ends in .nii.gz or .png.")
    with atomic(path, lasting) as temporary:
        if suffix == ".nii.gz":
            affine = np.diag([*(spacing_mm or (1.0, 1.0)), 1.0, 1.0])
            nib.save(nib.Nifti1Image(array, affine), temporary)
        else:
            Image.fromarray(array).save(temporary)
