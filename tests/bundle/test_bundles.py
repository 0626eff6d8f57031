"""Every bundle, trained and run in order on two tiny devices; what it writes is opened and checked."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from monai.bundle import ConfigWorkflow, verify_metadata
from PIL import Image
from torch import nn

import zoo_checks
from unicorn_monai.baselines import translation
from unicorn_monai.baselines.tsynd import disagreement
from unicorn_monai.bundle.installation import bundle_root, install
from unicorn_monai.bundle.references import from_bundle, with_weights
from unicorn_monai.bundle.run import run_bundle
from unicorn_monai.data.checks import check
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import read_header
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.evaluation.scoring import scores
from unicorn_monai.images.files import read_array, write_array
from unicorn_monai.images.transforms import read_image
from unicorn_monai.synthesis import writer as synthesis
from unicorn_monai.system.errors import root_cause
from unicorn_monai.system.weights import read_metadata, sha256
from unicorn_monai.training.state import TrainingState

SIZE, STEPS = 32, 2
LABELS = {0: "vitreous", 1: "inner", 2: "outer", 3: "choroid"}
COUNTS = {"training": 8, "validation": 4, "test": 4}
SHELL = os.environ | {
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
}
SCHEMA = Path(__file__).parents[1] / "files" / "meta_schema.json"

_BRIEF = {"max_epochs": 1, "iterations_per_epoch": None, "batch_size": 4, "val_interval": 1}  # one pass
_BRIEF_GENERATIVE = _BRIEF | {"sample_interval": 1, "num_inference_steps": STEPS, "precision": "float32"}
_BRIEF_TRANSLATION = {"max_epochs": 1, "iterations_per_epoch": 3, "batch_size": 2, "patch_size": [16, 16]}
METHODS = ("cyclegan", "cut", "cycada", "accut")
TINY: dict[str, dict[str, dict[str, Any]]] = {
    "retinal_unet": {
        "inference.json": {"num_labels": len(LABELS), "network_def::channels": [8, 16], "network_def::strides": [2]},
        "train.json": _BRIEF,
    },
    "latent_diffusion": {
        "inference.json": {
            "autoencoder_def::channels": [8, 8, 16],
            "autoencoder_def::norm_num_groups": 4,
            "discriminator_def::channels": 8,
            "network_def::channels": [8, 16, 16],
            "network_def::norm_num_groups": 4,
            "network_def::num_head_channels": 8,
            "num_inference_steps": STEPS,
            "coarse_sampling": True,
            "count": 3,
        },
        "train_autoencoder.json": _BRIEF | {"patch_size": [SIZE, SIZE], "adversarial_start": 1, "sample_interval": 1},
        "train_diffusion.json": _BRIEF_GENERATIVE,
    },
    "uncertainty_controlnet": {
        "inference.json": {"embedding_channels": [4, 8, 8], "count": 3},
        "train.json": _BRIEF_GENERATIVE,
    },
    "semantic_controlnet": {
        "inference.json": {"embedding_channels": [4, 8, 8], "count": 3},
        "train.json": _BRIEF_GENERATIVE,
    },
    "synthesis": {"inference.json": {"batch_size": 4}},
    "joint": {"inference.json": {"batch_size": 4}, "train.json": _BRIEF_GENERATIVE},
    "style_transfer": {
        "inference.json": {
            "network_def::channels": 4,
            "network_def::num_blocks": 1,
            "discriminator_def::channels": 4,
            "nce_layers": [0, 2, 3, 4],
            "projection_def::width": 8,
            "batch_size": 5,
        },
        "train_cyclegan.json": _BRIEF_TRANSLATION | {"pool_size": 3},
        **{f"train_{method}.json": _BRIEF_TRANSLATION for method in METHODS[1:]},
    },
}


def write_dataset(root: Path, device: str, noise: float, seed: int) -> Path:
    """A data set of layers with borders of their own in every column, as noisy as the device is."""
    random = np.random.default_rng(seed)
    with DatasetWriter(
        root, About(name=f"tiny {device}", device=device, labels=LABELS, spacing_mm=(0.004, 0.012))
    ) as writer:
        for split, count in COUNTS.items():
            for i in range(count):
                borders = np.sort(random.integers(4, SIZE - 4, (3, 1)), axis=0) + random.integers(-1, 2, (1, SIZE))
                label = (np.arange(SIZE)[:, None, None] >= borders[None]).sum(axis=1).astype(np.uint8)
                image = np.clip(20 + 60 * label + noise * random.standard_normal(label.shape), 0, 255).astype(np.uint8)
                writer.add(split, image, label, subject=f"{device}-{split}-{i // 2}")
    return root


class World:
    """Two data sets and a folder of installed bundles."""

    def __init__(self, root: Path) -> None:
        self.root, self.bundles = root, root / "bundles"
        self.labeled = write_dataset(root / "labelled", "Spectralis", noise=8, seed=0)
        self.unlabeled = write_dataset(root / "unlabelled", "home OCT", noise=50, seed=1)
        for name in TINY:
            install(name, self.bundles, "small", TINY[name])

    def config(self, bundle: str, name: str) -> Path:
        return self.bundles / bundle / "configs" / f"{name}.json"

    def models(self, bundle: str) -> Path:
        return self.bundles / bundle / "models"

    def inputs(self, bundle: str, name: str) -> dict[str, Any]:
        """The data sets that a configuration needs."""
        labeled, unlabeled = str(self.labeled), str(self.unlabeled)
        if name == "tsynd":
            paths = [self.models("retinal_unet") / file for file in ("model.pt", "second/model.pt")]
            return {"dataset_dir": labeled, "segmentation_paths": list(map(str, paths))}
        if bundle == "latent_diffusion":
            return {"dataset_dir": [labeled, unlabeled]} if name.startswith("train") else {}
        if bundle == "joint" and name == "train":  # the labels of the second are guessed where there are none
            return {"dataset_dir": [labeled, unlabeled]}
        if name in ("pseudo_label", "adapt"):
            return {"dataset_dir": unlabeled}
        two_domains = bundle in ("uncertainty_controlnet", "style_transfer") and name.startswith("train")
        if name in ("uncertainty", "self_train") or two_domains:
            return {"dataset_dir": labeled, "unlabeled_dir": unlabeled}
        return {} if bundle == "uncertainty_controlnet" else {"dataset_dir": labeled}

    def run(self, bundle: str, name: str, **overrides: Any) -> ConfigWorkflow:
        overrides = {key: str(v) if isinstance(v, Path) else v for key, v in overrides.items()}
        kind = "train" if "train" in name else "infer"
        return run_bundle(self.config(bundle, name), kind, **(self.inputs(bundle, name) | overrides))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("world")
    (root / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "elsewhere")
        yield World(root)
    assert not list((root / "elsewhere").iterdir()), "something was written to the working directory"


# The stages in order; each needs those before it.


@pytest.fixture(scope="module")
def segmentation(world: World) -> Path:
    world.run("retinal_unet", "train")
    return world.models("retinal_unet")


@pytest.fixture(scope="module")
def two_segmentations(world: World, segmentation: Path) -> list[Path]:
    second = segmentation / "second"
    world.run("retinal_unet", "train", ckpt_dir=second, output_dir=second, seed=1)
    return [segmentation / "model.pt", second / "model.pt"]


@pytest.fixture(scope="module")
def measured(world: World, segmentation: Path) -> Path:
    world.run("retinal_unet", "uncertainty")
    return segmentation


@pytest.fixture(scope="module")
def autoencoder(world: World) -> Path:
    world.run("latent_diffusion", "train_autoencoder")
    return world.models("latent_diffusion")


@pytest.fixture(scope="module")
def diffusion(world: World, autoencoder: Path) -> Path:
    world.run("latent_diffusion", "train_diffusion")
    return autoencoder


@pytest.fixture(scope="module")
def uncertainty_net(world: World, diffusion: Path, measured: Path) -> Path:
    world.run("uncertainty_controlnet", "train")
    return world.models("uncertainty_controlnet")


@pytest.fixture(scope="module")
def semantic_net(world: World, uncertainty_net: Path) -> Path:
    world.run("semantic_controlnet", "train")
    return world.models("semantic_controlnet")


@pytest.fixture(scope="module")
def joint(world: World, autoencoder: Path, measured: Path) -> Path:
    world.run("joint", "train")
    return world.models("joint")


@pytest.fixture(scope="module")
def jointly_drawn(world: World, joint: Path) -> Path:
    world.run("joint", "inference", output_dir=world.root / "jointly_drawn")
    return world.root / "jointly_drawn"


@pytest.fixture(scope="module")
def synthetic(world: World, semantic_net: Path) -> Path:
    world.run("synthesis", "inference", output_dir=world.root / "synthetic")
    return world.root / "synthetic"


@pytest.fixture(scope="module")
def translators(world: World, segmentation: Path) -> Path:
    for method in METHODS:
        world.run("style_transfer", f"train_{method}")
    return world.models("style_transfer")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def assert_samples(folder: Path, count: int) -> list[dict]:
    """Numbered images, a sheet of them, and what each was made of."""
    images = sorted(path for path in folder.glob("[0-9]*.png"))
    assert [path.name for path in images] == [f"{i:04d}.png" for i in range(count)]
    assert all(np.asarray(Image.open(path)).shape == (SIZE, SIZE) for path in images)
    assert Image.open(folder / "sheet.png").size[0] > count * SIZE
    return read_json(folder / "samples.json")


# ---------------------------------------------------------------- retinal_unet


def test_the_segmentation_network_is_published_with_its_score(segmentation, world):
    metadata = read_metadata(segmentation / "model.pt")
    assert 0 <= metadata["mean_iou"] <= 1
    assert metadata["epoch"] == 1
    network = from_bundle(world.bundles / "retinal_unet", weights="model.pt")
    assert network(torch.rand(1, 1, SIZE, SIZE)).shape == (1, len(LABELS), SIZE, SIZE)
    assert not any(weight.requires_grad for weight in network.parameters())


def test_the_evaluation_counts_every_test_pixel_once(world, segmentation, tmp_path):
    world.run("retinal_unet", "evaluate", dataset_dir=world.unlabeled, output_dir=tmp_path)
    metrics = read_json(tmp_path / "metrics.json")
    assert np.sum(metrics["confusion"]) == COUNTS["test"] * SIZE * SIZE
    assert metrics["mean_iou"] == pytest.approx(scores(np.array(metrics["confusion"]))["mean_iou"])
    assert 0 <= metrics["mean_iou"] <= 1


def test_inference_writes_a_label_map_and_an_entropy_image_for_each_image(world, segmentation, tmp_path):
    world.run("retinal_unet", "inference", dataset_dir=world.unlabeled, output_dir=tmp_path)
    items = datalist(world.unlabeled, "test")
    assert read_json(tmp_path / "uncertainty.json").keys() == {item["image"] for item in items}
    assert all(0 < u < 1 for u in read_json(tmp_path / "uncertainty.json").values())
    for item, row in zip(items, json.loads((tmp_path / "index.json").read_text()), strict=True):
        assert row["image"] == item["image"]
        label, entropy = (read_array(tmp_path / row[kind]) for kind in ("label", "entropy"))
        assert label.shape == entropy.shape == (SIZE, SIZE)
        assert set(np.unique(label)) <= set(LABELS)
        assert entropy.mean() / 255 == pytest.approx(read_json(tmp_path / "uncertainty.json")[item["image"]], abs=0.002)


def test_the_uncertainty_of_both_domains_is_measured_and_the_prior_is_the_unlabelled_one_s(world, measured):
    record, prior = read_json(measured / "uncertainties.json"), read_json(measured / "prior.json")
    splits = ("training", "validation")
    unlabeled = [record["images"][item["image"]] for item in datalist(world.unlabeled, splits)]
    assert len(record["images"]) == 2 * sum(COUNTS[split] for split in splits)
    assert prior["mean"] == pytest.approx(np.mean(unlabeled))
    assert prior["std"] == pytest.approx(np.std(unlabeled, ddof=1), rel=1e-4)
    assert record["segmentation_sha256"] == prior["segmentation_sha256"] == sha256(measured / "model.pt")


@pytest.mark.parametrize(("acquisition", "aggregation"), [("margin", "p95"), ("tta", "retina"), ("ensemble", "mean")])
def test_what_is_measured_is_a_setting(world, measured, tmp_path, acquisition, aggregation):
    world.run(
        "retinal_unet",
        "uncertainty",
        output_dir=tmp_path,
        acquisition=acquisition,
        aggregation=aggregation,
        samples=5,
        ensemble=[str(measured / "model.pt")] if acquisition == "ensemble" else [],
        scaling="quantile",
        distribution="empirical",
    )
    record, prior = read_json(tmp_path / "uncertainties.json"), read_json(tmp_path / "prior.json")
    usual = read_json(measured / "uncertainties.json")
    assert (usual["acquisition"], usual["aggregation"]) == ("entropy", "mean")
    for file in (record, prior):
        assert (file["acquisition"], file["aggregation"], file["samples"]) == (acquisition, aggregation, 5)
        assert file["segmentation_sha256"] == usual["segmentation_sha256"]
    values = np.array(list(record["images"].values()))
    assert ((values >= 0) & (values <= 1)).all()
    if acquisition == "ensemble":  # of a network with itself
        members = {str((measured / "model.pt").resolve()): usual["segmentation_sha256"]}
        assert record["ensemble"] == prior["ensemble"] == members
        assert values.max() < 1e-6
    else:
        assert values != pytest.approx(np.array(list(usual["images"].values())))
        assert len(prior["quantiles"]) == len(prior["both_quantiles"]) > 2


def test_the_segmentation_network_trains_on_files_without_a_data_set(world, tmp_path):
    """As MONAI Label's trainings do: they set the two lists of files and nothing else that names a data set."""
    lists = {
        f"{part}::dataset::data": [
            {key: item[key] for key in ("image", "label")}
            for item in datalist(world.labeled, split, ("image", "label"))
        ]
        for part, split in (("train", "training"), ("validate", "validation"))
    }
    nowhere = {"dataset_dir": tmp_path / "nowhere", "ckpt_dir": tmp_path, "output_dir": tmp_path}
    world.run("retinal_unet", "train", **nowhere, **lists)
    assert read_metadata(tmp_path / "model.pt")["epoch"] == 1


