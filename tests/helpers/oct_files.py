"""Makers of small files as devices and programs write them, for the tests of the converters.

The B-scan is the same everywhere: three surfaces at rows 10, 20 and 30 of 40 (a little lower towards the right), grey
levels that change with them, and a little noise, so that no two images are equal.
"""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

ROWS, COLUMNS = 40, 32
LEVELS = np.array([20, 160, 90, 60])
SECRETS = ("Mustermann", "Erika", "19640812", "PAT-4711", "Station9", "SN-8812")  # must never be found again


def surfaces(seed: int = 0, columns: int = COLUMNS) -> np.ndarray:
    """(3, columns) rows, 0-based."""
    return np.array([[10.2], [20.2], [30.2]]) + seed % 3 + np.linspace(0, 2, columns)


def label(seed: int = 0) -> np.ndarray:
    """(rows, columns) labels 0..3."""
    return (surfaces(seed)[:, None, :] <= np.arange(ROWS)[None, :, None]).sum(axis=0).astype(np.uint8)


def bscan(seed: int = 0) -> np.ndarray:
    """(rows, columns) uint8."""
    noise = np.random.default_rng(seed).integers(-15, 16, (ROWS, COLUMNS))
    return np.clip(LEVELS[label(seed)] + noise, 0, 255).astype(np.uint8)


def picture(path: Path, array: np.ndarray | None = None, **options) -> Path:
    """An image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(bscan() if array is None else array).save(path, **options)
    return path


def nifti(
    path: Path, array: np.ndarray | None = None, spacing=(0.012, 0.004, 0.12), unit: str = "mm", **header
) -> Path:
    """A volume of three B-scans with the axes A-scan, depth, B-scan, as most converters write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if array is None:
        array = np.stack([bscan(k).T for k in range(3)], axis=2)
    image = nib.Nifti1Image(array, np.diag([*spacing[: array.ndim], *[1.0] * (4 - array.ndim)]))
    image.header.set_xyzt_units(unit)
    image.header["descrip"] = b"Mustermann Erika 19640812"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"PAT-4711"))
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


# ---------------------------------------------------------------- Heidelberg


