"""An image and its labels lie on the same grid: turned alike, as large, at the same place; what is lost is told."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from data_prep import image_folder, rgb_folder, volumes
from oct_files import COLUMNS, ROWS, bscan, label, nifti, picture
from unicorn_monai.data.items import datalist
from unicorn_monai.images.files import open_picture, read_array, read_shape

SPLIT = ("--split", "1", "0", "0")
SAME = ("--size", str(ROWS), str(COLUMNS), *SPLIT)
TURNS = {  # orientation -> how the stored pixels come from those shown
    2: np.fliplr,
    3: lambda a: a[::-1, ::-1],
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    8: lambda a: np.rot90(a, -1),
}


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("UNICORN_KEY_FILE", str(tmp_path / "keys" / "key"))


@pytest.fixture
def four(tmp_path) -> str:
    path = tmp_path / "four.json"
    path.write_text(json.dumps({"0": "vitreous", "1": "inner", "2": "outer", "3": "choroid"}))
    return str(path)


def turned(path: Path, shown: np.ndarray, orientation: int) -> Path:
    """An image file whose EXIF orientation gives what is to be shown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](shown)))
    exif = stored.getexif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif, **({"quality": 100} if path.suffix == ".jpg" else {}))
    return path


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_a_picture_is_read_as_viewers_show_it(tmp_path, orientation, suffix):
    path = turned(tmp_path / f"a{suffix}", bscan(), orientation)
    np.testing.assert_allclose(read_array(path).astype(int), bscan(), atol=3)
    assert read_shape(path) == bscan().shape
    with open_picture(path) as opened:
        np.testing.assert_allclose(np.asarray(opened).astype(int), bscan(), atol=3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_labels_of_a_turned_picture_are_upright_and_it_is_told(tmp_path, four, orientation, suffix, capsys):
    for k in range(2):
        turned(tmp_path / "in" / "images" / "p" / f"{k}{suffix}", bscan(k), orientation)
        picture(tmp_path / "in" / "labels" / "p" / f"{k}.png", label(k))
    picture(tmp_path / "in" / "images" / "p" / "2.png", bscan(2))
    picture(tmp_path / "in" / "labels" / "p" / "2.png", label(2))
    assert image_folder.main([str(tmp_path / "in"), str(tmp_path / "out"), "--labels", four, *SAME]) == 0
    shown = capsys.readouterr().out
    assert "note: a picture with labels was turned as its EXIF orientation says" in shown
    assert shown.count("(2 times)") == 1
    for k, item in enumerate(datalist(tmp_path / "out", "training")):
        np.testing.assert_allclose(read_array(item["image"]).astype(int), bscan(k), atol=3)
        np.testing.assert_array_equal(read_array(item["label"]), label(k))


@pytest.mark.parametrize("source", [image_folder, rgb_folder], ids=["image_folder", "rgb_folder"])
def test_labels_stored_as_the_pixels_of_a_picture_on_its_side_are_refused(tmp_path, four, source, capsys):
    shown = bscan() if source is image_folder else np.dstack([bscan()] * 3)
    turned(tmp_path / "in" / "images" / "p" / "a.jpg", shown, 6)
    picture(tmp_path / "in" / "labels" / "p" / "a.png", np.rot90(label()).copy())
    size = SAME if source is image_folder else ("--size", "64", "64", *SPLIT)
    assert source.main([str(tmp_path / "in"), str(tmp_path / "out"), "--labels", four, *size]) == 1
    assert "One lies on its side: pictures are taken as viewers show them (EXIF orientation)" in capsys.readouterr().err


def test_an_orientation_behind_the_pixels_of_a_png_counts_too(tmp_path):
    content = turned(tmp_path / "a.png", bscan(), 6).read_bytes()
    start = content.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(content[start : start + 4], "big")
    moved = content[:start] + content[stop:-12] + content[start:stop] + content[-12:]
    (tmp_path / "a.png").write_bytes(moved)
    np.testing.assert_array_equal(read_array(tmp_path / "a.png"), bscan())


def test_an_orientation_that_turns_nothing_is_not_told(tmp_path, four, capsys):
    path = tmp_path / "in" / "images" / "p" / "a.jpg"
    path.parent.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.fromarray(bscan()).save(path, exif=exif)
    picture(tmp_path / "in" / "labels" / "p" / "a.png", label())
    assert image_folder.main([str(tmp_path / "in"), str(tmp_path / "out"), "--labels", four, *SAME]) == 0
    assert "EXIF" not in capsys.readouterr().out


# ---------------------------------------------------------------- volumes


def converted(root: Path, four: str) -> int:
    return volumes.main([str(root), str(root.parent / "out"), "--labels", four, *SAME])


def volume_pair(root: Path, spacing=(0.012, 0.004, 0.12), offset=(0.0, 0.0, 0.0), unit: str = "mm") -> None:
    """An image and a label volume that says it lies on a grid of its own."""
    nifti(root / "images" / "p" / "a.nii.gz")
    place = np.diag([*spacing, 1.0])
    place[:3, 3] = offset
    drawn = nib.Nifti1Image(np.stack([label(k).T for k in range(3)], axis=2), place)
    drawn.header.set_xyzt_units(unit)
    (root / "labels" / "p").mkdir(parents=True)
    nib.save(drawn, root / "labels" / "p" / "a.nii.gz")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"spacing": (0.024, 0.004, 0.12)}, "with the spacing (0.024, 0.004, 0.12) mm, the image with (0.012, "),
        ({"spacing": (12, 4, 120)}, "with the spacing (12.0, 4.0, 120.0) mm"),
        ({"offset": (0.0, 1.0, 0.0)}, "shifted by (0.0, 1.0, 0.0) mm against the image"),
        ({"offset": (0.0, 0.0, 0.12)}, "shifted by (0.0, 0.0, 0.12) mm"),
        ({"spacing": (12, 4, 120), "unit": "micron", "offset": (0.0, 300.0, 0.0)}, "shifted by (0.0, 0.3, 0.0) mm"),
    ],
)
def test_a_label_volume_on_another_grid_is_refused(tmp_path, four, changes, found, capsys):
    volume_pair(tmp_path / "in", **changes)
    assert converted(tmp_path / "in", four) == 1
    error = capsys.readouterr().err
    assert found in error
    assert "Resample it to that, or, if only the header is wrong, copy the image's affine into it" in error


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spacing": (0.0121, 0.004, 0.1201)},
        {"spacing": (12, 4, 120), "unit": "micron"},
        {"spacing": (1, 1, 1)},
        {"offset": (1e-3, 0.0, 0.0)},
    ],
    ids=["the same", "rounded", "another unit", "none", "a small part of a voxel"],
)
def test_a_label_volume_on_the_same_grid_is_taken(tmp_path, four, changes):
    volume_pair(tmp_path / "in", **changes)
    assert converted(tmp_path / "in", four) == 0
    for k, item in enumerate(datalist(tmp_path / "out", "training")):
        np.testing.assert_array_equal(read_array(item["label"]), label(k))


