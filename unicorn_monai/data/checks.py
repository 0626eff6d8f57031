"""Look for what would poison an experiment: one `Problem` per finding, with file, field, found, expected and remedy.

`problems` reads every file; the experiment runs it first. `require_sound` looks at ``dataset.json`` and the headers of
a few files only, so every bundle can afford it whenever it lists a data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unicorn_monai.data.label_checks import LabelSurvey
from unicorn_monai.data.layout import HEADER, SPLITS, label_map_counts, local_folder, read_header, resolve_item
from unicorn_monai.images.files import IGNORE_LABEL, read_array, read_shape, read_spacing
from unicorn_monai.images.orientation import judge, label_evidence, row_evidence
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.records import SPACING

SMALLEST_SPACING_MM, LARGEST_SPACING_MM = 1e-4, 0.5  # of an OCT pixel; beyond, micrometres were taken for millimetres
SAMPLE = 64  # files whose headers are read by `require_sound`
FEWEST_LEVELS = 64  # of 256; what spans fewer was stored with a range of which it uses a small part
MULTIPLE = 64  # of the sides of colour images
LOSSY = b"\xff\xd8\xff"  # a JPEG file begins so


@dataclass(frozen=True)
class Problem:
    """One finding; a warning unless `fatal`."""

    file: str
    field: str
    found: str
    expected: str
    remedy: str
    fatal: bool = True

    def __str__(self) -> str:
        kind = "" if self.fatal else "warning: "
        return f"{kind}{self.file}: {self.field}: found {self.found}; expected {self.expected}. {self.remedy}"

    def to_dict(self) -> dict[str, str]:
        """Plain dictionary with a "severity" of "error" or "warning"."""
        own = asdict(self)
        return {"severity": "error" if own.pop("fatal") else "warning", **own}


def check(dataset_dir: PathLike, need_labels: bool = False) -> list[str]:
    """One line per fatal problem; empty if there is none. For the arguments see `problems`."""
    return [str(problem) for problem in problems(dataset_dir, need_labels) if problem.fatal]


def require_sound(dataset_dir: PathLike, header: Mapping[str, Any], items: Sequence[Mapping[str, Any]] = ()) -> None:
    """Refuse a data set by its ``dataset.json`` and the file headers of a few items; cheap for any number of images.

    Of the items, which have absolute paths, at most 64, evenly spread, have their files' headers read.
    """
    found = [problem for problem in _header_problems(header) if problem.fatal]
    for item in items[:: max(1, -(-len(items) // SAMPLE))]:
        found += _file_problems(item, item)
    if found:
        more = f"\n... and {len(found) - 5} more" if len(found) > 5 else ""
        lines = "\n".join(map(str, found[:5]))
        raise ValueError(
            f"The data set '{dataset_dir}' cannot be used; `unicorn-monai check` says more:\n{lines}{more}"
        )


def problems(
    dataset_dir: PathLike, need_labels: bool = False, pixels: dict[bytes, tuple[str, str]] | None = None
) -> list[Problem]:
    """Read every file of a data set and list what is wrong with it; without a readable ``dataset.json`` it is refused.

    Args:
        dataset_dir: the data set folder.
        need_labels: every image must have a label map.
        pixels: receives the digest of every image's pixels, with its split and name.
    """
    dataset_dir = local_folder(dataset_dir)
    header = read_header(dataset_dir)
    survey = _Survey(header, {} if pixels is None else pixels)
    keys = ("image", "label") if need_labels else ("image",)
    found = [*_header_problems(header, need_subjects=True), *([] if need_labels else _incomplete(header))]
    for split in SPLITS:
        for item in header.get(split, []):
            try:
                resolved = resolve_item(Path(dataset_dir), item, keys)
                image = read_array(resolved["image"])
                lossy = [p for p in _file_problems(item, resolved) if p.field == "format"]
                label = read_array(resolved["label"]) if "label" in resolved else None
            except ValueError as error:
                expected, remedy = "a readable file inside the data set", "Restore or convert it again."
                found.append(Problem(item["image"], "files", str(error).rstrip("."), expected, remedy))
                continue
            found += [*lossy, *_pixel_problems(item, image, label, survey.values)]
            found += survey.add(split, item, resolved["image"], image, label)
    return found + list(survey.problems(need_labels))


def _header_problems(header: Mapping[str, Any], need_subjects: bool = False) -> Iterator[Problem]:
    """What ``dataset.json`` alone tells."""
    subjects: dict[str, set[str]] = {}
    images: set[str] = set()
    oct_ = header.get("modality", "OCT") == "OCT"
    if need_subjects and not (isinstance(header.get("device"), str) and header["device"]):
        found = repr(header.get("device"))
        yield Problem(HEADER, "device", found, "the name of the device", "Add it; it names the domain.")
    if not isinstance(header.get("modality", "OCT"), str):
        yield Problem(HEADER, "modality", repr(header["modality"]), '"OCT", "RGB", ...', "Correct it.")
    yield from _spacing_problems(HEADER, header.get("spacing_mm"), oct_)
    for split in SPLITS:
        for item in header.get(split, []):
            name = item["image"]
            if "subject" in item:
                subjects.setdefault(str(item["subject"]), set()).add(split)
            elif need_subjects:
                yield Problem(name, "subject", "none", "a pseudonym", "Add it; splits are by subject.")
            if name in images:
                yield Problem(name, "image", "the file listed more than once", "one item per image", "Remove one.")
            images.add(name)
            yield from _spacing_problems(name, item.get("spacing_mm"), oct_)
            if str(item.get("label", "")).lower().endswith((".jpg", ".jpeg")):
                yield _lossy(item["label"], Path(item["label"]).suffix)
    if not images:
        yield Problem(HEADER, "items", "no images", f"some in {list(SPLITS)}", "Convert again; look what was skipped.")
    for subject, splits in sorted(subjects.items()):
        if len(splits) > 1:
            found = f"'{subject}' in {sorted(splits)}"
            yield Problem(HEADER, "subject", found, "one split per subject", "Split anew, by subject.")


def _incomplete(header: dict[str, Any]) -> Iterator[Problem]:
    """Splits of which some images have a label map and others do not."""
    for split, (labelled, total) in label_map_counts(header).items():
        if 0 < labelled < total:
            first = next(item["image"] for item in header[split] if "label" not in item)
            found = f"{total - labelled} of {total} images of {split} without a label map, first '{first}'"
            remedy = "Look where their label files are; scores are of images with one, training on labels needs all."
            yield Problem(HEADER, "label", found, "one for each image of the split, or for none", remedy, False)


def _spacing_problems(file: str, spacing: Any, oct_: bool) -> Iterator[Problem]:
    if spacing is None:
        return
    obeys, expected = SPACING
    if not obeys(spacing):
        yield Problem(file, "spacing_mm", repr(spacing), expected, "Correct it, or write null where it is unknown.")
    elif oct_ and not all(SMALLEST_SPACING_MM <= s <= LARGEST_SPACING_MM for s in spacing):
        expected = f"{SMALLEST_SPACING_MM} to {LARGEST_SPACING_MM} mm per pixel of OCT"
        yield Problem(file, "spacing_mm", repr(spacing), expected, "Is it in micrometres? Give millimetres.", False)


def _lossy(name: str, kind: str) -> Problem:
    found, expected = f"a lossy label map ({kind})", "a format that keeps values: .nii.gz or .png"
    return Problem(name, "format", found, expected, "Lossy compression made up label values: export it anew.")


def _file_problems(item: Mapping[str, Any], resolved: Mapping[str, Any]) -> Iterator[Problem]:
    """What the headers of an item's files tell; unreadable ones are left to whoever reads them."""
    if "label" not in resolved:
        return
    with Path(resolved["label"]).open("rb") as file:
        if file.read(len(LOSSY)) == LOSSY:
            yield _lossy(str(item["label"]), "by its content, whatever its name")
            return
    try:
        image, label = (read_shape(resolved[key])[:2] for key in ("image", "label"))
    except ValueError:
        return
    if image != label:
        yield _shape_problem(item, label, image)


