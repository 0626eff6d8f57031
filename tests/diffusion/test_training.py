"""The training glue: what is shown to a network, what is asked of it, and how its weights move."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.networks.nets import PatchDiscriminator
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tiny_networks import LABELS, LATENT, SCHEDULE, Words, build_autoencoder, build_ldm, build_unet
from unicorn_monai.controlnets import controlnet_for
from unicorn_monai.diffusion.autoencoder import Adversary, AutoencoderLoss, AutoencoderTrainer, reconstruction_metric
from unicorn_monai.diffusion.task import ControlNetTask, DiffusionTask
from unicorn_monai.diffusion.training import ControlNetInferer, LatentPrepareBatch, NoisePredictionInferer
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.system.errors import NotFinite
from unicorn_monai.training.kept_weights import EMA
from unicorn_monai.training.settings import AutoencoderSettings, DiffusionSettings
from unicorn_monai.training.steps import ClipGradients, WarmupCosine, WarmupHold, autocast_settings, loss_metric

BATCH, SIDE, IMAGE = 4, 4, 16
PRIOR = UncertaintyPrior(mean=0.2, std=0.05, scaling="zscore", offset=0.1, scale=0.05, segmentation_sha256="x")


def scheduler(**changes) -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=1000, clip_sample=False, **(SCHEDULE | changes))


def task_of(unet=None, condition=None, text=None, noise=None, scale=1.0, parts=None, **settings) -> DiffusionTask:
    """A training of a model put together by hand; ``parts`` are those of a ControlNet's."""
    ldm = build_ldm(unet, train_scheduler=noise or scheduler(), scale_factor=scale, text=text)
    if condition is None:
        return DiffusionTask(ldm, DiffusionSettings(**settings))
    return ControlNetTask(ldm, condition, DiffusionSettings(**settings), **(parts or {}))


def prepare_of(fixed: bool = False, **options) -> LatentPrepareBatch:
    return LatentPrepareBatch(task_of(**options), fixed)


SEMANTIC = {"condition": "semantic", "parts": {"num_labels": LABELS}}
STYLE = {"condition": "uncertainty", "parts": {"prior": PRIOR}}
BOTH = {"condition": "semantic", "parts": {"num_labels": LABELS, "prior": PRIOR}}


def on_top_of(base) -> dict:
    return {"condition": "semantic", "parts": {"num_labels": LABELS, "prior": PRIOR, "base": base}}


def batch(std: float = 0.0) -> dict[str, Tensor]:
    """What a LatentLoader gives."""
    return {
        "mean": torch.randn(BATCH, LATENT, SIDE, SIDE),
        "std": torch.full((BATCH, LATENT, SIDE, SIDE), std),
        "index": torch.arange(3, 3 + BATCH),
        "label": torch.randint(0, LABELS, (BATCH, 1, IMAGE, IMAGE), dtype=torch.uint8),
        "uncertainty": torch.tensor([0.05, 0.1, 0.15, 0.3]),
    }


# ---------------------------------------------------------------- batches


def test_latents_are_scaled_and_the_noise_is_the_target():
    data = batch()
    latents, target, args, extra = prepare_of(scale=2.5)(data)
    assert torch.equal(latents, data["mean"] * 2.5)
    assert target is extra["noise"]
    assert args == ()
    assert extra.keys() == {"noise", "timesteps"}


def test_latents_vary_as_much_as_the_autoencoder_says():
    data = batch() | {"mean": torch.zeros(BATCH, LATENT, 64, 64), "std": torch.full((BATCH, LATENT, 64, 64), 0.3)}
    latents = prepare_of(scale=2.0)(data)[0]
    assert latents.std().item() == pytest.approx(0.6, rel=0.02)