# ---------------------------------------------------------------- latent_diffusion


def test_the_autoencoder_gives_images_back_at_their_size(world, autoencoder):
    network = from_bundle(world.bundles / "latent_diffusion", "autoencoder_def", "autoencoder.pt")
    assert network.reconstruct(torch.rand(1, 1, SIZE, SIZE)).shape == (1, 1, SIZE, SIZE)
    assert Image.open(world.bundles / "latent_diffusion" / "output" / "autoencoder" / "epoch_0001.png").size[0] > SIZE


class FeatureLoss(nn.Module):
    """A perceptual loss: mean absolute difference of a network's features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, reconstruction: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return (self.network(reconstruction) - self.network(image)).abs().mean()


def test_a_perceptual_network_is_a_term_of_the_autoencoders_loss_by_its_definition(world, autoencoder, tmp_path):
    network = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 4, "kernel_size": 3}
    features = {"_target_": f"{__name__}.FeatureLoss", "network": network}
    trained = world.run("latent_diffusion", "train_autoencoder", ckpt_dir=tmp_path, output_dir=tmp_path,
                        perceptual=features, perceptual_weight=3.0)  # fmt: skip
    loss, trainer = (trained.parser.get_parsed_content(id) for id in ("loss", "train::trainer"))
    assert trainer.state.output[0]["perceptual"] > 0
    assert loss.weights["perceptual"] == 3
    assert not any(p.requires_grad for p in loss.perceptual.parameters())
    assert sha256(tmp_path / "autoencoder.pt") != sha256(autoencoder / "autoencoder.pt")


def test_the_diffusion_model_carries_what_belongs_to_its_latents(world, diffusion):
    metadata = read_metadata(diffusion / "model.pt")
    assert 0.01 < metadata["scale_factor"] < 100
    assert metadata["latent_shape"][1:] == [SIZE // 4, SIZE // 4]
    assert np.isfinite(metadata["val_loss"])


def test_the_diffusion_model_samples_images(world, diffusion, tmp_path):
    world.run("latent_diffusion", "inference", output_dir=tmp_path)
    requests = assert_samples(tmp_path, 3)
    assert len({request["seed"] for request in requests}) == 3


# ---------------------------------------------------------------- the ControlNets


def test_every_image_is_encoded_once_for_all_three_networks(diffusion, semantic_net):
    files = list((diffusion / "latents").glob("*.safetensors"))
    assert len(files) == 4  # training and validation of two data sets
    assert max(file.stat().st_mtime_ns for file in files) < (diffusion / "model.pt").stat().st_mtime_ns


def test_the_uncertainty_net_is_asked_for_the_uncertainties_of_its_configuration(world, uncertainty_net, tmp_path):
    wanted = [0.1, 0.5]
    world.run("uncertainty_controlnet", "inference", output_dir=tmp_path, uncertainties=wanted)
    assert [request["uncertainty"] for request in assert_samples(tmp_path, 3)] == [0.1, 0.5, 0.1]


def test_the_semantic_net_is_trained_with_and_without_the_other(world, semantic_net, tmp_path):
    world.run("semantic_controlnet", "train", mode="paper", ckpt_dir=tmp_path, output_dir=tmp_path / "output")
    modes = [read_metadata(folder / "model.pt")["mode"] for folder in (semantic_net, tmp_path)]
    assert modes == ["compositional", "paper"]
    assert (tmp_path / "output" / "samples" / "epoch_0001.png").is_file()
    root = world.bundles / "semantic_controlnet"
    both = [from_bundle(root, weights=str(folder / "model.pt")).state_dict() for folder in (semantic_net, tmp_path)]
    assert any(not torch.equal(value, both[1][key]) for key, value in both[0].items())


def test_layout_supervision_is_a_file_more(world, semantic_net, tmp_path):
    files = [str(world.config("semantic_controlnet", name)) for name in ("train", "layout_supervision")]
    overrides = {"dataset_dir": str(world.labeled), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "output")}

    def run(**more):
        workflow = ConfigWorkflow(
            config_file=files, meta_file=str(world.config("semantic_controlnet", "metadata")), logging_file=False,
            workflow_type="train", **(overrides | more),
        )  # fmt: skip
        workflow.initialize()
        workflow.run()
        return workflow.parser.get_parsed_content("train::trainer").state

    state = run()
    assert state.metrics["layout_loss"] > 0
    assert state.metrics["discriminator_loss"] > 0
    saved = torch.load(tmp_path / "last.pt", weights_only=True)["objects"]
    assert {"discriminator", "discriminator_optimizer"} < saved.keys()
    assert run(resume=True, max_epochs=2).epoch == 2
    plain = read_metadata(semantic_net / "model.pt")["val_loss"]
    assert read_metadata(tmp_path / "model.pt")["val_loss"] != plain


def test_the_semantic_net_makes_images_of_label_maps(world, semantic_net, tmp_path):
    world.run("semantic_controlnet", "inference", output_dir=tmp_path)
    known = {item["label"] for item in datalist(world.labeled, "test", ("image", "label"))}
    assert {request["label"] for request in assert_samples(tmp_path, 3)} <= known


@pytest.mark.parametrize(
    ("bundle", "name", "file"),
    [
        ("uncertainty_controlnet", "train", "uncertainties"),
        ("uncertainty_controlnet", "train", "prior"),
        ("uncertainty_controlnet", "inference", "prior"),
        ("semantic_controlnet", "train", "uncertainties"),
        ("semantic_controlnet", "train", "prior"),
        ("synthesis", "inference", "prior"),
    ],
)
def test_statistics_of_another_segmentation_network_are_refused(world, semantic_net, tmp_path, bundle, name, file):
    record = read_json(world.models("retinal_unet") / f"{file}.json") | {"segmentation_sha256": "0" * 64}
    (tmp_path / "other.json").write_text(json.dumps(record))
    with refused("not comparable"):
        world.run(bundle, name, output_dir=tmp_path / "output", **{f"{file}_path": tmp_path / "other.json"})


@pytest.mark.parametrize(
    ("bundle", "name"),
    [("uncertainty_controlnet", "inference"), ("semantic_controlnet", "train"), ("synthesis", "inference")],
)
def test_another_scaling_of_the_hint_than_the_net_was_trained_with_is_refused(
    world, semantic_net, tmp_path, bundle, name
):
    world.run("retinal_unet", "uncertainty", output_dir=tmp_path, scaling="paper")  # the same network, measured anew
    with refused("was trained with scaling 'zscore', in use is 'paper'"):
        world.run(bundle, name, output_dir=tmp_path / "output", prior_path=tmp_path / "prior.json")


# ---------------------------------------------------------------- the joint model


def test_the_joint_model_says_what_it_was_trained_on(world, joint):
    about = read_metadata(joint / "model.pt")
    assert about["autoencoder_sha256"] == read_metadata(world.models("latent_diffusion") / "autoencoder.pt")["sha256"]
    assert about["hint"]["segmentation_sha256"] == sha256(world.models("retinal_unet") / "model.pt")
    assert about["latent_shape"] == [8, SIZE // 4, SIZE // 4]
    assert list((world.bundles / "joint" / "output" / "samples").glob("*.png"))


def test_the_joint_model_draws_a_data_set(world, joint, jointly_drawn):
    assert check(jointly_drawn, need_labels=True) == []
    items = datalist(jointly_drawn, ("training", "validation"), ("image", "label"))
    assert len(items) == sum(COUNTS[split] for split in ("training", "validation"))
    weights = {"autoencoder": "latent_diffusion/models/autoencoder.pt", "joint": "joint/models/model.pt"}
    weights |= {"segmentation": "retinal_unet/models/model.pt"}
    models = {name: sha256(world.bundles / path) for name, path in weights.items()}
    assert all(item["synthetic"]["models"] == models for item in items)


def test_a_joint_training_goes_on_where_it_stopped(world, joint, tmp_path):
    own = {"ckpt_dir": tmp_path, "output_dir": tmp_path / "output"}
    world.run("joint", "train", **own)
    trained = world.run("joint", "train", resume=True, max_epochs=2, **own)
    assert trained.parser.get_parsed_content("train::trainer").state.epoch == 2


def test_a_joint_model_of_controlnets_is_trained_and_draws(world, measured, autoencoder, tmp_path):
    install("joint", tmp_path, "small", {"inference.json": {"form": "controlnets"}, "train.json": _BRIEF_GENERATIVE})
    places = {name: world.bundles / name for name in ("latent_diffusion", "retinal_unet")}
    for name, kind, own in (
        ("train", "train", {"dataset_dir": [str(world.labeled), str(world.unlabeled)]}),
        ("inference", "infer", {"dataset_dir": str(world.labeled), "output_dir": str(tmp_path / "set"), "count": 2}),
    ):
        own |= {key: str(place) for key, place in places.items()}
        run_bundle(tmp_path / "joint" / "configs" / f"{name}.json", kind, **own)
    assert check(tmp_path / "set", need_labels=True) == []


def test_another_scaling_of_the_hint_than_the_joint_model_was_trained_with_is_refused(world, joint, tmp_path):
    world.run("retinal_unet", "uncertainty", output_dir=tmp_path, scaling="paper")
    with refused("was trained with scaling 'zscore', in use is 'paper'"):
        world.run("joint", "inference", output_dir=tmp_path / "output", prior_path=tmp_path / "prior.json")


# ---------------------------------------------------------------- synthesis and retraining


def test_a_synthetic_data_set_looks_like_a_real_one(world, synthetic):
    assert check(synthetic, need_labels=True) == []
    header, real = read_header(synthetic), read_header(world.labeled)
    assert header["labels"] == real["labels"]
    assert header["spacing_mm"] == real["spacing_mm"]
    assert header["synthetic"] is True
    assert {split: len(header[split]) for split in COUNTS} == COUNTS | {"test": 0}


def test_every_synthetic_image_keeps_its_label_map_and_says_what_it_was_made_of(world, synthetic):
    models = {
        "autoencoder": world.models("latent_diffusion") / "autoencoder.pt",
        "diffusion": world.models("latent_diffusion") / "model.pt",
        "semantic": world.models("semantic_controlnet") / "model.pt",
        "uncertainty": world.models("uncertainty_controlnet") / "model.pt",
        "segmentation": world.models("retinal_unet") / "model.pt",
    }
    items = datalist(synthetic, ("training", "validation"), ("image", "label"))
    for item in items:
        made_of = item["synthetic"]
        source = world.labeled / "labels" / made_of["source_label"]
        assert np.array_equal(read_array(item["label"]), read_array(source))
        assert 0 <= made_of["uncertainty"] <= 1
        assert made_of["models"] == {name: sha256(path) for name, path in models.items()}
    assert len({item["synthetic"]["seed"] for item in items}) == len(items)


def test_a_finished_synthetic_data_set_is_not_overwritten(world, synthetic):
    with refused("already holds a data set"):
        world.run("synthesis", "inference", output_dir=synthetic)


def test_an_interrupted_synthesis_goes_on_and_gives_the_same_images(world, synthetic, tmp_path, monkeypatch):
    write, written = synthesis.Synthesizer._write, []

    def stop_after_five(self, writer, request, *rest):
        if len(written) == 5:
            raise KeyboardInterrupt
        write(self, writer, request, *rest)
        written.append(request.index)

    monkeypatch.setattr(synthesis.Synthesizer, "_write", stop_after_five)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        world.run("synthesis", "inference", output_dir=tmp_path / "set")
    assert not (tmp_path / "set" / "dataset.json").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    made = []
    monkeypatch.setattr(
        synthesis.Synthesizer, "_write", lambda self, *args: made.append(args[1].index) or write(self, *args)
    )
    world.run("synthesis", "inference", output_dir=tmp_path / "set")
    assert made == list(range(5, 12))
    assert read_header(tmp_path / "set") == read_header(synthetic)
    for item in read_header(synthetic)["training"]:
        assert np.array_equal(read_array(tmp_path / "set" / item["image"]), read_array(synthetic / item["image"]))


@pytest.mark.parametrize("with_real", [False, True], ids=["synthetic", "synthetic and real"])
def test_the_segmentation_network_is_retrained_on_synthetic_images(world, synthetic, with_real, tmp_path):
    folders = [str(synthetic), str(world.labeled)] if with_real else str(synthetic)
    world.run("retinal_unet", "train", dataset_dir=folders, validation_dir=synthetic, ckpt_dir=tmp_path)
    assert 0 <= read_metadata(tmp_path / "model.pt")["mean_iou"] <= 1


def test_other_counts_weights_and_label_maps_can_be_asked_for(world, synthetic, tmp_path):
    world.run(
        "synthesis",
        "inference",
        output_dir=tmp_path / "set",
        count=2,
        augment=True,
        uncertainty_weight=0.5,
        split="training",
        seed=5,
    )
    items = datalist(tmp_path / "set", "training", ("image", "label"))
    assert len(items) == 2
    for item in items:
        assert item["synthetic"]["weight"] == 0.5
        assert not np.array_equal(
            read_array(item["label"]), read_array(world.labeled / "labels" / item["synthetic"]["source_label"])
        )


# ---------------------------------------------------------------- style_transfer


@pytest.mark.parametrize("method", METHODS)
def test_a_translation_keeps_label_maps_and_looks_like_a_real_data_set(world, translators, method, tmp_path):
    weights = translators / method / "model.pt"
    output = tmp_path / "set"
    world.run("style_transfer", "inference", output_dir=output, ckpt_path=weights, device_name="home OCT")
    assert check(output, need_labels=True) == []
    header, real = read_header(output), read_header(world.labeled)
    assert (header["labels"], header["spacing_mm"]) == (real["labels"], real["spacing_mm"])
    assert (header["synthetic"], header["device"]) == (True, "home OCT")
    assert {split: len(header[split]) for split in COUNTS} == COUNTS | {"test": 0}
    pairs = zip(
        *(datalist(d, ("training", "validation"), ("image", "label")) for d in (output, world.labeled)), strict=True
    )
    for item, source in pairs:
        made_of = item["synthetic"]
        assert made_of["source_image"] == made_of["source_label"] == Path(source["image"]).name
        assert (made_of["method"], made_of["models"]) == (method, {"generator": sha256(weights)})
        assert item["subject"] == source["subject"]
        assert np.array_equal(read_array(item["label"]), read_array(source["label"]))
        assert not np.array_equal(read_array(item["image"]), read_array(source["image"]))
    with refused("already holds a data set"):
        world.run("style_transfer", "inference", output_dir=output, ckpt_path=weights)


@contextmanager
def stopped_after_seven(monkeypatch):
    """A translation in it is interrupted when it has written seven images."""
    write, written = translation.Translator._write, []

    def stop(self, writer, index, image):
        if len(written) == 7:
            raise KeyboardInterrupt
        write(self, writer, index, image)
        written.append(index)

    with monkeypatch.context() as patch:
        patch.setattr(translation.Translator, "_write", stop)
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            yield


def test_an_interrupted_translation_goes_on_but_not_with_other_weights(world, translators, tmp_path, monkeypatch):
    weights = [translators / method / "model.pt" for method in METHODS]
    with stopped_after_seven(monkeypatch):
        world.run("style_transfer", "inference", output_dir=tmp_path / "set", ckpt_path=weights[1])
    assert not (tmp_path / "set" / "dataset.json").exists()
    with refused(r"Item 0 of .* was made with \{'method': 'cut'.*, this run has \{'method': 'cyclegan'"):
        world.run("style_transfer", "inference", output_dir=tmp_path / "set", ckpt_path=weights[0])
    world.run("style_transfer", "inference", output_dir=tmp_path / "set", ckpt_path=weights[1])
    world.run("style_transfer", "inference", output_dir=tmp_path / "whole", ckpt_path=weights[1])
    assert read_header(tmp_path / "set") == read_header(tmp_path / "whole")
    for item in read_header(tmp_path / "whole")["training"]:
        assert np.array_equal(
            read_array(tmp_path / "set" / item["image"]), read_array(tmp_path / "whole" / item["image"])
        )


@pytest.mark.parametrize("method", METHODS)
def test_the_generator_is_published_with_how_it_was_trained(world, translators, method):
    metadata = read_metadata(translators / method / "model.pt")
    assert (metadata["method"], metadata["epoch"], metadata["iteration"]) == (method, 1, 3)
    assert "seconds" not in metadata  # which no limit makes worth knowing, and which differ at every repetition
    assert metadata["max_seconds"] is None
    sheet = world.bundles / "style_transfer" / "output" / method / "samples" / "epoch_0001.png"
    assert Image.open(sheet).size == (4 * SIZE + 3 * 2, 3 * SIZE + 2 * 2)  # validation images: 4 of each domain


def test_the_generator_of_accut_is_told_from_the_others_by_its_weights(world, translators):
    architectures = {method: read_metadata(translators / method / "model.pt")["architecture"] for method in METHODS}
    assert len({architectures.pop("accut"), *architectures.values()}) == 2
    settings = {"num_labels": len(LABELS)}
    root, weights = world.bundles / "style_transfer", "accut/model.pt"
    network = from_bundle(root, "segmenting_network_def", weights, settings=settings)
    assert network.segment(torch.rand(1, 1, SIZE, SIZE)).shape == (1, len(LABELS), SIZE, SIZE)


def test_accut_learns_the_label_maps_and_needs_those_of_the_labelled_domain_alone(world, tmp_path):
    """With nothing but the cross-entropy that falls, and an unlabelled domain that has no label map at all."""
    alone = {"nce_weight": 0.0, "identity_weight": 0.0, "segmentation_weight": 100.0, "learning_rate": 0.01}
    alone |= {"decay_start": 1.0, "patch_size": [SIZE, SIZE]}
    unlabeled = altered(world, tmp_path, without_any_labels)
    losses = []
    for steps in (1, 120):
        folders = {"ckpt_dir": tmp_path / str(steps), "output_dir": tmp_path, "unlabeled_dir": unlabeled}
        workflow = world.run("style_transfer", "train_accut", iterations_per_epoch=steps, **folders, **alone)
        losses.append(workflow.parser.get_parsed_content("train::trainer").state.output["segmentation"])
    assert losses[1] < 0.8 * losses[0]


def test_cycada_sees_through_the_network_that_it_is_given(world, two_segmentations, tmp_path):
    terms = []
    for path in two_segmentations:
        folders = {"ckpt_dir": tmp_path / path.parent.name, "output_dir": tmp_path}
        settings = {"segmentation_path": path, "iterations_per_epoch": 1}
        workflow = world.run("style_transfer", "train_cycada", **settings, **folders)
        terms.append(workflow.parser.get_parsed_content("train::trainer").state.output)
    assert terms[0]["cycle"] == terms[1]["cycle"]  # the same networks, the same images
    assert terms[0]["semantic"] != terms[1]["semantic"]


@pytest.mark.parametrize("method", METHODS)
def test_a_time_limit_ends_a_training_in_order(world, segmentation, method, tmp_path):
    settings = {"max_epochs": 100_000, "max_seconds": 2, "iterations_per_epoch": 1000}
    folders = {"ckpt_dir": tmp_path, "output_dir": tmp_path / "output"}
    world.run("style_transfer", f"train_{method}", **settings, **folders)
    metadata = read_metadata(tmp_path / "model.pt")
    assert 2 <= metadata["seconds"] < 20
    assert len(list((tmp_path / "output" / "samples").glob("*.png"))) == 1
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    rate = state["objects"]["optimizer"]["param_groups"][0]["lr"]
    assert 0 <= rate < 0.5 * 0.0002
    world.run("style_transfer", f"train_{method}", **settings, **folders, resume=True)
    assert read_metadata(tmp_path / "model.pt") == metadata  # the time was spent


def test_translation_runs_from_the_shell(world, translators, tmp_path):
    config = str(world.config("style_transfer", "inference"))
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        config,
        "--dataset_dir",
        str(world.labeled),
    ]
    command += ["--output_dir", str(tmp_path / "set"), "--split", "validation"]
    done = subprocess.run(command, cwd=tmp_path, env=SHELL, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(datalist(tmp_path / "set", "validation", ("image", "label"))) == COUNTS["validation"]


# ---------------------------------------------------------------- TSynD


def test_tsynd_writes_a_labelled_data_set_of_more_uncertain_images(world, autoencoder, two_segmentations, tmp_path):
    folders = {steps: tmp_path / str(steps) for steps in (0, 5)}
    for steps, folder in folders.items():
        world.run("latent_diffusion", "tsynd", output_dir=folder, steps=steps, batch_size=5, device_name="Spectralis")
        assert check(folder, need_labels=True) == []
    networks = [with_weights(from_bundle(world.bundles / "retinal_unet"), path) for path in two_segmentations]
    splits, keys = ("training", "validation"), ("image", "label")
    items = {steps: datalist(folder, splits, keys) for steps, folder in folders.items()}
    sources = datalist(world.labeled, splits, keys)
    hashes = {"autoencoder": sha256(autoencoder / "autoencoder.pt")}
    hashes |= {f"segmentation_{i}": sha256(path) for i, path in enumerate(two_segmentations, 1)}
    for item, source in zip(items[5], sources, strict=True):
        made_of = item["synthetic"]
        assert (made_of["method"], made_of["models"], made_of["steps"]) == ("tsynd", hashes, 5)
        assert (made_of["source_label"], item["subject"]) == (Path(source["label"]).name, source["subject"])
        assert np.array_equal(read_array(item["label"]), read_array(source["label"]))
    before, after = (
        disagreement(networks, torch.stack([read_image(item["image"]) for item in items[steps]])) for steps in (0, 5)
    )
    assert (after > before).float().mean() > 0.9  # grey values are rounded


def test_tsynd_goes_on_where_it_was_interrupted_but_not_otherwise(
    world, autoencoder, two_segmentations, tmp_path, monkeypatch
):
    own = {"output_dir": tmp_path / "set", "steps": 1}
    with stopped_after_seven(monkeypatch):
        world.run("latent_diffusion", "tsynd", **own)
    for other in ({"radius": 0.2}, {"segmentation_paths": [str(path) for path in two_segmentations[::-1]]}):
        with refused("Item 0 of .* was made with .*, this run has .*choose another output_dir"):
            world.run("latent_diffusion", "tsynd", **own | other)
    world.run("latent_diffusion", "tsynd", **own)
    world.run("latent_diffusion", "tsynd", output_dir=tmp_path / "whole", steps=1)
    assert read_header(tmp_path / "set") == read_header(tmp_path / "whole")


def test_tsynd_tells_how_long_an_image_takes(world, autoencoder, two_segmentations, tmp_path, caplog):
    caplog.set_level(logging.INFO, "unicorn_monai")
    world.run("latent_diffusion", "tsynd", output_dir=tmp_path / "set", steps=1)
    total = COUNTS["training"] + COUNTS["validation"]
    assert re.search(rf"tsynd: {total} images, \d+\.\d{{3}} seconds each", caplog.text)


# ---------------------------------------------------------------- augmentation and self-training


def test_no_augmentation_is_the_training_without_the_setting(world, tmp_path):
    config = read_json(world.config("retinal_unet", "train"))
    assert config["train"]["preprocessing"]["transforms"].pop() == "@augmenting"
    assert config.pop("augmenting")["_target_"].endswith("training_augmentation")
    world.config("retinal_unet", "train").with_name("train_before.json").write_text(json.dumps(config))
    for name, augmentation in (("train", None), ("train_before", None), ("train", "strong")):
        folder = tmp_path / f"{name}{augmentation or ''}"
        extra = {"augmentation": augmentation} if augmentation else {}
        world.run("retinal_unet", name, ckpt_dir=folder, max_epochs=2, **extra)
    plain, before, strong = (
        torch.load(tmp_path / f / "resume.pt", weights_only=True) for f in ("train", "train_before", "trainstrong")
    )
    assert_same(plain, before)
    first = next(iter(plain["objects"]["network"]))
    assert not torch.equal(plain["objects"]["network"][first], strong["objects"]["network"][first])


def test_a_training_with_augmentation_goes_on_as_if_not_interrupted(world, tmp_path, monkeypatch):
    both = interrupted_and_whole(
        world, "retinal_unet", "train", "resume.pt", tmp_path, monkeypatch, augmentation="strong"
    )
    assert_same(*both)


def test_pseudo_labels_nobody_is_sure_of_are_refused(world, segmentation, tmp_path):
    with refused("No pixel of 12 images has a label of probability 1.0 or more. Lower the threshold"):
        world.run("retinal_unet", "pseudo_label", output_dir=tmp_path / "set", threshold=1.0)
    assert not (tmp_path / "set" / "dataset.json").exists()
    with refused(r"Item 0 of .* was made with \{'threshold': 1.0.*, this run has \{'threshold': 0.3"):
        world.run("retinal_unet", "pseudo_label", output_dir=tmp_path / "set", threshold=0.3)


# ---------------------------------------------------------------- as MONAI sees the bundles

CONFIGS = [
    ("retinal_unet", "train"),
    ("retinal_unet", "self_train"),
    ("retinal_unet", "adapt"),
    ("retinal_unet", "evaluate"),
    ("retinal_unet", "inference"),
    ("retinal_unet", "uncertainty"),
    ("retinal_unet", "pseudo_label"),
    ("latent_diffusion", "train_autoencoder"),
    ("latent_diffusion", "train_diffusion"),
    ("latent_diffusion", "inference"),
    ("latent_diffusion", "tsynd"),
    ("uncertainty_controlnet", "train"),
    ("uncertainty_controlnet", "inference"),
    ("semantic_controlnet", "train"),
    ("semantic_controlnet", "inference"),
    ("synthesis", "inference"),
    *(("style_transfer", f"train_{method}") for method in METHODS),
    ("style_transfer", "inference"),
]


@pytest.mark.parametrize(("bundle", "name"), CONFIGS)
def test_no_property_is_missing(world, synthetic, translators, two_segmentations, bundle, name):
    workflow = ConfigWorkflow(
        config_file=str(world.config(bundle, name)),
        workflow_type="train" if "train" in name else "infer",
        logging_file=False,
        **world.inputs(bundle, name),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize("bundle", TINY)
def test_the_metadata_follow_the_specification(bundle, tmp_path):
    # MONAI downloads the schema unless the file is there
    schema = shutil.copy(SCHEMA, tmp_path / "schema.json")
    verify_metadata(meta_file=f"{bundle_root(bundle)}/configs/metadata.json", filepath=str(schema))


def test_metadata_without_a_tensor_s_shape_are_refused(tmp_path):
    metadata = read_json(Path(bundle_root("retinal_unet")) / "configs" / "metadata.json")
    del metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    schema = shutil.copy(SCHEMA, tmp_path / "schema.json")
    with pytest.raises(ValueError, match="spatial_shape"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(schema))


@pytest.mark.parametrize("bundle", ["retinal_unet", "style_transfer", "latent_diffusion"])
def test_a_network_has_the_shapes_of_its_metadata(bundle, tmp_path):
    root = Path(bundle_root(bundle))
    zoo_checks.check_shapes(root, n=2)
    if bundle == "latent_diffusion":
        zoo_checks.check_autoencoder(root, tmp_path)


def test_a_stage_runs_from_the_shell_with_overrides(world, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(world.config("retinal_unet", "train"))]
    folders = [str(world.labeled), str(world.unlabeled)]
    command += ["--dataset_dir", str(folders), "--validation_dir", folders[0], "--ckpt_dir", str(tmp_path / "models")]
    command += ["--batch_size", "8", "--iterations_per_epoch", "2"]
    command += ["--train::trainer::max_epochs", "2", "--val_interval", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=SHELL, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_metadata(tmp_path / "models" / "model.pt")["epoch"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert "segmentation U-Net: 4/4" in done.stdout + done.stderr


@pytest.mark.parametrize(("bundle", "config"), [("retinal_unet", "train"), ("latent_diffusion", "train_autoencoder")])
def test_the_tracking_option_of_monai_records_the_loss(world, tmp_path, bundle, config):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(world.config(bundle, config))]
    command += ["--dataset_dir", str(world.labeled), "--ckpt_dir", str(tmp_path / "models"), "--batch_size", "4"]
    command += ["--output_dir", f"$'{tmp_path}'", "--max_epochs", "1", "--tracking", "mlflow", "--run_name", "mine"]
    done = subprocess.run(command, cwd=tmp_path, env=SHELL, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [(run.info.run_name, run.info.status) for run in runs] == [("mine", "FINISHED")]
    assert math.isfinite(runs[0].data.metrics["train_loss"])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_translate_together_and_stop_together(world, segmentation, method, tmp_path):
    files = [str(world.config("style_transfer", f"{prefix}train_{method}")) for prefix in ("", "multi_gpu_")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", str(files), "--dataset_dir", str(world.labeled)]
    command += ["--unlabeled_dir", str(world.unlabeled), "--ckpt_dir", str(tmp_path / "models")]
    command += ["--output_dir", str(tmp_path), "--max_epochs", "100000", "--max_seconds", "4"]
    done = subprocess.run(command, cwd=tmp_path, env=SHELL, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    metadata = read_metadata(tmp_path / "models" / "model.pt")
    assert metadata["seconds"] >= 4
    assert metadata["epoch"] < 100000


def test_two_processes_make_the_data_set_of_one(world, synthetic, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", str(world.config("synthesis", "inference"))]
    command += ["--dataset_dir", str(world.labeled), "--output_dir", str(tmp_path / "set")]
    done = subprocess.run(command, cwd=tmp_path, env=SHELL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    both = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (synthetic, tmp_path / "set")
    )
    assert next(both) == next(both)


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["retinal_unet", "semantic_controlnet"])
def test_two_processes_train_together_and_one_goes_on_alone(world, synthetic, bundle, tmp_path):
    files = [str(world.config(bundle, name)) for name in ("train", "multi_gpu_train")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "monai.bundle", "run", "--config_file", str(files), "--dataset_dir", str(world.labeled)]
    command += ["--ckpt_dir", str(tmp_path / "models"), "--output_dir", str(tmp_path), "--batch_size", "2"]
    command += ["--iterations_per_epoch", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=SHELL, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (done.stdout + done.stderr).count(": 2/2") == 1  # one of the processes tells
    assert read_metadata(tmp_path / "models" / "model.pt")["epoch"] == 1
    world.run(bundle, "train", ckpt_dir=tmp_path / "models", output_dir=tmp_path, resume=True, max_epochs=2)
    state = "resume.pt" if bundle == "retinal_unet" else "last.pt"
    assert torch.load(tmp_path / "models" / state, weights_only=True)["epoch"] == 2


# ---------------------------------------------------------------- interrupted trainings


def assert_same(a: Any, b: Any) -> None:
    """Equal bit for bit, whatever is nested."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize(
    ("bundle", "name", "last"),
    [
        ("retinal_unet", "train", "resume.pt"),
        ("latent_diffusion", "train_autoencoder", "autoencoder_last.pt"),
        ("latent_diffusion", "train_diffusion", "last.pt"),
        ("uncertainty_controlnet", "train", "last.pt"),
        ("semantic_controlnet", "train", "last.pt"),
        *(("style_transfer", f"train_{method}", "last.pt") for method in METHODS),
    ],
)
def test_an_interrupted_training_ends_as_if_it_had_not_been(
    world, synthetic, bundle, name, last, tmp_path, monkeypatch
):
    assert_same(*interrupted_and_whole(world, bundle, name, last, tmp_path, monkeypatch))


