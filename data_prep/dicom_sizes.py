"""What a DICOM file unpacks to, known before it is: pixels by their header, a deflated data set by counting.

    pixels = rows x columns x frames x samples x bytes

A packed frame has a size of its own in its codestream (JPEG, JPEG-LS, JPEG 2000), which is what its decoder obeys.
"""

import struct
import zlib
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from unicorn_monai.system.intake import Untaken, most_bytes, require_regular, require_unpackable

CHUNK = 1 << 20
_NO_SIZE = {0xC4, 0xC8, 0xCC}  # JPEG's markers from C0 to CF that begin no frame


def read_dicom(path: Path, **how: Any) -> Dataset:
    """`pydicom.dcmread`, of a regular file that unpacks to no more than is allowed."""
    require_unpackable(require_regular(path).stat().st_size, "file")
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        require_unpackable(_inflated_bytes(path), "file")
    return pydicom.dcmread(path, **how)


def _inflated_bytes(path: Path) -> int:
    """Bytes of a deflated data set, counted until they are too many, and then extrapolated."""
    with path.open("rb") as file:
        file.seek(140)  # preamble, "DICM", and the tag and type of the group's length
        file.seek(144 + int.from_bytes(file.read(4), "little"))
        stream, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while packed := stream.unconsumed_tail or file.read(CHUNK):
            size += len(stream.decompress(packed, CHUNK))
            if size > most_bytes():
                read = file.tell() - len(stream.unconsumed_tail)
                return size * path.stat().st_size // read
    return size


def require_unpackable_pixels(dataset: Dataset) -> None:
    """Refuse pixels that unpack to too much by their header, or packed frames of another size than it says."""
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    samples, frames = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("NumberOfFrames") or 1)
    if min(rows, columns, samples, frames) < 1:
        raise Untaken(f"Rows, Columns, NumberOfFrames: found {rows}, {columns}, {frames}; expected 1 or more")
    each = -(-int(dataset.get("BitsAllocated") or 8) // 8)
    require_unpackable(rows * columns * samples * frames * each, "PixelData")
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if "PixelData" in dataset and syntax is not None and syntax.is_encapsulated:
        for frame in generate_frames(dataset.PixelData, number_of_frames=frames):
            size, expected = codestream_size(frame), (rows, columns)
            if size not in (None, expected):
                raise ValueError(f"PixelData: found a packed frame of {size}; expected {expected} as Rows, Columns")


def codestream_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) of a JPEG, JPEG-LS or JPEG 2000 codestream; None where it is none of these."""
    if frame[4:8] == b"jP  " or frame[:4] == b"\xff\x4f\xff\x51":
        start = frame.find(b"\xff\x4f\xff\x51")
        numbers = [int.from_bytes(frame[start + k : start + k + 4], "big") for k in (8, 12, 16, 20)]
        return (numbers[1] - numbers[3], numbers[0] - numbers[2]) if start >= 0 else None
    place = 2
    while frame[:2] == b"\xff\xd8" and place + 9 <= len(frame) and frame[place] == 0xFF:
        marker, length = frame[place + 1], int.from_bytes(frame[place + 2 : place + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in _NO_SIZE):
            return struct.unpack(">HH", frame[place + 5 : place + 9])
        place += 1 if marker == 0xFF else 2 + length
    return None
