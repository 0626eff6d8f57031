"""The fused denoising loop against the same loop written out from stock MONAI parts."""

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler
from torch import nn

from tiny_networks import COARSE, LABELS, LATENT, SCHEDULE, Words, build_autoencoder, build_ldm, build_unet, wake
from unicorn_monai.controlnets import controlnet_for
from unicorn_monai.diffusion.text import PromptEmbeddings, PromptTemplate, Text
from unicorn_monai.diffusion.word_vectors import WordVectors
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.schedulers import DDIM, DPMSolverPlusPlus, UniPC
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Request, Requests
from unicorn_monai.synthesis.sheets import SampleSheet
from unicorn_monai.system.networks import freeze

RESIDUAL_MODES = ("compositional", "paper")  # w is the weight of a residual; "joint": test_joint.py
SHAPE = (LATENT, 4, 4)
SCALE = 0.7
SAMPLERS = {
    "DDIM": (lambda: DDIM(50, **COARSE), 6),
    "DPM-Solver++": (lambda: DPMSolverPlusPlus(50, **COARSE), 6),
    "UniPC": (lambda: UniPC(50, **COARSE), 6),
    "DDPM": (lambda: DDPMScheduler(6, clip_sample=False, **SCHEDULE), 6),
}


@pytest.fixture
def networks(autoencoder, unet, semantic, uncertainty):
    return {"autoencoder": autoencoder, "unet": unet, "semantic": semantic, "uncertainty": uncertainty}


@pytest.fixture
def conditions(label_maps):
    """Label map and scaled uncertainty of two images."""
    return {"label_map": label_maps(2), "hint": torch.tensor([-0.5, 1.2])}


@pytest.fixture(params=SAMPLERS.values(), ids=SAMPLERS.keys())
def sampler(request):
    build, steps = request.param
    return build(), steps


def inferer_of(
    networks,
    scheduler=None,
    weight=0.5,
    mode="paper",
    guidance=(1.0, 1.0),
    scale=SCALE,
    shape=SHAPE,
    text=None,
    **options,
):
    """The networks with a sampler, as a latent diffusion model and what controls it."""
    scheduler = DDIM(50, **COARSE) if scheduler is None else scheduler
    ldm = build_ldm(networks["unet"], networks["autoencoder"], scheduler, None, scale, shape, text)
    return DualControlNetInferer(ldm, networks["semantic"], networks["uncertainty"], weight, mode, guidance, **options)


