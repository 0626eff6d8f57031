"""Every image is encoded once: the autoencoder's latents of whole data sets, kept on disk and read as batches.

The mean and standard deviation of q(z|x) are kept, not one sample, so training still draws z = mean + std * noise.
Mirrored images (left eye / right eye) are encoded too, since mirroring a latent is not the latent of the mirror image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler
from tqdm import tqdm

from unicorn_monai.checkpoints import save_tensors
from unicorn_monai.datasets import PathLike, datalist, list_folders
from unicorn_monai.distributed import main_first
from unicorn_monai.prompts import PromptEmbeddings, PromptTemplate
from unicorn_monai.transforms import LoadPixelsd, read_image


@dataclass(frozen=True)
class StoredAutoencoder:
    """An autoencoder that is loaded only if there are images to encode, so that a training need not hold it.

    Args:
        identity: of its weights, e.g. their sha256.
        load: gives the network, on the device where it is to run.
    """

    identity: str
    load: Callable[[], AutoencoderKL]


class LatentDataset(Dataset):
    """Latents of the images of one or several data sets, with label maps and uncertainties where asked for.

    Args:
        dataset_dir: data set folder, or several.
        split: "training", "validation" or "test".
        autoencoder: network with ``encode`` (image) -> (mean, std) and its weights, or a :class:`StoredAutoencoder`.
        cache_dir: folder of the encoded latents; a file there is used again if autoencoder and images are the same.
        num_channels: channels of the images.
        num_labels: also give the label maps, checked against this number.
        uncertainties: also give each image's uncertainty, from this file (written by retinal_unet's ``uncertainty``).
        mirror: also encode the mirrored images and give either at random (training only).
        batch_size: images encoded at a time.
        segmentation_sha256: refuse uncertainties that other weights of the segmentation network gave.
        prompts: also give the embedding of each image's prompt, as "context".
        template: makes the prompts from the items; their own "prompt" by default.
    """

    def __init__(
        self,
        dataset_dir: PathLike | Sequence[PathLike],
        split: str,
        autoencoder: AutoencoderKL | StoredAutoencoder,
        cache_dir: PathLike,
        num_channels: int = 1,
        num_labels: int | None = None,
        uncertainties: PathLike | None = None,
        mirror: bool = False,
        batch_size: int = 16,
        segmentation_sha256: str | None = None,
        prompts: PromptEmbeddings | None = None,
        template: PromptTemplate | None = None,
    ) -> None:
        keys = ("image",) if num_labels is None else ("image", "label")
        items = datalist(dataset_dir, split, keys)
        folders = list_folders(dataset_dir)
        parts = [
            encode_dataset(
                [item for item in items if item["dataset"] == str(Path(folder))],
                autoencoder,
                cache_dir,
                num_channels,
                batch_size,
            )
            for folder in folders
        ]
        _require_one_size({tuple(part["mean"].shape[3:]): str(f) for part, f in zip(parts, folders, strict=True)})
        self.items, self.mirror = items, mirror
        self.mean = torch.cat([part["mean"] for part in parts], dim=1)  # (as is / mirrored, images, channels, *latent)
        self.std = torch.cat([part["std"] for part in parts], dim=1)
        self.label: Tensor | None = None
        if num_labels is not None:
            load = LoadPixelsd(["label"], num_labels=num_labels)
            labels = [load.read_label(item["label"]) for item in items]
            _require_one_size(
                {tuple(label.shape[1:]): item["label"] for label, item in zip(labels, items, strict=True)}
            )
            self.label = torch.stack(labels).to(torch.uint8)
        self.uncertainty: Tensor | None = None
        if uncertainties is not None:
            self.uncertainty = read_uncertainties(uncertainties, items, segmentation_sha256)
        self.context: Tensor | None = None
        if prompts is not None:
            texts = [(template or PromptTemplate("{prompt}"))(item) for item in items]
            different = {text: i for i, text in enumerate(sorted(set(texts)))}
            with main_first():
                self.context = prompts(list(different))  # (different prompts, tokens, dimensions)
            self.prompt = torch.tensor([different[text] for text in texts])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A whole batch at once: mean and std (batch, channels, *latent), and what was asked for."""
        at = torch.as_tensor(indices)
        side = torch.randint(0, 2, at.shape) if self.mirror else torch.zeros_like(at)
        batch = {"mean": self.mean[side, at], "std": self.std[side, at], "index": at}
        if self.label is not None:
            label = self.label[at]
            flip = side.bool().reshape(-1, 1, 1, 1)
            batch["label"] = torch.where(flip, label.flip(-1), label)
        if self.uncertainty is not None:
            batch["uncertainty"] = self.uncertainty[at]
        if self.context is not None:
            batch["context"] = self.context[self.prompt[at]]
        return batch

    @property
    def scale_factor(self) -> float:
        """1 / standard deviation of the latents z = mean + std * noise, over all images."""
        variance = self.mean[0].double().var() + self.std[0].double().square().mean()
        return float(variance.rsqrt())


