"""CyCADA's semantic term on a table, and ACCUT's decoders: which loss reaches which."""

import math

import pytest
import torch
from monai.networks.nets import PatchDiscriminator
from torch import nn

from unicorn_monai.baselines.accut import ACCUT, SegmentingGenerator
from unicorn_monai.baselines.cut import PatchProjection
from unicorn_monai.baselines.cycada import CyCADA, semantic_consistency
from unicorn_monai.baselines.networks import ResnetGenerator, feature_channels, generator_of
from unicorn_monai.system.weights import save_weights

LAYERS = [0, 2, 3]


class Threshold(nn.Module):
    """Logits (0, log 3 sign(x - 1/2)): probability 3/4 of the label that the grey value says."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(math.log(3)))

    def forward(self, image):
        return torch.cat([torch.zeros_like(image), self.factor * (image - 0.5).sign()], dim=1)


def generator(**more):
    kind = SegmentingGenerator if more else ResnetGenerator
    return kind(**more, spatial_dims=2, in_channels=1, channels=4, num_blocks=1, num_downs=2)


def judge():
    return PatchDiscriminator(spatial_dims=2, in_channels=1, channels=4, num_layers_d=1, norm="INSTANCE")


# ---------------------------------------------------------------- CyCADA


def test_semantic_consistency_of_a_small_table():
    """Two of four pixels change their label: -log 3/4 where it stays, -log 1/4 where not."""
    original = torch.tensor([[[[0.1, 0.9], [0.1, 0.9]]]])
    translated = torch.tensor([[[[0.2, 0.1], [0.2, 0.1]]]])
    expected = -(math.log(3 / 4) + math.log(1 / 4)) / 2
    assert semantic_consistency(Threshold(), translated, original).item() == pytest.approx(expected, rel=1e-5)


def test_the_original_gets_no_gradient():
    original = torch.rand(1, 1, 4, 4, requires_grad=True)
    network = nn.Conv2d(1, 2, 1)
    translated = torch.rand(1, 1, 4, 4, requires_grad=True)
    semantic_consistency(network, translated, original).backward()
    assert original.grad is None
    assert translated.grad is not None


def test_cycada_is_cyclegan_with_one_term_more_in_both_directions():
    torch.manual_seed(0)
    networks = generator(), generator(), judge(), judge()
    objective = CyCADA(*networks, Threshold(), semantic_weight=2.0)
    x, y = torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)
    terms, (there, back) = objective.generator_terms(x, y)
    both = semantic_consistency(Threshold(), there, x) + semantic_consistency(Threshold(), back, y)
    assert terms["semantic"].item() == pytest.approx(both.item())
    rest = terms["adversarial"] + 10 * terms["cycle"] + 5 * terms["identity"]
    assert terms["loss"].item() == pytest.approx((rest + 2 * both).item(), rel=1e-5)
    assert not any(p.requires_grad for p in objective.segmenter.parameters())
    assert not any(p is q for p in objective.trained.parameters() for q in objective.segmenter.parameters())


# ---------------------------------------------------------------- ACCUT


@pytest.fixture
def accut():
    torch.manual_seed(0)
    net = generator(num_labels=3)
    projection = PatchProjection(feature_channels(net, LAYERS), width=8, num_patches=16)
    return ACCUT(net, judge(), projection, LAYERS)


def batch():
    return torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16), torch.randint(0, 3, (2, 1, 16, 16))


def gradients(part):
    return [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters()]


def test_no_gradient_of_the_game_reaches_the_decoder_that_segments(accut):
    terms, _ = accut.generator_terms(*batch())
    (terms["loss"] - terms["segmentation"]).backward()
    net = accut.generator
    assert not any(gradients(net.shape))
    assert not any(gradients(net.head))
    assert any(gradients(net.style))
    assert any(gradients(net.stages))


def test_the_cross_entropy_trains_the_encoder_and_not_the_style(accut):
    terms, _ = accut.generator_terms(*batch())
    terms["segmentation"].backward()
    net = accut.generator
    assert all(gradients(net.head))
    assert any(gradients(net.shape))
    assert any(gradients(net.stages))
    assert not any(gradients(net.style))


def test_images_and_logits_have_the_size_of_the_image(accut):
    image = torch.rand(2, 1, 16, 24)
    assert accut.generator(image).shape == image.shape
    assert accut.generator.segment(image).shape == (2, 3, 16, 24)
    assert 0 <= accut.generator(image).min() <= accut.generator(image).max() <= 1


def test_pixels_to_ignore_do_not_count(accut):
    x, y, label = batch()
    terms, _ = accut.generator_terms(x, y, torch.full_like(label, 255))
    assert terms["segmentation"].item() == 0


def test_label_maps_are_needed(accut):
    x, y, _ = batch()
    with pytest.raises(ValueError, match="label maps"):
        accut.generator_terms(x, y)


def test_weights_tell_which_generator_they_are_of(tmp_path):
    plain, segmenting = generator(), generator(num_labels=3)
    for i, network in enumerate((plain, segmenting)):
        save_weights(network, tmp_path / f"{i}.pt")
        assert generator_of(tmp_path / f"{i}.pt", [plain, segmenting]) is network
    save_weights(generator(num_labels=4), tmp_path / "other.pt")
    assert generator_of(tmp_path / "other.pt", [plain, segmenting]) is plain, "which is then refused by name"
