"""Files that are whole or not there, JSON among them, and folders that one process works in at a time.

    with atomic(path) as temporary:         written under another name, flushed to the disk, renamed
        write(temporary)
    with Occupied(folder / ".lock"):        a second process is refused

A crash leaves at most a file, or a folder, ``.tmp-<host>-<pid>-<name>``, which :func:`sweep` removes at the next start.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from weakref import WeakValueDictionary

import numpy as np
from safetensors import SafetensorError

from unicorn_monai.system.errors import NotFinite
from unicorn_monai.system.intake import lies_there, require_parsable

logger = logging.getLogger("unicorn_monai")
PathLike = str | os.PathLike[str]
TEMPORARY = ".tmp-"
_HOST = socket.gethostname().replace("-", "_")
_DAY = 86400.0
_HELD: WeakValueDictionary[Path, Occupied] = WeakValueDictionary()  # the system knows no two holders in one process


@contextmanager
def atomic(path: Path, lasting: bool = True, apart: bool = False) -> Iterator[Path]:
    """Give a temporary name to write to; what was written gets its final name when the block ends without an error.

    An ``OSError`` has the final name, whatever failed to write. ``lasting``: wait until the name is on the disk, too;
    who writes many files flushes their folder once. ``apart``: write in a temporary folder, for a library that leaves a
    temporary file of its own beside what it was writing when it is killed (safetensors).
    """
    own = path.with_name(f"{TEMPORARY}{_HOST}-{os.getpid()}-{path.name}")
    temporary = own / path.name if apart else own
    try:
        with failing_at(path, temporary, own):
            if apart:
                own.mkdir(exist_ok=True)
            yield temporary
            flush(temporary)
            temporary.replace(path)
            if lasting:
                flush(path.parent)
    finally:
        if apart:
            shutil.rmtree(own, ignore_errors=True)
        else:
            own.unlink(missing_ok=True)


@contextmanager
def failing_at(path: Path, *temporary: Path) -> Iterator[None]:
    """Tell a failure to write ``path``, meanwhile named otherwise, as an ``OSError`` with its name, of any library."""
    try:
        yield
    except OSError as error:
        names = [str(name) for name in temporary]
        own = error.filename in (None, *names) or error.filename2 in names  # the second: of a copy
        if error.errno is None or not own:
            raise  # no failure of the system, or of another file
        raise OSError(error.errno, error.strerror, str(path)) from error
    except (SafetensorError, RuntimeError) as error:
        if (number := _system_error(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _system_error(error: Exception) -> int | None:
    """The number of the system's error behind one of safetensors or of PyTorch's archive writer; None for others."""
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return int(found[1])
    if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
        return None
    behind = error.__context__
    return behind.errno if isinstance(behind, OSError) and behind.errno is not None else errno.EIO


def flush(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk: else a power cut may take them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems flush files only
            raise
    finally:
        os.close(descriptor)


def sweep(folder: Path, below: bool = False) -> None:
    """Remove what :func:`atomic` left where its process has ended: this host tells it; of another, if older than a day.

    ``below``: in the folders of ``folder``, which need not exist, too.
    """
    for path in list((folder.rglob if below else folder.glob)(f"{TEMPORARY}*")):
        host, pid, name = [*path.name.removeprefix(TEMPORARY).split("-", 2), "", ""][:3]
        here, apart = host == _HOST and pid.isdigit(), path.is_dir()
        if apart and not (pid.isdigit() and name):  # not made by :func:`atomic`
            continue
        with suppress(FileNotFoundError):  # its process has renamed it meanwhile
            if _ended(int(pid)) if here else time.time() - path.stat().st_mtime > _DAY:
                shutil.rmtree(path) if apart else path.unlink(missing_ok=True)


def _ended(pid: int) -> bool:
    """Whether no other process has this number; this process itself writes nothing while it sweeps."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is another user's
        return False
    return pid == os.getpid()


class Occupied:
    """A lock that ends with its process, however it ends; a ``ValueError`` where another, or this one, holds it.

    ``path``: the lock file, removed in the end; ``place``: how messages call what is locked, by default the file's
    folder; ``patience``: seconds to wait for another process.
    """

    def __init__(self, path: Path, place: object = None, patience: float = 0.0) -> None:
        self.path, self.place, self.patience = path, place or path.parent, patience
        self._file: IO[str] | None = None

    def __enter__(self) -> Occupied:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name = self.path.resolve()
        if name in _HELD:
            raise ValueError(self._refusal("this one"))
        until = time.monotonic() + self.patience
        while self._file is None:
            file = self.path.open("a+", encoding="utf-8")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                holder = file.read().strip()
                file.close()
                if time.monotonic() < until:
                    time.sleep(0.1)
                    continue
                raise ValueError(self._refusal(holder or "unknown")) from None
            except OSError as error:
                logger.warning(f"'{self.path}' cannot be locked ({error}); start no second process in there.")
            with suppress(FileNotFoundError):  # its holder has removed it meanwhile; or a third process made it anew
                if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    self._file = file
                    break
            file.close()
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()
        _HELD[name] = self
        return self

    def _refusal(self, holder: str) -> str:
        return f"Another process is working in '{self.place}' ({holder}). Wait for it, or stop it."

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
            _HELD.pop(self.path.resolve(), None)


def parse_json(path: PathLike) -> Any:
    """Read a JSON file; a ``ValueError`` where it is none."""
    content = require_parsable(path).read_bytes()
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:  # no text, no JSON, or nested too deeply
        raise ValueError(f"'{path}' is not valid JSON ({error}). Repair it or write it again.") from error


def write_json(path: PathLike, content: Any) -> None:
    """Write JSON atomically; :class:`NotFinite` names an entry that is NaN or infinite, which JSON does not have."""
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except ValueError:
        for entry, value in _not_finite(content):
            raise NotFinite(
                f"'{entry}' of '{path}' is {value}; expected a finite number, or null for what was not computed. The "
                "file was not written."
            ) from None
        raise
    write_text(Path(path), text + "\n")


def require_finite(content: Any, what: str) -> None:
    """Refuse NaN and infinity anywhere in what was read from JSON, which Python takes for numbers."""
    for entry, value in _not_finite(content):
        raise ValueError(f"'{entry}' of the {what} is {value}; expected a finite number. Correct it.")


def _not_finite(node: Any, entry: str = "") -> Iterator[tuple[str, float]]:
    """Every number that is not finite, and where it stands."""
    if isinstance(node, float) and not math.isfinite(node):
        yield entry, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in children:
        yield from _not_finite(value, f"{entry}::{key}".removeprefix("::"))


def or_none(value: Any) -> Any:
    """The same with None for what is not a finite number, also within lists and arrays, for JSON and tables."""
    if isinstance(value, np.ndarray | list | tuple):
        return [or_none(v) for v in value]
    return value if isinstance(value, int) else float(value) if np.isfinite(value) else None


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: PathLike) -> dict:
    """Read a JSON file that an earlier stage wrote."""
    if not lies_there(path):
        raise ValueError(f"'{path}' does not exist; the stage that writes it has not run.")
    return parse_json(path)
