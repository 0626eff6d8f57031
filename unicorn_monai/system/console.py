"""The command lines: what they take, what they show, and how they end when nobody reads it any more."""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

from cyclopts import App, CoercionError, CycloptsError, MissingArgumentError, Parameter, Token, convert
from rich.console import Console
from rich.logging import RichHandler

from unicorn_monai.system.intake import finite
from unicorn_monai.system.terminal import LINES, PrintableFormatter, guard_terminal, printable, say

BAD_USAGE = 2
CLOSED_PIPE = 141  # what a shell reports of a program that SIGPIPE has ended
logger = logging.getLogger("unicorn_monai")


def _converter(number: Callable[[str], Any], expected: str) -> Parameter:
    def converted(_: object, tokens: Sequence[Token]) -> Any:
        try:
            return number(tokens[0].value)
        except ValueError:
            told = f"found {tokens[0].value}; expected {expected}"
            raise CoercionError(msg=told, token=tokens[0]) from None

    return Parameter(converter=converted)


def _last(kind: Any, tokens: Sequence[Token]) -> Any:
    """The values of the last time an option is given, as of one with a single value; else they would add up."""
    begin = max(i for i, token in enumerate(tokens) if token.index == 0)
    return convert(kind, tokens[begin:])


# Types of options. The library by itself would round 1.5 to a whole number, and take NaN and infinity.
Whole = Annotated[int, _converter(int, "a whole number")]
Finite = Annotated[float, _converter(finite, "a finite number")]
MANY = Parameter(consume_multiple=1, converter=_last)  # an option of one value or more


def described(text: str, *names: str, **how: Any) -> Parameter:
    """An argument or option, and what its help says."""
    return Parameter(names or None, help=text, **how)


Run = Annotated[Path, described("Folder of a finished run.")]
Seed = Annotated[Whole, described("Seed of everything.")]
Device = Annotated[str | None, described("cpu, cuda:0, ...; the first GPU by default.")]
Weight = Annotated[str | None, described("Weight of the uncertainty in the first mode; auto for all modes.")]


class BadUsage(ValueError):
    """Words of a command line that fit the options and yet mean nothing; told with exit status 2."""


def command_line(name: str, purpose: str | None = None) -> App:
    """A command line without commands yet, for `run_commands`. Of an option that is repeated the last one counts."""
    every = Parameter(negative="", allow_repeating=True, show_default=_shown)
    return App(
        name=name,
        help=purpose,
        help_format="plaintext",
        version_flags=[],
        default_parameter=every,
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
    )


def _shown(default: Any) -> str | None:
    """A default as it would be typed; nothing for an option that is off or has none."""
    if default is None or default is False:
        return None
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def run_commands(app: App, words: Sequence[str] | None = None) -> int:
    """Run what a command line asks for, and return the exit status; what it cannot mean is told, as text.

    The commands of `app` return a status, or None for 0; ``words`` are those of this process by default.
    """
    words = sys.argv[1:] if words is None else list(words)
    try:
        with ends_with_its_reader():
            return (app.meta if app.meta.default_command else app)(words) or 0
    except (CycloptsError, BadUsage) as error:
        asked = " ".join([app.name[0], *app.parse_commands(words)[0]])
        say(f"{asked}: error: {_complaint(error)}", file=sys.stderr)
        say(f"Try '{asked} --help'.", file=sys.stderr)
        return BAD_USAGE


def _complaint(error: Exception) -> str:
    if isinstance(error, MissingArgumentError) and error.argument and not (error.keyword or error.argument.tokens):
        positional = error.argument.index is not None
        return f"required: {error.argument.name.lstrip('-').upper() if positional else error.argument.name}"
    return str(error)


def tell(text: str, style: str | None = None) -> None:
    """A message on standard error, for whoever watches."""
    Console(stderr=True).print(printable(text, LINES), style=style, markup=False, soft_wrap=True)


def log_to_console() -> None:
    """Show the package's messages on standard error: in colours on a terminal, else as plain lines with the time."""
    terminal = sys.stderr.isatty()
    handler: logging.Handler = logging.StreamHandler()
    if terminal:
        handler = RichHandler(console=Console(stderr=True), show_path=False, show_level=False, markup=False)
    handler.setFormatter(PrintableFormatter("%(message)s" if terminal else "%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    guard_terminal()


@contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """End quietly, with status 141, when whoever reads the output has gone, as in ``... | head``.

    A signal would do so for every pipe and socket of the process; a broken one of another kind stays an error.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not gone:
            raise
        for stream in gone:  # what is left in it is written to nowhere when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise SystemExit(CLOSED_PIPE) from None


def _has_no_reader(stream: TextIO) -> bool:
    try:
        pipe = select.poll()
        pipe.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in pipe.poll(0))
    except (OSError, ValueError):  # no file, or closed
        return False
