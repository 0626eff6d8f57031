"""ACDC as downloaded and unpacked: street scenes in fog, at night, in rain and in snow.

    python -m data_prep.acdc ACDC OUTPUT --size 512 1024 [--labels none]

    ACDC/rgb_anon/{weather}/{train,val}/{sequence}/{sequence}_frame_{n}_rgb_anon.png
    ACDC/gt/{weather}/{train,val}/{sequence}/{sequence}_frame_{n}_gt_labelTrainIds.png         or _gt_labelIds

The weather is fog, night, rain or snow, and kept as `sub_domain` of each item. The clear-weather twins (`train_ref`,
`..._rgb_ref_anon.png`) are never read. The official `val` becomes the test split, `train` is divided by
sequence into training and validation. Flattened copies (rgb_anon/{train,val}/*.png) have lost the weather: name each
sequence's with --weather-of FILE, a JSON table {"fog": ["GOPR0475", ...], ...}.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from data_prep.colour import add_colour_options, validate_colour
from data_prep.convert import Report, Source, convert, summarise
from data_prep.files import any_files_below
from data_prep.label_schemes import LABEL_IDS, TRAIN_IDS
from data_prep.options import parser_for, run, validate
from data_prep.street_frames import SPLIT_OF, Layout, read_frames, refuse_test_share
from unicorn_monai.system.intake import read_text

WEATHERS = ("fog", "night", "rain", "snow")
LAYOUT = Layout(
    pictures="rgb_anon",
    picture="_rgb_anon.png",
    labels="gt",
    label={"_gt_labelTrainIds.png": TRAIN_IDS, "_gt_labelIds.png": LABEL_IDS},
    remedy="Unpack gt, or --labels none",
)


def find(options: Namespace, report: Report) -> list[Source]:
    """One source per sequence.

    Raises:
        ValueError: not the layout of ACDC, no picture of a weather that was asked for, or a weather that is not known.
    """
    root = options.input / LAYOUT.pictures
    if not root.is_dir():
        raise ValueError(
            f"'{options.input}' has no folder rgb_anon; expected ACDC as unpacked, rgb_anon/ and gt/ side by side. "
            "Give the folder that holds both."
        )
    if any((root / split).is_dir() for split in SPLIT_OF):
        return _flattened(root, options, report)
    sources = []
    for weather in options.weather:
        own = [
            _source(folder, name, paths, weather, ours, options)
            for folder, ours in ((root / weather / split, ours) for split, ours in SPLIT_OF.items())
            for name, paths in _sequences(folder, options, report)
        ]
        if not own:
            raise ValueError(
                f"'{root / weather}' holds no {LAYOUT.picture} in train or val; expected some of each weather. Unpack "
                f"them, or do without: --weather {' '.join(w for w in options.weather if w != weather)}"
            )
        sources += own
    return _disjoint(sources, report)


def _sequences(folder: Path, options: Namespace, report: Report) -> list[tuple[str, list[Path]]]:
    """Name and pictures of every sequence in a folder; none where there is no such folder."""
    found = any_files_below(folder, (LAYOUT.picture,), report, options.input) if folder.is_dir() else []
    groups = groupby(found, key=lambda path: path.name.split("_frame_")[0])
    return [(name, list(paths)) for name, paths in groups]


def _source(
    folder: Path, name: str, paths: list[Path], weather: str | None, ours: str | None, options: Namespace
) -> Source:
    return Source(folder / name, name, partial(read_frames, paths, LAYOUT, weather, options), ours)


def _flattened(root: Path, options: Namespace, report: Report) -> list[Source]:
    table = weather_table(options.weather_of) if options.weather_of else {}
    sources = []
    for split, ours in SPLIT_OF.items():
        for name, paths in _sequences(root / split, options, report):
            weather = table.get(name)
            if weather is None and table:
                raise ValueError(f"--weather-of: the sequence '{name}' has no weather there; add it.")
            if weather is None:
                report.note("flattened copy: the weather is lost, no results per weather. Give --weather-of FILE")
            elif weather not in options.weather:
                continue
            sources.append(_source(root / split, name, paths, weather, ours, options))
    return _disjoint(sources, report)


def weather_table(path: Path) -> dict[str, str]:
    """Sequence -> weather, from a JSON file of lists by weather."""
    try:
        content = json.loads(read_text(path))
        table = {str(sequence): weather for weather, names in content.items() for sequence in names}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        example = '{"fog": ["GOPR0475"], "night": ["GOPR0351"]}'
        raise ValueError(f"--weather-of: cannot use '{path}' ({error}); expected e.g. {example}.") from error
    if unknown := sorted(set(content) - set(WEATHERS)):
        raise ValueError(f"--weather-of: '{path}' has the weathers {unknown}; expected some of {list(WEATHERS)}.")
    return table


def _disjoint(sources: list[Source], report: Report) -> list[Source]:
    """Sequences that two official splits share are told; the splits stay as they are."""
    splits: dict[str, set[str | None]] = {}
    for source in sources:
        splits.setdefault(source.subject, set()).add(source.split)
    for source in sources:
        if len(splits[source.subject]) > 1:
            report.note(f"the sequence '{source.subject}' is in the official train and val; the splits were kept")
            source.subject = f"{source.subject}-{source.split or 'train'}"
    return sources


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return the exit status."""
    parser = parser_for("acdc", __doc__ or "", "folder with rgb_anon/ and gt/")
    add_colour_options(parser, (512, 1024), "ACDC")
    parser.add_argument("--weather", nargs="+", choices=WEATHERS, default=list(WEATHERS), help="which ones (all)")
    parser.add_argument("--weather-of", type=Path, metavar="FILE", help="weather of each sequence of a flattened copy")
    parser.set_defaults(split=(0.9, 0.1, 0.0))
    options = parser.parse_args(arguments)

    def work() -> int:
        validate(options)
        validate_colour(options)
        refuse_test_share(options)
        report = Report(options.strict)
        sources = find(options, report)
        return summarise(convert(sources, options, report, "ACDC", TRAIN_IDS, "RGB"), report)

    return run(work, options.most_gigabytes)


if __name__ == "__main__":
    sys.exit(main())
