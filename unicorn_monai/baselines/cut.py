"""CUT: one generator, and patches that must be recognised after translation (Park et al., ECCV 2020).

    L = adv(G, D) + nce_weight PatchNCE(x, G(x)) + identity_weight PatchNCE(y, G(y))

    PatchNCE = - mean log  exp(q_s . k_s / temperature) / sum_s' exp(q_s . k_s' / temperature)

over layers l of G's encoder and patches s: q_s = H_l(G_enc^l(G(x)))_s, k_s = H_l(G_enc^l(x))_s, of unit length, H_l a
perceptron of two layers. The negatives k_s' are the other patches of the same image; no gradient goes through k.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.utils import normal_init
from torch import Tensor, nn
from torch.nn import functional

from unicorn_monai.baselines.adversarial import Objective, discriminator_loss, generator_loss
from unicorn_monai.baselines.networks import ResnetGenerator, feature_channels


class PatchProjection(nn.Module):
    """Features -> unit vectors at randomly chosen positions, by a perceptron for each layer.

    There are ``num_patches`` positions; all of them where a layer has fewer.
    """

    def __init__(self, channels: Sequence[int], width: int = 256, num_patches: int = 256) -> None:
        super().__init__()
        if num_patches < 2:
            raise ValueError(f"num_patches is {num_patches}; expected at least 2: a patch is told from the others.")
        self.num_patches = num_patches
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(c, width), nn.ReLU(), nn.Linear(width, width)) for c in channels
        )
        self.apply(normal_init)

    def positions(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Chosen positions of each layer, the same for all images of a batch."""
        return [torch.randperm(f[0, 0].numel())[: self.num_patches].to(f.device) for f in features]

    def forward(self, features: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """(batch, channels, *spatial) of each layer -> (batch, patches, width) of unit length."""
        return [
            functional.normalize(head(f.flatten(2)[:, :, at].transpose(1, 2)).float(), dim=-1)
            for head, f, at in zip(self.heads, features, positions, strict=True)
        ]


def patch_nce(query: Tensor, key: Tensor, temperature: float = 0.07) -> Tensor:
    """The contrastive loss of each image, Eq. (3) of CUT, (batch,); log(patches) where all patches look alike.

    ``query`` and ``key`` are (batch, patches, width), of unit length; patch s of both belong together.
    """
    with torch.autocast(query.device.type, enabled=False):  # divided by 0.07, bfloat16 would be too coarse
        logits = query.float() @ key.detach().float().transpose(1, 2) / temperature
    return -logits.log_softmax(dim=2).diagonal(dim1=1, dim2=2).mean(dim=1)


class CUT(Objective):
    """The objective for a generator G, a discriminator D of the target domain and a projection H.

    H sees the same ``layers`` of the generator's encoder, see ``ResnetGenerator.encode``. The identity term is for
    target images, which should stay as they are; the weights are those of the paper.
    """

    name = "CUT"

    def __init__(
        self,
        generator: ResnetGenerator,
        discriminator: nn.Module,
        projection: PatchProjection,
        layers: Sequence[int],
        nce_weight: float = 1.0,
        identity_weight: float = 1.0,
        temperature: float = 0.07,
    ) -> None:
        if len(layers) != len(projection.heads):
            raise ValueError(f"layers is {list(layers)}, the projection has {len(projection.heads)} heads; match them.")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; expected a number above 0, 0.07 in the paper.")
        feature_channels(generator, layers)  # refuses layers that are not there
        super().__init__(generator, [generator, projection], [discriminator])
        self.discriminator, self.projection = discriminator, projection
        self.layers, self.temperature = list(layers), temperature
        self.nce_weight, self.identity_weight = nce_weight, identity_weight

    def generator_terms(self, source: Tensor, target: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        """See the file's header; the translated images are [G(x)]."""
        images = torch.cat([source, target]) if self.identity_weight else source
        translated, features = self.generator.translate(images, self.layers)
        there = translated[: len(source)]
        positions = self.projection.positions(features)
        with torch.no_grad():
            keys = self.projection(features, positions)
        queries = self.projection(self.generator.encode(translated, self.layers), positions)
        losses = torch.stack([patch_nce(q, k, self.temperature) for q, k in zip(queries, keys, strict=True)]).mean(0)
        terms = {"adversarial": generator_loss(self.discriminator(there)), "nce": losses[: len(source)].mean()}
        loss = terms["adversarial"] + self.nce_weight * terms["nce"]
        if self.identity_weight:
            terms["identity"] = losses[len(source) :].mean()
            loss = loss + self.identity_weight * terms["identity"]
        return terms | {"loss": loss}, [there]

    def discriminator_loss(self, source: Tensor, target: Tensor, translated: list[Tensor]) -> Tensor:
        """The discriminator's, on the newest images."""
        return discriminator_loss(self.discriminator(target), self.discriminator(translated[0]))