def test_timesteps_cover_the_whole_range_and_no_more():
    prepare = LatentPrepareBatch(task_of(noise=DDPMScheduler(num_train_timesteps=5, clip_sample=False, **SCHEDULE)))
    drawn = torch.cat([prepare(batch())[3]["timesteps"] for _ in range(100)])
    assert set(drawn.tolist()) == {0, 1, 2, 3, 4}


def test_a_timestep_shift_moves_the_median_to_s_over_s_plus_1():
    for shift in (1.0, 2.0, 3.0):
        prepare = prepare_of(timestep_shift=shift)
        drawn = torch.cat([prepare(batch())[3]["timesteps"] for _ in range(1000)]).float()
        assert drawn.median().item() / 1000 == pytest.approx(shift / (shift + 1), abs=0.04)
        assert drawn.min() >= 0
        assert drawn.max() <= 999
    torch.manual_seed(0)  # a large shift rounds to T, where there is no timestep
    many = {key: torch.zeros(4096, 1, 1, 1) for key in ("mean", "std")} | {"index": torch.arange(4096)}
    assert prepare_of(timestep_shift=1e5)(many)[3]["timesteps"].max() == 999
    with pytest.raises(ValueError, match="timestep_shift is 0; expected a number above 0"):
        prepare_of(timestep_shift=0)


def test_a_validation_batch_has_the_same_noise_at_every_call_and_evenly_spread_timesteps():
    prepare, data = prepare_of(fixed=True), batch(std=0.5)
    (first, noise, _, extra), (again, same_noise, _, _) = prepare(data), prepare(data)
    assert torch.equal(first, again)
    assert torch.equal(noise, same_noise)
    assert extra["timesteps"].tolist() == [125, 375, 625, 875]
    other = prepare(data | {"index": data["index"] + BATCH})[1]
    assert not torch.equal(noise, other)


def test_a_validation_batch_leaves_the_random_numbers_of_the_training_alone():
    prepare, data = prepare_of(fixed=True), batch()
    before = torch.get_rng_state()
    prepare(data)
    assert torch.equal(torch.get_rng_state(), before)


def test_label_maps_become_one_hot_and_uncertainties_constant_images():
    data = batch()
    data |= {key: data[key].repeat(1, 1, 1, 2) for key in ("mean", "std", "label")}
    extra = prepare_of(**BOTH)(data)[3]
    assert torch.equal(extra["semantic"].argmax(dim=1, keepdim=True), data["label"].long())
    assert extra["uncertainty"].shape == (BATCH, 1, IMAGE, 2 * IMAGE)
    wanted = PRIOR.hint(data["uncertainty"]).reshape(-1, 1, 1, 1)
    assert torch.equal(extra["uncertainty"], wanted.expand_as(extra["uncertainty"]))


def test_the_target_of_a_velocity_scheduler_is_the_velocity():
    velocity = scheduler(prediction_type="v_prediction")
    latents, target, _, extra = prepare_of(noise=velocity)(batch())
    alpha = velocity.alphas_cumprod[extra["timesteps"]].reshape(-1, 1, 1, 1)
    wanted = alpha.sqrt() * extra["noise"] - (1 - alpha).sqrt() * latents
    torch.testing.assert_close(target, wanted)


def test_a_scheduler_that_predicts_images_is_refused():
    with pytest.raises(ValueError, match="prediction_type is 'sample'; expected 'epsilon' or 'v_prediction'"):
        prepare_of(noise=scheduler(prediction_type="sample"))(batch())


# ---------------------------------------------------------------- predictions


@pytest.fixture
def noised():
    latents, noise = torch.randn(2, BATCH, LATENT, SIDE, SIDE)
    return latents, noise, torch.tensor([10, 200, 500, 900])


def test_the_noise_predictor_sees_the_noised_latent(unet, noised):
    latents, noise, timesteps = noised
    alpha = scheduler().alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    wanted = unet(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, timesteps)
    prediction = NoisePredictionInferer(task_of(unet))(latents, unet, noise=noise, timesteps=timesteps)
    torch.testing.assert_close(prediction, wanted)


