"""What a stored pixel value means is what the file says, by one rule for all formats; else it is refused."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit

from data_prep import dicom, image_folder, rgb_folder, volumes
from oct_files import COLUMNS, ROWS, bscan, label_map, nifti, opt, picture, save, single_frame
from unicorn_monai.data.checks import problems
from unicorn_monai.data.items import datalist
from unicorn_monai.images.files import open_picture, read_array

DATA = Path(os.environ.get("UNICORN_DATA", Path(__file__).parents[3] / "shared" / "data"))
SAME = ("--size", str(ROWS), str(COLUMNS), "--split", "1", "0", "0")
SECONDARY = "1.2.840.10008.5.1.4.1.1.7"


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("UNICORN_KEY_FILE", str(tmp_path / "keys" / "key"))


def converted(source, root: Path, *options: str) -> list[np.ndarray]:
    assert source.main([str(root), str(root.parent / "out"), *SAME, *options]) == 0
    return [read_array(item["image"]) for item in datalist(root.parent / "out", "training")]


def refused(source, root: Path, *options: str) -> bool:
    return source.main([str(root), str(root.parent / "refused"), *SAME, *options]) == 1


def values(scale: int = 16) -> np.ndarray:
    """Three B-scans of 12 bits, as a device stores them."""
    return np.stack([bscan(k) for k in range(3)]).astype("<u2") * scale


def of_bits(array: np.ndarray, stored: int = 16, **changes) -> Dataset:
    """A DICOM volume of values in 16 bits."""
    image = opt(array=np.zeros(array.shape, np.uint8))
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, stored, stored - 1
    image.PixelRepresentation = int(array.dtype.kind == "i")
    image.PixelData = array.tobytes()
    for key, value in changes.items():
        setattr(image, key, value)
    return image


def item(**entries) -> Dataset:
    dataset = Dataset()
    for key, value in entries.items():
        setattr(dataset, key, value)
    return dataset


# ---------------------------------------------------------------- DICOM: windows


WINDOWS = {
    "LINEAR": (None, lambda x: (x - 2047.5) / 4095 + 0.5),
    "LINEAR_EXACT": ("LINEAR_EXACT", lambda x: (x - 2048) / 4096 + 0.5),
    "SIGMOID": ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 2048) / 4096))),
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("place", ["image", "frame", "shared"])
def test_the_window_that_a_dicom_file_states_is_used(tmp_path, name, place):
    function, curve = WINDOWS[name]
    window = item(WindowCenter=2048, WindowWidth=4096, **({"VOILUTFunction": function} if function else {}))
    image = of_bits(values())
    if place == "image":
        image.update(window)
    elif place == "shared":
        image.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence = Sequence([window])
    else:
        for frame in image.PerFrameFunctionalGroupsSequence:
            frame.FrameVOILUTSequence = Sequence([window])
    save(image, tmp_path / "in" / "a.dcm")
    for found, stored in zip(converted(dicom, tmp_path / "in"), values(), strict=True):
        expected = np.clip(255 * curve(stored.astype(float)), 0, 255)
        np.testing.assert_allclose(found, expected, atol=1)


def test_of_several_windows_the_first_counts(tmp_path):
    save(of_bits(values(), WindowCenter=[2048, 100], WindowWidth=[4096, 20]), tmp_path / "in" / "a.dcm")
    for k, found in enumerate(converted(dicom, tmp_path / "in")):
        np.testing.assert_allclose(found, bscan(k), atol=1)


def test_a_table_of_grey_levels_is_used(tmp_path):
    table = item(LUTDescriptor=[4096, 0, 8], LUTData=(255 - np.arange(4096, dtype="<u2") // 16).tobytes())
    save(of_bits(values(), VOILUTSequence=Sequence([table])), tmp_path / "in" / "a.dcm")
    for k, found in enumerate(converted(dicom, tmp_path / "in")):
        np.testing.assert_array_equal(found, 255 - bscan(k))


def test_values_are_rescaled_before_they_meet_a_window(tmp_path):
    stored = of_bits(values(), RescaleSlope=0.5, RescaleIntercept=-100, WindowCenter=924, WindowWidth=2048)
    save(stored, tmp_path / "in" / "a.dcm")
    stated = converted(dicom, tmp_path / "in")
    assert dicom.main([str(tmp_path / "in"), str(tmp_path / "b"), *SAME, "--window", "-100", "1947"]) == 0
    for k, (one, two) in enumerate(zip(stated, datalist(tmp_path / "b", "training"), strict=True)):
        np.testing.assert_allclose(one, bscan(k), atol=1)
        np.testing.assert_allclose(read_array(two["image"]), bscan(k), atol=1)


@pytest.mark.parametrize(
    ("array", "stored"),
    [(values(16), 12), (values(256), 16), ((values(16).astype("<i2") - 2048).astype("<i2"), 12)],
    ids=["12 bits", "16 bits", "signed"],
)
def test_without_a_window_the_bits_stored_are_the_range(tmp_path, array, stored):
    save(of_bits(array, stored), tmp_path / "in" / "a.dcm")
    for k, found in enumerate(converted(dicom, tmp_path / "in")):
        np.testing.assert_allclose(found, bscan(k), atol=1)


@pytest.mark.parametrize(
    ("array", "stored", "suggested"),
    [
        (values(16), 16, "--window 0 4095"),
        (values(4), 16, "--window 0 1023"),
        (values(4), 14, "--window 0 1023"),
        (values(16).astype("<i2"), 16, "--window 0 4095"),
        (values(1) + 60000, 16, "--window 60005 60175"),
    ],
    ids=["12 bits in 16", "10 in 16", "10 in 14", "signed, all of them positive", "8 above an offset"],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_small_part_of_the_range_is_refused(tmp_path, array, stored, suggested, photometric, capsys):
    save(of_bits(array, stored, PhotometricInterpretation=photometric), tmp_path / "in" / "a.dcm")
    assert refused(dicom, tmp_path / "in")
    error = capsys.readouterr().err
    assert "of 256 grey levels of the range that they are stored with; expected at least 64" in error
    assert suggested in error
    assert dicom.main([str(tmp_path / "in"), str(tmp_path / "b"), *SAME, *suggested.split()]) == 0


@pytest.mark.parametrize("window", [{"WindowWidth": 0}, {"VOILUTFunction": "CUBIC"}, {"WindowWidth": 1}])
def test_a_window_that_is_none_is_refused(tmp_path, window, capsys):
    save(of_bits(values(), **({"WindowCenter": 2048, "WindowWidth": 4096} | window)), tmp_path / "in" / "a.dcm")
    assert refused(dicom, tmp_path / "in")
    assert "Give --window LOW HIGH" in capsys.readouterr().err


def test_files_of_different_windows_are_told(tmp_path, capsys):
    for number, width in ((1, 4096), (2, 3000)):
        image = single_frame(number, "1.2.3", WindowCenter=width // 2, WindowWidth=width)
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.PixelData = values()[number].tobytes()
        save(image, tmp_path / "in" / f"{number}.dcm")
    converted(dicom, tmp_path / "in")
    assert "the files state 2 different windows of their values" in capsys.readouterr().out


def test_8_bits_stay_as_they_are(tmp_path):
    save(opt(WindowCenter=40, WindowWidth=80), tmp_path / "in" / "a.dcm")
    for k, found in enumerate(converted(dicom, tmp_path / "in")):
        np.testing.assert_array_equal(found, bscan(k))


# ---------------------------------------------------------------- DICOM: padding


@pytest.mark.parametrize("limit", [None, 4095, 4000], ids=["one value", "a range", "a range downwards"])
def test_padding_is_no_part_of_the_image(tmp_path, limit):
    array = values()
    array[:, :, :6] = 4090 if limit else 4095
    image = of_bits(array, 12, PixelPaddingValue=4080 if limit == 4095 else 4095)
    if limit:
        image.PixelPaddingRangeLimit = limit
    save(image, tmp_path / "in" / "a.dcm")
    save(label_map(opt_of(image)), tmp_path / "in" / "s.dcm")
    for k, found in enumerate(converted(dicom, tmp_path / "in")):
        assert (found[:, :6] == 0).all()
        np.testing.assert_allclose(found[:, 6:], bscan(k)[:, 6:], atol=1)
    for entry in datalist(tmp_path / "out", "training"):
        drawn = read_array(entry["label"])
        assert (drawn[:, :6] == 255).all()
        assert (drawn[:, 6:] != 255).all()


def opt_of(image: Dataset) -> Dataset:
    """The image itself: label objects refer to its identifier and the number of its frames."""
    return image


# ---------------------------------------------------------------- other formats


def png(path: Path, array: np.ndarray, colour: int) -> None:
    """A PNG of 16 bits, (rows, columns, channels): Pillow writes none of colours."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    head = struct.pack(">2I5B", array.shape[1], array.shape[0], 16, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def tiff(path: Path, array: np.ndarray) -> None:
    """An uncompressed TIFF of 16-bit colours."""
    rows, columns, channels = array.shape
    entries = [(256, 4, 1, columns), (257, 4, 1, rows), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 256), (277, 3, 1, channels), (278, 4, 1, rows), (279, 4, 1, array.size * 2)]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(struct.pack("<2H2I", *e) for e in entries)
    head = head.ljust(200, b"\0") + struct.pack("<3H", 16, 16, 16)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head.ljust(256, b"\0") + array.astype("<u2").tobytes())


