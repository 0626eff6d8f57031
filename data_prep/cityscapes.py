"""Cityscapes as downloaded and unpacked: the labelled street scenes in clear weather.

    python -m data_prep.cityscapes CITYSCAPES OUTPUT --size 512 1024

    CITYSCAPES/leftImg8bit/{train,val}/{city}/{city}_{seq}_{frame}_leftImg8bit.png        or without the city's folder
    CITYSCAPES/gtFine/{train,val}/{city}/{city}_{seq}_{frame}_gtFine_labelIds.png         or _labelTrainIds.png

The official `val` becomes the test split, `train` is divided by city into training and validation (--split). The
official `test` has no public labels and is left out.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from itertools import groupby

from data_prep.colour import add_colour_options, validate_colour
from data_prep.convert import Report, Source, convert, summarise
from data_prep.files import files_below
from data_prep.label_schemes import LABEL_IDS, TRAIN_IDS
from data_prep.options import parser_for, run, validate
from data_prep.street_frames import SPLIT_OF, Layout, read_frames, refuse_test_share

LAYOUT = Layout(
    pictures="leftImg8bit",
    picture="_leftImg8bit.png",
    labels="gtFine",
    label={"_gtFine_labelIds.png": LABEL_IDS, "_gtFine_labelTrainIds.png": TRAIN_IDS},
    remedy="Unpack gtFine too",
)


def find(options: Namespace, report: Report) -> list[Source]:
    """One source per city.

    Raises:
        ValueError: not the layout of Cityscapes.
    """
    root = options.input / LAYOUT.pictures
    if not root.is_dir():
        raise ValueError(
            f"'{options.input}' has no folder leftImg8bit; expected Cityscapes as unpacked, leftImg8bit/ and gtFine/ "
            "side by side. Give the folder that holds both."
        )
    sources = []
    for split, ours in SPLIT_OF.items():
        if not (root / split).is_dir():
            report.note(f"no folder leftImg8bit/{split}")
            continue
        for city, group in groupby(
            files_below(root / split, (LAYOUT.picture.lower(),), report, options.input),
            key=lambda path: path.name.split("_")[0],
        ):
            sources.append(
                Source(root / split / city, city, partial(read_frames, list(group), LAYOUT, "clear", options), ours)
            )
    if (root / "test").is_dir():
        report.note("the official test split has no public labels and was left out")
    return sources


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return the exit status."""
    parser = parser_for("cityscapes", __doc__ or "", "folder with leftImg8bit/ and gtFine/")
    add_colour_options(parser, (512, 1024), "Cityscapes")
    parser.set_defaults(split=(0.9, 0.1, 0.0))
    options = parser.parse_args(arguments)

    def work() -> int:
        validate(options)
        validate_colour(options)
        refuse_test_share(options)
        report = Report(options.strict)
        sources = find(options, report)
        return summarise(convert(sources, options, report, "Cityscapes", TRAIN_IDS, "RGB"), report)

    return run(work, options.most_gigabytes)


if __name__ == "__main__":
    sys.exit(main())