def interrupted_and_whole(world, bundle, name, last, tmp_path, monkeypatch, **more) -> tuple[dict, dict]:
    """The last states of a training of two epochs, and of one that was interrupted after the first."""

    def train(folder: str, **overrides):
        settings = {"max_epochs": 2, "ckpt_dir": tmp_path / folder, "output_dir": tmp_path / f"{folder}_output"}
        world.run(bundle, name, **settings, **more, **overrides)

    train("whole")
    save = TrainingState.save

    def power_cut(self, engine):
        save(self, engine)
        raise ConnectionAbortedError("the lights went out")

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", power_cut)
        with pytest.raises(RuntimeError) as caught:
            train("interrupted")
    assert "lights" in str(root_cause(caught.value))
    train("interrupted", resume=True)
    whole, resumed = (torch.load(tmp_path / f / last, weights_only=True) for f in ("whole", "interrupted"))
    assert whole["epoch"] == 2
    return whole, resumed


def test_a_finished_training_is_not_repeated_and_fewer_epochs_are_refused(world, segmentation, tmp_path):
    for file in segmentation.glob("*.*"):
        shutil.copy(file, tmp_path)
    before = sha256(tmp_path / "resume.pt")
    world.run("retinal_unet", "train", ckpt_dir=tmp_path, resume=True)
    assert sha256(tmp_path / "resume.pt") == before
    world.run("retinal_unet", "train", ckpt_dir=tmp_path, resume=True, max_epochs=3)
    with refused("has 3 finished epochs, more than max_epochs 2"):
        world.run("retinal_unet", "train", ckpt_dir=tmp_path, resume=True, max_epochs=2)


