"""Every image is encoded once: the autoencoder's latents of whole data sets, kept on disk and read as batches.

    cache_dir/<identity>.safetensors            mean, std: (as is / mirrored, images, channels, *latent) float32
    cache_dir/labels/<identity>.safetensors     label: (images, 1, rows, columns) uint8

Each file holds up to ``SHARD`` images and is mapped into memory, not read: what a batch needs comes from the disk, so a
data set may be larger than the memory. An identity is that of the images' files (and the autoencoder's weights): a data
set that grew is encoded from the first new file on, an interrupted encoding goes on where it stopped.

The mean and standard deviation of q(z|x) are kept, not one sample, so training still draws z = mean + std * noise.
Mirrored images (left eye / right eye) are encoded too, since mirroring a latent is not the latent of the mirror image.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import AutoencoderKL
from monai.networks.schedulers.scheduler import Scheduler
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler
from tqdm import tqdm

from unicorn_monai.bundle.chain import check_labels
from unicorn_monai.data.items import balanced_order, datalist
from unicorn_monai.data.layout import list_folders
from unicorn_monai.data.uncertainties import read_uncertainties
from unicorn_monai.images.pictures import evenly
from unicorn_monai.images.transforms import LoadPixelsd, read_image
from unicorn_monai.joint import JointNetwork
from unicorn_monai.latent_diffusion import LatentDiffusion, StoredAutoencoder, Text, num_channels
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.system.distributed import main_first
from unicorn_monai.system.errors import named
from unicorn_monai.system.files import PathLike, read_json, sweep
from unicorn_monai.system.networks import require_finite
from unicorn_monai.system.weights import save_tensors

logger = logging.getLogger("unicorn_monai")
SHARD = 512  # images kept in one file, and in memory while it is made
BATCH = 16  # images encoded at a time


@dataclass(frozen=True)
class Uncertainties:
    """What retinal_unet's ``uncertainty`` measured on data sets; refused where other weights gave it."""

    path: PathLike
    segmentation_sha256: str | None = None

    def __call__(self, items: list[dict]) -> Tensor:
        """Those of some items, (items,) float32."""
        return read_uncertainties(self.path, items, self.segmentation_sha256)

    def require_measure_of(self, prior: UncertaintyPrior) -> None:
        """Refuse what was measured in another way than the prior, whose numbers are on another scale.

        Raises:
            ValueError: another acquisition or aggregation, or another ensemble.
        """
        self([])  # says what a missing or broken file is
        record = read_json(self.path)
        usual = {"acquisition": "entropy", "aggregation": "mean"}
        differ = [key for key in usual if record.get(key, usual[key]) != getattr(prior, key)]
        ensembles = (sorted(each.values()) for each in (record.get("ensemble") or {}, prior.ensemble))
        if differ or len({tuple(each) for each in ensembles}) > 1:
            raise ValueError(
                f"'{self.path}' holds the uncertainty by {record.get('acquisition', 'entropy')}, the prior is of "
                f"{prior.acquisition}, of other networks or pixels: their numbers have different scales. Give both of "
                "one measurement (uncertainties_path and prior_path)."
            )


