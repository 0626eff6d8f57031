"""MONAI's stock engines as the bundles put them together: their handlers, in order, and what a training leaves."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite import distributed as idist
from ignite.engine import Events
from monai.data import CacheDataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.networks.nets import AutoencoderKL, PatchDiscriminator
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tiny_networks import LABELS, build_autoencoder, build_ldm, build_unet
from unicorn_monai.controlnets import controlnet_for
from unicorn_monai.data.items import datalist
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.diffusion import recipes
from unicorn_monai.diffusion.autoencoder import Adversary, ReconstructionSheet
from unicorn_monai.diffusion.latents import LatentDataset, latent_diffusion_of
from unicorn_monai.diffusion.recipes import (
    autoencoder_evaluator,
    autoencoder_loss,
    autoencoder_trainer,
    diffusion_evaluator,
    diffusion_trainer,
)
from unicorn_monai.diffusion.task import ControlNetTask, DiffusionTask, task_latents
from unicorn_monai.diffusion.training import ControlNetInferer, NoisePredictionInferer
from unicorn_monai.images.transforms import LoadPixelsd
from unicorn_monai.system.distributed import RankSeeds, SharedOrder
from unicorn_monai.system.weights import load_weights, read_metadata, save_weights
from unicorn_monai.training.handlers import Progress, SampleImages
from unicorn_monai.training.kept_weights import EMA, BestWeights
from unicorn_monai.training.settings import AutoencoderSettings, DiffusionSettings
from unicorn_monai.training.state import TrainingState, read_whole
from unicorn_monai.training.steps import ClipGradients

SIZE = 16
DIFFUSION = ["LrScheduleHandler", "ClipGradients", "EMA", "ValidationHandler", "BestWeights", "Progress"]
DIFFUSION += ["SampleImages", "TrainingState"]
AUTOENCODER = ["LrScheduleHandler", "ValidationHandler", "BestWeights", "Progress", "SampleImages", "TrainingState"]


class Noted:
    """A handler of one's own: the epochs that it saw the end of."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: self.seen.append(e.state.epoch))


class OwnInferer(NoisePredictionInferer):
    """One that takes part as a handler and has a state to save, as layout supervision."""

    def __init__(self, task) -> None:
        super().__init__(task)
        self.saved, self.attached = {"own": nn.Linear(1, 1)}, []

    def attach(self, engine) -> None:
        self.attached.append(engine)


@pytest.fixture
def data(tmp_path):
    labels, random = {i: str(i) for i in range(LABELS)}, np.random.default_rng(0)
    with DatasetWriter(tmp_path / "data", About(name="n", device="d", labels=labels)) as writer:
        for split, count in (("training", 6), ("validation", 3)):
            for i in range(count):
                image, label = (random.integers(0, high, (SIZE, SIZE), np.uint8) for high in (255, LABELS))
                writer.add(split, image, label, subject=f"{split}{i}")
    return tmp_path / "data"


@pytest.fixture
def settings(tmp_path):
    def make(kind=DiffusionSettings, **changes):
        places = {"output_dir": tmp_path / "output", "ckpt_dir": tmp_path / "models"}
        return kind(**places | {"max_epochs": 2, "batch_size": 2, "iterations_per_epoch": 3} | changes)

    return make


@pytest.fixture
def attached(monkeypatch) -> list[str]:
    """Names of the handlers of a trainer, in the order in which they are attached to it."""
    names = []
    for kind in (recipes.LrScheduleHandler, ClipGradients, EMA, recipes.ValidationHandler, BestWeights, Progress,
                 SampleImages, TrainingState, RankSeeds, Noted):  # fmt: skip

        def noted(self, engine, attach=kind.attach, name=kind.__name__):
            if not isinstance(engine, SupervisedEvaluator):
                names.append(name)
            return attach(self, engine)

        monkeypatch.setattr(kind, "attach", noted)
    return names


@pytest.fixture
def one_of_several(tmp_path):
    """This process as the only one of several that train together."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    idist.sync()
    yield
    idist.finalize()  # Ignite would go on as if there were several


def diffusion(data: Path, root: Path, settings: DiffusionSettings, inferer=NoisePredictionInferer, handlers=()):
    """A training of a U-Net: trainer, evaluator, its task and the averaged network."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder()
    save_weights(autoencoder, root / "bundle" / "models" / "autoencoder.pt")
    dataset = LatentDataset(data, "training", autoencoder, root / "cache", mirror=True)
    network = build_unet().requires_grad_(True).train()
    averaged, model = copy.deepcopy(network), build_ldm()
    ldm = latent_diffusion_of(dataset, averaged, model.scheduler, model.train_scheduler, root / "bundle")
    task = DiffusionTask(ldm, settings)
    evaluator = diffusion_evaluator(task, averaged, LatentDataset(data, "validation", autoencoder, root / "cache"))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    sheets = SampleImages(lambda: torch.zeros(1, 2, 1, 4, 4), Path(settings.output_dir) / task.samples, 1)
    trainer = diffusion_trainer(
        task, settings.max_epochs, network, optimizer, inferer(task), dataset, evaluator, [sheets, *handlers]
    )
    return trainer, evaluator, task, averaged