def test_the_last_epoch_is_validated_whatever_the_interval(world, tmp_path):
    world.run("retinal_unet", "train", ckpt_dir=tmp_path, val_interval=5)
    assert read_metadata(tmp_path / "model.pt")["epoch"] == 1


# ---------------------------------------------------------------- what is wrong is refused by name


@contextmanager
def refused(message: str) -> Iterator[None]:
    """The block ends with a ValueError that says ``message``, in whatever MONAI wraps it."""
    with pytest.raises((ValueError, RuntimeError)) as caught:
        yield
    reason = root_cause(caught.value)
    assert isinstance(reason, ValueError), reason
    assert re.search(message, str(reason)), f"{message!r} is not in {str(reason)!r}"


def altered(world: World, folder: Path, change: Callable[[Path, dict], None]) -> Path:
    """A copy of the labelled data set; ``change`` gets its folder and its header."""
    root = Path(shutil.copytree(world.labeled, folder / "altered"))
    header = read_json(root / "dataset.json")
    change(root, header)
    (root / "dataset.json").write_text(json.dumps(header))
    return root


def without_labels(root: Path, header: dict) -> None:
    for item in header["training"]:
        del item["label"]


def without_any_labels(root: Path, header: dict) -> None:
    for split in COUNTS:
        for item in header[split]:
            del item["label"]
    shutil.rmtree(root / "labels")


