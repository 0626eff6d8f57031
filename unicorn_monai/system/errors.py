"""How a run ends that cannot go on: what is shown, the exit status, and cleaning up on the way.

Exit status: 0 done, 1 failed, 2 bad usage, 3 not finite (NaN or infinity in images, latents, losses, weights, outputs),
143 stopped by SIGTERM: a training has saved its state, a synthesis what it has made.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a command that was typed wrongly says so before PyTorch is loaded
    from ignite.engine import Engine

from unicorn_monai.system.intake import MORE_MEMORY

NOT_FINITE, STOPPED = 3, 143


class NotFinite(ValueError):
    """A number that is NaN or infinite, found before it got any further.

    The commands and ``python -m monai.bundle run`` end with status 3 by it (``ending.py``): whoever runs many
    trainings can tell one that diverged from one that was set up wrongly.
    """


def of_batch(engine: Engine) -> str:
    """Which images an engine's batch holds, for a message: their files, or their positions in the data set."""
    batch: Any = engine.state.batch
    if isinstance(batch, list) and batch and isinstance(batch[0], dict):  # decollated
        batch = {key: [item[key] for item in batch if key in item] for key in batch[0]}
    if not isinstance(batch, dict):
        return ""
    images = getattr(getattr(engine.state.dataloader, "dataset", None), "images", None)
    if "image_path" in batch:
        return named(batch["image_path"])
    if "index" in batch:
        index = [int(i) for i in batch["index"]]
        return named(index if images is None else [images[i] for i in index])
    return ""


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
    while isinstance(error, RuntimeError) and error.__cause__ is not None and not _elsewhere(error.__cause__):
        error = error.__cause__
    return error


def _elsewhere(cause: BaseException) -> bool:
    """Whether a cause is only the traceback of another process."""
    return type(cause).__name__ == "_RemoteTraceback"
