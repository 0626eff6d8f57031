"""The journals of a data set that is being written: one line of JSON for each item, one file for each process.

Lines are appended, some at a time, when the files they tell of are in place and on the disk; a line torn by a crash
does not count. In memory is the place of each line: 8 bytes per item, however much the lines tell.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import IO, Any

from unicorn_monai.data.layout import HEADER, SPLITS
from unicorn_monai.system.files import PathLike, failing_at
from unicorn_monai.system.intake import require_regular

JOURNAL = "items.jsonl"
MOST_ITEMS = 10_000_000  # an index beyond it is a mistake, or an attack on the memory
_WRITTEN = re.compile(r"([\w-][\w.-]*/)*[\w-][\w.-]*")  # below the folder
_FILE_BITS = 20  # of the number of a journal in a place; the rest is the line's offset


def begun(root: PathLike, finished_too: bool = False) -> bool:
    """Whether a folder holds a data set that a writer has begun and not finished."""
    return any(Path(root).glob("items*.jsonl")) or (finished_too and (Path(root) / HEADER).exists())


def cut_torn_line(journal: Path) -> None:
    """Remove a last line without its end: the files of this item are written again."""
    with require_regular(journal).open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        start = size
        while start and not (block := _before(file, start)).count(b"\n"):
            start -= len(block)
        file.truncate(start - len(block) + block.rindex(b"\n") + 1 if start else 0)


def _before(file: IO[bytes], end: int, length: int = 4096) -> bytes:
    file.seek(max(0, end - length))
    return file.read(min(length, end))


def _parsed(line: bytes, journal: Path) -> dict[str, Any]:
    """A line of a journal: an item, or what the data set was begun with."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or ("index" in row and not _is_written(row)):
        raise ValueError(
            f"'{journal}' has the line {line[:80]!r}; expected an item with 'index', 'split' and 'image'. Remove the "
            "folder and begin anew."
        )
    return row


def _is_written(row: dict[str, Any]) -> bool:
    """Whether a line tells of an item as a writer does, with files under the names that it gives."""
    files = [row.get("image"), *([row["label"]] if "label" in row else [])]
    known = type(row["index"]) is int and row.get("split") in SPLITS
    return known and all(isinstance(file, str) and _WRITTEN.fullmatch(file) for file in files)


class Rows:
    """The lines of all journals, by index.

    Args:
        root: folder of the data set.
        total: items of the finished data set, whose indices are below it; without it they are below ``MOST_ITEMS``.
    """

    def __init__(self, root: Path, total: int | None = None) -> None:
        self.root, self.limit = root, MOST_ITEMS if total is None else total
        self._places = array("q")  # index -> place, -1 where there is no item yet
        self._count = 0
        self._files: dict[Path, tuple[int, IO[bytes]]] = {}
        self._read_to: dict[Path, int] = {}
        self._own: Path | None = None
        self._out: FileIO | None = None
        self._end = 0  # of this process's journal
        self.waiting = bytearray()  # lines that :meth:`commit` writes

    def journals(self) -> list[Path]:
        """All there are, this process's too."""
        return sorted(self.root.glob("items*.jsonl"))

    def open_own(self, journal: Path) -> bool:
        """Append to this file from now on; True if it is empty."""
        self._own, self._out = journal, journal.open("ab", buffering=0)
        self._end = self._out.seek(0, os.SEEK_END)
        self._file(journal)
        return self._end == 0

    def _file(self, journal: Path) -> IO[bytes]:
        if journal not in self._files:
            self._files[journal] = (len(self._files), require_regular(journal).open("rb"))
        return self._files[journal][1]

    def read(self) -> Iterator[dict[str, Any]]:
        """Take in all lines that have been added; yields those that describe no item.

        Raises:
            FileNotFoundError: a journal was removed, since another process has finished the data set.
            ValueError: a line that no writer wrote.
        """
        for journal in self.journals():
            file = self._file(journal)
            place = file.seek(self._read_to.get(journal, 0))
            while (line := file.readline()).endswith(b"\n"):
                row = _parsed(line, journal)
                if "index" in row:
                    self._set(row["index"], journal, place)
                else:
                    yield row
                place = self._read_to[journal] = file.tell()
        gone = [journal for journal in self._files if not journal.exists()]
        if gone:
            raise FileNotFoundError(str(gone[0]))

    def append(self, row: dict[str, Any]) -> None:
        """Add a line; it counts here at once, and on the disk when it is committed.

        Raises:
            ValueError: not open for writing, or an index that the data set cannot have.
        """
        if self._own is None:
            raise ValueError(f"'{self.root}' is not open for writing.")
        if "index" in row:
            self._set(row["index"], self._own, self._end + len(self.waiting))
        self.waiting += json.dumps(row).encode() + b"\n"

    def commit(self) -> None:
        """Write the lines that wait; the files they tell of must be on the disk."""
        if self._own is None or self._out is None or not self.waiting:
            return
        with failing_at(self._own):
            try:
                left = memoryview(bytes(self.waiting))
                while left:
                    left = left[self._out.write(left) :]
                os.fsync(self._out.fileno())
            except OSError:
                self._out.truncate(self._end)  # no half of a line, which others might come behind
                raise
        self._end = self._read_to[self._own] = self._end + len(self.waiting)
        self.waiting.clear()

    def _set(self, index: int, journal: Path, place: int) -> None:
        if not 0 <= index < self.limit:
            raise ValueError(
                f"Item {index} in '{journal}': expected 0 to {self.limit - 1}, as many as the data set can hold. Is "
                "the file from elsewhere? Remove the folder and begin anew."
            )
        if index >= len(self._places):
            self._places.extend(array("q", [-1]) * (index + 1 - len(self._places)))
        self._count += self._places[index] < 0
        self._places[index] = place << _FILE_BITS | self._files[journal][0]

    def __len__(self) -> int:
        return self._count

    @property
    def next(self) -> int:
        """The first index behind all others."""
        return len(self._places)

    def __contains__(self, index: int) -> bool:
        return 0 <= index < len(self._places) and self._places[index] >= 0

    def __iter__(self) -> Iterator[int]:
        return (index for index, place in enumerate(self._places) if place >= 0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        files = dict(self._files.values())
        file = files[self._places[index] & (1 << _FILE_BITS) - 1]
        file.seek(self._places[index] >> _FILE_BITS)
        return json.loads(file.readline())

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as files:
            for file in [self._out, *(file for _, file in self._files.values())]:
                if file is not None:
                    files.enter_context(file)
        self._files.clear()
