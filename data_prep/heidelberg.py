"""Exports of Heidelberg's Spectralis, with the layer heights they carry: .vol, .xml with its images, .e2e and .sdb.

    python -m data_prep.heidelberg INPUT OUTPUT --labels paper

Read through eyepy (MIT; `pip install 'unicorn-monai[heidelberg]'`). Of the headers only the patient's id is used, for
the pseudonym; names, birth dates, comments and examination times are not looked at. A layer's name means its lower
border. Layers found by the device's software are not ground truth: look at some.

.e2e does not store the lateral scale: eyepy derives it from the scan angle and a mean eye (289.6 um per degree); such
items are marked "lateral_spacing": "estimated", unless --spacing-mm is given.
"""

import mmap
import struct
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.convert import LATERALITIES, convert
from data_prep.files import files_below
from data_prep.grey import INVALID, from_reflectivity, mask_white_border, to_grey
from data_prep.label_schemes import PAPER
from data_prep.options import Options, command, subject_of
from data_prep.privacy import Refused, told
from data_prep.scan import Report, Scan, Source
from unicorn_monai.images.files import open_picture
from unicorn_monai.system.intake import Untaken, require_parsable, require_regular, require_unpackable

DEVICE = "Spectralis"
VERSIONS = (b"HSF-OCT", b"ep-v")  # HEYEX, eyepy
VOL_HEADER, BSCAN_HEADER = 2048, 256  # bytes before the localizer image, before the layers of a B-scan
EYE, PATIENT_ID = slice(84, 88), slice(140, 164)  # texts in the header of a .vol
# Everything there that says who was examined, and when. eyepy takes texts for ASCII and refuses dates it does not know.
PERSONAL = (slice(84, 96), slice(104, 136), slice(140, 172), slice(176, 208), slice(224, 258))
IMAGE, PATIENT = 1073741824, 9  # types of .e2e folders
FIRST, CHUNK, CONTENT = 88, 52, 60  # bytes before the first chunk of an .e2e; of the header of a chunk, of a content
FOLDER = np.dtype([("position", "<u4"), ("start", "<u4"), ("size", "<u4"), ("others", "V32")])
MOST_FOLDERS = 250_000


def find(options: Options, report: Report) -> list[Source]:
    """List the volumes below INPUT; files that cannot be read are reported."""
    try:
        import eyepy  # noqa: F401
    except ImportError as error:
        raise ValueError(f"eyepy is missing ({error}): pip install 'unicorn-monai[heidelberg]'") from error
    kinds = {".vol": find_vol, ".xml": find_xml, ".e2e": find_e2e, ".sdb": find_e2e}
    sources: list[Source] = []
    for path in files_below(options.input, tuple(kinds), report):
        try:
            sources += kinds[path.suffix.lower()](path, options)
        except Exception as error:  # the parsers raise whatever a broken file leads them into
            report.skip(path, f"file: found no readable {path.suffix} export ({told(error)}); export it anew")
    return sources


def find_vol(path: Path, options: Options) -> list[Source]:
    """The volume of a .vol file; its size must be what its header promises."""
    import construct
    from eyepy.io.he.vol_reader import vol_format

    with path.open("rb") as file:
        start = file.read(VOL_HEADER)
    if len(start) < VOL_HEADER:
        raise Refused(f"found {path.stat().st_size} bytes, expected at least {VOL_HEADER}")
    if not start.startswith(VERSIONS):
        raise Refused(f"found {start[:12]!r} at its beginning, expected one of {VERSIONS}")
    blanked = _without_person(bytearray(start))
    header = construct.Struct(*vol_format.subcons[:-2]).parse(blanked)  # all but the localizer and the B-scans
    if min(header.size_x, header.size_y, header.n_bscans) < 1:
        raise Refused(f"found {header.n_bscans} B-scans of {header.size_y} x {header.size_x} pixels")
    least = VOL_HEADER + header.size_x_slo * header.size_y_slo
    least += header.n_bscans * (BSCAN_HEADER + 4 * header.size_x * header.size_y)
    require_unpackable(2 * least, "it")  # eyepy's numbers beside the file's
    if path.stat().st_size < least:
        raise Refused(f"found {path.stat().st_size} bytes, its header promises {least}; it is cut off or no .vol")
    identity = _text(start, PATIENT_ID) or (f"HEYEX {header.pid}" if header.pid else None)
    return [Source(path, subject_of(path, options, identity), partial(read_vol, path))]


def _text(header: Any, place: slice) -> str:
    """A zero-terminated text of a .vol header, in Latin-1 as HEYEX writes it; behind the zero may stand anything."""
    return bytes(header[place]).partition(b"\0")[0].decode("latin-1").strip()


