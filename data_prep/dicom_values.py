"""What the stored values of a DICOM image mean: its modality transformation, window and padding.

    stored values --rescale--> values --VOI window, else the range of the bits stored--> grey levels

A window is LINEAR, LINEAR_EXACT or SIGMOID (PS3.3 C.11.2.1.2 and C.11.2.1.3), or a table; of several the first counts.
In multi-frame files it may stand in the functional groups, shared or of each frame. 8-bit values stay as they are.
"""

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing

from data_prep.grey import scaled
from data_prep.privacy import Refused

WINDOW = ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence")
RESCALE = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def functional_groups(dataset: Dataset, frame: int) -> Dataset:
    """Macros of one frame: those shared by all, overlaid with its own."""
    groups = Dataset()
    for holder, index in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        items = dataset.get(holder) or []
        if len(items) > index:
            groups.update(items[index])
    return groups


def first_of(dataset: Dataset, sequence: str) -> Dataset:
    """The first item of a sequence; an empty one where there is none."""
    items = dataset.get(sequence) or []
    return items[0] if len(items) else Dataset()


def view_of(dataset: Dataset, groups: Dataset) -> Dataset:
    """What an image, or the functional groups of a frame, say of its values, as pydicom's functions expect it."""
    view = Dataset()
    view.set_original_encoding(*dataset.original_encoding)  # in which tables are stored
    frame = first_of(groups, "PixelValueTransformationSequence"), first_of(groups, "FrameVOILUTSequence")
    for holder in (dataset, *frame):
        for key in (*WINDOW, *RESCALE, "BitsStored", "PixelRepresentation"):
            if key in holder:
                setattr(view, key, holder[key].value)
    return view


def as_stated(values: NDArray, view: Dataset) -> NDArray[np.uint8]:
    """Grey levels of rescaled values, by the window that the file states, else by the range of its bits."""
    bits, signed = int(view.get("BitsStored", 8)), bool(view.get("PixelRepresentation", 0))
    if bits != 8 and view.get("VOILUTSequence"):
        return _by_table(values, view.VOILUTSequence[0])
    if bits != 8 and view.get("WindowCenter") is not None and view.get("WindowWidth") is not None:
        return _windowed(values, view)
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1], dtype=np.float64)
    if view.get("ModalityLUTSequence"):
        ends = np.array([0, 2 ** int(view.ModalityLUTSequence[0].LUTDescriptor[2]) - 1], dtype=np.float64)
    elif "RescaleSlope" in view and "RescaleIntercept" in view:
        ends = np.sort(ends * float(view.RescaleSlope) + float(view.RescaleIntercept))
    if not (np.isfinite(ends).all() and ends[0] < ends[1]):
        raise Refused(f"RescaleSlope: found values from {ends[0]:g} to {ends[1]:g}; expected a range. Give --window")
    return scaled(values, ends.tolist())


def window_stated(header: Dataset) -> str:
    """What decides how the values of a file become grey levels, for comparing files."""
    view = view_of(header, functional_groups(header, 0))
    keys = ("BitsStored",) if view.get("BitsStored") == 8 else ("BitsStored", *WINDOW[:3], *RESCALE[:2])
    return repr([str(view.get(key)) for key in keys])


def _windowed(values: NDArray, view: Dataset) -> NDArray[np.uint8]:
    function = str(view.get("VOILUTFunction") or "LINEAR").strip().upper()
    centre, width = (float(np.atleast_1d(view[key].value)[0]) for key in ("WindowCenter", "WindowWidth"))
    least = 1 if function == "LINEAR" else 0
    if function not in FUNCTIONS or not np.isfinite([centre, width]).all() or width <= least:
        raise Refused(
            f"WindowWidth: found {centre:g} and {width:g} as centre and width of a {function} window; expected one of "
            f"{list(FUNCTIONS)}, wider than {least}. Give --window LOW HIGH"
        )
    eight = Dataset()  # the range that pydicom maps to is that of the bits of its data set
    eight.PhotometricInterpretation, eight.BitsStored, eight.PixelRepresentation = "MONOCHROME2", 8, 0
    eight.VOILUTFunction, eight.WindowCenter, eight.WindowWidth = function, centre, width
    return np.rint(apply_windowing(values, eight)).astype(np.uint8)


def _by_table(values: NDArray, table: Dataset) -> NDArray[np.uint8]:
    """Not by pydicom's function: that counts the entries of a table of 8 bits modulo 256."""
    entries, first, depth = (int(number) for number in table.LUTDescriptor)
    data = table.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, dtype="<u2" if len(data) > (entries or 2**16) else np.uint8)
    place = np.clip(np.rint(values).astype(np.int64) - first, 0, len(data) - 1)
    return scaled(np.asarray(data)[place], (0, 2**depth - 1))


def padding_left_out(stored: NDArray, dataset: Dataset) -> NDArray[np.bool_] | None:
    """Which pixels exist: all but those of the padding value, or between it and its limit; None: all do."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limits = [int(value), int(dataset.get("PixelPaddingRangeLimit", value))]
    padded = (stored >= min(limits)) & (stored <= max(limits))
    return ~padded if padded.any() else None
