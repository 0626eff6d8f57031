"""Trainers put together for the trainings of the bundles, so that a configuration says what and not how.

    SupervisedTrainer + [learning rate, clipping, averaging, validation, best weights, progress, samples, state]

The order matters: what is saved comes before what saves it. Started by ``torchrun``, each process has its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from torch import nn

from unicorn_monai.diffusion.autoencoder import (
    Adversary,
    AutoencoderLoss,
    AutoencoderTrainer,
    ReconstructionSheet,
    reconstruction_metric,
)
from unicorn_monai.diffusion.latents import LatentDataset, LatentLoader
from unicorn_monai.diffusion.task import DiffusionTask, JointTask
from unicorn_monai.diffusion.training import (
    ControlNetInferer,
    JointInferer,
    LatentPrepareBatch,
    NoisePredictionInferer,
)
from unicorn_monai.images.transforms import collate
from unicorn_monai.system.distributed import SharedOrder, is_active, parallel
from unicorn_monai.training import EMA, AutoencoderSettings, BestWeights, Progress, SampleImages, WarmupCosine
from unicorn_monai.training.handlers import last_handlers
from unicorn_monai.training.steps import ClipGradients, loss_metric, random_order


def autoencoder_loss(settings: AutoencoderSettings, perceptual: nn.Module | None = None) -> AutoencoderLoss:
    """The loss with the weights of the settings, on their device."""
    terms = ("kl", "spectral", "speckle", "adversarial", "perceptual")
    weights = {f"{term}_weight": getattr(settings, f"{term}_weight") for term in terms}
    return AutoencoderLoss(**weights, perceptual=perceptual).to(settings.device)


def autoencoder_evaluator(
    settings: AutoencoderSettings, network: nn.Module, dataset: Dataset, handlers: Sequence[Any] = ()
) -> SupervisedEvaluator:
    """The validation of an autoencoder: the error of its reconstructions, ``reconstruction``."""
    share = _validation_share(dataset)
    return SupervisedEvaluator(
        device=settings.device,
        val_data_loader=DataLoader(dataset, batch_size=settings.batch_size, collate_fn=collate, sampler=share),
        network=network,
        inferer=lambda images, network: network.reconstruct(images),  # type: ignore[arg-type]  # from the mean latent
        key_val_metric={"reconstruction": reconstruction_metric(settings.spectral_weight)},
        val_handlers=list(handlers),
        decollate=False,
    )


def autoencoder_trainer(
    settings: AutoencoderSettings,
    max_epochs: int,
    network: nn.Module,
    adversary: Adversary,
    optimizer: torch.optim.Optimizer,
    dataset: Dataset,
    evaluator: SupervisedEvaluator,
    handlers: Sequence[Any] = (),
) -> AutoencoderTrainer:
    """The training of an autoencoder; ``models/autoencoder.pt`` holds the newest weights, whatever their error.

    ``max_epochs`` is an argument of its own, since MONAI looks for it here. Sheets show images of the data set of
    ``evaluator`` (:func:`autoencoder_evaluator`) above their reconstructions.
    """
    size, iterations = settings.batch_size, settings.iterations_per_epoch
    sampler = (SharedOrder if is_active() else random_order)(dataset, size, iterations)  # type: ignore[arg-type]
    loader = DataLoader(
        dataset, settings.num_workers, batch_size=size, collate_fn=collate, sampler=sampler, drop_last=True
    )
    schedule, models = WarmupCosine(optimizer, max_epochs, loader), Path(settings.ckpt_dir)
    best = BestWeights(evaluator, "reconstruction", network, models / "autoencoder.pt", always=True)
    state = {"network": network, "optimizer": optimizer, "lr": schedule, "best": best}
    state |= {"discriminator": adversary.network, "discriminator_optimizer": adversary.optimizer}
    sheet = ReconstructionSheet(network, evaluator.data_loader.dataset)  # type: ignore[arg-type, union-attr]
    train_handlers = [
        LrScheduleHandler(schedule, print_lr=False, epoch_level=False),  # type: ignore[arg-type]
        ValidationHandler(interval=settings.val_interval, validator=evaluator),
        best,
        Progress("autoencoder"),
        SampleImages(sheet, Path(settings.output_dir) / "autoencoder", settings.sample_interval),
        *handlers,
        *last_handlers(settings, models / "autoencoder_last.pt", state),
    ]
    if is_active():
        network = parallel(network, settings.device)
        adversary = replace(adversary, network=parallel(adversary.network, settings.device))
    settings = replace(settings, max_epochs=max_epochs)
    return AutoencoderTrainer(settings, loader, network, adversary, optimizer, train_handlers)


def diffusion_evaluator(
    task: DiffusionTask, network: nn.Module, dataset: LatentDataset, handlers: Sequence[Any] = ()
) -> SupervisedEvaluator:
    """The validation of the averaged noise predictor: the mean loss at fixed noise and timesteps, ``val_loss``."""
    predicting = {None: NoisePredictionInferer, JointTask.condition: JointInferer}.get(
        task.condition, ControlNetInferer
    )
    return SupervisedEvaluator(
        device=task.settings.device,
        val_data_loader=LatentLoader(dataset, task.settings.batch_size, sampler=_validation_share(dataset)),
        network=network,
        prepare_batch=LatentPrepareBatch(task, fixed=True),
        inferer=predicting(task, validating=True),
        key_val_metric={"val_loss": loss_metric(task.settings.loss_function)},
        val_handlers=list(handlers),
        decollate=False,
    )


def diffusion_trainer(
    task: DiffusionTask,
    max_epochs: int,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    inferer: NoisePredictionInferer,
    dataset: LatentDataset,
    evaluator: SupervisedEvaluator,
    handlers: Sequence[Any] = (),
) -> SupervisedTrainer:
    """The training of a noise predictor; ``models/model.pt`` holds the averaged weights of the smallest ``val_loss``.

    Or the newest ones, where the task says so.

    ``max_epochs`` is an argument of its own, since MONAI looks for it here. An ``inferer`` that can be attached takes
    part as a handler and is saved with the rest; the network of ``evaluator`` (:func:`diffusion_evaluator`) is the
    average.
    """
    settings, averaged = task.settings, evaluator.network
    own = {"batch_size": settings.batch_size, "iterations": settings.iterations_per_epoch}
    sampler = SharedOrder(dataset, **own) if is_active() else None
    loader = LatentLoader(dataset, shuffle=sampler is None, sampler=sampler, **own)
    schedule = settings.schedule(optimizer, max_epochs, loader)
    ema, models = EMA(network, averaged, settings.ema_decay), Path(settings.ckpt_dir)
    about = task.belongs_to()
    best = BestWeights(
        evaluator,
        "val_loss",
        averaged,
        models / "model.pt",
        larger_is_better=False,
        metadata=about,
        always=task.newest,
    )
    state = {"network": network, "optimizer": optimizer, "lr": schedule, "ema": ema, "best": best}
    state |= getattr(inferer, "saved", {})
    return SupervisedTrainer(
        device=settings.device,
        max_epochs=max_epochs,
        train_data_loader=loader,
        network=parallel(network, settings.device) if is_active() else network,
        optimizer=optimizer,
        loss_function=settings.loss_function,
        accumulation_steps=settings.accumulation_steps,
        prepare_batch=LatentPrepareBatch(task),
        inferer=inferer,
        train_handlers=[
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),  # type: ignore[arg-type]
            ClipGradients(network),
            ema,
            ValidationHandler(interval=settings.val_interval, validator=evaluator),
            best,
            Progress(task.name),
            *handlers,
            *([inferer] if hasattr(inferer, "attach") else []),
            *last_handlers(settings, models / "last.pt", state),
        ],
    )


def _validation_share(dataset: Any) -> DistributedSampler | None:
    """This process's share of the validation images, where several train."""
    return DistributedSampler(dataset, even_divisible=False, shuffle=False) if is_active() else None
