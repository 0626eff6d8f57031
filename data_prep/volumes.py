r"""Volumes as NIfTI, MHD, MHA or NRRD, cut into B-scans.

    python -m data_prep.volumes INPUT OUTPUT --axes adb --subject-pattern '(case_\d+)'

`--axes` names the axes of the file in its own order (x, y, z): a = A-scans (lateral), d = depth, b = B-scans; `ad` for
single B-scans. `adb` is what most converters of OCT write. Label volumes have the same axes and lie in INPUT/labels/
under the names of INPUT/images/, or where --label says:

    nnU-Net   --images 'imagesTr/*_0000.nii.gz' --label 'labelsTr/{case}.nii.gz'
    RETOUCH   --images '**/oct.mhd'             --label '{folder}/reference.mhd'

NIfTI is read by nibabel, the others by ITK, in a process of its own. Spacing (1, 1) is the formats' default and taken
for unknown. No header text reaches the data set.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray

from data_prep.convert import convert
from data_prep.files import files_below
from data_prep.grey import to_grey
from data_prep.label_files import LabelFiles, folder_name, images_and_labels, require_no_labels
from data_prep.options import Options, Window, command, relative, subject_of
from data_prep.privacy import one_form, told
from data_prep.scan import Report, Scan, Source
from unicorn_monai.images.files import MILLIMETRES
from unicorn_monai.images.isolated import Unreadable
from unicorn_monai.images.volume_files import data_entries, open_nifti, read_itk
from unicorn_monai.system.intake import lies_there, require_regular

NIFTI = (".nii", ".nii.gz")
SUFFIXES = (*NIFTI, ".mhd", ".mha", ".nrrd", ".nhdr")
TURNED = 0.01  # of a unit vector: headers are rounded
STRETCHED = 0.01  # of the spacing
SHIFTED = 0.5  # of a voxel


@dataclass(kw_only=True)
class VolumeOptions(Options):
    """The command line."""

    axes: Annotated[str, Parameter(help="a = A-scans, d = depth, b = B-scans, in the file's order")] = "adb"
    images: Annotated[str | None, Parameter(help="which volumes below INPUT are images, as 'imagesTr/*.nii.gz'")] = None
    label: Annotated[str | None, Parameter(help="label volume; {folder}, {stem}, {case} of the image")] = None
    window: Window = None

    def check(self) -> None:
        """As for every source, and the axes."""
        super().check()
        if sorted(self.axes) not in (["a", "b", "d"], ["a", "d"]):
            raise ValueError(f"--axes '{self.axes}': expected the letters a, d and b (or a and d), each once")


def find(options: VolumeOptions, report: Report) -> list[Source]:
    """One source per volume, with its label volume if there is one."""
    root, place = (options.input, options.input) if options.images else images_and_labels(options.input)
    paths = files_below(root, SUFFIXES, report, options.input)
    if options.images:
        pattern = one_form(options.images)
        paths = [p for p in paths if fnmatch(one_form(p.relative_to(root).as_posix()), pattern)]
        if not paths:
            raise ValueError(f"--images '{options.images}' matches no volume below '{root}'.")
    else:
        require_no_labels(paths, root, options)
    anywhere = options.label is not None
    labels = LabelFiles(options.input if anywhere else place, SUFFIXES, options, report, anywhere=anywhere)
    sources = []
    for path in paths:
        try:
            subject = subject_of(path, options, folder_name(path, root))
            label = labels.of_image(path, _label_name(path, root, options)) if options.labels != "none" else None
            sources.append(Source(path, subject, partial(read, path, label, options)))
        except ValueError as error:
            report.skip(path, error)
    labels.tell()
    return sources


def stem(path: Path) -> str:
    """Name without .nii.gz and the like."""
    suffix = max((s for s in SUFFIXES if path.name.lower().endswith(s)), key=len)
    return path.name[: -len(suffix)]


def _label_name(path: Path, root: Path, options: VolumeOptions) -> str:
    """What the label volume of a volume is called, with its place; below INPUT where --label says so."""
    if options.label is None:
        return (path.relative_to(root).parent / stem(path)).as_posix() if root.is_dir() else stem(path)
    folder = path.parent.relative_to(options.input).as_posix() if options.input.is_dir() else "."
    names = {"folder": folder, "stem": stem(path), "case": stem(path).removesuffix("_0000")}
    try:
        name = options.label.format(**names)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"--label '{options.label}': expected only {{folder}}, {{stem}} and {{case}}") from error
    if not (options.input / name).resolve().is_relative_to(options.input.resolve()):
        raise ValueError(f"label: '{name}' lies outside INPUT; refused")
    return Path(name).as_posix()


class Volume(NamedTuple):
    """Voxels in the axis order of the file (x, y, z), their spacing in mm, and the directions of the axes in space.

    Spacing and directions are None where the file does not tell them; the directions are the columns of a matrix. The
    origin is the place of the first voxel, mm.
    """

    array: NDArray
    spacing: tuple[float, ...] | None
    directions: NDArray | None
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)


def read_volume(path: Path, need_spacing: bool = True) -> Volume:
    """A volume from a file, refused if its spacing is needed and not finite and positive."""
    try:
        array, spacing, directions, origin = _read_nifti(path) if _is_nifti(path) else read_itk(path)
    except Unreadable as error:
        raise ValueError(f"file: found no readable volume ({error}); export it anew") from error
    except ValueError:
        raise
    except Exception as error:  # both readers raise many kinds
        raise ValueError(f"file: found no readable volume ({told(error)}); export it anew") from error
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        if need_spacing:
            expected = "finite and positive numbers. Repair it, or --spacing-mm"
            raise ValueError(f"spacing: found {spacing}; expected {expected}")
        spacing = (1.0, 1.0, 1.0)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Volume(array, None if all(s == 1 for s in spacing[:2]) else spacing, directions, origin)


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI)


def _read_nifti(path: Path) -> tuple[NDArray, tuple[float, ...], NDArray | None, tuple[float, ...]]:
    image = open_nifti(path)
    unit = MILLIMETRES[image.header.get_xyzt_units()[0]]
    told = int(image.header["sform_code"]) > 0 or int(image.header["qform_code"]) > 0
    axes = image.affine[:3, :3] / np.maximum(np.linalg.norm(image.affine[:3, :3], axis=0), 1e-12)
    spacing = tuple(float(z) * unit for z in image.header.get_zooms()[:3])
    origin = tuple(float(o) * unit for o in image.affine[:3, 3])
    return np.asanyarray(image.dataobj), spacing, axes if told else None, origin


def require_inside(path: Path, root: Path) -> None:
    """Refuse a header that takes its voxels from a file outside INPUT: MHD and NRRD name other files."""
    root = root if root.is_dir() else root.parent
    for entry in data_entries(path):
        voxels = path.parent / entry
        if not voxels.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"file: found its voxels in '{entry[:80]}', outside INPUT; refused. Copy that file")
        if lies_there(voxels):
            require_regular(voxels)


def read(path: Path, label: Path | None, options: VolumeOptions) -> Iterator[Scan | ValueError]:
    """B-scans of a volume."""
    for file in (path, label):
        if file is not None and not _is_nifti(file):
            require_inside(file, options.input)
    volume = read_volume(path, options.spacing_mm is None)
    array, spacing = volume.array, volume.spacing
    axes = options.axes if array.ndim == 3 else options.axes.replace("b", "")
    if array.ndim != len(axes):
        raise ValueError(f"file: found {array.ndim} dimensions {array.shape}; expected {len(axes)}, as in --axes")
    grey, labels = _order(to_grey(array, options.window), axes), None
    if label is not None:
        drawn = read_volume(label, need_spacing=False)
        values, name = drawn.array, relative(label, options.input)
        if values.shape != array.shape:
            raise ValueError(f"label: found shape {values.shape} in '{name}'; expected the image's, {array.shape}")
        if found := _elsewhere(path, volume, label, drawn):
            raise ValueError(
                f"label: found '{name}' {found} by its header; expected the image's grid. Resample it to that, or, if "
                "only the header is wrong, copy the image's affine into it"
            )
        labels = _order(values, axes)
    pixel = None if spacing is None else (spacing[axes.index("d")], spacing[axes.index("a")])
    for k in range(len(grey)):
        label_map = None if labels is None else np.ascontiguousarray(labels[k])
        yield Scan(np.ascontiguousarray(grey[k]), pixel, None, label_map, fields={"scan": k})


def _elsewhere(path: Path, volume: Volume, label: Path, drawn: Volume) -> str | None:
    """How a label volume lies otherwise than its image, as far as both headers tell; None where it does not.

    NIfTI counts to the right and to the front, ITK's formats to the left and to the back: between the two, directions
    and origins are not compared. Spacing 1 is the formats' default and tells neither spacing nor origin.
    """
    comparable = _is_nifti(path) == _is_nifti(label)
    one, other = volume.directions, drawn.directions
    if comparable and one is not None and other is not None:
        size = min(len(one), len(other))  # a last axis of one is left out
        if np.abs(one[:size, :size] - other[:size, :size]).max() > TURNED:
            return "mirrored or turned against the image"
    if volume.spacing is None or drawn.spacing is None:
        return None
    size = min(len(volume.spacing), len(drawn.spacing))
    spacing, own = np.array(volume.spacing[:size]), np.array(drawn.spacing[:size])
    if not np.allclose(spacing, own, rtol=STRETCHED):
        return f"with the spacing {_rounded(own)} mm, the image with {_rounded(spacing)} mm,"
    offset = np.array(drawn.origin[:size]) - np.array(volume.origin[:size])
    if comparable and (np.abs(offset) > SHIFTED * spacing.max()).any():
        return f"shifted by {_rounded(offset)} mm against the image"
    return None


def _rounded(values: NDArray) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values)


def _order(array: NDArray, axes: str) -> NDArray:
    """(B-scans, rows, columns), without a copy of the volume."""
    array = array if "b" in axes else array[..., None]
    axes = axes if "b" in axes else axes + "b"
    return array.transpose([axes.index(axis) for axis in "bda"])


@command
def main(options: VolumeOptions) -> int:
    """Convert the volumes in INPUT."""
    report = Report(options.strict)
    return convert(find(options, report), options, report, "volumes", None)


if __name__ == "__main__":
    sys.exit(main())
