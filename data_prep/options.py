"""The options that all sources share, and what they mean: whose eye, which size."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.privacy import Refused, discreet, one_form
from unicorn_monai.system.console import ends_with_its_reader
from unicorn_monai.system.intake import MORE_MEMORY, MOST_GIGABYTES, allow_gigabytes, bounded_memory, finite
from unicorn_monai.system.terminal import LINES, Parser, guard_terminal, say


def parser_for(source: str, description: str, input_help: str) -> argparse.ArgumentParser:
    """Argument parser with the options that all sources share."""
    parser = Parser(
        prog=f"python -m data_prep.{source}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, help=input_help)
    parser.add_argument("output", type=Path, help="folder of the data set")
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every source."""
    group = parser.add_argument_group("options of every source")
    group.add_argument(
        "--labels", help="paper, retina, octexplorer, a JSON file (data_prep/README.md), or none: no label maps"
    )
    group.add_argument("--size", type=int, nargs="+", default=[256], help="rows and columns, or one number (256)")
    group.add_argument("--split", type=finite, nargs=3, default=(0.7, 0.1, 0.2), metavar=("TRAIN", "VAL", "TEST"))
    group.add_argument("--seed", type=int, default=0, help="of the random split by subject")
    group.add_argument(
        "--split-like", type=Path, metavar="DATASET", help="who is in that data set gets the same split here"
    )
    group.add_argument("--device-name", help="name of the domain; by default what the files tell")
    group.add_argument("--keep-original-ids", action="store_true", help="write subject ids as found, not pseudonyms")
    group.add_argument("--key-file", type=Path, help="key of the pseudonyms; $UNICORN_KEY_FILE or below ~/.config")
    group.add_argument("--subject-pattern", help=r"regular expression on the path below INPUT, e.g. 'patient(\d+)/'")
    group.add_argument("--spacing-mm", type=finite, nargs=2, metavar=("AXIAL", "LATERAL"), help="instead of the files'")
    group.add_argument(
        "--most-gigabytes", type=finite, metavar="GB", help=f"memory that a file may unpack to ({MOST_GIGABYTES:g})"
    )
    group.add_argument("--strict", action="store_true", help="stop at the first file that cannot be converted")
    group.add_argument("--resume", action="store_true", help="go on where an interrupted conversion stopped")


def validate(options: argparse.Namespace) -> None:
    """Refuse options that cannot work, before anything is read.

    Raises:
        ValueError: naming the option.
    """
    if len(options.size) > 2 or min(options.size) < 8 or max(options.size) > 4096:
        raise ValueError(f"--size {options.size}: expected one number or two, 8 to 4096, e.g. --size 256")
    options.size = tuple(options.size) * (3 - len(options.size))
    if options.spacing_mm and not (np.isfinite(options.spacing_mm).all() and min(options.spacing_mm) > 0):
        raise ValueError(f"--spacing-mm {options.spacing_mm}: expected two positive numbers, mm per pixel of the input")
    if not options.input.exists():
        raise ValueError(f"INPUT '{options.input}' does not exist.")
    if options.output.resolve().is_relative_to(options.input.resolve()):
        raise ValueError(f"OUTPUT '{options.output}' lies in INPUT '{options.input}': choose a folder outside it.")
    options.subject_regex = None
    if options.subject_pattern:
        try:
            options.subject_regex = re.compile(one_form(options.subject_pattern))
        except re.error as error:
            raise ValueError(
                f"--subject-pattern '{options.subject_pattern}' is no regular expression: {error}"
            ) from error
        if options.subject_regex.groups < 1:
            raise ValueError(
                f"--subject-pattern '{options.subject_pattern}' has no group: put (...) around the subject"
            )


def relative(path: Path, root: Path) -> str:
    """A path below INPUT as text with forward slashes; just the name where INPUT is that file."""
    return path.relative_to(root).as_posix() if path != root else path.name


def subject_of(path: Path, options: argparse.Namespace, found: str | None) -> str:
    """Identity of the person in a file: by the pattern if one is given, else what the file's header says.

    Raises:
        ValueError: if neither tells.
    """
    if options.subject_regex is not None:
        text = one_form(relative(path, options.input))
        match = options.subject_regex.search(text)
        if match is None or not (match[1] or "").strip():
            raise Refused(f"subject: --subject-pattern finds nothing in '{text}'; correct the pattern")
        return match[1].strip()
    if found is None or not found.strip(" \0"):
        raise Refused("subject: the file names none; say where the path does: --subject-pattern 'patient(\\d+)/'")
    return found.strip(" \0")


def natural(path: Path) -> list[tuple[int, str]]:
    """Sort key in which 2 comes before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.as_posix()) if part]


def run(work: Callable[[], int], most_gigabytes: float | None = None) -> int:
    """Run a source within a limit of memory; failures become one paragraph and exit status 1."""
    guard_terminal()
    try:
        allow_gigabytes(most_gigabytes)
        with ends_with_its_reader(), discreet(), bounded_memory():
            return work()
    except MemoryError:
        say(f"error: This takes more memory than allowed. {MORE_MEMORY}.", file=sys.stderr)
    except ValueError as error:
        say(f"error: {error}", LINES, file=sys.stderr)
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        say(
            f"error: {error.strerror or error}:{where}. Check space and permissions there; then run again.",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        say("interrupted; run again with --resume to go on", file=sys.stderr)
    return 1
