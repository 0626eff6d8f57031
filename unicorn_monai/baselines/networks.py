"""The generator of CycleGAN, CUT and CyCADA: a residual network that halves the image twice, from MONAI's blocks.

    7 x 7 convolution -> ``num_downs`` strided ones -> ``num_blocks`` residual units -> transposed ones -> 7 x 7, tanh

Johnson et al. 2016, as used by Zhu et al. 2017 (CycleGAN) and Park et al. 2020 (CUT). Images are in [0, 1] outside and
in [-1, 1] inside. Convolutions of stride 1 see a mirrored border, so no frame appears in the images.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from monai.networks.blocks import Convolution, ResidualUnit
from monai.networks.utils import normal_init
from torch import Tensor, nn

from unicorn_monai.system.files import PathLike
from unicorn_monai.system.networks import fingerprint
from unicorn_monai.system.weights import read_metadata


class ResnetGenerator(nn.Module):
    """Image -> image of the same size.

    ``channels`` are those after the first convolution, doubled by each of the ``num_downs`` halvings. Image sides must
    be multiples of 2 ** num_downs, and at least two: mirrored borders need two rows and columns behind the last
    halving, and four before the first. In 3 dimensions there are no mirrored borders.
    """

    def __init__(
        self, spatial_dims: int = 2, in_channels: int = 1, channels: int = 64, num_blocks: int = 9, num_downs: int = 2
    ) -> None:
        super().__init__()
        if min(in_channels, channels) < 1 or min(num_blocks, num_downs) < 0:
            raise ValueError(
                f"in_channels {in_channels}, channels {channels}, num_blocks {num_blocks}, num_downs {num_downs}; "
                "expected at least 1 channel and no negative number."
            )
        widths = [channels * 2**i for i in range(num_downs + 1)]
        shared: dict[str, Any] = {"act": "relu", "norm": "instance"}
        stages: list[nn.Module] = [Convolution(spatial_dims, in_channels, channels, kernel_size=7, **shared)]
        for narrow, wide in itertools.pairwise(widths):
            stages.append(Convolution(spatial_dims, narrow, wide, strides=2, **shared))
        stages += [_residual(spatial_dims, widths[-1], shared) for _ in range(num_blocks)]
        for wide, narrow in itertools.pairwise(widths[::-1]):
            stages.append(Convolution(spatial_dims, wide, narrow, strides=2, is_transposed=True, **shared))
        stages.append(Convolution(spatial_dims, channels, in_channels, kernel_size=7, act="tanh", norm=None))
        self.stages = nn.ModuleList(stages)
        self.in_channels, self.factor = in_channels, 2**num_downs
        self.widths = [in_channels, *widths, *[widths[-1]] * num_blocks, *widths[-2::-1], in_channels]
        self.apply(normal_init)
        mirror_borders(self)

    def forward(self, image: Tensor) -> Tensor:
        """Image in [0, 1] -> image in [0, 1], the same shape."""
        return self.translate(image)[0]

    def translate(self, image: Tensor, layers: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """The translated image, and the features on the way: 0 is the image itself, i the output of stage i."""
        features = self._run(image, len(self.stages), layers)
        return (features[0] + 1) / 2, features[1:]

    def encode(self, image: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The features alone; stages behind the last one asked for are not run."""
        return self._run(image, max(layers), layers)[1:]

    def _run(self, image: Tensor, end: int, layers: Sequence[int]) -> list[Tensor]:
        least = max(2 * self.factor, 4)
        misfits = [side for side in image.shape[2:] if side % self.factor or side < least]
        if image.shape[1] != self.in_channels or misfits:
            raise ValueError(
                f"Image batch has shape {tuple(image.shape)}; expected (batch, {self.in_channels}, rows, columns) with "
                f"sides that are multiples of {self.factor}, from {least} on. Resample with the `--size` of data_prep."
            )
        x = image * 2 - 1
        features = [x]
        for stage in self.stages[:end]:
            x = stage(x)
            features.append(x)
        return [x, *(features[i] for i in layers)]


def mirror_borders(network: nn.Module) -> None:
    """Let the convolutions that keep the size see the mirrored image beyond its border, so that no frame appears."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (1, 1):
            module.padding_mode = "reflect"


def _residual(spatial_dims: int, channels: int, shared: dict[str, Any]) -> ResidualUnit:
    """Convolution, normalisation, activation, convolution, normalisation; nothing after the sum, as in the papers."""
    unit = ResidualUnit(spatial_dims, channels, channels, **shared)
    del unit.conv[-1].adn.A  # type: ignore[union-attr]
    return unit


def feature_channels(generator: ResnetGenerator, layers: Sequence[int]) -> list[int]:
    """How many channels a generator's features have, see ``ResnetGenerator.encode``."""
    widths = generator.widths
    if not layers or any(not 0 <= i < len(widths) for i in layers):
        raise ValueError(f"layers is {list(layers)}; expected some of 0 to {len(widths) - 1}, see `encode`.")
    return [widths[i] for i in layers]


def generator_of(weights: PathLike, generators: Sequence[nn.Module]) -> nn.Module:
    """The one of several generators that published weights belong to, by its architecture; if none, the first.

    Raises:
        ValueError: no weights are there.
    """
    architecture = read_metadata(weights)["architecture"]
    return next((g for g in generators if fingerprint(g) == architecture), generators[0])
