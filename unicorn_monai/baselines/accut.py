"""ACCUT: CUT whose encoder feeds two decoders, one that segments and one that draws (Seibel et al., ISBI 2024).

    shape   s_0 = conv(e),  s_j = up(s_{j-1}),  logits = head(s_n)
    style   t_1 = up(e | s_0),  t_{j+1} = up(t_j | s_j),  image = conv(t_n | s_n)
    L = CUT + segmentation_weight CE(logits(x), labels of x)

e what the encoder makes of x, | concatenation; the shape's features are detached where the style takes them, so that no
gradient of the adversarial game or of the patches reaches the decoder that segments.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import Convolution
from monai.networks.utils import normal_init
from torch import Tensor, nn

from unicorn_monai.baselines.cut import CUT, PatchProjection
from unicorn_monai.baselines.networks import ResnetGenerator, mirror_borders
from unicorn_monai.baselines.unpaired import DOMAINS, LABEL
from unicorn_monai.segmentation.training import cross_entropy


class SegmentingGenerator(ResnetGenerator):
    """Image -> image of the same size, with the labels that it sees on the way.

    Args:
        spatial_dims: as the next four, of :class:`ResnetGenerator`, whose encoder and residual units this has.
        num_labels: of the label maps.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        channels: int = 64,
        num_blocks: int = 9,
        num_downs: int = 2,
        num_labels: int = 2,
    ) -> None:
        super().__init__(spatial_dims, in_channels, channels, num_blocks, num_downs)
        dims, narrowing = spatial_dims, list(itertools.pairwise(self.widths[-2 - num_downs : -1]))  # (wide, narrow)
        self.stages = self.stages[: len(self.stages) - num_downs - 1]
        self.widths = self.widths[: len(self.stages) + 1]
        wide, narrow = self.widths[-1], narrowing[-1][1] if narrowing else self.widths[-1]
        shared: dict[str, Any] = {"act": "relu", "norm": "instance"}
        up: dict[str, Any] = {"strides": 2, "is_transposed": True} | shared
        shape = [Convolution(dims, wide, wide, **shared), *(Convolution(dims, w, n, **up) for w, n in narrowing)]
        style = [Convolution(dims, 2 * w, n, **up) for w, n in narrowing]
        drawn = Convolution(dims, 2 * narrow, self.in_channels, kernel_size=7, act="tanh", norm=None)
        self.shape, self.style = nn.ModuleList(shape), nn.ModuleList([*style, drawn])
        self.head = Convolution(dims, narrow, num_labels, kernel_size=1, conv_only=True)
        for part in (self.shape, self.style, self.head):
            part.apply(normal_init)
            mirror_borders(part)

    def translate(self, image: Tensor, layers: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """The translated image, and the encoder's features on the way."""
        seen, *features = self._run(image, len(self.stages), layers)
        drawn = seen
        for draw, shown in zip(self.style, self._shapes(seen), strict=True):
            drawn = draw(torch.cat([drawn, shown.detach()], dim=1))
        return (drawn + 1) / 2, features

    def segment(self, image: Tensor) -> Tensor:
        """Logits (batch, labels, rows, columns)."""
        return self.head(self._shapes(self._run(image, len(self.stages), ())[0])[-1])

    def _shapes(self, seen: Tensor) -> list[Tensor]:
        shapes = []
        for stage in self.shape:
            shapes.append(stage(shapes[-1] if shapes else seen))
        return shapes


class ACCUT(CUT):
    """The objective.

    Args:
        generator: G, and what else :class:`CUT` has.
        segmentation_weight: of the cross-entropy; in the paper a step of its own.
    """

    name = "ACCUT"
    asks = (*DOMAINS, LABEL)
    generator: SegmentingGenerator

    def __init__(
        self,
        generator: SegmentingGenerator,
        discriminator: nn.Module,
        projection: PatchProjection,
        layers: Sequence[int],
        nce_weight: float = 1.0,
        identity_weight: float = 1.0,
        temperature: float = 0.07,
        segmentation_weight: float = 1.0,
    ) -> None:
        super().__init__(generator, discriminator, projection, layers, nce_weight, identity_weight, temperature)
        self.segmentation_weight = segmentation_weight

    def generator_terms(
        self, source: Tensor, target: Tensor, label: Tensor | None = None
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """See the file's header; ``label`` (batch, 1, rows, columns) belongs to the source images."""
        if label is None:
            raise ValueError("ACCUT learns to segment the source images; expected their label maps in every batch.")
        terms, translated = super().generator_terms(source, target)
        terms["segmentation"] = cross_entropy(self.generator.segment(source).float(), label[:, 0])
        return terms | {"loss": terms["loss"] + self.segmentation_weight * terms["segmentation"]}, translated