@pytest.mark.parametrize(
    ("extra", "refused"), [("", False), ("Offset = 0 5 0\n", True), ("ElementSpacing = 1 2 1\n", True)]
)
def test_a_grid_of_itk_is_compared_too(tmp_path, four, extra, refused):
    head = "ObjectType = Image\nNDims = 3\nDimSize = 32 40 3\nElementType = MET_UCHAR\n"
    spacing = "" if "Spacing" in extra else "ElementSpacing = 0.012 0.004 0.12\n"
    for kind, array, more in (
        ("images", bscan, "ElementSpacing = 0.012 0.004 0.12\n"),
        ("labels", label, spacing + extra),
    ):
        path = tmp_path / "in" / kind / "p" / "a.mha"
        path.parent.mkdir(parents=True)
        values = np.stack([array(k) for k in range(3)])
        path.write_bytes((head + more + "ElementDataFile = LOCAL\n").encode() + values.tobytes())
    assert converted(tmp_path / "in", four) == int(refused)


# ---------------------------------------------------------------- what resizing loses


def test_a_label_that_vanishes_on_resizing_is_told_with_its_name(tmp_path, four, capsys):
    for k in range(4):
        drawn = np.zeros((40, 32), np.uint8)
        drawn[20:] = 3
        drawn[:20, 9] = 1  # a column that few sizes hit
        drawn[5:9, 20:28] = 2
        picture(tmp_path / "in" / "images" / "p" / f"{k}.png", bscan(k))
        picture(tmp_path / "in" / "labels" / "p" / f"{k}.png", drawn)
    options = ["--labels", four, *SPLIT]
    assert image_folder.main([str(tmp_path / "in"), str(tmp_path / "a"), *options, "--size", "10", "8"]) == 0
    told = "note: label 1 inner vanishes on resizing in 4 of the 4 images that have it; a larger --size keeps it"
    assert told in capsys.readouterr().out.splitlines()
    assert image_folder.main([str(tmp_path / "in"), str(tmp_path / "b"), *options, "--size", "40", "32"]) == 0
    assert "vanishes on" not in capsys.readouterr().out


def test_a_layer_that_vanishes_on_resizing_is_told_too(tmp_path, four, capsys):
    picture(tmp_path / "in" / "images" / "p" / "a.png")
    rows = tmp_path / "in" / "labels" / "p" / "a.csv"
    rows.parent.mkdir(parents=True)
    rows.write_text("\n".join(["10,20,20.9"] * COLUMNS))
    options = ["--labels", four, *SPLIT, "--size", "10", "8"]
    assert image_folder.main([str(tmp_path / "in"), str(tmp_path / "out"), *options]) == 0
    assert "note: label 2 outer vanishes on resizing in 1 of the 1 images" in capsys.readouterr().out