class LatentDataset(Dataset):
    """Latents of the images of one or several data sets, with label maps and uncertainties where asked for.

    Args:
        autoencoder: network with ``encode`` (image) -> (mean, std) and its weights, or a :class:`StoredAutoencoder`.
        cache_dir: folder of the encoded latents; a file there is used again if autoencoder and images are the same.
        text: also give the embedding of each image's prompt, as "context".
        num_labels: also give the label maps; another number of labels is refused before anything is encoded.
        uncertainties: also give each image's uncertainty.
        mirror: give the images as they are or mirrored, at random (training only).
    """

    def __init__(
        self,
        dataset_dir: PathLike | Sequence[PathLike],
        split: str,
        autoencoder: AutoencoderKL | StoredAutoencoder,
        cache_dir: PathLike,
        text: Text | None = None,
        num_labels: int | None = None,
        uncertainties: Uncertainties | None = None,
        mirror: bool = False,
    ) -> None:
        if num_labels is not None:
            check_labels(dataset_dir, num_labels)
        keys = ("image",) if num_labels is None else ("image", "label")
        items = datalist(dataset_dir, split, keys)
        folders = [str(Path(folder)) for folder in list_folders(dataset_dir)]
        parts = [[item for item in items if item["dataset"] == folder] for folder in folders]
        self.images, self.mirror, self.autoencoder, self.text = [i["image"] for i in items], mirror, autoencoder, text
        self.shards: list[dict[str, Tensor]] = []
        with main_first():
            for part in parts:
                self.shards += encode_dataset(part, autoencoder, cache_dir)
        sizes = [len(shard["mean"][0]) for shard in self.shards]
        self.ends = np.cumsum(sizes)  # a shard holds the images from the end of the one before to its own
        self.starts = self.ends - sizes
        self.shown = self.order([len(part) for part in parts])
        firsts = [items[i] for i in self.starts]
        _require_one_size({tuple(s["mean"].shape[3:]): i["image"] for s, i in zip(self.shards, firsts, strict=True)})
        self.labels: list[Tensor] = []
        if num_labels is not None:
            load = LoadPixelsd(["label"], num_labels=num_labels)
            with main_first():
                for part in parts:
                    self.labels += cache_labels(part, load, Path(cache_dir) / "labels")
            _require_one_size({tuple(s.shape[2:]): i["label"] for s, i in zip(self.labels, firsts, strict=True)})
        self.uncertainty = None if uncertainties is None else uncertainties(items)
        self.context: Tensor | None = None
        if text is not None:
            prompts = [text.template(item) for item in items]
            different = {prompt: i for i, prompt in enumerate(sorted(set(prompts)))}
            with main_first():
                self.context = text(list(different))  # (different prompts, tokens, dimensions)
            self.prompt = torch.tensor([different[prompt] for prompt in prompts])

    def order(self, sizes: Sequence[int]) -> Tensor:
        """The images that the data set shows, of data sets of these sizes one after the other."""
        return torch.arange(sum(sizes))

    def __len__(self) -> int:
        return len(self.shown)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A whole batch at once: mean and std (batch, channels, *latent), and what was asked for."""
        at = self.shown[torch.as_tensor(indices)]
        side = torch.randint(0, 2, at.shape) if self.mirror else torch.zeros_like(at)
        shards = np.searchsorted(self.ends, at.numpy(), side="right")
        where = list(zip(shards.tolist(), (at.numpy() - self.starts[shards]).tolist(), side.tolist(), strict=True))
        batch = {key: torch.stack([self.shards[s][key][k, row] for s, row, k in where]) for key in ("mean", "std")}
        batch["index"] = at
        if self.labels:
            label = torch.stack([self.labels[s][row] for s, row, _ in where])
            batch["label"] = torch.where(side.bool().reshape(-1, 1, 1, 1), label.flip(-1), label)
        if self.uncertainty is not None:
            batch["uncertainty"] = self.uncertainty[at]
        if self.context is not None:
            batch["context"] = self.context[self.prompt[at]]
        return batch

    @property
    def mean(self) -> Tensor:
        """Means of all latents, in memory: (as is / mirrored, images, channels, *latent)."""
        return torch.cat([shard["mean"] for shard in self.shards], dim=1)

    @property
    def std(self) -> Tensor:
        """Standard deviations of all latents, in memory."""
        return torch.cat([shard["std"] for shard in self.shards], dim=1)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(channels, *latent)."""
        return tuple(self.shards[0]["mean"].shape[2:])

    @property
    def scale_factor(self) -> float:
        """1 / standard deviation of the latents z = mean + std * noise; over all images, or 64 files of very many."""
        count, total, squares, noise = 0, 0.0, 0.0, 0.0
        for shard in [self.shards[i] for i in evenly(len(self.shards), 64)]:
            mean = shard["mean"][0].double()
            count += mean.numel()
            total, squares = total + float(mean.sum()), squares + float(mean.square().sum())
            noise += float(shard["std"][0].double().square().sum())
        variance = (squares - total**2 / count) / (count - 1) + noise / count
        return variance**-0.5


class BalancedLatentDataset(LatentDataset):
    """A :class:`LatentDataset` that shows the images of the smaller data sets more often: each has the same share."""

    def order(self, sizes: Sequence[int]) -> Tensor:
        """Each image as often as makes its data set as large as the largest."""
        return torch.tensor(balanced_order(sizes))


