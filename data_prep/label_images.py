"""One reader of label images for all sources: what a pixel says, whatever way the file stores it.

    grey, 16 bit       the values
    1 bit              0 and 255, as every viewer shows them
    colours            the colours; what the labels do not name is refused
    palette            the colours, where the labels name colours; else the indices, unless greys contradict them

An alpha channel is dropped where it is opaque and refused elsewhere; lossy formats are refused by their content.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.label_schemes import Scheme
from unicorn_monai.images.files import open_picture, turn_to

LOSSY = ("JPEG", "JPEG2000", "MPO", "WEBP")  # formats as Pillow calls them; two of them can be lossless, few are
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")
OTHER_COLOURS = ("CMYK", "YCbCr", "HSV", "LAB")


def read_label_image(path: Path, scheme: Scheme | None = None, page: int | None = None) -> NDArray:
    """A label image, (rows, columns) values or (rows, columns, 3) colours, as far as the labels name colours.

    Refused are lossy or transparent ones, several pages if none is asked for, and palettes that can mean two things.
    """
    try:
        with _opened(path, page is not None) as picture:
            if getattr(picture, "n_frames", 1) <= (page or 0):
                raise ValueError(f"label: '{path.name}' has no page {page}; expected one for each of the image")
            turn_to(picture, page or 0)
            _require_lossless(picture, path)
            return _meaning(_opaque(picture, path), scheme, path)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"label: found no readable image '{path.name}' ({error}); export it anew") from error


def require_pages(path: Path, count: int) -> None:
    """Refuse a label image with more pages than its image."""
    with _opened(path, True) as picture:
        if (pages := getattr(picture, "n_frames", 1)) > count:
            raise ValueError(f"label: '{path.name}' has {pages} pages; expected {count}, those of its image")


def require_same_shape(label: NDArray, shape: Sequence[int]) -> None:
    """Refuse a label image of another shape than its picture, with a hint where one of them lies on its side."""
    found, expected = tuple(label.shape[:2]), tuple(shape[:2])
    if found != expected:
        turned = found == expected[::-1]
        hint = ". One lies on its side: pictures are taken as viewers show them (EXIF orientation)" if turned else ""
        raise ValueError(f"label: found shape {found}; expected that of the image, {expected}{hint}")


def _opened(path: Path, pages: bool) -> Image.Image:
    try:
        return open_picture(path, pages)
    except ValueError as error:
        raise ValueError(f"label: '{path.name}': {error}") from error


def _require_lossless(picture: Image.Image, path: Path) -> None:
    compression = picture.info.get("compression")
    kind = picture.format if picture.format in LOSSY else compression if compression in LOSSY_TIFF else None
    if kind:
        kind = str(kind).upper()
        raise ValueError(f"label: '{path.name}' is lossy ({kind}); expected PNG or TIFF. Export the labels anew")


def _opaque(picture: Image.Image, path: Path) -> Image.Image:
    """The picture without its alpha channel or transparent colour."""
    if "transparency" in picture.info and picture.mode in ("1", "L", "P", "RGB"):
        alpha = picture.convert("RGBA").getchannel("A")
    elif picture.mode in ("RGBA", "LA", "PA"):
        alpha = picture.getchannel("A")
    else:
        return picture
    if np.asarray(alpha).min() < 255:
        raise ValueError(
            f"label: '{path.name}' has transparent pixels; expected an opaque label image. Fill them with the value of "
            "their label, or of 255 (ignore), and save it without transparency"
        )
    if picture.mode == "PA":
        indices = Image.fromarray(np.asarray(picture)[..., 0], "P")
        indices.putpalette(picture.getpalette("RGB"))  # type: ignore[arg-type]
        return indices
    return picture.convert(picture.mode[:-1]) if picture.mode in ("RGBA", "LA") else picture


def _meaning(picture: Image.Image, scheme: Scheme | None, path: Path) -> NDArray:
    """Values or colours of an opaque picture."""
    colours = () if scheme is None else scheme.colours
    if picture.mode == "P":
        return _of_palette(picture, bool(colours), path)
    array = np.asarray(picture.convert("RGB") if picture.mode in OTHER_COLOURS else picture)
    if array.dtype == bool:
        array = array * np.uint8(255)
    greys = scheme is not None and not scheme.values and all(len(set(colour)) == 1 for colour, _ in colours)
    if array.ndim == 2 and colours and greys:  # grey images are in these colours, too
        return np.repeat(array[..., None], 3, axis=2)
    return array


def _of_palette(picture: Image.Image, in_colours: bool, path: Path) -> NDArray:
    """Colours of a palette image, or its indices: then the palette is to look at, unless it is of other greys."""
    indices, table = np.asarray(picture), np.array(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    if in_colours:
        if indices.max(initial=0) >= len(table):
            raise ValueError(
                f"label: '{path.name}' has the index {indices.max()}, its palette {len(table)} colours; expected a "
                "colour for each index. Export it anew"
            )
        return table[indices]
    used = np.unique(indices)
    used = used[used < len(table)]  # an index without a colour is nothing but an index
    differ = used[table[used, 0] != used]
    if (table != table[:, :1]).any() or not differ.size:
        return indices
    shown = ", ".join(f"index {index} is grey {table[index, 0]}" for index in differ[:3])
    raise ValueError(
        f"label: '{path.name}' has a palette of greys that are other values than their indices ({shown}); expected one "
        'meaning. Save it as plain grey values, or name the greys as "colours" in the --labels file, e.g. '
        '{"0": [0, 0, 0], "1": [255, 255, 255]}'
    )
