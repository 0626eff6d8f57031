"""Volumes as NIfTI, MetaImage (.mha, .mhd) and NRRD: what their headers say is looked at before a library reads them.

    unpacked = size of the voxels as stored, and 8 bytes per voxel where NIfTI's slope makes numbers of them

NIfTI is read by nibabel; the others by ITK, in a process of its own (`isolated`).
"""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from unicorn_monai.images.isolated import read_isolated
from unicorn_monai.system.intake import Untaken, require_regular, require_unpackable

MOST_HEADER = 1 << 16  # bytes of a header in text
MOST_EXTENSIONS = 1 << 26  # bytes before the voxels of a NIfTI file
AXES = (2, 3, 4)
META = (".mhd", ".mha")
DIRECTIONS = ("transformmatrix", "rotation", "orientation", "spacedirections")  # entries that tell them
_ENTRY = re.compile(r"\s*(\w{1,80})\s*[=:]")
_PLACES = ("ElementDataFile", "datafile")
_BYTES = {1: "CHAR UCHAR", 2: "SHORT USHORT", 4: "INT UINT LONG ULONG FLOAT", 8: "LONG_LONG ULONG_LONG DOUBLE"}
_META_TYPES = {f"MET_{name}{end}": n for n, names in _BYTES.items() for name in names.split() for end in ("", "_ARRAY")}
_NRRD_NAMES = {
    1: "signed char, int8, int8_t, uchar, unsigned char, uint8, uint8_t",
    2: "short, short int, signed short, signed short int, int16, int16_t, ushort, unsigned short, unsigned short int, "
    "uint16, uint16_t",
    4: "int, signed int, int32, int32_t, uint, unsigned int, uint32, uint32_t, float",
    8: "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t, ulonglong, "
    "unsigned long long, unsigned long long int, uint64, uint64_t, double",
}
_NRRD_TYPES = {name: n for n, names in _NRRD_NAMES.items() for name in names.split(", ")}

# Values of an entry of MetaImage: as many as there are axes to this power.
_PER_AXIS = dict.fromkeys(("Position", "Offset", "Origin", "CenterOfRotation", "ElementSpacing", "ElementSize"), 1)
_PER_AXIS |= dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), 2)


def read_itk(path: Path) -> tuple[NDArray, tuple[float, ...], NDArray | None, tuple[float, ...]]:
    """A volume from a .mha, .mhd, .nrrd or .nhdr file, looked at before; refused if its reader does not survive it.

    Returns the voxels in the axis order of the file (x, y, z), their spacing, the directions of the axes as columns
    (None where the header tells none, and ITK takes those of space), and the origin.
    """
    data_entries(path)
    table, meta = dict(_entries(path)), is_meta(path)
    size = _unpacked(table, meta)
    require_unpackable(size, "file")
    found = read_isolated("meta" if meta else "nrrd", path, size)
    told = any(name.lower() in DIRECTIONS for name in table)
    directions = np.array(found["directions"]) if told else None
    return found["arrays"]["voxels"], tuple(found["spacing"]), directions, tuple(found["origin"])


def is_meta(path: Path) -> bool:
    """Whether a name is that of a MetaImage, else of a NRRD file."""
    return path.suffix.lower() in META


def data_entries(path: Path) -> list[str]:
    """Where the header of a MetaImage or NRRD says that its voxels lie: names of files; LOCAL, or LIST and names."""
    found = [value for name, value in _entries(path) if name in (*_PLACES, "=datafile", "")]
    if any("%" in entry for entry in found):
        raise Untaken("file: found a pattern with '%' in place of the file of its voxels; expected the file's name")
    if any(entry.startswith(("=", ":")) or entry == "-" for entry in found):  # left out by ITK; standard input
        raise Untaken("file: found no name in place of the file of its voxels; expected the file's name")
    return found


def _entries(path: Path) -> list[tuple[str, str]]:
    """Names and values of a header; the files of a list have no name."""
    entries: list[tuple[str, str]] = []
    meta = is_meta(path)
    for number, line in enumerate(_lines(path)):
        if _listed(entries):
            entries.append(("", line.strip()))
        elif meta and line.strip():
            found = _ENTRY.match(line)
            entries.append((found[1], line[found.end() :].strip()) if found else ("?", ""))
            if entries[-1][0] == "ElementDataFile" and not _listed(entries):
                break
        elif not meta and number and line and not line.startswith("#"):
            name, colon, value = line.partition(":")
            note = "=" if value.startswith("=") else ""  # NAME:=VALUE means nothing to a reader
            name = note + re.sub(r"\s", "", name).lower()
            entries.append((name or "?", value.removeprefix("=").strip()) if colon else ("?", ""))
        elif not meta and not line:
            break
    if meta:
        _require_all_values(entries)
    names = [name for name, _ in entries if name]
    if "?" in names or len(set(names)) < len(names):
        expected = "NAME = VALUE" if meta else "NAME: VALUE"
        raise Untaken(f"file: found a line in its header that is no entry, or one twice; expected {expected}")
    return entries


