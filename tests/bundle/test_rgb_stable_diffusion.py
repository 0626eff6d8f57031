"""Stable Diffusion as the network block of the RGB bundle: both ControlNets, prompts, synthesis."""

import json

import pytest
import torch
from torch import nn

diffusers = pytest.importorskip("diffusers", reason="needs diffusers: make test-street")
transformers = pytest.importorskip("transformers", reason="needs transformers: make test-street")
from data_prep.street_phantom import write_streets  # noqa: E402
from stable_diffusion_folder import build  # noqa: E402
from unicorn_monai.backbones.stable_diffusion import load_unet, new_controlnet  # noqa: E402
from unicorn_monai.bundle.chain import check_chain  # noqa: E402
from unicorn_monai.bundle.installation import install, load_config  # noqa: E402
from unicorn_monai.bundle.references import from_bundle, metadata_of  # noqa: E402
from unicorn_monai.bundle.run import run_bundle  # noqa: E402
from unicorn_monai.controlnets import copy_encoder  # noqa: E402
from unicorn_monai.data.checks import check  # noqa: E402
from unicorn_monai.data.items import datalist  # noqa: E402
from unicorn_monai.diffusion.text import ClipTextEncoder  # noqa: E402
from unicorn_monai.diffusion.training import LatentPrepareBatch  # noqa: E402
from unicorn_monai.system.weights import read_metadata, save_weights, sha256  # noqa: E402

SIZE = 64
WEIGHTS = "diffusion_pytorch_model.safetensors"
BRIEF = {"max_epochs": 1, "val_interval": 1, "batch_size": 4, "iterations_per_epoch": 1, "num_inference_steps": 20}
TINY = {
    "stable_diffusion.json": {"image_size": [SIZE, SIZE], "num_inference_steps": 20, "count": 4},
    "train_stable_diffusion_uncertainty.json": BRIEF | {"sample_interval": 1},
    "train_stable_diffusion_semantic.json": BRIEF | {"sample_interval": 1},
    "segmentation.json": {"network_def::channels": [8, 16], "network_def::strides": [2]},
    "train_segmentation.json": {"max_epochs": 1, "val_interval": 1, "batch_size": 4, "iterations_per_epoch": 2},
}


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """A: clear and labelled. B: fog and night."""
    root = tmp_path_factory.mktemp("streets")
    write_streets(root / "A", ["clear"], 4, 2, SIZE, split=(0.5, 0.25, 0.25))
    write_streets(root / "B", ["fog", "night"], 6, 1, SIZE, split=(0.4, 0.3, 0.3))
    return {"dataset_dir": str(root / "A"), "unlabeled_dir": str(root / "B"), "device": "cpu"}


@pytest.fixture(scope="module")
def trained(streets, tmp_path_factory):
    """The bundle with everything trained for a step; the Stable Diffusion is a v-prediction one."""
    folder = build(tmp_path_factory.mktemp("sd") / "sd", "2.x")
    settings = TINY | {"stable_diffusion.json": TINY["stable_diffusion.json"] | {"folder": str(folder)}}
    root = install("rgb_2d", tmp_path_factory.mktemp("bundles"), None, settings)
    labeled = {key: value for key, value in streets.items() if key != "unlabeled_dir"}
    run_bundle(root / "configs" / "train_segmentation.json", **labeled)
    run_bundle(root / "configs" / "uncertainty.json", "infer", **streets)
    run_bundle(root / "configs" / "train_stable_diffusion_uncertainty.json", **streets)
    run_bundle(root / "configs" / "train_stable_diffusion_semantic.json", **labeled)
    return root


def folder_of(root):
    return from_bundle(root / "stable_diffusion", "folder")


def test_the_part_tells_what_is_known_of_the_folders_weights(trained):
    folder = folder_of(trained)
    known = metadata_of(trained / "stable_diffusion")
    assert known["sha256"] == sha256(f"{folder}/unet/{WEIGHTS}")
    assert known["autoencoder_sha256"] == sha256(f"{folder}/vae/{WEIGHTS}")
    assert known["autoencoder_sha256"] == metadata_of(trained / "stable_diffusion", "autoencoder.pt")["sha256"]
    assert (known["scale_factor"], known["prediction_type"]) == (0.18215, "v_prediction")
    assert not (trained / "stable_diffusion" / "models" / "model.pt").exists()  # nothing is copied
    unet = from_bundle(trained / "stable_diffusion", "network_def", "model.pt")
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), load_unet(folder).parameters(), strict=True))


def test_a_part_whose_weights_are_stored_is_read_from_them(tmp_path):
    save_weights(nn.Linear(1, 1), tmp_path / "stable_diffusion" / "models" / "model.pt", scale_factor=0.5)
    assert metadata_of(tmp_path / "stable_diffusion")["scale_factor"] == 0.5
    with pytest.raises(ValueError, match="No trained weights at"):
        metadata_of(tmp_path / "nowhere")