def test_half_precision_is_used_inside_only(unet, noised):
    latents, noise, timesteps = noised
    exact, rough = (
        NoisePredictionInferer(task_of(unet, precision=precision))(latents, unet, noise=noise, timesteps=timesteps)
        for precision in ("float32", "bfloat16")
    )
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(rough, exact, atol=0.1, rtol=0.1)


def test_an_unknown_precision_is_refused():
    with pytest.raises(
        ValueError, match=r"Unknown precision 'float16'; expected one of \['float32', 'bfloat16', 'auto'\]"
    ):
        NoisePredictionInferer(task_of(precision="float16"))
    with pytest.raises(ValueError, match="Unknown precision 'float16'; expected 'float32', 'bfloat16' or 'auto'"):
        autocast_settings("cpu", "float16")


def test_a_fresh_controlnet_changes_nothing(unet, noised, label_maps):
    latents, noise, timesteps = noised
    fresh = controlnet_for(unet, LABELS, (4, 8, 8))
    inferer = ControlNetInferer(task_of(unet, **SEMANTIC))
    conditions = {"semantic": label_maps(BATCH), "uncertainty": torch.zeros(BATCH, 1, IMAGE, IMAGE)}
    with torch.no_grad():
        prediction = inferer(latents, fresh, noise=noise, timesteps=timesteps, **conditions)
        alone = NoisePredictionInferer(task_of(unet))(latents, unet, noise=noise, timesteps=timesteps)
    assert torch.equal(prediction, alone)


def test_the_residuals_of_a_frozen_controlnet_are_added(unet, semantic, uncertainty, noised, label_maps):
    latents, noise, timesteps = noised
    conditions = {"semantic": label_maps(BATCH), "uncertainty": torch.full((BATCH, 1, IMAGE, IMAGE), 0.7)}
    inferer = ControlNetInferer(task_of(unet, **on_top_of(uncertainty)))
    prediction = inferer(latents, semantic, noise=noise, timesteps=timesteps, **conditions)

    noisy = scheduler().add_noise(latents, noise, timesteps)
    down, mid = semantic(noisy, timesteps, controlnet_cond=conditions["semantic"])
    down_u, mid_u = uncertainty(noisy, timesteps, controlnet_cond=conditions["uncertainty"])
    wanted = unet(
        noisy,
        timesteps,
        down_block_additional_residuals=[a + b for a, b in zip(down, down_u, strict=True)],
        mid_block_additional_residual=mid + mid_u,
    )
    torch.testing.assert_close(prediction, wanted)
    alone = ControlNetInferer(task_of(unet, **SEMANTIC))(
        latents, semantic, noise=noise, timesteps=timesteps, **conditions
    )
    assert not torch.allclose(prediction, alone)


def test_only_the_controlnet_in_training_gets_gradients(unet, uncertainty, noised, label_maps):
    latents, noise, timesteps = noised
    net = controlnet_for(unet, LABELS, (4, 8, 8))
    conditions = {"semantic": label_maps(BATCH), "uncertainty": torch.ones(BATCH, 1, IMAGE, IMAGE)}
    inferer = ControlNetInferer(task_of(unet, **on_top_of(uncertainty)))
    inferer(latents, net, noise=noise, timesteps=timesteps, **conditions).square().mean().backward()
    assert all(weight.grad is None for frozen in (unet, uncertainty) for weight in frozen.parameters())
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in net.parameters())


# ---------------------------------------------------------------- prompts

NULL, TOKENS, WIDTH = -1.0, 3, 5


