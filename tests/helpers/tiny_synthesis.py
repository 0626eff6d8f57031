"""A synthesis of seconds with real networks: random weights, images that vary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import nn

from tiny_networks import LABELS, build_autoencoder, build_ldm, build_unet, wake
from unicorn_monai.controlnets import controlnet_for
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.schedulers import DPMSolverPlusPlus
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Requests
from unicorn_monai.synthesis.writer import Synthesizer

SIZE, STEPS = 16, 3
PRIOR = UncertaintyPrior(mean=0.2, std=0.05, scaling="zscore", offset=0.1, scale=0.1, segmentation_sha256="x")


def label_maps(root: Path, count: int = 6) -> Path:
    """A labelled data set; ``count`` items for training, half as many for validation."""
    random = np.random.default_rng(0)
    with DatasetWriter(root, About(name="n", device="d", labels={i: str(i) for i in range(LABELS)})) as writer:
        for split, n in (("training", count), ("validation", count // 2)):
            for i in range(n):
                borders = np.sort(random.integers(2, SIZE - 2, LABELS - 1))
                label = (np.arange(SIZE)[:, None] >= borders).sum(axis=1).astype(np.uint8)
                label = np.repeat(label[:, None], SIZE, axis=1)
                writer.add(split, label * 60, label, subject=f"{split}{i}")
    return root


def synthesizer(
    labels: Path, output: Path, batch_size: int = 4, count: int = 6, stochastic: bool = False, resume: bool = False
) -> Synthesizer:
    """Everything that a run needs, the same at every call."""
    torch.manual_seed(0)
    unet, autoencoder = build_unet(), build_autoencoder()
    last = [module for module in autoencoder.decoder.modules() if isinstance(module, nn.Conv2d)][-1]
    nn.init.normal_(last.weight, std=0.3)
    nn.init.constant_(last.bias, 0.5)
    semantic, uncertainty = (wake(controlnet_for(unet, channels, (4, 8, 8)), 0.1) for channels in (LABELS, 1))
    schedule = {"schedule": "scaled_linear_beta", "clip_sample": False}
    scheduler = DDPMScheduler(STEPS, **schedule) if stochastic else DPMSolverPlusPlus(1000, coarse=True, **schedule)
    ldm = build_ldm(unet, autoencoder, scheduler)
    inferer = DualControlNetInferer(ldm, semantic, uncertainty, 1.0, "compositional", (1.5, 1.0))
    generator = Generator(inferer, PRIOR, LABELS, STEPS)
    requests = Requests(count, 3, labels, ["training", "validation"], PRIOR, augment=True)
    models = {"diffusion": "a" * 64}
    return Synthesizer(generator, requests, output, labels, "home", models, batch_size, resume)
