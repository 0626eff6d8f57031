"""No identifier travels: subjects get pseudonyms from a keyed hash, and burnt-in text is noticed.

    pseudonym = "s" + first 12 hex digits of HMAC-SHA256(key, identity)

The same key gives the same pseudonym to the same person in every conversion; without the key nobody can test whether a
name belongs to a pseudonym. The key lies in a file of the user, never in the data set: lose it and the link is gone.

Nor does one reach the terminal: what another library says about a file may quote it, so of such errors only the kind is
told (`told`), and warnings of readers are not shown (`discreet`).
"""

import hmac
import logging
import os
import secrets
import stat
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unicorn_monai.system.files import flush
from unicorn_monai.system.intake import MORE_MEMORY, Untaken, read_text, require_regular

KEY_VARIABLE = "UNICORN_KEY_FILE"
KEY_BYTES = 32
READERS = ("pydicom", "eyepy", "nibabel", "PIL")  # libraries that log what they find in files
BLOCK, RUN = 16, 4  # side of a block of pixels; neighbouring blocks in a row


class Refused(ValueError):
    """A sentence of this project about a file, in which nobody is named; it may be shown as it is."""


def told(error: Exception) -> str:
    """What may be shown of an error met while a file was read: a sentence of ours, of any other error the kind.

    Readers quote what they could not decode or convert, and that may be a patient's name or id.
    """
    if isinstance(error, MemoryError):
        return f"it takes more memory than allowed; {MORE_MEMORY}"
    return str(error) if isinstance(error, Refused | Untaken) else type(error).__name__


def reason(error: Exception) -> str:
    """Why a file is left out: sentences of the sources and of the system as they are, of any other error the kind."""
    return str(error) if isinstance(error, ValueError | OSError) and str(error) else told(error)


@contextmanager
def discreet() -> Iterator[None]:
    """While files are read: warnings and logs of the readers, which quote headers, are not shown."""
    loggers = [logging.getLogger(name) for name in READERS]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def read_key(path: Path | None, output: Path) -> bytes:
    """Read the key, 64 hex digits; make one where there is none yet.

    By default it lies in $UNICORN_KEY_FILE, or below the user's configuration folder.

    Raises:
        ValueError: if others can read the key, it belongs to somebody else, is no key, or would travel with the data.
    """
    path = path or Path(os.environ.get(KEY_VARIABLE) or Path.home() / ".config" / "unicorn-monai" / "pseudonym.key")
    if path.resolve().is_relative_to(output.resolve()):
        where = f"lies in the data set '{output}'"
        raise ValueError(f"The key file '{path}' {where}: it must not travel; keep it elsewhere.")
    if not os.path.lexists(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
        flush(path)  # a power cut must not take the key of data sets that are on the disk
        flush(path.parent)
    if path.is_dir():
        raise ValueError(f"'{path}' is a folder; expected a key file, e.g. --key-file '{path / 'pseudonym.key'}'.")
    status = require_regular(path).stat()
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ValueError(f"The key file '{path}' can be read by others; run `chmod 600` on it.")
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        raise ValueError(f"The key file '{path}' belongs to another user; choose your own with --key-file.")
    try:
        key = bytes.fromhex(read_text(path, "ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        expected = f"{2 * KEY_BYTES} hex digits"
        raise ValueError(f"'{path}' is no key: expected {expected}; restore it, or remove it for a new one.")
    return key


def one_form(text: str) -> str:
    """A name in one Unicode form: an umlaut is one sign to some programs and file systems, and two to others."""
    return unicodedata.normalize("NFC", text)


def pseudonym(identity: str, key: bytes) -> str:
    """Stable name of a subject; nothing can be learned from it without the key."""
    return "s" + hmac.new(key, one_form(identity).strip().encode("utf-8"), sha256).hexdigest()[:12]


def burnt_in_text(image: NDArray[np.uint8]) -> str | None:
    """Look for text, scan boxes and scale bars in a B-scan; the evidence in words, or None.

    Overlays are drawn in colour on a grey image, or in pure white on a dark ground: in four neighbouring blocks of
    16 x 16 pixels the median is below 40, yet 4 to 50 % are 250 or more. No alarm in 70 real Spectralis B-scans, 92
    simulated ones and 24 real ones degraded to home OCT; an alarm in all 80 with text 16 pixels high or more; smaller
    text is not seen.
    """
    if image.ndim == 3:
        coloured = np.ptp(image.astype(np.int16), axis=2) > 60
        if 0 < coloured.mean() < 0.2:
            return "coloured pixels in a grey image"
        image = image.mean(axis=2).astype(np.uint8)
    rows, columns = (n // BLOCK for n in image.shape)
    if rows == 0 or columns < RUN:
        return None
    blocks = image[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    white = (blocks >= 250).mean(axis=(1, 3))
    drawn = (np.median(blocks, axis=(1, 3)) < 40) & (white > 0.04) & (white < 0.5)
    neighbours = np.lib.stride_tricks.sliding_window_view(drawn, RUN, axis=1)
    return "pure white on a dark ground" if neighbours.all(axis=2).any() else None
