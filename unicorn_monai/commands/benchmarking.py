"""The command that runs every method on every shift, and writes the table of tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from unicorn_monai.report.trainings import FREE, PSEUDO_LABELS
from unicorn_monai.system.console import MANY, Whole, described, tell

METHODS = (*(name for name in FREE if name != "self_training"), PSEUDO_LABELS)  # that need no image generator
Words = tuple[str, ...]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Asked:
    """The command line."""

    shifts: Annotated[Words, MANY, described("Some of the file's; default: all whose data is there.")] = ()
    methods: Annotated[Words, MANY, described("Rows; default: all without an image generator.")] = METHODS
    output: Annotated[Path, described("Folder of the runs.", "--output", "-o")] = Path("runs/benchmark")
    results: Annotated[Path, described("Folder of the cells and the table.")] = Path("docs/results/benchmark")
    config: Annotated[Path | None, described("Another file of shifts.")] = None
    size: Annotated[Literal[64, 128] | None, described("Pixels; default: the file's.")] = None
    seeds: Annotated[tuple[Whole, ...], MANY, described("Some of a shift's; default: its first.")] = ()
    jobs: Annotated[Whole | None, described("Stages side by side in a run.")] = None
    table_only: Annotated[bool, described("Run nothing; write table and page of the cells that are there.")] = False


def benchmark(asked: Asked | None = None) -> None:
    """Run every method on every shift, gone on with where it stopped, and write the table of tables."""
    from unicorn_monai import benchmark as bench

    asked = asked or Asked()
    bench.asked(asked.methods)  # refuses unknown ones before anything is prepared
    known = bench.read_shifts() if asked.config is None else bench.read_shifts(asked.config)
    size, data = asked.size or known.size, bench.data_folder()
    plan = bench.Plan(asked.output, asked.methods, size, asked.jobs, known.overrides)
    for shift in () if asked.table_only else known.chosen(asked.shifts):
        if why := bench.absent(shift, data):
            tell(why)
            continue
        wanted = [seed for seed in shift.seeds if seed in asked.seeds] if asked.seeds else list(shift.seeds[:1])
        if not wanted:
            tell(f"'{shift.name}' has the seeds {list(shift.seeds)}, none of {list(asked.seeds)}: left out")
            continue
        found = bench.collect_shift(shift, bench.run_shift(shift, plan, data, wanted), asked.results)
        for row, methods in found.items():
            tell(f"{asked.results / row}: {len(methods)} methods")
    tell(str(bench.write_table(asked.results)))
