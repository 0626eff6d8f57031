"""What is taken in from outside: regular files only, of limited size once unpacked, and only finite numbers.

    pipe, socket, device      refused by name; to open one may mean to wait for ever
    packed or sparse files    what they unpack to is known from their headers, and compared before anything is unpacked
    JSON, XML, tables         take up to 20 times their size once they are parsed

One limit holds for every format: 2 GB, or what `allow_gigabytes` or $UNICORN_MOST_GIGABYTES say. A program of other
people's files runs within `bounded_memory`, so that what no header tells ends in a `MemoryError` there, too.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MOST_GIGABYTES = 2.0
VARIABLE = "UNICORN_MOST_GIGABYTES"
GIGA = 1e9
MORE_MEMORY = f"--most-gigabytes of `prepare` or {VARIABLE} allows more, if there is as much memory"
LEAST_ROOM = 1 << 28  # bytes to work with, however little is allowed
TEXT_GROWTH = 20  # bytes in memory per byte of a text that is parsed; short elements of XML come near it
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_allowed: float | None = None  # gigabytes, instead of the environment's


class Untaken(ValueError):
    """A file that is not opened, or not unpacked, for what it is; the sentence quotes nothing of its content."""


def finite(text: str | float) -> float:
    """A number; as the type of an option it refuses NaN and infinity."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"found {text}; expected a finite number")
    return number


def allow_gigabytes(most: float | None) -> None:
    """Set what a file may unpack to, for this process; None: what the environment says, or 2."""
    global _allowed
    if most is not None and not (math.isfinite(most) and most > 0):
        raise ValueError(f"--most-gigabytes {most}: expected a positive number, e.g. 16")
    _allowed = most


def most_bytes() -> int:
    """What a file may unpack to."""
    text = os.environ.get(VARIABLE, "").strip() if _allowed is None else str(_allowed)
    with suppress(ValueError):
        if (most := finite(text or MOST_GIGABYTES)) > 0:
            return int(most * GIGA)
    raise ValueError(f"{VARIABLE} is '{text}'; expected a positive number, e.g. 16")


def require_unpackable(size: int, what: str) -> None:
    """Refuse what takes too many bytes once unpacked, before it is; ``what`` is the subject of the sentence."""
    most = most_bytes()
    if size > most:
        enough = math.ceil(1.2 * size / GIGA)
        raise Untaken(
            f"{what} would unpack to {size / GIGA:,.1f} GB; expected at most {most / GIGA:g} GB. "
            f"--most-gigabytes {enough} of `prepare` or {VARIABLE}={enough} allows it, if there is as much memory"
        )


def lies_there(path: str | os.PathLike[str]) -> bool:
    """Whether a name is taken by anything but a folder: what cannot be opened is told, not passed over."""
    return os.path.lexists(path) and not Path(path).is_dir()


def require_regular(path: str | os.PathLike[str]) -> Path:
    """Refuse what is no regular file, without opening it; links are followed."""
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "neither a file nor a folder")
        raise Untaken(f"'{path}' is {kind}; expected a regular file. Remove it, or give another path")
    return Path(path)


def require_parsable(path: str | os.PathLike[str], growth: int = TEXT_GROWTH) -> Path:
    """Refuse what is no regular file, or a text that takes too much memory, ``growth`` times its size, once parsed."""
    path = require_regular(path)
    require_unpackable(growth * path.stat().st_size, f"'{path}'")
    return path


def read_text(
    path: str | os.PathLike[str], encoding: str = "utf-8", errors: str = "strict", growth: int = TEXT_GROWTH
) -> str:
    """The text of a regular file that is short enough to be parsed, see `require_parsable`."""
    return require_parsable(path, growth).read_text(encoding=encoding, errors=errors)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process take as much memory as a file may unpack to, and not more, as far as the system can tell.

    Asking for more raises `MemoryError`, where it would otherwise take the machine down.
    """
    try:
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii")
    except (ImportError, OSError):  # no Linux
        yield
        return
    used = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith(("VmData", "VmRSS"))}
    room = max(most_bytes() - 1024 * int(used["VmRSS"]), most_bytes() // 2, LEAST_ROOM)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = 1024 * int(used["VmData"]) + room
    limit = min(n for n in (wanted, *before) if n != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