def noise_of(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spread(hint, label_map):
    """One number per image as a constant image."""
    return hint.reshape(-1, 1, 1, 1).expand(-1, 1, *label_map.shape[2:])


def stock_loop(scheduler, n, seed, unet, autoencoder, nets=(), weights=()):
    """One image by MONAI's ControlNet, DiffusionModelUNet and scheduler, residuals summed as in Eqs. (6) and (7)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, *SHAPE, generator=generator)
    scheduler.set_timesteps(n)
    for t in scheduler.timesteps:
        at = torch.as_tensor([t])
        residuals = [net(x, at, controlnet_cond=condition) for net, condition in nets]
        parts = zip(*(down for down, _ in residuals), strict=True)
        down = [sum(w * d for w, d in zip(weights, part, strict=True)) for part in parts]
        mid = sum(w * r[1] for w, r in zip(weights, residuals, strict=True)) if nets else None
        eps = unet(x, at, down_block_additional_residuals=down or None, mid_block_additional_residual=mid)
        own = {"generator": generator} if isinstance(scheduler, DDPMScheduler) else {}
        x, _ = scheduler.step(eps, int(t), x, **own)
    return autoencoder.decode_stage_2_outputs(x / SCALE)


STOCK = {
    "MONAI DDIM": (lambda: DDIMScheduler(1000, clip_sample=False, **SCHEDULE), 40),
    "MONAI DDPM": (lambda: DDPMScheduler(6, clip_sample=False, **SCHEDULE), 6),
    "MONAI PNDM": (lambda: PNDMScheduler(1000, skip_prk_steps=True, **SCHEDULE), 20),
} | SAMPLERS


@pytest.mark.parametrize(("build", "n"), STOCK.values(), ids=STOCK.keys())
@pytest.mark.parametrize(("weight", "name"), [(0.0, "semantic"), (1.0, "uncertainty")])
def test_weights_0_and_1_are_the_loop_with_a_single_controlnet(networks, conditions, build, n, weight, name):
    inferer = inferer_of(networks, build(), weight, "paper")
    images = inferer.sample(**conditions, seeds=[3, 4], num_inference_steps=n)
    label_map, hint = conditions["label_map"], spread(conditions["hint"], conditions["label_map"])
    condition = label_map if name == "semantic" else hint
    for i, seed in enumerate((3, 4)):
        expected = stock_loop(
            build(),
            n,
            seed,
            networks["unet"],
            networks["autoencoder"],
            [(networks[name], condition[i : i + 1])],
            [1.0],
        )
        torch.testing.assert_close(images[i : i + 1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("build", "n"), STOCK.values(), ids=STOCK.keys())
@pytest.mark.parametrize("mode", RESIDUAL_MODES)
def test_any_weight_is_the_loop_with_both_controlnets(networks, conditions, build, n, mode):
    w = 0.3
    inferer = inferer_of(networks, build(), w, mode)
    images = inferer.sample(**conditions, seeds=[3, 4], num_inference_steps=n)
    label_map, hint = conditions["label_map"], spread(conditions["hint"], conditions["label_map"])
    weights = (1 - w if mode == "paper" else 1.0, w)
    for i, seed in enumerate((3, 4)):
        nets = [(networks["semantic"], label_map[i : i + 1]), (networks["uncertainty"], hint[i : i + 1])]
        expected = stock_loop(build(), n, seed, networks["unet"], networks["autoencoder"], nets, weights)
        torch.testing.assert_close(images[i : i + 1], expected, rtol=0, atol=1e-5)


def test_in_the_same_batch_the_loop_is_the_same_bit_for_bit(networks, conditions):
    one = {"label_map": conditions["label_map"][:1], "hint": conditions["hint"][:1]}
    inferer = inferer_of(networks, DDIM(1000, **COARSE), 1.0, "paper")
    image = inferer.sample(**one, seeds=[3], num_inference_steps=10)
    nets = [(networks["uncertainty"], spread(one["hint"], one["label_map"]))]
    expected = stock_loop(DDIM(1000, **COARSE), 10, 3, networks["unet"], networks["autoencoder"], nets, [1.0])
    assert torch.equal(image, expected)


@pytest.mark.parametrize("mode", RESIDUAL_MODES)
def test_untrained_controlnets_leave_the_sample_of_the_unet_bit_for_bit(networks, conditions, sampler, mode):
    scheduler, n = sampler
    unet, autoencoder = networks["unet"], networks["autoencoder"]
    fresh = {
        "semantic": freeze(controlnet_for(unet, LABELS, (4, 8, 8))),
        "uncertainty": freeze(controlnet_for(unet, 1, (4, 8, 8))),
    }
    inferer = inferer_of(networks | fresh, scheduler, 0.5, mode)
    one = {"label_map": conditions["label_map"][:1], "hint": conditions["hint"][:1]}
    image = inferer.sample(**one, seeds=[3], num_inference_steps=n)
    assert torch.equal(image, stock_loop(scheduler, n, 3, unet, autoencoder))


def test_trained_controlnets_change_the_sample(networks, conditions):
    inferer = inferer_of(networks, DDIM(50, **COARSE))
    common = {"seeds": [3, 4], "num_inference_steps": 6}
    usual = inferer.sample(**conditions, **common)
    other_labels = inferer.sample(**(conditions | {"label_map": conditions["label_map"].flip(2)}), **common)
    other_hint = inferer.sample(**(conditions | {"hint": conditions["hint"] + 1}), **common)
    assert (usual - other_labels).abs().max() > 1e-3
    assert (usual - other_hint).abs().max() > 1e-3


@pytest.mark.parametrize("mode", RESIDUAL_MODES)
@pytest.mark.parametrize("w", [0.3, 0.5, torch.tensor([0.2, 0.9])], ids=["0.3", "0.5", "per image"])
def test_one_fused_step_is_the_formula(networks, conditions, mode, w):
    x, t = torch.randn(2, *SHAPE), torch.tensor([20, 7])
    label_map, hint = conditions["label_map"], spread(conditions["hint"], conditions["label_map"])
    unet, semantic, uncertainty = (networks[name] for name in ("unet", "semantic", "uncertainty"))
    inferer = inferer_of(networks, DDIM(50, **COARSE), w, mode)
    eps = inferer(x, t, label_map, hint)

    b = w.reshape(2, 1, 1, 1) if isinstance(w, torch.Tensor) else w
    a = 1 - b if mode == "paper" else 1.0
    down_s, mid_s = semantic(x, t, controlnet_cond=label_map)
    down_u, mid_u = uncertainty(x, t, controlnet_cond=hint)
    expected = unet(
        x,
        t,
        down_block_additional_residuals=[a * s + b * u for s, u in zip(down_s, down_u, strict=True)],
        mid_block_additional_residual=a * mid_s + b * mid_u,
    )
    torch.testing.assert_close(eps, expected)
    given = inferer_of(networks, mode=mode)(x, t, label_map, hint, uncertainty_weight=w)
    assert torch.equal(given, eps)


@pytest.mark.parametrize(("w", "runs"), [(0.0, (1, 0)), (1.0, (0, 1)), (0.5, (1, 1))])
def test_a_net_of_weight_0_is_not_run(networks, conditions, w, runs):
    calls = []
    for name in ("semantic", "uncertainty"):
        networks[name].register_forward_hook(lambda *_, name=name: calls.append(name))
    inferer = inferer_of(networks, DDIM(50, **COARSE), w, "paper")
    inferer.sample(**conditions, seeds=[3, 4], num_inference_steps=4)
    assert (calls.count("semantic"), calls.count("uncertainty")) == (4 * runs[0], 4 * runs[1])


@pytest.mark.parametrize("mode", RESIDUAL_MODES)
@pytest.mark.parametrize("absent", [("semantic",), ("uncertainty",), ("semantic", "uncertainty")])
def test_without_a_net_the_image_is_that_of_an_untrained_one(networks, conditions, absent, mode):
    common = conditions | {"seeds": [3, 4], "num_inference_steps": 6}
    unet = networks["unet"]
    fresh = {"semantic": controlnet_for(unet, LABELS, (4, 8, 8)), "uncertainty": controlnet_for(unet, 1, (4, 8, 8))}
    without, untrained = (
        inferer_of(networks | given, DDIM(50, **COARSE), 0.3, mode).sample(**common)
        for given in (dict.fromkeys(absent), {name: fresh[name] for name in absent})
    )
    assert torch.equal(without, untrained)


def test_compositional_weight_0_is_the_semantic_controlnet_alone(networks, conditions):
    common = conditions | {"seeds": [3, 4], "num_inference_steps": 6}
    images = [
        inferer_of(networks, DDIM(50, **COARSE), 0.0, mode).sample(**common) for mode in ("paper", "compositional")
    ]
    assert torch.equal(*images)


def test_gradients_of_a_fused_step_reach_a_controlnet_in_training(networks, conditions):
    semantic = networks["semantic"].requires_grad_(True)
    inferer = inferer_of(networks, mode="compositional")
    hint = spread(conditions["hint"], conditions["label_map"])
    eps = inferer(torch.randn(2, *SHAPE), torch.tensor([20, 7]), conditions["label_map"], hint)
    eps.square().mean().backward()
    assert all(weight.grad is not None for weight in semantic.parameters())
    assert all(weight.grad is None for weight in networks["uncertainty"].parameters())


@pytest.mark.parametrize("mode", RESIDUAL_MODES)
def test_weights_per_image_are_the_separate_runs(networks, conditions, sampler, mode):
    scheduler, n = sampler
    inferer = inferer_of(networks, scheduler, mode=mode)
    common = {"num_inference_steps": n}
    together = inferer.sample(**conditions, **common, seeds=[3, 4], uncertainty_weight=torch.tensor([0.2, 0.9]))
    for i, (seed, w) in enumerate(((3, 0.2), (4, 0.9))):
        one = {key: value[i : i + 1] for key, value in conditions.items()}
        alone = inferer.sample(**one, **common, seeds=[seed], uncertainty_weight=w)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


def test_equal_weights_per_step_are_one_weight(networks, conditions, sampler):
    scheduler, n = sampler
    inferer = inferer_of(networks, scheduler)
    common = conditions | {"seeds": [3, 4], "num_inference_steps": n}
    assert torch.equal(
        inferer.sample(**common, uncertainty_weight=[0.4] * n), inferer.sample(**common, uncertainty_weight=0.4)
    )


def test_weights_per_step_are_the_steps_taken_one_by_one(networks, conditions):
    weights = [0.0, torch.tensor([0.1, 0.8]), 0.5, 1.0]
    inferer = inferer_of(networks, DDIM(50, **COARSE))
    common = {"seeds": [3, 4], "num_inference_steps": 4}
    images = inferer.sample(**conditions, **common, uncertainty_weight=weights)

    scheduler = DDIM(50, **COARSE)
    scheduler.set_timesteps(4)
    x = torch.stack([noise_of(3), noise_of(4)])
    hint = spread(conditions["hint"], conditions["label_map"])
    for t, w in zip(scheduler.timesteps, weights, strict=True):
        eps = inferer(x, t[None], conditions["label_map"], hint, uncertainty_weight=w)
        x, _ = scheduler.step(eps, t, x)
    torch.testing.assert_close(images, inferer.ldm.decode(x), rtol=0, atol=1e-5)


def test_the_weight_given_to_sample_replaces_that_of_the_inferer(networks, conditions):
    common = conditions | {"seeds": [3, 4], "num_inference_steps": 4}
    given = inferer_of(networks, DDIM(50, **COARSE), 0.1).sample(**common, uncertainty_weight=0.8)
    assert torch.equal(given, inferer_of(networks, DDIM(50, **COARSE), 0.8).sample(**common))


@pytest.mark.parametrize("mode", RESIDUAL_MODES)
def test_an_image_is_the_same_alone_and_in_a_batch_of_four(networks, label_maps, sampler, mode):
    scheduler, n = sampler
    inferer = inferer_of(networks, scheduler, 0.4, mode)
    conditions = {"label_map": label_maps(4), "hint": torch.tensor([-1.0, 0.0, 0.7, 2.0])}
    common = {"num_inference_steps": n}
    seeds = [11, 12, 13, 12]
    together = inferer.sample(**conditions, **common, seeds=seeds)
    for i, seed in enumerate(seeds):
        one = {key: value[i : i + 1] for key, value in conditions.items()}
        torch.testing.assert_close(
            together[i : i + 1], inferer.sample(**one, **common, seeds=[seed]), rtol=0, atol=1e-5
        )


def test_the_same_call_gives_the_same_images_whatever_ran_before(networks, conditions, sampler):
    scheduler, n = sampler
    inferer = inferer_of(networks, scheduler)
    common = {"num_inference_steps": n}
    first = inferer.sample(**conditions, **common, seeds=[3, 4])
    inferer.sample(**conditions, **common, seeds=[8, 9])
    torch.randn(17)
    state = torch.get_rng_state()
    assert torch.equal(inferer.sample(**conditions, **common, seeds=[3, 4]), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_samplings_by_turns_do_not_disturb_each_other(networks, conditions, sampler):
    scheduler, n = sampler
    inferer, other = (inferer_of(networks | nets, scheduler) for nets in ({}, {"semantic": None, "uncertainty": None}))
    common = conditions | {"seeds": [3, 4], "num_inference_steps": n}
    expected = inferer.sample_latents(**common)
    between = inferer.sample_latents(**common, on_step=lambda *_: other.sample_latents(**common))
    assert torch.equal(between, expected)


def test_a_number_per_image_is_a_constant_hint(networks, conditions):
    inferer = inferer_of(networks, DDIM(50, **COARSE))
    common = {"seeds": [3, 4], "num_inference_steps": 4}
    image = spread(conditions["hint"], conditions["label_map"])
    assert torch.equal(
        inferer.sample(**conditions, **common), inferer.sample(**(conditions | {"hint": image}), **common)
    )


def test_the_hint_of_a_prior_fits(networks, conditions):
    prior = UncertaintyPrior(0.19, 0.05, "zscore", 0.1, 0.08, "a" * 64)
    hint = prior.hint(prior.sample([3, 4]))
    inferer = inferer_of(networks, DDIM(50, **COARSE))
    images = inferer.sample(conditions["label_map"], hint, seeds=[3, 4], num_inference_steps=2)
    assert images.shape == (2, 1, 16, 16)


def test_a_run_may_start_from_a_noised_real_latent(networks, conditions, sampler):
    scheduler, n = sampler
    skip = 2
    inferer = inferer_of(networks, scheduler, 0.4)
    real = networks["autoencoder"].encode_stage_2_inputs(torch.rand(2, 1, 16, 16))
    common = conditions | {"seeds": [3, 4], "num_inference_steps": n}
    images = inferer.sample(**common, start=(real * SCALE, skip))

    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    noise = torch.stack([torch.randn(SHAPE, generator=generator) for generator in generators])
    scheduler.set_timesteps(n)
    alpha = scheduler.alphas_cumprod[scheduler.timesteps[skip]]
    x = alpha.sqrt() * real * SCALE + (1 - alpha).sqrt() * noise
    hint = spread(conditions["hint"], conditions["label_map"])
    for t in scheduler.timesteps[skip:]:
        eps = inferer(x, t[None], conditions["label_map"], hint)
        if isinstance(scheduler, DDPMScheduler):
            x = torch.cat(
                [scheduler.step(eps[i : i + 1], int(t), x[i : i + 1], generator=generators[i])[0] for i in (0, 1)]
            )
        else:
            x, _ = scheduler.step(eps, int(t), x)
    torch.testing.assert_close(images, inferer.ldm.decode(x), rtol=0, atol=1e-5)


def test_the_more_steps_are_skipped_the_closer_the_image_is_to_the_real_one(networks, conditions):
    inferer = inferer_of(networks, DDIM(1000, **COARSE))
    real = networks["autoencoder"].encode_stage_2_inputs(torch.rand(2, 1, 16, 16)) * SCALE
    target = inferer.ldm.decode(real)
    common = conditions | {"seeds": [3, 4], "num_inference_steps": 20}
    distances = [(inferer.sample(**common, start=(real, skip)) - target).square().mean().item() for skip in (0, 12, 19)]
    assert distances[0] > distances[1] > distances[2]


def test_every_step_is_told_the_prediction_of_x0(networks, conditions):
    inferer, told = inferer_of(networks, DDIM(50, **COARSE)), []
    common = conditions | {"seeds": [3, 4], "num_inference_steps": 7}
    latents = inferer.sample_latents(**common, on_step=lambda i, x0: told.append((i, x0)))
    assert torch.equal(latents, inferer.sample_latents(**common))  # whoever listens changes nothing
    assert torch.equal(inferer.ldm.decode(latents), inferer.sample(**common))
    assert [i for i, _ in told] == list(range(7))
    torch.testing.assert_close(told[-1][1], latents)  # the last step goes to the predicted x0

    scheduler = DDIM(50, **COARSE)
    scheduler.set_timesteps(7)
    x, t = torch.stack([noise_of(3), noise_of(4)]), scheduler.timesteps[0]
    hint = spread(conditions["hint"], conditions["label_map"])
    _, x0 = scheduler.step(inferer(x, t[None], conditions["label_map"], hint), t, x)
    torch.testing.assert_close(told[0][1], x0, rtol=0, atol=1e-5)


def test_the_steps_that_a_start_skips_are_not_told(networks, conditions):
    inferer, told = inferer_of(networks, DDIM(50, **COARSE)), []
    common = conditions | {"seeds": [3, 4], "num_inference_steps": 7}
    inferer.sample_latents(**common, start=(torch.zeros(2, *SHAPE), 5), on_step=lambda i, _: told.append(i))
    assert told == [5, 6]


def test_a_scheduler_that_predicts_no_x0_tells_its_latents(networks, conditions):
    inferer, told = inferer_of(networks, PNDMScheduler(1000, skip_prk_steps=True, **SCHEDULE)), []
    common = conditions | {"seeds": [3, 4], "num_inference_steps": 20}
    latents = inferer.sample_latents(**common, on_step=lambda _, x: told.append(x))
    assert torch.equal(told[-1], latents)


def test_volumes_are_sampled_as_images_are(label_maps):
    unet, autoencoder = build_unet(3), build_autoencoder(3)
    semantic, uncertainty = (wake(controlnet_for(unet, channels, (4, 8, 8))) for channels in (LABELS, 1))
    nets = {"autoencoder": autoencoder, "unet": unet, "semantic": semantic, "uncertainty": uncertainty}
    inferer = inferer_of(nets, DDIM(50, **COARSE), 0.4, shape=(LATENT, 4, 4, 2))
    common = {"num_inference_steps": 4}
    labels, hint = label_maps(2, 16, 16, 8), torch.tensor([-0.5, 1.2])
    volumes = inferer.sample(labels, hint, **common, seeds=[3, 4])
    assert volumes.shape == (2, 1, 16, 16, 8)
    alone = inferer.sample(labels[1:], hint[1:], **common, seeds=[4])
    torch.testing.assert_close(volumes[1:], alone, rtol=0, atol=1e-5)


def test_a_context_reaches_all_three_networks(label_maps, autoencoder):
    unet = build_unet(with_conditioning=True, cross_attention_dim=5)
    semantic, uncertainty = (wake(controlnet_for(unet, channels, (4, 8, 8))) for channels in (LABELS, 1))
    nets = {"autoencoder": autoencoder, "unet": unet, "semantic": semantic, "uncertainty": uncertainty}
    contexts = []
    for net in (unet, semantic, uncertainty):
        net.register_forward_pre_hook(lambda _, args, kwargs: contexts.append(kwargs["context"]), with_kwargs=True)
    context = torch.randn(1, 2, 5)
    inferer_of(nets).sample(label_maps(1), torch.zeros(1), [3], 2, context=context)
    assert len(contexts) == 6
    assert all(seen is context for seen in contexts)


def test_the_label_map_may_be_of_integers(networks, conditions):
    inferer = inferer_of(networks, DDIM(50, **COARSE))
    common = {"seeds": [3, 4], "num_inference_steps": 2}
    integers = conditions | {"label_map": conditions["label_map"].to(torch.uint8)}
    assert torch.equal(inferer.sample(**integers, **common), inferer.sample(**conditions, **common))


def test_each_condition_is_embedded_exactly_once(networks, conditions):
    calls = []
    for name in ("semantic", "uncertainty"):
        embedding = networks[name].controlnet_cond_embedding
        embedding.register_forward_hook(lambda *_, name=name: calls.append(name))
    inferer = inferer_of(networks, DDIM(50, **COARSE))
    inferer.sample(**conditions, seeds=[3, 4], num_inference_steps=9)
    assert calls == ["semantic", "uncertainty"]


@pytest.mark.parametrize("failing", ["unet", "semantic", "uncertainty", "autoencoder"])
def test_the_embeddings_are_put_back_after_an_exception(networks, conditions, failing):
    embeddings = {name: networks[name].controlnet_cond_embedding for name in ("semantic", "uncertainty")}
    inferer = inferer_of(networks, DDIM(50, **COARSE))
    common = conditions | {"seeds": [3, 4], "num_inference_steps": 4}
    before = inferer.sample(**common)

    def fail(*_):
        raise MemoryError

    part = networks[failing].decoder if failing == "autoencoder" else networks[failing]
    hook = part.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        inferer.sample(**common)
    for name, embedding in embeddings.items():
        assert networks[name].controlnet_cond_embedding is embedding
    hook.remove()
    assert torch.equal(inferer.sample(**common), before)


def test_a_network_without_condition_embedding_sees_the_condition_at_every_step(networks, conditions):
    class Own(nn.Module):
        """A ControlNet of one's own, of which only MONAI's call signature is asked."""

        def __init__(self, inner):
            super().__init__()
            self.inner = [inner]

        def forward(self, x, timesteps, controlnet_cond, conditioning_scale=1.0, context=None, class_labels=None):
            return self.inner[0](x, timesteps, controlnet_cond, conditioning_scale, context, class_labels)

    common = conditions | {"seeds": [3, 4], "num_inference_steps": 3}
    own = {name: Own(networks[name]) for name in ("semantic", "uncertainty")}
    assert torch.equal(inferer_of(networks | own).sample(**common), inferer_of(networks).sample(**common))


def test_no_graph_is_kept(networks, conditions):
    networks["semantic"].requires_grad_(True)
    inferer = inferer_of(networks, DDIM(50, **COARSE))
    images = inferer.sample(**conditions, seeds=[3, 4], num_inference_steps=2)
    assert not images.requires_grad


def test_images_are_divided_by_the_scale_factor_before_decoding(networks, conditions):
    common = conditions | {"seeds": [3, 4], "num_inference_steps": 3}
    seen = []
    networks["autoencoder"].decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    networks["autoencoder"].post_quant_conv = nn.Identity()
    for scale in (1.0, 4.0):
        inferer_of(networks, scale=scale).sample(**common)
    torch.testing.assert_close(seen[0], 4 * seen[1])


REFUSED = {
    "labels": ({"label_map": torch.zeros(2, LABELS + 1, 16, 16)}, rf"label_map has shape .* expects \(batch, {LABELS}"),
    "hint channels": ({"hint": torch.zeros(2, 3, 16, 16)}, r"hint has shape .* expects \(batch, 1"),
    "size": ({"label_map": torch.zeros(2, LABELS, 32, 32)}, r"label_map of \(32, 32\) pixels is embedded to \(8, 8\)"),
    "hint size": ({"hint": torch.zeros(2, 1, 8, 8)}, r"hint of \(8, 8\) pixels is embedded to \(2, 2\)"),
    "number of hints": ({"hint": torch.zeros(3)}, "2 label maps, 3 hints, 2 seeds"),
    "number of seeds": ({"seeds": [1]}, "2 label maps, 2 hints, 1 seeds"),
    "latent dimensions": ({"latent_shape": (LATENT, 4)}, r"latent_shape is \(3, 4\); expected .* of 2 dimensions"),
    "latent channels": ({"latent_shape": (4, 4, 4)}, r"latent_shape is \(4, 4, 4\); expected the 3 channels"),
    "latent size": ({"latent_shape": (LATENT, 8, 8)}, r"is embedded to \(4, 4\), the latents are \(8, 8\)"),
    "weights per step": ({"uncertainty_weight": [0.5] * 3}, "Got a list of 3 weights for 4 steps"),
    "weights per image": ({"uncertainty_weight": torch.rand(3)}, r"Weight has shape \(3,\)"),
    "no steps": ({"num_inference_steps": 0}, "num_inference_steps is 0; expected 1 to 50"),
    "too many steps": ({"num_inference_steps": 51}, "num_inference_steps is 51; expected 1 to 50"),
    "start too late": ({"start": (torch.zeros(2, *SHAPE), 4)}, "start skips 4 of 4 steps; expected 0 to 3"),
    "start before the first": ({"start": (torch.zeros(2, *SHAPE), -1)}, "start skips -1 of 4 steps"),
    "start of other shape": (
        {"start": (torch.zeros(1, *SHAPE), 0)},
        r"latents \(1, 3, 4, 4\); expected \(2, 3, 4, 4\)",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused(networks, conditions, change, message):
    common = conditions | {"seeds": [3, 4], "num_inference_steps": 4}
    shape = change.get("latent_shape", SHAPE)
    given = common | {key: value for key, value in change.items() if key != "latent_shape"}
    with pytest.raises(ValueError, match=message):
        inferer_of(networks, shape=shape).sample(**given)
    inferer_of(networks).sample(**common)  # nothing is left behind


def test_one_network_in_both_roles_is_refused(networks, conditions):
    inferer = inferer_of(networks | {"semantic": networks["uncertainty"]})
    common = conditions | {"label_map": conditions["label_map"][:, :1], "seeds": [3, 4], "num_inference_steps": 4}
    with pytest.raises(ValueError, match="ControlNet of the hint is in use already"):
        inferer.sample(**common)


def test_controlnets_of_different_unets_are_refused(networks, conditions):
    other = wake(controlnet_for(build_unet(num_res_blocks=2), 1, (4, 8, 8)))
    inferer = inferer_of(networks | {"uncertainty": other})
    with pytest.raises(ValueError, match="residuals differ"):
        inferer.sample(**conditions, seeds=[3, 4], num_inference_steps=4)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="Unknown mode 'sum'"):
        DualControlNetInferer(build_ldm(), mode="sum")


# ---------------------------------------------------------------- guidance


def prediction(networks, conditions, mode, **settings):
    label_map, hint = conditions["label_map"], spread(conditions["hint"], conditions["label_map"])
    inferer = inferer_of(networks, DDIM(50, **COARSE), 0.6, mode, **settings)
    x = torch.stack([noise_of(7), noise_of(8)])
    return inferer(x, timesteps=torch.tensor([20]), label_map=label_map, hint=hint)


@pytest.mark.parametrize("mode", RESIDUAL_MODES)
@pytest.mark.parametrize("guidance", [(1.0, 1.0), (1.0, 2.5), (3.0, 1.0), (3.0, 2.0), (2.0, 2.0), (1.0, 0.0)])
@torch.no_grad()
def test_guidance_extrapolates_what_each_control_adds(networks, conditions, mode, guidance):
    full = prediction(networks, conditions, mode)
    style = prediction(networks | {"semantic": None}, conditions, mode)
    alone = prediction(networks | {"semantic": None, "uncertainty": None}, conditions, mode)
    assert not torch.allclose(full, style, atol=1e-3)
    assert not torch.allclose(style, alone, atol=1e-3)
    expected = alone + guidance[0] * (style - alone) + guidance[1] * (full - style)
    guided = prediction(networks, conditions, mode, guidance=guidance)
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_guidance_of_the_label_map_alone_leaves_the_uncertainty_as_it_is(networks, conditions):
    without_label = prediction(networks | {"semantic": None}, conditions, "compositional", guidance=(2.0, 5.0))
    same = prediction(networks | {"semantic": None}, conditions, "compositional", guidance=(2.0, 1.0))
    torch.testing.assert_close(without_label, same, rtol=0, atol=0)


@pytest.mark.parametrize(("guidance", "passes"), [((1.0, 1.0), 1), ((1.0, 2.0), 2), ((2.0, 2.0), 2), ((3.0, 2.0), 3)])
@torch.no_grad()
def test_guidance_costs_no_more_passes_than_it_needs(networks, conditions, guidance, passes):
    count = []
    handle = networks["unet"].register_forward_hook(lambda *_: count.append(1))
    prediction(networks, conditions, "compositional", guidance=guidance)
    handle.remove()
    assert len(count) == passes


@pytest.mark.parametrize("guidance", [(1.0, 1.0), (3.0, 1.0)])
@torch.no_grad()
def test_mixed_precision_ends_with_the_networks(networks, conditions, guidance):
    """The sum of the passes, and all that a sampler makes of it, is not rounded any further."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        noise = prediction(networks, conditions, "compositional", guidance=guidance)
    assert noise.dtype == torch.float32


def test_a_generator_cannot_ask_for_uncertainties_without_a_prior(networks):
    inferer = inferer_of(networks | {"semantic": None}, DPMSolverPlusPlus(50, **COARSE))
    with pytest.raises(ValueError, match=r"Uncertainty-ControlNet, but no prior.*Give the one it was trained with"):
        Generator(inferer, num_inference_steps=2)


def test_a_sheet_is_made_by_networks_at_rest(networks, tmp_path):
    text = Text(PromptEmbeddings(WordVectors(8, 2), tmp_path), PromptTemplate())
    unet = build_unet(with_conditioning=True, cross_attention_dim=8, dropout_cattn=0.5).train()  # in training as yet
    for weight in unet.parameters():
        nn.init.normal_(weight, std=0.1)  # what is zero before a training hides the dropout
    alone = {"autoencoder": networks["autoencoder"], "unet": unet, "semantic": None, "uncertainty": None}
    inferer = inferer_of(alone, DPMSolverPlusPlus(50, **COARSE), text=text)
    generator = Generator(inferer, num_inference_steps=2)
    sheet = SampleSheet(generator, Requests(2, 0))
    assert torch.equal(sheet(), sheet())
    assert unet.training


def test_what_a_generator_makes_can_be_trained_on(networks):
    inferer = inferer_of(networks | dict.fromkeys(("semantic", "uncertainty")), DPMSolverPlusPlus(50, **COARSE))
    images = Generator(inferer, num_inference_steps=2)([Request(0, 3), Request(1, 4)])
    weight = torch.ones(1, requires_grad=True)
    (images * weight).sum().backward()  # refused for tensors made in inference mode
    torch.testing.assert_close(weight.grad[0], images.sum())


@pytest.mark.slow
def test_compiled_networks_give_the_same_images_and_are_compiled_once(networks, conditions):
    from torch._dynamo.utils import counters

    common = conditions | {"seeds": [3, 4], "num_inference_steps": 4}
    expected = inferer_of(networks).sample(**common)
    inferer = inferer_of(networks, compile=True)
    torch.testing.assert_close(inferer.sample(**common), expected, rtol=0, atol=1e-5)
    before = counters["frames"]["total"]
    inferer.sample(**common)
    assert counters["frames"]["total"] == before


# ---------------------------------------------------------------- classifier-free guidance

WIDTH = 5


@pytest.fixture
def prompted(autoencoder):
    """Networks that attend to a context, which makes a difference."""
    unet = build_unet(with_conditioning=True, cross_attention_dim=WIDTH)
    nets = {
        "semantic": wake(controlnet_for(unet, LABELS, (4, 8, 8))),
        "uncertainty": wake(controlnet_for(unet, 1, (4, 8, 8))),
    }
    for net in (unet, *nets.values()):
        for module in net.modules():
            if hasattr(module, "proj_out"):
                nn.init.normal_(module.proj_out.conv.weight, std=0.5)
    return {"unet": unet, "autoencoder": autoencoder} | nets


def guided(networks, conditions, context, guidance, null=None, mode="compositional"):
    label_map, hint = conditions["label_map"], spread(conditions["hint"], conditions["label_map"])
    text = None if null is None else Words(null)
    inferer = inferer_of(networks, DDIM(50, **COARSE), 0.6, mode, guidance, text=text)
    x = torch.stack([noise_of(7), noise_of(8)])
    return inferer(x, timesteps=torch.tensor([20]), label_map=label_map, hint=hint, context=context)


@pytest.mark.parametrize("mode", RESIDUAL_MODES)
@pytest.mark.parametrize("g_text", [0.0, 1.0, 7.5])
@torch.no_grad()
def test_text_guidance_leaves_the_prediction_of_the_empty_prompt_behind(prompted, conditions, mode, g_text):
    context, null = torch.randn(2, 3, WIDTH), torch.randn(1, 3, WIDTH)
    with_prompt = guided(prompted, conditions, context, (1.0, 1.0), mode=mode)
    without = guided(prompted, conditions, null.expand(2, -1, -1), (1.0, 1.0), mode=mode)
    assert not torch.allclose(with_prompt, without, atol=1e-3)
    result = guided(prompted, conditions, context, (1.0, 1.0, g_text), null, mode)
    torch.testing.assert_close(result, without + g_text * (with_prompt - without), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_text_guidance_adds_to_that_of_the_controls(prompted, conditions):
    context, null = torch.randn(2, 3, WIDTH), torch.randn(1, 3, WIDTH)
    with_prompt = guided(prompted, conditions, context, (1.0, 1.0))
    without = guided(prompted, conditions, null.expand(2, -1, -1), (1.0, 1.0))
    expected = guided(prompted, conditions, context, (3.0, 2.0)) + 4.0 * (with_prompt - without)
    torch.testing.assert_close(
        guided(prompted, conditions, context, (3.0, 2.0, 5.0), null), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("guidance", "passes"), [((1, 1, 1), 1), ((1, 1, 7.5), 2), ((3, 1, 7.5), 4), ((3, 1), 3)])
@torch.no_grad()
def test_text_guidance_costs_one_pass_more(prompted, conditions, guidance, passes):
    count = []
    prompted["unet"].register_forward_hook(lambda *_: count.append(1))
    guided(prompted, conditions, torch.randn(2, 3, WIDTH), guidance, torch.randn(1, 3, WIDTH))
    assert len(count) == passes


@torch.no_grad()
def test_every_image_has_its_own_prompt(prompted, conditions):
    contexts, null = torch.randn(2, 3, WIDTH), torch.randn(1, 3, WIDTH)
    guidance = (1.0, 1.0, 4.0)
    inferer = inferer_of(prompted, DDIM(50, **COARSE), 0.6, "compositional", guidance, text=Words(null))
    common = {"num_inference_steps": 3}
    both = inferer.sample(**conditions, **common, seeds=[3, 4], context=contexts)
    for i in (0, 1):
        one = {key: value[i : i + 1] for key, value in conditions.items()}
        alone = inferer.sample(**one, **common, seeds=[3 + i], context=contexts[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], alone, rtol=0, atol=1e-4)


def test_text_guidance_needs_an_empty_prompt():
    with pytest.raises(ValueError, match=r"g_text is 7\.5, but the latent diffusion model has no words to leave out"):
        DualControlNetInferer(build_ldm(), guidance=(1.0, 1.0, 7.5))


def test_a_unet_made_for_prompts_is_not_left_without(prompted, conditions):
    with pytest.raises(ValueError, match="network was made for prompts, but there is no context"):
        guided(prompted, conditions, None, (1.0, 1.0))
