"""Eqs. (6) and (7)."""

import pytest
import torch

from unicorn_monai.fusion import fuse_residuals, mode_weights

RESIDUAL_MODES = ("compositional", "paper")  # w is the weight of a residual


@pytest.fixture
def residuals():
    """What two ControlNets return for a batch of two: three down blocks and the mid block."""

    def one():
        return [torch.randn(2, 8, 4, 4), torch.randn(2, 8, 2, 2), torch.randn(2, 16, 2, 2)], torch.randn(2, 16, 2, 2)

    return one(), one()


def flat(fused):
    down, mid = fused
    return [*down, mid]


@pytest.mark.parametrize("w", [0.0, 0.3, 1.0, 1.7])
def test_weights_of_both_modes(w):
    assert mode_weights("paper", w) == (1 - w, w)
    assert mode_weights("compositional", w) == (1.0, w)
    assert mode_weights("joint", w) == (1.0, 1.0 if w else 0.0), (
        "w is a factor of the guidance; 0 leaves the control out"
    )


@pytest.mark.parametrize("mode", RESIDUAL_MODES)
def test_weights_of_both_modes_per_image(mode):
    w = torch.tensor([0.0, 0.25, 1.0])
    semantic, uncertainty = mode_weights(mode, w)
    assert torch.equal(uncertainty, w)
    expected = 1 - w if mode == "paper" else torch.ones(3)
    assert torch.equal(torch.as_tensor(semantic).expand(3), expected)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"Unknown mode 'convex'.*compositional.*paper"):
        mode_weights("convex", 0.5)


@pytest.mark.parametrize("mode", RESIDUAL_MODES)
@pytest.mark.parametrize("w", [0.0, 0.3, 1.0, 2.0])
def test_fusion_is_the_weighted_sum_of_every_down_block_and_the_mid_block(residuals, mode, w):
    fused = flat(fuse_residuals(residuals, mode_weights(mode, w)))
    a = 1 - w if mode == "paper" else 1.0
    assert len(fused) == 4
    for result, semantic, uncertainty in zip(fused, *map(flat, residuals), strict=True):
        torch.testing.assert_close(result, a * semantic + w * uncertainty)


def test_one_net_with_weight_one_passes_bit_for_bit(residuals):
    fused = fuse_residuals(residuals[:1], [1.0])
    assert all(torch.equal(a, b) for a, b in zip(flat(fused), flat(residuals[0]), strict=True))


def test_weights_per_image_are_those_of_each_image_alone(residuals):
    w = torch.tensor([0.2, 0.9])
    together = flat(fuse_residuals(residuals, mode_weights("paper", w)))
    for i, weight in enumerate(w.tolist()):
        own = [([d[i : i + 1] for d in down], mid[i : i + 1]) for down, mid in residuals]
        alone = flat(fuse_residuals(own, mode_weights("paper", weight)))
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b)


def test_a_weight_without_dimensions_is_a_number(residuals):
    a = flat(fuse_residuals(residuals, mode_weights("paper", torch.tensor(0.3))))
    b = flat(fuse_residuals(residuals, mode_weights("paper", 0.3)))
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)


def test_double_precision_weights_leave_the_residuals_in_theirs(residuals):
    down, mid = fuse_residuals(residuals, mode_weights("paper", torch.tensor([0.2, 0.9], dtype=torch.float64)))
    assert {r.dtype for r in [*down, mid]} == {torch.float32}


def test_fusion_leaves_its_inputs_alone(residuals):
    before = [[r.clone() for r in flat(one)] for one in residuals]
    fuse_residuals(residuals, (0.5, 0.5))
    for kept, one in zip(before, residuals, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(kept, flat(one), strict=True))


def test_gradients_reach_both_nets_in_the_ratio_of_their_weights(residuals):
    for one in residuals:
        for r in flat(one):
            r.requires_grad_()
    sum(r.sum() for r in flat(fuse_residuals(residuals, (0.25, 0.75)))).backward()
    for one, weight in zip(residuals, (0.25, 0.75), strict=True):
        assert all(r.grad.eq(weight).all() for r in flat(one))


def test_three_nets_are_fused_as_well_as_two(residuals):
    fused = flat(fuse_residuals([*residuals, residuals[0]], (0.5, 0.25, 0.5)))
    for result, a, b in zip(fused, *map(flat, residuals), strict=True):
        torch.testing.assert_close(result, a + 0.25 * b)


@pytest.mark.parametrize("change", ["fewer blocks", "other channels", "other mid block"])
def test_residuals_that_do_not_match_are_refused(residuals, change):
    (down, mid), other = residuals
    changed = {
        "fewer blocks": (down[:-1], mid),
        "other channels": ([down[0][:, :4], *down[1:]], mid),
        "other mid block": (down, mid[:, :8]),
    }[change]
    with pytest.raises(ValueError, match="residuals differ"):
        fuse_residuals([changed, other], (0.5, 0.5))


def test_a_weight_for_each_net_is_needed(residuals):
    with pytest.raises(ValueError, match="2 ControlNets and 1 weights"):
        fuse_residuals(residuals, (0.5,))
    with pytest.raises(ValueError, match="0 ControlNets"):
        fuse_residuals([], [])


def test_a_weight_for_each_image_is_needed(residuals):
    with pytest.raises(ValueError, match=r"Weight has shape \(3,\); expected a number or one per image, \(2,\)"):
        fuse_residuals(residuals, (0.5, torch.rand(3)))
