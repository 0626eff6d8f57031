"""How a run ends that cannot go on: what is shown, the exit status, and cleaning up on the way.

Exit status: 0 done, 1 failed, 2 bad usage, 3 not finite (NaN or infinity in images, latents, losses, weights, outputs),
143 stopped by SIGTERM: a training has saved its state, a synthesis what it has made.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a command that was typed wrongly says so before PyTorch is loaded
    from ignite.engine import Engine

from unicorn_monai.system.intake import MORE_MEMORY
from unicorn_monai.system.terminal import LINES, guard_terminal, say

NOT_FINITE, STOPPED = 3, 143


class NotFinite(ValueError):
    """A number that is NaN or infinite, found before it got any further; it ends a program with a status of its own."""


def of_batch(engine: Engine) -> str:
    """Which images an engine's batch holds, for a message: their files, or their positions in the data set."""
    batch: Any = engine.state.batch
    if isinstance(batch, list) and batch and isinstance(batch[0], dict):  # decollated
        batch = {key: [item[key] for item in batch if key in item] for key in batch[0]}
    if not isinstance(batch, dict):
        return ""
    if "image_path" in batch:
        return named(batch["image_path"])
    images = getattr(getattr(engine.state.dataloader, "dataset", None), "images", None)
    index = [int(i) for i in batch.get("index", ())]
    return named(index if images is None else [images[i] for i in index])


@contextmanager
def trained_on(engine: Engine) -> Iterator[None]:
    """Add to a :class:`NotFinite` what the engine saw last: weights and states know nothing of images themselves."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(f"{error} Found after iteration {engine.state.iteration}{of_batch(engine)}.") from error


def named(ids: Any) -> str:
    """Some of many names, for a message."""
    ids = [str(i) for i in ids]
    more = f" and {len(ids) - 4} more" if len(ids) > 4 else ""
    return f" (batch of {', '.join(ids[:4])}{more})" if ids else ""


def on_failure(engine: Engine, clean_up: Callable[[], None]) -> None:
    """Call ``clean_up`` when a run fails, once or twice; the error goes on to the caller after that.

    Ignite keeps an error to itself once there is any handler for it.
    """
    from ignite.engine import Events

    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda *_: clean_up())
    if engine.has_event_handler(_go_on, Events.EXCEPTION_RAISED):
        engine.remove_event_handler(_go_on, Events.EXCEPTION_RAISED)
    engine.add_event_handler(Events.EXCEPTION_RAISED, _go_on)


def _go_on(engine: Engine, error: BaseException) -> None:
    raise error


@contextmanager
def on_sigterm(call: Callable[[], None]) -> Iterator[None]:
    """Call ``call`` when the process is told to end, instead of ending at once; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: call())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def explain(error: BaseException) -> str:
    """One paragraph: what went wrong and what to do."""
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{error.strerror}: '{error.filename}'. Check the space and the permissions there, or choose another "
            "--output; finished stages are kept, --resume goes on behind them."
        )
    if isinstance(error, MemoryError):
        return f"This takes more memory than allowed. {MORE_MEMORY}."
    if type(error).__name__ == "OutOfMemoryError":  # PyTorch's
        return f"Out of memory: {error} Lower batch_size (or patch_size), finished stages are kept."
    if isinstance(error, ValueError | RuntimeError):
        return str(error)
    return f"{type(error).__name__}: {error}. This is unexpected; --debug before the command shows where it happened."


def root_cause(error: BaseException) -> BaseException:
    """The message a user needs: MONAI wraps errors in up to three others that only name its own objects."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        if type(error.__cause__).__name__ == "_RemoteTraceback":  # only the traceback of another process
            break
        error = error.__cause__
    return error


def end_in_one_sentence() -> None:
    """Let ``python -m monai.bundle run`` end so, too; a notebook or a server, where it is not the program, as it likes.

    The first entry of ``initialize``: what fails before it, such as a configuration that is no JSON, is MONAI's alone.
    """
    started = getattr(sys.modules["__main__"], "__spec__", None)  # None in a script
    if started is not None and started.name.startswith("monai.bundle"):
        tell_root_cause_last()


def tell_root_cause_last() -> None:
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
