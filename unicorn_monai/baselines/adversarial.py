"""The adversarial training of CycleGAN, CUT, CyCADA and ACCUT: one step of the generators, one of the discriminators.

    D:  0.5 [(D(y) - 1)^2 + D(G(x))^2],      G:  (D(G(x)) - 1)^2 + what holds the anatomy          least squares

over the patches that the discriminator judges. What a method adds stands in its own file.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Trainer
from monai.losses import PatchAdversarialLoss
from torch import Tensor, nn

from unicorn_monai.baselines.unpaired import DOMAINS, UnpairedDataset, UnpairedLoader
from unicorn_monai.images.pictures import evenly
from unicorn_monai.system.distributed import average_gradients, is_main, same_weights
from unicorn_monai.system.errors import trained_on
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.weights import save_weights
from unicorn_monai.training import EMA, Progress, SampleImages, TimeBudget, TranslationSettings, autocast_settings
from unicorn_monai.training.budget import LinearDecay, clock_of
from unicorn_monai.training.handlers import last_handlers

# MONAI's default passes the scores through a leaky ReLU first, which the papers do not.
_least_squares = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)


class Objective(ABC):
    """What a method is to the trainer: its networks, ``generator`` among those trained, and its losses.

    ``asks`` are the entries of a batch that :meth:`generator_terms` is given, in this order.
    """

    name: str
    asks: tuple[str, ...] = DOMAINS
    generator: Any

    def __init__(self, generator: nn.Module, trained: Sequence[nn.Module], judges: Sequence[nn.Module]) -> None:
        self.generator, self.trained, self.judges = generator, nn.ModuleList(trained), nn.ModuleList(judges)

    @abstractmethod
    def generator_terms(self, source: Tensor, target: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        """All terms with their weighted sum under "loss", and the translated images."""

    @abstractmethod
    def discriminator_loss(self, source: Tensor, target: Tensor, translated: list[Tensor]) -> Tensor:
        """The discriminators' objective, given what the generators made."""

    def state_dict(self) -> dict[str, Any]:
        """Weights of all networks."""
        return {"trained": self.trained.state_dict(), "judges": self.judges.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.trained.load_state_dict(state["trained"])
        self.judges.load_state_dict(state["judges"])


def generator_loss(scores: list[Tensor]) -> Tensor:
    """Least squares: what a discriminator (MONAI's ``PatchDiscriminator``) says of a translated image should be 1."""
    return _least_squares(scores[-1].float(), target_is_real=True, for_discriminator=False)


def discriminator_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Least squares: 1 for real images, 0 for translated ones."""
    one = _least_squares(real[-1].float(), target_is_real=True, for_discriminator=True)
    zero = _least_squares(fake[-1].float(), target_is_real=False, for_discriminator=True)
    return 0.5 * (one + zero)


class TranslationTrainer(Trainer):
    """Train generators against discriminators on unpaired batches ("source", "target", and what the method asks)."""

    def __init__(
        self,
        settings: TranslationSettings,
        train_data_loader: Iterable,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        discriminator_optimizer: torch.optim.Optimizer,
        train_handlers: list | None = None,
    ) -> None:
        super().__init__(
            settings.device, settings.max_epochs, train_data_loader, handlers=train_handlers, decollate=False
        )
        self.network, self.objective = objective.generator, objective
        self.optimizer, self.discriminator_optimizer = optimizer, discriminator_optimizer
        self.autocast = autocast_settings(settings.device, settings.precision)
        self.add_event_handler(Events.STARTED, self._together)

    def _together(self, engine: Engine) -> None:
        for network in (self.objective.trained, self.objective.judges):
            same_weights(network.train())

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> dict[str, Any]:
        asked = [batchdata[name].to(self.state.device) for name in self.objective.asks if name in batchdata]
        source, target = asked[:2]
        self.objective.judges.requires_grad_(False)
        with torch.autocast(**self.autocast):
            terms, translated = self.objective.generator_terms(*asked)
        self._step(self.optimizer, self.objective.trained, terms["loss"])

        self.objective.judges.requires_grad_(True)
        with torch.autocast(**self.autocast):
            fakes = [image.detach().float() for image in translated]
            terms["discriminator"] = self.objective.discriminator_loss(source, target, fakes)
        self._step(self.discriminator_optimizer, self.objective.judges, terms["discriminator"])
        return {"image": source, "pred": fakes[0], **{key: value.item() for key, value in terms.items()}}

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        average_gradients(network)
        optimizer.step()


def translation_trainer(
    settings: TranslationSettings,
    max_epochs: int,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    discriminator_optimizer: torch.optim.Optimizer,
    dataset: UnpairedDataset,
    validation: UnpairedDataset,
    handlers: Sequence[Any] = (),
) -> TranslationTrainer:
    """The training of a translation; ``model.pt`` holds the newest averaged weights.

    ``max_epochs`` is an argument of its own, since MONAI looks for it here. The optimizers are those of the objective's
    networks ``trained`` and ``judges``; images of ``validation`` are on the sheets of samples.
    """
    per_epoch = settings.iterations_per_epoch
    if per_epoch is None:
        raise ValueError("iterations_per_epoch is null; expected a whole number: two domains have no common length.")
    budget, models = TimeBudget(settings.max_seconds, clock_of(settings.device)), Path(settings.ckpt_dir)
    averaged = copy.deepcopy(objective.generator)
    ema = EMA(objective.generator, averaged, settings.ema_decay)
    state = {"networks": objective, "ema": ema, "budget": budget}
    state |= {"optimizer": optimizer, "discriminator_optimizer": discriminator_optimizer}
    about = {"method": objective.name.lower(), "max_seconds": settings.max_seconds}
    sheet = TranslationSheet(averaged, validation, settings.device)
    train_handlers = [
        budget,
        LinearDecay([optimizer, discriminator_optimizer], budget, settings.decay_start),
        ema,
        Progress(objective.name, budget=budget),
        LastWeights(averaged, models / "model.pt", budget, about),
        SampleImages(sheet, Path(settings.output_dir) / "samples", settings.sample_interval),
        *last_handlers(settings, models / "last.pt", state),
        *handlers,
    ]
    with torch.random.fork_rng(devices=[]):  # MONAI's loader seeds PyTorch anew: the networks' numbers would come again
        loader = UnpairedLoader(dataset, settings.batch_size, per_epoch, settings.num_workers)
    settings = replace(settings, max_epochs=max_epochs)
    return TranslationTrainer(settings, loader, objective, optimizer, discriminator_optimizer, train_handlers)


class LastWeights:
    """Ignite handler: publish the newest weights after every epoch.

    There is no best: an adversarial loss says nothing about the images, and the target domain has no labels. With the
    weights are stored ``metadata``, and the seconds of the budget where they are limited.
    """

    def __init__(
        self, network: nn.Module, path: PathLike, budget: TimeBudget, metadata: dict[str, Any] | None = None
    ) -> None:
        self.network, self.path, self.budget, self.metadata = network, path, budget, metadata or {}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after what updates the network and the budget."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write them."""
        if is_main():
            progress: dict[str, Any] = {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
            if self.budget.max_seconds is not None:  # else the file is the same at every repetition
                progress["seconds"] = round(self.budget.seconds, 1)
            with trained_on(engine):
                save_weights(self.network, self.path, **self.metadata, **progress)


class TranslationSheet:
    """Source images, what the network makes of them, and images of the target domain to compare with.

    ``count`` of each, evenly spread over the data sets.
    """

    def __init__(
        self, network: nn.Module, images: UnpairedDataset, device: torch.device | str = "cpu", count: int = 8
    ) -> None:
        self.network, self.domains, self.device = network, (images.source, images.target), torch.device(device)
        self.count = min(count, *map(len, self.domains))

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """(3, columns, channels, height, width): source above translated above target."""
        source, target = (
            torch.stack([images[i]["image"] for i in evenly(len(images), self.count)]) for images in self.domains
        )
        if source.shape != target.shape:
            raise ValueError(
                f"The two domains have images of {tuple(source.shape[2:])} and {tuple(target.shape[2:])} pixels; "
                "expected one size for the sheet. Resample with the `--size` of data_prep."
            )
        return torch.stack([source, self.network(source.to(self.device)).float().cpu(), target])
