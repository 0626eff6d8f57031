"""How ``python -m monai.bundle run`` ends that cannot go on: one sentence last, and status 3 where numbers run away.

    "initialize": [{"_target_": "unicorn_monai.system.end_in_one_sentence"}, "@checks", ...]

It ends with a traceback whose last line names MONAI's own objects, e.g. "Failed to instantiate component". There the
sentence of the error behind it comes last. What fails before ``initialize``, such as a configuration that is no JSON,
is MONAI's alone.
"""

from __future__ import annotations

import sys
import traceback
from functools import partial
from typing import Any

from unicorn_monai.system.errors import NOT_FINITE, NotFinite, root_cause
from unicorn_monai.system.terminal import LINES, guard_terminal, say


def end_in_one_sentence() -> None:
    """Change how the process ends, where MONAI's command is the program: a notebook or a server ends as it likes."""
    started = getattr(sys.modules["__main__"], "__spec__", None)  # None in a script
    if started is not None and started.name.startswith("monai.bundle"):
        install()


def install() -> None:
    """Let this process tell an error's root cause last, and end with status 3 if that is :class:`NotFinite`."""
    if getattr(sys.excepthook, "func", None) is not _show_and_end:
        sys.excepthook = partial(_show_and_end, sys.excepthook)
        guard_terminal()


def _show_and_end(show: Any, kind: Any, error: BaseException, trace: Any) -> None:
    if show is sys.__excepthook__:
        say("".join(traceback.format_exception(kind, error, trace)), LINES, file=sys.stderr, end="")
    else:
        show(kind, error, trace)
    cause = root_cause(error)
    if cause is not error and isinstance(cause, ValueError | RuntimeError):
        say(f"\nerror: {cause}", LINES, file=sys.stderr)
    if isinstance(cause, NotFinite):
        raise SystemExit(NOT_FINITE)
