"""Label maps as clients send them -> label maps as the package trains on them: (rows, columns), values of the table.

Two things differ between viewers and this package. Axes: .nii, .nii.gz and .nrrd list pixels in the axes of the image
file (`file_axes`), pictures row by row. Values: 3D Slicer numbers the segments it exports 1, 2, ... and names them in
``label_info``; others send the values of the table.
"""

from __future__ import annotations

import bz2
import gzip
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from unicorn_monai.images.files import IGNORE_LABEL, file_axes, read_array, read_shape, write_array
from unicorn_monai.images.volume_files import open_nifti
from unicorn_monai.system.files import PathLike

VOLUMES = (".nii.gz", ".nii", ".nrrd")
PICTURES = (".png", ".tif", ".tiff", ".bmp")  # lossless; JPEG would change labels
PACKED: dict[str, Any] = {"gzip": gzip.open, "gz": gzip.open, "bzip2": bz2.open, "bz2": bz2.open}
WIDEST = 8  # bytes of a pixel, as a number or as text
IMAGES = (".nii.gz", ".nii", *PICTURES, ".jpg", ".jpeg")


def suffix_of(path: PathLike, known: Sequence[str] = (*VOLUMES, *IMAGES)) -> str:
    """The suffix of a file, ``.nii.gz`` as one; refused where it is none of those known."""
    for suffix in known:
        if str(path).lower().endswith(suffix) and not str(path).lower().endswith(".seg.nrrd"):
            return suffix
    raise ValueError(f"'{Path(path).name}' has a format that is not read here; expected one of {list(known)}.")


def served_suffix(image: PathLike) -> str:
    """In which format masks and synthetic images of an image are stored: NIfTI for NIfTI, PNG for pictures."""
    return ".nii.gz" if str(image).endswith((".nii", ".nii.gz")) else ".png"


def read_client_label(
    path: PathLike, image: PathLike, names: Sequence[str], label_info: Sequence[Mapping[str, Any]] = ()
) -> np.ndarray:
    """Read a label map that a client sent, of the size of its ``image``, as (rows, columns) uint8.

    ``names`` of the labels are ordered by value; ``label_info`` has those of the segments as 3D Slicer sends them, each
    with "name" and "idx".
    """
    suffix = suffix_of(path, (*VOLUMES, *PICTURES))
    size = read_shape(image)[:2]
    array = _read_nrrd(path, math.prod(size)) if suffix == ".nrrd" else read_array(path)
    if array.ndim != 2:
        raise ValueError(f"The label map has shape {array.shape}; expected one slice with one channel.")
    if suffix in VOLUMES:
        array = file_axes(image, array)
    if array.shape != size:
        raise ValueError(f"The label map is {array.shape}, its image {size}; expected one size, rows x columns.")
    values, most = np.unique(array), len(names) - 1
    if not np.array_equal(values, values.astype(np.uint8)):
        raise ValueError(f"The label map holds {values[:8].tolist()}; expected whole numbers from 0 to {most}.")
    array = _table(label_info, names)[array.astype(np.uint8)]
    unknown = sorted(set(np.unique(array).tolist()) - {*range(len(names)), IGNORE_LABEL})
    if unknown:
        expected = f"0 to {most} ({', '.join(names)}) or {IGNORE_LABEL}"
        raise ValueError(f"The label map holds {unknown}; expected {expected}.")
    return np.ascontiguousarray(array)


def write_like(array: np.ndarray, path: Path, image: PathLike) -> None:
    """Write (rows, columns) uint8 with the geometry of an image: NIfTI keeps its shape and affine."""
    if served_suffix(path) == ".png":
        write_array(path, array)
        return
    reference = open_nifti(Path(image))
    nib.save(nib.Nifti1Image(array.reshape(reference.shape), reference.affine), path)


def _read_nrrd(path: PathLike, pixels: int) -> np.ndarray:
    """An NRRD file of as many pixels, which it holds itself; no more is unpacked than they need."""
    import nrrd  # comes with MONAI Label

    expected = f"a label map of the {pixels} pixels of its image"
    try:
        with Path(path).open("rb") as file:
            header = nrrd.read_header(file)
            told = math.prod(int(n) for n in header.get("sizes", ()))
            if {"datafile", "data file"} & {field.lower() for field in header}:
                raise ValueError("it names another file that holds its pixels; expected them in the file itself")
            if told != pixels:
                raise ValueError(f"its header tells {told} pixels")
            packed = PACKED.get(str(header.get("encoding")).lower())
            if len((packed(file) if packed else file).read(WIDEST * pixels + 1)) > WIDEST * pixels:
                raise ValueError(f"it holds more than {WIDEST * pixels} bytes of pixels")
        array, _ = nrrd.read(str(path))
    except Exception as error:  # of many kinds, NRRDError is none of ValueError's
        raise ValueError(
            f"Cannot read the label map as NRRD ({str(error) or type(error).__name__}). Expected {expected}."
        ) from error
    return array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array


def _table(label_info: Sequence[Mapping[str, Any]], names: Sequence[str]) -> np.ndarray:
    """Value in the file -> value of the label, for every uint8."""
    table = np.arange(256, dtype=np.uint8)
    if not label_info:
        return table
    by_name = {name.lower(): value for value, name in enumerate(names)} | {"background": 0}
    try:
        segments = [(str(entry["name"]), int(entry["idx"])) for entry in label_info]
        values = [by_name[name.lower()] for name, _ in segments]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"'label_info' cannot be used ({error!s}); expected the name and the idx of every segment, with names of "
            f"{list(names)}."
        ) from error
    numbers = [number for _, number in segments]
    if numbers == values:
        return table
    if numbers != list(range(1, len(numbers) + 1)) or len(set(values)) < len(values):
        raise ValueError(
            f"'label_info' numbers its segments {numbers}; expected 1, 2, ... in their order, or the values {values}, "
            "each label once."
        )
    table[:] = 254  # what label_info does not name is no label
    table[[0, IGNORE_LABEL]] = 0, IGNORE_LABEL
    table[numbers] = values
    return table