def test_both_controlnets_are_trained_for_this_unet_and_this_stack(trained):
    unet, style = metadata_of(trained / "stable_diffusion"), trained / "stable_diffusion_uncertainty"
    own = read_metadata(style / "models" / "model.pt")
    semantic = read_metadata(trained / "stable_diffusion_semantic" / "models" / "model.pt")
    assert own["unet_sha256"] == semantic["unet_sha256"] == unet["sha256"]
    assert (semantic["mode"], semantic["base_sha256"]) == ("compositional", own["sha256"])
    for part, channels in (("stable_diffusion_uncertainty", 1), ("stable_diffusion_semantic", 10)):
        net = from_bundle(trained / part, weights="model.pt")
        start = copy_encoder(new_controlnet(folder_of(trained), channels), load_unet(folder_of(trained)))
        assert net.controlnet_cond_embedding.conv_in.conv.in_channels == channels
        moved = [not torch.equal(a, b) for a, b in zip(net.parameters(), start.parameters(), strict=True)]
        assert any(moved), part
        assert list((trained / part / "output" / "samples").glob("*.png")), part


def test_half_of_the_uncertainty_nets_prompts_are_dropped(trained, monkeypatch, streets, tmp_path):
    made = []
    monkeypatch.setattr(ClipTextEncoder, "encode", lambda *_: pytest.fail("prompts are encoded again"))
    original = LatentPrepareBatch.__init__

    def noted(self, *args, **options):
        original(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(LatentPrepareBatch, "__init__", noted)
    changes = streets | {"ckpt_dir": str(tmp_path), "output_dir": str(tmp_path), "sample_interval": 2}
    run_bundle(trained / "configs" / "train_stable_diffusion_uncertainty.json", **changes)
    assert [prepare.prompt_dropout for prepare in made] == [0.5, 0.5]
    assert all(prepare.null_context.shape == (1, 77, 32) for prepare in made)
    assert load_config(trained, "train_stable_diffusion_semantic.json")["prompt_dropout"] == 0.1


def test_synthesis_names_every_weather(trained, streets, tmp_path):
    settings = {"dataset_dir": streets["dataset_dir"], "output_dir": str(tmp_path / "s"), "device": "cpu"}
    settings |= {"count": 4, "split": ["training"], "guidance": [2.0, 1.0, 7.5]}
    run_bundle(trained / "configs" / "stable_diffusion_synthesis.json", "infer", **settings)
    assert check(tmp_path / "s", need_labels=True) == []
    items = datalist(tmp_path / "s", "training", ("image", "label"))
    scenes = ["foggy scene", "night scene", "rainy scene", "snowy scene"]
    assert [item["synthetic"]["prompt"] for item in items] == [f"a photo of a street, {scene}" for scene in scenes]
    models = items[0]["synthetic"]["models"]
    assert models["diffusion"] == metadata_of(trained / "stable_diffusion")["sha256"]
    assert set(models) == {"autoencoder", "diffusion", "semantic", "uncertainty", "segmentation"}


@pytest.mark.parametrize("part", ["stable_diffusion", "stable_diffusion_uncertainty", "stable_diffusion_semantic"])
def test_every_part_samples_by_itself(part, trained, streets, tmp_path):
    settings = {"output_dir": str(tmp_path), "device": "cpu", "count": 2}
    if part == "stable_diffusion_semantic":
        settings["dataset_dir"] = streets["dataset_dir"]
    run_bundle(trained / "configs" / f"{part}.json", "infer", **settings)
    made = json.loads((tmp_path / "samples.json").read_text())
    assert [item["prompt"][-11:] for item in made] == ["foggy scene", "night scene"]


def test_another_stable_diffusion_than_that_of_the_training_is_refused(trained, tmp_path):
    other = install("rgb_2d", tmp_path, None, {"stable_diffusion.json": {"folder": str(build(tmp_path / "sd"))}})
    with pytest.raises(ValueError, match="stable_diffusion_uncertainty' was trained with unet_sha256"):
        check_chain(other / "stable_diffusion", uncertainty_controlnet=trained / "stable_diffusion_uncertainty")


def test_images_that_do_not_fit_are_told_before_anything_is_encoded(trained, streets, tmp_path):
    write_streets(tmp_path / "odd", ["clear"], 3, 1, (64, 96), split=(0.4, 0.3, 0.3))
    changes = streets | {"dataset_dir": str(tmp_path / "odd"), "unlabeled_dir": str(tmp_path / "odd")}
    with pytest.raises(RuntimeError) as caught:
        run_bundle(trained / "configs" / "train_stable_diffusion_uncertainty.json", **changes)
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, ValueError):
        error = error.__cause__
    assert "Stable Diffusion needs sides that are multiples of 64" in str(error)
