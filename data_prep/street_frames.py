"""The frames of Cityscapes and of what is laid out like it: pictures and label images in two trees side by side.

INPUT/<pictures>/.../<stem><picture>      INPUT/<labels>/.../<stem><label>
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from numpy.typing import NDArray

from data_prep.colour import ColourOptions, fitted, read_colours
from data_prep.files import require_label_below
from data_prep.label_images import read_label_image
from data_prep.label_schemes import Scheme
from data_prep.options import OriginalIds, Size, Split
from data_prep.privacy import reason
from data_prep.scan import Scan, Source
from unicorn_monai.images.faithful_pictures import is_turned
from unicorn_monai.system.intake import lies_there

SPLIT_OF = {"train": None, "val": "test"}  # official split -> ours; None: divided by --split


@dataclass(kw_only=True)
class StreetOptions(ColourOptions):
    """The command line: ids are written as found, and the test split is the official one."""

    input: Annotated[Path, Parameter(help="folder of the collection as unpacked")] = field(kw_only=False)
    size: Size = (512, 1024)
    split: Split = (0.9, 0.1, 0.0)
    keep_original_ids: OriginalIds = True

    def check(self) -> None:
        """As for all pictures, and no share of the test split."""
        super().check()
        if self.split[2] > 0:
            expected = "0 as the third share, e.g. --split 0.9 0.1 0"
            given = " ".join(map(str, self.split))
            raise ValueError(f"--split {given}: the official val is the test split; expected {expected}.")


@dataclass(frozen=True)
class Layout:
    """Where a collection has its files."""

    device: str  # name of the domain, unless the user gives one
    pictures: str  # folder
    picture: str  # ending of the names of pictures
    labels: str  # folder
    label: dict[str, Scheme]  # ending of label images -> what their values mean; the first that is found counts
    remedy: str  # what to do where there is none

    def root(self, given: Path) -> Path:
        """The folder of the pictures, refused where it is not there."""
        root = given / self.pictures
        if not root.is_dir():
            raise ValueError(
                f"'{given}' has no folder {self.pictures}; expected {self.device} as unpacked, {self.pictures}/ and "
                f"{self.labels}/ side by side. Give the folder that holds both."
            )
        return root

    def source(
        self, folder: Path, name: str, pictures: Iterable[Path], sub_domain: str | None, options: StreetOptions
    ) -> Source:
        """A sequence, or a city, in the folder of an official split."""
        read = partial(read_frames, list(pictures), self, sub_domain, options)
        return Source(folder / name, name, read, SPLIT_OF[folder.name])


def read_frames(
    paths: list[Path], layout: Layout, sub_domain: str | None, options: StreetOptions
) -> Iterator[Scan | ValueError]:
    """The pictures of a sequence, with their label maps unless `--labels none`."""
    for k, path in enumerate(paths):
        try:
            image, label = fitted(read_colours(path), _label_of(path, layout, options), options)
        except Exception as error:  # of many kinds: a broken file leaves out itself alone
            yield ValueError(f"{path.name}: {reason(error)}")
        else:
            fields = {"scan": k, "frame": path.name.removesuffix(layout.picture), "sub_domain": sub_domain}
            yield Scan(image, label=label, device=layout.device, turned=is_turned(path), fields=fields)


def _label_of(path: Path, layout: Layout, options: StreetOptions) -> NDArray | None:
    """Label map of a picture, as train ids."""
    if options.labels == "none":
        return None
    stem = path.name.removesuffix(layout.picture)
    folder = options.input / layout.labels / path.parent.relative_to(options.input / layout.pictures)
    for ending, scheme in layout.label.items():
        if lies_there(found := folder / f"{stem}{ending}"):
            require_label_below(found, options.input / layout.labels, options.input)
            return scheme.replace(read_label_image(found))
    raise ValueError(f"label: found neither of {[stem + end for end in layout.label]} in '{folder}'. {layout.remedy}")