def autoencoder(data: Path, settings: AutoencoderSettings, handlers=(), evaluating=()):
    """A training of an autoencoder: trainer, evaluator and the network."""
    torch.manual_seed(0)
    network = build_autoencoder().requires_grad_(True).train()
    judge = PatchDiscriminator(spatial_dims=2, in_channels=1, channels=4, num_layers_d=1)
    adversary = Adversary(judge, torch.optim.SGD(judge.parameters(), lr=0.01), autoencoder_loss(settings))
    images = [
        CacheDataset(datalist(data, split), LoadPixelsd(["image"]), progress=False)
        for split in ("training", "validation")
    ]
    evaluator = autoencoder_evaluator(settings, network, images[1], evaluating)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    trained = autoencoder_trainer(
        settings, settings.max_epochs, network, adversary, optimizer, images[0], evaluator, handlers
    )
    return trained, evaluator


# ---------------------------------------------------------------- noise predictors


def test_handlers_are_attached_in_order_and_those_given_come_before_what_saves(data, tmp_path, settings, attached):
    diffusion(data, tmp_path, settings(), handlers=[Noted()])
    assert attached == [*DIFFUSION[:-1], "Noted", DIFFUSION[-1]]


def test_a_training_leaves_averaged_weights_a_state_and_sheets(data, tmp_path, settings):
    own = Noted()
    trainer, evaluator, task, averaged = diffusion(data, tmp_path, settings(), handlers=[own])
    trainer.run()
    assert (trainer.state.iteration, own.seen) == (6, [1, 2])
    stored = read_metadata(tmp_path / "models" / "model.pt")
    assert stored["val_loss"] <= evaluator.state.metrics["val_loss"]
    assert {key: stored[key] for key in task.belongs_to()} == task.belongs_to()
    load_weights(build_unet(), tmp_path / "models" / "model.pt")
    saved = read_whole(tmp_path / "models" / "last.pt")["objects"]
    assert saved.keys() == {"network", "optimizer", "lr", "ema", "best"}
    means = averaged.state_dict()
    assert all(torch.equal(saved["ema"]["averaged"][key], value) for key, value in means.items())
    assert any(not torch.equal(saved["network"][key], value) for key, value in means.items())
    sheets = sorted(path.name for path in (tmp_path / "output" / "diffusion").glob("*.png"))
    assert sheets == ["epoch_0001.png", "epoch_0002.png"]


def test_a_training_goes_on_where_it_was(data, tmp_path, settings):
    diffusion(data, tmp_path, settings(max_epochs=1))[0].run()
    trainer = diffusion(data, tmp_path, settings(resume=True))[0]
    trainer.run()
    assert (trainer.state.epoch, trainer.state.iteration) == (2, 6)


def test_an_inferer_that_can_be_attached_takes_part_and_is_saved_with_the_rest(data, tmp_path, settings):
    trainer, *_ = diffusion(data, tmp_path, settings(max_epochs=1), inferer=OwnInferer)
    assert trainer.inferer.attached == [trainer]
    trainer.run()
    saved = read_whole(tmp_path / "models" / "last.pt")["objects"]
    assert torch.equal(saved["own"]["weight"], trainer.inferer.saved["own"].weight)


def test_the_settings_are_those_of_the_engines(data, tmp_path, settings):
    chosen = settings(accumulation_steps=3, iterations_per_epoch=5, val_interval=2, precision="bfloat16")
    trainer, evaluator, _, averaged = diffusion(data, tmp_path, chosen)
    assert isinstance(trainer, SupervisedTrainer)
    assert (trainer.state.max_epochs, len(trainer.data_loader), trainer.accumulation_steps) == (2, 5, 3)
    assert trainer.data_loader.batch_size == 2
    assert evaluator.network is averaged
    assert not trainer.prepare_batch.fixed
    assert evaluator.prepare_batch.fixed
    assert trainer.inferer.precision == evaluator.inferer.precision == "bfloat16"
    evaluator.run()
    assert list(evaluator.state.metrics) == ["val_loss"]