def label_nine(root: Path, header: dict) -> None:
    write_array(root / header["training"][3]["label"], np.full((SIZE, SIZE), 9, np.uint8))


def two_sizes(root: Path, header: dict) -> None:
    for key in ("image", "label"):
        write_array(root / header["training"][3][key], np.ones((SIZE, 2 * SIZE), np.uint8))


def label_of_other_size(root: Path, header: dict) -> None:
    write_array(root / header["training"][3]["label"], np.ones((SIZE, 2 * SIZE), np.uint8))


def colour(root: Path, header: dict) -> None:
    write_array(root / header["training"][3]["image"], np.ones((SIZE, SIZE, 3), np.uint8))


def not_a_number(root: Path, header: dict) -> None:
    pixels = np.full((SIZE, SIZE), np.nan, np.float32)
    nib.save(nib.Nifti1Image(pixels, np.eye(4)), root / header["training"][3]["image"])


def no_validation(root: Path, header: dict) -> None:
    header["validation"] = []


DATA_FAULTS: dict[str, tuple[str, str, Callable, str]] = {
    "no labels": ("retinal_unet", "train", without_labels, "has no 'label', which this stage needs"),
    "unknown label": ("retinal_unet", "train", label_nine, "holds values 9 to 9; expected 0 to 3"),
    "two sizes": ("retinal_unet", "train", two_sizes, "Images differ in size.*000003"),
    "two sizes, latents": ("latent_diffusion", "train_diffusion", two_sizes, "Images differ in size.*000003"),
    "label of other size": (
        "retinal_unet",
        "train",
        label_of_other_size,
        r"000003.*found shape \(32, 64\); expected that of its image, \(32, 32\)",
    ),
    "colour image": ("retinal_unet", "train", colour, "000003.* has 3 channel.*expected 1"),
    "colour image, latents": ("latent_diffusion", "train_autoencoder", colour, "000003.* has 3 channel.*expected 1"),
    "NaN pixels": ("retinal_unet", "train", not_a_number, "000003.*holds NaN or infinite pixels"),
    "NaN pixels, latents": (
        "latent_diffusion",
        "train_diffusion",
        not_a_number,
        "000003.*holds NaN or infinite pixels",
    ),
    "colour image, translation": ("style_transfer", "train_cut", colour, "000003.* has 3 channel.*expected 1"),
    "no labels, translation": ("style_transfer", "train_accut", without_labels, "has no 'label', which this stage"),
    "unknown label, translation": ("style_transfer", "train_accut", label_nine, "holds values 9 to 9; expected 0 to 3"),
    "NaN pixels, translation": ("style_transfer", "train_cyclegan", not_a_number, "000003.*holds NaN or infinite"),
    "no validation split": ("retinal_unet", "train", no_validation, "has no items in split 'validation'"),
    "other images' uncertainties": ("semantic_controlnet", "train", lambda *_: None, "lacks 8 of 8 images"),
}


