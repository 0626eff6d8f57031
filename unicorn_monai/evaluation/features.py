"""Images -> feature vectors: the network behind FID, KID and the search for copies, as a plug-in.

    f(x) = global average of the features at the bottleneck of a U-Net's encoder        (B, D), D channels

A feature network is a file, its sha256 and the name of its preprocessing; the numbers computed with it carry its name.
Any TorchScript file will do, such as the Inception network that published FIDs use. Where there is none, the default is
trained here: a small MONAI U-Net that tells, of masked patches of the real images of BOTH domains, the grey values and
how strong the speckle is. It needs no labels and no download; its distances can be compared with each other, not with
published ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from unicorn_monai.data.items import datalist
from unicorn_monai.images.speckle import high_pass
from unicorn_monai.images.transforms import read_image
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.networks import freeze, require_finite
from unicorn_monai.system.records import COUNT, take
from unicorn_monai.system.weights import load_weights, read_metadata, save_weights, sha256

DEFAULT_NAME = "encoder of a MONAI U-Net trained to fill in masked patches of the real images of both domains"
BATCH = 16  # images in a training step
SPECKLE_WEIGHT = 5.0  # brings the error of the speckle to that of the grey values
ARCHITECTURE: dict[str, Any] = {
    "spatial_dims": 2,
    "channels": [16, 32, 64, 128],
    "strides": [2, 2, 2],
    "num_res_units": 1,
    "norm": "batch",  # instance norm would remove the contrast, which is what devices differ in
}


def _imagenet(images: Tensor) -> Tensor:
    """Three channels, 224 x 224 (bilinear, antialiased), ImageNet's mean and standard deviation."""
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1).to(images) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    resized = functional.interpolate(images.expand(-1, 3, -1, -1), size=(224, 224), mode="bilinear", antialias=True)
    return (resized - mean) / std


PREPROCESSING: dict[str, Callable[[Tensor], Tensor]] = {
    "unit": lambda images: images,  # [0, 1], as many channels as the images have
    "rgb255": lambda images: (images.expand(-1, 3, -1, -1) * 255).round(),  # 0 ... 255; the network resizes
    "imagenet": _imagenet,
}


@dataclass(frozen=True)
class Features:
    """A feature network."""

    name: str  # for the report
    sha256: str  # of its file
    preprocessing: str  # one of ``PREPROCESSING``
    network: Callable[..., Tensor]  # -> (batch, D), or (batch, D, *spatial), which is averaged
    device: torch.device
    arguments: dict[str, Any]  # of the network, as {"return_features": True} for the Inception of 2015 (``rgb255``)

    @classmethod
    def from_file(
        cls,
        path: PathLike,
        expected_sha256: str,
        preprocessing: str,
        device: torch.device | str = "cpu",
        arguments: dict[str, Any] | None = None,
    ) -> Features:
        """Load a TorchScript file. It is a program: its sha256 must be the expected one before it is opened."""
        require_file(path, expected_sha256, preprocessing)
        try:
            network = torch.jit.load(str(path), map_location=device)
        except RuntimeError as error:
            raise ValueError(f"'{path}' is no TorchScript file ({str(error).splitlines()[0]}).") from error
        network.eval()
        return cls(Path(path).name, expected_sha256, preprocessing, network, torch.device(device), arguments or {})

    @classmethod
    def from_encoder(cls, path: PathLike, device: torch.device | str = "cpu") -> Features:
        """The encoder of a U-Net written by :func:`train_encoder`."""
        metadata = read_metadata(path)
        if "architecture_arguments" not in metadata:
            raise ValueError(f"'{path}' was not written by train_encoder; train the feature network again.")
        rules = {"in_channels": COUNT, "out_channels": COUNT}
        channels = take(metadata["architecture_arguments"], rules, path, tuple(rules))
        network = UNet(**(ARCHITECTURE | channels))  # `load_weights` compares the description
        load_weights(network, path)
        encoder = Encoder(freeze(network)).to(device)
        return cls(str(metadata["name"]), str(metadata["sha256"]), "unit", encoder, torch.device(device), {})

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (batch, channels, rows, columns) in [0, 1] -> (batch, D) float64, on the CPU."""
        try:
            found = self.network(PREPROCESSING[self.preprocessing](images.to(self.device)), **self.arguments)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1:] or ["no reason"]
            raise ValueError(
                f"The feature network '{self.name}' cannot be run on images {tuple(images.shape)} with preprocessing "
                f"'{self.preprocessing}' and arguments {self.arguments} ({reason[0]}). Check both."
            ) from error
        if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(images):
            raise ValueError(
                f"The feature network '{self.name}' gave {type(found).__name__} {tuple(getattr(found, 'shape', ()))} "
                f"for {len(images)} images; expected a tensor ({len(images)}, D). Check its `arguments`."
            )
        found = found.double().cpu()
        pooled = found.flatten(2).mean(dim=2) if found.ndim > 2 else found
        return require_finite(f"A feature vector of '{self.name}'", pooled)

    def of(self, items: Sequence[dict[str, Any]], num_channels: int = 1) -> Tensor:
        """Features of the images of a data set: (items, D)."""
        paths = [str(item["image"]) for item in items]
        if not paths:
            raise ValueError("No images to compute features of; expected at least one.")
        parts = []
        for start in tqdm(range(0, len(paths), 32), desc="features", disable=None, leave=False):
            images = [read_image(path, num_channels) for path in paths[start : start + 32]]
            sizes = {tuple(image.shape[1:]): path for image, path in zip(images, paths[start:], strict=False)}
            if len(sizes) > 1:
                raise ValueError(f"Images differ in size: {sizes}. Expected one size; resample them.")
            parts.append(self(torch.stack(images)))
        return torch.cat(parts)


def require_file(path: PathLike, expected_sha256: str, preprocessing: str) -> None:
    """Refuse a feature network by what can be known without opening its file."""
    if preprocessing not in PREPROCESSING:
        raise ValueError(f"Unknown preprocessing '{preprocessing}'; expected one of {sorted(PREPROCESSING)}.")
    if not Path(path).is_file():
        raise ValueError(f"No feature network at '{path}'. Give the path of its TorchScript file.")
    found = sha256(path)
    if found != expected_sha256:
        raise ValueError(
            f"The feature network '{path}' has the sha256 {found}, expected {expected_sha256}. It is another file "
            "or damaged; it was not opened."
        )


class Encoder(nn.Module):
    """The way down of a MONAI ``UNet``, averaged over the image: (batch, channels, *spatial) -> (batch, D)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        down, node = [], network.model if isinstance(network, UNet) else None
        while isinstance(node, nn.Sequential) and any(isinstance(child, SkipConnection) for child in node):
            down.append(node[0])
            node = next(child for child in node if isinstance(child, SkipConnection)).submodule
        if node is None or not down:
            raise ValueError(f"{type(network).__name__} is no MONAI UNet with at least two levels; expected one.")
        self.down = nn.Sequential(*down, node)

    def forward(self, images: Tensor) -> Tensor:
        """The pooled features."""
        return self.down(images).flatten(2).mean(dim=2)


