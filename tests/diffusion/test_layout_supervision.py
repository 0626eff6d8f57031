"""Adversarial layout supervision: what it adds to the loss, which weights it moves, and its limit cases."""

from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Events
from monai.engines import IterationEvents, SupervisedTrainer
from monai.networks.nets import UNet
from monai.networks.schedulers import DDPMScheduler
from torch import nn
from torch.nn import functional

from tiny_networks import LABELS, LATENT, SCHEDULE, build_autoencoder, build_ldm, build_unet
from unicorn_monai.bundle.installation import bundle_root
from unicorn_monai.controlnets import controlnet_for
from unicorn_monai.diffusion.layout_supervision import (
    Layout,
    LayoutSupervision,
    discriminator_for,
    label_of,
    layout_mean,
)
from unicorn_monai.diffusion.task import ControlNetTask
from unicorn_monai.diffusion.training import ControlNetInferer, LatentPrepareBatch
from unicorn_monai.schedulers import DDIM, x0_and_noise
from unicorn_monai.training.settings import DiffusionSettings

BATCH, SIDE, IMAGE = 2, 4, 16


@pytest.fixture
def parts():
    torch.manual_seed(0)
    unet = build_unet()
    discriminator = UNet(2, 1, LABELS + 1, [4, 8], [2])
    return {
        "unet": unet,
        "autoencoder": build_autoencoder(),
        "network": controlnet_for(unet, LABELS, (4, 8, 8)),
        "discriminator": discriminator,
        "optimizer": torch.optim.SGD(discriminator.parameters(), 0.1),
    }


def scheduler(**changes):
    return DDPMScheduler(num_train_timesteps=1000, clip_sample=False, **(SCHEDULE | changes))


def batches(count=1):
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "mean": torch.randn(BATCH, LATENT, SIDE, SIDE, generator=generator),
            "std": torch.zeros(BATCH, LATENT, SIDE, SIDE),
            "index": torch.arange(BATCH),
            "label": torch.randint(0, LABELS, (BATCH, 1, IMAGE, IMAGE), generator=generator, dtype=torch.uint8),
        }
        for _ in range(count)
    ]


def task_of(parts, schedule=None):
    ldm = build_ldm(parts["unet"], parts["autoencoder"], train_scheduler=schedule or scheduler())
    return ControlNetTask(ldm, "semantic", DiffusionSettings(), LABELS)


def train(parts, count=1, supervised=True, seed=3, **options):
    """Train for ``count`` iterations; returns the losses, and what each iteration was."""
    torch.manual_seed(seed)
    task = task_of(parts, options.pop("schedule", None))
    inferer = ControlNetInferer(task)
    if supervised:
        inferer = LayoutSupervision(task, parts["discriminator"], parts["optimizer"], Layout(**options))
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=1, train_data_loader=batches(count), network=parts["network"],
        optimizer=torch.optim.SGD(parts["network"].parameters(), 0.1), loss_function=nn.MSELoss(), inferer=inferer,
        prepare_batch=LatentPrepareBatch(task, fixed=True), decollate=False,
    )  # fmt: skip
    losses, asked = [], []
    trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED, lambda engine: losses.append(engine.state.output["loss"].item())
    )
    if supervised:
        inferer.attach(trainer)
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: asked.append((*inferer._asked, engine.state.output["pred"]))
        )
    trainer.run()
    return losses, asked, trainer


def gradients(network):
    return [None if weight.grad is None else weight.grad.clone() for weight in network.parameters()]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_noise_plus_the_weighted_entropy_of_the_layout(parts, prediction_type):
    schedule = scheduler(prediction_type=prediction_type)
    before = copy.deepcopy(parts["discriminator"]).eval()
    plain, _, _ = train(copy.deepcopy(parts), supervised=False, schedule=schedule)
    losses, ((noisy, timesteps, conditions, prediction),), _ = train(
        parts, weight=0.3, balanced=False, schedule=schedule
    )
    x0, _ = x0_and_noise(schedule, prediction.detach(), noisy, timesteps)
    with torch.no_grad():
        logits = before(parts["autoencoder"].decode_stage_2_outputs(x0))
        entropy = functional.cross_entropy(logits, label_of(conditions["semantic"]))
    assert losses[0] == pytest.approx(plain[0] + 0.3 * entropy.item(), rel=1e-5)


def test_without_weight_the_controlnet_learns_as_before_and_the_discriminator_all_the_same(parts):
    other = copy.deepcopy(parts)
    plain, _, _ = train(other, 3, supervised=False)
    discriminator = copy.deepcopy(parts["discriminator"])
    losses, _, trainer = train(parts, 3, weight=0.0)
    assert losses == plain
    assert all(
        torch.equal(a, b) for a, b in zip(parts["network"].parameters(), other["network"].parameters(), strict=True)
    )
    assert any(
        not torch.equal(a, b)
        for a, b in zip(parts["discriminator"].parameters(), discriminator.parameters(), strict=True)
    )
    assert "layout_loss" not in trainer.state.metrics