@pytest.mark.parametrize("fault", DATA_FAULTS)
def test_a_faulty_data_set_is_refused(world, synthetic, fault, tmp_path):
    bundle, name, change, message = DATA_FAULTS[fault]
    root = altered(world, tmp_path, change)
    with refused(message):
        world.run(bundle, name, dataset_dir=root, ckpt_dir=tmp_path / "models", output_dir=tmp_path / "output")
    assert not (tmp_path / "models" / "model.pt").exists()


SETTING_FAULTS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "no data set": ("retinal_unet", "train", {"dataset_dir": "nowhere"}, "'nowhere' does not exist"),
    "misspelt": ("retinal_unet", "train", {"max_epoch": 3}, "has no entry 'max_epoch'"),
    "misspelt inside": (
        "retinal_unet",
        "train",
        {"train::trainer::max_epoch": 3},
        "has no entry 'train::trainer::max_epoch'",
    ),
    "inside a list": (
        "retinal_unet",
        "train",
        {"train::handlers::99::interval": 3},
        "has no entry 'train::handlers::99",
    ),
    "inside a word": ("retinal_unet", "train", {"network::channels": [4]}, "has no entry 'network::channels'"),
    "mode": ("semantic_controlnet", "train", {"mode": "papr"}, "Unknown mode 'papr'; expected one of"),
    "mode of synthesis": ("synthesis", "inference", {"mode": "papr"}, "Unknown mode 'papr'; expected one of"),
    "precision": ("latent_diffusion", "train_diffusion", {"precision": "half"}, "Unknown precision 'half'"),
    "precision, autoencoder": (
        "latent_diffusion",
        "train_autoencoder",
        {"precision": "half"},
        "Unknown precision 'half'",
    ),
    "batch": ("latent_diffusion", "train_autoencoder", {"batch_size": 99}, r"needs 99 training images \(batch_size\)"),
    "split": ("retinal_unet", "evaluate", {"split": "tset"}, "Unknown split 'tset'"),
    "scaling": ("retinal_unet", "uncertainty", {"scaling": "minmax"}, "Unknown scaling 'minmax'"),
    "no prior": ("uncertainty_controlnet", "train", {"prior_path": "nowhere"}, "No uncertainty prior at 'nowhere'"),
    "no uncertainties": ("uncertainty_controlnet", "train", {"uncertainties_path": "x"}, "No uncertainties at 'x'"),
    "no weights": ("retinal_unet", "evaluate", {"ckpt_path": "nowhere.pt"}, "No trained weights at 'nowhere.pt'"),
    "no bundle": ("synthesis", "inference", {"latent_diffusion": "nowhere"}, "'nowhere' is not a bundle"),
    "no uncertainty": ("uncertainty_controlnet", "inference", {"uncertainties": None}, "No uncertainty to ask"),
    "no images": ("synthesis", "inference", {"count": 0}, "count is 0; expected at least one"),
    "augmentation": ("retinal_unet", "train", {"augmentation": "weak"}, "Unknown augmentation 'weak'; expected one of"),
    "threshold": ("retinal_unet", "pseudo_label", {"threshold": 90}, "threshold is 90; expected a number, 0 to 1"),
    "no time": ("style_transfer", "train_cut", {"max_seconds": 0}, "max_seconds is 0; expected a number above 0"),
    "precision, translation": ("style_transfer", "train_cut", {"precision": "half"}, "Unknown precision 'half'"),
    "pool": ("style_transfer", "train_cyclegan", {"pool_size": -1}, "pool_size is -1; expected 0"),
    "no such layer": ("style_transfer", "train_cut", {"nce_layers": [0, 2, 3, 99]}, "expected some of 0 to 7"),
    "decay": ("style_transfer", "train_cut", {"decay_start": 2}, "decay_start is 2; expected a number, 0 to 1"),
    "no unlabelled": ("style_transfer", "train_cut", {"unlabeled_dir": "nowhere"}, "'nowhere' does not exist"),
    "no segmenter": ("style_transfer", "train_cycada", {"segmentation_path": "x.pt"}, "No trained weights at 'x.pt'"),
    "semantic": ("style_transfer", "train_cycada", {"semantic_weight": -1}, "semantic_weight is -1; expected a number"),
    "decoder": ("style_transfer", "train_accut", {"segmentation_weight": "x"}, "segmentation_weight is 'x'; expected"),
    "one network": (
        "latent_diffusion",
        "tsynd",
        {"segmentation_paths": []},
        r"0 segmentation network\(s\): expected two",
    ),
    "half a step": ("latent_diffusion", "tsynd", {"steps": 0.5}, "steps is 0.5; expected 0 or more, a whole number"),
    "no radius": ("latent_diffusion", "tsynd", {"radius": -0.1}, "radius is -0.1; expected a number, 0 or more"),
    "no generator": ("style_transfer", "inference", {"ckpt_path": "x.pt"}, "No trained weights at 'x.pt'"),
    "epochs in words": ("retinal_unet", "train", {"max_epochs": "ten"}, "max_epochs is 'ten'; expected at least one"),
    "no epochs": ("latent_diffusion", "train_diffusion", {"max_epochs": 0}, "max_epochs is 0; expected at least one"),
    "half an image": (
        "retinal_unet",
        "train",
        {"batch_size": 2.5},
        "batch_size is 2.5; expected at least one, a whole",
    ),
    "true is no number": ("retinal_unet", "evaluate", {"batch_size": True}, "batch_size is True; expected at least"),
    "rate": (
        "uncertainty_controlnet",
        "train",
        {"learning_rate": -0.1},
        "learning_rate is -0.1; expected a number",
    ),
    "rate as text": (
        "style_transfer",
        "train_cut",
        {"learning_rate": "1e-3"},
        "learning_rate is '1e-3'; expected",
    ),
    "rate without end": (
        "retinal_unet",
        "train",
        {"learning_rate": math.inf},
        "learning_rate is inf; expected",
    ),
    "decay of the average": ("latent_diffusion", "train_diffusion", {"ema_decay": 1.0}, "ema_decay is 1.0; expected a"),
    "seed": ("synthesis", "inference", {"seed": -1}, "seed is -1; expected a whole number, 0 to 4294967295"),
    "switch": ("semantic_controlnet", "train", {"resume": "yes"}, "resume is 'yes'; expected true or false"),
    "no step": (
        "latent_diffusion",
        "train_diffusion",
        {"accumulation_steps": 0},
        "accumulation_steps is 0; expected at least one",
    ),
    "half a sample": ("retinal_unet", "uncertainty", {"samples": 1.5}, "samples is 1.5; expected at least one, a wh"),
    "patch": ("latent_diffusion", "train_autoencoder", {"patch_size": 64}, r"patch_size is 64; expected \[rows, col"),
    "interval": ("semantic_controlnet", "train", {"val_interval": 0}, "val_interval is 0; expected at least one"),
    "guidance": ("synthesis", "inference", {"guidance": [3.0]}, r"guidance is \[3.0\]; expected two or three numbers"),
    "weight": ("synthesis", "inference", {"uncertainty_weight": -1}, "uncertainty_weight is -1; expected a number, 0"),
    "shift": ("semantic_controlnet", "train", {"timestep_shift": 0}, "timestep_shift is 0; expected a number above 0"),
    "loss": (
        "latent_diffusion",
        "train_autoencoder",
        {"kl_weight": "small"},
        "kl_weight is 'small'; expected",
    ),
    "loaders": ("retinal_unet", "train", {"num_workers": -1}, "num_workers is -1; expected 0 or more, a whole"),
    "half a count": ("latent_diffusion", "inference", {"count": 1.5}, "count is 1.5; expected at least one, a whole"),
    "one wrong split": ("synthesis", "inference", {"split": ["training", "valid"]}, "Unknown split 'valid'; expected"),
    "mode of another training": (
        "synthesis",
        "inference",
        {"mode": "paper"},
        "was trained with mode 'compositional', in use is 'paper'. Use what it was trained with, or train it again",
    ),
    "other prediction type": (
        "synthesis",
        "inference",
        {
            "scheduler": {
                "_target_": "unicorn_monai.schedulers.DDIM",
                "prediction_type": "sample",
                "coarse": True,
                "schedule": "scaled_linear_beta",
            }
        },
        "was trained with prediction_type '.*', in use is 'sample'",
    ),
    "steps": (
        "synthesis",
        "inference",
        {"num_inference_steps": 5000},
        "num_inference_steps is 5000; expected 1 to 1000",
    ),
}


