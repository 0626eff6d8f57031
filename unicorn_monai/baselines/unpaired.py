"""Batches of two domains whose images do not belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any

import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from torch import Tensor
from torch.utils.data import Dataset, RandomSampler

from unicorn_monai.data.items import datalist, images_only
from unicorn_monai.system.files import PathLike

DOMAINS = ("source", "target")
LABEL = "source_label"  # in items and batches where the source images come with label maps


class UnpairedDataset(Dataset):
    """Every image of the source domain (labelled) with an image of the target domain (unlabelled) drawn at random.

    Both give "image" (and "image_path", for messages); a "label" of the source is kept, one of the target never is.
    """

    def __init__(self, source: Sequence[dict[str, Any]], target: Sequence[dict[str, Any]]) -> None:
        for name, images in zip(DOMAINS, (source, target), strict=True):
            if isinstance(images, Sized) and len(images) == 0:
                raise ValueError(f"The {name} domain has no image. Give a data set with training images.")
        self.source, self.target = source, target

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image of each domain, and where they come from."""
        other = int(torch.randint(len(self.target), ()))
        pair = dict(zip(DOMAINS, (self.source[index], self.target[other]), strict=True))
        paths = [item["image_path"] for item in pair.values() if "image_path" in item]
        label = {LABEL: _plain(pair["source"]["label"])} if "label" in pair["source"] else {}
        return {**{name: _plain(item["image"]) for name, item in pair.items()}, **label, "image_path": paths}


def unpaired_images(
    domains: tuple[PathLike, PathLike],
    split: str,
    transform: Callable,
    cache_num: int = 0,
    keys: Sequence[str] = ("image",),
) -> UnpairedDataset:
    """The images of a split of two data sets, source and target, transformed.

    Args:
        domains: both folders.
        split: of both.
        transform: of every item; where ``keys`` has "label", it must allow for target items, which come without.
        cache_num: images of each domain kept in memory.
        keys: what every item of the source must have.
    """
    items = datalist(domains[0], split, keys), images_only(domains[1], split)
    source, target = (CacheDataset(data, transform, cache_num=cache_num, progress=False) for data in items)
    return UnpairedDataset(source, target)  # type: ignore[arg-type]  # they have lengths and items


class UnpairedLoader(DataLoader):
    """Data loader of an :class:`UnpairedDataset` with epochs of a fixed number of batches.

    Every process of a parallel training draws images of its own, given random numbers of its own (``RankSeeds``).
    """

    def __init__(self, dataset: UnpairedDataset, batch_size: int, iterations: int, num_workers: int = 0) -> None:
        if min(batch_size, iterations) < 1:
            raise ValueError(f"batch_size is {batch_size}, iterations is {iterations}; expected at least 1 of both.")
        sampler = RandomSampler(dataset, num_samples=iterations * batch_size)
        super().__init__(dataset, num_workers, batch_size=batch_size, sampler=sampler, collate_fn=collate_unpaired)


def collate_unpaired(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch; all images of both domains must be of one size, for a network sees them together.

    Its "image_path" names the files of both domains, pair by pair; label maps are there if all items have one.
    """
    sizes = {name: sorted({tuple(item[name].shape) for item in items}) for name in DOMAINS}
    if len({size for found in sizes.values() for size in found}) > 1:
        raise ValueError(
            f"Images differ in size: {sizes} (channels, rows, columns). Expected one size; lower patch_size to the "
            "smallest image, or resample with the `--size` of data_prep."
        )
    paths = [path for item in items for path in item.get("image_path", [])]
    names = (*DOMAINS, *[LABEL] * all(LABEL in item for item in items))
    return {name: torch.stack([item[name] for item in items]) for name in names} | {"image_path": paths}


def _plain(image: Tensor) -> Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else image