def test_the_layout_moves_the_controlnet_and_nothing_that_is_frozen(parts):
    frozen = copy.deepcopy([parts["unet"].state_dict(), parts["autoencoder"].state_dict()])
    other = copy.deepcopy(parts)
    train(other, 2, supervised=False)
    _, _, trainer = train(parts, 2, weight=1.0)
    assert any(
        not torch.equal(a, b) for a, b in zip(gradients(parts["network"]), gradients(other["network"]), strict=True)
    )
    for network, state in zip((parts["unet"], parts["autoencoder"]), frozen, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert trainer.state.metrics["layout_loss"] > 0
    assert trainer.state.metrics["discriminator_loss"] > 0


def test_the_discriminator_learns_the_labels_and_what_is_fake(parts):
    parts["optimizer"] = torch.optim.Adam(parts["discriminator"].parameters(), 1e-2)
    _, _, trainer = train(parts, 1, weight=0.0, fake_weight=1.0)
    first = trainer.state.metrics["discriminator_loss"]
    for _ in range(60):
        _, _, trainer = train(parts, 1, weight=0.0, fake_weight=1.0)
    assert trainer.state.metrics["discriminator_loss"] < 0.8 * first


def test_the_weight_rises_after_the_start():
    layout = Layout(weight=0.2, start=10, ramp=20)
    assert [layout.weight_at(i) for i in (1, 10, 20, 30, 100)] == pytest.approx([0, 0, 0.1, 0.2, 0.2])
    assert [Layout(weight=0.2, start=10, ramp=0).weight_at(i) for i in (10, 11)] == [0, 0.2]


def test_the_discriminator_is_saved_with_the_training(parts):
    inferer = LayoutSupervision(task_of(parts), parts["discriminator"], parts["optimizer"])
    assert inferer.saved == {"discriminator": parts["discriminator"], "discriminator_optimizer": parts["optimizer"]}


# ---------------------------------------------------------------- unrolling


def test_unrolled_predictions_are_those_of_ddim(parts):
    k, stride = 4, 100
    before, network = copy.deepcopy(parts["discriminator"]).eval(), copy.deepcopy(parts["network"])
    plain, _, _ = train(copy.deepcopy(parts), supervised=False)
    losses, ((noisy, timesteps, conditions, _),), _ = train(parts, weight=1.0, balanced=False, unroll=k, stride=stride)
    label, entropies = label_of(conditions["semantic"]), []
    ddim = [DDIM(1000, **SCHEDULE) for _ in range(BATCH)]
    inferer = ControlNetInferer(task_of(parts))
    with torch.no_grad():
        for _ in range(k):
            output = inferer.predict(noisy, network, timesteps, conditions)
            following = (timesteps - stride).clamp(min=0)
            steps = []
            for i in range(BATCH):
                ddim[i].timesteps = torch.stack([timesteps[i], following[i]])
                steps.append(ddim[i].step(output[i : i + 1], int(timesteps[i]), noisy[i : i + 1]))
            x0 = torch.cat([clean for _, clean in steps])
            logits = before(parts["autoencoder"].decode_stage_2_outputs(x0))
            entropies.append(functional.cross_entropy(logits, label).item())
            noisy, timesteps = torch.cat([x for x, _ in steps]), following
    assert losses[0] == pytest.approx(plain[0] + sum(entropies) / k, rel=1e-4)


def test_the_gradient_of_unrolling_is_that_of_the_first_prediction_with_other_weights_of_the_pixels(parts):
    """If the later predictions are as bad as the first, nothing changes: stride 0 would ask the same again."""
    once, several = copy.deepcopy(parts), copy.deepcopy(parts)
    train(once, weight=1.0)
    train(several, weight=1.0, unroll=3, stride=1)
    pairs = [
        (a.flatten(), b.flatten())
        for a, b in zip(gradients(once["network"]), gradients(several["network"]), strict=True)
    ]
    a, b = (torch.cat(side) for side in zip(*pairs, strict=True))
    assert functional.cosine_similarity(a, b, dim=0) > 0.99
    assert not torch.equal(a, b)


# ---------------------------------------------------------------- parts


def test_a_balanced_mean_gives_every_label_the_same_weight():
    entropy = torch.tensor([[[1.0, 1.0, 1.0, 5.0]]])
    label = torch.tensor([[[0, 0, 0, 2]]])
    assert layout_mean(entropy, label).item() == pytest.approx(3.0)
    assert layout_mean(entropy, label, balanced=False).item() == pytest.approx(2.0)
    ignored = torch.tensor([[[255, 0, 255, 2]]])
    assert layout_mean(entropy, ignored).item() == pytest.approx(3.0)
    assert layout_mean(entropy, torch.full_like(label, 255)).item() == 0
    assert layout_mean(entropy, torch.full_like(label, 255), balanced=False).item() == 0


def test_pixels_without_a_label_are_ignored():
    one_hot = torch.zeros(1, 3, 1, 2)
    one_hot[0, 2, 0, 0] = 1
    assert label_of(one_hot).tolist() == [[[2, 255]]]


def test_the_discriminator_is_the_segmentation_network_with_one_label_more():
    net = discriminator_for(bundle_root("retinal_unet"), LABELS)
    assert isinstance(net, UNet)
    assert net(torch.zeros(1, 1, 2 * IMAGE, 2 * IMAGE)).shape == (1, LABELS + 1, 2 * IMAGE, 2 * IMAGE)


def test_logits_of_another_resolution_are_brought_to_that_of_the_label_map(parts):
    parts["discriminator"] = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, LABELS + 1, 1))
    parts["optimizer"] = torch.optim.SGD(parts["discriminator"].parameters(), 0.1)
    train(parts, 1, weight=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unroll": 0}, "unroll is 0, stride 40; expected at least 1"),
        ({"stride": 0}, "stride 0; expected at least 1"),
        ({"weight": -0.1}, r"The weights are -0\.1 and"),
        ({"ramp": -1}, "ramp -1; expected numbers of iterations"),
    ],
)
def test_settings_that_cannot_be_are_refused(parts, options, message):
    with pytest.raises(ValueError, match=message):
        train(parts, **options)