@pytest.mark.parametrize("fault", SETTING_FAULTS)
def test_a_faulty_setting_is_refused(world, synthetic, fault, tmp_path):
    bundle, name, overrides, message = SETTING_FAULTS[fault]
    folders = {"output_dir": tmp_path / "output"} | ({"ckpt_dir": tmp_path} if name.startswith("train") else {})
    with refused(message):
        world.run(bundle, name, **(folders | overrides))
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(("bundle", "name"), [("uncertainty_controlnet", "train"), ("synthesis", "inference")])
def test_another_scale_factor_than_that_of_the_training_is_refused(world, synthetic, bundle, name, tmp_path):
    other = shutil.copytree(world.bundles / "latent_diffusion", tmp_path / "latent_diffusion")
    config = read_json(other / "configs" / "inference.json")
    (other / "configs" / "inference.json").write_text(json.dumps(config | {"scale_factor": 123.0}))
    folders = {"output_dir": tmp_path / "output"} | ({"ckpt_dir": tmp_path} if name == "train" else {})
    with refused(r"was trained with scale_factor [\d.]+, in use is 123.0"):
        world.run(bundle, name, latent_diffusion=other, **folders)
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("retinal_unnet",), "No bundle 'retinal_unnet'"),
        (("retinal_unet", "tiny"), "has no preset 'tiny'"),
        (("retinal_unet", "small", {"train.json": {"max_epoch": 1}}), "has no entry 'max_epoch' to set"),
        (("retinal_unet", "small", {"trian.json": {"max_epochs": 1}}), "no configs/trian.json in it"),
        (("retinal_unet", "small", {"train.json": {"loss::weight::a": 1}}), "has no entry 'loss::weight::a' to set"),
    ],
)
def test_a_bundle_is_not_installed_with_a_misspelt_setting(tmp_path, arguments, message):
    name, *rest = arguments
    with pytest.raises(ValueError, match=message):
        install(name, tmp_path, *rest)


