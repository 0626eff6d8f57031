"""Networks of other projects: Stable Diffusion, monai-generative."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

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

__all__ = [
    "export_diffusers",
    "import_weights",
    "latent_shape",
    "load_autoencoder",
    "load_controlnet",
    "load_unet",
    "new_controlnet",
    "sampler",
    "scale_factor",
    "stored_autoencoder",
    "train_scheduler",
    "weights_metadata",
]
_HOMES = {
    "export_diffusers": "backbones.stable_diffusion",
    "import_weights": "backbones.legacy",
    "latent_shape": "backbones.stable_diffusion",
    "load_autoencoder": "backbones.stable_diffusion",
    "load_controlnet": "backbones.stable_diffusion",
    "load_unet": "backbones.stable_diffusion",
    "new_controlnet": "backbones.stable_diffusion",
    "sampler": "backbones.stable_diffusion",
    "scale_factor": "backbones.stable_diffusion",
    "stored_autoencoder": "backbones.stable_diffusion",
    "train_scheduler": "backbones.stable_diffusion",
    "weights_metadata": "backbones.stable_diffusion",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