def prompted(count: int = BATCH) -> dict[str, Tensor]:
    data = {key: value.repeat_interleave(count // BATCH, 0) for key, value in batch().items()}
    return data | {"context": torch.rand(count, TOKENS, WIDTH)}


def words() -> Words:
    return Words(torch.full((1, TOKENS, WIDTH), NULL))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_dropped_prompts_become_the_empty_prompt(share):
    data = prompted(4000)
    context = prepare_of(text=words(), prompt_dropout=share)(data)[3]["context"]
    dropped = (context == NULL).flatten(1)
    assert torch.equal(dropped.any(1), dropped.all(1))  # a prompt is dropped as a whole
    assert dropped.all(1).float().mean().item() == pytest.approx(share, abs=0.03)
    assert torch.equal(context[~dropped.all(1)], data["context"][~dropped.all(1)])


def test_half_of_the_uncertainty_controlnets_prompts_are_dropped_unless_told_otherwise():
    assert prepare_of(**STYLE, text=words()).prompt_dropout == 0.5
    assert prepare_of(**STYLE, text=words(), prompt_dropout=0.1).prompt_dropout == 0.1
    assert prepare_of(**BOTH, text=words()).prompt_dropout == 0.0
    assert prepare_of(text=words()).prompt_dropout == 0.0


def test_the_uncertainty_controlnets_prompts_are_not_kept_in_silence():
    assert "context" not in prepare_of(**STYLE)(batch())[3]  # no prompts, nothing to drop
    with pytest.raises(ValueError, match=r"prompt_dropout is 0\.5, but there are no words, so no empty prompt"):
        prepare_of(**STYLE)(prompted())
    prepare_of(**STYLE, prompt_dropout=0)(prompted())


def test_a_validation_batch_drops_the_same_prompts_at_every_call():
    prepare = prepare_of(fixed=True, text=words(), prompt_dropout=0.5)
    data = prompted()
    assert torch.equal(prepare(data)[3]["context"], prepare(data)[3]["context"])
    assert torch.equal(prepare(data)[0], prepare_of(fixed=True)(data)[0])  # and the noise stays as it was


def test_prompts_cannot_be_dropped_without_an_empty_one():
    with pytest.raises(ValueError, match=r"prompt_dropout is 0\.5, but there are no words, so no empty prompt"):
        prepare_of(prompt_dropout=0.5)
    with pytest.raises(ValueError, match=r"prompt_dropout is 1\.5; expected a share in \[0, 1\], or null"):
        prepare_of(text=words(), prompt_dropout=1.5)


def test_the_context_reaches_every_network_in_training(label_maps, noised):
    unet = build_unet(with_conditioning=True, cross_attention_dim=WIDTH)
    net, base = (controlnet_for(unet, channels, (4, 8, 8)) for channels in (LABELS, 1))
    seen = []
    for network in (unet, net, base):
        network.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["context"]), with_kwargs=True)
    latents, noise, timesteps = noised
    conditions = {"semantic": label_maps(BATCH), "uncertainty": torch.ones(BATCH, 1, IMAGE, IMAGE)}
    context = torch.randn(BATCH, TOKENS, WIDTH)
    inferer = ControlNetInferer(task_of(unet, **on_top_of(base)))
    inferer(latents, net, noise=noise, timesteps=timesteps, context=context, **conditions)
    NoisePredictionInferer(task_of(unet))(latents, unet, noise=noise, timesteps=timesteps, context=context)
    assert len(seen) == 4
    assert all(one is context for one in seen)
    with pytest.raises(ValueError, match="network was made for prompts, but there is no context"):
        inferer(latents, net, noise=noise, timesteps=timesteps, **conditions)


# ---------------------------------------------------------------- the autoencoder