def _without_person(content: Any) -> Any:
    """The bytes of a .vol file, in place, with zeros for all that says who was examined, and when."""
    for place in PERSONAL:
        content[place] = bytes(place.stop - place.start)
    return content


def read_vol(path: Path) -> Iterator[Scan | ValueError]:
    """B-scans of a .vol file, circular and radial ones too."""
    from eyepy.io.he.vol_reader import SEG_MAPPING, vol_format

    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as content:
            side = _text(content, EYE)
            parsed = vol_format.parse_stream(_without_person(content))
    except Exception as error:  # whatever the parser runs into
        raise ValueError(f"file: found no readable .vol export ({type(error).__name__}); export it anew") from error
    spacing = (float(parsed.scale_y), float(parsed.scale_x))
    for k, bscan in enumerate(parsed.bscans):
        rows = np.array(bscan.layer_segmentations, dtype=np.float64).reshape(-1, parsed.size_x)
        surfaces = _existing({name: rows[i] for name, i in SEG_MAPPING.items() if i < len(rows)})
        try:
            image, valid = from_reflectivity(np.array(bscan.data, dtype=np.float64))
        except ValueError as error:
            yield ValueError(f"B-scan {k}: {told(error)}")
        else:
            fields = _fields(k, side, bscan.quality)
            yield Scan(image, spacing, surfaces or None, valid=valid, device=DEVICE, fields=fields)


