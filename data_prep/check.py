"""Look for what would poison an experiment: one line per problem, exit status 1 if any is fatal.

    python -m data_prep.check DATASET [--labels] [--json]

Each line: file, field, found, expected, what to do; warnings say so. What is looked at: `unicorn_monai.data.checks`.
The last lines say how many images of each split have a label map, and count.
"""

import sys
from json import dumps
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from data_prep.options import command
from unicorn_monai.data.checks import Problem, problems
from unicorn_monai.data.layout import HEADER, label_map_counts, read_header
from unicorn_monai.system.terminal import LINES, say


@command
def main(
    dataset: Annotated[Path, Parameter(help="data set folder")],
    *,
    labels: Annotated[bool, Parameter(help="every image must have a label map")] = False,
    json: Annotated[bool, Parameter(help="print one JSON document instead of lines")] = False,
) -> int:
    """Say what was found; the exit status is 1 if anything is fatal."""
    maps: dict[str, tuple[int, int]] = {}
    try:
        found = problems(dataset, labels)
        maps = label_map_counts(read_header(dataset))
    except ValueError as error:
        found = [Problem(HEADER, "file", "none that can be read", "that of a data set", str(error))]
    fatal = sum(problem.fatal for problem in found)
    if json:
        listed = [problem.to_dict() for problem in found]
        say(dumps({"dataset": str(dataset), "fatal": fatal, "label_maps": maps, "problems": listed}, indent=2), LINES)
    else:
        told_maps = ", ".join(f"{n} of {total} {split}" for split, (n, total) in maps.items())
        counts = f"{fatal} problem(s) and {len(found) - fatal} warning(s) in {dataset}"
        for line in (*found, *([f"label maps: {told_maps}"] if maps else []), counts):
            say(line)
    return int(fatal > 0)


if __name__ == "__main__":
    sys.exit(main())
