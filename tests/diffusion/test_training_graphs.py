"""CUDA graphs of a training change nothing but the time: the same losses and weights, step by step."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.networks.nets import PatchDiscriminator, UNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tiny_networks import LABELS, LATENT, build_autoencoder, build_ldm, build_unet
from unicorn_monai.controlnets import controlnet_for
from unicorn_monai.diffusion.autoencoder import Adversary, AutoencoderLoss, AutoencoderTrainer
from unicorn_monai.diffusion.layout_supervision import LayoutSupervision
from unicorn_monai.diffusion.task import ControlNetTask, DiffusionTask
from unicorn_monai.diffusion.training import ControlNetInferer, NoisePredictionInferer
from unicorn_monai.segmentation.training import SegmentationInferer
from unicorn_monai.system.cuda_graphs import TrainingGraphs
from unicorn_monai.training.settings import AutoencoderSettings, DiffusionSettings

BATCH, SIDE, IMAGE, STEPS = 4, 8, 32, 4
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
precisions = pytest.mark.parametrize("precision", ["float32", "bfloat16"])


def batches(count: int) -> list[dict]:
    """What a training sees, the same at every call; the last batch is smaller."""
    generator = torch.Generator().manual_seed(3)
    sizes = [BATCH] * (count - 1) + [BATCH - 1]
    return [
        {
            "image": torch.rand(n, 1, IMAGE, IMAGE, generator=generator),
            "latents": torch.randn(n, LATENT, SIDE, SIDE, generator=generator),
            "noise": torch.randn(n, LATENT, SIDE, SIDE, generator=generator),
            "timesteps": torch.randint(0, 1000, (n,), generator=generator),
            "label": torch.randint(0, LABELS, (n, 1, IMAGE, IMAGE), generator=generator),
            "semantic": torch.rand(n, LABELS, IMAGE, IMAGE, generator=generator),
            "uncertainty": torch.randn(n, 1, 1, 1, generator=generator).expand(-1, 1, IMAGE, IMAGE),
        }
        for n in sizes
    ]


def noised(batch, device, non_blocking, **_):
    """What ``LatentPrepareBatch`` gives."""
    moved = {key: value.to(device) for key, value in batch.items()}
    conditions = {key: moved[key] for key in ("noise", "timesteps", "semantic", "uncertainty")}
    return moved["latents"], moved["noise"], (), conditions


def labelled(batch, device, non_blocking, **_):
    """Images and label maps."""
    return batch["image"].to(device), batch["label"].to(device)


def diffusion(**options):
    unet, settings = build_unet().requires_grad_(True), DiffusionSettings(device=torch.device("cuda"), **options)
    return unet, NoisePredictionInferer(DiffusionTask(build_ldm(unet), settings)), noised, nn.MSELoss()


def controlnet(**options):
    unet, settings = build_unet(), DiffusionSettings(device=torch.device("cuda"), **options)
    base, network = controlnet_for(unet, 1, (4, 8, 8)), controlnet_for(unet, LABELS, (4, 8, 8))
    for zero in (*base.parameters(), *network.parameters()):
        nn.init.normal_(zero, std=0.05)  # their last convolutions start at zero, which would hide the rest
    unet, base = unet.to("cuda"), base.to("cuda").requires_grad_(False)
    task = ControlNetTask(build_ldm(unet), "semantic", settings, LABELS, base=base)
    return network, ControlNetInferer(task), noised, nn.MSELoss()


def segmentation(**options):
    def loss(logits, label):
        return nn.functional.cross_entropy(logits, label[:, 0])

    return UNet(2, 1, LABELS, [4, 8], [2]), SegmentationInferer(**options), labelled, loss


def train(make, accumulation: int = 1, forget: bool = False, **options) -> tuple[list[float], list[torch.Tensor]]:
    """Losses and last weights of a training by MONAI's trainer on the GPU."""
    torch.manual_seed(0)
    network, inferer, prepare, loss = make(**options)
    network = network.to("cuda").train()
    losses = list[float]()
    trainer = SupervisedTrainer(
        torch.device("cuda"),
        1,
        batches(STEPS * accumulation),
        network,
        torch.optim.SGD(network.parameters(), 0.1, momentum=0.9),
        loss,
        prepare_batch=prepare,
        inferer=inferer,
        accumulation_steps=accumulation,
        optim_set_to_none=forget,
        decollate=False,
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output["loss"].item()))
    trainer.run()
    return losses, [weight.detach() for weight in network.parameters()]


