"""Adapted batch normalisation against means and variances computed by hand."""

import copy

import pytest
import torch
from torch import nn

from data_prep.phantom import write_phantom
from tiny_networks import TINY
from unicorn_monai.baselines.batch_norm import StatisticsAdapter, adapt_statistics
from unicorn_monai.bundle.installation import install
from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.bundle.run import run_bundle
from unicorn_monai.data.items import datalist
from unicorn_monai.images.transforms import read_image
from unicorn_monai.system.weights import load_weights, read_metadata, save_weights


def test_one_layer_by_hand():
    """Batches (0, 2) and (4, 8): means 1 and 6; variances, unbiased, 2 and 8. So m = 3.5, v = 5, and 3.5 becomes 0."""
    layer = nn.BatchNorm2d(1, eps=1e-12)
    layer.running_mean.fill_(100.0)
    adapt_statistics(layer, [torch.tensor(x).reshape(2, 1, 1, 1) for x in ([0.0, 2.0], [4.0, 8.0])])
    assert layer.running_mean.item() == pytest.approx(3.5)
    assert layer.running_var.item() == pytest.approx(5.0)
    assert not layer.training
    assert layer.momentum == 0.1
    told = layer(torch.tensor([3.5, 3.5 + 5**0.5]).reshape(2, 1, 1, 1)).flatten().tolist()
    assert told == pytest.approx([0.0, 1.0], abs=1e-6)


def test_a_later_layer_sees_what_the_first_one_normalised():
    """Whatever the scale and the offset of the images, what leaves the first layer has mean 0 and variance 1."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.BatchNorm2d(1, affine=False))
    adapt_statistics(network, 7 + 3 * torch.randn(4, 16, 1, 8, 8))
    assert network[0].running_mean.item() == pytest.approx(7, abs=0.2)
    assert network[0].running_var.item() == pytest.approx(9, rel=0.05)
    assert network[1].running_mean.item() == pytest.approx(0, abs=1e-5)
    assert network[1].running_var.item() == pytest.approx(1, abs=2e-3)


def test_nothing_else_changes_and_dropout_stays_off():
    torch.manual_seed(0)
    parts = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4), nn.InstanceNorm2d(4))
    network = nn.Sequential(*parts)
    before = copy.deepcopy(network.state_dict())
    adapt_statistics(network, torch.randn(2, 8, 1, 6, 6))
    after = network.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"{i}.{name}" for i in (1, 3) for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert after["3.running_var"].mean().item() == pytest.approx(1, abs=0.01), "dropout would have made it 2"
    assert not any(part.training for part in network.modules())


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(1), nn.BatchNorm2d(1, track_running_stats=False), nn.Identity()])
def test_a_network_without_running_statistics_is_refused(norm):
    with pytest.raises(ValueError, match="has no batch normalisation with running means and variances; expected"):
        adapt_statistics(nn.Sequential(norm), [torch.zeros(2, 1, 2, 2)])


def test_the_batches_are_as_large_and_hold_every_image_once(tmp_path):
    network = nn.BatchNorm2d(1)
    save_weights(network, tmp_path / "model.pt", mean_iou=0.5, epoch=3, num_labels=4)
    seen = []
    network.register_forward_pre_hook(lambda layer, args: seen.append(args[0][:, 0, 0, 0].tolist()))
    dataset = [{"image": torch.full((1, 2, 2), float(i))} for i in range(9)]
    StatisticsAdapter(network, tmp_path / "model.pt", dataset, tmp_path / "adapted.pt", batch_size=4).run()
    assert [len(batch) for batch in seen] == [3, 3, 3]
    order = [value for batch in seen for value in batch]
    assert sorted(order) == list(range(9))
    assert order != list(range(9)), "not the scans of one subject in one batch"
    told = read_metadata(tmp_path / "adapted.pt")
    assert told["adapted_from"] == read_metadata(tmp_path / "model.pt")["sha256"]
    assert (told["method"], told["images"], told["num_labels"]) == ("batch_norm", 9, 4)
    assert not {"mean_iou", "epoch"} & told.keys(), "those were of the weights before"


def test_the_bundle_adapts_to_training_images(tmp_path):
    write_phantom(tmp_path / "B", "home_oct", n_subjects=4, scans_per_subject=2, size=32, split=(0.5, 0.25, 0.25))
    tiny = TINY["retinal_unet"]
    with_batches = tiny | {"inference.json": tiny["inference.json"] | {"network_def::norm": "batch"}}
    root = install("retinal_unet", tmp_path, "small", with_batches)
    torch.manual_seed(0)
    network = from_bundle(root)
    save_weights(network, tmp_path / "model.pt", mean_iou=0.5, epoch=1)
    files = {"ckpt_path": str(tmp_path / "model.pt"), "output": str(tmp_path / "out" / "adapted.pt"), "device": "cpu"}
    run_bundle(root / "configs" / "adapt.json", "infer", dataset_dir=str(tmp_path / "B"), **files)
    adapted = from_bundle(root)
    load_weights(adapted, files["output"])
    items = datalist(tmp_path / "B", "training")
    assert read_metadata(files["output"])["images"] == len(items) == 4
    adapt_statistics(network, [torch.stack([read_image(item["image"]) for item in items])])
    for (key, one), other in zip(adapted.state_dict().items(), network.state_dict().values(), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-5), key