def _shape_problem(item: Mapping[str, Any], label: tuple[int, ...], image: tuple[int, ...]) -> Problem:
    found, expected = f"shape {tuple(label)}", f"that of its image, {tuple(image[:2])}"
    return Problem(str(item["label"]), "shape", found, expected, "Convert both again.")


def _pixel_problems(
    item: Mapping[str, Any], image: np.ndarray, label: np.ndarray | None, values: set[int]
) -> Iterator[Problem]:
    name = item["image"]
    if image.dtype == bool:
        yield Problem(name, "pixels", "one bit per pixel", "grey levels", "Export the image itself, not a mask.")
    elif not np.isfinite(image).all():
        yield Problem(name, "pixels", "NaN or infinite values", "finite grey levels", "Repair or drop it.")
    elif image.min() == image.max():
        yield Problem(name, "pixels", f"a constant image (value {image.min()})", "an image", "Drop it.")
    elif np.issubdtype(image.dtype, np.floating) and not 0 <= image.min() <= image.max() <= 1:
        found = f"floating-point values {image.min():.4g} to {image.max():.4g}"
        yield Problem(name, "pixels", found, "0 to 1, or an integer type", "Convert again with `--window`.")
    elif image.dtype.itemsize > 1 and np.issubdtype(image.dtype, np.integer):
        share = float(image.max()) / np.iinfo(image.dtype).max
        if image.min() < 0 or share < 0.25:
            found = f"{image.dtype} values {image.min()} to {image.max()}"
            expected = "the range of the type to be used: grey is value / largest value of the type"
            yield Problem(name, "pixels", found, expected, "Convert again with `--window`.", False)
    if label is None:
        return
    if label.ndim != 2:
        found = f"{label.shape[-1]} channels"
        yield Problem(item["label"], "channels", found, "one", "Convert colours to label values.")
        return
    if label.shape != image.shape[:2]:
        yield _shape_problem(item, label.shape, image.shape)
    present = set(np.unique(label).tolist())
    if unknown := sorted(present - values):
        found = f"{unknown[:8]}{' ...' if len(unknown) > 8 else ''}, which 'labels' does not name"
        yield Problem(item["label"], "values", found, f"{sorted(values)}", "Extend 'labels' or repair it.")
    elif present == {IGNORE_LABEL}:
        remedy = "Leave the label out, or trace it."
        yield Problem(item["label"], "values", "255 (ignore) everywhere", "some labelled pixels", remedy, False)


