"""Which label file belongs to which image, for all sources that look for files; what was not found is told at once.

    INPUT/images/PLACE/NAME.*     ->     INPUT/labels/PLACE/NAME, an ending of the source, a suffix of a kind it reads

Suffixes count in upper and lower case. Names are compared in one Unicode form: file systems write an umlaut as one sign
or as two. An image has one label file, and a label file belongs to one image.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.files import any_files_below
from data_prep.options import Options, relative, subject_of
from data_prep.privacy import one_form
from data_prep.scan import Report
from unicorn_monai.data.clutter import is_clutter

LOSSY = (".jpg", ".jpeg")  # found, and then refused by name
NAME = "labels"
FEW = 3  # names in a sentence
LABEL_FOLDERS = {
    *("label", "labels", "mask", "masks", "annotation", "annotations", "segmentation", "segmentations"),
    *("gt", "groundtruth", "ground_truth"),
}


def images_and_labels(root: Path) -> tuple[Path, Path]:
    """The folders of images and labels: INPUT/images and INPUT/labels, in upper or lower case, else all of INPUT."""
    return _subfolder(root, "images") or root, _subfolder(root, NAME) or root / NAME


def _subfolder(root: Path, name: str) -> Path | None:
    if (root / name).is_dir():
        return root / name
    below = root.iterdir() if root.is_dir() else ()
    found = sorted(path for path in below if path.name.lower() == name and path.is_dir())
    if len(found) > 1:
        raise ValueError(f"'{root}' holds {[path.name for path in found]}; expected one folder '{name}'. Rename one.")
    return found[0] if found else None


def folder_name(path: Path, root: Path, depth: int = 0) -> str | None:
    """Name of a folder below the images that holds one; the first names the subject. None where it lies in no such."""
    parts = path.relative_to(root).parts[:-1] if root.is_dir() else ()
    return parts[depth] if len(parts) > depth else None


def require_no_labels(paths: Sequence[Path], root: Path, options: Options) -> None:
    """Refuse images that lie in a folder of label images."""
    for path in paths:
        below = path.relative_to(root).parts[:-1] if root.is_dir() else ()
        if found := [part for part in below if part.lower() in LABEL_FOLDERS]:
            raise ValueError(
                f"'{relative(path, options.input)}' would be taken for an image, but lies in a folder '{found[0]}'; "
                "expected images below INPUT/images and their labels at the same places below INPUT/labels. Move them "
                "so, or give a folder that holds images only."
            )


class LabelFiles:
    """The label files of INPUT in one folder, of the kinds (suffixes in lower case) that a source reads.

    One of ``endings`` may stand between the name of an image and the suffix. With ``anywhere`` the names to look for
    are below INPUT and whole, and the folder holds the images, too. The report is told what was not found, unless the
    options want no labels.
    """

    def __init__(
        self,
        folder: Path,
        kinds: Sequence[str],
        options: Options,
        report: Report,
        endings: Sequence[str] = ("",),
        anywhere: bool = False,
    ) -> None:
        self.folder, self.kinds, self.endings, self.anywhere = folder, tuple(kinds), endings, anywhere
        self.options, self.report, self.wanted = options, report, options.labels != "none"
        there = self.wanted and folder.is_dir()
        self.files = any_files_below(folder, ("",), report, options.input) if there else []
        self.total, self.missing = 0, list[tuple[Path, str]]()
        self.owners: dict[Path, list[Path]] = {}
        self.index: dict[tuple[str, str], list[Path]] = {}  # place and name, suffix -> files
        for path in self.files:
            name = path.relative_to(folder).as_posix()
            if kind := self._kind(name):
                self.index.setdefault((one_form(name[: -len(kind)]), kind), []).append(path)

    def _kind(self, name: str) -> str | None:
        return next((kind for kind in sorted(self.kinds, key=len, reverse=True) if name.lower().endswith(kind)), None)

    def of_image(self, image: Path, name: str) -> Path | None:
        """The label file of an image, refused if several fit; None if there is none, of which `tell` speaks.

        The name has its place below the folder of labels, and a suffix only if ``anywhere``.
        """
        if not self.wanted:
            return None
        self.total += 1
        kind = self._kind(name) if self.anywhere else None
        names = [name[: -len(kind)]] if kind else [name + ending for ending in self.endings]
        found = self._take(image, names, (kind,) if kind else self.kinds)
        if found is None:
            self.missing.append((image, name))
        return found

    def by_subject(
        self, images: Sequence[Path], root: Path, depth: int = 0, own_files: bool = True
    ) -> dict[str, dict[Path, Path | None]]:
        """Subject -> images -> their label files; images of nobody, or with several label files, are left out.

        The root is the folder of all images; unless a pattern says so, the folder that is so deep below it names the
        subject. Without ``own_files``, one file holds the labels of all images.
        """
        found: dict[str, dict[Path, Path | None]] = {}
        for path in images:
            try:
                subject = subject_of(path, self.options, folder_name(path, root, depth))
                name = path.relative_to(root).with_suffix("").as_posix()
                found.setdefault(subject, {})[path] = self.of_image(path, name) if own_files else None
            except ValueError as error:
                self.report.skip(path, error)
        return found

    def of_folder(self, folder: Path, images: Sequence[Path], name: str, kinds: Sequence[str]) -> Path | None:
        """The file that holds the labels of all images of a folder, if there is one; arguments as for an image."""
        found = self._take(folder, [name], kinds)
        self.total += len(images) if found else 0
        return found

    def _take(self, owner: Path, names: Sequence[str], kinds: Sequence[str]) -> Path | None:
        keys = [(one_form(name), kind) for name in names for kind in kinds]
        found = [path for key in keys for path in self.index.get(key, [])]
        for path in found:
            self.owners.setdefault(path, []).append(owner)
        if len(found) > 1:
            raise ValueError(f"label: found {[path.name for path in found]}; expected one. Remove the others")
        return found[0] if found else None

    def tell(self) -> None:
        """Once all images were looked at: note how many have no label file, and which label files have no image.

        Refused are a label file of two images; and if no image has one, although --labels names labels and there are
        files that may hold them.
        """
        for path, owners in self.owners.items():
            if len(owners) > 1:
                names = " and ".join(f"'{self._name(owner)}'" for owner in owners[:2])
                raise ValueError(
                    f"label: '{self._name(path)}' would belong to {len(owners)} images, {names}; expected one image "
                    "for each label file. Rename or remove one of them."
                )
        self.report.label_files = sorted(one_form(self._name(path)) for path in self.owners)
        if not self.missing:
            if self.total and not self.anywhere and (unused := self._unused()):
                self.report.note(self._list(unused, "label files belong to no image"))
            return
        named, near = self.options.labels is not None, self._near()
        lacking = [] if self.folder.is_dir() else [f"There is no folder '{self._name(self.folder)}'"]
        text = ". ".join([self._looked(), *lacking, *near])
        if len(self.missing) == self.total and (self.anywhere or (named and near)):
            raise ValueError(
                f"label: found no label file for any of the {self.total} images, {text}. Correct the names or places, "
                "or say --labels none where there are no labels."
            )
        if named or near or len(self.missing) < self.total:
            self.report.note(f"no label file for {len(self.missing)} of {self.total} images, {text}")

    def _name(self, path: Path) -> str:
        return relative(path, self.options.input)

    def _looked(self) -> str:
        """Where the label file of the first image without one was looked for."""
        (_, name), kinds = self.missing[0], [kind for kind in self.kinds if kind not in LOSSY]
        place = name if self.anywhere else f"{self._name(self.folder)}/{name}"
        more = f" or {', '.join(place.rpartition('/')[2] + e for e in self.endings[1:])}" if self.endings[1:] else ""
        suffixes = "" if self.anywhere else f", ending in {', '.join(kinds)} (upper or lower case)"
        return f"{self._few([image for image, _ in self.missing])}: looked for '{place}'{more}{suffixes}"

    def _unused(self) -> list[Path]:
        """Files among the labels that no image has: of the kinds that are read, else others."""
        free = [path for path in self.files if path not in self.owners]
        if self.anywhere:
            places = {(self.folder / name).parent for _, name in self.missing}
            images = {image for image, _ in self.missing}
            free = [path for path in free if path.parent in places and path not in images]
        return [path for path in free if self._kind(path.name)] or free

    def _near(self) -> list[str]:
        """What may have been meant: label files without an image, or other folders of such files."""
        if unused := self._unused():
            return [self._list(unused, "files there belong to no image")]
        return [] if self.files else [f"{n} such files lie in '{name}' instead" for name, n in self._elsewhere()]

    def _elsewhere(self) -> Iterator[tuple[str, int]]:
        """Folders beside those of images that hold files of the kinds that are read, and how many."""
        root = self.options.input
        places = [(image, root) for image, _ in self.missing] + [(i.resolve(), root.resolve()) for i, _ in self.missing]
        of_images = {image.relative_to(base).parts[0] for image, base in places if base in image.parents}
        for folder in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []:
            if folder.name not in of_images and folder != self.folder and not is_clutter(folder.name):
                try:
                    files = any_files_below(folder, self.kinds, Report(), root)
                except ValueError:  # a link that leads out
                    continue
                if files:
                    yield folder.name, len(files)

    def _list(self, paths: Sequence[Path], what: str) -> str:
        return f"{len(paths)} {what}: {self._few(paths)}"

    def _few(self, paths: Sequence[Path]) -> str:
        names = ", ".join(f"'{self._name(path)}'" for path in paths[:FEW])
        return f"{names} and {len(paths) - FEW} more" if len(paths) > FEW else names
