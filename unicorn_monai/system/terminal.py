"""What reaches a terminal: text only. Names and texts of files can hold codes that a terminal would obey.

Such a code clears the screen, moves the cursor over what was said before, hides text, or turns its direction round.
Here each becomes a visible escape. Everything the package prints, logs or warns of goes through `say`,
`PrintableFormatter` and `guard_terminal`.
"""

from __future__ import annotations

import logging
import sys
import unicodedata
import warnings
from typing import IO, Any

UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, formats, lone surrogates, separators of lines and paragraphs
JOINERS = "\u200c\u200d"  # formats that some scripts, and pictographs, are spelled with
LINES = "\n\t"


def printable(text: object, keep: str = "") -> str:
    """A text with everything a terminal would obey as a visible escape, ESC as ``x1b`` behind a backslash.

    ``keep``: controls that stay as they are, e.g. ``LINES`` where the text may have several lines.
    """
    stays = keep + JOINERS
    unseen = {c for c in str(text) if unicodedata.category(c) in UNSEEN and c not in stays}
    return str(text).translate({ord(c): c.encode("unicode_escape").decode() for c in unseen})


def say(text: object, keep: str = "", file: IO[str] | None = None, end: str = "\n") -> None:
    """Print a line, or lines where ``keep`` says so, on standard output unless told otherwise."""
    print(printable(text, keep), file=file or sys.stdout, end=end)


class PrintableFormatter(logging.Formatter):
    """Lines of a log, tracebacks too, as a terminal may see them."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines, of one message."""
        return printable(super().format(record), LINES)


def guard_terminal() -> None:
    """Let warnings, and logs of libraries that nobody handles, be printable too: they quote what files say."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
    warnings.formatwarning = _warning


_plain_warning = warnings.formatwarning


def _warning(*arguments: Any, **more: Any) -> str:
    return printable(_plain_warning(*arguments, **more), LINES)
