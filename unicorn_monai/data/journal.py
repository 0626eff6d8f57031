"""The journals of a data set that is being written: one line of JSON for each item, one file for each process.

Lines are appended, some at a time, when the files they tell of are in place and on the disk; a line torn by a crash
does not count. In memory are the indices, and the lines themselves while they are read back in order.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from unicorn_monai.data.layout import HEADER, SPLITS
from unicorn_monai.system.files import PathLike, failing_at
from unicorn_monai.system.intake import require_regular

JOURNAL = "items.jsonl"
MOST_ITEMS = 10_000_000  # an index beyond it is a mistake, or an attack on the memory
_WRITTEN = re.compile(r"([\w-][\w.-]*/)*[\w-][\w.-]*")  # below the folder


def begun(root: PathLike, finished_too: bool = False) -> bool:
    """Whether a folder holds a data set that a writer has begun and not finished."""
    return any(Path(root).glob("items*.jsonl")) or (finished_too and (Path(root) / HEADER).exists())


def cut_torn_line(journal: Path) -> None:
    """Remove a last line without its end: the files of this item are written again."""
    with require_regular(journal).open("rb+") as file:
        file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))


def _is_written(row: dict[str, Any]) -> bool:
    """Whether a line tells of an item as a writer does, with files under the names that it gives."""
    files = [row.get("image"), *([row["label"]] if "label" in row else [])]
    known = type(row["index"]) is int and row.get("split") in SPLITS
    return known and all(isinstance(file, str) and _WRITTEN.fullmatch(file) for file in files)


class Rows:
    """The lines of all journals of a folder, by index, which is below ``total``, the items of the finished data set."""

    def __init__(self, root: Path, total: int | None = None) -> None:
        self.root, self.limit = root, MOST_ITEMS if total is None else total
        self.next = 0  # the first index behind all others
        self.indices: set[int] = set()
        self._read_to: dict[Path, int] = {}
        self._own: Path | None = None
        self._out: FileIO | None = None
        self.waiting = bytearray()  # lines that :meth:`commit` writes

    def journals(self) -> list[Path]:
        """All there are, this process's too."""
        return sorted(self.root.glob("items*.jsonl"))

    def open_own(self, journal: Path) -> bool:
        """Append to this file from now on; True if it is empty."""
        self._own, self._out = journal, journal.open("ab", buffering=0)
        return self._out.seek(0, os.SEEK_END) == 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Take in all lines that have been added; yields those that describe no item.

        Raises:
            FileNotFoundError: a journal was removed, since another process has finished the data set.
        """
        for journal in sorted({*self.journals(), *self._read_to}):
            for line, row in _lines(journal, self._read_to.get(journal, 0)):
                if "index" in row:
                    self._add(row["index"], journal)
                else:
                    yield row
                self._read_to[journal] = self._read_to.get(journal, 0) + len(line)

    def append(self, row: dict[str, Any]) -> None:
        """Add a line; it counts here at once, and on the disk when it is committed."""
        if self._own is None:
            raise ValueError(f"'{self.root}' is not open for writing.")
        if "index" in row:
            self._add(row["index"], self._own)
        self.waiting += json.dumps(row).encode() + b"\n"

    def commit(self) -> None:
        """Write the lines that wait; the files they tell of must be on the disk."""
        if self._own is None or self._out is None or not self.waiting:
            return
        end = self._out.seek(0, os.SEEK_END)
        with failing_at(self._own):
            try:
                left = memoryview(bytes(self.waiting))
                while left:
                    left = left[self._out.write(left) :]
                os.fsync(self._out.fileno())
            except OSError:
                self._out.truncate(end)  # no half of a line, which others might come behind
                raise
        self._read_to[self._own] = end + len(self.waiting)
        self.waiting.clear()

    def _add(self, index: int, journal: Path) -> None:
        if not 0 <= index < self.limit:
            raise ValueError(
                f"Item {index} in '{journal}': expected 0 to {self.limit - 1}, as many as the data set can hold. Is "
                "the file from elsewhere? Remove the folder and begin anew."
            )
        self.indices.add(index)
        self.next = max(self.next, index + 1)

    def items(self) -> Iterator[dict[str, Any]]:
        """What the lines that have been read or written tell of items, by index; of two lines of an item the last."""
        found: dict[int, bytes] = {}
        for journal, end in sorted(self._read_to.items()):
            found |= {row["index"]: line for line, row in _lines(journal, 0, end) if "index" in row}
        for index in sorted(found):
            yield json.loads(found.pop(index))

    def close(self) -> None:
        """Let go of the own journal."""
        if self._out is not None:
            self._out.close()


def _lines(journal: Path, start: int, end: int | None = None) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The whole lines of a journal between two places, and what each tells: an item, or what was begun with."""
    with require_regular(journal).open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n") or (end is not None and start >= end):
                return
            start += len(line)
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict) or ("index" in row and not _is_written(row)):
                raise ValueError(
                    f"'{journal}' has the line {line[:80]!r}; expected an item with 'index', 'split' and 'image'. "
                    "Remove the folder and begin anew."
                )
            yield line, row
