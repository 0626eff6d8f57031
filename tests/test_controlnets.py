"""A ControlNet is a copy of its U-Net's encoder, and stays one."""

import copy
import math

import pytest
import torch
from monai.networks.nets import ControlNet
from torch import nn

from tiny_networks import LABELS, LATENT, build_unet, unet_definition, wake
from unicorn_monai.controlnets import controlnet_for, copy_encoder, encoded_condition, shared_encoder
from unicorn_monai.diffusion.autoencoder import narrow_posterior
from unicorn_monai.system.networks import fingerprint, freeze, require_finite

ENCODER = ("conv_in", "time_embed", "down_blocks", "middle_block")
VARIANTS = {
    "plain": {},
    "residual downsampling": {"resblock_updown": True},
    "no final layer": {"include_fc": False},
    "combined projections": {"use_combined_linear": True},
    "classes": {"num_class_embeds": 3},
    "text": {"with_conditioning": True, "cross_attention_dim": 5},
    "text with dropout": {"with_conditioning": True, "cross_attention_dim": 5, "dropout_cattn": 0.5},
    "other heads": {"num_head_channels": [8, 4]},
    "blocks per level": {"num_res_blocks": [1, 2]},
    "three levels": {"channels": [8, 8, 16], "attention_levels": [False, True, True]},
    "3D": {"spatial_dims": 3},
}


def inputs(unet_options, batch=2):
    """Latents, timesteps, and the context or classes that the variant needs."""
    x = torch.randn(batch, LATENT, *[8] * unet_options.get("spatial_dims", 2))
    more = {}
    if unet_options.get("with_conditioning"):
        more["context"] = torch.randn(batch, 1, 5)
    if unet_options.get("num_class_embeds"):
        more["class_labels"] = torch.tensor([0, 2])
    return x, torch.tensor([7]), more


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_controlnet_of_a_network_copies_its_encoder_whatever_its_architecture(options):
    unet = build_unet(**options)
    controlnet = controlnet_for(unet, LABELS, (4, 8))
    for name in ENCODER:
        source, target = getattr(unet, name).state_dict(), getattr(controlnet, name).state_dict()
        assert source.keys() == target.keys()
        assert all(torch.equal(source[key], target[key]) for key in source)
    assert copy_encoder(controlnet, unet) is controlnet  # fits by its own checks, too


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_controlnet_of_a_definition_fits_the_network_of_that_definition(options):
    unet = build_unet(**options)
    controlnet = copy_encoder(controlnet_for(unet_definition() | options, LABELS, (4, 8)), unet)
    assert fingerprint(controlnet) == fingerprint(controlnet_for(unet, LABELS, (4, 8)))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("origin", ["network", "definition"])
def test_an_untrained_controlnet_leaves_the_unet_as_it_is(options, origin):
    unet = build_unet(**options)
    definition = unet_definition() | options
    controlnet = freeze(copy_encoder(controlnet_for(unet if origin == "network" else definition, 1, (4, 8)), unet))
    x, t, more = inputs(options)
    condition = torch.randn(2, 1, *[2 * size for size in x.shape[2:]])
    down, mid = controlnet(x, t, controlnet_cond=condition, **more)
    with_control = unet(x, t, down_block_additional_residuals=down, mid_block_additional_residual=mid, **more)
    assert torch.equal(with_control, unet(x, t, **more))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_both_ways_to_build_a_controlnet_compute_the_same(options):
    unet = build_unet(**options)
    a = controlnet_for(unet, LABELS, (4, 8))
    b = copy_encoder(controlnet_for(unet_definition() | options, LABELS, (4, 8)), unet)
    wake(a)
    b.load_state_dict(a.state_dict())
    freeze(b)
    x, t, more = inputs(options)
    condition = torch.randn(2, LABELS, *[2 * size for size in x.shape[2:]])
    (down_a, mid_a), (down_b, mid_b) = (net(x, t, controlnet_cond=condition, **more) for net in (a, b))
    assert mid_a.abs().max() > 0
    assert all(torch.equal(p, q) for p, q in zip([*down_a, mid_a], [*down_b, mid_b], strict=True))