def vol(
    path: Path, n: int = 2, patient: str = "PAT-4711", layers: bool = True, pattern: int = 3, first: int = 0, **changes
) -> Path:
    """A .vol file: linear reflectivity, five rows marked invalid, 17 layer slots with the paper's nine filled in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "version": b"HSF-OCT-103",
        "size_x": COLUMNS,
        "n": n,
        "size_z": ROWS,
        "scale_x": 0.012,
        "distance": 0.12,
        "scale_z": 0.00387,
    } | changes
    start = struct.pack(
        "<12s3I3d",
        *(header[k] for k in ("version", "size_x", "n", "size_z")),
        header["scale_x"],
        header["distance"],
        header["scale_z"],
    )
    start += struct.pack("<2I2dId4sQi", 4, 4, 0.01, 0.01, 30, 0.0, b"OD\0\0", 129235011807231250, pattern)
    count = 17 if layers else 0
    bscan_header = 256 + count * 4 * COLUMNS
    start += struct.pack(
        "<I16s16sI24sdI24sd", bscan_header, b"847005.0", b"", 369, patient.encode(), 23600.0, 511, b"Station9", 40372.0
    )
    start += struct.pack("<4I34s", 0, 0, 0, 0, b"Mustermann")
    content = start.ljust(2048, b"\0") + bytes(16)
    for k in range(n):
        values = (bscan(first + k) / 255.0).astype("<f4") ** 4
        values[:5] = 3.4028235e38
        own = struct.pack("<12sI4d2IfI6f", header["version"], bscan_header, 0, 0, 1, 0, count, 256, 31.5, 0, *[0.0] * 6)
        rows = np.full((count, COLUMNS), 3.4028235e38, dtype="<f4")
        if layers:
            for place, index in enumerate((0, 2, 4, 5, 6, 8, 14, 15, 1)):  # ILM, RNFL, IPL, INL, OPL, ELM, PR1, PR2, BM
                rows[index] = 10 + 2.5 * place
            rows[:, :3] = 3.4028235e38
        content += own.ljust(256, b"\0") + rows.tobytes() + values.tobytes()
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------- DICOM

OPT = "1.2.840.10008.5.1.4.1.1.77.1.5.4"


def _base(sop_class: str, modality: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    ds.SeriesInstanceUID, ds.StudyInstanceUID = generate_uid(), generate_uid()
    ds.Modality = modality
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Mustermann^Erika", "PAT-4711", "19640812"
    ds.StationName, ds.DeviceSerialNumber = "Station9", "SN-8812"
    ds.Manufacturer, ds.ManufacturerModelName = "Acme", "Retina 3"
    ds.PatientIdentityRemoved = "YES"
    return ds


def _pixels(ds: Dataset, array: np.ndarray, bits: int = 8) -> None:
    ds.Rows, ds.Columns = array.shape[-2:]
    if array.ndim == 3:
        ds.NumberOfFrames = len(array)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = 8 if bits <= 8 else 16
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, 0
    ds.PixelData = array.astype("u1" if bits <= 8 else "<u2").tobytes()


def _item(**entries) -> Dataset:
    item = Dataset()
    for key, value in entries.items():
        setattr(item, key, value)
    return item


def opt(frames: int = 3, array: np.ndarray | None = None, bits: int = 8, **changes) -> FileDataset:
    """A multi-frame Ophthalmic Tomography image; frames lie 0.12 mm apart."""
    ds = _base(OPT, "OPT")
    _pixels(ds, np.stack([bscan(k) for k in range(frames)]) if array is None else array, bits)
    ds.ImageLaterality = "L"
    measures = _item(PixelSpacing=[0.004, 0.012], SliceThickness=0.12)
    turned = _item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    ds.SharedFunctionalGroupsSequence = [_item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[turned])]
    ds.PerFrameFunctionalGroupsSequence = [
        _item(PlanePositionSequence=[_item(ImagePositionPatient=[1.0, 2.0, 0.12 * k])]) for k in range(frames)
    ]
    for key, value in changes.items():
        setattr(ds, key, value)
    return ds


def single_frame(number: int, series: str, **changes) -> FileDataset:
    """One B-scan of an export as secondary captures."""
    ds = _base("1.2.840.10008.5.1.4.1.1.7", "OPT")
    ds.SeriesInstanceUID, ds.InstanceNumber = series, number
    _pixels(ds, bscan(number))
    ds.PixelSpacing = [0.004, 0.012]
    for key, value in changes.items():
        setattr(ds, key, value)
    return ds


def _segment(number: int, name: str) -> Dataset:
    code = _item(CodeValue=str(number), CodingSchemeDesignator="99TEST", CodeMeaning=name)
    return _item(SegmentNumber=number, SegmentLabel="drawn by Mustermann", SegmentedPropertyTypeCodeSequence=[code])


def _source(image: Dataset, frame: int) -> Dataset:
    source = _item(ReferencedSOPClassUID=OPT, ReferencedSOPInstanceUID=image.SOPInstanceUID)
    source.ReferencedFrameNumber = frame + 1
    return _item(SourceImageSequence=[source])


NAMES = {1: "Retinal nerve fibre layer", 2: "Inner retina", 3: "Choroid"}


def label_map(image: FileDataset) -> FileDataset:
    """Label Map Segmentation of all frames."""
    ds = _base("1.2.840.10008.5.1.4.1.1.66.7", "SEG")
    _pixels(ds, np.stack([label(k) for k in range(image.NumberOfFrames)]))
    ds.SegmentationType = "LABELMAP"
    ds.SegmentSequence = [_segment(k, name) for k, name in NAMES.items()]
    ds.PerFrameFunctionalGroupsSequence = [
        _item(DerivationImageSequence=[_source(image, k)]) for k in range(image.NumberOfFrames)
    ]
    return ds


def binary_segmentation(image: FileDataset) -> FileDataset:
    """Binary Segmentation: one frame of single bits per segment and frame."""
    ds = _base("1.2.840.10008.5.1.4.1.1.66.4", "SEG")
    pairs = [(k, n) for n in NAMES for k in range(image.NumberOfFrames)]
    bits = np.stack([label(k) == n for k, n in pairs])
    _pixels(ds, bits.astype(np.uint8))
    ds.BitsAllocated = ds.BitsStored = 1
    ds.HighBit = 0
    ds.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()
    ds.SegmentationType = "BINARY"
    ds.SegmentSequence = [_segment(k, name) for k, name in NAMES.items()]
    ds.PerFrameFunctionalGroupsSequence = [
        _item(
            DerivationImageSequence=[_source(image, k)],
            SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=n)],
        )
        for k, n in pairs
    ]
    return ds


def surface_segmentation(image: FileDataset) -> FileDataset:
    """Surface Segmentation: the three surfaces as points in mm."""
    ds = _base("1.2.840.10008.5.1.4.1.1.66.5", "SEG")
    reference = _item(ReferencedSOPClassUID=OPT, ReferencedSOPInstanceUID=image.SOPInstanceUID)
    ds.ReferencedSeriesSequence = [_item(ReferencedInstanceSequence=[reference])]
    ds.SegmentSequence = [_segment(k, name) for k, name in NAMES.items()]
    ds.SurfaceSequence = []
    for n in NAMES:
        points = [
            [1.0 + 0.012 * x, 2.0 + 0.004 * surfaces(k)[n - 1, x], 0.12 * k]
            for k in range(image.NumberOfFrames)
            for x in range(COLUMNS)
        ]
        values = np.array(points, dtype="<f4").tobytes()
        points_item = _item(NumberOfSurfacePoints=len(points), PointCoordinatesData=values)
        ds.SurfaceSequence.append(_item(SurfaceNumber=n, SurfacePointsSequence=[points_item]))
    return ds


def save(ds: FileDataset, path: Path) -> Path:
    """Write a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path


