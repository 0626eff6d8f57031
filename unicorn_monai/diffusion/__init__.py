"""The latent diffusion model and its ControlNets: autoencoder, latents, words, training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.diffusion.autoencoder import (
        AutoencoderLoss,
        AutoencoderTrainer,
        ReconstructionInferer,
        narrow_posterior,
        reconstruction_metric,
    )
    from unicorn_monai.diffusion.latents import LatentDataset, LatentLoader, latents_scale_factor, latents_shape
    from unicorn_monai.diffusion.layout_supervision import LayoutSupervision, discriminator_for
    from unicorn_monai.diffusion.text import ClipTextEncoder, PromptEmbeddings, PromptTemplate, null_context
    from unicorn_monai.diffusion.training import (
        ControlNetInferer,
        LatentPrepareBatch,
        NoisePredictionInferer,
        mean_squared_error,
    )
    from unicorn_monai.diffusion.word_vectors import WordVectors

__all__ = [
    "AutoencoderLoss",
    "AutoencoderTrainer",
    "ClipTextEncoder",
    "ControlNetInferer",
    "LatentDataset",
    "LatentLoader",
    "LatentPrepareBatch",
    "LayoutSupervision",
    "NoisePredictionInferer",
    "PromptEmbeddings",
    "PromptTemplate",
    "ReconstructionInferer",
    "WordVectors",
    "discriminator_for",
    "latents_scale_factor",
    "latents_shape",
    "mean_squared_error",
    "narrow_posterior",
    "null_context",
    "reconstruction_metric",
]
_HOMES = {
    "AutoencoderLoss": "diffusion.autoencoder",
    "AutoencoderTrainer": "diffusion.autoencoder",
    "ClipTextEncoder": "diffusion.text",
    "ControlNetInferer": "diffusion.training",
    "LatentDataset": "diffusion.latents",
    "LatentLoader": "diffusion.latents",
    "LatentPrepareBatch": "diffusion.training",
    "LayoutSupervision": "diffusion.layout_supervision",
    "NoisePredictionInferer": "diffusion.training",
    "PromptEmbeddings": "diffusion.text",
    "PromptTemplate": "diffusion.text",
    "ReconstructionInferer": "diffusion.autoencoder",
    "WordVectors": "diffusion.word_vectors",
    "discriminator_for": "diffusion.layout_supervision",
    "latents_scale_factor": "diffusion.latents",
    "latents_shape": "diffusion.latents",
    "mean_squared_error": "diffusion.training",
    "narrow_posterior": "diffusion.autoencoder",
    "null_context": "diffusion.text",
    "reconstruction_metric": "diffusion.autoencoder",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
