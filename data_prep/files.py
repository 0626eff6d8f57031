"""Which files of a folder count, for all sources: the one place where folders are walked.

Left out and told are hidden files, what other programs leave (`unicorn_monai.data.clutter`), and links to what is read
under its own name. Links are followed where they stay inside INPUT, each folder once, and refused where they lead out
of it. What cannot be reached is told.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.options import natural
from data_prep.scan import Report
from unicorn_monai.data.clutter import is_clutter


def files_below(root: Path, suffixes: Sequence[str], report: Report, within: Path | None = None) -> list[Path]:
    """Files of these kinds (suffixes in lower case; ("",) for any), sorted; refused if there is none.

    A root that is a file stands for itself. Links must not lead out of ``within``: INPUT, by default the root.
    """
    found = any_files_below(root, suffixes, report, within)
    if not found:
        kind = f" that ends in {', '.join(suffixes)}" if any(suffixes) else ""
        raise ValueError(f"'{root}' holds no file{kind}.{' '.join(['', *report.left_out_lines()])}")
    return found


def any_files_below(root: Path, suffixes: Sequence[str], report: Report, within: Path | None = None) -> list[Path]:
    """As `files_below`, but possibly none."""
    if root.is_file():
        return [root]
    return sorted(_Walk(root, within or root, tuple(suffixes), report).files(), key=natural)


class _Walk:
    """One walk through a folder."""

    def __init__(self, root: Path, within: Path, suffixes: tuple[str, ...], report: Report) -> None:
        self.root, self.within, self.suffixes, self.report = root, within, suffixes, report
        self.entered: set[str] = set()  # folders by their real paths
        self.found: dict[str, Path] = {}  # files by their real paths
        self.links: list[Path] = []

    def files(self) -> Iterator[Path]:
        """The files: first what lies in the folder itself, then what links lead to."""
        _require_within(self.root, self.within)
        self._enter(self.root)
        links_to_files = []
        while self.links:
            self.links.sort(key=natural, reverse=True)
            link = self.links.pop()
            if link.is_dir():
                self._follow(link)
            elif not link.exists():
                self.report.skip(link, "found a link to what is not there; restore it, or remove the link")
            elif self._wanted(link.name):
                links_to_files.append(link)
        yield from self.found.values()
        for link in links_to_files:
            _require_within(link, self.within)
            if not link.is_file():
                self._tell_irregular(link)
            elif os.path.realpath(link) in self.found:
                self._tell_read_anyway(link)
            else:
                yield link

    def _wanted(self, name: str) -> bool:
        return name.lower().endswith(self.suffixes)

    def _enter(self, folder: Path) -> None:
        """Take note of what lies in a folder and in those below it."""
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            real = os.path.realpath(here)
            if real in self.entered:
                continue
            self.entered.add(real)
            try:
                entries = list(os.scandir(here))
            except OSError as error:
                self.report.skip(here, f"found a folder that cannot be read ({error.strerror}); check its permissions")
                continue
            for entry in entries:
                path = here / entry.name
                if is_clutter(entry.name):
                    self.report.leave_out(entry.name, self._count(entry))
                elif entry.is_symlink():
                    self.links.append(path)
                elif entry.is_dir():
                    waiting.append(path)
                elif self._wanted(entry.name):
                    if entry.is_file():
                        self.found[f"{real}{os.sep}{entry.name}"] = path
                    else:
                        self._tell_irregular(path)

    def _follow(self, link: Path) -> None:
        """Enter the folder that a link leads to, unless it is read anyway, or holds what is read."""
        _require_within(link, self.within)
        target = os.path.realpath(link)
        if target in self.entered or Path(os.path.realpath(self.root)).is_relative_to(target):
            self._tell_read_anyway(link)
        else:
            self._enter(link)

    def _count(self, entry: os.DirEntry) -> int:
        """Wanted files in what is left out."""
        if entry.is_dir(follow_symlinks=False):
            return sum(self._wanted(name) for _, _, names in os.walk(entry.path) for name in names)
        return int(self._wanted(entry.name))

    def _tell_read_anyway(self, link: Path) -> None:
        place = link.relative_to(self.within).as_posix() if link.is_relative_to(self.within) else link.as_posix()
        self.report.note(f"the link '{place}' leads to what is read under another name; it was left out")

    def _tell_irregular(self, path: Path) -> None:
        self.report.skip(path, "found no regular file (a pipe, a socket or a device); remove it")


def _require_within(path: Path, within: Path) -> None:
    if within.is_dir() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(within)):
        remedy = f"Copy the {'folder' if path.is_dir() else 'file'}, or remove the link."
        raise ValueError(f"'{path}' is a link that leads out of '{within}'; refused. {remedy}")


def require_label_below(path: Path, labels: Path, within: Path) -> None:
    """Refuse a label file in the folder ``labels`` that is a link and leads out of INPUT."""
    if not path.resolve().is_relative_to(within.resolve()):
        name = labels.relative_to(within) if labels.is_relative_to(within) else labels
        raise ValueError(f"label: '{path}' is a link that leads out of '{name}'; refused")
