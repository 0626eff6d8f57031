"""The directory of an .e2e file, followed before eyepy follows it: that ends only where the chain does.

    version (36 bytes)   header (52)   chunk: header (52), its folders (44 each), their contents; then the next chunk

The next chunk begins behind the content of a chunk's last folder, wherever that is.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from unicorn_monai.system.intake import Untaken, require_regular, require_unpackable

FIRST, CHUNK, CONTENT = 88, 52, 60  # bytes before the first chunk; of the header of a chunk, of a content
FOLDER = np.dtype([("position", "<u4"), ("start", "<u4"), ("size", "<u4"), ("others", "V32")])
MOST_FOLDERS = 250_000


def require_ending_directory(path: Path) -> None:
    """Refuse a directory that goes in circles, or lists more than a file can hold.

    Raises:
        Untaken: naming what was found.
    """
    place, folders, contents, seen = FIRST, 0, 0, set()
    length = require_regular(path).stat().st_size
    with path.open("rb") as file:
        while place + CHUNK <= length:
            if place in seen:
                raise Untaken(f"its directory points backwards, to byte {place}, and has no end")
            seen.add(place)
            file.seek(place)
            (count,) = struct.unpack("<I", file.read(CHUNK)[36:40])
            if count == 0 or place + CHUNK + count * FOLDER.itemsize > length:
                break  # where eyepy stops reading, too
            folders += count
            if folders > MOST_FOLDERS:
                raise Untaken(f"its directory lists more than {MOST_FOLDERS} folders")
            table = np.frombuffer(file.read(count * FOLDER.itemsize), FOLDER)
            contents += int(table["size"].sum(dtype=np.int64))
            place = int(table["start"][-1]) + int(table["size"][-1]) + CONTENT
    require_unpackable(contents, "it")