def train_encoder(
    dataset_dirs: Sequence[PathLike],
    path: PathLike,
    num_channels: int = 1,
    iterations: int = 1000,
    crop: int = 128,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """Train the default feature network on the training images of the given data sets, as many of each in a batch.

    The task is to tell the grey values, and the magnitude of the high-pass image (the speckle), of a crop of which half
    the patches (an eighth of the crop wide) were set to the mean grey value. What a patch held can only be known from
    the bottleneck, not from the skip connections; the grey values alone would not need to know how noisy the device is.

    The weights are written to ``path``, their description beside them. ``crop`` is the side of the squares seen in
    training, or the images' shorter side where that is smaller. The global generator is left alone.

    Returns:
        Mean absolute error of the grey values in the masked patches over the last tenth of the training.
    """
    images = [[read_image(item["image"], num_channels) for item in datalist(d, "training")] for d in dataset_dirs]
    sides = {min(min(image.shape[1:]) for image in domain) for domain in images}
    crop = min(crop, *sides) // 8 * 8
    if crop < 16:
        raise ValueError(f"Images of {min(sides)} pixels are too small for the feature network; expected at least 16.")
    arguments = ARCHITECTURE | {"in_channels": num_channels, "out_channels": 2 * num_channels}
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(**arguments).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: (1 + math.cos(math.pi * i / iterations)) / 2)
    losses: list[float] = []
    for _ in tqdm(range(iterations), desc="feature network", disable=None, leave=False):
        batch = torch.stack([_crop(images[i % len(images)], crop, random) for i in range(BATCH)]).to(device)
        coarse = torch.from_numpy(random.random((BATCH, 1, 8, 8)) < 0.5)
        hidden = coarse.repeat_interleave(crop // 8, 2).repeat_interleave(crop // 8, 3).to(device)
        grey = batch.mean(dim=(2, 3), keepdim=True)
        target = torch.cat([batch, high_pass(batch).abs()], dim=1)
        error = (network(torch.where(hidden, grey, batch)) - target).abs() * hidden
        fill, speckle = (part.sum() / (hidden.sum() * num_channels) for part in error.split(num_channels, dim=1))
        loss = fill + SPECKLE_WEIGHT * speckle
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(fill.item())
    if not np.isfinite(losses[-1]):
        raise ValueError(f"The feature network diverged (loss {losses[-1]}). Check the images for extreme values.")
    save_weights(network, path, name=DEFAULT_NAME, architecture_arguments=arguments, iterations=iterations, seed=seed)
    return float(np.mean(losses[-max(1, iterations // 10) :]))


def _crop(images: list[Tensor], size: int, random: np.random.Generator) -> Tensor:
    image = images[random.integers(len(images))]
    row, column = (int(random.integers(side - size + 1)) for side in image.shape[1:])
    piece = image[:, row : row + size, column : column + size]
    return piece.flip(-1) if random.random() < 0.5 else piece