def test_a_bundle_that_is_installed_again_is_left_as_it_is(tmp_path):
    changes = {"train.json": {"max_epochs": 3}}
    root = install("retinal_unet", tmp_path, "small", changes)
    (root / "models").mkdir()
    (root / "models" / "model.pt").write_text("weights")
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}
    install("retinal_unet", tmp_path, "small", changes)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before} == before
    install("retinal_unet", tmp_path, "small")
    changed = {p.name for p, (inode, _) in before.items() if p.stat().st_ino != inode}
    assert changed == {"train.json", "self_train.json"}, "the second is on top of the first"


def test_weights_of_another_architecture_are_refused(world, segmentation, tmp_path):
    other = {"inference.json": TINY["retinal_unet"]["inference.json"] | {"network_def::channels": [8, 24]}}
    root = install("retinal_unet", tmp_path, "small", other)
    (root / "models").mkdir()
    for file in segmentation.glob("model.*"):
        shutil.copy(file, root / "models")
    with refused("belong to a network of another architecture"):
        run_bundle(root / "configs" / "evaluate.json", "infer", dataset_dir=str(world.labeled))


def test_damaged_weights_are_refused(world, segmentation, tmp_path):
    for file in segmentation.glob("model.*"):
        shutil.copy(file, tmp_path)
    content = bytearray((tmp_path / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.pt").write_bytes(content)
    with refused("sha256"):
        world.run("retinal_unet", "evaluate", ckpt_path=tmp_path / "model.pt")


def test_data_sets_with_different_labels_are_not_mixed(world, tmp_path):
    other = altered(world, tmp_path, lambda _, header: header["labels"].update({"3": "sclera"}))
    with refused("different label tables"):
        world.run("retinal_unet", "train", dataset_dir=[str(world.labeled), str(other)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(world, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RuntimeError) as caught:
        world.run("retinal_unet", "train", ckpt_dir=tmp_path)
    assert str(tmp_path) in str(root_cause(caught.value))


def test_a_folder_that_cannot_be_made_is_named(world, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError) as caught:
        world.run("retinal_unet", "train", ckpt_dir=tmp_path / "file" / "models")
    assert str(tmp_path / "file") in str(root_cause(caught.value))


@pytest.mark.parametrize("entry", ["loss_function", "schedule"])
def test_a_noise_predictor_learns_by_a_loss_and_a_schedule_of_ones_own(world, autoencoder, tmp_path, entry):
    own = {
        "loss_function": {"_target_": "torch.nn.SmoothL1Loss"},
        "schedule": {"_target_": "unicorn_monai.training.WarmupCosine", "_mode_": "callable", "warmup": 0.9},
    }
    found = {}
    for name, overrides in {"usual": {}, "own": {entry: own[entry]}}.items():
        folders = {"ckpt_dir": tmp_path / name, "output_dir": tmp_path / f"{name}_output"}
        world.run("latent_diffusion", "train_diffusion", max_epochs=2, **folders, **overrides)
        found[name] = torch.load(tmp_path / name / "last.pt", weights_only=True)["objects"]["network"]
    assert any(not torch.equal(value, found["usual"][key]) for key, value in found["own"].items())
