"""Networks of other projects: Stable Diffusion, monai-generative."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicorn_monai.system.lazy import offers

if TYPE_CHECKING:
    from unicorn_monai.backbones.legacy import import_weights
    from unicorn_monai.backbones.stable_diffusion import (
        export_diffusers,
        latent_shape,
        load_autoencoder,
        load_controlnet,
        load_unet,
        new_controlnet,
        sampler,
        scale_factor,
        stored_autoencoder,
        train_scheduler,
        weights_metadata,
    )

__getattr__, __all__ = offers(__name__, __file__)
