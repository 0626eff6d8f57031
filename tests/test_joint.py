"""A noise predictor and its controls as one network: what is left out leaves no trace, guidance is as elsewhere."""

import pytest
import torch
from monai.networks.nets import DiffusionModelUNet

from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.joint import FORMS, JointNetwork, LightUNet, joint_network
from unicorn_monai.latent_diffusion import LatentDiffusion

UNET = {
    "_target_": "DiffusionModelUNet",
    "spatial_dims": 2,
    "in_channels": 2,
    "out_channels": 2,
    "channels": [8, 16],
    "attention_levels": [False, True],
    "num_res_blocks": 1,
    "num_head_channels": 8,
    "norm_num_groups": 4,
}


@pytest.fixture(params=FORMS)
def network(request) -> JointNetwork:
    """With weights that let every part through, also those that begin at zero."""
    torch.manual_seed(0)
    made = joint_network(request.param, UNET, num_labels=3)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def batch(size: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    label = torch.nn.functional.one_hot(torch.randint(0, 3, (size, 32, 32), generator=generator), 3).movedim(-1, 1)
    hint = torch.linspace(-1, 2, size).reshape(-1, 1, 1, 1).expand(-1, 1, 32, 32)
    return torch.randn(size, 2, 8, 8, generator=generator), torch.tensor([7]), label.float(), hint


@torch.no_grad()
def test_what_is_left_out_leaves_no_trace(network):
    x, t, label, hint = batch()
    both = network(x, t, label, hint)
    for seen in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0)):
        found = network(x, t, label, hint, seen)
        other = network(x, t, label if seen[0] else label.flip(0), hint if seen[1] else hint + 3, seen)
        assert torch.allclose(found, other)
        assert not torch.allclose(found, both, atol=1e-3)
        each = network(x, t, label, hint, tuple(torch.tensor([share, 1.0]) for share in seen))
        assert torch.allclose(each[0], found[0], atol=1e-5), "one image of a batch"
        assert torch.allclose(each[1], both[1], atol=1e-5)


@torch.no_grad()
def test_without_both_it_is_the_u_net_by_itself(network):
    x, t, label, hint = batch()
    assert torch.allclose(network(x, t, label, hint, (0.0, 0.0)), network.unet(x, t))


@torch.no_grad()
def test_guidance_is_the_sum_of_three_predictions(network):
    x, t, label, hint = batch()
    none, style, both = (network(x, t, label, hint, seen) for seen in ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0)))
    ldm = LatentDiffusion(None, network.unet, Steps(), Steps(), 1.0, (2, 8, 8))
    for weight in (1.0, 0.5, torch.tensor([0.0, 2.0])):
        inferer = DualControlNetInferer(ldm, network.semantic, network.uncertainty, weight, "joint", (2.0, 1.5))
        w = weight.reshape(-1, 1, 1, 1) if isinstance(weight, torch.Tensor) else weight
        expected = none + w * 2.0 * (style - none) + 1.5 * (both - style)
        assert torch.allclose(inferer(x, t, label, hint), expected, atol=1e-4)


@torch.no_grad()
def test_without_weight_the_uncertainty_is_not_seen(network):
    x, t, label, hint = batch()
    none, alone = network(x, t, label, hint, (0.0, 0.0)), network(x, t, label, hint, (1.0, 0.0))
    ldm = LatentDiffusion(None, network.unet, Steps(), Steps(), 1.0, (2, 8, 8))
    inferer = DualControlNetInferer(ldm, network.semantic, network.uncertainty, 0.0, "joint", (2.0, 1.5))
    assert torch.allclose(inferer(x, t, label, hint), none + 1.5 * (alone - none), atol=1e-4)
    assert torch.equal(inferer(x, t, label, hint + 3), inferer(x, t, label, hint))


class Steps:
    prediction_type = "v_prediction"


def test_a_light_u_net_is_one_of_monai_with_more_channels():
    """Its encoder sees the features beside the latents; all else has MONAI's shapes."""
    light, plain = (
        cls(**{k: v for k, v in UNET.items() if k != "_target_"}) for cls in (LightUNet, DiffusionModelUNet)
    )
    own, theirs = light.state_dict(), plain.state_dict()
    assert own.keys() == theirs.keys()
    differ = {name for name in own if own[name].shape != theirs[name].shape}
    assert differ == {"conv_in.conv.weight"}
    assert (light.in_channels, own["conv_in.conv.weight"].shape[1]) == (2, 18)


def test_names_and_factors_that_are_none_are_refused():
    with pytest.raises(ValueError, match="Unknown form 'heavy' of the controls; expected one of"):
        joint_network("heavy", UNET, 3)
    with pytest.raises(ValueError, match="3 times smaller; expected a power of 2"):
        joint_network("light", UNET, 3, downsampling=3)


def test_features_have_the_size_of_the_latents():
    for factor in (2, 4, 8):
        network = joint_network("light", UNET, 3, factor)
        x = torch.zeros(1, 2, 8, 8)
        (features,), _ = network.semantic(x, torch.tensor([0]), torch.zeros(1, 3, 8 * factor, 8 * factor))
        assert features.shape == (1, 16, 8, 8)
