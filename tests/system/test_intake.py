"""What is taken in from outside: regular files, of a size that is known before they are unpacked; finite numbers."""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import re
import signal
import socket
import struct
import zipfile
import zlib
from argparse import Namespace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import scipy.io
import torch
from PIL import Image
from pydicom.encaps import encapsulate
from torch import nn

from data_prep import heidelberg, image_folder, volumes
from data_prep.dicom_sizes import codestream_size, read_dicom, require_unpackable_pixels
from data_prep.heidelberg import require_ending_directory
from data_prep.image_folder import read_pages
from data_prep.label_images import read_label_image
from data_prep.label_schemes import read_scheme
from data_prep.privacy import read_key
from data_prep.splits import split_by_subject
from data_prep.surface_files import load_mat, read_surfaces
from oct_files import bscan, e2e, opt, save, vol
from unicorn_monai.bundle.installation import install
from unicorn_monai.bundle.verify import SUMS, findings, seal
from unicorn_monai.commands.asked import weight_asked
from unicorn_monai.data.checks import problems
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.images.files import read_array, read_shape
from unicorn_monai.images.volume_files import open_nifti, read_itk
from unicorn_monai.system import intake
from unicorn_monai.system.files import parse_json, read_json
from unicorn_monai.system.intake import VARIABLE, Untaken, bounded_memory, require_regular
from unicorn_monai.system.weights import description_in, load_tensors_only, read_tensors, save_weights, sha256
from unicorn_monai.training.state import read_whole

ROOT = Path(__file__).parents[2]
SOURCES = ("volumes", "dicom", "heidelberg", "image_folder", "rgb_folder", "cityscapes", "acdc")