class LatentLoader(DataLoader):
    """Data loader of a :class:`LatentDataset`, which gives whole batches, of at most the whole data set.

    ``iterations`` batches are an epoch whatever the size of the data set, with ``shuffle`` and no ``sampler``.
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
        super().__init__(dataset, batch_size, shuffle, sampler, collate_fn=lambda batch: batch)  # see __getitems__


def latent_diffusion_of(
    dataset: LatentDataset, unet: nn.Module, scheduler: Any, train_scheduler: Scheduler, bundle_root: PathLike
) -> LatentDiffusion:
    """The model whose U-Net is trained on the latents of a data set: their scale and shape are its own.

    Of a :class:`JointNetwork` it is its U-Net.
    """
    unet = unet.unet if isinstance(unet, JointNetwork) else unet
    scale, shape, text = dataset.scale_factor, dataset.latent_shape, dataset.text
    return LatentDiffusion(dataset.autoencoder, unet, scheduler, train_scheduler, scale, shape, text, bundle_root)


def encode_dataset(
    items: list[dict], autoencoder: AutoencoderKL | StoredAutoencoder, cache_dir: PathLike
) -> list[dict[str, Tensor]]:
    """Encode images as they are and mirrored: for every ``SHARD`` of them "mean" and "std", mapped into memory."""
    if isinstance(autoencoder, StoredAutoencoder):
        network, identity = cache(autoencoder.load), autoencoder.identity
    else:
        network = cache(lambda: autoencoder)
        weights = hashlib.sha256()
        for value in autoencoder.state_dict().values():
            weights.update(value.detach().cpu().numpy().tobytes())
        identity = weights.hexdigest()
    with tqdm(total=len(items), desc="encoding", disable=None, leave=False) as bar:

        def encode(some: list[dict]) -> dict[str, Tensor]:
            return _encode([item["image"] for item in some], network(), num_channels(autoencoder), bar)

        return _shards(items, "image", identity, Path(cache_dir), encode)


def cache_labels(items: list[dict], load: LoadPixelsd, cache_dir: Path) -> list[Tensor]:
    """Label maps, checked and kept as uint8: for every ``SHARD`` of them (images, 1, rows, columns), memory-mapped."""

    def read(some: list[dict]) -> dict[str, Tensor]:
        maps = [(item["label"], load.read_label(item["label"])) for item in some]
        _require_one_size({tuple(label.shape[1:]): path for path, label in maps})
        return {"label": torch.stack([label for _, label in maps]).to(torch.uint8)}

    return [shard["label"] for shard in _shards(items, "label", str(load.num_labels), cache_dir, read)]


def _shards(
    items: list[dict], key: str, how: str, folder: Path, make: Callable[[list[dict]], dict[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """What is made of the files of every ``SHARD`` items, mapped into memory."""
    sweep(folder)
    portions = [items[start : start + SHARD] for start in range(0, len(items), SHARD)]
    return [_cached(folder / f"{_identity(some, key, how)}.safetensors", partial(make, some)) for some in portions]


def _cached(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What a file holds, mapped into memory; made first where it is not there, or damaged."""
    if path.is_file():
        try:
            return load_file(path)
        except SafetensorError as error:
            logger.warning(f"'{path}' is damaged ({error}); it is made again.")
    save_tensors(make(), path)
    return load_file(path)


@torch.no_grad()
def _encode(paths: list[str], autoencoder: AutoencoderKL, channels: int, bar: tqdm) -> dict[str, Tensor]:
    device = next(autoencoder.parameters()).device
    autoencoder.eval()
    parts, sizes = [], {}
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        read = [read_image(path, channels) for path in some]
        sizes |= {tuple(image.shape[1:]): path for image, path in zip(read, some, strict=True)}
        _require_one_size(sizes)
        images = torch.stack(read)
        mean, std = autoencoder.encode(torch.cat([images, images.flip(-1)]).to(device))
        part = torch.stack([mean.float().cpu(), std.float().cpu()]).unflatten(1, (2, len(images)))
        parts.append(require_finite("A latent", part, named(some)))
        bar.update(len(some))
    mean, std = torch.cat(parts, dim=2)
    return {"mean": mean, "std": std}


def _require_one_size(sizes: dict[tuple[int, ...], str]) -> None:
    if len(sizes) > 1:
        raise ValueError(f"Images differ in size: {sizes}. Expected one size; resample with the `--size` of data_prep.")


def _identity(items: list[dict], key: str, how: str) -> str:
    """Sha256 over every file's path, size and time, and over how it was turned into what is kept."""
    digest = hashlib.sha256(how.encode())
    for item in items:
        stat = Path(item[key]).stat()
        digest.update(f"{item[key]}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]
