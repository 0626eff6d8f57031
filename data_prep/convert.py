"""The way of a B-scan into a data set, the same for all sources, and the summary at the end.

    find sources -> subject of each -> pseudonyms, splits by subject -> read, resample, rasterise -> write -> check

A source module says how to find its files and how to read one of them as `Scan`s; everything else happens here.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.grey import resize_grey, resize_nearest
from data_prep.label_images import require_same_shape
from data_prep.label_schemes import PAPER, Scheme, read_scheme
from data_prep.options import Options, relative
from data_prep.privacy import burnt_in_text, pseudonym, read_key, reason
from data_prep.scan import SHOWN, Report, Scan, Source
from data_prep.splits import split_as_listed, split_by_subject, split_like
from unicorn_monai.data.checks import problems
from unicorn_monai.data.layout import SPLITS, read_header
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.images.files import read_array
from unicorn_monai.images.surfaces import IGNORE, label_map, order_surfaces, resize_surfaces
from unicorn_monai.system.terminal import printable, say

LATERALITIES = {"R": "OD", "OD": "OD", "L": "OS", "OS": "OS"}
DECIDING = ("squeeze", "axes", "modality", "first_row", "reflectivity")  # options of single sources


def convert(
    sources: Sequence[Source], options: Options, report: Report, name: str, scheme: Scheme | None, modality: str = "OCT"
) -> int:
    """Write the data set and print the summary.

    Sources come in a fixed order. The scheme are the default labels, None where the files do not tell which surfaces or
    values to use; the modality is "OCT" or "RGB". Returns the exit status: 1 if the check refuses the data set.
    """
    if not sources:
        why = report.first_reasons() or "It holds no such files."
        raise ValueError(f"Nothing in '{options.input}' can be converted. {why}")
    scheme = read_scheme(options.labels) or scheme
    names = _names(sorted({source.subject for source in sources}), options)
    parts = _split(options, names, {source.subject: source.split for source in sources if source.split is not None})
    with DatasetWriter(
        options.output,
        About(
            name=name,
            device=options.device_name or "unknown",
            labels=(scheme or PAPER).labels,
            modality=modality,
            suffix=".png" if modality == "RGB" else ".nii.gz",
        ),
        resume=options.resume,
        settings=_settings(sources, options, scheme, names, report, parts),
    ) as writer:
        if scheme is not None and scheme.palette is not None:
            writer.header["colours"] = scheme.palette
        index = 0
        for volume, source in enumerate(tqdm(sources, desc=printable(name), unit="volume", disable=None)):
            for ready in _prepared(source, scheme, options, report, modality):
                if index not in writer:
                    part, subject = parts[source.subject], names[source.subject]
                    own = {"volume": volume} | ready.fields
                    writer.add(part, ready.image, ready.label, subject=subject, index=index, entries=own)
                index += 1
        if not index:
            raise ValueError(f"No image of '{options.input}' could be converted. {report.first_reasons()}")
        if report.label_files is None and (report.pixels.any() or options.labels is not None):
            report.note_unlabelled(index)
        writer.header |= report.header(options.device_name, modality)
    return summarise(options.output, report)


def _names(subjects: Sequence[str], options: Options) -> dict[str, str]:
    """Subject -> what it is called in the data set."""
    if options.keep_original_ids:
        return dict(zip(subjects, subjects, strict=True))
    key = read_key(options.key_file, options.output)
    return {subject: pseudonym(subject, key) for subject in subjects}


def _settings(
    sources: Sequence[Source],
    options: Options,
    scheme: Scheme | None,
    names: Mapping[str, str],
    report: Report,
    parts: Mapping[str, str],
) -> dict[str, Any]:
    """What decides the content of a data set: a conversion goes on with the same only."""
    files = "\n".join(f"{relative(s.path, options.input)} {names[s.subject]}" for s in sources)
    own = (getattr(options, key, None) for key in ("label", "mat_image", "mat_surfaces"))
    told = [parts] if options.split_like or options.splits else []  # by another data set, or a file
    how = repr([scheme, *told, *own, *(report.label_files or ())])
    return {
        "size": options.shape,
        "split": None if options.splits else options.split,
        "seed": options.seed,
        "labels": options.labels != "none",
        "spacing_mm": options.spacing_mm,
        "window": getattr(options, "window", None),
        **{key: getattr(options, key) for key in DECIDING if hasattr(options, key)},
        "input": hashlib.sha256(("".join(sorted(names.values())) + files + how).encode()).hexdigest()[:16],
    }


def _split(options: Options, names: Mapping[str, str], fixed: Mapping[str, str]) -> dict[str, str]:
    """Subject -> split: as the source says and `--splits`, or `--split-like`, or the shares of `--split`."""
    if options.splits is not None:
        return split_as_listed(options.splits, list(names), fixed, options.keep_original_ids)
    if options.split_like is not None:
        own = {names[subject]: part for subject, part in fixed.items()}
        like = split_like(options.split_like, list(names.values()), options.split, options.seed, own)
        return {subject: like[name] for subject, name in names.items()}
    free = [subject for subject in names if subject not in fixed]
    return dict(fixed) | (split_by_subject(free, options.split, options.seed) if free else {})


def _prepared(source: Source, scheme: Scheme | None, options: Options, report: Report, modality: str) -> Iterator[Scan]:
    """The B-scans of a source as they are written; what cannot be read or used is reported with its place."""
    noun = "B-scan" if modality == "OCT" else "picture"
    for scan in _scans(source, report):
        where = f"{relative(source.path, options.input)}, {noun} {scan.fields.get('scan', 0)}"
        try:
            ready = _resampled(scan, scheme, options, report, modality)
        except (ValueError, MemoryError) as error:
            report.skip(where, reason(error))
            continue
        if options.labels != "none" and scan.label is None and scan.surfaces is None:
            report.unlabelled.append(where)
        if scan.device:
            report.devices.add(scan.device)
        if not options.device_name and len(report.devices) > 1:
            raise ValueError(
                f"device: found {sorted(report.devices)}; expected one device, it is the domain. Convert them into "
                "data sets of their own, or give all one --device-name."
            )
        if ready.spacing_mm is not None:
            report.spacings.append(ready.spacing_mm)
            ready.fields["spacing_mm"] = [round(s, 7) for s in ready.spacing_mm]
        yield ready


def _scans(source: Source, report: Report) -> Iterator[Scan]:
    """The B-scans of a source; what cannot be read is reported with its place."""
    try:
        for scan in source.read():
            if isinstance(scan, ValueError):
                report.skip(source.path, scan)
            else:
                yield scan
    except Exception as error:  # of many kinds, since many libraries read
        report.skip(source.path, reason(error))


def _resampled(scan: Scan, scheme: Scheme | None, options: Options, report: Report, modality: str) -> Scan:
    """A B-scan of the size wanted, with its label map if it has one, and the spacing of its new pixels."""
    shape, size = scan.image.shape[:2], options.shape
    if 0 in shape:
        raise ValueError(f"image: found shape {shape}; expected at least one row and column")
    inside = scan.image if scan.valid is None else scan.image[scan.valid]
    if inside.size == 0 or inside.min() == inside.max():
        raise ValueError("pixels: found a constant image; expected a B-scan")
    if modality == "OCT" and (evidence := burnt_in_text(scan.image)):
        report.note(f"burnt-in text or a scan box? Found {evidence}; look at the images before you share them")
    image, valid = resize_grey(scan.image, size, scan.valid)
    label = None if options.labels == "none" else _draw(scan, scheme, size, report)
    if label is not None:
        label[~valid] = IGNORE
        if (label == IGNORE).all():
            report.note("no label map: no column is annotated")
            label = None
        else:
            if scan.turned:
                report.note(
                    "a picture with labels was turned as its EXIF orientation says; the labels are taken to be of "
                    "the picture as viewers show it; look at some: python -m data_prep.overlay"
                )
            report.pixels += np.bincount(label.ravel(), minlength=256)
    spacing = tuple(options.spacing_mm) if options.spacing_mm else scan.spacing_mm
    if spacing is not None:
        if not all(np.isfinite(s) and s > 0 for s in spacing):
            raise ValueError(f"spacing: found {spacing}; expected finite and positive millimetres; give --spacing-mm")
        spacing = tuple(float(s) * n / m for s, n, m in zip(spacing, shape, size, strict=True))
    fields = {key: value for key, value in scan.fields.items() if value is not None}
    return replace(scan, image=image, label=label, spacing_mm=spacing, fields=fields)  # type: ignore[arg-type]


def _draw(scan: Scan, scheme: Scheme | None, size: tuple[int, int], report: Report) -> NDArray[np.uint8] | None:
    """The label map of a scan, None where there is none."""
    shape, surfaces = scan.image.shape[:2], scan.surfaces
    if isinstance(surfaces, Mapping):
        if scheme is None:
            raise ValueError("label: the file names its surfaces; say with --labels which of them to use")
        surfaces = scheme.pick(surfaces)
        if surfaces is None:
            lacking = [n for n in scheme.surfaces or () if n not in scan.surfaces]  # type: ignore[operator]
            report.note(f"no label map: the file lacks the surfaces {lacking}, it has {sorted(scan.surfaces)}")  # type: ignore[arg-type]
    if surfaces is not None:
        whole, label = _rasterise(surfaces, scheme, shape, size, report)
    elif scan.label is None:
        return None
    else:
        require_same_shape(scan.label, shape)
        if scheme is None:
            raise ValueError("label: found a label image; say with --labels FILE what its values mean")
        whole = scheme.replace(scan.label)
        label = resize_nearest(whole, size)
    held = set(np.unique(whole).tolist()) - {IGNORE}
    report.held.update(held)
    report.vanished.update(held - set(np.unique(label).tolist()))
    return label


def _rasterise(
    surfaces: NDArray[np.floating], scheme: Scheme | None, shape: tuple[int, int], size: tuple[int, int], report: Report
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Surfaces -> label maps of the input's size and of the output's, by `unicorn_monai.images.surfaces`."""
    if scheme is not None and len(surfaces) != len(scheme.names) - 1:
        raise ValueError(f"surfaces: found {len(surfaces)}; expected {len(scheme.names) - 1}, one between two labels")
    if surfaces.shape[1] != shape[1]:
        raise ValueError(f"surfaces: found {surfaces.shape[1]} columns; expected {shape[1]}, those of the image")
    low, high = np.nanmin(surfaces, initial=np.inf), np.nanmax(surfaces, initial=-np.inf)
    margin = 0.1 * shape[0]
    if np.isfinite(low) and (low < -margin or high > shape[0] - 1 + margin):
        raise ValueError(
            f"surfaces: found rows {low:.1f} to {high:.1f}; expected pixels of an image with {shape[0]} rows, counted "
            "from the top. Are they micrometres, or counted from the bottom?"
        )
    ordered, share = order_surfaces(surfaces)
    report.crossing.append(share)
    return label_map(ordered, shape[0]), label_map(resize_surfaces(ordered, shape, size), size[0])


