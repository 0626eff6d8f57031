"""Two domains of one experiment: nobody, and no image, may be on both sides of its test.

Each data set is split by subject for itself. A person who was seen by both devices could so be trained on in one domain
and tested on in the other, which no check of either data set shows. Pseudonyms tell, if both were made with the same
key; the pixels tell in any case.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicorn_monai.data.checks import problems
from unicorn_monai.data.layout import SPLITS, list_folders, read_header
from unicorn_monai.system.files import PathLike

logger = logging.getLogger("unicorn_monai")


def require_sound_pair(labeled: PathLike, unlabeled: PathLike) -> None:
    """Read every file of both domains, refuse what would poison an experiment, and log what might."""
    require_people_apart(labeled, unlabeled)
    own: dict[bytes, tuple[str, str]] = {}  # digest of an image's pixels -> its split, its name
    other: dict[bytes, tuple[str, str]] = {}
    for name, folder, pixels in (("labeled", labeled, own), ("unlabeled", unlabeled, other)):
        found = problems(folder, name == "labeled", pixels)
        if fatal := [str(problem) for problem in found if problem.fatal]:
            more = f"\n... and {len(fatal) - 5} more" if len(fatal) > 5 else ""
            raise ValueError(f"The {name} data set '{folder}' cannot be used:\n" + "\n".join(fatal[:5]) + more)
        for problem in found:
            logger.warning("The %s data set: %s", name, problem)
    if shared := own.keys() & other.keys():
        first = min(shared, key=lambda digest: other[digest])
        (a, image), (b, twin) = own[first], other[first]
        raise ValueError(
            f"{len(shared)} of the {len(other)} images of '{unlabeled}' are images of '{labeled}' too, pixel by pixel: "
            f"'{twin}' of {b} is '{image}' of {a}. Expected images of two devices. Give the images of the other "
            "device, or remove from one data set what belongs to the other."
        )


def splits_by_subject(header: Mapping[str, Any]) -> dict[str, str]:
    """Subject -> its split, of a ``dataset.json``; items without a subject are left out."""
    return {str(i["subject"]): split for split in SPLITS for i in header.get(split, []) if "subject" in i}


def require_people_apart(labeled: PathLike, unlabeled: PathLike) -> None:
    """Refuse one folder as both domains, and people in another split of the one than of the other; never say who."""
    folders = [Path(list_folders(folder)[0]).resolve() for folder in (labeled, unlabeled)]
    if folders[0] == folders[1]:
        raise ValueError(
            f"'{labeled}' and '{unlabeled}' are one folder; expected a data set of each device, the labelled and the "
            "unlabelled one."
        )
    own, other = (splits_by_subject(read_header(folder)) for folder in folders)
    shared = own.keys() & other.keys()
    pairs = Counter((own[subject], other[subject]) for subject in shared if own[subject] != other[subject])
    if pairs:
        where = ", ".join(f"{n} {a} there and {b} here" for (a, b), n in sorted(pairs.items()))
        raise ValueError(
            f"{len(shared)} of the {len(other)} subjects of '{unlabeled}' are subjects of '{labeled}' too, "
            f"{pairs.total()} of them in another split: {where}. Expected every person in the same split of both, or "
            f"networks are tested on people they were trained on. Convert '{unlabeled}' again with `--split-like "
            f"{labeled}`. If they are other people who have the same ids, convert it with another --key-file instead."
        )