def _require_all_values(entries: list[tuple[str, str]]) -> None:
    """Where values are missing, ITK goes on reading in the next line, which then is no entry to it."""
    axes = 0
    for name, value in entries:
        if name == "NDims":
            axes = int(value) if value in map(str, AXES) else 0
        least = 4 if name == "Color" else (axes or max(AXES)) ** _PER_AXIS.get(name, 0)
        if name not in ("", "?", "Comment") and len(value.split()) < least:
            raise Untaken(
                f"file: found fewer values than {least} in an entry of its header; expected all. Export it anew"
            )


def _listed(entries: list[tuple[str, str]]) -> bool:
    return any(name in _PLACES and value.upper().startswith("LIST") for name, value in entries)


def _lines(path: Path) -> Iterator[str]:
    """Lines of a header in text; of a file, those that a header may have."""
    with require_regular(path).open("rb") as file:
        left = MOST_HEADER
        while line := file.readline(left):
            left -= len(line)
            if not left or b"\0" in line:
                raise Untaken(f"file: found no header that ends within {MOST_HEADER} bytes of text; export it anew")
            text = line.decode("latin-1").removesuffix("\n").removesuffix("\r")
            if "\r" in text:  # the end of a line to ITK, but not to us
                raise Untaken("file: found a carriage return within a line of its header; export it anew")
            yield text


def _unpacked(table: Mapping[str, str], meta: bool) -> int:
    """Bytes of the voxels that a header of MetaImage, or else of NRRD, promises."""
    keys = ("NDims", "DimSize", "ElementType") if meta else ("dimension", "sizes", "type")
    axes, sizes, kind = (table.get(key, "") for key in keys)
    numbers = [int(n) for n in sizes.split() if n.isdecimal() and n.isascii() and len(n) < 12]
    if axes not in map(str, AXES) or len(numbers) != int(axes) or len(sizes.split()) != int(axes) or min(numbers) < 1:
        expected = f"{AXES[0]} to {AXES[-1]} axes, each with a size of 1 or more"
        raise Untaken(f"file: found {keys[0]} {_shown(axes)} and {keys[1]} {_shown(sizes)}; expected {expected}")
    bytes_each = _META_TYPES.get(kind.upper()) if meta else _NRRD_TYPES.get(" ".join(kind.lower().split()))
    channels = table.get("ElementNumberOfChannels", "1")
    if bytes_each is None or not (channels.isdecimal() and len(channels) < 5 and 1 <= int(channels) <= 1000):
        raise Untaken(f"file: found no type of numbers as {keys[2]}, or many in a voxel; expected one in each voxel")
    return math.prod(numbers) * bytes_each * int(channels)


def _shown(text: str) -> str:
    """Numbers of a header for a message; other text may name somebody."""
    return f"'{text[:40]}'" if re.fullmatch(r"[\d .eE+-]*", text) else "what is no number"


# ---------------------------------------------------------------- NIfTI


def open_nifti(path: Path) -> Any:
    """Nibabel's image of a NIfTI file (version 1 or 2), whose voxels are still to be read and not too many."""
    packed = require_regular(path).suffix.lower() == ".gz"
    with gzip.open(path) if packed else path.open("rb") as file:
        start = file.read(540)
        second = start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
        header = (nib.Nifti2Header if second else nib.Nifti1Header)(start[: 540 if second else 348], check=False)
        if header["sizeof_hdr"] != header.sizeof_hdr:  # nibabel would mend it
            raise HeaderDataError("no header of NIfTI")
        _require_short_extensions(file, header)
    require_unpackable(_nifti_bytes(header), "file")
    return (nib.Nifti2Image if second else nib.Nifti1Image).from_filename(path)


def _nifti_bytes(header: Any) -> int:
    """What the voxels take, at most, while nibabel makes numbers of them."""
    voxels = math.prod(max(int(n), 0) for n in header["dim"][1 : 1 + max(0, min(int(header["dim"][0]), 7))])
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    scaled = math.isfinite(slope) and slope != 0 and (slope, intercept) != (1, 0)
    return voxels * (header.get_data_dtype().itemsize + 8 * scaled)


def _require_short_extensions(file: Any, header: Any) -> None:
    """Nibabel reads each part between header and voxels as long as it says it is, however long that is."""
    place, offset = header.sizeof_hdr + 4, float(header["vox_offset"])
    if not (place <= offset <= MOST_EXTENSIONS and offset.is_integer()):  # before it, the header would be voxels
        raise Untaken(
            f"file: found its voxels at byte {offset:g}; expected a whole number from {place} to {MOST_EXTENSIONS}"
        )
    file.seek(place - 4)
    if not file.read(4)[:1].strip(b"\0"):
        return
    fits = True
    while fits and place + 16 <= offset:
        file.seek(place)
        length = int.from_bytes(file.read(4), "little" if header.endianness == "<" else "big", signed=True)
        fits, place = 8 <= length <= offset - place, place + length
    if not fits:
        raise Untaken("file: found an extension of its header that does not end before the voxels; export it anew")
