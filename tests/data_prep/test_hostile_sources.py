"""Sources of other people: what leads out of INPUT, or is half a label object, gets through nowhere."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
from argparse import Namespace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import scipy.io
from PIL import Image

from data_prep import dicom, heidelberg, image_folder, phantom, rgb_folder, spectralis_healthy, volumes
from data_prep.image_folder import read_pages
from data_prep.label_schemes import TRAIN_IDS, read_scheme
from data_prep.options import natural
from data_prep.privacy import read_key
from data_prep.street_frames import Layout, read_frames
from data_prep.surface_files import load_mat, read_surfaces
from oct_files import binary_segmentation, bscan, e2e, label, label_map, opt, picture, save, surfaces
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import HEADER, SPLITS, read_header
from unicorn_monai.data.writer import DatasetWriter
from unicorn_monai.images import isolated, volume_files
from unicorn_monai.images.files import open_picture
from unicorn_monai.images.volume_files import data_entries, open_nifti


def convert(source, root: Path, *more: str) -> tuple[int, Path]:
    output, key = root.parent / "out", str(root.parent / "key")
    options = ["--split", "1", "0", "0", "--size", "48", "--key-file", key, *more]
    return source.main([str(root), str(output), *options]), output


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "in" / "p1").mkdir(parents=True)
    return tmp_path / "in"


MHD = "ObjectType = Image\nNDims = 3\nDimSize = 40 32 1\nElementType = MET_UCHAR\n"
NRRD = "NRRD0004\ntype: unsigned char\ndimension: 3\nsizes: 40 32 1\nencoding: raw\n"
ELSEWHERE = {
    "MHD": ("a.mhd", MHD + "ElementDataFile = ../../secret.raw\n"),
    "MHD with a decoy": ("a.mhd", MHD + "elementdatafile = a.raw\n\nElementDataFile = ../../secret.raw\n"),
    "MHD of a list": ("a.mhd", MHD + "ElementDataFile = LIST\n../../secret.raw\n"),
    "NRRD": ("a.nhdr", NRRD + "data file: ../../secret.raw\n"),
    "NRRD with a decoy": ("a.nhdr", NRRD + "data file:=a.raw\ndata file: ../../secret.raw\n"),
    "NRRD of a list": ("a.nrrd", NRRD + "data file: LIST\n../../secret.raw\n"),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_header_takes_no_voxels_from_outside_the_input(root, capsys, case):
    name, text = ELSEWHERE[case]
    (root.parent / "secret.raw").write_bytes(bscan(0)[:32, :40].tobytes().ljust(1280, b"\1"))
    (root / "p1" / name).write_text(text)
    status, output = convert(volumes, root)
    assert status == 1
    assert "outside INPUT; refused" in capsys.readouterr().err
    assert not (output / HEADER).exists()


def test_a_header_takes_voxels_from_beside_it(root):
    (root / "p1" / "a.raw").write_bytes(np.arange(1280).astype(np.uint8).tobytes())
    (root / "p1" / "a.mhd").write_text(MHD + "ElementDataFile = a.raw\n")
    status, output = convert(volumes, root)
    assert status == 0
    assert len(datalist(output, "training")) == 1


HEADERS = {
    "a dot from a pattern": ("a.mhd", MHD + "ElementDataFile = %1$c%1$c/%1$c%1$c/secret%1$craw 46 46 1\n", "pattern"),
    "texts from a pattern": ("a.mhd", MHD + "ElementDataFile = %s%s%s%s.raw 1 1 1\n", "pattern"),
    "memory written by a pattern": ("a.mhd", MHD + "ElementDataFile = %n%n.raw 1 1 1\n", "pattern"),
    "a pattern in a list": ("a.mhd", MHD + "ElementDataFile = LIST\n%s%s.raw\n", "pattern"),
    "a pattern in NRRD": ("a.nhdr", NRRD + "data file: a%s%n.raw 1 1 1\n", "pattern"),
    "5000 axes": ("a.mha", MHD.replace("= 3", "= 5000") + "ElementDataFile = LOCAL\n", "found NDims '5000'"),
    "fewer sizes than axes": ("a.mha", MHD.replace("40 32 1", "40 32") + "ElementDataFile = LOCAL\n", "2 to 4 axes"),
    "a size below zero": ("a.nrrd", NRRD.replace("40 32 1", "40 -32 1") + "\n", "'40 -32 1'"),
    "17 axes": ("a.nrrd", NRRD.replace(": 3", ": 17") + "\n", "found dimension '17'"),
    "an entry twice": ("a.mha", MHD + "NDims = 4\nElementDataFile = LOCAL\n", "or one twice"),
    "texts for voxels": ("a.mha", MHD.replace("UCHAR", "STRING") + "ElementDataFile = LOCAL\n", "no type of numbers"),
    "an endless header": ("a.mha", MHD + "Comment = " + "x" * 70_000, "no header that ends"),
    "3 gigavoxels": ("a.mha", MHD.replace("40 32 1", "40000 800 100") + "ElementDataFile = LOCAL\n", "to 3.2 GB"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_makes_no_sense_reaches_no_reader(root, capsys, monkeypatch, case):
    name, text, told = HEADERS[case]
    (root / "p1" / name).write_text(text)
    monkeypatch.setattr(isolated, "Reader", None)
    assert convert(volumes, root)[0] == 1
    assert told in capsys.readouterr().err


def test_a_file_that_kills_its_reader_is_named_and_left_out(root, capsys, monkeypatch):
    for module in (volumes, volume_files):
        monkeypatch.setattr(module, "data_entries", lambda path: [])  # as if the header had not been looked at before
    for k in range(3):
        place, voxels = ("LOCAL", np.arange(1280).astype(np.uint8).tobytes()) if k else ("%s%s%s%s.raw 1 1 1", b"")
        (root / "p1" / f"{k}.mha").write_bytes(f"{MHD}ElementDataFile = {place}\n".encode() + voxels)
    status, output = convert(volumes, root)
    assert status == 0
    assert "0.mha: file: found no readable volume (its reader crashed" in capsys.readouterr().out
    assert len(datalist(output, "training")) == 2
    strict = ["--split", "1", "0", "0", "--keep-original-ids", "--strict"]
    assert volumes.main([str(root), str(root.parent / "strict"), *strict]) == 1
    assert "0.mha: file: found no readable volume (its reader crashed" in capsys.readouterr().err


def test_a_file_that_holds_up_its_reader_is_given_up(tmp_path, monkeypatch):
    scipy.io.savemat(tmp_path / "a.mat", {"image": bscan(0)})
    load_mat(tmp_path / "a.mat")
    monkeypatch.setattr(isolated, "START_SECONDS", 0.5)
    os.kill(isolated._reader.process.pid, signal.SIGSTOP)
    with pytest.raises(ValueError, match="its reader took more than"):
        load_mat(tmp_path / "a.mat")
    monkeypatch.undo()
    assert np.array_equal(load_mat(tmp_path / "a.mat")["image"], bscan(0))


def nested_cells(depth: int) -> bytes:
    """A MATLAB file of one cell in another."""
    content = b""
    for _ in range(depth):
        head = struct.pack("<4I", 6, 8, 1, 0) + struct.pack("<2I2i", 5, 8, 1, 1) + struct.pack("<2I", 1, 0)
        content = struct.pack("<2I", 14, len(head) + len(content)) + head + content
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<2H", 0x0100, 0x4D49) + content


def test_cells_in_cells_are_passed_over(tmp_path):
    scipy.io.savemat(tmp_path / "b.mat", {"image": bscan(0)})
    (tmp_path / "a.mat").write_bytes(nested_cells(20_000) + (tmp_path / "b.mat").read_bytes()[128:])
    arrays = load_mat(tmp_path / "a.mat")
    assert list(arrays) == ["image"]
    assert np.array_equal(arrays["image"], bscan(0))


def test_a_label_image_of_a_street_is_no_link_out_of_its_folder(root, tmp_path):
    for folder in ("pictures", "labels"):
        (root / folder).mkdir()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(root / "pictures" / "a.png")
    Image.new("L", (64, 64)).save(tmp_path / "secret.png")
    (root / "labels" / "a_ids.png").symlink_to(tmp_path / "secret.png")
    layout = Layout("camera", "pictures", ".png", "labels", {"_ids.png": TRAIN_IDS}, "")
    options = Namespace(input=root, labels=None, squeeze=True, shape=(64, 64))
    (found,) = read_frames([root / "pictures" / "a.png"], layout, None, options)
    assert isinstance(found, ValueError)
    assert "is a link that leads out of 'labels'; refused" in str(found)


# ---------------------------------------------------------------- DICOM and Heidelberg


@pytest.mark.parametrize("value", [[1, 2], "xy"])
def test_a_number_that_is_none_leaves_out_one_file(root, capsys, value):
    save(opt(InstanceNumber=77 if value == "xy" else value), root / "a.dcm")
    save(opt(), root / "b.dcm")
    stored = (root / "a.dcm").read_bytes()
    (root / "a.dcm").write_bytes(stored.replace(b"IS\x02\x0077", b"IS\x02\x00xy"))
    status, output = convert(dicom, root)
    assert status == 0
    assert "a.dcm: file: found no readable DICOM" in capsys.readouterr().out
    assert len(datalist(output, "training")) == 3


def test_half_of_a_broken_segmentation_labels_nothing(root, capsys):
    image = opt()
    segmentation = binary_segmentation(image)
    del segmentation.PerFrameFunctionalGroupsSequence[-1].DerivationImageSequence
    save(image, root / "a.dcm")
    save(segmentation, root / "s.dcm")
    status, output = convert(dicom, root)
    assert status == 0
    assert "s.dcm: segmentation: found nothing usable" in capsys.readouterr().out
    assert not any("label" in item for item in read_header(output)["training"])


def test_a_label_beyond_8_bits_does_not_become_another_one(root, capsys):
    image = opt()
    segmentation = label_map(image)
    values = segmentation.pixel_array.astype("<u2")
    values[:, :4] = 257  # 1 in 8 bits
    segmentation.BitsAllocated, segmentation.BitsStored, segmentation.HighBit = 16, 16, 15
    segmentation.PixelData = values.tobytes()
    save(image, root / "a.dcm")
    save(segmentation, root / "s.dcm")
    _, output = convert(dicom, root)
    assert "pixels are up to 257, expected at most 255" in capsys.readouterr().out
    assert not any("label" in item for item in read_header(output)["training"])


def test_a_damaged_series_of_an_e2e_file_is_told(root, capsys):
    pytest.importorskip("eyepy", reason="eyepy reads Heidelberg's exports: pip install 'unicorn-monai[heidelberg]'")
    e2e(root / "a.e2e")
    good, rng = (root / "a.e2e").read_bytes(), np.random.default_rng(3)
    for _ in range(30):
        damaged = bytearray(good)
        for place in rng.integers(0, 4000, 10):
            damaged[place] = int(rng.integers(256))
        (root / "a.e2e").write_bytes(damaged)
        status, _ = convert(heidelberg, root, "--resume")
        assert status in (0, 1)
        assert "Traceback" not in capsys.readouterr().err


def test_pictures_of_an_export_are_opened_as_all_others(root, tmp_path):
    (root / "images").mkdir()
    (root / "boundaries").mkdir()
    for k in range(1, 9):
        (root / "boundaries" / f"Subject1_{k}.txt").write_text("1\n" * 8)
    (root / "images" / "Subject1_01.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    with pytest.raises(OSError, match="cannot identify image file"):
        next(spectralis_healthy.read_bscans(root, 1))


# ---------------------------------------------------------------- folders of images


def table(rows: np.ndarray) -> str:
    return "\n".join(",".join(f"{value:.3f}" for value in line) for line in rows.T)


def test_surfaces_of_one_b_scan_do_not_label_the_other_pages(root, capsys):
    for folder in ("images", "labels"):
        (root / folder / "p1").mkdir(parents=True)
    pages = [Image.fromarray(bscan(k)) for k in range(2)]
    pages[0].save(root / "images/p1/0.tif", save_all=True, append_images=pages[1:])
    (root / "labels/p1/0.csv").write_text(table(surfaces(0)))
    _, output = convert(image_folder, root)
    assert len(datalist(output, "training", ("image", "label"))) == 1
    assert "'0.csv' holds one B-scan for each image" in capsys.readouterr().out


def test_surfaces_of_a_folder_with_dots_in_its_name_are_found(root, monkeypatch):
    scans = "".join(f"<y>{y:.3f}</y>" for y in surfaces(0)[0])
    size = f"<surface_size><x>{surfaces(0).shape[1]}</x><z>1</z></surface_size>"
    for name in ("p.1", "p.2"):
        picture(root / "images" / name / "0.png", bscan(int(name[-1])))
    (root / "labels").mkdir()
    text = f"<surfaces>{size}<surface><name>ILM</name><bscan>{scans}</bscan></surface></surfaces>"
    (root / "labels" / "p.1.xml").write_text(text)
    scheme = root.parent / "two.json"
    scheme.write_text(json.dumps({"labels": {"0": "above", "1": "below"}, "surfaces": ["ILM"]}))
    _, output = convert(image_folder, root, "--labels", str(scheme))
    labelled = [item["subject"] for item in read_header(output)["training"] if "label" in item]
    assert len(labelled) == 1
    (root / "labels" / "p.1.xml").rename(root.parent / "p.1.xml")
    (root / "labels" / "p.1.xml").symlink_to(root.parent / "p.1.xml")
    assert image_folder.main([str(root), str(root.parent / "again"), "--labels", str(scheme)]) == 1


def test_every_page_is_measured_before_it_is_read(tmp_path):
    large = Image.new("L", (11_000, 10_000))
    Image.new("L", (8, 8)).save(tmp_path / "a.tif", save_all=True, append_images=[large], compression="tiff_deflate")
    pages = read_pages(tmp_path / "a.tif", Namespace())
    assert next(pages).shape == (8, 8)
    with pytest.raises(ValueError, match="expected at most 100 megapixels"):
        next(pages)


@pytest.mark.parametrize("source", [image_folder, rgb_folder])
def test_a_file_in_place_of_a_folder_is_named(root, capsys, source):
    Image.fromarray(bscan(0)).save(root / "a.png")
    options = ["--subject-pattern", "(a)", "--size", "64"]
    assert source.main([str(root / "a.png"), str(root.parent / "out"), *options]) == 1
    assert "a.png' is a file; expected the folder" in capsys.readouterr().err


def test_digits_that_are_no_numbers_do_not_stop_the_sorting():
    assert sorted([Path("a5²10.png"), Path("a5²9.png")], key=natural) == [Path("a5²9.png"), Path("a5²10.png")]


@pytest.mark.parametrize(
    ("entry", "message"),
    [({"surfaces": 1}, "expected a list of names"), ({"values": {"7": 0.5}}, "'values' of .* expected e.g.")],
)
def test_a_label_file_of_wrong_types_is_refused(tmp_path, entry, message):
    (tmp_path / "l.json").write_text(json.dumps({"labels": {"0": "a", "1": "b"}} | entry))
    with pytest.raises(ValueError, match=message):
        read_scheme(str(tmp_path / "l.json"))


# ---------------------------------------------------------------- what is resumed


def stop_after(monkeypatch, items: int) -> None:
    add = DatasetWriter.add

    def interrupted(self, *args, **fields):
        if len(self) == items:
            raise KeyboardInterrupt
        add(self, *args, **fields)

    monkeypatch.setattr(DatasetWriter, "add", interrupted)


def test_a_phantom_is_not_continued_as_another_device(tmp_path, monkeypatch):
    stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        phantom.write_phantom(tmp_path / "set", "spectralis", 3, 2, 32)
    monkeypatch.undo()
    for device, split in (("home_oct", (0.7, 0.1, 0.2)), ("spectralis", (0.2, 0.1, 0.7))):
        with pytest.raises(ValueError, match="was begun with the settings"):
            phantom.write_phantom(tmp_path / "set", device, 3, 2, 32, split=split)
    folder = phantom.write_phantom(tmp_path / "set", "spectralis", 3, 2, 32)
    assert sum(len(read_header(folder)[split]) for split in SPLITS) == 6


@pytest.mark.parametrize("changed", ["axes", "values"])
def test_a_conversion_is_not_continued_with_other_axes_or_label_values(root, monkeypatch, capsys, changed):
    import nibabel as nib

    for folder in ("images", "labels"):
        (root / folder / "p1").mkdir(parents=True)
    volume = np.stack([bscan(k).T for k in range(3)], axis=2)
    values = np.stack([label(k).T for k in range(3)], axis=2).astype(np.uint8)
    nib.save(nib.Nifti1Image(volume, np.diag([0.012, 0.004, 0.1, 1])), root / "images/p1/a.nii.gz")
    nib.save(nib.Nifti1Image(values, np.eye(4)), root / "labels/p1/a.nii.gz")
    names = {str(k): f"layer {k}" for k in range(4)}
    scheme = root.parent / "labels.json"
    scheme.write_text(json.dumps({"labels": names, "values": {"0": 0, "1": 1, "2": 2, "3": 3}}))
    options = ["--labels", str(scheme), "--resume"]
    stop_after(monkeypatch, 1)
    assert convert(volumes, root, *options)[0] == 1
    monkeypatch.undo()
    before = scheme.read_text()
    if changed == "values":
        scheme.write_text(json.dumps({"labels": names, "values": {"0": 0, "1": 2, "2": 1, "3": 3}}))
    capsys.readouterr()
    assert convert(volumes, root, *options, *(["--axes", "dab"] if changed == "axes" else []))[0] == 1
    assert "was begun with the settings" in capsys.readouterr().err
    scheme.write_text(before)
    assert convert(volumes, root, *options)[0] == 0


def test_the_key_is_on_the_disk_before_it_is_used(tmp_path, monkeypatch):
    sync, flushed = os.fsync, []

    def noting(descriptor: int) -> None:
        sync(descriptor)
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", noting)
    read_key(tmp_path / "keys" / "key", tmp_path / "out")
    assert flushed == ["key", "keys"]


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("s.nhdr", "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 8 8 8\nencoding: raw\ncontent: x\rdata file: {}\n\n"),
        ("s.nhdr", "NRRD0004\rdata file: {}\ntype: uint8\ndimension: 3\nsizes: 8 8 8\nencoding: raw\n\n"),
        ("s.nhdr", "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 8 8 8\nencoding: raw\ndata file: -\n\n"),
        ("s.mhd", "NDims = 3\nDimSize = 8 8 8\nElementType = MET_UCHAR\nElementDataFile  :  = {}\n"),
        ("s.mhd", "NDims = 3\nDimSize = 8 8 8\nElementType = MET_UCHAR\nElementDataFile == {}\n"),
        ("s.mhd", "NDims = 3\nDimSize = 8 8 8\nElementType = MET_UCHAR\rElementDataFile = {}\nElementDataFile = a\n"),
    ],
)
def test_a_header_that_a_reader_takes_otherwise_names_no_file_outside(tmp_path, name, header):
    (tmp_path / "in").mkdir()
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(range(256)) * 2)
    (tmp_path / "in" / name).write_bytes(header.format(secret).encode())
    with pytest.raises(ValueError, match=r"carriage return|no name in place"):
        data_entries(tmp_path / "in" / name)


@pytest.mark.parametrize("offset", [0.0, 348.0, 351.0, 352.7, float("nan")])
def test_the_header_of_a_nifti_file_is_none_of_its_voxels(tmp_path, offset):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.eye(4)), path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 108, offset)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="found its voxels at byte"):
        open_nifti(path)


def test_a_jpeg_file_of_thousands_of_scans_is_refused_before_it_is_decoded(tmp_path):
    file = io.BytesIO()
    Image.new("L", (990, 990)).save(file, "JPEG", progressive=True, quality=1)
    content = file.getvalue()
    last = content.rfind(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(content[:-2] + content[last:-2] * 3000 + b"\xff\xd9")
    with pytest.raises(ValueError, match=r"it holds 30\d\d scans"):
        open_picture(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(content)
    assert open_picture(tmp_path / "b.jpg").size == (990, 990)


def test_a_table_with_a_line_of_millions_of_values_is_refused_before_it_is_split(tmp_path):
    (tmp_path / "a.csv").write_text("1," * 100_000 + "1\n")
    with pytest.raises(ValueError, match="a line of 100001 values; expected one for each surface"):
        read_surfaces(tmp_path / "a.csv", columns=8, first_row=0)


@pytest.mark.parametrize(
    "entry", ["Offset =", "Offset = 1 1", "Position = 1", "Color = 1 1", "ElementMin =", "TransformMatrix = 1 0 0 0 1"]
)
def test_an_entry_of_a_header_with_too_few_values_is_refused(tmp_path, entry):
    """ITK reads the missing ones in the next line, and then takes a later one for the name of the file."""
    lines = ["NDims = 3", "DimSize = 8 8 8", "ElementType = MET_UCHAR", entry, "ElementDataFile = own.raw"]
    (tmp_path / "t.mhd").write_text("\n".join([*lines, "ElementDataFile = /elsewhere.raw", ""]))
    with pytest.raises(ValueError, match="fewer values than"):
        data_entries(tmp_path / "t.mhd")


def test_a_jpeg_file_of_filling_is_refused_before_it_is_opened(tmp_path):
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG")
    content = file.getvalue()
    (tmp_path / "a.jpg").write_bytes(content[:2] + b"\xff" * 3_000_000 + content[2:])
    with pytest.raises(ValueError, match="filling bytes in a row"):
        open_picture(tmp_path / "a.jpg")