def trainer(adversarial_start: int, loss: nn.Module | None = None, **changes) -> AutoencoderTrainer:
    network = build_autoencoder().requires_grad_(True)
    discriminator = PatchDiscriminator(spatial_dims=2, in_channels=1, channels=4, num_layers_d=1)
    judging = torch.optim.SGD(discriminator.parameters(), lr=0.1)
    arguments = {
        "settings": AutoencoderSettings(adversarial_start=adversarial_start),
        "train_data_loader": [{"image": torch.rand(2, 1, IMAGE, IMAGE)} for _ in range(2)],
        "network": network,
        "adversary": Adversary(discriminator, judging, loss or AutoencoderLoss()),
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.1),
    }
    return AutoencoderTrainer(**(arguments | changes))


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def changed(network: nn.Module, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(("adversarial_start", "takes_part"), [(2, False), (1, True), (0, True)])
def test_the_discriminator_takes_part_after_its_start(adversarial_start, takes_part):
    engine = trainer(adversarial_start)
    network, discriminator = weights(engine.network), weights(engine.discriminator)
    engine.run()
    assert changed(engine.network, network)
    assert changed(engine.discriminator, discriminator) == takes_part
    assert ("adversarial" in engine.state.output[0]) == takes_part
    assert ("discriminator" in engine.state.output[0]) == takes_part
    assert all(math.isfinite(v) for v in engine.state.output[0].values())


def test_the_step_of_the_autoencoder_does_not_move_the_discriminator():
    engine = trainer(0)
    engine.discriminator_optimizer = torch.optim.SGD(engine.discriminator.parameters(), lr=0.0)
    before = {key: value.clone() for key, value in engine.discriminator.named_parameters()}
    engine.run()
    assert all(torch.equal(value, before[key]) for key, value in engine.discriminator.named_parameters())


class NoGradient(nn.Module):
    """A finite loss with a gradient of NaN: sqrt(0 * x) at 0."""

    def forward(self, reconstruction, *_):
        return {"loss": (0 * reconstruction).sqrt().sum()}


def test_a_gradient_of_nan_does_not_get_into_the_autoencoder():
    engine = trainer(1, NoGradient())
    before = weights(engine.network)
    with pytest.raises(NotFinite, match="The gradient holds NaN or infinite values at iteration 1"):
        engine.run()
    assert not changed(engine.network, before)


def test_a_loader_without_batches_is_refused():
    with pytest.raises(ValueError, match=r"needs 3 training images \(batch_size\), there are 2"):
        trainer(0, train_data_loader=DataLoader([1, 2], batch_size=3, drop_last=True))  # type: ignore[arg-type]


def test_the_reconstruction_metric_is_zero_for_the_image_itself():
    metric, image = reconstruction_metric(), torch.rand(2, 1, IMAGE, IMAGE)
    metric.update((image, image))
    assert metric.compute() == pytest.approx(0, abs=1e-6)
    metric.update((image + 0.1, image))
    assert metric.compute() > 0.05


def test_a_validation_loss_is_the_mean_over_images_and_not_over_batches():
    metric = loss_metric(nn.functional.mse_loss)
    metric.update((torch.zeros(3, 1), torch.zeros(3, 1)))
    metric.update((torch.zeros(1, 1), torch.full((1, 1), 2.0)))
    assert metric.compute() == pytest.approx(1.0)


# ---------------------------------------------------------------- moving averages, gradients, learning rates


def test_the_average_of_constant_weights_is_constant():
    network = nn.Linear(3, 2)
    ema = EMA(network, averaged := nn.Linear(3, 2))
    averaged.load_state_dict(network.state_dict())
    for _ in range(20):
        ema(None)
    torch.testing.assert_close(averaged.state_dict(), network.state_dict())


def test_the_average_is_the_formula():
    network, averaged = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(averaged.weight, 5.0)
    ema, wanted = EMA(network, averaged, decay=0.3), 5.0
    for i in range(1, 8):
        nn.init.constant_(network.weight, float(i))
        ema(None)
        decay = min(0.3, (1 + i) / (10 + i))
        wanted = decay * wanted + (1 - decay) * i
        assert averaged.weight.item() == pytest.approx(wanted, rel=1e-5)
    assert not averaged.weight.requires_grad


def test_the_average_takes_over_what_is_counted_and_goes_on_after_an_interruption():
    network, averaged = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    ema = EMA(network, averaged)
    network(torch.randn(8, 2) + 3)
    ema(None)
    assert torch.equal(averaged.running_mean, network.running_mean)
    other = EMA(network, nn.BatchNorm1d(2))
    other.load_state_dict(ema.state_dict())
    nn.init.constant_(network.weight, 7.0)
    ema(None)
    other(None)
    assert torch.equal(other.averaged.weight, averaged.weight)


def test_gradients_are_clipped_by_their_norm():
    network = nn.Linear(4, 1, bias=False)
    network.weight.grad = torch.full((1, 4), 10.0)
    ClipGradients(network, max_norm=1.0)(None)
    assert network.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)
    ClipGradients(network, max_norm=5.0)(None)
    assert network.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_gradients_that_a_gradscaler_enlarged_are_clipped_as_they_are():
    network = nn.Linear(4, 1, bias=False)
    optimizer, scaler = torch.optim.SGD(network.parameters(), lr=1.0), torch.amp.GradScaler("cpu", 2.0**16)
    scaler.scale(network(torch.full((1, 4), 0.25)).sum()).backward()  # of norm 1/2
    ClipGradients(network, max_norm=1.0)(SimpleNamespace(scaler=scaler, optimizer=optimizer))
    before = network.weight.detach().clone()
    scaler.step(optimizer)
    assert (network.weight - before).norm().item() == pytest.approx(0.5)