def test_a_controlnet_is_validated_with_its_unet(data, tmp_path, settings):
    ldm = build_ldm(bundle_root=tmp_path / "bundle")
    task = ControlNetTask(ldm, "semantic", settings(), LABELS)
    network = controlnet_for(ldm.unet, LABELS, (4, 8, 8))
    evaluator = diffusion_evaluator(task, network, task_latents(task, data, "validation"), [own := Noted()])
    assert isinstance(evaluator.inferer, ControlNetInferer)
    evaluator.run()
    fresh = evaluator.state.metrics["val_loss"]
    assert own.seen == [1]
    unconditional = DiffusionTask(ldm, settings())
    alone = diffusion_evaluator(unconditional, ldm.unet, task_latents(task, data, "validation"))
    alone.run()
    assert fresh == pytest.approx(alone.state.metrics["val_loss"], rel=1e-6)  # a fresh ControlNet changes nothing


@pytest.mark.usefixtures("one_of_several")
def test_several_processes_share_the_images_and_draw_other_numbers(data, tmp_path, settings, attached):
    trainer, evaluator, *_ = diffusion(data, tmp_path, settings(seed=5), handlers=[Noted()])
    assert attached == [*DIFFUSION[:-1], "Noted", DIFFUSION[-1], "RankSeeds"]
    assert isinstance(trainer.network, DistributedDataParallel)
    assert isinstance(trainer.data_loader.sampler, SharedOrder)
    assert len(trainer.data_loader) == 3
    assert len(evaluator.data_loader.sampler) == 3
    trainer.run()
    names = read_whole(tmp_path / "models" / "last.pt")["objects"]["network"]
    assert names.keys() == build_unet().state_dict().keys()  # those of the bare network


# ---------------------------------------------------------------- the autoencoder


def test_an_autoencoders_handlers_are_attached_in_order_those_given_before_what_saves(data, settings, attached):
    trainer, _ = autoencoder(data, settings(AutoencoderSettings), [own := Noted()], [evaluating := Noted()])
    assert attached == [*AUTOENCODER[:-1], "Noted", AUTOENCODER[-1]]
    trainer.run()
    assert (own.seen, evaluating.seen) == ([1, 2], [1, 2])


def test_an_autoencoder_leaves_its_newest_weights_a_state_and_sheets(data, tmp_path, settings):
    trainer, evaluator = autoencoder(data, settings(AutoencoderSettings))
    trainer.run()
    assert list(evaluator.state.metrics) == ["reconstruction"]
    assert (trainer.state.iteration, trainer.state.max_epochs) == (6, 2)
    newest = build_autoencoder()
    load_weights(newest, tmp_path / "models" / "autoencoder.pt")
    pairs = zip(newest.parameters(), trainer.network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    saved = read_whole(tmp_path / "models" / "autoencoder_last.pt")["objects"]
    assert saved.keys() == {"network", "discriminator", "optimizer", "discriminator_optimizer", "lr", "best"}
    assert len(list((tmp_path / "output" / "autoencoder").glob("epoch_*.png"))) == 2
    again, _ = autoencoder(data, settings(AutoencoderSettings, resume=True, max_epochs=3))
    again.run()
    assert again.state.iteration == 9


@pytest.mark.usefixtures("one_of_several")
def test_several_processes_train_an_autoencoder_and_its_opponent_together(data, tmp_path, settings, attached):
    trainer, _ = autoencoder(data, settings(AutoencoderSettings), [Noted()])
    assert attached == [*AUTOENCODER[:-1], "Noted", AUTOENCODER[-1], "RankSeeds"]
    for network in (trainer.network, trainer.discriminator):
        assert isinstance(network, DistributedDataParallel)
    assert isinstance(trainer.data_loader.sampler, SharedOrder)
    trainer.run()
    saved = read_whole(tmp_path / "models" / "autoencoder_last.pt")["objects"]
    assert saved["network"].keys() == build_autoencoder().state_dict().keys()
    assert not any(key.startswith("module.") for key in saved["discriminator"])


def test_the_weights_of_the_loss_are_those_of_the_settings(settings):
    weights = {"kl": 0.1, "spectral": 0.2, "speckle": 0.3, "adversarial": 0.4, "perceptual": 0.5}
    own = settings(AutoencoderSettings, **{f"{name}_weight": weight for name, weight in weights.items()})
    loss = autoencoder_loss(own, nn.L1Loss())
    assert loss.weights == weights
    assert isinstance(loss.perceptual, nn.L1Loss)


def test_a_sheet_shows_images_above_their_reconstructions():
    network: AutoencoderKL = build_autoencoder()
    images = [{"image": torch.rand(1, SIZE, SIZE)} for _ in range(5)]
    sheet = ReconstructionSheet(network, images, 3)()
    assert sheet.shape == (2, 3, 1, SIZE, SIZE)
    assert torch.equal(sheet[0, 0], images[0]["image"])
    torch.testing.assert_close(sheet[1], network.reconstruct(sheet[0]))