def summarise(folder: Path, report: Report) -> int:
    """Print what was written, what was left out and why, and the check; returns the exit status, 1 if that refuses."""
    header = read_header(folder)
    items = {split: header[split] for split in SPLITS}
    counts = ", ".join(f"{len(items[s])} {s} ({len({i['subject'] for i in items[s]})} subjects)" for s in SPLITS)
    say(f"{sum(map(len, items.values()))} images of '{header['device']}' in {folder}: {counts}")
    maps = [item["label"] for split in SPLITS for item in items[split] if "label" in item]
    say(f"with label map: {len(maps)}; spacing {header['spacing_mm']} mm (axial, lateral; median)")
    if not report.pixels.any():
        for path in maps:
            report.pixels += np.bincount(read_array(folder / path).ravel(), minlength=256)
    for value in np.flatnonzero(report.pixels):
        text = "ignore" if value == IGNORE else header["labels"][str(value)]
        say(f"  label {value:3d} {text}: {report.pixels[value] / report.pixels.sum():.2%} of the pixels")
    if report.crossing:
        say(f"crossing surfaces repaired in {np.mean(report.crossing):.2%} of the columns")
    for text, count in report.notes.items():
        say(f"note: {text} ({count} times)" if count > 1 else f"note: {text}")
    for line in [*report.vanished_lines(header["labels"]), *report.left_out_lines()]:
        say(line)
    for path, why in report.skipped[:SHOWN]:
        say(f"skipped {path}: {why}")
    if len(report.skipped) > SHOWN:
        say(f"skipped {len(report.skipped) - SHOWN} more")
    found = problems(folder)
    for problem in found:
        say(problem)
    return int(any(problem.fatal for problem in found))
