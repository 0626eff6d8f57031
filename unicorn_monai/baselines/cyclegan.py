"""CycleGAN: two generators, there and back, which must undo each other (Zhu et al., ICCV 2017).

    L = adv(G, D_Y) + adv(F, D_X)
      + cycle_weight { |F(G(x)) - x| + |G(F(y)) - y| }
      + identity_weight cycle_weight { |G(y) - y| + |F(x) - x| }

x from the source (labelled) domain, y from the target (unlabelled) one; adv is least squares; absolute differences are
means over pixels in the papers' range [-1, 1]. The discriminators see translated images of up to 50 earlier steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unicorn_monai.baselines.adversarial import Objective, discriminator_loss, generator_loss


class ImagePool:
    """Up to ``size`` earlier translated images: each new one is shown, or takes the place of an older one that is."""

    def __init__(self, size: int = 50) -> None:
        if size < 0:
            raise ValueError(f"pool_size is {size}; expected 0 (no pool) or more, 50 in the paper.")
        self.size = size
        self.images: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        """As many images as given: (batch, channels, rows, columns)."""
        if self.size == 0:
            return images
        shown = list(images)
        for i, image in enumerate(images):
            if len(self.images) < self.size:
                self.images.append(image.clone())
            elif torch.rand(()) < 0.5:
                at = int(torch.randint(self.size, ()))
                shown[i], self.images[at] = self.images[at].to(image), image.clone()
        return torch.stack(shown)

    def state_dict(self) -> dict[str, Any]:
        """The images, on the CPU."""
        return {"images": [image.cpu() for image in self.images]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.images = list(state["images"])[: self.size]


class CycleGAN(Objective):
    """The objective for the generators G (source to target) and F (back) and the discriminators D_Y (target) and D_X.

    ``identity_weight`` is relative to ``cycle_weight``; the weights are those of the paper.
    """

    name = "CycleGAN"

    def __init__(
        self,
        generator: nn.Module,
        back_generator: nn.Module,
        discriminator: nn.Module,
        back_discriminator: nn.Module,
        cycle_weight: float = 10.0,
        identity_weight: float = 0.5,
        pool_size: int = 50,
    ) -> None:
        super().__init__(generator, [generator, back_generator], [discriminator, back_discriminator])
        self.back_generator = back_generator
        self.discriminator, self.back_discriminator = discriminator, back_discriminator
        self.cycle_weight, self.identity_weight = cycle_weight, identity_weight
        self.pool, self.back_pool = ImagePool(pool_size), ImagePool(pool_size)

    def generator_terms(self, source: Tensor, target: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        """See the file's header; the translated images are [G(x), F(y)]."""
        there, same_target = _both(self.generator, source, target, self.identity_weight)
        back, same_source = _both(self.back_generator, target, source, self.identity_weight)
        terms = {
            "adversarial": generator_loss(self.discriminator(there)) + generator_loss(self.back_discriminator(back)),
            "cycle": _difference(self.back_generator(there), source) + _difference(self.generator(back), target),
        }
        loss = terms["adversarial"] + self.cycle_weight * terms["cycle"]
        if same_target is not None and same_source is not None:
            terms["identity"] = _difference(same_target, target) + _difference(same_source, source)
            loss = loss + self.identity_weight * self.cycle_weight * terms["identity"]
        return terms | {"loss": loss}, [there, back]

    def discriminator_loss(self, source: Tensor, target: Tensor, translated: list[Tensor]) -> Tensor:
        """Both discriminators', on images from the pools."""
        there, back = self.pool(translated[0]), self.back_pool(translated[1])
        loss = discriminator_loss(self.discriminator(target), self.discriminator(there))
        return loss + discriminator_loss(self.back_discriminator(source), self.back_discriminator(back))

    def state_dict(self) -> dict[str, Any]:
        """Weights of all four networks, and the pools."""
        return super().state_dict() | {"pools": [self.pool.state_dict(), self.back_pool.state_dict()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        for pool, saved in zip((self.pool, self.back_pool), state["pools"], strict=True):
            pool.load_state_dict(saved)


def _both(generator: nn.Module, own: Tensor, other: Tensor, identity: float) -> tuple[Tensor, Tensor | None]:
    """A generator's image of its own domain and, where the identity term counts, of the other, in one pass."""
    if not identity:
        return generator(own), None
    translated, same = generator(torch.cat([own, other])).chunk(2)
    return translated, same


def _difference(image: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference in the range [-1, 1]."""
    return 2 * (image.float() - wanted).abs().mean()
