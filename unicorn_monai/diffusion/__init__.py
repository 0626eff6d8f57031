"""The latent diffusion model and its ControlNets: autoencoder, latents, words, training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unicorn_monai.system.lazy import offered

if TYPE_CHECKING:
    from unicorn_monai.diffusion.autoencoder import AutoencoderLoss, narrow_posterior
    from unicorn_monai.diffusion.bundle_models import (
        base_controlnet,
        load_latent_diffusion,
        load_prior,
        network_to_train,
        start_controlnet,
        uncertainties,
    )
    from unicorn_monai.diffusion.latents import LatentDataset, LatentLoader, latent_diffusion_of
    from unicorn_monai.diffusion.layout_supervision import Layout, LayoutSupervision, discriminator_for
    from unicorn_monai.diffusion.recipes import (
        autoencoder_evaluator,
        autoencoder_loss,
        autoencoder_trainer,
        diffusion_evaluator,
        diffusion_trainer,
    )
    from unicorn_monai.diffusion.task import ControlNetTask, DiffusionTask, task_latents
    from unicorn_monai.diffusion.text import ClipTextEncoder, PromptEmbeddings, PromptTemplate, Text
    from unicorn_monai.diffusion.training import (
        Adversary,
        ControlNetInferer,
        LatentPrepareBatch,
        NoisePredictionInferer,
    )
    from unicorn_monai.diffusion.word_vectors import WordVectors

__all__ = [
    "Adversary",
    "AutoencoderLoss",
    "ClipTextEncoder",
    "ControlNetInferer",
    "ControlNetTask",
    "DiffusionTask",
    "LatentDataset",
    "LatentLoader",
    "LatentPrepareBatch",
    "Layout",
    "LayoutSupervision",
    "NoisePredictionInferer",
    "PromptEmbeddings",
    "PromptTemplate",
    "Text",
    "WordVectors",
    "autoencoder_evaluator",
    "autoencoder_loss",
    "autoencoder_trainer",
    "base_controlnet",
    "diffusion_evaluator",
    "diffusion_trainer",
    "discriminator_for",
    "latent_diffusion_of",
    "load_latent_diffusion",
    "load_prior",
    "narrow_posterior",
    "network_to_train",
    "start_controlnet",
    "task_latents",
    "uncertainties",
]
_HOMES = {
    "Adversary": "diffusion.training",
    "AutoencoderLoss": "diffusion.autoencoder",
    "ClipTextEncoder": "diffusion.text",
    "ControlNetInferer": "diffusion.training",
    "ControlNetTask": "diffusion.task",
    "DiffusionTask": "diffusion.task",
    "LatentDataset": "diffusion.latents",
    "LatentLoader": "diffusion.latents",
    "LatentPrepareBatch": "diffusion.training",
    "Layout": "diffusion.layout_supervision",
    "LayoutSupervision": "diffusion.layout_supervision",
    "NoisePredictionInferer": "diffusion.training",
    "PromptEmbeddings": "diffusion.text",
    "PromptTemplate": "diffusion.text",
    "Text": "diffusion.text",
    "WordVectors": "diffusion.word_vectors",
    "autoencoder_evaluator": "diffusion.recipes",
    "autoencoder_loss": "diffusion.recipes",
    "autoencoder_trainer": "diffusion.recipes",
    "base_controlnet": "diffusion.bundle_models",
    "diffusion_evaluator": "diffusion.recipes",
    "diffusion_trainer": "diffusion.recipes",
    "discriminator_for": "diffusion.layout_supervision",
    "latent_diffusion_of": "diffusion.latents",
    "load_latent_diffusion": "diffusion.bundle_models",
    "load_prior": "diffusion.bundle_models",
    "narrow_posterior": "diffusion.autoencoder",
    "network_to_train": "diffusion.bundle_models",
    "start_controlnet": "diffusion.bundle_models",
    "task_latents": "diffusion.task",
    "uncertainties": "diffusion.bundle_models",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _HOMES, name)
