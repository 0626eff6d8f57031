"""Mixed precision and sheets of the segmentation training."""

import pytest
import torch
from monai.networks.nets import UNet

from unicorn_monai.images.files import IGNORE_LABEL
from unicorn_monai.segmentation.training import SegmentationInferer, SegmentationSheet

LABELS = 3


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet(2, 1, LABELS, channels=(8, 16), strides=(2,), norm="batch").train()


@pytest.fixture
def dataset():
    label = torch.arange(LABELS).repeat_interleave(4)[:, None].repeat(1, 8)[None]
    return [{"image": torch.rand(1, 12, 8), "label": label} for _ in range(5)]


def test_in_single_precision_it_is_the_network_itself(network):
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(SegmentationInferer()(images, network), network(images))


def test_mixed_precision_rounds_the_network_and_not_what_comes_after_it(network):
    images = torch.rand(2, 1, 16, 16)
    exact, mixed = (SegmentationInferer(precision)(images, network.eval()) for precision in ("float32", "bfloat16"))
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact)
    torch.testing.assert_close(mixed, exact, rtol=0.05, atol=0.05)
    mixed.sum().backward()
    assert {p.grad.dtype for p in network.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("able", [True, False])
def test_the_precision_is_that_of_the_device_where_it_is_left_to_it(network, monkeypatch, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": able})
    images = torch.rand(2, 1, 16, 16)
    expected, found = (SegmentationInferer(name)(images, network) for name in (("float32", "bfloat16")[able], "auto"))
    assert torch.equal(found, expected)


def test_another_precision_is_refused_before_the_training():
    with pytest.raises(ValueError, match="Unknown precision 'half'; expected 'float32', 'bfloat16' or 'auto'"):
        SegmentationInferer("half")


def test_a_sheet_shows_image_truth_prediction_and_entropy(network, dataset):
    dataset[0]["label"] = dataset[0]["label"].clone()
    dataset[0]["label"][:, 0] = IGNORE_LABEL
    before = {key: value.clone() for key, value in network.state_dict().items()}
    sheet = SegmentationSheet(network, dataset, LABELS, count=3)()
    assert sheet.shape == (4, 3, 3, 12, 8)
    assert (sheet.min() >= 0) & (sheet.max() <= 1)
    shown = [dataset[i] for i in (0, 2, 4)]
    assert torch.equal(sheet[0], torch.stack([item["image"] for item in shown]).expand(-1, 3, -1, -1))
    assert not sheet[1, 0, :, 0].any()  # ignored pixels are black
    assert [len(sheet[1, 1, :, rows].flatten(1).T.unique(dim=0)) for rows in (slice(0, 4), slice(0, 12))] == [1, LABELS]
    labels = network.eval()(torch.stack([item["image"] for item in shown])).argmax(dim=1)
    colours = {int(k): sheet[1, 1, :, 4 * k, 0] for k in range(LABELS)}
    for i in range(3):
        assert torch.equal(sheet[2, i, :, 5, 5], colours[int(labels[i, 5, 5])])
    assert len(sheet[3].unique()) > 10
    assert torch.equal(sheet[3, :, 0], sheet[3, :, 2])
    # Batch statistics and mode are as they were.
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_sheet_leaves_the_network_in_training(network, dataset):
    SegmentationSheet(network, dataset, LABELS)()
    assert network.training
