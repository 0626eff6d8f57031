"""Which files of a folder count: not what other programs leave, links only within INPUT, and nothing in silence."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import dicom, image_folder, rgb_folder, volumes
from data_prep.files import any_files_below, files_below
from data_prep.scan import Report
from oct_files import bscan, nifti, opt, picture, save
from unicorn_monai.data.clutter import is_clutter
from unicorn_monai.data.layout import SPLITS, read_header

CLUTTER = [
    ".ipynb_checkpoints/0-checkpoint.png",
    ".Trash-1000/files/x.png",
    "@eaDir/0.png/SYNOFILE_THUMB_M.png",
    "#recycle/0.png",
    "$RECYCLE.BIN/S-1-5/$R1.png",
    "__MACOSX/p1/._0.png",
    "System Volume Information/a.png",
    "lost+found/b.png",
    "._0.png",
]


def convert(source, root: Path, *options: str) -> tuple[int, list[dict]]:
    output, key = root.parent / "out", str(root.parent / "key")
    status = source.main(
        [str(root), str(output), "--split", "1", "0", "0", "--size", "64", "--key-file", key, *options]
    )
    header = read_header(output) if status == 0 else {}
    return status, [item for split in SPLITS for item in header.get(split, [])]


@pytest.fixture
def root(tmp_path) -> Path:
    """One image of each of two patients."""
    for k in (1, 2):
        picture(tmp_path / f"in/images/p{k}/0.png", bscan(k))
    return tmp_path / "in"


@pytest.mark.parametrize("place", ["images", "images/p1"])
@pytest.mark.parametrize("name", CLUTTER)
def test_what_other_programs_leave_is_left_out_and_told(root, capsys, name, place):
    picture(root / place / name, bscan(7))
    status, items = convert(image_folder, root)
    assert (status, len(items), len({item["subject"] for item in items})) == (0, 2, 2)
    told = capsys.readouterr().out
    assert f"left out 1 file(s), hidden or of other programs: '{name.split('/')[0]}' (1)" in told


@pytest.mark.parametrize("source", [rgb_folder, volumes, dicom])
def test_every_source_leaves_it_out(source, tmp_path, capsys):
    root = tmp_path / "in"
    for name in ("p1/0", "p1/@eaDir/0", ".Trash-1000/files/0"):
        if source is rgb_folder:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(root / f"{name}.png")
        elif source is volumes:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            nifti(root / f"{name}.nii.gz", np.stack([bscan(0)], axis=-1).transpose(1, 0, 2))
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            save(opt(), root / name)
    options = {rgb_folder: [], volumes: [], dicom: []}[source]
    status, items = convert(source, root, *options)
    assert (status, len({item["volume"] for item in items})) == (0, 1)
    assert "left out 2 file(s)" in capsys.readouterr().out


def test_a_folder_of_nothing_else_says_what_it_holds(tmp_path):
    picture(tmp_path / "in/.Trash-1000/0.png", bscan(0))
    with pytest.raises(ValueError, match=r"holds no file that ends in \.png\. left out 1 file\(s\).*Trash-1000"):
        files_below(tmp_path / "in", (".png",), Report())


@pytest.mark.parametrize("name", ["p.1", "a@b", "recycled patients", "#7", "System", "tmp", "$5", "Thumbs"])
def test_names_of_patients_are_no_clutter(name):
    assert not is_clutter(name)


# ---------------------------------------------------------------- links


def test_the_linked_folder_of_a_patient_is_followed_within_the_input(root):
    (root / "store").mkdir()
    (root / "images/p2").rename(root / "store/p2")
    (root / "images/p2").symlink_to("../store/p2")
    status, items = convert(image_folder, root)
    assert (status, len(items), len({item["subject"] for item in items})) == (0, 2, 2)


@pytest.mark.parametrize("place", ["images/p2", "images/p2/deeper", "images"])
def test_a_linked_folder_that_leads_out_is_refused(root, capsys, place):
    moved = root.parent / "elsewhere"
    if (root / place).exists():
        (root / place).rename(moved)
    else:
        picture(moved / "5.png", bscan(5))
    (root / place).symlink_to(moved)
    status, _ = convert(image_folder, root)
    assert status == 1
    assert f"{place}' is a link that leads out of '{root}'; refused. Copy the folder" in capsys.readouterr().err
    assert not (root.parent / "out").exists()


def test_circles_of_links_end(root, capsys):
    for link, target in (("images/p1/up", ".."), ("images/self", "self"), ("images/p2/all", "../..")):
        (root / link).symlink_to(target)
    for here, there in (("a", "b"), ("b", "a")):
        (root / "store" / here).mkdir(parents=True)
        (root / "store" / here / "next").symlink_to(f"../{there}")
    picture(root / "store/b/3.png", bscan(3))
    (root / "images/p3").symlink_to("../store/a")
    status, items = convert(image_folder, root)
    assert (status, len(items)) == (0, 3)
    told = capsys.readouterr().out
    for link in ("images/p1/up", "images/p2/all", "images/p3/next/next"):
        assert f"note: the link '{link}' leads to what is read under another name; it was left out" in told
    assert "images/self: found a link to what is not there" in told


def test_a_link_to_what_is_read_anyway_makes_no_second_patient(root, capsys):
    (root / "images/latest").symlink_to("p2")
    (root / "images/p1/1.png").symlink_to("../p2/0.png")
    status, items = convert(image_folder, root)
    assert (status, len(items)) == (0, 2)
    told = capsys.readouterr().out
    assert "the link 'images/latest' leads to what is read under another name" in told
    assert "the link 'images/p1/1.png' leads to what is read under another name" in told


@pytest.mark.parametrize("name", ["images/p3", "images/p1/9.png"])
def test_a_link_to_nothing_is_told(root, capsys, name):
    (root / name).symlink_to("../gone")
    status, items = convert(image_folder, root)
    assert (status, len(items)) == (0, 2)
    assert f"{name}: found a link to what is not there; restore it" in capsys.readouterr().out
    assert convert(image_folder, root, "--strict")[0] == 1


def test_files_that_are_links_into_a_hidden_store_are_read(root):
    """As git-annex and DVC keep them."""
    store = root / ".git/annex"
    store.mkdir(parents=True)
    (root / "images/p2/0.png").rename(store / "SHA256--1.png")
    (root / "images/p2/0.png").symlink_to(os.path.relpath(store / "SHA256--1.png", root / "images/p2"))
    assert len(convert(image_folder, root)[1]) == 2


def test_what_is_no_regular_file_is_told(root):
    os.mkfifo(root / "images/p1/3.png")
    report = Report()
    assert len(any_files_below(root, (".png",), report)) == 2
    assert "no regular file" in report.skipped[0][1]
