r"""Folders of colour pictures, with label images of values or colours: any 2D RGB domain.

    python -m data_prep.rgb_folder INPUT OUTPUT --labels labels.json --subject-pattern '(drive\d+)' --size 256 512

    INPUT/images/drive1/03.jpg     INPUT/labels/drive1/03.png     label image of the same size, never JPEG
    INPUT/images/rain/drive2/07.jpg                               with --sub-domains: the first folder is the sub-domain

Without `images/` all pictures below INPUT are taken, without labels. `--labels` names the values and, where the label
images are drawn in colours, the colour of each (see data_prep/README.md); `cityscapes` and `cityscapes_ids` are known.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from data_prep.colour import add_colour_options, fitted, read_colours, validate_colour
from data_prep.convert import Report, Scan, Source, convert, summarise
from data_prep.files import files_below
from data_prep.label_files import LOSSY, LabelFiles, images_and_labels, require_no_labels
from data_prep.label_images import read_label_image
from data_prep.label_schemes import Scheme, read_scheme
from data_prep.options import parser_for, run, subject_of, validate
from data_prep.privacy import reason
from unicorn_monai.images.faithful_pictures import is_turned

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
LABEL_IMAGES = (".png", ".tif", ".tiff", ".bmp", *LOSSY)
UNNAMED = Scheme(("not labelled",))  # pictures without label maps
ENDINGS = ("", "_label", "_labels", "_labelIds", "_labelTrainIds")


def find(options: Namespace, report: Report) -> list[Source]:
    """One source per subject and folder."""
    if not options.input.is_dir():
        raise ValueError(f"INPUT '{options.input}' is a file; expected the folder that holds the pictures.")
    root, place = images_and_labels(options.input)
    if root != options.input and place.is_dir() and options.labels is None:
        raise ValueError(
            f"'{place}' holds label images; say with --labels FILE what their values mean, or --labels none."
        )
    scheme = None if options.labels in (None, "none") else read_scheme(options.labels)
    labels = None if options.labels == "none" else LabelFiles(place, LABEL_IMAGES, options, report, ENDINGS)
    pictures = files_below(root, PICTURES, report, options.input)
    require_no_labels(pictures, root, options)
    sources = []
    for folder, group in groupby(pictures, key=lambda path: path.parent):
        by_subject: dict[str, dict[Path, Path | None]] = {}  # picture -> its label image
        for path in group:
            try:
                subject = subject_of(path, options, _subject(path, root, options))
                name = path.relative_to(root).with_suffix("").as_posix()
                by_subject.setdefault(subject, {})[path] = None if labels is None else labels.of_image(path, name)
            except ValueError as error:
                report.skip(path, error)
        for subject, own in by_subject.items():
            sources.append(Source(folder, subject, partial(read, own, root, scheme, options)))
    if labels is not None:
        labels.tell()
    return sources


def _parts(path: Path, root: Path) -> tuple[str, ...]:
    """Folders below the pictures that hold one."""
    return path.relative_to(root).parts[:-1] if root.is_dir() else ()


def _subject(path: Path, root: Path, options: Namespace) -> str | None:
    """The first folder names the subject, the second where the first names the sub-domain."""
    parts = _parts(path, root)[int(options.sub_domains) :]
    return parts[0] if parts else None


def read(
    own: dict[Path, Path | None], root: Path, scheme: Scheme | None, options: Namespace
) -> Iterator[Scan | ValueError]:
    """The pictures of a subject, with their label maps where there are any."""
    for k, (path, found) in enumerate(own.items()):
        try:
            label = None if found is None else read_label_image(found, scheme)
            image, label = fitted(read_colours(path), label, options)
            parts = _parts(path, root)
            if options.sub_domains and not parts:
                raise ValueError(
                    "sub-domain: the picture lies in no folder; expected SUB_DOMAIN/... with --sub-domains"
                )
        except Exception as error:  # of many kinds: a broken file leaves out itself alone
            yield ValueError(f"{path.name}: {reason(error)}")
            continue
        fields = {"scan": k, "sub_domain": parts[0] if options.sub_domains else None}
        yield Scan(image, label=label, turned=is_turned(path), fields=fields)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return the exit status."""
    parser = parser_for("rgb_folder", __doc__ or "", "folder with images/ and labels/, or with pictures only")
    add_colour_options(parser, (512, 512), None)
    parser.add_argument("--sub-domains", action="store_true", help="the first folder is the sub-domain, e.g. a weather")
    options = parser.parse_args(arguments)

    def work() -> int:
        validate(options)
        validate_colour(options)
        report = Report(options.strict)
        sources = find(options, report)
        return summarise(convert(sources, options, report, "RGB folder", UNNAMED, "RGB"), report)

    return run(work, options.most_gigabytes)


if __name__ == "__main__":
    sys.exit(main())
