"""OCT in DICOM: multi-frame Ophthalmic Tomography and single-frame exports, with segmentations given as objects.

    python -m data_prep.dicom INPUT OUTPUT

Frames are B-scans, rows are depth. Label objects that refer to them are used: Segmentation and Label Map Segmentation
(coded names of their segments become the labels) and Surface Segmentation (points in mm). Files without
PatientIdentityRemoved = YES are refused, unless --i-have-deidentified says that somebody took care. Nothing of a header
reaches the data set but spacing, laterality and the model of the device (data_prep/README.md names the profile).
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut
from pydicom.uid import JPEGBaseline8Bit

from data_prep.convert import LATERALITIES, convert
from data_prep.dicom_labels import LABEL_OBJECTS, Labels, read_labels
from data_prep.dicom_sizes import read_dicom, require_unpackable_pixels
from data_prep.dicom_values import as_stated, first_of, functional_groups, padding_left_out, view_of, window_stated
from data_prep.files import files_below
from data_prep.grey import require_range_used, to_grey
from data_prep.options import Options, Window, command, subject_of
from data_prep.privacy import Refused, told
from data_prep.scan import Report, Scan, Source
from unicorn_monai.images.faithful_pictures import require_not_filled
from unicorn_monai.system.intake import Untaken

NOT_BSCANS = {
    "1.2.840.10008.5.1.4.1.1.77.1.5.1": "a fundus photograph",
    "1.2.840.10008.5.1.4.1.1.77.1.5.2": "a fundus photograph",
    "1.2.840.10008.5.1.4.1.1.77.1.5.5": "a wide-field photograph",
    "1.2.840.10008.5.1.4.1.1.77.1.5.7": "an en-face image",
    "1.2.840.10008.5.1.4.1.1.77.1.5.8": "a volume analysis without grey levels",
    "1.2.840.10008.5.1.4.1.1.66.8": "a height map segmentation; export surfaces or label maps",
}
Series = dict[str, list[tuple[int, Path, Dataset]]]  # number, file and header of its images


@dataclass(kw_only=True)
class DicomOptions(Options):
    """The command line."""

    i_have_deidentified: Annotated[bool, Parameter(help="the files are, although they lack the mark")] = False
    window: Window = None


def find(options: DicomOptions, report: Report) -> tuple[list[Source], Labels]:
    """List the images below INPUT, single frames of one series together, and read the label objects.

    A file that still carries a patient's identity ends it.
    """
    series: Series = {}
    objects: list[Path] = []
    windows: set[str] = set()
    paths = files_below(options.input, ("",), report)  # the standard asks for no suffix
    for path in (p for p in paths if p.name.upper() != "DICOMDIR"):
        try:
            header = read_dicom(path, stop_before_pixels=True, force=False)
            state = str(header.get("PatientIdentityRemoved", "")).strip().upper()
            kind, frames = str(header.get("SOPClassUID", "")), int(header.get("NumberOfFrames") or 1)
            name = str(header.get("SOPInstanceUID" if frames > 1 else "SeriesInstanceUID", path))
            number = int(header.get("InstanceNumber") or 0)
            window = window_stated(header)
        except (Untaken, MemoryError) as error:
            report.skip(path, told(error))
            continue
        except Exception as error:  # of many kinds, and some only when a value is asked for
            report.skip(path, f"file: found no readable DICOM ({type(error).__name__}); expected a DICOM file")
            continue
        if state != "YES" and not options.i_have_deidentified:
            found = {"": "nothing", "NO": "NO"}.get(state, "another word")
            raise ValueError(
                f"'{path}': PatientIdentityRemoved: found {found}; expected YES. De-identify the files first "
                "(DICOM PS3.15, Annex E), or say --i-have-deidentified if they are and only lack the mark."
            )
        if kind in LABEL_OBJECTS:
            objects.append(path)
        elif kind in NOT_BSCANS:
            report.skip(path, f"SOPClassUID: found {NOT_BSCANS[kind]}; expected B-scans")
        elif "Rows" not in header:
            report.skip(path, f"Rows: found no image ({header.get('Modality', 'unknown modality')}); expected B-scans")
        else:
            series.setdefault(name, []).append((number, path, header))
            windows.add(window)
    if options.window is None and len(windows) > 1:
        report.note(
            f"the files state {len(windows)} different windows of their values, so that equal values become different "
            "grey levels; one --window LOW HIGH for all prevents that"
        )
    labels = read_labels(objects if options.labels != "none" else [], report)
    headers = [header for group in series.values() for _, _, header in group]
    _tell_unused(labels, {str(header.get("SOPInstanceUID", "")) for header in headers}, report)
    return _sources(series, labels, options, report), labels


def _sources(series: Series, labels: Labels, options: DicomOptions, report: Report) -> list[Source]:
    """One source per series, which shows one person."""
    sources = []
    for group in series.values():
        group.sort(key=lambda entry: (entry[0], entry[1].as_posix()))
        own = [path for _, path, _ in group]
        try:
            people = {_identity(header) for _, _, header in group}
            if len(people) > 1:
                raise Refused(f"PatientID: found {len(people)} patients in one series; expected one")
            subject = subject_of(own[0], options, people.pop())
        except Exception as error:
            report.skip(own[0], told(error))
            continue
        sources.append(Source(own[0], subject, partial(read, own, labels, options, report)))
    return sources


def _tell_unused(labels: Labels, images: set[str], report: Report) -> None:
    """Note label objects whose images are not there, and refuse them if that is so of all."""
    named = {uid for uid, _ in labels.maps} | set(labels.points)
    absent = len(named - images)
    if absent and absent == len(named) and images:
        raise ValueError(
            f"label: the label objects refer to {absent} images by their SOPInstanceUID, of which INPUT holds none; "
            "expected those of its images. Were the UIDs changed in one and not in the other? Or --labels none"
        )
    if absent:
        report.note(f"label objects refer to {absent} of {len(named)} images that INPUT does not hold")


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


def read(paths: list[Path], labels: Labels, options: DicomOptions, report: Report) -> Iterator[Scan | ValueError]:
    """B-scans of a multi-frame file, or of the single-frame files of a series."""
    scan = 0
    for path in paths:
        try:
            dataset = read_dicom(path)
            frames, valid = read_frames(dataset, options)
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
                anatomy = first_of(groups, "FrameAnatomySequence").get("FrameLaterality")
                side: Any = anatomy or dataset.get("ImageLaterality") or dataset.get("Laterality")
                fields = {"scan": scan, "laterality": LATERALITIES.get(str(side).strip().upper())}
            except Exception as error:
                yield ValueError(f"'{path.name}', frame {k + 1}: {told(error)}")
            else:
                exists = None if valid is None else valid[k]
                yield Scan(image, spacing, surfaces, label, exists, device=device, fields=fields)
            scan += 1


def read_frames(dataset: Dataset, options: DicomOptions) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Grey levels (frames, rows, columns), MONOCHROME1 inverted, and which pixels exist (None: all).

    More than 8 bits are scaled by the window that the file states (VOI), else by the bits stored; --window replaces
    both.
    """
    stored = _stored(dataset)
    valid = padding_left_out(stored, dataset)
    frames = [(stored[k], view_of(dataset, functional_groups(dataset, k))) for k in range(len(stored))]
    values = np.stack([apply_modality_lut(frame, view) for frame, view in frames])
    if options.window is not None:
        grey = to_grey(values, options.window)
    else:
        grey = np.stack([as_stated(frame, view) for frame, (_, view) in zip(values, frames, strict=True)])
        if int(dataset.get("BitsStored", 8)) != 8:
            require_range_used(grey, values, valid)
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey, valid


