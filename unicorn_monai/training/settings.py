"""The settings of a training as one object, refused where they are wrong before anything else is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unicorn_monai.bundle.settings import check_settings
from unicorn_monai.training.steps import WarmupCosine, mean_squared_error


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What every training of a bundle can be told, checked (:func:`check_settings`)."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    output_dir: str | Path = "output"  # of sheets of samples
    ckpt_dir: str | Path = "models"  # of the weights and the state to go on from
    seed: int = 0  # of everything
    resume: bool = False  # go on from `ckpt_dir/last.pt`
    save_minutes: float = 10  # the state is saved at least this often, and after every epoch
    max_epochs: int = 1
    val_interval: int = 1  # epochs between validations
    sample_interval: int = 1  # epochs between sheets of samples
    batch_size: int = 1
    iterations_per_epoch: int | None = None  # whatever the size of the data set; None for one pass
    accumulation_steps: int = 1  # batches whose gradients are added up before a step of the optimizer
    learning_rate: float = 1e-4  # the peak of its schedule (`WarmupCosine`)
    precision: str = "float32"  # or "bfloat16", mixed; "auto": that where the device has it
    cuda_graphs: bool = False  # record the passes on the GPU and replay them

    def __post_init__(self) -> None:
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        check_settings(**{name: value for name, value in named.items() if name not in ("output_dir", "ckpt_dir")})


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings(TrainingSettings):
    """Those of a noise predictor.

    A ``timestep_shift`` s > 1 trains more at high noise, where the layout is decided: t / T = s r / (1 + (s - 1) r),
    r uniform (Esser et al. 2024, Eq. 23). ``prompt_dropout`` is the share of the prompts that the empty one takes the
    place of; None for half of them with the Uncertainty-ControlNet, whose part the words would play otherwise, and
    else for none.
    """

    ema_decay: float = 0.999  # share of the averaged weights kept at each step (`EMA`)
    timestep_shift: float = 1.0
    prompt_dropout: float | None = None
    loss_function: Callable[[Tensor, Tensor], Tensor] = mean_squared_error  # of what is predicted and what is wanted
    schedule: Callable[[Optimizer, int, Any], LRScheduler] = WarmupCosine  # of optimizer, epochs and data loader
    num_inference_steps: int = 25  # of the sheets of samples
    guidance: Sequence[float] = (1.0, 1.0)  # the same


@dataclass(frozen=True, kw_only=True)
class AutoencoderSettings(TrainingSettings):
    """Those of the autoencoder."""

    num_workers: int = 0
    cache_num: int = 10000  # images kept in memory
    patch_size: Sequence[int] = (128, 128)  # (rows, columns) that the training sees of an image
    discriminator_learning_rate: float = 0.0002
    adversarial_start: int = 0  # iterations before the discriminator takes part
    kl_weight: float = 1e-6  # of a term of the loss (`AutoencoderLoss`), as the following
    spectral_weight: float = 1.0
    speckle_weight: float = 1.0
    adversarial_weight: float = 0.1
    perceptual_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class TranslationSettings(TrainingSettings):
    """Those of a translation from one domain to another (CycleGAN, CUT, ...); their losses have their own."""

    iterations_per_epoch: int | None = 200
    max_seconds: float | None = None  # the training ends when they are over; None for no limit
    decay_start: float = 0.5  # share of the training after which the learning rates fall to zero
    num_workers: int = 0
    cache_num: int = 10000  # images of each domain kept in memory
    patch_size: Sequence[int] = (256, 256)  # (rows, columns) that the training sees of an image
    ema_decay: float = 0.999  # share of the averaged weights kept at each step (`EMA`)
