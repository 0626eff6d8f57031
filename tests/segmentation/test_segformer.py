"""SegFormer behind the segmentation interface: size of the logits, folders of transformers, training of the bundle."""

import copy
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import CliRunner
from tiny_networks import ONE_EPOCH

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="SegFormer: pip install 'unicorn-monai[street]'")

from data_prep.street_phantom import write_streets  # noqa: E402
from unicorn_monai.bundle.installation import install  # noqa: E402
from unicorn_monai.bundle.references import from_bundle  # noqa: E402
from unicorn_monai.bundle.run import run_bundle  # noqa: E402
from unicorn_monai.cli import app  # noqa: E402
from unicorn_monai.diffusion.layout_supervision import discriminator_for  # noqa: E402
from unicorn_monai.segmentation.segformer import IMAGENET, SIZES, SegFormer, import_pretrained  # noqa: E402
from unicorn_monai.system.weights import save_weights  # noqa: E402

SMALL = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 16, 16, 16],
    "decoder_hidden_size": 16,
    "num_attention_heads": [1, 1, 2, 2],
}


def net(labels: int = 5, **arguments) -> SegFormer:
    return SegFormer(labels, config=SMALL, **arguments).eval()


def test_logits_have_the_size_of_the_image_and_gradients():
    logits = net()(torch.rand(2, 3, 64, 96))
    assert logits.shape == (2, 5, 64, 96)
    logits.mean().backward()


def test_the_network_sees_normalised_images_and_is_enlarged_before_the_softmax():
    network, image = net(), torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in IMAGENET)
    small = network.network(pixel_values=(image - mean) / std).logits
    assert small.shape[2:] == (16, 16)
    expected = torch.nn.functional.interpolate(small, size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(network(image), expected)


def test_a_folder_keeps_the_weights_and_another_number_of_labels_gets_a_new_last_layer(tmp_path):
    network, image = net(), torch.rand(1, 3, 64, 64)
    network.save_pretrained(tmp_path)
    torch.testing.assert_close(SegFormer(5, pretrained=tmp_path).eval()(image), network(image))
    plain = transformers.SegformerForSemanticSegmentation.from_pretrained(str(tmp_path), local_files_only=True)
    assert plain.config.semantic_loss_ignore_index == 255
    other = SegFormer(7, pretrained=tmp_path).eval()
    assert other(image).shape[1] == 7
    first = next(network.network.segformer.parameters())
    torch.testing.assert_close(next(other.network.segformer.parameters()), first)


def test_the_weights_have_the_names_of_the_files_whatever_they_are_in_memory(tmp_path):
    network, image = net(), torch.rand(1, 3, 64, 64)
    network.save_pretrained(tmp_path)
    written, state = load_file(tmp_path / "model.safetensors"), network.state_dict()
    assert state.keys() == written.keys()
    assert all(torch.equal(value, written[name]) for name, value in state.items())
    assert "segformer.encoder.block.0.0.layer_norm_1.weight" in state  # as published folders have it
    other = net()
    other.load_state_dict(written)
    assert torch.equal(other(image), network(image))
    inside = torch.nn.Sequential(copy.deepcopy(network))
    other = torch.nn.Sequential(net())
    other.load_state_dict(inside.state_dict())
    assert torch.equal(other(image), network(image))


def test_sizes_are_those_of_the_paper():
    with torch.device("meta"):
        config = transformers.SegformerConfig(num_labels=19, **SIZES["b0"])
        count = sum(p.numel() for p in transformers.SegformerForSemanticSegmentation(config).parameters())
    assert count == pytest.approx(3.72e6, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "b6"}, "size is 'b6'; expected one of"),
        ({"pretrained": "nowhere"}, "'nowhere' holds no SegFormer"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegFormer(5, **arguments)
    with pytest.raises(ValueError, match=r"expected \(batch, 3, rows, columns\)"):
        net()(torch.rand(1, 1, 64, 64))


def test_a_damaged_folder_is_refused(tmp_path):
    net().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="Cannot read a SegFormer"):
        SegFormer(5, pretrained=tmp_path)
    net().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(next(key for key in weights if "decode_head" in key))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of a SegFormer"):
        SegFormer(5, pretrained=tmp_path)


