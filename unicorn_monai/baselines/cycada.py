"""CyCADA: CycleGAN whose translations must keep what a segmentation network sees (Hoffman et al., ICML 2018).

    L = CycleGAN + semantic_weight { CE(f(G(x)), argmax f(x)) + CE(f(F(y)), argmax f(y)) }

f is trained on the labelled domain and frozen. The adversarial loss on f's features is left out, as by most who use it
for segmentation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from unicorn_monai.baselines.cyclegan import CycleGAN


def semantic_consistency(segmenter: nn.Module, translated: Tensor, original: Tensor) -> Tensor:
    """Cross-entropy of a translated image against the labels seen in the original; no gradient through them."""
    with torch.no_grad():
        seen = segmenter(original).argmax(dim=1)
    return functional.cross_entropy(segmenter(translated).float(), seen)


class CyCADA(CycleGAN):
    """The objective.

    Args:
        generator: as the next three and the weights, see :class:`CycleGAN`.
        segmenter: f, images -> logits; it is frozen here.
        semantic_weight: 1 in the paper.
    """

    name = "CyCADA"

    def __init__(
        self,
        generator: nn.Module,
        back_generator: nn.Module,
        discriminator: nn.Module,
        back_discriminator: nn.Module,
        segmenter: nn.Module,
        semantic_weight: float = 1.0,
        cycle_weight: float = 10.0,
        identity_weight: float = 0.5,
    ) -> None:
        networks = generator, back_generator, discriminator, back_discriminator
        super().__init__(*networks, cycle_weight, identity_weight)
        self.segmenter, self.semantic_weight = segmenter.eval().requires_grad_(False), semantic_weight

    def generator_terms(self, source: Tensor, target: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        """See the file's header; the translated images are [G(x), F(y)]."""
        terms, translated = super().generator_terms(source, target)
        pairs = zip(translated, (source, target), strict=True)
        terms["semantic"] = sum((semantic_consistency(self.segmenter, *pair) for pair in pairs), torch.zeros(()))
        return terms | {"loss": terms["loss"] + self.semantic_weight * terms["semantic"]}, translated
