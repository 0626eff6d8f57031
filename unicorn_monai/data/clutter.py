"""What other programs leave among images: notebooks, file managers, network storage, trash bins.

Nobody means these files when they name a folder of images: thumbnails and deleted or older copies of what lies beside
them. They are known by their names; a name with a dot in front is hidden and counts as well.
"""

from __future__ import annotations

NAMES = frozenset(
    {
        # Windows
        "$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "found.000",
        # macOS
        "__macosx", "network trash folder", "temporary items", "icon\r",
        # Linux, Android
        "lost+found", "lost.dir",
        # network storage: Synology, QNAP, Samba, NetApp
        "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "~snapshot",
        # Python
        "__pycache__",
    }
)  # fmt: skip
BEGINNINGS = (".", "~$")  # hidden; open in an office program


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left by another program."""
    return name.startswith(BEGINNINGS) or name.casefold() in NAMES