@gpu
@precisions
@pytest.mark.parametrize("make", [diffusion, controlnet, segmentation])
@pytest.mark.parametrize("options", [{}, {"accumulation": 2}, {"forget": True}, {"forget": True, "accumulation": 2}])
def test_a_replayed_training_step_is_the_step(make, precision, options):
    (losses, weights), (wanted, same) = (
        train(make, precision=precision, cuda_graphs=g, **options) for g in (True, False)
    )
    assert len(losses) == STEPS * options.get("accumulation", 1)
    torch.testing.assert_close(losses, wanted, rtol=2e-3, atol=1e-5)
    for found, expected in zip(weights, same, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-4)


@gpu
@precisions
def test_an_autoencoder_draws_the_same_latents_from_a_graph(precision):
    def run(graphs):
        torch.manual_seed(0)
        network = build_autoencoder().to("cuda").requires_grad_(True)
        discriminator = PatchDiscriminator(2, 4, 1, num_layers_d=1).to("cuda")
        own, others = (torch.optim.SGD(n.parameters(), 0.01) for n in (network, discriminator))
        losses = list[float]()
        loss = AutoencoderLoss(speckle_weight=0.0)
        settings = AutoencoderSettings(
            device=torch.device("cuda"), adversarial_start=1, precision=precision, cuda_graphs=graphs
        )
        adversary = Adversary(discriminator, others, loss)
        trainer = AutoencoderTrainer(settings, batches(STEPS), network, adversary, own)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output[0]["loss"]))
        trainer.run()
        return losses

    torch.testing.assert_close(run(True), run(False), rtol=2e-3, atol=1e-5)


@gpu
def test_weights_that_are_changed_in_place_are_read_anew():
    network = nn.Linear(3, 2).to("cuda")
    graphs, x = TrainingGraphs(lambda inputs, net: net(inputs)), torch.rand(4, 3, device="cuda")
    graphs(x, network).sum().backward()
    with torch.no_grad():
        network.weight.mul_(2.0)
    torch.testing.assert_close(graphs(x, network), network(x))
    assert len(graphs.recordings) == 1


@gpu
def test_the_warm_up_leaves_the_statistics_of_a_normalisation_alone():
    torch.manual_seed(0)
    x, found = torch.rand(8, 3, device="cuda"), []
    for graphs in (True, False):
        network = nn.BatchNorm1d(3).to("cuda")
        forward = TrainingGraphs(lambda inputs, net: net(inputs)) if graphs else lambda inputs, net: net(inputs)
        for _ in range(2):
            forward(x, network).sum().backward()
        found.append(network.state_dict())
    torch.testing.assert_close(*found)


def test_without_gradients_the_function_itself_runs():
    network = nn.Linear(3, 2)
    with torch.no_grad():
        x = torch.rand(4, 3)
        assert torch.equal(TrainingGraphs(lambda inputs, net: net(inputs))(x, network), network(x))


def test_tensors_that_are_not_on_a_gpu_are_refused():
    graphs = TrainingGraphs(lambda inputs, net: net(inputs))
    with pytest.raises(ValueError, match=r"cuda_graphs is on, but there are tensors on \['cpu'\]; expected a GPU"):
        graphs(torch.rand(4, 3), nn.Linear(3, 2))


def test_several_processes_are_refused():
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    with pytest.raises(ValueError, match="several processes train together"):
        TrainingGraphs(lambda inputs, net: net(inputs))(torch.rand(4, 3), wrapped)


def test_layout_supervision_is_refused(monkeypatch):
    monkeypatch.setattr("unicorn_monai.training.settings.check_settings", lambda **_: None)  # graphs need a GPU
    task = ControlNetTask(build_ldm(), "semantic", DiffusionSettings(cuda_graphs=True), LABELS)
    with pytest.raises(ValueError, match="layout supervision decides anew at every step"):
        LayoutSupervision(task, nn.Linear(1, 1), torch.optim.SGD([torch.zeros(1)]))