def sixteen(path: Path, kind: str) -> Path:
    """A picture of 12-bit values in 16-bit channels."""
    array = np.repeat((bscan().astype(np.uint16) * 16)[..., None], {"LA": 2, "RGBA": 4}.get(kind, 3), axis=2)
    if kind == "TIFF":
        tiff(path, array)
    elif kind == "PPM":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P6\n%d %d\n65535\n" % (COLUMNS, ROWS) + array.astype(">u2").tobytes())
    else:
        array[..., -1] = 65535 if kind in ("LA", "RGBA") else array[..., -1]
        png(path, array, {"RGB": 2, "LA": 4, "RGBA": 6}[kind])
    return path


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "LA", "TIFF", "PPM"])
def test_no_colour_of_16_bits_is_read_as_8(tmp_path, kind):
    path = sixteen(tmp_path / "a.png", kind)
    for reader in (open_picture, read_array):
        with pytest.raises(ValueError, match=r"it has 16 bits in each of its channels, of which 8 would be read"):
            reader(path)


@pytest.mark.parametrize("options", [(), ("--window", "0", "4095")], ids=["", "window"])
@pytest.mark.parametrize("source", [image_folder, rgb_folder], ids=["image_folder", "rgb_folder"])
def test_a_converter_refuses_colours_of_16_bits(tmp_path, source, options, capsys):
    sixteen(tmp_path / "in" / "p" / "a.png", "RGB")
    more = options if source is image_folder else ("--size", "64", "64")
    assert refused(source, tmp_path / "in", *more)
    assert "it has 16 bits in each of its channels" in capsys.readouterr().err