@pytest.fixture(autouse=True)
def _in_time():
    """What hangs fails, after a minute."""

    def late(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    intake.allow_gigabytes(None)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


# ---------------------------------------------------------------- what is no regular file

READERS = {
    "sums": ("SHA256SUMS", sha256),
    "weights": ("model.pt", read_tensors),
    "safetensors": ("model.safetensors", read_tensors),
    "description": ("model.pt", description_in),
    "description of safetensors": ("model.safetensors", description_in),
    "training state": ("last.pt", read_whole),
    "json": ("train.json", parse_json),
    "results": ("results.json", read_json),
    "picture": ("a.png", read_array),
    "nifti": ("a.nii.gz", read_array),
    "size of a picture": ("a.png", read_shape),
    "volume": ("a.mha", read_itk),
    "nrrd": ("a.nrrd", read_itk),
    "dicom": ("a.dcm", read_dicom),
    "label image": ("a.png", read_label_image),
    "labels": ("labels.json", lambda path: read_scheme(str(path))),
    "key": ("key", lambda path: read_key(path, path.parent / "out")),
    "surfaces as text": ("a.csv", lambda path: read_surfaces(path, 8, None)),
    "surfaces of MATLAB": ("a.mat", lambda path: read_surfaces(path, 8, None)),
    "surfaces of Iowa": ("a.xml", lambda path: read_surfaces(path, 8, None)),
    "directory": ("a.e2e", require_ending_directory),
}


@pytest.mark.parametrize("case", READERS)
def test_a_pipe_is_not_opened(tmp_path, case):
    name, reader = READERS[case]
    with pytest.raises(ValueError, match="is a named pipe; expected a regular file"):
        reader(pipe(tmp_path / name))


def test_devices_sockets_and_folders_are_told_by_their_kind(tmp_path):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        for path, kind in ((Path(os.devnull), "a device"), (tmp_path / "s", "a socket"), (tmp_path, "a folder")):
            with pytest.raises(Untaken, match=f"is {kind}; expected a regular file"):
                require_regular(path)
    (tmp_path / "link.json").symlink_to("/dev/zero")
    with pytest.raises(Untaken, match=r"link.json' is a device"):
        parse_json(tmp_path / "link.json")


PIPES = (
    "models/model.pt",
    "models/a.safetensors",
    "configs/more.json",
    "presets/more.json",
    "configs/logging.conf",
    SUMS,
)


@pytest.mark.parametrize("name", PIPES)
def test_a_bundle_with_a_pipe_is_told_and_not_sealed(tmp_path, name):
    bundle = install("retinal_unet", tmp_path)
    seal(bundle)
    pipe(bundle / name)
    try:
        found = findings(bundle)
    except Untaken as error:
        found = [str(error)]
    assert any(Path(name).name in line and ("named pipe" in line or "neither a file" in line) for line in found)
    if name != SUMS:
        with pytest.raises(ValueError, match="Not sealed"):
            seal(bundle)


@pytest.mark.parametrize("kind", [".png", ".csv", ".mat", ".xml"])
def test_a_pipe_in_place_of_a_label_is_told(tmp_path, capsys, kind):
    root = tmp_path / "in"
    for name in ("p1/0.png", "p2/1.png"):
        (root / "images" / name).parent.mkdir(parents=True)
        Image.fromarray(bscan(int(name[-5]))).save(root / "images" / name)
    pipe(root / "labels" / "p1" / f"0{kind}")
    scheme = tmp_path / "labels.json"
    scheme.write_text(json.dumps({"labels": {"0": "above", "1": "below"}}))
    options = ["--split", "1", "0", "0", "--size", "48", "--keep-original-ids", "--labels", str(scheme)]
    assert image_folder.main([str(root), str(tmp_path / "out"), *options]) == 0
    told = capsys.readouterr().out
    assert re.search(rf"skipped .*p1/0\{kind}: found no regular file", told)


def test_a_pipe_in_a_data_set_is_told(tmp_path):
    with DatasetWriter(tmp_path / "set", About(name="a", device="b", labels={0: "c"})) as writer:
        for k in range(2):
            writer.add("training", bscan(k), None, subject=f"s{k}")
    pipe(next((tmp_path / "set" / "images").iterdir()))
    assert any("named pipe" in str(problem) for problem in problems(tmp_path / "set"))


# ---------------------------------------------------------------- what never ends


def damaged_e2e(path: Path, change) -> Path:
    content = bytearray(e2e(path).read_bytes())
    count = struct.unpack_from("<I", content, 36 + 52 + 36)[0]
    change(content, 36 + 52 + 52 + 44 * (count - 1))  # the last folder
    path.write_bytes(content)
    return path


E2E = {
    "to its own beginning": (
        lambda c, last: struct.pack_into("<2I", c, last + 4, 28, 0),
        "points backwards, to byte 88",
    ),
    "more than it holds": (
        lambda c, last: struct.pack_into("<I", c, last + 8, 4_000_000_000),
        "would unpack to 4.0 GB",
    ),
}


@pytest.mark.parametrize("case", E2E)
def test_a_directory_that_has_no_end_is_refused(tmp_path, capsys, case):
    pytest.importorskip("eyepy", reason="eyepy reads Heidelberg's exports: pip install 'unicorn-monai[heidelberg]'")
    change, told = E2E[case]
    damaged_e2e(tmp_path / "in" / "a.e2e", change)
    assert heidelberg.main([str(tmp_path / "in"), str(tmp_path / "out"), "--keep-original-ids"]) == 1
    assert told in capsys.readouterr().err


def test_a_chain_of_two_chunks_that_bite_their_tails_is_refused(tmp_path):
    content = bytearray(e2e(tmp_path / "a.e2e").read_bytes())
    count = struct.unpack_from("<I", content, 36 + 52 + 36)[0]
    second = len(content)
    chunk = bytearray(content[88 : 88 + 52 + 44])
    struct.pack_into("<I", chunk, 36, 1)
    struct.pack_into("<2I", chunk, 52 + 4, 28, 0)  # behind it comes byte 88
    struct.pack_into("<2I", content, 36 + 52 + 52 + 44 * (count - 1) + 4, second - 60, 0)
    (tmp_path / "a.e2e").write_bytes(content + chunk)
    with pytest.raises(Untaken, match="points backwards, to byte 88"):
        require_ending_directory(tmp_path / "a.e2e")


def test_a_directory_as_it_is_written_is_followed_to_its_end(tmp_path):
    require_ending_directory(e2e(tmp_path / "a.e2e"))


@pytest.mark.parametrize("shares", [(math.nan, 0, 1), (math.inf, 0, 1), (-1, 1, 1), (0, 0, 0)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="expected three shares"):
        split_by_subject(["a", "b", "c"], shares, 0)


@pytest.mark.parametrize("shares", [(1e308, 0, 1e308), (1e-320, 0, 1e-320), (1e308, 1e308, 1e308)])
def test_shares_of_any_size_divide(shares):
    assert len(split_by_subject(list("abcd"), shares, 0)) == 4


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_numbers_that_are_not_finite_are_refused_by_every_option(tmp_path, value, capsys):
    for source, option, numbers in (
        ("volumes", "--split", [value, "0", "1"]),
        ("volumes", "--window", ["0", value]),
        ("dicom", "--spacing-mm", [value, "1"]),
        ("image_folder", "--first-row", [value]),
        ("rgb_folder", "--most-gigabytes", [value]),
        ("phantom", "--split", [value, "0", "1"]),
        ("street_phantom", "--split", [value, "0", "1"]),
        ("home_oct", "--split", [value, "0", "1"]),
        ("spectralis_healthy", "--crop-um", [value]),
    ):
        module = importlib.import_module(f"data_prep.{source}")
        output = [] if "phantom" in source else [str(tmp_path / "out")]
        assert module.main([str(tmp_path), *output, option, *numbers]) == 2
        told = capsys.readouterr().err
        assert f"error: Invalid value for {option}: found {value}; expected a finite number" in told, told
    with pytest.raises(ValueError, match="expected a finite number, or auto"):
        weight_asked(value)


def test_no_option_takes_a_number_that_may_be_none():
    files = [*(ROOT / "data_prep").glob("*.py"), *(ROOT / "benchmarks").glob("*.py"), ROOT / "unicorn_monai" / "cli.py"]
    plain = re.compile(r" type=float|Annotated\[(tuple\[)?(float|int)\b")  # `system.console.Finite` and `Whole` instead
    assert [file.name for file in files if plain.search(file.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("entry", ['"uncertainty_weight": NaN', '"guidance": [Infinity, 1]', '"confidence": 1e999'])
def test_settings_are_finite(entry):
    settings = json.loads(f'{{"labeled": "a", "unlabeled": "b", "output": "c", {entry}}}')
    with pytest.raises(ValueError, match="expected a finite number"):
        Settings.from_dict(settings)


# ---------------------------------------------------------------- what unpacks to too much


def packed(content: bytes, wbits: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return packer.compress(content) + packer.flush()


SIDE = 2000  # 4 MB of one byte each; the limit of these tests is 1 MB
ZEROS = bytes(SIDE * SIDE)
MHA = f"ObjectType = Image\nNDims = 2\nDimSize = {SIDE} {SIDE}\nElementType = MET_UCHAR\nCompressedData = True\n"


def rle(path: Path, **changes) -> Path:
    image = opt(1)
    segment = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 100
    image.Rows, image.Columns, image.NumberOfFrames = SIDE, SIDE, 1
    image.PixelData = encapsulate([changes.pop("frame", segment)])
    image["PixelData"].is_undefined_length = True
    image.file_meta.TransferSyntaxUID = changes.pop("syntax", pydicom.uid.RLELossless)
    for name, value in changes.items():
        setattr(image, name, value)
    return save(image, path)


def deflated(path: Path) -> Path:
    image = opt(1)
    image.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    image.PixelData = ZEROS
    return save(image, path)


def matlab(path: Path) -> Path:
    scipy.io.savemat(path, {"image": np.zeros((SIDE, SIDE), np.uint8)}, do_compression=True)
    return path


def small_mat(path: Path) -> Path:
    """Doubles that are stored as bytes."""
    scipy.io.savemat(path, {"image": np.zeros((SIDE, SIDE))}, do_compression=True)
    return path


def slope(path: Path, itemsize: int = 1, side: int = 400) -> Path:
    image = nib.Nifti1Image(np.zeros((side, side), f"u{itemsize}"), np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, path)
    return path


def pages(path: Path, kind: str) -> Path:
    page = Image.new("L", (200, 200))
    others = [Image.new("L", (200, 200), k) for k in range(1, 30)]
    page.save(path, kind, save_all=True, append_images=others)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def first_page(path: Path) -> object:
    return next(read_pages(path, Namespace(mat_image="image")))


LARGE = {
    "RLE": ("a.dcm", rle, lambda p: require_unpackable_pixels(read_dicom(p))),
    "frames": (
        "b.dcm",
        lambda p: rle(p, Rows=64, Columns=64, NumberOfFrames=2000),
        lambda p: require_unpackable_pixels(read_dicom(p)),
    ),
    "deflated": ("a.dcm", deflated, read_dicom),
    "MHA": ("a.mha", lambda p: written(p, f"{MHA}ElementDataFile = LOCAL\n".encode() + packed(ZEROS, 15)), read_itk),
    "NRRD": (
        "a.nrrd",
        lambda p: written(
            p,
            f"NRRD0004\ntype: uint8\ndimension: 2\nsizes: {SIDE} {SIDE}\nencoding: gzip\n\n".encode()
            + packed(ZEROS, 31),
        ),
        read_itk,
    ),
    "MATLAB": ("a.mat", matlab, load_mat),
    "MATLAB's doubles": ("a.mat", small_mat, load_mat),
    "NIfTI with a slope": ("a.nii.gz", slope, read_array),
    "NIfTI with a slope, its size": ("a.nii.gz", slope, open_nifti),
    "TIFF": ("a.tif", lambda p: pages(p, "TIFF"), first_page),
    "GIF": ("a.png", lambda p: pages(p, "GIF"), first_page),
    "JSON": ("a.json", lambda p: written(p, b"[" + b"[],".ljust(3) * 40_000 + b"0]"), parse_json),
    "XML": ("a.xml", lambda p: written(p, b"<a>" + b"<a/>" * 30_000 + b"</a>"), lambda p: read_surfaces(p, 8, None)),
    "text": ("a.csv", lambda p: written(p, b"1," * 50_000), lambda p: read_surfaces(p, 8, None)),
}


@pytest.mark.parametrize("case", LARGE)
def test_what_unpacks_to_too_much_is_known_before(tmp_path, monkeypatch, case):
    name, make, read = LARGE[case]
    path = make(tmp_path / name)
    monkeypatch.setenv(VARIABLE, "0.001")
    with pytest.raises(ValueError, match=r"would unpack to 0.0 GB; expected at most 0.001 GB. --most-gigabytes 1 of"):
        read(path)
    assert intake.most_bytes() == 1_000_000


def test_the_option_allows_more(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    values = np.stack([bscan(k).T for k in range(3)], axis=2)
    noise = rng.integers(0, 9, values.shape) // 2
    (tmp_path / "in" / "p1").mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.clip(values + noise, 0, 255).astype(np.uint8), np.eye(4)), tmp_path / "in/p1/a.nii.gz")
    monkeypatch.setenv(VARIABLE, "0.000001")
    options = [str(tmp_path / "in"), str(tmp_path / "out"), "--split", "1", "0", "0", "--keep-original-ids"]
    assert volumes.main(options) == 1
    assert "a.nii.gz: file would unpack to 0.0 GB" in capsys.readouterr().err
    options[1] = str(tmp_path / "again")
    assert volumes.main([*options, "--most-gigabytes", "4"]) == 0
    assert intake.most_bytes() == 4_000_000_000


@pytest.mark.parametrize("text", ["nan", "-1", "0", "much"])
def test_a_limit_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ValueError, match="expected a positive number"):
        intake.most_bytes()


def test_a_packed_frame_of_another_size_is_refused(tmp_path):
    for kind, syntax in (("JPEG", pydicom.uid.JPEGBaseline8Bit), ("JPEG2000", pydicom.uid.JPEG2000Lossless)):
        stream = io.BytesIO()
        Image.new("L", (300, 200)).save(stream, kind)
        assert codestream_size(stream.getvalue()) == (200, 300)
        dataset = read_dicom(rle(tmp_path / "a.dcm", frame=stream.getvalue(), syntax=syntax, Rows=64, Columns=64))
        with pytest.raises(ValueError, match=r"found a packed frame of \(200, 300\)"):
            require_unpackable_pixels(dataset)
        require_unpackable_pixels(
            read_dicom(rle(tmp_path / "a.dcm", frame=stream.getvalue(), syntax=syntax, Rows=200, Columns=300))
        )


@pytest.mark.parametrize("length", [2**31 - 16, -8, 0, 4])
def test_an_extension_that_does_not_end_is_refused(tmp_path, length):
    header = nib.Nifti1Header()
    header.set_data_shape((8, 8))
    header["vox_offset"], header["magic"] = 384, b"n+1"
    content = header.binaryblock + b"\1\0\0\0" + struct.pack("<2i", length, 6) + bytes(300)
    with pytest.raises(Untaken, match="an extension of its header that does not end"):
        open_nifti(written(tmp_path / "a.nii.gz", packed(content, 31)))


def test_a_file_that_says_it_is_larger_than_it_is_is_refused_by_what_it_says(tmp_path, capsys):
    path = vol(tmp_path / "in" / "a.vol")
    content = bytearray(path.read_bytes())
    struct.pack_into("<3I", content, 12, 1000, 1000, 2900)
    path.write_bytes(content)
    os.truncate(path, 12_000_000_000)  # takes no place on the disk
    assert heidelberg.main([str(tmp_path / "in"), str(tmp_path / "out"), "--keep-original-ids"]) == 1
    assert "would unpack to 23" in capsys.readouterr().err


def test_many_pages_are_not_counted_to_their_end(tmp_path):
    entries = [(256, 3, 8), (257, 3, 8), (258, 3, 8), (262, 3, 1), (273, 4, 8), (279, 4, 64)]
    directory = struct.pack("<H", 6) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries
    )
    content = b"II*\0" + struct.pack("<I", 72) + bytes(64)
    for _ in range(6000):
        content += directory + struct.pack("<I", len(content) + len(directory) + 4)
    with pytest.raises(ValueError, match="holds more than 5000 pages"):
        first_page(written(tmp_path / "a.tif", content))


def test_a_list_of_tensors_is_short(tmp_path):
    save_weights(nn.Linear(2, 2), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as old, zipfile.ZipFile(tmp_path / "a.pt", "w") as new:
        for member in old.infolist():
            long = b"\x80\x02" + b"](" * 2_500_000 + b"." if member.filename.endswith("data.pkl") else old.read(member)
            new.writestr(member.filename, long)
    with pytest.raises(ValueError, match="its list of tensors has 5000003 bytes"):
        load_tensors_only(tmp_path / "a.pt")


def test_containers_that_hold_each_other_many_times_are_looked_at_once(tmp_path):
    nested: list = [torch.zeros(1)]
    for _ in range(60):
        nested = [nested, nested]
    torch.save({"a": nested}, tmp_path / "a.pt")
    assert "a" in load_tensors_only(tmp_path / "a.pt")


def test_a_header_of_safetensors_is_short(tmp_path):
    text = json.dumps({"__metadata__": {"a": "x" * 11_000_000}}).encode()
    path = written(tmp_path / "a.safetensors", struct.pack("<Q", len(text)) + text)
    for read in (read_tensors, description_in):
        with pytest.raises(Untaken, match="its header has 110000"):
            read(path)


@pytest.mark.parametrize("text", [b'{"a": "' + b" " * 11_000_000 + b'"}', b"[" * 800 + b"]" * 800])
def test_a_configuration_is_written_by_people(tmp_path, text):
    bundle = install("retinal_unet", tmp_path)
    (bundle / "configs" / "more.json").write_bytes(text)
    findings(bundle)


def test_a_log_of_blanks_is_read_in_time(tmp_path):
    bundle = install("retinal_unet", tmp_path)
    (bundle / "configs" / "logging.conf").write_text("class=" + " " * 1_000_000 + "x\n")
    assert any("logs to something else" in line for line in findings(bundle))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system tells its memory otherwise")
def test_more_memory_than_allowed_is_an_error(monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.5")
    with bounded_memory(), pytest.raises(MemoryError):
        np.ones(3_000_000_000, np.uint8)
    assert np.ones(100_000_000, np.uint8).size
