"""Cityscapes as downloaded and unpacked: the labelled street scenes in clear weather.

    python -m data_prep.cityscapes CITYSCAPES OUTPUT --size 512 1024

    CITYSCAPES/leftImg8bit/{train,val}/{city}/{city}_{seq}_{frame}_leftImg8bit.png        or without the city's folder
    CITYSCAPES/gtFine/{train,val}/{city}/{city}_{seq}_{frame}_gtFine_labelIds.png         or _labelTrainIds.png

The official `val` becomes the test split, `train` is divided by city into training and validation (--split). The
official `test` has no public labels and is left out.
"""

import sys
from itertools import groupby

from data_prep.convert import convert
from data_prep.files import files_below
from data_prep.label_schemes import LABEL_IDS, TRAIN_IDS
from data_prep.options import command
from data_prep.scan import Report, Source
from data_prep.street_frames import SPLIT_OF, Layout, StreetOptions

LAYOUT = Layout(
    device="Cityscapes",
    pictures="leftImg8bit",
    picture="_leftImg8bit.png",
    labels="gtFine",
    label={"_gtFine_labelIds.png": LABEL_IDS, "_gtFine_labelTrainIds.png": TRAIN_IDS},
    remedy="Unpack gtFine too",
)


def find(options: StreetOptions, report: Report) -> list[Source]:
    """One source per city."""
    root = LAYOUT.root(options.input)
    sources = []
    for split in SPLIT_OF:
        if not (root / split).is_dir():
            report.note(f"no folder leftImg8bit/{split}")
            continue
        pictures = files_below(root / split, (LAYOUT.picture.lower(),), report, options.input)
        for city, group in groupby(pictures, key=lambda path: path.name.split("_")[0]):
            sources.append(LAYOUT.source(root / split, city, group, "clear", options))
    if (root / "test").is_dir():
        report.note("the official test split has no public labels and was left out")
    return sources


@command
def main(options: StreetOptions) -> int:
    """Convert what INPUT holds."""
    report = Report(options.strict)
    return convert(find(options, report), options, report, "Cityscapes", TRAIN_IDS, "RGB")


if __name__ == "__main__":
    sys.exit(main())
