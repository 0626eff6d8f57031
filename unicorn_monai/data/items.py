"""Data sets as lists of items; what is read is looked over first (`data.checks`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from unicorn_monai.data.checks import require_sound
from unicorn_monai.data.layout import HEADER, SPLITS, label_names, list_folders, read_header, resolve_item
from unicorn_monai.images.files import read_array
from unicorn_monai.system.files import PathLike


def datalist(
    dataset_dir: PathLike | Sequence[PathLike],
    split: str | Sequence[str],
    keys: Sequence[str] = ("image",),
    balanced: bool = False,
) -> list[dict[str, Any]]:
    """The items of one or several data sets, as in ``dataset.json``, with absolute paths and ``dataset``, the folder.

    Args:
        dataset_dir: one data set folder, or several (also nested lists) that are concatenated in order.
        split: "training", "validation" or "test", or several of them.
        keys: what each item must have, e.g. ``("image", "label")``.
        balanced: name the items of the smaller data sets again, so that each data set has as many as the largest.
    """
    folders, sizes = list_folders(dataset_dir), list[int]()
    splits = [split] if isinstance(split, str) else list(split)
    items: list[dict[str, Any]] = []
    if "label" in keys:
        require_same_labels(folders)
    for folder in folders:
        header, own = read_header(folder), []
        for name in splits:
            if name not in SPLITS:
                raise ValueError(f"Unknown split '{name}'; expected one of {list(SPLITS)}.")
            if not header.get(name):
                found = [s for s in SPLITS if header.get(s)]
                raise ValueError(f"'{Path(folder) / HEADER}' has no items in split '{name}', only in {found}.")
            own += [resolve_item(Path(folder), item, keys) for item in header[name]]
        require_sound(folder, header, own)
        items += own
        sizes.append(len(own))
    return [items[i] for i in balanced_order(sizes)] if balanced else items


def balanced_order(sizes: Sequence[int]) -> list[int]:
    """Positions in data sets one after the other, each as often as makes all as large as the largest.

    Of a data set that is shown k + 1 / n times, the first items come once more.
    """
    starts = accumulate(sizes, initial=0)
    return [start + i % size for start, size in zip(starts, sizes, strict=False) for i in range(max(sizes))]


def require_same_labels(folders: Sequence[PathLike]) -> None:
    """Refuse data sets whose label tables disagree; those without label maps have none."""
    tables = {str(folder): label_names(folder) for folder in folders}
    if len({tuple(names) for names in tables.values() if names}) > 1:
        raise ValueError(f"The data sets have different label tables: {tables}. Use sets with the same labels.")


def folders_of(items: Sequence[dict[str, Any]]) -> list[str]:
    """The data sets that items come from, each once; files that belong to none, as MONAI Label lists, have none."""
    return list(dict.fromkeys(item["dataset"] for item in items if "dataset" in item))


def images_only(
    dataset_dir: PathLike | Sequence[PathLike], split: str | Sequence[str] = "test"
) -> list[dict[str, Any]]:
    """:func:`datalist` without anything but the images, for transforms that keep what they are given."""
    return [{"image": item["image"]} for item in datalist(dataset_dir, split)]


def style_images(unlabeled_dir: PathLike | None) -> list[dict[str, Any]]:
    """The training images of a data set whose style a training takes; none without one."""
    return [] if unlabeled_dir is None else images_only(unlabeled_dir, "training")


def image_size(dataset_dir: PathLike | Sequence[PathLike], split: str = "training") -> tuple[int, int]:
    """Rows and columns of a data set's first image."""
    return read_array(datalist(dataset_dir, split)[0]["image"]).shape[:2]  # type: ignore[return-value]


def num_labels(dataset_dir: PathLike | Sequence[PathLike]) -> int:
    """Number of labels of a data set that has some, of the first of several (for configurations)."""
    folder = list_folders(dataset_dir)[0]
    if not (names := label_names(folder)):
        raise ValueError(
            f"'{folder}' has no labels, since none of its images has a label map; expected a labelled one."
        )
    return len(names)
