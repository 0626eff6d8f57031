"""Look for what would poison an experiment: one line per problem, exit status 1 if any is fatal.

    python -m data_prep.check DATASET [--labels] [--json]

Each line: file, field, found, expected, what to do; warnings say so. What is looked at: `unicorn_monai.data.checks`.
The last lines say how many images of each split have a label map, and count.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.options import run
from unicorn_monai.data.checks import Problem, problems
from unicorn_monai.data.layout import HEADER, label_map_counts, read_header
from unicorn_monai.system.intake import bounded_memory
from unicorn_monai.system.terminal import LINES, Parser, guard_terminal, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return the exit status."""
    parser = Parser(
        prog="python -m data_prep.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="data set folder")
    parser.add_argument("--labels", action="store_true", help="every image must have a label map")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines")
    options = parser.parse_args(arguments)
    guard_terminal()
    maps: dict[str, tuple[int, int]] = {}
    try:
        with bounded_memory():
            found = problems(options.dataset, options.labels)
            maps = label_map_counts(read_header(options.dataset))
    except ValueError as error:
        found = [Problem(HEADER, "file", "none that can be read", "that of a data set", str(error))]
    fatal = sum(problem.fatal for problem in found)
    if options.json:
        listed = [problem.to_dict() for problem in found]
        told = {"dataset": str(options.dataset), "fatal": fatal, "label_maps": maps, "problems": listed}
        say(json.dumps(told, indent=2), LINES)
    else:
        told_maps = ", ".join(f"{n} of {total} {split}" for split, (n, total) in maps.items())
        counts = f"{fatal} problem(s) and {len(found) - fatal} warning(s) in {options.dataset}"
        for line in (*found, *([f"label maps: {told_maps}"] if maps else []), counts):
            say(line)
    return int(fatal > 0)


if __name__ == "__main__":
    sys.exit(run(main))
