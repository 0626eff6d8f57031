"""Data sets on any file system that fsspec knows: ``s3://bucket/set``, ``gs://...``, ``memory://...``.

    read     the files are copied into a local folder, once; what has changed there is copied again
    write    a local folder holds the journal; files leave it as they are finished, ``dataset.json`` last

Readers, latents and journals need files with a path, so they see local ones. A plain path never comes near fsspec.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unicorn_monai.system.files import PathLike, atomic
from unicorn_monai.system.intake import read_text

CACHE = "UNICORN_CACHE"  # environment variable
TOKENS = ".fetched.json"
_TELLING = ("size", "ETag", "etag", "md5Hash", "LastModified", "mtime", "created")  # change when a file does
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}(?!/)(.+)")  # pathlib makes one slash of two


def is_url(path: PathLike) -> bool:
    """Whether a data set lies on a file system of fsspec, rather than at a plain path."""
    return _URL.fullmatch(os.fspath(path)) is not None


def absolute(path: PathLike) -> str:
    """A plain path made absolute; a URL as it is, its two slashes restored."""
    found = _URL.fullmatch(os.fspath(path))
    return f"{found[1]}://{found[2].rstrip('/')}" if found else str(Path(path).resolve())


def local_side(path: PathLike) -> Path:
    """The local folder of a data set: a plain path itself; of a URL, a folder below ``$UNICORN_CACHE``.

    Without that variable it is below ``~/.cache/unicorn-monai``. Processes that write one data set must share it.
    """
    if not is_url(path):
        return Path(path)
    base = os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unicorn-monai"
    return Path(base) / hashlib.sha256(absolute(path).encode()).hexdigest()[:24]


class Remote:
    """The far side of a data set with a URL, e.g. ``s3://bucket/set``; credentials are of fsspec's configuration."""

    def __init__(self, url: PathLike) -> None:
        from fsspec.core import url_to_fs

        self.url, self.folder = absolute(url), local_side(url)
        try:
            self.fs, self.root = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"Cannot open '{self.url}' ({error}). Install fsspec's package for it.") from error
        self.folder.mkdir(parents=True, exist_ok=True)

    def receive(self, entries: Sequence[str]) -> bool:
        """Copy files to the local side, except those that are there as they are; whether the far side has them all.

        That the entries are paths that stay inside the caller has checked.
        """
        self.fs.invalidate_cache()
        try:
            listing: dict[str, Any] = self.fs.find(self.root, detail=True)
        except FileNotFoundError:
            listing = {}
        there = {name.removeprefix(self.root).lstrip("/"): info for name, info in listing.items()}
        known, changed = self.folder / TOKENS, False
        tokens: dict[str, str] = json.loads(read_text(known)) if known.is_file() else {}
        for entry in [entry for entry in entries if entry in there]:
            info, path = there[entry], self.folder / entry
            token = " ".join(str(info[key]) for key in _TELLING if key in info)
            if tokens.get(entry) != token or not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic(path) as temporary:
                    self.fs.get_file(f"{self.root}/{entry}", str(temporary))
                tokens[entry], changed = token, True
        if changed:
            with atomic(known) as temporary:
                temporary.write_text(json.dumps(tokens))
        return all(entry in there for entry in entries)

    def send(self, entries: Sequence[str], keep: bool = False) -> None:
        """Move finished files of the local side to the far one, or copy them (``keep``)."""
        for entry in entries:
            self.fs.makedirs(f"{self.root}/{entry}".rpartition("/")[0], exist_ok=True)
            self.fs.put_file(str(self.folder / entry), f"{self.root}/{entry}")
            if not keep:
                (self.folder / entry).unlink()
