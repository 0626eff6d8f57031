"""The command that runs every method on every shift, and writes the table of tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from unicorn_monai.system.console import MANY, Whole, described, tell

FREE = (
    *("augmentation", "augmentation+geometry", "self_training+geometry", "svdna", "fda", "histogram"),
    *("random_contrast", "synthseg", "batch_norm", "pseudo_labels"),
)


def benchmark(
    *,
    shifts: Annotated[tuple[str, ...], MANY, described("Some of the file's; default: all whose data is there.")] = (),
    methods: Annotated[tuple[str, ...], MANY, described("Rows; default: all without an image generator.")] = FREE,
    output: Annotated[Path, described("Folder of the runs.", "--output", "-o")] = Path("runs/benchmark"),
    results: Annotated[Path, described("Folder of the cells and the table.")] = Path("docs/results/benchmark"),
    config: Annotated[Path | None, described("Another file of shifts.")] = None,
    size: Annotated[Literal[64, 128] | None, described("Pixels; default: the file's.")] = None,
    seeds: Annotated[
        tuple[Whole, ...], MANY, described("Generator seeds of those of a shift; default: its first.")
    ] = (),
    jobs: Annotated[Whole | None, described("Stages side by side in a run.")] = None,
    table_only: Annotated[bool, described("Write table and page of the cells that are there.")] = False,
) -> None:
    """Run every method on every shift, gone on with where it stopped, and write the table of tables."""
    from unicorn_monai import benchmark as bench

    bench.asked(methods)  # refuses unknown ones before anything is prepared
    known, data = bench.read_shifts() if config is None else bench.read_shifts(config), bench.data_folder()
    plan = bench.Plan(output, methods, size or known.size, jobs)
    for shift in [] if table_only else known.chosen(shifts):
        if why := bench.absent(shift, data):
            tell(why)
            continue
        wanted = [seed for seed in shift.seeds if seed in seeds] if seeds else list(shift.seeds[:1])
        if not wanted:
            tell(f"'{shift.name}' has the seeds {list(shift.seeds)}, none of {list(seeds)}: left out")
            continue
        for row, rows in bench.collect_shift(shift, bench.run_shift(shift, plan, data, wanted), results).items():
            tell(f"{results / row}: {len(rows)} methods")
    tell(str(bench.write_table(results)))