def _stored(dataset: Dataset) -> NDArray:
    """Stored values (frames, rows, columns)."""
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    require_unpackable_pixels(dataset)
    try:
        values = dataset.pixel_array
    except Exception as error:  # decoders raise many kinds
        name = getattr(syntax, "name", "unknown")
        raise Refused(
            f"PixelData: found pixels of transfer syntax '{name}' that cannot be decoded ({told(error)}). Is it cut "
            "off? Otherwise install a decoder: pip install 'unicorn-monai[dicom]'"
        ) from error
    if int(dataset.get("NumberOfFrames") or 1) == 1:
        values = values[None]
    for k, frame in enumerate(values if syntax == JPEGBaseline8Bit else ()):
        try:
            require_not_filled(frame)
        except ValueError as error:
            raise Refused(f"PixelData: frame {k + 1} is cut off: {error}; export it anew") from error
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        if not (values == values[..., :1]).all():
            raise Refused(f"PhotometricInterpretation: found colours ({photometric}); expected MONOCHROME2")
        values = values[..., 0]
    elif photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise Refused(f"PhotometricInterpretation: found '{photometric}'; expected MONOCHROME1 or MONOCHROME2")
    if int(dataset.get("BitsStored", 8)) == 1:
        raise Refused("BitsStored: found 1; expected grey levels. Export the image, not a mask")
    return values


def spacing_of(dataset: Dataset, groups: Dataset) -> tuple[float, float] | None:
    """(axial, lateral) in mm of one frame: from its Pixel Measures, else from the image itself."""
    for holder in (first_of(groups, "PixelMeasuresSequence"), dataset):
        if (value := holder.get("PixelSpacing")) is not None:
            found = [float(v) for v in value]
            if len(found) != 2 or not all(np.isfinite(v) and v > 0 for v in found):
                raise Refused(f"PixelSpacing: found {found}; expected two positive numbers, or --spacing-mm")
            return found[0], found[1]
    return None


def device_of(dataset: Dataset) -> str | None:
    """Maker and model, never the serial number or the station's name."""
    words = (str(dataset.get(key, "") or "").strip() for key in ("Manufacturer", "ManufacturerModelName"))
    return " ".join(filter(None, words)) or None


@command
def main(options: DicomOptions) -> int:
    """Convert the files in INPUT."""
    report = Report(options.strict)
    sources, labels = find(options, report)
    return convert(sources, options, report, "dicom", labels.scheme)


if __name__ == "__main__":
    sys.exit(main())
