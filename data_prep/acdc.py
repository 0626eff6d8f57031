"""ACDC as downloaded and unpacked: street scenes in fog, at night, in rain and in snow.

    python -m data_prep.acdc ACDC OUTPUT --size 512 1024 [--labels none]

    ACDC/rgb_anon/{weather}/{train,val}/{sequence}/{sequence}_frame_{n}_rgb_anon.png
    ACDC/gt/{weather}/{train,val}/{sequence}/{sequence}_frame_{n}_gt_labelTrainIds.png         or _gt_labelIds

The weather is fog, night, rain or snow, and kept as `sub_domain` of each item. The clear-weather twins (`train_ref`,
`..._rgb_ref_anon.png`) are never read. The official `val` becomes the test split, `train` is divided by
sequence into training and validation. Flattened copies (rgb_anon/{train,val}/*.png) have lost the weather: name each
sequence's with --weather-of FILE, a JSON table {"fog": ["GOPR0475", ...], ...}.
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

from data_prep.convert import convert
from data_prep.files import any_files_below
from data_prep.label_schemes import LABEL_IDS, TRAIN_IDS
from data_prep.options import command
from data_prep.scan import Report, Source
from data_prep.street_frames import SPLIT_OF, Layout, StreetOptions
from unicorn_monai.system.console import MANY
from unicorn_monai.system.intake import read_text

Weather = Literal["fog", "night", "rain", "snow"]
WEATHERS: tuple[Weather, ...] = get_args(Weather)
LAYOUT = Layout(
    device="ACDC",
    pictures="rgb_anon",
    picture="_rgb_anon.png",
    labels="gt",
    label={"_gt_labelTrainIds.png": TRAIN_IDS, "_gt_labelIds.png": LABEL_IDS},
    remedy="Unpack gt, or --labels none",
)


@dataclass(kw_only=True)
class AcdcOptions(StreetOptions):
    """The command line."""

    weather: Annotated[tuple[Weather, ...], MANY, Parameter(help="which ones")] = WEATHERS
    weather_of: Annotated[
        Path | None, Parameter(help="JSON file: the sequences of each weather, for a flattened copy")
    ] = None


def find(options: AcdcOptions, report: Report) -> list[Source]:
    """One source per sequence, for every weather that was asked for."""
    root = LAYOUT.root(options.input)
    if any((root / split).is_dir() for split in SPLIT_OF):
        return _flattened(root, options, report)
    sources = []
    for weather in options.weather:
        own = [
            LAYOUT.source(root / weather / split, name, paths, weather, options)
            for split in SPLIT_OF
            for name, paths in _sequences(root / weather / split, options, report)
        ]
        if not own:
            raise ValueError(
                f"'{root / weather}' holds no {LAYOUT.picture} in train or val; expected some of each weather. Unpack "
                f"them, or do without: --weather {' '.join(w for w in options.weather if w != weather)}"
            )
        sources += own
    return _disjoint(sources, report)


def _sequences(folder: Path, options: AcdcOptions, report: Report) -> list[tuple[str, list[Path]]]:
    """Name and pictures of every sequence in a folder; none where there is no such folder."""
    found = any_files_below(folder, (LAYOUT.picture,), report, options.input) if folder.is_dir() else []
    groups = groupby(found, key=lambda path: path.name.split("_frame_")[0])
    return [(name, list(paths)) for name, paths in groups]


def _flattened(root: Path, options: AcdcOptions, report: Report) -> list[Source]:
    table = weather_table(options.weather_of) if options.weather_of else {}
    sources = []
    for split in SPLIT_OF:
        for name, paths in _sequences(root / split, options, report):
            weather = table.get(name)
            if weather is None and table:
                raise ValueError(f"--weather-of: the sequence '{name}' has no weather there; add it.")
            if weather is None:
                report.note("flattened copy: the weather is lost, no results per weather. Give --weather-of FILE")
            elif weather not in options.weather:
                continue
            sources.append(LAYOUT.source(root / split, name, paths, weather, options))
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
    places = {(source.subject, source.split) for source in sources}
    shared = {subject for subject, count in Counter(subject for subject, _ in places).items() if count > 1}
    for source in sources:
        if source.subject in shared:
            report.note(f"the sequence '{source.subject}' is in the official train and val; the splits were kept")
            source.subject = f"{source.subject}-{source.split or 'train'}"
    return sources


@command
def main(options: AcdcOptions) -> int:
    """Convert what INPUT holds."""
    report = Report(options.strict)
    return convert(find(options, report), options, report, "ACDC", TRAIN_IDS, "RGB")


if __name__ == "__main__":
    sys.exit(main())