def test_grey_of_16_bits_needs_a_window_in_every_format(tmp_path, capsys):
    picture(tmp_path / "png" / "p" / "a.png", values()[0].astype(np.uint16))
    picture(tmp_path / "tiff" / "p" / "a.tif", values()[0].astype(np.uint16))
    nifti(tmp_path / "nifti" / "p" / "a.nii", values().transpose(2, 1, 0))
    found = []
    for name in ("png", "tiff", "nifti"):
        source = volumes if name == "nifti" else image_folder
        assert source.main([str(tmp_path / name), str(tmp_path / f"r{name}"), *SAME]) == 1
        assert "--window 0 4095" in capsys.readouterr().err
        assert source.main([str(tmp_path / name), str(tmp_path / f"o{name}"), *SAME, "--window", "0", "4095"]) == 0
        found.append(read_array(datalist(tmp_path / f"o{name}", "training")[0]["image"]))
    for image in found:
        np.testing.assert_allclose(image, bscan(), atol=1)


def test_shares_of_white_that_use_a_small_part_are_refused(tmp_path, capsys):
    array = (values() / 65535).astype(np.float32).transpose(2, 1, 0)
    nifti(tmp_path / "in" / "p" / "a.nii", array)
    assert refused(volumes, tmp_path / "in")
    error = capsys.readouterr().err
    assert "float32 values 0.001" in error
    assert "of 256 grey levels" in error