class LatentLoader(DataLoader):
    """Data loader of a :class:`LatentDataset`, which gives whole batches.

    Args:
        dataset: the latents.
        batch_size: at most the whole data set.
        shuffle: a new order in every epoch.
        sampler: decides the order, e.g. for several processes.
        iterations: batches in an epoch, whatever the size of the data set; with ``shuffle`` only.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        batch_size: int,
        shuffle: bool = False,
        sampler: Sampler | None = None,
        iterations: int | None = None,
    ) -> None:
        batch_size = min(batch_size, len(dataset))
        if iterations is not None and shuffle and sampler is None:
            sampler, shuffle = RandomSampler(dataset, num_samples=iterations * batch_size), False
        super().__init__(
            dataset,
            batch_size=batch_size,
            shuffle=shuffle,
            sampler=sampler,
            collate_fn=as_is,  # type: ignore[arg-type]  # whole batches, see __getitems__
        )


def as_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate function for data sets that give whole batches."""
    return batch


def latents_scale_factor(dataset: LatentDataset) -> float:
    """The scale factor measured over a data set (for configurations)."""
    return dataset.scale_factor


def latents_shape(dataset: LatentDataset) -> list[int]:
    """(channels, *latent) of a data set (for configurations)."""
    return list(dataset.mean.shape[2:])


@torch.no_grad()
def encode_dataset(
    items: list[dict],
    autoencoder: AutoencoderKL | StoredAutoencoder,
    cache_dir: PathLike,
    num_channels: int = 1,
    batch_size: int = 16,
) -> dict[str, Tensor]:
    """Encode images as they are and mirrored: "mean" and "std", each (2, images, channels, *latent) float32."""
    path = Path(cache_dir) / f"{_identity(items, autoencoder)}.safetensors"
    with main_first():
        if not path.is_file():
            network = autoencoder.load() if isinstance(autoencoder, StoredAutoencoder) else autoencoder
            _encode(items, network, path, num_channels, batch_size)
        return load_file(path)


def _encode(items: list[dict], autoencoder: AutoencoderKL, path: Path, num_channels: int, batch_size: int) -> None:
    device = next(autoencoder.parameters()).device
    autoencoder.eval()
    parts, sizes = [], {}
    for start in tqdm(range(0, len(items), batch_size), desc="encoding", disable=None, leave=False):
        images = _stack([item["image"] for item in items[start : start + batch_size]], num_channels, sizes)
        both = torch.cat([images, images.flip(-1)]).to(device)
        mean, std = autoencoder.encode(both)
        parts.append(torch.stack([mean.float().cpu(), std.float().cpu()]).unflatten(1, (2, len(images))))
    mean, std = torch.cat(parts, dim=2)
    save_tensors({"mean": mean, "std": std}, path)


def _stack(paths: list[str], num_channels: int, sizes: dict[tuple[int, ...], str]) -> Tensor:
    images = [read_image(path, num_channels) for path in paths]
    sizes.update((tuple(image.shape[1:]), path) for image, path in zip(images, paths, strict=True))
    _require_one_size(sizes)
    return torch.stack(images)


def _require_one_size(sizes: dict[tuple[int, ...], str]) -> None:
    if len(sizes) > 1:
        raise ValueError(f"Images differ in size: {sizes}. Expected one size; resample with the `--size` of data_prep.")


def _identity(items: list[dict], autoencoder: AutoencoderKL | StoredAutoencoder) -> str:
    """Sha256 over the autoencoder's weights and every image's path, size and time."""
    digest = hashlib.sha256()
    if isinstance(autoencoder, StoredAutoencoder):
        digest.update(autoencoder.identity.encode())
    else:
        for value in autoencoder.state_dict().values():
            digest.update(value.detach().cpu().numpy().tobytes())
    for item in items:
        stat = Path(item["image"]).stat()
        digest.update(f"{item['image']}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def read_uncertainties(path: PathLike, items: list[dict], segmentation_sha256: str | None = None) -> Tensor:
    """The uncertainties of ``items`` from a file written by retinal_unet's ``uncertainty``: (items,) float32.

    With ``segmentation_sha256``, those of another segmentation network are refused.
    """
    if not Path(path).is_file():
        raise ValueError(f"No uncertainties at '{path}'. Run the 'uncertainty' configuration of retinal_unet first.")
    try:
        content = json.loads(Path(path).read_text())
        table, found = content["images"], str(content["segmentation_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{path}' holds no uncertainties ({error!r}). Measure them again.") from error
    if segmentation_sha256 is not None and found != segmentation_sha256:
        raise ValueError(
            f"'{path}' was measured with the segmentation weights {found[:12]}..., expected "
            f"{segmentation_sha256[:12]}...; uncertainties of two networks are not comparable. Run the 'uncertainty' "
            "configuration of retinal_unet again."
        )
    missing = [item["image"] for item in items if item["image"] not in table]
    if missing:
        raise ValueError(
            f"'{path}' lacks {len(missing)} of {len(items)} images, first '{missing[0]}'. It was measured on another "
            "data set; run the 'uncertainty' configuration of retinal_unet on this one."
        )
    return torch.from_numpy(np.array([table[item["image"]] for item in items], dtype=np.float32))
