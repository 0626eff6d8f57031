"""OCT in DICOM: multi-frame Ophthalmic Tomography and single-frame exports, with segmentations given as objects.

    python -m data_prep.dicom INPUT OUTPUT

Frames are B-scans, rows are depth. Label objects that refer to them are used: Segmentation and Label Map Segmentation
(coded names of their segments become the labels) and Surface Segmentation (points in mm). Files without
PatientIdentityRemoved = YES are refused, unless --i-have-deidentified says that somebody took care. Nothing of a header
reaches the data set but spacing, laterality and the model of the device (data_prep/README.md names the profile).
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from data_prep.convert import LATERALITIES, Report, Scan, Source, convert, summarise
from data_prep.dicom_labels import LABEL_OBJECTS, Labels, read_labels
from data_prep.files import files_below
from data_prep.grey import to_grey
from data_prep.options import parser_for, run, subject_of, validate
from data_prep.privacy import Refused, told

NOT_BSCANS = {
    "1.2.840.10008.5.1.4.1.1.77.1.5.1": "a fundus photograph",
    "1.2.840.10008.5.1.4.1.1.77.1.5.2": "a fundus photograph",
    "1.2.840.10008.5.1.4.1.1.77.1.5.5": "a wide-field photograph",
    "1.2.840.10008.5.1.4.1.1.77.1.5.7": "an en-face image",
    "1.2.840.10008.5.1.4.1.1.77.1.5.8": "a volume analysis without grey levels",
    "1.2.840.10008.5.1.4.1.1.66.8": "a height map segmentation; export surfaces or label maps",
}
FEWEST_BYTES = 132  # preamble and the letters DICM


def find(options: Namespace, report: Report) -> tuple[list[Source], Labels]:
    """List the images below INPUT, single frames of one series together, and read the label objects.

    Raises:
        ValueError: if any file still carries a patient's identity.
    """
    series: dict[str, list[tuple[int, Path, Dataset]]] = {}
    objects: list[Path] = []
    paths = files_below(options.input, ("",), report)  # the standard asks for no suffix
    for path in (p for p in paths if p.name.upper() != "DICOMDIR"):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, force=False)
            state = str(header.get("PatientIdentityRemoved", "")).strip().upper()
            kind, frames = str(header.get("SOPClassUID", "")), int(header.get("NumberOfFrames") or 1)
            name = str(header.get("SOPInstanceUID" if frames > 1 else "SeriesInstanceUID", path))
            number = int(header.get("InstanceNumber") or 0)
        except Exception as error:  # of many kinds, and some only when a value is asked for
            report.skip(path, f"file: found no readable DICOM ({type(error).__name__}); expected a DICOM file")
            continue
        _require_deidentified(path, state, options)
        if kind in LABEL_OBJECTS:
            objects.append(path)
        elif kind in NOT_BSCANS:
            report.skip(path, f"SOPClassUID: found {NOT_BSCANS[kind]}; expected B-scans")
        elif "Rows" not in header:
            report.skip(path, f"Rows: found no image ({header.get('Modality', 'unknown modality')}); expected B-scans")
        else:
            series.setdefault(name, []).append((number, path, header))
    labels = read_labels(objects if options.labels != "none" else [], report)
    sources = []
    for group in series.values():
        group.sort(key=lambda entry: (entry[0], entry[1].as_posix()))
        path, header = group[0][1:]
        try:
            people = {_identity(entry[2]) for entry in group}
            if len(people) > 1:
                raise Refused(f"PatientID: found {len(people)} patients in one series; expected one")
            subject = subject_of(path, options, people.pop())
        except Exception as error:
            report.skip(path, told(error))
            continue
        sources.append(Source(path, subject, partial(read, [entry[1] for entry in group], labels, options, report)))
    return sources, labels


def _require_deidentified(path: Path, state: str, options: Namespace) -> None:
    if state != "YES" and not options.i_have_deidentified:
        found = {"": "nothing", "NO": "NO"}.get(state, "another word")
        raise ValueError(
            f"'{path}': PatientIdentityRemoved: found {found}; expected YES. De-identify the files first "
            "(DICOM PS3.15, Annex E), or say --i-have-deidentified if they are and only lack the mark."
        )


def _identity(header: Dataset) -> str | None:
    person, issuer = _text(header, "PatientID"), _text(header, "IssuerOfPatientID")
    return f"{issuer}\\{person}" if issuer and person else person or None


def _text(header: Dataset, name: str) -> str:
    """A text of the header; as Latin-1 where it is not in the character set that the file states.

    pydicom replaces what it cannot decode, so that two patients could become one.
    """
    stored = header.get_item(name)  # bytes, until the value is asked for
    raw = stored.value if stored is not None else None
    value = str(header.get(name, "") or "").strip()
    return raw.decode("latin-1").strip(" \0") if isinstance(raw, bytes) and "\ufffd" in value else value


def read(paths: list[Path], labels: Labels, options: Namespace, report: Report) -> Iterator[Scan | ValueError]:
    """B-scans of a multi-frame file, or of the single-frame files of a series."""
    scan = 0
    for path in paths:
        try:
            dataset = pydicom.dcmread(path)
            frames = read_frames(dataset, options)
            burnt_in = str(dataset.get("BurnedInAnnotation", "")).upper() == "YES"
            uid, device = str(dataset.get("SOPInstanceUID", "")), device_of(dataset)
        except Exception as error:  # as above
            yield ValueError(f"'{path.name}': {told(error)}")
            continue
        if burnt_in:
            report.note("BurnedInAnnotation is YES: text is drawn into the images; look at them before you share them")
        for k, image in enumerate(frames):
            try:
                groups = functional_groups(dataset, k)
                surfaces, label = labels.of_frame(uid, k, image.shape, groups)
                spacing = None if options.spacing_mm else spacing_of(dataset, groups)
                fields = {"scan": scan, "laterality": _laterality(dataset, groups)}
            except Exception as error:
                yield ValueError(f"'{path.name}', frame {k + 1}: {told(error)}")
            else:
                yield Scan(image, spacing, surfaces, label, device=device, fields=fields)
            scan += 1


def read_frames(dataset: Dataset, options: Namespace) -> NDArray[np.uint8]:
    """Grey levels (frames, rows, columns): MONOCHROME1 inverted, values scaled by the number of bits stored.

    Raises:
        ValueError: no pixels, pixels that cannot be decoded, or colours.
    """
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    try:
        values = dataset.pixel_array
    except Exception as error:  # decoders raise many kinds
        name = getattr(syntax, "name", "unknown")
        raise Refused(
            f"PixelData: found pixels of transfer syntax '{name}' that cannot be decoded ({told(error)}). Is it cut "
            "off? Otherwise install a decoder: pip install 'unicorn-monai[dicom]'"
        ) from error
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        if not (values == values[..., :1]).all():
            raise Refused(f"PhotometricInterpretation: found colours ({photometric}); expected MONOCHROME2")
        values = values[..., 0]
    elif photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise Refused(f"PhotometricInterpretation: found '{photometric}'; expected MONOCHROME1 or MONOCHROME2")
    bits = int(dataset.get("BitsStored", 8))
    if bits == 1:
        raise Refused("BitsStored: found 1; expected grey levels. Export the image, not a mask")
    window = options.window
    if window is None and bits > 8:
        window = (
            (0, 2**bits - 1) if not dataset.get("PixelRepresentation", 0) else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
    grey = to_grey(values, window)
    grey = 255 - grey if photometric == "MONOCHROME1" else grey
    return grey if int(dataset.get("NumberOfFrames") or 1) > 1 else grey.reshape(1, *grey.shape[-2:])


def functional_groups(dataset: Dataset, frame: int) -> Dataset:
    """Macros of one frame: those shared by all, overlaid with its own."""
    groups = Dataset()
    for holder, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        items = dataset.get(holder) or []
        if len(items) > index:
            groups.update(items[index])
    return groups


def _first(dataset: Dataset, sequence: str) -> Dataset:
    items = dataset.get(sequence) or []
    return items[0] if len(items) else Dataset()


def spacing_of(dataset: Dataset, groups: Dataset) -> tuple[float, float] | None:
    """(axial, lateral) in mm of one frame: from its Pixel Measures, else from the image itself."""
    for holder in (_first(groups, "PixelMeasuresSequence"), dataset):
        value = holder.get("PixelSpacing")
        if value is not None:
            found = [float(v) for v in value]
            if len(found) != 2 or not all(np.isfinite(v) and v > 0 for v in found):
                raise Refused(f"PixelSpacing: found {found}; expected two positive numbers, or --spacing-mm")
            return found[0], found[1]
    return None


def _laterality(dataset: Dataset, groups: Dataset) -> str | None:
    anatomy = _first(groups, "FrameAnatomySequence").get("FrameLaterality")
    found: Any = anatomy or dataset.get("ImageLaterality") or dataset.get("Laterality")
    return LATERALITIES.get(str(found).strip().upper())


def device_of(dataset: Dataset) -> str | None:
    """Maker and model, never the serial number or the station's name."""
    words = [str(dataset.get(key, "") or "").strip() for key in ("Manufacturer", "ManufacturerModelName")]
    return " ".join(word for word in words if word) or None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return the exit status."""
    parser = parser_for("dicom", __doc__ or "", "a DICOM file, or a folder of them")
    parser.add_argument("--i-have-deidentified", action="store_true", help="the files are, although they lack the mark")
    parser.add_argument("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="values that become 0 and 255")
    options = parser.parse_args(arguments)

    def work() -> int:
        validate(options)
        report = Report(options.strict)
        sources, labels = find(options, report)
        return summarise(convert(sources, options, report, "dicom", labels.scheme), report)

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
