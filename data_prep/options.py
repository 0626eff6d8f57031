"""The options that all sources share, and what they mean: whose eye, which size."""

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from data_prep.privacy import Refused, discreet, one_form
from unicorn_monai.system.console import MANY, Finite, Whole, command_line, ends_with_its_reader, run_commands
from unicorn_monai.system.intake import MORE_MEMORY, MOST_GIGABYTES, allow_gigabytes, bounded_memory
from unicorn_monai.system.terminal import LINES, guard_terminal, say

EVERY = Group("Options of every source", sort_key=1)  # below those of a single one


def every(text: str, **how: Any) -> Parameter:
    """An option that all sources share, and what its help says."""
    return Parameter(group=EVERY, help=text, **how)


Shares = tuple[Finite, Finite, Finite]
SHARES = "shares of the subjects for training, validation and test, each 0 or more"
Split = Annotated[Shares, every(SHARES)]
Size = Annotated[tuple[Whole, ...], MANY, every("rows and columns, or one number for both: pixels, 8 to 4096")]
OriginalIds = Annotated[bool, every("write subject ids as found, not pseudonyms")]
Pair = tuple[Finite, Finite] | None
Window = Annotated[Pair, Parameter(help="values that become 0 and 255, the first the lower")]


@Parameter(name="*")
@dataclass(kw_only=True)
class Options:
    """The command line of a source, and the options that every source has."""

    input: Annotated[Path, Parameter(help="file or folder to convert")] = field(kw_only=False)
    output: Annotated[Path, Parameter(help="folder of the data set")] = field(kw_only=False)
    labels: Annotated[
        str | None, every("paper, retina, octexplorer, a JSON file (data_prep/README.md), or none: no label maps")
    ] = None
    size: Size = (256,)
    split: Split = (0.7, 0.1, 0.2)
    seed: Annotated[Whole, every("of the random split by subject; 0 or more")] = 0
    split_like: Annotated[Path | None, every("who is in that data set gets the same split here")] = None
    splits: Annotated[Path | None, every("JSON file of who is in which split (data_prep/README.md)")] = None
    device_name: Annotated[str | None, every("name of the domain; by default what the files tell")] = None
    keep_original_ids: OriginalIds = False
    key_file: Annotated[Path | None, every("key of the pseudonyms; $UNICORN_KEY_FILE or below ~/.config")] = None
    subject_pattern: Annotated[
        str | None, every(r"regular expression on the path below INPUT, e.g. 'patient(\d+)/'")
    ] = None
    spacing_mm: Annotated[Pair, every("axial and lateral, mm per pixel of the input, instead of the files'")] = None
    most_gigabytes: Annotated[
        Finite | None, every(f"memory that a file may unpack to, GB; {MOST_GIGABYTES:g} by default")
    ] = None
    strict: Annotated[bool, every("stop at the first file that cannot be converted")] = False
    resume: Annotated[bool, every("go on where an interrupted conversion stopped")] = False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns wanted."""
        return self.size[0], self.size[-1]

    @cached_property
    def subject_regex(self) -> re.Pattern[str] | None:
        """The pattern of ``--subject-pattern``, in one Unicode form."""
        if not self.subject_pattern:
            return None
        try:
            regex = re.compile(one_form(self.subject_pattern))
        except re.error as error:
            raise ValueError(f"--subject-pattern '{self.subject_pattern}' is no regular expression: {error}") from error
        if regex.groups < 1:
            raise ValueError(f"--subject-pattern '{self.subject_pattern}' has no group: put (...) around the subject")
        return regex

    def check(self) -> None:
        """Refuse options that cannot work, before anything is read."""
        if len(self.size) > 2 or min(self.size) < 8 or max(self.size) > 4096:
            raise ValueError(f"--size {[*self.size]}: expected one number or two, 8 to 4096, e.g. --size 256")
        if self.spacing_mm and min(self.spacing_mm) <= 0:
            expected = "two positive numbers, mm per pixel of the input"
            raise ValueError(f"--spacing-mm {[*self.spacing_mm]}: expected {expected}")
        if not self.input.exists():
            raise ValueError(f"INPUT '{self.input}' does not exist.")
        if self.output.resolve().is_relative_to(self.input.resolve()):
            raise ValueError(f"OUTPUT '{self.output}' lies in INPUT '{self.input}': choose a folder outside it.")
        if self.splits is not None:
            shares = self.split is not type(self).split  # the very default: none were given, not even the same ones
            if other := [name for name, given in (("--split", shares), ("--split-like", self.split_like)) if given]:
                raise ValueError(f"--splits says who is where, and so does {other[0]}: give one of both.")
        _ = self.subject_regex


def relative(path: Path, root: Path) -> str:
    """A path below INPUT as text with forward slashes; just the name where INPUT is that file."""
    return path.relative_to(root).as_posix() if path != root else path.name


def subject_of(path: Path, options: Options, found: str | None) -> str:
    """Identity of the person in a file: by the pattern if one is given, else what the file's header says."""
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


def command(work: Callable[..., int]) -> Callable[..., int]:
    """The command line of a script: runs a function within a limit of memory, and tells a failure in one paragraph.

    The parameters of ``work`` are the arguments and options, `Options` among them are checked before it is called.

    Returns:
        ``main(words, name) -> exit status``. ``words`` are those of this process by default, ``name`` is what the
        command calls itself: `python -m` and its module by default.
    """
    script = f"python -m data_prep.{Path(inspect.getfile(work)).stem}"

    @wraps(work)
    def guarded(*given: Any, **named: Any) -> int:
        guard_terminal()
        try:
            for options in (value for value in given if isinstance(value, Options)):
                allow_gigabytes(options.most_gigabytes)
                options.check()
            with ends_with_its_reader(), discreet(), bounded_memory():
                return work(*given, **named)
        except MemoryError:
            say(f"error: This takes more memory than allowed. {MORE_MEMORY}.", file=sys.stderr)
        except ValueError as error:
            say(f"error: {error}", LINES, file=sys.stderr)
        except OSError as error:
            where = f" '{error.filename}'" if error.filename else ""
            told = f"error: {error.strerror or error}:{where}. Check space and permissions there; then run again."
            say(told, file=sys.stderr)
        except KeyboardInterrupt:
            say("interrupted; run again with --resume to go on", file=sys.stderr)
        return 1

    def main(words: Sequence[str] | None = None, name: str | None = None) -> int:
        app = command_line(name or script, (sys.modules[work.__module__].__doc__ or "").replace(script, name or script))
        app["--help"].show = False
        app.default(guarded)
        return run_commands(app, words)

    return main