def test_a_data_set_of_few_grey_levels_is_noticed(tmp_path):
    for k in range(3):
        picture(tmp_path / "in" / f"p{k}" / "a.png", bscan(k) // 16)
    converted(image_folder, tmp_path / "in")
    assert [str(p) for p in problems(tmp_path / "out") if p.field == "pixels"] == [
        "warning: dataset.json: pixels: found no grey levels but 0 to 10; expected at least 64 of 256 in all images "
        "together. Convert again with `--window`."
    ]


# ---------------------------------------------------------------- JPEG


def jpeg(mode: str = "L", progressive: bool = False) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)[: 2 + (mode == "RGB")], dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=90, progressive=progressive)
    return buffer.getvalue()


def claiming(content: bytes, rows: int, columns: int) -> bytes:
    """A JPEG file whose header states another size than its data fill."""
    place = content.index(b"\xff\xc2" if b"\xff\xc2" in content else b"\xff\xc0") + 5
    return content[:place] + struct.pack(">2H", rows, columns) + content[place + 4 :]


@pytest.mark.parametrize("size", [(9900, 9900), (640, 640), (128, 96)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_of_fewer_data_than_pixels_is_refused(tmp_path, size, mode, progressive):
    (tmp_path / "a.jpg").write_bytes(claiming(jpeg(mode, progressive), *size))
    with pytest.raises(ValueError, match=r"it states 9900 x 9900 pixels, of which \d+ bytes|its data end at row"):
        open_picture(tmp_path / "a.jpg")


def test_a_cut_jpeg_in_a_dicom_file_is_refused(tmp_path, capsys):
    image = single_frame(1, "1.2.3", Rows=128, Columns=96)
    image.PixelData = encapsulate([claiming(jpeg(), 128, 96)])
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    save(image, tmp_path / "in" / "a.dcm")
    assert refused(dicom, tmp_path / "in")
    assert "PixelData: frame 1 is cut off: its data end at row" in capsys.readouterr().err


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_jpeg_of_one_colour_is_whole(tmp_path, value):
    Image.fromarray(np.full((3000, 3000), value, np.uint8)).save(tmp_path / "a.jpg", optimize=True, progressive=True)
    with open_picture(tmp_path / "a.jpg") as opened:
        assert opened.size == (3000, 3000)


def test_a_cut_jpeg_is_left_out_and_told(tmp_path, capsys):
    picture(tmp_path / "in" / "p" / "a.jpg")
    (tmp_path / "in" / "p" / "b.jpg").write_bytes(claiming(jpeg(), 128, 96))
    assert len(converted(image_folder, tmp_path / "in")) == 1
    assert "p/b.jpg: its data end at row" in capsys.readouterr().out


@pytest.mark.skipif(not (DATA / "real_shifts").is_dir(), reason=f"real pictures not found in {DATA}; set UNICORN_DATA")
def test_real_pictures_raise_no_false_alarm(tmp_path):
    pictures = sorted((DATA / "real_shifts").rglob("*.jpg"))[::4]
    assert len(pictures) > 100
    for path in pictures:
        open_picture(path).close()
