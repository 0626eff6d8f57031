"""Volumes and MATLAB files, read in a process of their own: a file that kills its reader kills nothing else.

ITK and SciPy read .mha, .mhd, .nrrd and .mat in C and C++; a file made for it can crash them, hang them, or have them
take all memory. So another Python, started when it is needed and kept, reads them within limits of memory and time.

    to it     {"kind": "meta", "nrrd", "mat" or "size of mat", "path": ..., "size": bytes, "folder": for the arrays}
    from it   "begun" when its libraries are there; then what its reader found, or {"error": ...}

Each message is a line of JSON, each array a .npy file. This file is also the program of that process, which imports
nothing of this package.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

START_SECONDS = 300  # to import ITK, from a slow disk
LEAST_SECONDS, BYTES_PER_SECOND = 15, 50_000_000
MAPPED = 1 << 20  # bytes from which on an array stays in its file and is not copied
SPARE = 1 << 29  # bytes beside the voxels
ALONE = {  # a thread reserves memory that it does not use
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}
_READERS = {"meta": "MetaImageIO", "nrrd": "NrrdImageIO"}
_CLASSES = {"double": 8, "single": 4, "logical": 1} | {f"{u}int{8 * n}": n for n in (1, 2, 4, 8) for u in ("", "u")}


class Unreadable(ValueError):
    """A file that its reader could not read, or that ended its reader."""


class Reader:
    """The other process, and the folder through which arrays come back."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.folder = tempfile.TemporaryDirectory(prefix="unicorn-")
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | ALONE,
        )
        self.questions: IO[bytes] = self.process.stdin  # type: ignore[assignment]
        self.answers: IO[bytes] = self.process.stdout  # type: ignore[assignment]

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """What the reader found in a file, with its arrays in memory."""
        with suppress(OSError):  # it has ended; the first answer tells
            self.questions.write(json.dumps(question | {"folder": self.folder.name}).encode() + b"\n")
            self.questions.flush()
        self._line(START_SECONDS)
        answer = json.loads(self._line(LEAST_SECONDS + question["size"] / BYTES_PER_SECOND))
        if "error" in answer:
            raise Unreadable(answer["error"])
        return answer | {"arrays": {name: self._array(file) for name, file in answer["arrays"].items()}}

    def _array(self, name: str) -> NDArray:
        file = Path(self.folder.name) / name
        large = file.stat().st_size > MAPPED
        array = np.load(file, mmap_mode="r" if large else None, allow_pickle=False)
        with suppress(PermissionError):  # of systems that keep a file as long as it is mapped
            file.unlink()
        return array

    def _line(self, seconds: float) -> bytes:
        late = threading.Event()
        timer = threading.Timer(seconds, lambda: (late.set(), self.process.kill()))
        timer.start()
        try:
            line = self.answers.readline()
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            return line
        status = self.process.wait()
        raise Unreadable(f"its reader {f'took more than {seconds:.0f} s' if late.is_set() else f'crashed, {status}'}")

    def close(self) -> None:
        """End the process, and remove the folder; a process that was forked off this one leaves both alone."""
        if self.owner != os.getpid():
            return
        self.process.kill()
        self.process.wait()
        for pipe in (self.questions, self.answers):
            with suppress(OSError):
                pipe.close()
        self.folder.cleanup()


_reader: Reader | None = None


def read_isolated(kind: str, path: Path, size: int) -> dict[str, Any]:
    """Read a file in the other process; :class:`Unreadable` if that finds nothing readable, crashes, or is late.

    Args:
        kind: "meta" (.mha, .mhd), "nrrd", "mat", or "size of mat" for what that unpacks to.
        path: of the file, looked at before: a regular file whose header makes sense.
        size: bytes of what it unpacks to, as far as the header tells; it has time and memory for them.

    Returns:
        {"arrays": {name: array}}; of volumes, whose array is "voxels" in the order x, y, z, also "spacing",
        "directions" and "origin"; of a "size of mat" also "unpacked", bytes.
    """
    global _reader
    if _reader is None or _reader.owner != os.getpid() or _reader.process.poll() is not None:
        if _reader is not None:
            _reader.close()
        _reader = Reader()
        atexit.register(_reader.close)
    try:
        return _reader.ask({"kind": kind, "path": str(Path(path).absolute()), "size": size})
    except Unreadable:
        raise
    except BaseException:  # interrupted in the middle of an answer
        _reader.close()
        raise


