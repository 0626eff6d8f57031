"""Segmentations of OCT as DICOM objects: label maps by frame, and surfaces as points in millimetres.

    column = (p - origin) . r / lateral spacing,   row = (p - origin) . c / axial spacing

for a point p and a frame with origin, row direction r and column direction c; it belongs to the frame whose plane is
within 10 um; frames are never that close together.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from data_prep.dicom_sizes import read_dicom, require_unpackable_pixels
from data_prep.label_schemes import Scheme
from data_prep.privacy import Refused, told
from data_prep.scan import Report
from unicorn_monai.images.files import IGNORE_LABEL

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
SURFACES = "1.2.840.10008.5.1.4.1.1.66.5"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
LABEL_OBJECTS = (SEGMENTATION, SURFACES, LABEL_MAP)
NEAR_MM = 0.01  # of a point to a lone frame's plane


@dataclass
class Labels:
    """What the label objects say, by SOP Instance UID of the image."""

    names: dict[int, str] = field(default_factory=dict)  # segment number -> name, of label maps
    maps: dict[tuple[str, int], NDArray[np.uint8]] = field(default_factory=dict)  # (image, frame) -> (rows, columns)
    # Image -> name of the surface -> (points, 3), mm, in the order of the surface numbers.
    points: dict[str, dict[str, NDArray[np.floating]]] = field(default_factory=dict)

    @property
    def scheme(self) -> Scheme | None:
        """Labels of the objects; None where there are none."""
        if self.maps:
            return Scheme(("background", *(self.names[k] for k in sorted(self.names))))
        if self.points:
            order = tuple(next(iter(self.points.values())))
            return Scheme((f"above {order[0]}", *(f"below {name}" for name in order)), order)
        return None

    def of_frame(
        self, uid: str, frame: int, shape: Sequence[int], groups: Dataset
    ) -> tuple[dict[str, NDArray[np.floating]] | None, NDArray[np.uint8] | None]:
        """Surfaces and label map of one frame, each None where there is none."""
        label = self.maps.get((uid, frame))
        if label is not None and label.shape != tuple(shape):
            raise Refused(f"segmentation: found shape {label.shape}; expected that of the frame, {tuple(shape)}")
        if uid not in self.points:
            return None, label
        place = frame_geometry(groups)
        return {name: to_rows(points, place, shape[1]) for name, points in self.points[uid].items()}, label


def read_labels(paths: Sequence[Path], report: Report) -> Labels:
    """Read all label objects, which name their segments alike; what cannot be used is reported."""
    labels = Labels()
    for path in paths:
        try:
            dataset = read_dicom(path)
            if dataset.SOPClassUID == SURFACES:
                _read_surfaces(dataset, labels)
            else:
                _read_maps(dataset, labels)
        except _Contradiction:
            raise
        except Exception as error:  # whatever is missing in a broken object
            report.skip(path, f"segmentation: found nothing usable ({told(error)})")
    return labels


class _Contradiction(Refused):
    """Two label objects that do not fit each other."""


def _name(item: Dataset, fallback: str) -> str:
    """Coded meaning of a segment or surface; its free text stays behind."""
    codes = item.get("SegmentedPropertyTypeCodeSequence") or []
    return str(codes[0].get("CodeMeaning", fallback)) if len(codes) else fallback


def _read_maps(dataset: Dataset, labels: Labels) -> None:
    segments = {int(one.SegmentNumber): _name(one, f"segment {one.SegmentNumber}") for one in dataset.SegmentSequence}
    segments.pop(0, None)  # a label map may name its background
    if sorted(segments) != list(range(1, len(segments) + 1)):
        raise Refused(f"segment numbers are {sorted(segments)}, expected 1, 2, ... without gaps")
    uses = Counter(segments.values())
    segments = {k: f"{name} {k}" if uses[name] > 1 else name for k, name in segments.items()}
    if labels.names and labels.names != segments:
        raise _Contradiction(f"SegmentSequence: found {segments} and {labels.names}; expected the same in all files")
    require_unpackable_pixels(dataset)
    pixels = dataset.pixel_array
    pixels = pixels.reshape(-1, *pixels.shape[-2:])
    is_map = dataset.SOPClassUID == LABEL_MAP
    if is_map and pixels.max(initial=0) > IGNORE_LABEL:
        raise Refused(f"pixels are up to {pixels.max()}, expected at most {IGNORE_LABEL}")
    found: dict[tuple[str, int], NDArray[np.uint8]] = {}  # half of a broken object is worse than nothing
    for k, own in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        image = own.DerivationImageSequence[0].SourceImageSequence[0]
        frame = image.get("ReferencedFrameNumber", 1)
        frame = int(frame[0] if isinstance(frame, pydicom.multival.MultiValue) else frame) - 1
        key = (str(image.ReferencedSOPInstanceUID), frame)
        place = found.setdefault(key, np.array(labels.maps.get(key, np.zeros(pixels.shape[1:], np.uint8))))
        if is_map:
            place[:] = pixels[k]
        else:
            number = int(own.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            share = 1 if dataset.SegmentationType == "BINARY" else int(dataset.MaximumFractionalValue) / 2
            place[pixels[k] >= share] = number
    labels.names = segments
    labels.maps |= found


def _read_surfaces(dataset: Dataset, labels: Labels) -> None:
    series = dataset.get("ReferencedSeriesSequence") or []
    references = [item for one in series for item in one.get("ReferencedInstanceSequence") or []]
    images = [str(item.ReferencedSOPInstanceUID) for item in references]
    if not images:
        raise Refused("it refers to no image")
    found: dict[str, NDArray[np.floating]] = {}
    named = {int(item.SegmentNumber): _name(item, "") for item in dataset.SegmentSequence}
    for item in sorted(dataset.SurfaceSequence, key=lambda item: int(item.SurfaceNumber)):
        number = int(item.SurfaceNumber)
        coordinates = item.SurfacePointsSequence[0].PointCoordinatesData
        values = np.frombuffer(coordinates, dtype="<f4") if isinstance(coordinates, bytes) else np.asarray(coordinates)
        name = named.get(number) or f"surface {number}"
        found[name if name not in found else f"{name} {number}"] = values.reshape(-1, 3).astype(np.float64)
    names = [list(points) for points in labels.points.values()]
    if names and names[0] != list(found):
        raise _Contradiction(f"SurfaceSequence: found {list(found)} and {names[0]}; expected the same in all files")
    for image in images:
        labels.points[image] = found


def frame_geometry(groups: Dataset) -> tuple[NDArray[np.floating], ...]:
    """Origin, row direction, column direction and (axial, lateral) spacing of a frame."""
    try:
        origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        cosines = np.array(groups.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
        spacing = np.array(groups.PixelMeasuresSequence[0].PixelSpacing, dtype=float)
    except (AttributeError, IndexError, ValueError) as error:
        raise Refused("surfaces: the frame does not say where it lies; expected its plane") from error
    return origin, cosines[:3], cosines[3:], spacing


def to_rows(
    points: NDArray[np.floating], place: tuple[NDArray[np.floating], ...], columns: int
) -> NDArray[np.floating]:
    """0-based rows (columns,) of a surface in a frame: points (n, 3) near its plane, interpolated; NaN outside."""
    origin, along, down, spacing = place
    offset = points - origin
    near = np.abs(offset @ np.cross(along, down)) < NEAR_MM
    column, row = offset[near] @ along / spacing[1], offset[near] @ down / spacing[0]
    if column.size == 0:
        return np.full(columns, np.nan)
    order = np.argsort(column, kind="stable")
    at = np.arange(columns, dtype=float)
    rows = np.interp(at, column[order], row[order])
    rows[(at < column.min() - 0.5) | (at > column.max() + 0.5)] = np.nan
    return rows
