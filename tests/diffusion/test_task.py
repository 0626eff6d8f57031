"""A training put together by hand from a latent diffusion model: what it sees, drops, saves and draws samples with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.networks.schedulers import DDPMScheduler
from torch import nn

from tiny_networks import COARSE, LABELS, LATENT, SCHEDULE, Words, build_ldm
from unicorn_monai.controlnets import controlnet_for
from unicorn_monai.data.items import datalist
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.diffusion.latents import LatentLoader, Uncertainties
from unicorn_monai.diffusion.task import ControlNetTask, DiffusionTask, task_latents
from unicorn_monai.diffusion.training import ControlNetInferer, LatentPrepareBatch
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.schedulers import DDIM
from unicorn_monai.synthesis.sheets import RISING, samples_of
from unicorn_monai.system.files import write_json
from unicorn_monai.system.weights import save_weights, sha256
from unicorn_monai.training.settings import DiffusionSettings

SIZE = 16
PRIOR = UncertaintyPrior(mean=0.2, std=0.05, scaling="zscore", offset=0.1, scale=0.05, segmentation_sha256="x")


@pytest.fixture
def data(tmp_path):
    """Six labelled images for training, nine for validation, and the uncertainty of each."""
    labels, random = {i: str(i) for i in range(LABELS)}, np.random.default_rng(0)
    with DatasetWriter(tmp_path / "data", About(name="n", device="d", labels=labels)) as writer:
        for split, count in (("training", 6), ("validation", 9)):
            for i in range(count):
                image, label = (random.integers(0, high, (SIZE, SIZE), np.uint8) for high in (255, LABELS))
                writer.add(split, image, label, subject=f"{split}{i}")
    images = [item["image"] for item in datalist(tmp_path / "data", ["training", "validation"])]
    table = {image: i / 20 for i, image in enumerate(images)}
    write_json(tmp_path / "uncertainties.json", {"segmentation_sha256": "x", "images": table})
    return tmp_path / "data"


@pytest.fixture
def ldm(unet, autoencoder, tmp_path):
    save_weights(autoencoder, tmp_path / "bundle" / "models" / "autoencoder.pt")
    return build_ldm(unet, autoencoder, scale_factor=1.5, bundle_root=tmp_path / "bundle")


def settings(**changes) -> DiffusionSettings:
    return DiffusionSettings(**({"num_inference_steps": 2} | changes))


@pytest.mark.parametrize("condition", ["semantic", "uncertainty"])
def test_a_controlnet_is_trained_on_a_model_put_together_by_hand(ldm, data, tmp_path, condition):
    uncertainties = Uncertainties(tmp_path / "uncertainties.json", "x")
    base = controlnet_for(ldm.unet, 1, (4, 8, 8)).eval() if condition == "semantic" else None
    parts = (LABELS if condition == "semantic" else None, PRIOR, uncertainties, base)
    task = ControlNetTask(ldm, condition, settings(), *parts)
    network = controlnet_for(ldm.unet, LABELS if condition == "semantic" else 1, (4, 8, 8))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    frozen = {key: value.clone() for key, value in ldm.unet.state_dict().items()}
    dataset = task_latents(task, data, "training")
    trainer = SupervisedTrainer(
        torch.device("cpu"), 1, LatentLoader(dataset, 4, shuffle=True), network,
        torch.optim.SGD(network.parameters(), 0.1), nn.MSELoss(), prepare_batch=LatentPrepareBatch(task),
        inferer=ControlNetInferer(task), decollate=False,
    )  # fmt: skip
    trainer.run()
    assert trainer.state.iteration == 2
    assert any(not torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(torch.equal(value, frozen[key]) for key, value in ldm.unet.state_dict().items())
    assert samples_of(task, network, data if condition == "semantic" else None).sampler().shape == (1, 8, 1, SIZE, SIZE)


def test_a_task_gives_its_latents_with_what_its_network_sees(ldm, data, tmp_path):
    uncertainties = Uncertainties(tmp_path / "uncertainties.json", "x")
    both = ControlNetTask(ldm, "semantic", settings(), LABELS, PRIOR, uncertainties)
    train, validation = (task_latents(both, data, split) for split in ("training", "validation"))
    assert (len(train), len(validation)) == (6, 9)
    assert (train.mirror, validation.mirror) == (True, False)
    assert validation[2].keys() == {"mean", "std", "index", "label", "uncertainty"}
    assert validation[2]["uncertainty"].item() == pytest.approx(8 / 20)
    assert list((tmp_path / "bundle" / "models" / "latents").glob("*.safetensors"))
    alone = task_latents(ControlNetTask(ldm, "uncertainty", settings(), None, PRIOR, uncertainties), data, "validation")
    assert alone[0].keys() == {"mean", "std", "index", "uncertainty"}


def test_latents_need_a_place_to_be_kept(ldm, data):
    task = ControlNetTask(replace(ldm, bundle_root=None), "semantic", settings(), LABELS)
    with pytest.raises(ValueError, match="has no bundle, so its latents have no place to be kept"):
        task_latents(task, data, "training")


@pytest.mark.parametrize(
    ("condition", "parts", "message"),
    [
        ("semantic", {"prior": PRIOR}, "'semantic' needs num_labels"),
        ("uncertainty", {"num_labels": LABELS}, "'uncertainty' needs a prior"),
        ("semantic", {"num_labels": LABELS, "base": nn.Identity()}, "'semantic' with a base needs a prior"),
    ],
)
def test_a_task_is_refused_without_what_its_network_sees(ldm, condition, parts, message):
    with pytest.raises(ValueError, match=message):
        ControlNetTask(ldm, condition, settings(), **parts)


def test_samples_are_drawn_by_what_the_network_learns_to_predict(ldm):
    velocity = DDPMScheduler(1000, clip_sample=False, prediction_type="v_prediction", **SCHEDULE)
    with pytest.raises(ValueError, match="scheduler has prediction_type 'epsilon', train_scheduler 'v_prediction'"):
        replace(ldm, train_scheduler=velocity)


def test_what_belongs_to_the_weights_of_a_unet_tells_how_its_latents_were_made(ldm, tmp_path):
    autoencoder = tmp_path / "bundle" / "models" / "autoencoder.pt"
    assert DiffusionTask(ldm, settings()).belongs_to() == {
        "scale_factor": 1.5,
        "latent_shape": [LATENT, 4, 4],
        "prediction_type": "epsilon",
        "autoencoder_sha256": sha256(autoencoder),
    }
    velocity = DDPMScheduler(1000, clip_sample=False, prediction_type="v_prediction", **SCHEDULE)
    task = DiffusionTask(replace(ldm, scheduler=velocity, train_scheduler=velocity), settings(num_inference_steps=1000))
    assert task.belongs_to()["prediction_type"] == "v_prediction"


def test_what_belongs_to_the_weights_of_a_controlnet_is_what_it_was_trained_on(ldm):
    told = {"unet_sha256": "a"}
    assert ControlNetTask(ldm, "semantic", settings(), LABELS, trained_on=told).belongs_to() == told
    assert ControlNetTask(ldm, "semantic", settings(), LABELS).belongs_to() == {}


@pytest.mark.parametrize(
    ("condition", "told", "share"),
    [(None, None, 0.0), ("semantic", None, 0.0), ("uncertainty", None, 0.5), ("uncertainty", 0.1, 0.1), (None, 1, 1)],
)
def test_the_uncertainty_controlnet_loses_half_of_its_prompts_unless_told_otherwise(condition, told, share):
    ldm, chosen = build_ldm(text=Words(torch.zeros(1, 2, 3))), settings(prompt_dropout=told)
    task = DiffusionTask(ldm, chosen) if condition is None else ControlNetTask(ldm, condition, chosen, LABELS, PRIOR)
    assert task.prompt_dropout == share


@pytest.mark.parametrize("guidance", [(1.0, 1.0), (3.0, 2.0)])
@torch.no_grad()
def test_samples_are_drawn_with_the_network_in_training_on_top_of_the_frozen_one(ldm, label_maps, guidance):
    """Uncertainty alone: of full weight. Label map: on top of the base, of full weight both, or alone."""
    x, t, hint = torch.randn(2, LATENT, 4, 4), torch.tensor([20, 7]), torch.randn(2, 1, 1, 1).expand(-1, 1, SIZE, SIZE)
    semantic, style = (controlnet_for(ldm.unet, channels, (4, 8, 8)).eval() for channels in (LABELS, 1))
    for network in (semantic, style):
        for weight in network.parameters():
            nn.init.normal_(weight, std=0.1)
    maps, chosen = label_maps(2), settings(guidance=guidance)

    def added(*nets):
        parts = [net(x, t, controlnet_cond=condition) for net, condition in nets]
        down = [sum(several) for several in zip(*(down for down, _ in parts), strict=True)]
        mid = sum(mid for _, mid in parts)
        return ldm.unet(x, t, down_block_additional_residuals=down, mid_block_additional_residual=mid)

    alone, (g_unc, g_sem) = ldm.unet(x, t), guidance
    own = ControlNetTask(ldm, "uncertainty", chosen, prior=PRIOR).inferer(style)
    wanted = alone + g_unc * (added((style, hint)) - alone)
    torch.testing.assert_close(own(x, t, maps, hint), wanted, rtol=1e-4, atol=1e-4)

    on_top = ControlNetTask(ldm, "semantic", chosen, LABELS, PRIOR, base=style).inferer(semantic)
    wanted = wanted + g_sem * (added((semantic, maps), (style, hint)) - added((style, hint)))
    torch.testing.assert_close(on_top(x, t, maps, hint), wanted, rtol=1e-4, atol=1e-4)

    by_itself = ControlNetTask(ldm, "semantic", chosen, LABELS).inferer(semantic)
    wanted = alone + g_sem * (added((semantic, maps)) - alone)
    torch.testing.assert_close(by_itself(x, t, maps, hint), wanted, rtol=1e-4, atol=1e-4)


def test_samples_of_a_unet_are_those_of_the_averaged_one(ldm, unet):
    other = build_ldm().unet
    assert DiffusionTask(ldm, settings()).inferer(other).ldm == replace(ldm, unet=other)
    sheet = samples_of(DiffusionTask(ldm, settings(seed=3)), unet).sampler
    assert [request.uncertainty for request in sheet.requests] == [None] * 8
    assert sheet.requests.seed == 3
    assert sheet.generator.steps == 2


def test_a_sheet_asks_for_rising_uncertainties_or_for_label_maps_of_the_validation(ldm, data):
    style = samples_of(
        ControlNetTask(ldm, "uncertainty", settings(), prior=PRIOR), controlnet_for(ldm.unet, 1, (4, 8, 8))
    ).sampler
    assert [request.uncertainty for request in style.requests] == list(RISING) == sorted(RISING)
    semantic = controlnet_for(ldm.unet, LABELS, (4, 8, 8))
    maps = samples_of(ControlNetTask(ldm, "semantic", settings(), LABELS, PRIOR), semantic, data).sampler
    known = {item["label"] for item in datalist(data, "validation", ("image", "label"))}
    assert {request.label for request in maps.requests} <= known
    assert len({request.uncertainty for request in maps.requests}) == 8  # drawn from the prior


def test_a_sheet_names_the_sub_domains_in_turn(unet, autoencoder):
    words = Words(torch.zeros(1, 2, 3), template=lambda _, subdomain: f"a {subdomain}", subdomains=["fog", "night"])
    sheet = samples_of(DiffusionTask(build_ldm(unet, autoencoder, text=words), settings()), unet).sampler
    assert [request.prompt for request in sheet.requests] == ["a fog", "a night"] * 4


def test_an_unknown_condition_is_refused(ldm):
    with pytest.raises(ValueError, match=r"Unknown condition 'style'; expected one of \['semantic', 'uncertainty'\]"):
        ControlNetTask(ldm, "style", settings())


def test_steps_that_the_scheduler_cannot_do_are_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match="num_inference_steps is 51; expected 1 to 50"):
        DiffusionTask(build_ldm(scheduler=DDIM(50, **COARSE)), settings(num_inference_steps=51))
