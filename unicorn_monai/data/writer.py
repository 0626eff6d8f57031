"""The writer of a data set: many writers, one `dataset.json`, whole or not there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from unicorn_monai.data.journal import JOURNAL, Rows, begun, cut_torn_line
from unicorn_monai.data.label_checks import require_label_table
from unicorn_monai.data.layout import HEADER, SPLITS, index_of, inside, read_header
from unicorn_monai.data.remote import Remote, is_url, local_side
from unicorn_monai.images.files import IGNORE_LABEL, write_array
from unicorn_monai.system.files import Occupied, PathLike, atomic, flush, sweep
from unicorn_monai.system.intake import lies_there

COMMIT_INTERVAL = 1.0  # seconds
OWN = ("index", "split", "image", "label", "subject", "dataset")  # entries of an item that its place decides
LATER = ("sampler",)  # settings that older data sets do not tell, and that are not compared with theirs


def require_same_origin(writer: DatasetWriter, key: str, origin: dict[str, Any]) -> None:
    """Refuse to go on with a data set whose items were made by other weights or with other settings."""
    for index, item in writer.rows():
        found = {name: item.get(key, {}).get(name) for name in origin}
        if found != origin:
            raise ValueError(
                f"Item {index} of '{writer.root}' was made with {found}, this run has {origin}. Go on with the same, "
                "choose another output_dir, or remove the folder."
            )


@dataclass(frozen=True)
class About:
    """What a data set says of all its images."""

    name: str  # of the data set
    device: str  # the images come from, e.g. "Spectralis"
    labels: Mapping[int, str]  # value -> name; written only if an item has a label map
    modality: str = "OCT"  # or "RGB", ...
    spacing_mm: Sequence[float] | None = None  # (axial, lateral) in millimetres, or None where unknown
    suffix: str = ".nii.gz"  # which keeps the spacing, or ".png"


class DatasetWriter:
    """Stream a data set to disk; what is interrupted can be resumed, and nothing half-written has a final name.

    Every item's files are renamed into place, and on the disk, before its line is appended to a journal: together with
    those of other items, when one comes a second later or at the end, since a disk takes longer to be sure of a file
    than to write it.
    ``dataset.json`` is written when the block ends without an exception. With ``resume`` earlier items count as written
    (``index in writer``). In memory are the indices, at the end the lines: 60 MB, then 430 MB for a million images.

    Several processes, even on several machines, write one data set without waiting for each other: each has a share and
    a journal of its own, and whoever finds all ``total`` items written writes the header. Two that find it at the same
    time write the same bytes.

    Args:
        root: folder of the data set, created; or a URL, see `data/remote.py`.
        about: what is said of all images.
        resume: go on where a writer stopped, instead of refusing a folder in use.
        settings: what decides the items (size, seed, ...); a writer with others does not go on. Kept in the header.
        share: (number of this process, processes), each of which writes other items.
        total: items of the finished data set; needed with several processes.
        entries: more of ``dataset.json``, taken over from another one whatever their names are; the writer's own win.
        **fields: more of ``dataset.json``.

    Raises:
        ValueError: a folder in use, by a finished data set or another process, or one begun with other settings.
    """

    def __init__(
        self,
        root: PathLike,
        about: About,
        *,
        resume: bool = False,
        settings: dict[str, Any] | None = None,
        share: tuple[int, int] = (0, 1),
        total: int | None = None,
        entries: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        self.remote = Remote(root) if is_url(root) else None
        self.root = local_side(root)
        self._announced = self.remote is None or self.remote.receive([HEADER])  # where readers look for it
        if not self._announced and not begun(self.root):
            (self.root / HEADER).unlink(missing_ok=True)  # it was removed there
        self.header: dict[str, Any] = {
            "name": about.name,
            "modality": about.modality,
            "device": about.device,
            "labels": {str(value): text for value, text in sorted(about.labels.items())},
            "spacing_mm": None if about.spacing_mm is None else [float(s) for s in about.spacing_mm],
            **({} if settings is None else {"settings": json.loads(json.dumps(settings))}),
            **fields,
        }
        self.header |= {key: v for key, v in (entries or {}).items() if key not in (*self.header, *SPLITS, "settings")}
        require_label_table(self.header["labels"], f"'labels' of '{self.root}'")
        self.suffix, self.share, self.total = about.suffix, share, total
        self.finished, self._committed = False, time.monotonic()  # finished by the other processes
        own = [path.name for pattern in (".*", "items*.jsonl") for path in self.root.glob(pattern)]
        for entry in ("images", "labels", *own):  # a link here would lead what is written elsewhere
            inside(self.root, entry, f"'{entry}' of '{self.root}'")
        if not resume and begun(self.root, finished_too=True):
            raise ValueError(f"'{self.root}' already holds a data set. Choose another folder, or remove it first.")
        self._rows = Rows(self.root, total)
        self._lock = ExitStack()
        self._lock.enter_context(Occupied(self.root / f".lock-{share[0]}-of-{share[1]}"))
        self._lock.callback(self._rows.close)
        try:
            self._open()
        except BaseException:
            with self._lock:
                raise

    def _open(self) -> None:
        """Read what there is, clear up what a crash left, and open this process's journal."""
        for other in self.root.glob(".lock-*-of-*"):
            if not other.name.endswith(f"-of-{self.share[1]}"):  # another run, or what it left
                with Occupied(other):
                    pass
        own = self.root / (f"items-{self.share[0]:05d}.jsonl" if self.share[0] else JOURNAL)
        if lies_there(own):
            cut_torn_line(own)
        vanished = not self._read_journals()
        header = read_header(self.root) if (self.root / HEADER).exists() else None
        if header is not None:
            self._require_same(header if header["labels"] else header | {"labels": self.header["labels"]})
        items = [(split, item) for split in SPLITS for item in (header or {}).get(split, [])]
        if vanished or (self.total is not None and len(items) >= self.total and self._announced):
            self.finished = True
            return
        for folder in (self.root, self.root / "images", self.root / "labels"):
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
        if self._rows.open_own(own):
            self._rows.append({key: self.header.get(key) for key in ("labels", "settings")})
        for split, item in items:
            if (index := index_of(item, self.root / HEADER)) not in self._rows.indices:
                self._rows.append({**item, "index": index, "split": split})
        self.commit()

    def _read_journals(self) -> bool:
        """Read what all processes have written so far; False where the last one has just finished the data set."""
        try:
            for row in self._rows.read():
                self._require_same(row)
        except FileNotFoundError:
            return False
        return True

    def _require_same(self, begun: dict[str, Any]) -> None:
        for key in ("labels", "settings"):
            told, own = begun.get(key), self.header.get(key)
            if isinstance(told, dict) and isinstance(own, dict):
                own = {name: value for name, value in own.items() if name in told or name not in LATER}
            if told != own:
                raise ValueError(
                    f"'{self.root}' was begun with the {key} {told}, not {own}; resume with these, or begin anew."
                )

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            if exception_type is None:
                self.close()
            else:
                with suppress(OSError):  # what went wrong is on its way; items without a line are written again
                    self.commit()

    def __len__(self) -> int:
        return len(self._rows.indices)

    def __contains__(self, index: int) -> bool:
        return self.finished or index in self._rows.indices

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """What has been written so far, read from the disk: (index, item), by index."""
        self.commit()
        for row in self._rows.items():
            yield row.pop("index"), row

    def add(
        self,
        split: str,
        image: np.ndarray,
        label: np.ndarray | None = None,
        *,
        subject: str,
        index: int | None = None,
        entries: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Write one image, its label map if there is one, and, with those of later ones, its journal line.

        Args:
            split: "training", "validation" or "test".
            image: (rows, columns) or (rows, columns, 3), uint8.
            label: (rows, columns), uint8; values of ``labels`` or 255 (ignore).
            subject: pseudonym of the subject; splits are by subject.
            index: position in the data set; the next free one by default.
            entries: more of the item, taken over from another one whatever their names are; the writer's own win.
            **fields: more of the item, e.g. ``synthetic={...}``.
        """
        if split not in SPLITS:
            raise ValueError(f"Unknown split '{split}'; expected one of {list(SPLITS)}.")
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise ValueError(f"Image has dtype {image.dtype} and shape {image.shape}; expected uint8, 2D or RGB.")
        index = self._rows.next if index is None else index
        if not 0 <= index < self._rows.limit:
            raise ValueError(f"Item {index} of '{self.root}': expected an index from 0 to {self._rows.limit - 1}.")
        if index in self:
            raise ValueError(f"Item {index} of '{self.root}' is written already; skip it, or give another index.")
        name = f"{index:06d}{self.suffix}"
        row: dict[str, Any] = {"split": split, "image": f"images/{name}"}
        fields = {key: v for key, v in (entries or {}).items() if key not in OWN} | fields
        spacing = fields.get("spacing_mm", self.header["spacing_mm"])
        if label is not None:
            if label.shape != image.shape[:2]:
                raise ValueError(f"Label map has shape {label.shape}, its image {image.shape}; expected the same size.")
            known = {int(value) for value in self.header["labels"]} | {IGNORE_LABEL}
            if unknown := set(np.unique(label).tolist()) - known:
                raise ValueError(f"Label map {index} holds {sorted(unknown)}, which 'labels' does not name.")
            row["label"] = f"labels/{name}"
            write_array(self.root / row["label"], label.astype(np.uint8), spacing, lasting=False)
        write_array(self.root / row["image"], image, spacing, lasting=False)
        if self.remote is not None:
            self.remote.send([row[key] for key in ("image", "label") if key in row])
        self._rows.append({"index": index, **row, "subject": subject, **fields})
        if time.monotonic() - self._committed > COMMIT_INTERVAL:
            self.commit()

    def commit(self) -> None:
        """Make sure of the items so far: their files are on the disk, then their lines."""
        if self._rows.waiting:
            for folder in ("images", "labels"):
                flush(self.root / folder)
            self._rows.commit()
        self._committed = time.monotonic()

    def close(self) -> None:
        """Write ``dataset.json`` and remove the journals, unless other processes have items to write still."""
        self.commit()
        if self.total is not None and not self.finished:
            self.finished = not self._read_journals()
            if not self.finished and len(self) < self.total:
                return
        if not self.finished:
            try:
                items, labelled = self._in_order()
            except FileNotFoundError:  # another process has just written the header, and removed the journals
                if self.total is None:
                    raise
                self.finished = True
            else:
                self._write_header(items, labelled)
                if self.remote is not None:
                    self.remote.send([HEADER], keep=True)
        for journal in self._rows.journals():
            journal.unlink(missing_ok=True)

    def _in_order(self) -> tuple[dict[str, list[str]], bool]:
        """The lines of ``dataset.json`` for the items of each split, and whether any has a label map."""
        items: dict[str, list[str]] = {split: [] for split in SPLITS}
        labelled = False
        for _, row in self.rows():
            labelled |= "label" in row
            items[row.pop("split")].append(f"\n    {json.dumps(row)}")
        return items, labelled

    def _write_header(self, items: dict[str, list[str]], labelled: bool) -> None:
        """As ``json.dumps`` would, but an item on one line; no label table where no item has a label."""
        header = self.header if labelled else {k: v for k, v in self.header.items() if k != "colours"} | {"labels": {}}
        with atomic(self.root / HEADER) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(header, indent=2).removesuffix("\n}"))
            for split, rows in items.items():
                file.write(f',\n  "{split}": [')
                file.writelines(row if place == 0 else f",{row}" for place, row in enumerate(rows))
                file.write("\n  ]" if rows else "]")
            file.write("\n}\n")