def test_a_controlnet_of_a_frozen_unet_can_be_trained_without_touching_it(unet):
    before = copy.deepcopy(unet.state_dict())
    controlnet = controlnet_for(unet, 1)
    assert controlnet.training
    assert all(weight.requires_grad for weight in controlnet.parameters())
    with torch.no_grad():
        for weight in controlnet.parameters():
            weight.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())
    assert not any(weight.requires_grad for weight in unet.parameters())


def test_a_controlnet_has_the_precision_of_its_unet():
    assert {w.dtype for w in controlnet_for(build_unet().double(), 1).parameters()} == {torch.float64}


@pytest.mark.parametrize(("channels", "factor"), [((4,), 1), ((4, 8), 2), ((4, 8, 8), 4), ((4, 8, 8, 8), 8)])
def test_each_embedding_channel_after_the_first_halves_the_resolution(unet, channels, factor):
    embedding = controlnet_for(unet, LABELS, channels).controlnet_cond_embedding
    assert embedding(torch.zeros(1, LABELS, 32, 16)).shape == (1, 8, 32 // factor, 16 // factor)


def test_an_unknown_argument_in_the_definition_is_refused():
    with pytest.raises(ValueError, match=r"\['chanels'\]; expected arguments of DiffusionModelUNet"):
        controlnet_for(unet_definition() | {"chanels": [8, 16]}, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"channels": [8, 32]},
        {"num_res_blocks": 2},
        {"attention_levels": [True, True]},
        {"attention_levels": [False, False]},
        {"norm_num_groups": 2},
        {"num_head_channels": 4},
        {"norm_eps": 1e-3},
        {"include_fc": False},
        {"resblock_updown": True},
        {"in_channels": 4},
        {"num_class_embeds": 3},
        {"spatial_dims": 3},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("changed", ["unet", "controlnet"])
def test_a_controlnet_of_another_architecture_is_refused(change, changed):
    unet = build_unet(**(change if changed == "unet" else {}))
    controlnet = controlnet_for(unet_definition() | (change if changed == "controlnet" else {}), 1)
    with pytest.raises(ValueError, match=r"not a copy of this U-Net's encoder: \d+ parts differ, first"):
        copy_encoder(controlnet, unet)


def test_a_refused_copy_changes_nothing():
    unet, controlnet = build_unet(), controlnet_for(unet_definition() | {"num_res_blocks": 2}, 1)
    before = copy.deepcopy(controlnet.state_dict())
    with pytest.raises(ValueError, match="not a copy"):
        copy_encoder(controlnet, unet)
    assert all(torch.equal(value, before[key]) for key, value in controlnet.state_dict().items())


def test_a_narrow_posterior_has_little_noise_and_the_mean_it_had(autoencoder):
    image = torch.rand(1, 1, 16, 16)
    mean, _ = autoencoder.encode(image)
    assert narrow_posterior(autoencoder, -6.0) is autoencoder
    same_mean, std = autoencoder.encode(image)
    assert torch.equal(same_mean, mean)
    torch.testing.assert_close(std, torch.full_like(std, math.exp(-3.0)))


def test_freeze_stops_gradients_and_dropout(semantic):
    assert freeze(semantic.train()) is semantic
    assert not semantic.training
    assert not any(weight.requires_grad for weight in semantic.parameters())


def test_an_encoded_condition_gives_the_same_residuals_bit_for_bit(semantic, label_maps):
    x, t, condition = torch.randn(2, LATENT, 4, 4), torch.tensor([7]), label_maps(2)
    expected_down, expected_mid = semantic(x, t, controlnet_cond=condition)
    with encoded_condition(semantic, condition) as encoded:
        for _ in range(2):  # the second call finds the encoding unchanged
            down, mid = semantic(x, t, controlnet_cond=encoded)
            assert all(torch.equal(a, b) for a, b in zip([*down, mid], [*expected_down, expected_mid], strict=True))


def test_the_embedding_is_put_back_after_the_block_and_after_an_exception(semantic, label_maps):
    embedding, keys = semantic.controlnet_cond_embedding, list(semantic.state_dict())
    with encoded_condition(semantic, label_maps(1)):
        assert semantic.controlnet_cond_embedding is not embedding
    assert semantic.controlnet_cond_embedding is embedding
    with pytest.raises(KeyError), encoded_condition(semantic, label_maps(1)):
        raise KeyError
    assert semantic.controlnet_cond_embedding is embedding
    assert list(semantic.state_dict()) == keys


def test_a_network_without_an_embedding_gets_its_condition_as_it_is():
    condition = torch.randn(1, 3, 4, 4)
    with encoded_condition(nn.Conv2d(3, 3, 1), condition) as encoded:
        assert encoded is condition


@pytest.mark.parametrize("shape", [(1, LABELS + 1, 16, 16), (1, LABELS, 16), (1, LABELS, 8, 16, 16)])
def test_a_condition_of_wrong_channels_or_dimensions_is_refused(semantic, shape):
    expected = rf"The label_map has shape .* expects \(batch, {LABELS}, \*2 dimensions\)"
    with pytest.raises(ValueError, match=expected), encoded_condition(semantic, torch.zeros(shape), "label_map"):
        pass
    assert isinstance(semantic, ControlNet)
    with encoded_condition(semantic, torch.zeros(1, LABELS, 16, 16)):
        pass


def test_a_condition_that_is_not_embedded_to_the_size_of_the_latents_is_refused(semantic, label_maps):
    message = r"hint of \(4, 4\) pixels is embedded to \(1, 1\), the latents are \(4, 4\)"
    with pytest.raises(ValueError, match=message), encoded_condition(semantic, label_maps(1, 4, 4), "hint", (4, 4)):
        pass


def test_a_network_is_not_given_two_conditions_at_a_time(semantic, label_maps):
    with (
        encoded_condition(semantic, label_maps(1), "label_map"),
        pytest.raises(ValueError, match="ControlNet of the hint is in use already"),
        encoded_condition(semantic, label_maps(1), "hint"),
    ):
        pass
    assert not isinstance(semantic.controlnet_cond_embedding, nn.Identity)


def test_fingerprint_is_that_of_the_layout_not_of_the_values():
    assert fingerprint(build_unet()) == fingerprint(build_unet())
    assert fingerprint(build_unet()) != fingerprint(build_unet(channels=[8, 32]))
    assert fingerprint(build_unet()) != fingerprint(build_unet().double())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    good = torch.ones(3)
    assert require_finite("Latents", good) is good
    with pytest.raises(ValueError, match="Latents holds NaN or infinite"):
        require_finite("Latents", torch.tensor([1.0, value]))


# ---------------------------------------------------------------- one encoder for several passes


def residuals_of(unet, x, t, seed):
    """Random residuals that fit a U-Net."""
    generator = torch.Generator().manual_seed(seed)
    down, mid = controlnet_for(unet, 1, (4, 8, 8))(x, t, controlnet_cond=torch.zeros(len(x), 1, 16, 16))
    down, mid = ([torch.randn(r.shape, generator=generator) for r in part] for part in (down, [mid]))
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid[0]}


