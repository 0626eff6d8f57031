r"""Folders of B-scans as PNG, TIFF, BMP or MATLAB files, with label images or surface files.

    python -m data_prep.image_folder INPUT OUTPUT --subject-pattern '(patient\d+)'

    INPUT/images/patient1/03.png     INPUT/labels/patient1/03.png    label image of the same size
                                     INPUT/labels/patient1/03.csv    or surfaces: .csv, .txt, .mat
    INPUT/images/patient1/*.png      INPUT/labels/patient1.xml       or surfaces of all its images in order: .xml, .mat

Without `images/` all images below INPUT are taken. JPEG is accepted for images, never for labels. Grey levels must have
8 bits, or --window says which values are black and white. Pages of a TIFF are B-scans.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray
from PIL import Image

from data_prep.convert import convert
from data_prep.files import any_files_below, files_below
from data_prep.grey import INVALID, from_reflectivity, mask_white_border, to_grey
from data_prep.label_files import LOSSY, LabelFiles, images_and_labels, require_no_labels
from data_prep.label_images import read_label_image, require_pages
from data_prep.label_schemes import Scheme, read_scheme
from data_prep.options import Options, Window, command, relative
from data_prep.privacy import reason
from data_prep.scan import Report, Scan, Source
from data_prep.surface_files import KINDS, load_mat, read_surfaces
from unicorn_monai.images.faithful_pictures import is_turned
from unicorn_monai.images.files import open_picture, turn_to
from unicorn_monai.system.console import Finite

IMAGES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", ".mat")
LABELS = (".png", ".tif", ".tiff", ".bmp", *KINDS, *LOSSY)


@dataclass(kw_only=True)
class ImageOptions(Options):
    """The command line."""

    input: Annotated[Path, Parameter(help="folder with images/ and labels/, or with images only")] = field(
        kw_only=False
    )
    window: Window = None
    modality: Annotated[Literal["OCT", "RGB"], Parameter(help="grey B-scans, or pictures of three channels")] = "OCT"
    first_row: Annotated[
        Finite | None, Parameter(help="number of the first row in surface files; .mat 1, others 0 by default")
    ] = None
    mat_image: Annotated[str | None, Parameter(help="read images from this variable of .mat files")] = None
    mat_surfaces: Annotated[str | None, Parameter(help="variable of the surfaces in .mat files")] = None
    reflectivity: Annotated[bool, Parameter(help="values of .mat images are linear, 0 to 1")] = False


def find(options: ImageOptions, report: Report) -> list[Source]:
    """One source per folder of images, in natural order, with their labels."""
    if not options.input.is_dir():
        raise ValueError(f"INPUT '{options.input}' is a file; expected the folder that holds the images.")
    root, place = images_and_labels(options.input)
    scheme = read_scheme(options.labels)
    labels = LabelFiles(place, LABELS, options, report)
    suffixes = IMAGES if options.mat_image else tuple(s for s in IMAGES if s != ".mat")
    images = files_below(root, suffixes, report, options.input)
    require_no_labels(images, root, options)
    sources = []
    for folder, group in groupby(images, key=lambda path: path.parent):
        paths = list(group)
        name = folder.relative_to(root).as_posix()
        whole = None if folder == root else labels.of_folder(folder, paths, name, (".xml", ".mat"))
        for subject, own in labels.by_subject(paths, root, own_files=whole is None).items():
            sources.append(Source(folder, subject, partial(read, own, paths, whole, scheme, options)))
    labels.tell()
    return sources


def read(
    own: dict[Path, Path | None], paths: list[Path], whole: Path | None, scheme: Scheme | None, options: ImageOptions
) -> Iterator[Scan | ValueError]:
    """B-scans of the images of one subject in a folder, with their label files or that of the whole folder."""
    volume = None
    for path, found in own.items():
        label, page = None, 0
        try:
            for page, values in enumerate(read_pages(path, options)):
                image, valid = _grey(values, path, options)
                surfaces, label = None, None
                if whole is not None:
                    volume = volume or read_surfaces(whole, image.shape[1], options.first_row, options.mat_surfaces)
                    _require_one_page(whole, page)
                    surfaces = _slice(volume, paths.index(path), len(paths), whole)
                elif found is not None:
                    surfaces, label = _read_labels(found, page, image.shape[1], scheme, options)
                scan = paths.index(path) if page == 0 else page
                yield Scan(image, None, surfaces, label, valid, turned=is_turned(path), fields={"scan": scan})
            if label is not None and found is not None:
                require_pages(found, page + 1)
        except Exception as error:  # of many kinds: a broken file leaves out itself alone
            yield ValueError(f"{relative(path, options.input)}: {reason(error)}")


def read_pages(path: Path, options: ImageOptions) -> Iterator[NDArray]:
    """Pixel values of the pages of an image file, (rows, columns) or (rows, columns, 3)."""
    if path.suffix.lower() == ".mat":
        arrays = load_mat(path)
        if options.mat_image not in arrays:
            raise ValueError(f"image: found the variables {sorted(arrays)}; expected --mat-image '{options.mat_image}'")
        array = arrays[options.mat_image]
        if array.ndim not in (2, 3):
            raise ValueError(f"image: found shape {array.shape}; expected (rows, columns) or (rows, columns, B-scans)")
        yield from np.moveaxis(np.atleast_3d(array), 2, 0)
        return
    try:
        with open_picture(path, pages=True) as picture:
            for page in range(getattr(picture, "n_frames", 1)):
                turn_to(picture, page)
                yield _pixels(picture)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"image: found no readable image ({error}); export it anew") from error


def _pixels(picture: Image.Image) -> NDArray:
    if picture.mode in ("RGBA", "LA", "PA"):
        opaque = np.asarray(picture.convert("RGBA"))[..., 3] == 255
        if not opaque.all():
            raise ValueError("image: found transparent pixels; expected an opaque image. Flatten it")
        picture = picture.convert("L" if picture.mode == "LA" else "RGB")
    elif picture.mode in ("P", "CMYK", "YCbCr", "HSV", "LAB"):
        picture = picture.convert("RGB")
    return np.asarray(picture)


def _grey(values: NDArray, path: Path, options: ImageOptions) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """8-bit image and which of its pixels exist."""
    marked = np.issubdtype(values.dtype, np.floating) and np.nanmax(values, initial=0) >= INVALID
    if marked or (path.suffix.lower() == ".mat" and options.reflectivity):
        return from_reflectivity(values.astype(np.float64))
    image = to_grey(values, options.window)
    if image.ndim == 3:
        if options.modality == "RGB":
            return image, None
        if not (image == image[..., :1]).all():
            raise ValueError("image: found colours; expected grey. Is something drawn into it? Or --modality RGB")
        image = image[..., 0]
    elif options.modality == "RGB":
        raise ValueError("image: found one channel; expected three, because of --modality RGB")
    return image, mask_white_border(image)


def _slice(volume: dict[str, NDArray], k: int, n: int, whole: Path) -> dict[str, NDArray]:
    """Surfaces of the k-th of n images of a folder."""
    volume = {name: np.atleast_2d(rows) for name, rows in volume.items()}
    depth = {len(rows) for rows in volume.values()}
    if depth != {n}:
        raise ValueError(f"surfaces: '{whole.name}' holds {sorted(depth)} B-scans; expected {n}, the folder's images")
    return {name: rows[k] for name, rows in volume.items()}


def _require_one_page(surfaces: Path, page: int) -> None:
    if page:
        found = f"'{surfaces.name}' holds one B-scan for each image"
        raise ValueError(f"surfaces: {found}; expected images of one page. Split the image")


def _read_labels(
    path: Path, page: int, columns: int, scheme: Scheme | None, options: ImageOptions
) -> tuple[dict[str, NDArray] | None, NDArray | None]:
    """Surfaces or label image of a page of an image."""
    if path.suffix.lower() not in KINDS:
        return None, read_label_image(path, scheme, page)
    _require_one_page(path, page)
    surfaces = read_surfaces(path, columns, options.first_row, options.mat_surfaces)
    if any(rows.ndim == 2 for rows in surfaces.values()):
        raise ValueError(f"surfaces: '{path.name}' holds a volume; expected one B-scan. Name it as the folder")
    return surfaces, None


def scheme_of(options: ImageOptions) -> Scheme | None:
    """Unnamed surfaces get numbered labels: how many, the first surface file tells."""
    labels = images_and_labels(options.input)[1]
    if options.labels is not None or not labels.is_dir():
        return None
    for path in any_files_below(labels, KINDS, Report(), options.input):
        try:
            names = list(read_surfaces(path, None, options.first_row, options.mat_surfaces))
        except (ValueError, MemoryError):
            continue
        if names == [str(k + 1) for k in range(len(names))]:
            return Scheme(("above surface 1", *(f"below surface {name}" for name in names)))
    return None


@command
def main(options: ImageOptions) -> int:
    """Convert the images in INPUT."""
    report = Report(options.strict)
    return convert(find(options, report), options, report, "image-folder", scheme_of(options), options.modality)


if __name__ == "__main__":
    sys.exit(main())
