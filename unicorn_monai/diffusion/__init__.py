"""The latent diffusion model and its ControlNets: autoencoder, latents, words, training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unicorn_monai.system.lazy import offers

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

__getattr__, __all__ = offers(__name__, __file__)
