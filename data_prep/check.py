"""Look for what would poison an experiment: one line per problem, exit status 1 if there is any.

python -m data_prep.check DATASET [--labels]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from unicorn_monai.datasets import check


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.check", description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, help="data set folder")
    parser.add_argument("--labels", action="store_true", help="every image must have a label map")
    options = parser.parse_args(arguments)
    try:
        problems = check(options.dataset, options.labels)
    except ValueError as error:
        problems = [str(error)]
    print("\n".join([*problems, f"{len(problems)} problem(s) in {options.dataset}"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