class _Survey:
    """What only the whole data set shows: sizes, channels, types, duplicates, orientation, spacing of the files."""

    def __init__(self, header: Mapping[str, Any], pixels: dict[bytes, tuple[str, str]]) -> None:
        self.meaning = LabelSurvey(header["labels"])
        self.values = {int(v) for v in header["labels"]} | {IGNORE_LABEL}
        self.spacing = header.get("spacing_mm")
        self.oct = header.get("modality", "OCT") == "OCT"
        total = sum(len(header.get(split, [])) for split in SPLITS)
        self.every, self.count = max(1, total // SAMPLE), 0
        self.shapes: dict[tuple[int, ...], str] = {}  # size -> first image of it
        self.channels: dict[int, str] = {}
        self.types: dict[str, str] = {}
        self.seen = pixels  # digest -> split, image
        self.levels = (255, 0)  # lowest and highest grey level of the 8-bit images
        self.images: list[tuple[float, float]] = []
        self.labels: list[tuple[float, float]] = []

    def add(
        self, split: str, item: Mapping[str, Any], image_file: str, image: np.ndarray, label: np.ndarray | None
    ) -> Iterator[Problem]:
        """Take note of one image."""
        name = item["image"]
        self.shapes.setdefault(image.shape[:2], name)
        self.channels.setdefault(1 if image.ndim == 2 else image.shape[2], name)
        self.types.setdefault(str(image.dtype), name)
        digest = hashlib.blake2b(repr((image.shape, image.dtype)).encode() + image.tobytes(), digest_size=16).digest()
        other_split, other = self.seen.setdefault(digest, (split, name))
        if other != name:
            found, expected = f"the same pixels as '{other}' of {other_split}", "each image once, in one split"
            remedy = "Remove one; are two subjects one person?"
            yield Problem(name, "pixels", found, expected, remedy, fatal=other_split != split)
        yield from self._stored_spacing(item, image_file)
        if image.dtype == np.uint8:
            self.levels = min(self.levels[0], int(image.min())), max(self.levels[1], int(image.max()))
        self.count += 1
        if label is not None and label.ndim == 2 and set(np.unique(label).tolist()) <= self.values:
            self.meaning.add(label, rims=self.count % self.every == 0)
        if self.oct and image.ndim == 2 and self.count % self.every == 0 and np.isfinite(image).all():
            self.images.append(row_evidence(image))
            if label is not None and label.shape == image.shape:
                self.labels.append(label_evidence(label, len(self.meaning.names)))

    def _stored_spacing(self, item: Mapping[str, Any], image_file: str) -> Iterator[Problem]:
        stated, stored = item.get("spacing_mm", self.spacing), read_spacing(image_file)
        if stated is None or stored is None or any(p.fatal for p in _spacing_problems("", stated, self.oct)):
            return
        if not np.allclose(np.asarray(stated, dtype=float), stored, rtol=0.01):
            found, expected = f"{tuple(round(s, 6) for s in stored)} mm in the file", f"{stated} as in {HEADER}"
            yield Problem(item["image"], "spacing_mm", found, expected, "Which is right? Correct the other.", False)

    def problems(self, need_labels: bool) -> Iterator[Problem]:
        """What the images have, or do not have, in common."""
        for finding in self.meaning.findings(need_labels):
            yield Problem(HEADER, "labels", *finding)
        if len(self.shapes) > 1:
            remedy = "Resample with the `--size` of data_prep."
            yield Problem(HEADER, "size", f"images that differ in size: {self.shapes}", "one size", remedy)
        for shape, name in self.shapes.items():
            if not self.oct and any(side % MULTIPLE for side in shape):
                expected = f"sides that are multiples of {MULTIPLE}: the generators halve them up to six times"
                yield Problem(name, "size", f"{shape}", expected, "Convert again with another `--size`.", False)
        if len(self.channels) > 1:
            remedy = "Convert them, or make two data sets."
            yield Problem(HEADER, "channels", f"{self.channels}", "one number of channels", remedy)
        if len(self.types) > 1:
            remedy = "Convert them alike: brightness would depend on the type."
            yield Problem(HEADER, "type", f"{self.types}", "one type of pixel", remedy, False)
        if 0 < self.levels[1] - self.levels[0] < FEWEST_LEVELS - 1:
            found, remedy = f"no grey levels but {self.levels[0]} to {self.levels[1]}", "Convert again with `--window`."
            expected = f"at least {FEWEST_LEVELS} of 256 in all images together"
            yield Problem(HEADER, "pixels", found, expected, remedy, False)
        if verdict := judge(self.images, self.labels):
            remedy = "Look at some images; rows are depth, the vitreous is on top."
            yield Problem(HEADER, "orientation", f"images {verdict[0]}: {verdict[1]}", "upright B-scans", remedy, False)
