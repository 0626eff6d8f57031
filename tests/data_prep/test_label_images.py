"""What a label image says does not depend on how the file stores it; what can mean two things is refused."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import image_folder, rgb_folder
from data_prep.label_images import read_label_image, require_pages
from data_prep.label_schemes import Scheme
from unicorn_monai.data.items import datalist
from unicorn_monai.images.files import read_array

VALUES = np.arange(3, dtype=np.uint8)[np.add.outer(np.arange(64), np.arange(64)) // 7 % 3]
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
NAMES = ("vitreous", "retina", "choroid")
PLAIN = Scheme(NAMES)
NAMED = Scheme(NAMES, colours=tuple((tuple(colour), k) for k, colour in enumerate(COLOURS.tolist())))
GREYS = Scheme(NAMES[:2], colours=(((0, 0, 0), 0), ((255, 255, 255), 1)))
ORDER = np.array([1, 2, 0])  # index 0 of the palette is label 2, 1 is 0, 2 is 1


def opaque(array: np.ndarray, alpha: int = 255) -> np.ndarray:
    return np.dstack([array, np.full(VALUES.shape, alpha, np.uint8)])


def palette(indices: np.ndarray, table: list, path: Path, **options) -> Path:
    picture = Image.fromarray(indices.astype(np.uint8), "P")
    picture.putpalette(np.array(table, np.uint8).tobytes())
    picture.save(path, **options)
    return path


def png_of_16_bits(array: np.ndarray, path: Path) -> Path:
    kind = {2: 4, 3: 2, 4: 6}[array.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    head = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, kind, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("stored", ["grey", "colours", "opaque colours", "palette", "palette in another order"])
def test_labels_are_the_same_however_they_are_stored(stored, suffix, tmp_path):
    path = tmp_path / f"label{suffix}"
    if stored.startswith("palette"):
        order = ORDER if stored.endswith("order") else np.arange(3)
        palette(order[VALUES], COLOURS[np.argsort(order)], path)
    else:
        if stored == "opaque colours" and suffix == ".bmp":
            pytest.skip("Pillow writes no alpha into BMP")
        array = {"grey": VALUES, "colours": COLOURS[VALUES], "opaque colours": opaque(COLOURS[VALUES])}[stored]
        Image.fromarray(array).save(path)
    np.testing.assert_array_equal(NAMED.replace(read_label_image(path, NAMED)), VALUES)


@pytest.mark.parametrize("array", [VALUES, VALUES.astype(np.uint16), opaque(VALUES)], ids=["grey", "16 bit", "alpha"])
def test_values_are_values(array, tmp_path):
    Image.fromarray(array).save(tmp_path / "label.png")
    found = read_label_image(tmp_path / "label.png", PLAIN)
    np.testing.assert_array_equal(PLAIN.replace(found), VALUES)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_one_bit_is_0_and_255_as_every_viewer_shows_it(suffix, tmp_path):
    Image.fromarray(VALUES == 1).save(tmp_path / f"label{suffix}")
    found = read_label_image(tmp_path / f"label{suffix}", PLAIN)
    np.testing.assert_array_equal(found, np.where(VALUES == 1, 255, 0))


def test_indices_count_where_no_colours_are_named(tmp_path):
    arbitrary = palette(VALUES, [[0, 0, 0], [128, 0, 0], [0, 128, 0]], tmp_path / "arbitrary.png")
    ramp = palette(VALUES, [[k] * 3 for k in range(3)], tmp_path / "ramp.png")
    few_greys = palette(VALUES % 2, [[9] * 3, [5] * 3, [1, 2, 3]], tmp_path / "few.png")
    for path, expected in ((arbitrary, VALUES), (ramp, VALUES), (few_greys, VALUES % 2)):
        np.testing.assert_array_equal(read_label_image(path, PLAIN), expected)


def test_a_palette_of_greys_in_another_order_is_refused_unless_the_greys_are_named(tmp_path):
    path = palette(ORDER[VALUES], [[2] * 3, [0] * 3, [1] * 3], tmp_path / "label.png")
    with pytest.raises(ValueError, match=r"index 0 is grey 2, index 1 is grey 0, index 2 is grey 1.*name the greys"):
        read_label_image(path, PLAIN)
    named = Scheme(NAMES, colours=tuple(((k, k, k), k) for k in range(3)))
    np.testing.assert_array_equal(named.replace(read_label_image(path, named)), VALUES)


def test_greys_that_are_named_as_colours_are_found_in_grey_images_too(tmp_path):
    mask = VALUES == 1
    palette(1 - mask, [[255] * 3, [0] * 3], tmp_path / "palette.png")
    Image.fromarray(mask).save(tmp_path / "bit.png")
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(tmp_path / "grey.png")
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(GREYS.replace(read_label_image(path, GREYS)), mask)


def test_a_palette_with_a_colour_that_is_not_named_is_not_read_by_its_indices(tmp_path):
    path = palette(VALUES, [[0, 0, 0], [255, 0, 0], [0, 254, 0]], tmp_path / "label.png")
    with pytest.raises(ValueError, match=r"label colours: found \[\[0, 254, 0\]\]"):
        NAMED.replace(read_label_image(path, NAMED))
    short = palette(VALUES, [[0, 0, 0], [255, 0, 0]], tmp_path / "short.bmp")
    with pytest.raises(ValueError, match="has the index 2, its palette 2 colours"):
        read_label_image(short, NAMED)


def test_what_is_partly_transparent_is_refused(tmp_path):
    holes = np.where(VALUES == 1, 128, 255).astype(np.uint8)
    for k, array in enumerate((VALUES, COLOURS[VALUES])):
        Image.fromarray(np.dstack([array, holes])).save(tmp_path / f"{k}.png")
    palette(VALUES, COLOURS, tmp_path / "2.png", transparency=1)
    Image.fromarray(VALUES).save(tmp_path / "3.png", transparency=2)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match="has transparent pixels; expected an opaque label image"):
            read_label_image(path, NAMED)
    palette(VALUES, [*COLOURS, [9, 9, 9]], tmp_path / "unused.png", transparency=3)
    np.testing.assert_array_equal(read_label_image(tmp_path / "unused.png", NAMED), COLOURS[VALUES])


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "WEBP", "TIFF"])
def test_lossy_labels_are_noticed_by_their_content(kind, tmp_path):
    options = {"compression": "jpeg"} if kind == "TIFF" else {}
    Image.fromarray(VALUES).convert("RGB").save(tmp_path / "label.png", format=kind, **options)
    with pytest.raises(ValueError, match=r"'label\.png' is lossy \(JPEG|'label\.png' is lossy \(WEBP"):
        read_label_image(tmp_path / "label.png", PLAIN)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_channels_of_16_bits_are_not_cut_to_8(channels, tmp_path):
    path = png_of_16_bits(np.repeat(VALUES[..., None], channels, axis=2), tmp_path / "label.png")
    with pytest.raises(ValueError, match=r"label: .*it has 16 bits in each of its channels"):
        read_label_image(path, PLAIN)


def test_pages_of_labels_are_those_of_the_image(tmp_path):
    pages = [Image.fromarray(np.roll(VALUES, k)) for k in range(3)]
    pages[0].save(tmp_path / "label.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_label_image(tmp_path / "label.tif", PLAIN, 2), np.roll(VALUES, 2))
    require_pages(tmp_path / "label.tif", 3)
    with pytest.raises(ValueError, match="has no page 3; expected one for each of the image"):
        read_label_image(tmp_path / "label.tif", PLAIN, 3)
    with pytest.raises(ValueError, match="it holds 3 pages, expected one image"):
        read_label_image(tmp_path / "label.tif", PLAIN)
    with pytest.raises(ValueError, match="has 3 pages; expected 1, those of its image"):
        require_pages(tmp_path / "label.tif", 1)


@pytest.mark.parametrize("source", [image_folder, rgb_folder])
def test_all_sources_read_label_images_alike(source, tmp_path, monkeypatch):
    monkeypatch.setenv("UNICORN_KEY_FILE", str(tmp_path / "key"))
    colours = {str(k): colour for k, colour in enumerate(COLOURS.tolist())}
    names = {"labels": {str(k): name for k, name in enumerate(NAMES)}, "colours": colours}
    (tmp_path / "names.json").write_text(json.dumps(names))
    for k in range(2):
        for kind in ("images", "labels"):
            (tmp_path / f"in/{kind}/p{k}").mkdir(parents=True)
        picture = np.random.default_rng(k).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        picture = picture if source is rgb_folder else picture[..., 0]
        Image.fromarray(picture).save(tmp_path / f"in/images/p{k}/0.png")
        palette(ORDER[VALUES], COLOURS[np.argsort(ORDER)], tmp_path / f"in/labels/p{k}/0.png")
    options = ["--labels", str(tmp_path / "names.json"), "--size", "64", "--split", "1", "0", "0"]
    assert source.main([str(tmp_path / "in"), str(tmp_path / "out"), *options]) == 0
    for item in datalist(tmp_path / "out", "training", ("image", "label")):
        np.testing.assert_array_equal(read_array(item["label"]), VALUES)
