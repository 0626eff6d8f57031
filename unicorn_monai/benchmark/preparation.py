"""From the definition of a shift to its two data sets and the settings of its runs.

FOLDER/data/SHIFT[/FOLD]/labelled   other      data sets
FOLDER/data/SHIFT[/FOLD]/prepared.json         what they were made with: nothing else is taken for them
FOLDER/SHIFT[/FOLD][/seedN]                    run folders; N where there are several seeds
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module  # of data_prep at run time: the library does not depend on it
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unicorn_monai.benchmark.shifts import PLACEHOLDER, SIDES, Shift
from unicorn_monai.data.layout import HEADER, SPLITS, read_header
from unicorn_monai.report.trainings import COMPARED, SEMANTIC_ONLY
from unicorn_monai.system.console import BAD_USAGE, BadUsage
from unicorn_monai.system.files import Occupied, parse_json, write_json

logger = logging.getLogger("unicorn_monai")

VARIABLE = "UNICORN_DATA"
RECORD = "prepared.json"
IMAGE_SIZES = (64, 128)  # what the networks of the preset "quick" were made for, and twice that
BOUNDS = ("lower_bound", "upper_bound")  # are part of every experiment
PAPERS = {"unicorn_paper", SEMANTIC_ONLY}  # rows of the mode "paper"
METHODS = (*COMPARED, "unicorn", "unicorn_paper")
TRANSFER_MINUTES = 8  # of one core, of every GAN


@dataclass(frozen=True)
class Pair:
    """The data sets of a shift."""

    labelled: Path
    other: Path


def data_folder() -> Path | None:
    """The folder of real data, $UNICORN_DATA; None where it is not set."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def absent(shift: Shift, data: Path | None) -> str | None:
    """Why a shift has to be left out: a sentence that says what was looked for and where; None where all is there."""
    if not shift.needs or (data is not None and all((data / need).is_dir() for need in shift.needs)):
        return None
    wanted = [need for need in shift.needs if data is None or not (data / need).is_dir()]
    where = f"${VARIABLE} is not set" if data is None else f"looked for in ${VARIABLE} = '{data}'"
    return f"'{shift.key}' is left out: it needs {', '.join(wanted)}, {where}. The shifts' file says what they are."


def place_of(shift: Shift, folder: Path) -> Pair:
    """Where the data sets of a shift are, or will be."""
    return Pair(*(folder / "data" / shift.key / side for side in SIDES))


def prepare(shift: Shift, folder: Path, data: Path | None, size: int) -> Pair:
    """Make both data sets of a shift, or a fold, unless they are there; one line of the log tells how many images.

    Args:
        shift: with folds one of its `parts()`.
        folder: of the whole benchmark.
        data: the folder of real data, see `data_folder`.
        size: rows and columns, pixels.

    Raises:
        ValueError: data that are not there, a command that failed, with what it said, and data sets in the folder that
            were made otherwise (another size, another definition).
    """
    if why := absent(shift, data):
        raise ValueError(why)
    pair, place = place_of(shift, folder), folder / "data" / shift.key
    commands = shift.commands(size)
    with Occupied(place / ".lock", place):
        _require_same(shift, place / RECORD, commands, size)
        for side in SIDES:
            target = getattr(pair, side)
            if (target / HEADER).is_file():  # renamed into place when it was whole
                continue
            through = place / "through.making"
            if side == "other" and "through" in commands:
                _make(shift, commands["through"], through, {"data": data})
            making = place / f"{side}.making"
            _make(shift, commands[side], making, {"data": data, "through": through})
            making.rename(target)
            shutil.rmtree(through, ignore_errors=True)
    told = "; ".join(f"{side}: {_told(counts)}" for side, counts in sizes(pair).items())
    logger.info("%s of %d x %d pixels, %s", shift.key, size, size, told)
    return pair


def _told(counts: dict[str, dict[str, int]]) -> str:
    return ", ".join(f"{c['images']} {part} ({c['subjects']})" for part, c in counts.items())