def segformer_part(tmp_path, config=SMALL, **settings):
    root = install("rgb_2d", tmp_path / "bundles", None, {"segformer.json": {"config": config}} | settings)
    return root, root / "segformer"


def test_a_published_folder_gives_entropies_without_any_training(tmp_path):
    network = net(10)
    network.network.decode_head.classifier.weight.data *= 100  # a fresh one is as unsure of every image
    network.save_pretrained(tmp_path / "published")
    root, part = segformer_part(tmp_path)
    command = ["import-weights", str(tmp_path / "published"), "--bundle", str(part)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert from_bundle(part, "num_labels") == 10
    imported, image = from_bundle(part, weights="model.pt"), torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(imported(image), network(image))
    write_streets(tmp_path / "A", ["clear"], 3, 1, 64, split=(0.4, 0.3, 0.3))
    write_streets(tmp_path / "B", ["fog"], 3, 1, 64, split=(0.4, 0.3, 0.3))
    data = {"dataset_dir": str(tmp_path / "A"), "unlabeled_dir": str(tmp_path / "B")}
    settings = data | {"bundle_root": str(part), "device": "cpu"}
    run_bundle(root / "configs" / "uncertainty.json", "infer", **settings)
    assert (part / "models" / "prior.json").is_file()


def test_a_folder_of_another_architecture_is_not_imported(tmp_path):
    net(10).save_pretrained(tmp_path / "published")
    _, part = segformer_part(tmp_path, SMALL | {"depths": [1, 1, 1, 2]})
    with pytest.raises(ValueError, match=r"has \{'depths': \[1, 1, 1, 1\]\}, .* Set `segformer_size`"):
        import_pretrained(tmp_path / "published", part)
    with pytest.raises(ValueError, match=r"'nowhere' holds no SegFormer: no config\.json"):
        import_pretrained("nowhere", part)
    save_weights(torch.nn.Linear(1, 1), part.parent / "segmentation" / "models" / "model.pt", num_labels=10)
    with pytest.raises(ValueError, match="defines a UNet; expected a SegFormer"):
        import_pretrained(tmp_path / "published", part.parent / "segmentation")


def test_it_can_be_the_discriminator_of_the_layout(tmp_path):
    _, part = segformer_part(tmp_path)
    save_weights(net(10), part / "models" / "model.pt", num_labels=10)
    discriminator = discriminator_for(part, 10)
    assert isinstance(discriminator, SegFormer)
    assert discriminator(torch.rand(1, 3, 64, 64)).shape == (1, 11, 64, 64)


def test_the_bundle_trains_it_and_measures_its_uncertainty(tmp_path):
    write_streets(tmp_path / "A", ["clear"], 3, 2, 64, split=(0.4, 0.3, 0.3))
    write_streets(tmp_path / "B", ["fog"], 3, 1, 64, split=(0.4, 0.3, 0.3))
    settings = {
        "segformer.json": {"config": SMALL},
        "train_segmentation.json": ONE_EPOCH | {"batch_size": 2, "iterations_per_epoch": 1},
    }
    root = install("rgb_2d", tmp_path / "bundles", None, settings)
    part = {"bundle_root": str(root / "segformer"), "device": "cpu"}
    run_bundle(root / "configs" / "train_segmentation.json", dataset_dir=str(tmp_path / "A"), **part)
    network = from_bundle(root / "segformer", weights="model.pt")
    assert isinstance(network, SegFormer)
    data = {"dataset_dir": str(tmp_path / "A"), "unlabeled_dir": str(tmp_path / "B")}
    run_bundle(root / "configs" / "uncertainty.json", "infer", **part, **data)
    assert (root / "segformer" / "models" / "prior.json").is_file()