def _existing(surfaces: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Surfaces with NaN instead of 3.4e38; those without any row are left out.

    Exports disagree on whether PR1 or PR2 is the upper one: the upper is called EZ, the lower IZ.
    """
    marked = {name: np.where(np.abs(rows) >= INVALID, np.nan, rows) for name, rows in surfaces.items()}
    found = {name: rows for name, rows in marked.items() if not np.isnan(rows).all()}
    if "PR1" in found and "PR2" in found:
        found["EZ"], found["IZ"] = sorted((found["PR1"], found["PR2"]), key=np.nanmean)
    return found


def _fields(scan: int, laterality: str | None, quality: float | None) -> dict[str, Any]:
    known = quality is not None and np.isfinite(quality) and 0 <= quality < INVALID
    return {
        "scan": scan,
        "laterality": LATERALITIES.get(laterality or ""),
        "quality": round(float(quality), 2) if known else None,  # type: ignore[arg-type]
    }


def find_xml(path: Path, options: Options) -> list[Source]:
    """The volume of an .xml export."""
    from eyepy.io.he.xml_reader import HeXmlReader

    reader = HeXmlReader(require_parsable(path))
    if not reader.xml_root[0].findall(".//ImageType[Type='OCT'].."):
        raise Refused("it lists no OCT image")
    return [Source(path, subject_of(path, options, _patient_of_xml(path)), partial(read_xml, path))]


def _patient_of_xml(path: Path) -> str | None:
    """The id in an .xml export, in the encoding the file declares, or Latin-1 where it declares none and is not UTF-8.

    eyepy takes every file for UTF-8 and replaces what is not: two patients could become one.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError:
        root = ElementTree.parse(path, ElementTree.XMLParser(encoding="iso-8859-1")).getroot()
    found = (root[0].findtext("./Patient/PatientID") or root[0].findtext("./Patient/ID") or "").strip()
    return found or None


def read_xml(path: Path) -> Iterator[Scan | ValueError]:
    """B-scans of an .xml export; each image is read from beside it.

    Not by eyepy's own volume: that fails for single B-scans, needs the localizer, and misses the invalid value 3.4e38.
    """
    from eyepy.io.he.xml_reader import HeXmlReader

    try:
        reader = HeXmlReader(path)
        values: dict[str, Any] = reader.parsed_values
        spacing = None if None in (values["scale_y"], values["scale_x"]) else (values["scale_y"], values["scale_x"])
        roots = reader.xml_root[0].findall(".//ImageType[Type='OCT']..")
        scans = list(zip(reader.bscan_meta, roots, strict=True))
    except Exception as error:  # whatever the parser runs into
        raise ValueError(f"file: found no readable .xml export ({type(error).__name__}); export it anew") from error
    for k, (meta, root) in enumerate(scans):
        picture = path.parent / meta["scan_name"]
        try:
            surfaces = {
                line.findtext("./Name", ""): np.array(line.findtext("./Array", "").split(), dtype=np.float64)
                for line in root.findall(".//SegLine")
            }
        except ValueError:
            yield ValueError(f"B-scan {k}: surfaces: found what is no number; expected rows. Export it anew")
            continue
        try:
            if not picture.resolve().is_relative_to(path.parent.resolve()):
                raise ValueError(f"image: '{meta['scan_name']}' lies outside the export; refused")
            with open_picture(picture) as opened:
                image = to_grey(np.asarray(opened.convert("L") if opened.mode in ("RGB", "RGBA", "P") else opened))
        except (OSError, SyntaxError, ValueError) as error:
            yield ValueError(f"B-scan {k}: {error}")
        else:
            fields, valid = _fields(k, values["scan_position"], meta["quality"]), mask_white_border(image)
            yield Scan(image, spacing, _existing(surfaces) or None, valid=valid, device=DEVICE, fields=fields)


def find_e2e(path: Path, options: Options) -> list[Source]:
    """The volumes of an .e2e file, which may hold several patients, eyes and visits."""
    from eyepy.io.he import HeE2eReader

    require_ending_directory(path)
    sources = []
    with HeE2eReader(path) as reader:
        for series in reader.series:
            if not any(IMAGE in slice_.folders for slice_ in series.slices.values()):
                continue
            folders = series.patient.folders.get(PATIENT, []) if series.patient else []
            identity = folders[0].data.patient_id.strip(" \0") if folders else ""
            identity = identity or (f"HEYEX {series.patient.id}" if series.patient else None)
            sources.append(Source(path, subject_of(path, options, identity), partial(read_e2e, path, series.id)))
    if not sources:
        raise Refused("it holds no series of B-scans")
    return sources


def require_ending_directory(path: Path) -> None:
    """Refuse an .e2e whose directory goes in circles, or lists more than a file can hold: eyepy follows it to its end.

    Version (36 bytes), header (52); then chunks: header (52), folders (44 each), their contents. The next chunk begins
    behind the content of a chunk's last folder, wherever that is.
    """
    place, folders, contents, seen = FIRST, 0, 0, set()
    length = require_regular(path).stat().st_size
    with path.open("rb") as file:
        while place + CHUNK <= length:
            if place in seen:
                raise Untaken(f"its directory points backwards, to byte {place}, and has no end")
            seen.add(place)
            file.seek(place)
            (count,) = struct.unpack("<I", file.read(CHUNK)[36:40])
            if count == 0 or place + CHUNK + count * FOLDER.itemsize > length:
                break  # where eyepy stops reading, too
            folders += count
            if folders > MOST_FOLDERS:
                raise Untaken(f"its directory lists more than {MOST_FOLDERS} folders")
            table = np.frombuffer(file.read(count * FOLDER.itemsize), FOLDER)
            contents += int(table["size"].sum(dtype=np.int64))
            place = int(table["start"][-1]) + int(table["size"][-1]) + CONTENT
    require_unpackable(contents, "it")


def read_e2e(path: Path, series_id: int) -> Iterator[Scan | ValueError]:
    """B-scans of one series of an .e2e file."""
    from eyepy.io.he import HeE2eReader
    from eyepy.io.he.e2e_format import TypesEnum
    from eyepy.io.he.vol_reader import SEG_MAPPING

    with HeE2eReader(path) as reader:
        try:
            series = next(series for series in reader.series if series.id == series_id)
            lateral = series.get_x_scale_derivation()["scaling_x_um_per_pixel"]
            sides = series.folders.get(TypesEnum.laterality, [])
            side = getattr(sides[0].data.laterality, "name", None) if sides else None
        except Exception as error:  # as for a whole file
            raise ValueError(f"series {series_id}: found no readable header ({type(error).__name__})") from error
        for k, slice_ in enumerate(sorted(series.slices.values(), key=lambda s: s.id)):
            try:
                meta = slice_.get_meta()
                image, valid = from_reflectivity(np.array(slice_.get_bscan(), dtype=np.float64))
                layers = slice_.get_layers() if TypesEnum.layer_annotation in slice_.folders else {}
                rows = {name: np.array(layers[i], dtype=np.float64) for name, i in SEG_MAPPING.items() if i in layers}
                axial, quality = float(meta["scale_y"]), meta["quality_ui"]
            except Exception as error:  # as for a whole file
                yield ValueError(f"B-scan {k}: found no readable image or header ({told(error)})")
                continue
            spacing = (axial, lateral / 1000) if lateral and axial > 0 else None
            fields = _fields(k, side, quality) | {"lateral_spacing": "estimated" if spacing else None}
            yield Scan(image, spacing, _existing(rows) or None, valid=valid, device=DEVICE, fields=fields)


@command
def main(options: Options) -> int:
    """Convert the exports in INPUT."""
    report = Report(options.strict)
    return convert(find(options, report), options, report, "heidelberg", PAPER)


if __name__ == "__main__":
    sys.exit(main())