def test_passes_with_a_shared_encoder_are_the_separate_ones_bit_for_bit(unet):
    x, t = torch.randn(2, LATENT, 4, 4), torch.tensor([7])
    several = [{}, residuals_of(unet, x, t, 1), residuals_of(unet, x, t, 2)]
    expected = [unet(x, t, **extra) for extra in several]
    calls = []
    for part in (
        unet.conv_in.conv,
        unet.down_blocks[0].resnets[0],
        unet.middle_block.resnet_1,
        unet.up_blocks[0].resnets[0],
    ):
        part.register_forward_hook(lambda module, *_: calls.append(module))
    with shared_encoder(unet):
        found = [unet(x, t, **extra) for extra in several]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [calls.count(part) for part in dict.fromkeys(calls)] == [1, 1, 1, 3]


def test_an_encoder_is_not_shared_any_longer_than_asked_for(unet):
    x, t = torch.randn(2, LATENT, 4, 4), torch.tensor([7])
    with shared_encoder(unet):
        unet(x, t)
    with pytest.raises(RuntimeError), shared_encoder(unet):
        unet(x[:, :1], t)  # a channel too few
    assert not torch.equal(unet(x, t), unet(x + 1, t))
    assert "forward" not in vars(unet.middle_block)


def test_the_encoder_of_another_class_is_not_shared(unet):
    class Other(type(unet)):
        pass

    unet.__class__ = Other
    x, t = torch.randn(2, LATENT, 4, 4), torch.tensor([7])
    with shared_encoder(unet):
        assert not torch.equal(unet(x, t), unet(x + 1, t))
