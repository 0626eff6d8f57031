"""The benchmark's page: ``README.md`` and ``benchmark.svg`` beside ``table.json``, in a folder of their own.

A page that is there keeps its words; what stands between its markers is written anew (``documents.py``).
"""

from __future__ import annotations

from pathlib import Path

from unicorn_monai.report.benchmark_table import read_table
from unicorn_monai.report.documents import write_documents
from unicorn_monai.report.heat_map import draw
from unicorn_monai.system.files import PathLike, write_text

TABLE, PAGE, PICTURE = "table.json", "README.md", "benchmark.svg"
SECTIONS = {  # of a new page: heading, what is said of the table, its kind
    "Scores": ("Mean IoU on test images of the device without labels, with its 95 % interval.", "scores"),
    "Gap closed": ("(mean IoU - lower bound) / (upper bound - lower bound).", "closed"),
    "Shifts": ("The strongest opponent is chosen on validation images of the device without labels.", "shifts"),
    "Recommendations without labels": ("Regret: the best method's mean IoU minus that.", "recommendations"),
    "Criteria": ("Regret of what each criterion would have chosen, without one label.", "criteria"),
    "Estimates": ("Expected mean IoU of the recommended network minus its true one, by each estimator.", "estimates"),
    "On the labelled device": ("Mean IoU there: what adaptation costs at home.", "at_home"),
    "Calibration": ("Expected calibration error on the device without labels.", "calibration"),
}


def write_page(folder: PathLike) -> Path:
    """Write page and picture of the ``table.json`` of a folder; returns the page.

    Raises:
        ValueError: there is no table, or it does not hold what a benchmark writes.
    """
    folder = Path(folder)
    if not (folder / TABLE).is_file():
        raise ValueError(f"'{folder}' holds no {TABLE}; expected the folder that the benchmark writes.")
    picture, page = draw(read_table(folder / TABLE)), folder / PAGE
    if not page.is_file():
        write_text(page, new_page())
    write_documents([page])
    write_text(folder / PICTURE, picture)
    return page


def new_page() -> str:
    """The page without its numbers."""
    parts = [
        "# Every method on every shift",
        f"From [{TABLE}]({TABLE}), which is made of the trimmed results of every cell, `SHIFT/METHOD/results.json`.",
        _between("text", "in_three_lines"),
        f"![Mean IoU of every method on every shift]({PICTURE})",
        "Mean IoU on test images of the device without labels, below it the 95 % interval. Colour: share of the gap "
        "between lower and upper bound that is closed. Framed: the strongest opponent; dot: what is recommended "
        "without labels; hatched: not computed.",
        "## Not computed",
        _between("text", "missing"),
    ]
    for heading, (sentence, kind) in SECTIONS.items():
        parts += [f"## {heading}", sentence, _between("table", kind)]
    return "\n\n".join(parts) + "\n"


def _between(what: str, kind: str) -> str:
    return f"<!-- {what}: {TABLE} benchmark_{kind} -->\n<!-- /{what} -->"
