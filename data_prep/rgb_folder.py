r"""Folders of colour pictures, with label images of values or colours: any 2D RGB domain.

    python -m data_prep.rgb_folder INPUT OUTPUT --labels labels.json --subject-pattern '(drive\d+)' --size 256 512

    INPUT/images/drive1/03.jpg     INPUT/labels/drive1/03.png     label image of the same size, never JPEG
    INPUT/images/rain/drive2/07.jpg                               with --sub-domains: the first folder is the sub-domain

Without `images/` all pictures below INPUT are taken, without labels. `--labels` names the values and, where the label
images are drawn in colours, the colour of each (see data_prep/README.md); `cityscapes` and `cityscapes_ids` are known.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from data_prep.colour import ColourOptions, fitted, read_colours
from data_prep.convert import convert
from data_prep.files import files_below
from data_prep.label_files import LOSSY, LabelFiles, folder_name, images_and_labels, require_no_labels
from data_prep.label_images import read_label_image
from data_prep.label_schemes import Scheme, read_scheme
from data_prep.options import command
from data_prep.privacy import reason
from data_prep.scan import Report, Scan, Source
from unicorn_monai.images.faithful_pictures import is_turned

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
LABEL_IMAGES = (".png", ".tif", ".tiff", ".bmp", *LOSSY)
UNNAMED = Scheme(("not labelled",))  # pictures without label maps
ENDINGS = ("", "_label", "_labels", "_labelIds", "_labelTrainIds")


@dataclass(kw_only=True)
class PictureOptions(ColourOptions):
    """The command line."""

    input: Annotated[Path, Parameter(help="folder with images/ and labels/, or with pictures only")] = field(
        kw_only=False
    )
    sub_domains: Annotated[bool, Parameter(help="the first folder is the sub-domain, e.g. a weather")] = False


def find(options: PictureOptions, report: Report) -> list[Source]:
    """One source per subject and folder."""
    if not options.input.is_dir():
        raise ValueError(f"INPUT '{options.input}' is a file; expected the folder that holds the pictures.")
    root, place = images_and_labels(options.input)
    if root != options.input and place.is_dir() and options.labels is None:
        raise ValueError(
            f"'{place}' holds label images; say with --labels FILE what their values mean, or --labels none."
        )
    scheme = read_scheme(options.labels)
    labels = LabelFiles(place, LABEL_IMAGES, options, report, ENDINGS)
    pictures = files_below(root, PICTURES, report, options.input)
    require_no_labels(pictures, root, options)
    depth = int(options.sub_domains)  # where the first folder names the sub-domain, the second names the subject
    sources = [
        Source(folder, subject, partial(read, own, root, scheme, options))
        for folder, group in groupby(pictures, key=lambda path: path.parent)
        for subject, own in labels.by_subject(list(group), root, depth).items()
    ]
    labels.tell()
    return sources


def read(
    own: dict[Path, Path | None], root: Path, scheme: Scheme | None, options: PictureOptions
) -> Iterator[Scan | ValueError]:
    """The pictures of a subject, with their label maps where there are any."""
    for k, (path, found) in enumerate(own.items()):
        try:
            label = None if found is None else read_label_image(found, scheme)
            image, label = fitted(read_colours(path), label, options)
            sub_domain = folder_name(path, root) if options.sub_domains else None
            if options.sub_domains and sub_domain is None:
                expected = "SUB_DOMAIN/... with --sub-domains"
                raise ValueError(f"sub-domain: the picture lies in no folder; expected {expected}")
        except Exception as error:  # of many kinds: a broken file leaves out itself alone
            yield ValueError(f"{path.name}: {reason(error)}")
        else:
            fields = {"scan": k, "sub_domain": sub_domain}
            yield Scan(image, label=label, turned=is_turned(path), fields=fields)


@command
def main(options: PictureOptions) -> int:
    """Convert the pictures in INPUT."""
    report = Report(options.strict)
    return convert(find(options, report), options, report, "RGB folder", UNNAMED, "RGB")


if __name__ == "__main__":
    sys.exit(main())