@pytest.mark.parametrize(("batches", "steps"), [(4, 2), (3, 2)])  # the end of an epoch steps too
def test_gradients_of_several_batches_make_one_step_as_those_of_one_batch_would(batches, steps):
    """Eight images at once, or four and four: the same weights; clipped, and averaged, once per step."""
    data, nets = torch.randn(8 * steps, 3), [nn.Linear(3, 1, bias=False) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    averages = []
    for network, size, several in ((nets[0], 8, 1), (nets[1], 4, 2)):
        loader = [{"image": x, "label": 9 * x[:, :1]} for x in data.split(size)]
        if several == 2 and batches % 2:  # the last step has one batch, whose gradient counts half
            loader = loader[:batches]
        ema = EMA(network, nn.Linear(3, 1, bias=False), decay=0.5)
        SupervisedTrainer(
            device=torch.device("cpu"), max_epochs=1, train_data_loader=loader, network=network,
            optimizer=torch.optim.SGD(network.parameters(), lr=0.1), loss_function=nn.MSELoss(), decollate=False,
            accumulation_steps=several, train_handlers=[ClipGradients(network, 0.1), ema],
        ).run()  # fmt: skip
        averages.append(ema)
    assert [ema.iteration for ema in averages] == [steps, steps]
    if batches % 2 == 0:
        torch.testing.assert_close(nets[0].weight, nets[1].weight)


def test_the_learning_rate_rises_falls_and_ends_at_a_hundredth():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    schedule = WarmupCosine(
        optimizer, max_epochs=20, data_loader=range(10), warmup=0.1
    )  # 200 iterations, 20 of them up
    rates = []
    for _ in range(201):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(2.0 / 20)
    assert rates[19] == rates[20] == max(rates) == pytest.approx(2.0)
    assert rates[110] == pytest.approx(2.0 * (0.01 + 0.99 / 2))
    assert rates[200] == min(rates) == pytest.approx(0.02)
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_a_training_of_one_iteration_has_a_learning_rate():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    WarmupCosine(optimizer, max_epochs=1, data_loader=[SimpleNamespace()])
    assert optimizer.param_groups[0]["lr"] == 2.0


def test_the_rate_rises_holds_and_falls():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    schedule = WarmupHold(optimizer, 10, range(10), warmup=0.1, hold=0.7)
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:71] == pytest.approx([2.0] * 62)
    assert rates[85] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(2 / 30)
    with pytest.raises(ValueError, match=r"warmup is 0.8, hold 0.7; expected shares"):
        WarmupHold(optimizer, 1, range(3), warmup=0.8)