# ---------------------------------------------------------------- the program of the other process


def _answer_questions() -> None:
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin.buffer:
        question = json.loads(line)
        _limit(None)
        if question["kind"] in _READERS:
            _load_itk(question["folder"])
        else:
            import_module("scipy.io")
        answers.write(b"begun\n")
        try:
            found = _PROGRAMS[question["kind"]](question)
        except Exception as error:  # whatever a broken file makes of a reader; its text may quote the file
            found = {"error": str(error) if isinstance(error, Unreadable) else type(error).__name__}
        answers.write(json.dumps(found).encode() + b"\n")


def _load_itk(folder: str) -> None:
    """ITK loads its parts when they are first used, so a tiny volume is read before anything is limited."""
    import itk

    first = Path(folder) / "first.mha"
    if not first.exists():
        entries = "ObjectType = Image\nNDims = 3\nDimSize = 1 1 1\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
        first.write_bytes(entries.encode() + b"\0")
        itk.imread(str(first), imageio=itk.MetaImageIO.New())  # type: ignore[missing-attribute]
        _ = itk.NrrdImageIO  # type: ignore[missing-attribute]


def _limit(size: int | None) -> None:
    """Allow as much memory as is taken now, and so many bytes more; None: all there is, to load libraries."""
    with suppress(ImportError, OSError):  # no Linux
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):  # the second is the other process's
            resource.setrlimit(kind, (resource.getrlimit(kind)[1],) * 2)
        if size is None:
            return
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = taken + SPARE + size
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read_itk(question: dict[str, Any]) -> dict[str, Any]:
    import itk

    _limit(2 * question["size"])  # packed and unpacked
    image = itk.imread(question["path"], imageio=getattr(itk, _READERS[question["kind"]]).New())
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise Unreadable(f"found {image.GetNumberOfComponentsPerPixel()} values per voxel; expected one")
    np.save(Path(question["folder"]) / "0.npy", np.asarray(itk.array_view_from_image(image)).T)  # itk's are z, y, x
    directions = np.asarray(image.GetDirection()).tolist()
    spacing, origin = ([float(s) for s in values] for values in (image.GetSpacing(), image.GetOrigin()))
    return {"arrays": {"voxels": "0.npy"}, "spacing": spacing, "directions": directions, "origin": origin}


def _numbers_in(question: dict[str, Any]) -> dict[str, int]:
    """Bytes of the variables that are arrays of numbers; cells, structures and objects are passed over unread."""
    from scipy.io import whosmat

    _limit(question["size"])
    found = [(name, shape, kind) for name, shape, kind in whosmat(question["path"]) if kind in _CLASSES]
    return {name: _CLASSES[kind] * math.prod(int(n) for n in shape) for name, shape, kind in found}


def _size_mat(question: dict[str, Any]) -> dict[str, Any]:
    return {"arrays": {}, "unpacked": sum(_numbers_in(question).values())}


def _read_mat(question: dict[str, Any]) -> dict[str, Any]:
    from scipy.io import loadmat

    names = list(_numbers_in(question))
    _limit(3 * question["size"])  # packed, as stored, and as MATLAB has them
    content = loadmat(question["path"], variable_names=names) if names else {}
    real = [name for name in names if isinstance(content.get(name), np.ndarray) and content[name].dtype.kind in "iuf"]
    files = {name: f"{k}.npy" for k, name in enumerate(real)}
    for name, file in files.items():
        np.save(Path(question["folder"]) / file, content[name])
    return {"arrays": files}


_PROGRAMS = {"meta": _read_itk, "nrrd": _read_itk, "mat": _read_mat, "size of mat": _size_mat}

if __name__ == "__main__":
    _answer_questions()
