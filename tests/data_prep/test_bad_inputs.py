"""The corpus of bad inputs: each is handled right, or left out or refused by name; none passes in silence.

`FILES` are fed to the converters, `SETS` to the check of a finished data set, `STATES` are states of the machine.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from data_prep import dicom, heidelberg, image_folder, volumes
from data_prep.check import main as check_main
from oct_files import (
    bscan,
    label,
    label_map,
    nifti,
    opt,
    picture,
    save,
    single_frame,
    surface_segmentation,
    surfaces,
    vol,
)
from unicorn_monai.data.checks import problems
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import HEADER, SPLITS, read_header
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.images.files import read_array

SOURCES = {"image_folder": image_folder, "volumes": volumes, "dicom": dicom, "heidelberg": heidelberg}
FOUR = {"0": "vitreous", "1": "inner", "2": "outer", "3": "choroid"}


class Case(NamedTuple):
    """What is written into INPUT, how it is converted, and what has to come out.

    outcome: "refused" (exit status 1, nothing written), "skipped" (told, the rest is converted) or "handled".
    """

    source: str
    write: Callable[[Path], Any]
    outcome: str
    message: str
    options: tuple[str, ...] = ()


# ---------------------------------------------------------------- image folders


def folder(root: Path, **changes: np.ndarray | None) -> Path:
    """Three good images with label images of patient p1; single ones replaced."""
    for k in range(3):
        picture(root / f"images/p1/{k}.png", bscan(k))
        picture(root / f"labels/p1/{k}.png", label(k))
    for name, array in changes.items():
        kind, number = name.split("_")
        picture(root / f"{kind}/p1/{number}.png", array)
    return root


def replaced(root: Path, name: str, content: bytes) -> None:
    folder(root)
    (root / name).write_bytes(content)


def cut(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def damaged(root: Path, name: str) -> None:
    folder(root)
    cut(root / name)


def with_csv(root: Path, text: str) -> None:
    """One image with surfaces as text."""
    picture(root / "images/p1/0.png", bscan(0))
    (root / "labels/p1").mkdir(parents=True)
    (root / "labels/p1/0.csv").write_text(text)


def table(rows: np.ndarray) -> str:
    return "\n".join(",".join(map(str, line)) for line in rows.T)


def crossing(root: Path) -> None:
    with_csv(root, table(surfaces(0)[::-1]))


def partly_crossing(root: Path) -> None:
    rows = surfaces(0)
    rows[1, 4:6] = 5
    with_csv(root, table(rows))


def holes(root: Path) -> None:
    rows = surfaces(0).astype(object)
    rows[1, 4:9] = ""
    rows[2, 20:24] = "NaN"
    rows[0, 30] = 3.4e38
    with_csv(root, table(rows))


def link_out(root: Path) -> None:
    folder(root)
    outside = picture(root.parent / "outside.png", bscan(9))
    (root / "images/p1/9.png").symlink_to(outside)


def huge_png(root: Path) -> None:
    """A valid header of 20,000 x 10,000 pixels with hardly any data."""
    folder(root)
    path = picture(root / "images/p1/1.png", np.zeros((8, 8), np.uint8))
    content = bytearray(path.read_bytes())
    content[16:24] = (20_000).to_bytes(4, "big") + (10_000).to_bytes(4, "big")
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


def same_names(root: Path) -> None:
    for p in ("p1", "p2", "p3"):
        picture(root / f"images/{p}/scan.png", bscan(int(p[1])))


def strange_names(root: Path) -> None:
    for k, name in enumerate(("Zoë Müller", "名前", " blank ")):
        picture(root / f"images/{name}/œil droit {k}.png", bscan(k))


def white_band(root: Path) -> None:
    image = bscan(0)
    image[:12, 5:9] = 255
    folder(root, images_0=image)


def twice_the_label(root: Path) -> None:
    folder(root)
    (root / "labels/p1/1.csv").write_text(table(surfaces(1)))


def rgba(alpha: int) -> np.ndarray:
    grey = bscan(0)
    return np.dstack([grey, grey, grey, np.full_like(grey, alpha)])


def palette(root: Path) -> None:
    folder(root)
    Image.fromarray(bscan(0)).convert("P").save(root / "images/p1/0.png")


def mat(root: Path, content: dict) -> None:
    from scipy.io import savemat

    picture(root / "images/p1/0.png", bscan(0))
    (root / "labels/p1").mkdir(parents=True)
    savemat(root / "labels/p1/0.mat", content)


def iowa(root: Path, n: int) -> None:
    for k in range(2):
        picture(root / f"images/p1/{k}.png", bscan(k))
    write_iowa(root / "labels/p1.xml", n)


def write_iowa(path: Path, n: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for name, index in (("ILM (ILM)", 0), ("middle (M)", 1), ("outer (O)", 2)):
        scans = "".join(
            "<bscan>" + "".join(f"<y>{y:.3f}</y>" for y in surfaces(k)[index]) + "</bscan>" for k in range(n)
        )
        parts.append(f"<surface><label>{index}</label><name>{name}</name>{scans}</surface>")
    missing = "<undefined_region><ascan><x>3</x><z>1</z></ascan></undefined_region>"
    size = f"<surface_size><x>32</x><z>{n}</z></surface_size>"
    path.write_text(f"<?xml version='1.0'?><surfaces>{size}{''.join(parts)}{missing}</surfaces>")


L = ("--labels", "FOUR")
IMAGES = {
    "truncated PNG": Case(
        "image_folder", lambda r: damaged(r, "images/p1/1.png"), "skipped", r"1\.png: image: found no readable image", L
    ),
    "empty PNG": Case(
        "image_folder", lambda r: replaced(r, "images/p1/1.png", b""), "skipped", r"1\.png: image: found no readable", L
    ),
    "text called PNG": Case(
        "image_folder",
        lambda r: replaced(r, "images/p1/1.png", b"hello"),
        "skipped",
        r"1\.png: image: found no readable",
        L,
    ),
    "truncated label": Case(
        "image_folder",
        lambda r: damaged(r, "labels/p1/1.png"),
        "skipped",
        r"label: found no readable image '1\.png'",
        L,
    ),
    "16 bits without a window": Case(
        "image_folder",
        lambda r: folder(r, images_1=bscan(1).astype(np.uint16) * 16),
        "skipped",
        r"found uint16 values .*--window 0 4095",
        L,
    ),
    "16 bits with a window": Case(
        "image_folder",
        lambda r: folder(r, images_1=bscan(1).astype(np.uint16) * 16),
        "handled",
        "3 images",
        (*L, "--window", "0", "4095"),
    ),
    "1-bit image": Case("image_folder", lambda r: folder(r, images_1=bscan(1) > 80), "skipped", "one bit per pixel", L),
    "palette image": Case("image_folder", palette, "handled", "3 images", L),
    "opaque RGBA": Case("image_folder", lambda r: folder(r, images_0=rgba(255)), "handled", "3 images", L),
    "transparent RGBA": Case(
        "image_folder",
        lambda r: folder(r, images_0=rgba(100)),
        "skipped",
        "transparent pixels; expected an opaque image",
        L,
    ),
    "colours drawn in": Case(
        "image_folder",
        lambda r: folder(r, images_0=np.dstack([bscan(0), bscan(1), bscan(2)])),
        "skipped",
        "found colours; expected grey",
        L,
    ),
    "constant image": Case(
        "image_folder",
        lambda r: folder(r, images_0=np.full((40, 32), 7, np.uint8)),
        "skipped",
        "found a constant image",
        L,
    ),
    "white band": Case("image_folder", white_band, "handled", "label 255 ignore", L),
    "200 megapixels": Case("image_folder", huge_png, "skipped", r"1\.png: .*(megapixels|exceeds limit)", L),
    "JPEG label": Case(
        "image_folder",
        lambda r: (folder(r), (r / "labels/p1/1.png").unlink(), picture(r / "labels/p1/1.jpg", label(1))),
        "skipped",
        r"'1\.jpg' is lossy \(JPEG\)",
        L,
    ),
    "JPEG called PNG as label": Case(
        "image_folder",
        lambda r: (folder(r), picture(r / "labels/p1/1.png", label(1), format="JPEG")),
        "skipped",
        r"'1\.png' is lossy",
        L,
    ),
    "label value unknown": Case(
        "image_folder",
        lambda r: folder(r, labels_1=label(1) * 60),
        "skipped",
        r"label values: found \[60, 120, 180\]",
        L,
    ),
    "label of 255": Case(
        "image_folder",
        lambda r: folder(r, labels_1=np.where(label(1) == 3, 255, label(1)).astype(np.uint8)),
        "handled",
        "label 255 ignore",
        L,
    ),
    "label of other shape": Case(
        "image_folder",
        lambda r: folder(r, labels_1=label(1)[:-1]),
        "skipped",
        r"label: found shape \(39, 32\); expected that of the image",
        L,
    ),
    "label in colours": Case(
        "image_folder",
        lambda r: folder(r, labels_1=np.dstack([label(1)] * 3)),
        "skipped",
        r"expected one channel\. Convert colours",
        L,
    ),
    "label image without names": Case("image_folder", folder, "refused", "say with --labels FILE what its values mean"),
    "two label files": Case(
        "image_folder", twice_the_label, "skipped", r"found \['1\.png', '1\.csv'\]; expected one", L
    ),
    "mixed sizes": Case(
        "image_folder", lambda r: folder(r, images_1=bscan(1)[:30], labels_1=label(1)[:30]), "handled", "3 images", L
    ),
    "no image at all": Case(
        "image_folder", lambda r: (r / "notes.txt").write_text("nothing"), "refused", "holds no file that ends in"
    ),
    "no subject": Case(
        "image_folder",
        lambda r: [picture(r / f"{k}.png", bscan(k)) for k in range(3)],
        "refused",
        "subject: the file names none.*--subject-pattern",
    ),
    "pattern that fits nothing": Case(
        "image_folder", folder, "refused", "--subject-pattern finds nothing", (*L, "--subject-pattern", r"x(\d+)")
    ),
    "pattern without group": Case(
        "image_folder", folder, "refused", r"put \(\.\.\.\) around the subject", (*L, "--subject-pattern", "p1")
    ),
    "one subject for three splits": Case(
        "image_folder", folder, "refused", "1 subjects cannot fill 3 splits", (*L, "--split", "0.7", "0.1", "0.2")
    ),
    "same names in other folders": Case(
        "image_folder", same_names, "handled", r"3 images .*3 subjects", ("--split", "1", "0", "0")
    ),
    "names in other scripts and blanks": Case(
        "image_folder", strange_names, "handled", r"3 images .*3 subjects", ("--split", "1", "0", "0")
    ),
    "link out of the folder": Case("image_folder", link_out, "refused", r"9\.png' is a link that leads out", L),
    "surfaces upside down": Case("image_folder", crossing, "refused", r"surfaces cross in 100\.0% of the columns"),
    "a few crossings": Case(
        "image_folder", partly_crossing, "handled", r"crossing surfaces repaired in 6\.25% of the columns"
    ),
    "missing columns": Case("image_folder", holes, "handled", "label 255 ignore"),
    "surfaces in micrometres": Case(
        "image_folder", lambda r: with_csv(r, table(surfaces(0) * 3.87)), "refused", r"Are they micrometres"
    ),
    "surfaces of another width": Case(
        "image_folder", lambda r: with_csv(r, table(surfaces(0, 30))), "refused", "found 30 columns; expected 32"
    ),
    "ragged table": Case("image_folder", lambda r: with_csv(r, "1,2\n3,4,5\n"), "refused", r"lines of \[2, 3\] values"),
    "decimal commas": Case(
        "image_folder",
        lambda r: with_csv(r, "1,5;2,5\n1,5;2,5\n"),
        "refused",
        "holds what is no number.*decimals need a point",
    ),
    "empty table": Case(
        "image_folder", lambda r: with_csv(r, "\n"), "refused", "is empty; expected one line per A-scan"
    ),
    "two variables in .mat": Case(
        "image_folder",
        lambda r: mat(r, {"a": surfaces(0), "b": surfaces(1)}),
        "refused",
        "say which variable with --mat-surfaces",
    ),
    "text called .mat": Case(
        "image_folder",
        lambda r: (mat(r, {}), (r / "labels/p1/0.mat").write_text("no")),
        "refused",
        r"expected a MATLAB file, saved with -v7",
    ),
    "Iowa XML of other length": Case(
        "image_folder", lambda r: iowa(r, 3), "refused", r"holds \[3\] B-scans; expected 2"
    ),
    "Iowa XML cut off": Case(
        "image_folder", lambda r: (iowa(r, 2), cut(r / "labels/p1.xml")), "refused", r"'p1\.xml' is no XML"
    ),
}


# ---------------------------------------------------------------- volumes


def volume_set(root: Path, **options: Any) -> Path:
    return nifti(root / "p1/a.nii.gz", **options)


def two_spacings(root: Path) -> None:
    nifti(root / "p1/a.nii.gz", spacing=(0.012, 0.004, 0.1))
    nifti(root / "p2/a.nii.gz", np.stack([bscan(k + 5).T for k in range(3)], axis=2), spacing=(0.006, 0.002, 0.1))


def nan_volume() -> np.ndarray:
    array = np.stack([bscan(k).T for k in range(3)], axis=2).astype(np.float32)
    array[3, 3, 1] = np.nan
    return array


def zooms(root: Path, values: list[float]) -> None:
    """Write a spacing that nibabel itself would refuse."""
    path = volume_set(root)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[76 + 4 : 76 + 16] = np.array(values, "<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))


def promises_more(root: Path) -> None:
    """A header that speaks of 30,000 x 30,000 x 30,000 voxels."""
    path = volume_set(root)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = np.array([30_000] * 3, "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(content)))


def labelled_volume(root: Path, values: np.ndarray) -> None:
    nifti(root / "images/p1/a.nii.gz")
    nifti(root / "labels/p1/a.nii.gz", values)


def mha(root: Path, header: str, data: bytes | None = None) -> None:
    (root / "p1").mkdir(parents=True)
    data = np.stack([bscan(k) for k in range(2)]).tobytes() if data is None else data
    (root / "p1/a.mha").write_bytes(header.encode() + b"ElementDataFile = LOCAL\n" + data)


MHA = "ObjectType = Image\nNDims = 3\nDimSize = 32 40 2\nElementType = MET_UCHAR\nElementSpacing = 0.012 0.004 0.12\n"
VOLUMES = {
    "truncated NIfTI": Case("volumes", lambda r: cut(volume_set(r)), "refused", r"found no readable volume"),
    "empty NIfTI": Case("volumes", lambda r: volume_set(r).write_bytes(b""), "refused", "found no readable volume"),
    "text called NIfTI": Case(
        "volumes", lambda r: volume_set(r).write_bytes(gzip.compress(b"x" * 500)), "refused", "found no readable volume"
    ),
    "NIfTI with NaN": Case(
        "volumes", lambda r: volume_set(r, array=nan_volume()), "refused", "pixels: found NaN or infinite values"
    ),
    "NIfTI with infinity": Case(
        "volumes",
        lambda r: volume_set(r, array=np.where(np.isnan(nan_volume()), np.inf, nan_volume())),
        "refused",
        "NaN or infinite",
    ),
    "NIfTI of NaN spacing": Case(
        "volumes",
        lambda r: zooms(r, [np.nan, 0.004, 0.1]),
        "refused",
        "spacing: found .*expected finite and positive|no readable volume",
    ),
    "NaN spacing, but told": Case(
        "volumes",
        lambda r: zooms(r, [np.nan, 0.004, 0.1]),
        "handled",
        r"spacing \[0\.004, 0\.012\]",
        ("--spacing-mm", "0.004", "0.012", "--size", "40", "32"),
    ),
    "NIfTI of spacing 0": Case(
        "volumes", lambda r: zooms(r, [0.0, 0.0, 0.0]), "handled", "note: no spacing: give --spacing-mm"
    ),
    "volumes of mixed spacing": Case(
        "volumes",
        two_spacings,
        "handled",
        r"6 images .*spacing \[0\.003, 0\.009\] mm \(axial, lateral; median\)",
        ("--size", "40", "32"),
    ),
    "NIfTI without spacing": Case(
        "volumes", lambda r: volume_set(r, spacing=(1, 1, 1)), "handled", "note: no spacing: give --spacing-mm"
    ),
    "NIfTI in micrometres": Case(
        "volumes",
        lambda r: volume_set(r, spacing=(12, 4, 120), unit="micron"),
        "handled",
        r"spacing \[0\.004, 0\.012\] mm",
        ("--size", "40", "32"),
    ),
    "NIfTI that promises too much": Case("volumes", promises_more, "refused", "would unpack to 27,000.0 GB; expected"),
    "wrong axes": Case("volumes", lambda r: volume_set(r), "handled", "images transposed", ("--axes", "dab")),
    "axes that are none": Case(
        "volumes", volume_set, "refused", r"--axes 'xyz': expected the letters", ("--axes", "xyz")
    ),
    "label volume of other shape": Case(
        "volumes",
        lambda r: labelled_volume(r, np.zeros((32, 39, 3), np.uint8)),
        "refused",
        r"label: found shape \(32, 39, 3\)",
        L,
    ),
    "label template out of INPUT": Case(
        "volumes",
        lambda r: (volume_set(r), nifti(r.parent / "x.nii.gz")),
        "refused",
        "lies outside INPUT; refused",
        (*L, "--label", "../x.nii.gz"),
    ),
    "label between values": Case(
        "volumes",
        lambda r: labelled_volume(r, np.full((32, 40, 3), 0.5, np.float32)),
        "refused",
        r"label values: found \[0\.5\]",
        L,
    ),
    "MHA": Case("volumes", lambda r: mha(r, MHA), "handled", r"2 images .*"),
    "MHA cut off": Case("volumes", lambda r: mha(r, MHA, b"12"), "refused", "found no readable volume"),
    "MHA without sizes": Case(
        "volumes", lambda r: mha(r, "ObjectType = Image\n"), "refused", "found NDims '' and DimSize ''"
    ),
}


# ---------------------------------------------------------------- DICOM and Heidelberg


def dicom_of(root: Path, **changes: Any) -> Path:
    return save(opt(**changes), root / "a.dcm")


def with_cut_pixels(root: Path) -> None:
    image = opt()
    image.PixelData = image.PixelData[:100]
    save(image, root / "a.dcm")


def without(root: Path, keyword: str) -> None:
    image = opt()
    delattr(image, keyword)
    save(image, root / "a.dcm")


def two_devices(root: Path) -> None:
    save(opt(), root / "a.dcm")
    save(opt(ManufacturerModelName="Retina 4", PatientID="PAT-2"), root / "b.dcm")


def colour_dicom(root: Path) -> None:
    image = opt(frames=1)
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.PixelData = np.dstack([bscan(0), bscan(1), bscan(2)]).tobytes()
    save(image, root / "a.dcm")


def surfaces_nowhere(root: Path) -> None:
    image = opt()
    del image.PerFrameFunctionalGroupsSequence
    save(image, root / "a.dcm")
    save(surface_segmentation(image), root / "s.dcm")


def gap_in_segments(root: Path) -> None:
    image = opt()
    segmentation = label_map(image)
    segmentation.SegmentSequence.pop(1)
    save(image, root / "a.dcm")
    save(segmentation, root / "s.dcm")


def two_people_in_a_series(root: Path) -> None:
    save(single_frame(1, "1.2.3"), root / "1.dcm")
    save(single_frame(2, "1.2.3", PatientID="PAT-2"), root / "2.dcm")


DICOM = {
    "identity not removed": Case(
        "dicom",
        lambda r: without(r, "PatientIdentityRemoved"),
        "refused",
        "PatientIdentityRemoved: found nothing; expected YES",
    ),
    "identity said to be kept": Case(
        "dicom",
        lambda r: dicom_of(r, PatientIdentityRemoved="NO"),
        "refused",
        "PatientIdentityRemoved: found NO; expected YES",
    ),
    "identity removed by hand": Case(
        "dicom", lambda r: dicom_of(r, PatientIdentityRemoved="NO"), "handled", "3 images", ("--i-have-deidentified",)
    ),
    "truncated DICOM": Case("dicom", lambda r: cut(dicom_of(r), 0.6), "refused", "a.dcm.*(cut off|no readable)"),
    "fewer pixels than stated": Case(
        "dicom", with_cut_pixels, "refused", r"PixelData: found pixels .* cannot be decoded"
    ),
    "text called DICOM": Case(
        "dicom",
        lambda r: (dicom_of(r), (r / "b.dcm").write_text("no")),
        "skipped",
        r"b\.dcm: file: found no readable DICOM",
    ),
    "DICOM without a patient id": Case(
        "dicom", lambda r: dicom_of(r, PatientID=""), "refused", "subject: the file names none"
    ),
    "NaN spacing in DICOM": Case(
        "dicom",
        lambda r: (
            lambda i: (
                setattr(i.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "PixelSpacing", [0, 0.012]),
                save(i, r / "a.dcm"),
            )
        )(opt()),
        "refused",
        "PixelSpacing: found .*expected two positive numbers",
    ),
    "MONOCHROME1": Case("dicom", lambda r: dicom_of(r, PhotometricInterpretation="MONOCHROME1"), "handled", "3 images"),
    "12 of 16 bits": Case(
        "dicom",
        lambda r: save(opt(array=np.stack([bscan(k).astype(int) * 16 for k in range(3)]), bits=12), r / "a.dcm"),
        "handled",
        "3 images",
    ),
    "colours in DICOM": Case("dicom", colour_dicom, "refused", r"PhotometricInterpretation: found colours \(RGB\)"),
    "text burnt in": Case(
        "dicom", lambda r: dicom_of(r, BurnedInAnnotation="YES"), "handled", "BurnedInAnnotation is YES"
    ),
    "two devices": Case(
        "dicom", two_devices, "refused", r"found \['Acme Retina 3', 'Acme Retina 4'\]; expected one device"
    ),
    "fundus photograph": Case(
        "dicom",
        lambda r: (dicom_of(r), save(opt(SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.5.1"), r / "b.dcm")),
        "skipped",
        "found a fundus photograph",
    ),
    "surfaces without a place": Case("dicom", surfaces_nowhere, "refused", "the frame does not say where it lies"),
    "segments with a gap": Case("dicom", gap_in_segments, "skipped", r"segment numbers are \[1, 3\]"),
    "two patients in one series": Case("dicom", two_people_in_a_series, "refused", "found 2 patients in one series"),
}

HEIDELBERG = {
    "empty .vol": Case(
        "heidelberg", lambda r: vol(r / "a.vol").write_bytes(b""), "refused", r"found 0 bytes, expected at least 2048"
    ),
    "truncated .vol": Case("heidelberg", lambda r: cut(vol(r / "a.vol")), "refused", r"its header promises .*cut off"),
    "text called .vol": Case(
        "heidelberg",
        lambda r: vol(r / "a.vol").write_bytes(b"x" * 3000),
        "refused",
        r"found b'x+' at its beginning, expected one of",
    ),
    ".vol without layers": Case("heidelberg", lambda r: vol(r / "a.vol", layers=False), "handled", "with label map: 0"),
    ".vol without a patient": Case("heidelberg", lambda r: vol(r / "a.vol", patient=""), "handled", "2 images"),
    "circular .vol": Case("heidelberg", lambda r: vol(r / "a.vol", n=1, pattern=2), "handled", "1 images"),
    "radial .vol": Case("heidelberg", lambda r: vol(r / "a.vol", pattern=5), "handled", "2 images"),
    ".vol of NaN spacing": Case(
        "heidelberg",
        lambda r: vol(r / "a.vol", scale_x=float("nan")),
        "refused",
        "spacing: found .*expected finite and positive",
    ),
    ".vol without pixels": Case("heidelberg", lambda r: vol(r / "a.vol", n=0), "refused", "found 0 B-scans"),
    ".e2e of noise": Case(
        "heidelberg",
        lambda r: (vol(r / "a.vol"), (r / "b.e2e").write_bytes(bytes(range(256)) * 20)),
        "skipped",
        r"b\.e2e: file: found no readable \.e2e",
    ),
    ".xml that is another": Case(
        "heidelberg",
        lambda r: (vol(r / "a.vol"), (r / "b.xml").write_text("<a><b/></a>")),
        "skipped",
        r"b\.xml: file: found no readable \.xml",
    ),
}
FILES = IMAGES | VOLUMES | DICOM | HEIDELBERG


def convert(case: Case, root: Path, output: Path, *more: str) -> int:
    four = root.parent / "four.json"
    four.write_text(json.dumps(FOUR))
    options = [str(four) if option == "FOUR" else option for option in case.options]
    split = [] if "--split" in options else ["--split", "1", "0", "0"]
    size = [] if "--size" in options else ["--size", "48"]
    key = ["--key-file", str(root.parent / "key")]
    return SOURCES[case.source].main([str(root), str(output), *options, *split, *size, *key, *more])


@pytest.mark.parametrize("case", FILES.values(), ids=FILES.keys())
def test_a_bad_file_never_passes_in_silence(case, tmp_path, capsys):
    if case.source == "heidelberg":
        pytest.importorskip("eyepy", reason="eyepy reads Heidelberg's exports: pip install 'unicorn-monai[heidelberg]'")
    root, output = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    case.write(root)
    status = convert(case, root, output)
    told = capsys.readouterr()
    with pytest.raises(ValueError, match=rf"(?s){case.message}"):
        raise ValueError(told.err if case.outcome == "refused" else told.out)
    assert status == (1 if case.outcome == "refused" else 0), told
    assert (output / HEADER).exists() == (case.outcome != "refused")
    assert not list(tmp_path.rglob(".tmp-*"))
    assert ("skipped" in told.out) == (case.outcome == "skipped"), told.out
    assert "Traceback" not in told.err
    if case.outcome != "refused":
        assert [p for p in problems(output) if p.fatal] == []
        for item in datalist(output, "training"):
            assert read_array(item["image"]).dtype == np.uint8


@pytest.mark.parametrize("name", ["truncated PNG", "label value unknown", "text called DICOM"])
def test_strict_stops_at_the_first_bad_file(name, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    FILES[name].write(tmp_path / "in")
    assert convert(FILES[name], tmp_path / "in", tmp_path / "out", "--strict") == 1
    assert not (tmp_path / "out" / HEADER).exists()
    assert "found" in capsys.readouterr().err


# ---------------------------------------------------------------- finished data sets


def data_set(root: Path, n: int = 6, **options: Any) -> Path:
    """Four training images, one of validation, one of test, each of its own subject."""
    arguments = {
        "name": "n",
        "device": "d",
        "labels": {int(k): v for k, v in FOUR.items()},
        "spacing_mm": (0.004, 0.012),
    }
    with DatasetWriter(root, About(**arguments | options)) as writer:
        for k in range(n):
            split = {n - 1: "test", n - 2: "validation"}.get(k, "training")
            writer.add(split, bscan(k), label(k), subject=f"s{k}")
    return root


def edit(root: Path, change: Callable[[dict], Any]) -> None:
    header = json.loads((root / HEADER).read_text())
    change(header)
    (root / HEADER).write_text(json.dumps(header))


def put(root: Path, name: str, array: np.ndarray, spacing=(0.004, 0.012)) -> None:
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1, 1])), root / name)


def turned(root: Path, turn: Callable[[np.ndarray], np.ndarray], kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        for path in (root / kind).iterdir():
            put(root, f"{kind}/{path.name}", np.ascontiguousarray(turn(read_array(path))))


def as_png(root: Path, **options: Any) -> None:
    """One label map as an image file called .png."""
    Image.fromarray(label(0)).save(root / "labels/0.png", **options)
    edit(root, lambda h: h["training"][0].update(label="labels/0.png"))


def image_as(root: Path, picture_: Image.Image) -> None:
    picture_.save(root / "images/0.png")
    edit(root, lambda h: h["training"][0].update(image="images/0.png"))


SETS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    # what is wrong: (what is done, "error" or "warning", message)
    "transposed": (
        lambda r: turned(r, np.transpose, ("images", "labels")),
        "warning",
        "orientation: found images transposed: labels correlate",
    ),
    "upside down": (
        lambda r: turned(r, np.flipud, ("images", "labels")),
        "warning",
        "orientation: found images upside down: labels correlate",
    ),
    "transposed, without labels": (
        lambda r: (
            turned(r, np.transpose, ("images",)),
            edit(r, lambda h: [i.pop("label") for s in SPLITS for i in h[s]]),
        ),
        "warning",
        "images transposed: the mean varies",
    ),
    "same pixels in two splits": (
        lambda r: put(r, "images/000005.nii.gz", bscan(0)),
        "error",
        r"000005\.nii\.gz: pixels: found the same pixels as 'images/000000\.nii\.gz' of training",
    ),
    "same pixels in one split": (lambda r: put(r, "images/000001.nii.gz", bscan(0)), "warning", "the same pixels as"),
    "JPEG label": (
        lambda r: (
            Image.fromarray(label(0)).save(r / "labels/0.jpg"),
            edit(r, lambda h: h["training"][0].update(label="labels/0.jpg")),
        ),
        "error",
        "format: found a lossy label map",
    ),
    "JPEG label called PNG": (lambda r: as_png(r, format="JPEG"), "error", r"found a lossy label map \(by its content"),
    "NaN spacing": (
        lambda r: edit(r, lambda h: h.update(spacing_mm=[float("nan"), 0.01])),
        "error",
        r"dataset\.json: spacing_mm: found \[nan, 0\.01\]",
    ),
    "negative spacing of an item": (
        lambda r: edit(r, lambda h: h["test"][0].update(spacing_mm=[-1, 0.01])),
        "error",
        r"000005\.nii\.gz: spacing_mm: found \[-1, 0\.01\]",
    ),
    "spacing as text": (
        lambda r: edit(r, lambda h: h.update(spacing_mm="0.004")),
        "error",
        "spacing_mm: found '0.004'",
    ),
    "spacing in micrometres": (
        lambda r: edit(r, lambda h: h.update(spacing_mm=[3.87, 11.5])),
        "warning",
        "Is it in micrometres",
    ),
    "spacing of the file differs": (
        lambda r: put(r, "images/000002.nii.gz", bscan(2), (0.005, 0.012)),
        "warning",
        r"found \(0\.005, 0\.012\) mm in the file",
    ),
    "no device": (lambda r: edit(r, lambda h: h.pop("device")), "error", "device: found None"),
    "channels differ": (lambda r: image_as(r, Image.fromarray(np.dstack([bscan(0)] * 3))), "error", "channels: found"),
    "types differ": (
        lambda r: put(r, "images/000000.nii.gz", bscan(0).astype(np.uint16) * 257),
        "warning",
        "type: found",
    ),
    "12 bits in 16": (
        lambda r: put(r, "images/000000.nii.gz", bscan(0).astype(np.uint16) * 16),
        "warning",
        "expected the range of the type",
    ),
    "floats of 0 to 255": (
        lambda r: put(r, "images/000000.nii.gz", bscan(0).astype(np.float32)),
        "error",
        "floating-point values",
    ),
    "one bit per pixel": (lambda r: image_as(r, Image.fromarray(bscan(0) > 80)), "error", "one bit per pixel"),
    "several pages": (
        lambda r: (
            Image.fromarray(bscan(0)).save(
                r / "images/0.tif", save_all=True, append_images=[Image.fromarray(bscan(1))]
            ),
            edit(r, lambda h: h["training"][0].update(image="images/0.tif")),
        ),
        "error",
        "it holds 2 pages",
    ),
    "label ignored everywhere": (
        lambda r: put(r, "labels/000001.nii.gz", np.full((40, 32), 255, np.uint8)),
        "warning",
        r"255 \(ignore\) everywhere",
    ),
    "label in colours": (
        lambda r: (
            Image.fromarray(np.dstack([label(0)] * 3)).save(r / "labels/0.png"),
            edit(r, lambda h: h["training"][0].update(label="labels/0.png")),
        ),
        "error",
        "channels: found 3 channels; expected one",
    ),
    "absolute path": (
        lambda r: edit(r, lambda h: h["training"][0].update(image="/etc/hostname")),
        "error",
        "leaves the data set folder; refused",
    ),
    "path with ..": (
        lambda r: edit(r, lambda h: h["training"][0].update(label="../other/x.png")),
        "error",
        "leaves the data set folder; refused",
    ),
    "link out of the set": (
        lambda r: (
            (r / "images/000000.nii.gz").unlink(),
            put(r.parent, "x.nii.gz", bscan(0)),
            (r / "images/000000.nii.gz").symlink_to(r.parent / "x.nii.gz"),
        ),
        "error",
        "leaves the data set folder; refused",
    ),
}


@pytest.mark.parametrize(("damage", "severity", "message"), SETS.values(), ids=SETS.keys())
def test_the_check_finds_what_would_poison_an_experiment(damage, severity, message, tmp_path, capsys):
    root = data_set(tmp_path / "set")
    assert problems(root, need_labels=True) == []
    damage(root)
    assert check_main([str(root), "--json"]) == int(severity == "error")
    told = json.loads(capsys.readouterr().out)
    assert told["fatal"] == sum(p["severity"] == "error" for p in told["problems"])
    found = [p for p in problems(root) if p.fatal == (severity == "error")]
    with pytest.raises(ValueError, match=message):
        raise ValueError("\n".join(map(str, found)))
    for problem in told["problems"]:
        assert all(problem[key] for key in ("file", "field", "found", "expected", "remedy", "severity"))
    assert check_main([str(root)]) == int(severity == "error")
    assert f"{told['fatal']} problem(s)" in capsys.readouterr().out


IN_THE_HEADER = ("JPEG label", "JPEG label called PNG", "NaN spacing", "negative spacing of an item", "spacing as text")


@pytest.mark.parametrize("name", IN_THE_HEADER)
def test_listing_a_data_set_refuses_what_headers_tell(name, tmp_path):
    root = data_set(tmp_path / "set")
    assert len(datalist(root, SPLITS)) == 6
    damage, _, message = SETS[name]
    damage(root)
    with pytest.raises(ValueError, match=message) as error:
        datalist(root, SPLITS)
    assert "unicorn-monai check" in str(error.value)


# ---------------------------------------------------------------- states of the machine


def good(root: Path) -> Case:
    for p in ("p1", "p2"):
        for k in range(3):
            picture(root / f"images/{p}/{k}.png", bscan(k + 3 * int(p[1])))
    return Case("image_folder", folder, "handled", "")


def no_such_input(root: Path, output: Path) -> tuple[Path, Path, str]:
    return root / "nothing", output, "INPUT '.*' does not exist"


def output_within_input(root: Path, output: Path) -> tuple[Path, Path, str]:
    return root, root / "out", "choose a folder outside it"


def output_is_a_file(root: Path, output: Path) -> tuple[Path, Path, str]:
    output.write_text("a file")
    return root, output, "exists|Not a directory"


def output_cannot_be_written(root: Path, output: Path) -> tuple[Path, Path, str]:
    return root, Path("/proc/unicorn-monai"), "Check space and permissions"


def output_in_use(root: Path, output: Path) -> tuple[Path, Path, str]:
    data_set(output)
    return root, output, "already holds a data set"


def key_others_can_read(root: Path, output: Path) -> tuple[Path, Path, str]:
    (root.parent / "key").write_text("00" * 32)
    (root.parent / "key").chmod(0o644)
    return root, output, "can be read by others; run `chmod 600`"


def key_that_is_none(root: Path, output: Path) -> tuple[Path, Path, str]:
    (root.parent / "key").write_text("secret")
    (root.parent / "key").chmod(0o600)
    return root, output, "is no key: expected 64 hex digits"


STATES = (
    no_such_input,
    output_within_input,
    output_is_a_file,
    output_cannot_be_written,
    output_in_use,
    key_others_can_read,
    key_that_is_none,
)


@pytest.mark.parametrize("state", STATES, ids=lambda f: f.__name__)
def test_a_bad_place_is_refused(state, tmp_path, capsys):
    root = tmp_path / "in"
    case = good(root)
    source, output, message = state(root, tmp_path / "out")
    before = sorted(p for p in tmp_path.rglob("*") if p.name != "four.json")
    four = tmp_path / "four.json"
    four.write_text(json.dumps(FOUR))
    status = SOURCES[case.source].main(
        [str(source), str(output), "--key-file", str(tmp_path / "key"), "--split", "1", "0", "0"]
    )
    assert status == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(capsys.readouterr().err)
    left = set(tmp_path.rglob("*")) - set(before) - {four, tmp_path / "key"}
    assert not [p for p in left if p.is_file()]


CRAMPED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
from data_prep.image_folder import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_leaves_nothing_half_written_and_the_run_goes_on_later(tmp_path, capsys):
    root, output = tmp_path / "in", tmp_path / "out"
    good(root)
    arguments = [str(root), str(output), "--split", "1", "0", "0", "--key-file", str(tmp_path / "key"), "--size", "48"]
    done = subprocess.run([sys.executable, "-c", CRAMPED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Check space and permissions" in done.stderr
    assert not (output / HEADER).exists()
    assert not list(output.rglob(".tmp-*"))
    assert image_folder.main(arguments) == 1  # a folder in use is not overwritten
    assert "already holds" in capsys.readouterr().err
    assert image_folder.main([*arguments, "--resume"]) == 0
    assert [p for p in problems(output) if p.fatal] == []


def test_an_interrupted_conversion_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    root, output = tmp_path / "in", tmp_path / "out"
    good(root)
    arguments = [str(root), str(output), "--split", "1", "0", "0", "--key-file", str(tmp_path / "key"), "--size", "48"]
    whole = tmp_path / "whole"
    assert image_folder.main([str(root), str(whole), *arguments[2:]]) == 0
    add = DatasetWriter.add

    def interrupted(self, *args, **fields):
        if len(self) == 4:
            raise KeyboardInterrupt
        add(self, *args, **fields)

    monkeypatch.setattr(DatasetWriter, "add", interrupted)
    assert image_folder.main(arguments) == 1
    assert "interrupted; run again with --resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert not (output / HEADER).exists()
    assert image_folder.main([*arguments[:-1], "56", "--resume"]) == 1  # another size would mix
    assert "was begun with the settings" in capsys.readouterr().err
    assert image_folder.main([*arguments, "--resume"]) == 0
    assert read_header(output) == read_header(whole)
    for one, two in zip(datalist(output, "training"), datalist(whole, "training"), strict=True):
        np.testing.assert_array_equal(read_array(one["image"]), read_array(two["image"]))


def test_the_corpus_is_as_large_as_the_readme_says():
    count = len(FILES) + len(SETS) + len(STATES) + 2  # full disk, interruption
    readme = (Path(__file__).parents[2] / "data_prep" / "README.md").read_text(encoding="utf-8")
    assert f"{count} bad inputs" in readme
    assert count >= 60
