"""The package's messages on a terminal, and how commands end when nobody reads it any more."""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperGroup

from unicorn_monai.system.terminal import PrintableFormatter, guard_terminal

CLOSED_PIPE = 141  # what a shell reports of a program that SIGPIPE has ended
logger = logging.getLogger("unicorn_monai")


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
def unsaid() -> Iterator[None]:
    """Keep the package's messages to itself, but warnings: they have been shown already."""
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


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


class Commands(TyperGroup):
    """The commands of a command line; each ends quietly when nobody reads its output any more."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with ends_with_its_reader():
            return super().invoke(ctx)