def sizes(pair: Pair) -> dict[str, dict[str, dict[str, int]]]:
    """Side -> split -> number of images, of those with a label map, and of subjects or groups."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for side in SIDES:
        header = read_header(getattr(pair, side))
        found[side] = {
            part: {
                "images": len(items),
                "labelled": sum("label" in item for item in items),
                "subjects": len({item.get("subject") for item in items}),
            }
            for part, items in ((part, header.get(part, [])) for part in SPLITS)
        }
    return found


def _require_same(shift: Shift, record: Path, commands: dict[str, list[str]], size: int) -> None:
    """Write down what data sets are made with, or refuse to go on with those that were made otherwise."""
    words = [word for made in commands.values() for word in made]
    files = sorted({word.removeprefix("{here}/") for word in words if word.startswith("{here}/")})
    lacking = [name for name in files if not (shift.here / name).is_file()]
    if lacking:
        raise ValueError(f"'{shift.key}' needs {lacking}, which are not in '{shift.here}'. Restore them.")
    read = {name: hashlib.sha256((shift.here / name).read_bytes()).hexdigest() for name in files}
    now = {"size": size, "commands": commands, "files": read}
    if not record.exists():
        write_json(record, now)
    before = parse_json(record)
    if before == now:
        return
    for entry, value in now.items():
        found = before.get(entry) if isinstance(before, dict) else None
        if found != value:
            raise ValueError(
                f"'{record.parent}' was made with the {entry} {found}, not {value}. Choose another folder for the "
                "benchmark, or remove this one."
            )


def _make(shift: Shift, words: Sequence[str], target: Path, places: dict[str, Path | None]) -> None:
    """Run a command of `unicorn-monai prepare` in this process; what an interrupted one left is removed before."""
    if find_spec("data_prep") is None:
        raise ValueError("The data preparation is not installed; install the wheel, or run in a checkout.")
    shutil.rmtree(target, ignore_errors=True)
    known = {"here": shift.here, **places}
    filled = [PLACEHOLDER.sub(lambda match: str(known[match[1]]), word) for word in words]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = import_module("data_prep").prepare([*filled, "--output", str(target)], "unicorn-monai prepare")
        except BadUsage as error:
            status, _ = BAD_USAGE, err.write(str(error))
    if status == 0:
        return
    said = [line for line in (err.getvalue() or out.getvalue()).splitlines() if line.strip()]
    if said and said[0].startswith("interrupted"):
        raise KeyboardInterrupt
    shutil.rmtree(target, ignore_errors=True)
    told = " ".join(said[-3:]) or f"status {status}"
    raise ValueError(f"'{shift.key}' cannot be prepared by `unicorn-monai prepare {' '.join(filled)}`: {told}")


def require_size(size: int) -> None:
    """Refuse a size that there are no networks for."""
    if size not in IMAGE_SIZES:
        raise ValueError(f"size is {size}; expected one of {list(IMAGE_SIZES)}, which there are networks for.")


def run_folder(shift: Shift, folder: Path, seed: int = 0) -> Path:
    """The folder of a run."""
    if seed not in shift.seeds:
        raise ValueError(f"seed is {seed}; expected one of '{shift.key}', {list(shift.seeds)}.")
    place = folder / shift.key
    return place / f"seed{seed}" if len(shift.seeds) > 1 else place


def asked(methods: Iterable[str]) -> dict[str, list[str]]:
    """The settings of an experiment that make rows of the table: {"baselines", "modes"}.

    Raises:
        ValueError: there is no such row.
    """
    wanted = {name.split("+real")[0] for name in methods} - {*BOUNDS}
    if unknown := sorted(wanted - {*METHODS}):
        raise ValueError(f"Unknown method(s) {unknown}; expected some of {[*BOUNDS, *METHODS]}.")
    modes = ["joint", *["paper"] * bool(wanted & PAPERS)] if wanted & {"unicorn", *PAPERS} else []
    return {"baselines": [name for name in COMPARED if name in wanted], "modes": modes}  # the first has the plain name


def settings(shift: Shift, folder: Path, methods: Sequence[str], size: int, seed: int = 0) -> dict[str, Any]:
    """Return the settings of an experiment on a prepared shift, as `Settings.from_dict` takes them.

    ``methods`` are names of rows of the table; the bounds are part of every experiment, and what ends with "+real"
    comes with the row of that name. ``seed`` is one of the shift's.
    """
    wanted = asked(methods)
    pair = place_of(shift, folder)
    record = pair.labelled.parent / RECORD
    found = parse_json(record).get("size") if record.is_file() else None
    if found != size:
        raise ValueError(f"'{record.parent}' holds data of size {found}; expected {size}. Prepare the shift first.")
    return {
        "labeled": str(pair.labelled),
        "unlabeled": str(pair.other),
        "output": str(run_folder(shift, folder, seed)),
        "preset": "quick",
        **wanted,
        "words": shift.sub_domains,
        "trainings": shift.trainings,
        "transfer_minutes": TRANSFER_MINUTES,
        "seed": seed,
    }