# ---------------------------------------------------------------- .e2e


def e2e(path: Path) -> Path:
    """An .e2e file of two patients, one eye each, two B-scans each; built with the reader's own description of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries: list[tuple[tuple[int, int, int, int], int, int, bytes]] = []  # ids, index, type, content
    for person, side in ((1, b"R"), (2, b"L")):
        patient = struct.pack("<31s66sIc25s", b"Erika", b"Mustermann", 19640812, b"F", f"PAT-471{person}".encode())
        entries.append(((person, -1, -1, -1), 0, 9, patient))
        entries.append(((person, 1, person, -1), 0, 11, bytes(14) + side))
        for k in range(2):
            ids = (person, 1, person, 2 * k)
            entries.append((ids, 0, 10004, _bscan_meta(k)))
            values = (bscan(k + 3 * person) / 255.0) ** 4
            stored = np.array([_to_float16u(v) for v in values.ravel()], dtype="<u2").tobytes()
            head = struct.pack("<5I", len(stored), 35652097, ROWS * COLUMNS, ROWS, COLUMNS)
            entries.append((ids, 1, 1073741824, head + stored))
            for place, index in enumerate((0, 2, 4, 5, 6, 8, 14, 15, 1)):
                rows = np.full(COLUMNS, 10 + 2.5 * place, dtype="<f4").tobytes()
                entries.append((ids, 0, 10019, struct.pack("<5I", 0, index, 0, COLUMNS, 0) + rows))
    version = struct.pack("<12sI10H", b"CMDb", 100, *[0] * 10)
    directory = struct.pack("<12sI10H4I", b"MDbDir", 100, *[0] * 10, len(entries), 0, 36 + 52, 0)
    first = len(version) + 2 * len(directory) + 44 * len(entries)
    headers, data, position = b"", b"", first
    for ids, index, kind, content in entries:
        headers += struct.pack("<4I4i2H2I", 0, position, len(content), 0, *ids, index, 0, kind, 0)
        data += (
            struct.pack("<12s5I4i2H2I", b"MDbData", 0, 0, position, len(content), 0, *ids, index, 0, kind, 0) + content
        )
        position += 60 + len(content)
    path.write_bytes(version + directory + directory + headers + data)
    return path


def _bscan_meta(k: int) -> bytes:
    """Header of a B-scan, field by field as the reader lists them."""
    import dataclasses

    from eyepy.io.he.e2e_format import Type10004

    values = {"size_y": ROWS, "size_x": COLUMNS, "start_x": -10.0, "end_x": 10.0, "scale_y": 0.00387, "n_bscans": 2}
    values |= {"aktImage": k, "scan_pattern": 3, "imgSizeWidth": COLUMNS, "quality_ui": 27.0}
    content = b""
    for field in dataclasses.fields(Type10004):
        if not field.init or field.name == "rest":
            continue
        size = field.metadata["subcon"].sizeof()
        value = values.get(field.name)
        if value is None:
            content += bytes(size)
        else:
            content += struct.pack("<f" if isinstance(value, float) else "<I", value)
    return content


def _to_float16u(value: float) -> int:
    """Heidelberg's unsigned float as eyepy reads it: 6 bits of exponent above 10 of mantissa in reverse order."""
    if value <= 0:
        return 0
    exponent = int(np.floor(np.log2(value)))
    mantissa = round((value / 2.0**exponent - 1) * 1024)
    if mantissa == 1024:
        exponent, mantissa = exponent + 1, 0
    return ((exponent + 63) << 10) | int(f"{mantissa:010b}"[::-1], 2)
