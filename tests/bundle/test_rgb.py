"""The RGB bundle: every stage in order on tiny streets, with the library and configurations of the other bundles."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.street_phantom import write_streets
from unicorn_monai.bundle.installation import bundle_root, install, load_config
from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.bundle.run import run_bundle
from unicorn_monai.data.checks import check
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import read_header
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.images.files import read_array
from unicorn_monai.simulation.street import STREET_LABELS
from unicorn_monai.system.weights import read_metadata

BRIEF = {"max_epochs": 1, "val_interval": 1}
GENERATIVE = BRIEF | {"iterations_per_epoch": 2, "num_inference_steps": 2, "batch_size": 4}
TINY = {
    "diffusion.json": {
        "autoencoder_def::channels": [8, 8, 8],
        "network_def::channels": [16, 16, 16],
        "network_def::num_head_channels": 16,
        "num_inference_steps": 2,
        "coarse_sampling": True,
        "count": 2,
    },
    "train_autoencoder.json": BRIEF | {"patch_size": [16, 16], "batch_size": 4, "iterations_per_epoch": 2},
    "train_diffusion.json": GENERATIVE,
    "segmentation.json": {"network_def::channels": [8, 16], "network_def::strides": [2]},
    "train_segmentation.json": BRIEF | {"batch_size": 4, "iterations_per_epoch": 2},
    "train_uncertainty_controlnet.json": GENERATIVE,
    "train_semantic_controlnet.json": GENERATIVE,
}
CHAIN = (  # configuration, workflow, what it gets besides the device
    ("train_segmentation", "train", ("A",)),
    ("uncertainty", "infer", ("A", "B")),
    ("train_autoencoder", "train", ("both",)),
    ("train_diffusion", "train", ("both",)),
    ("train_uncertainty_controlnet", "train", ("A", "B")),
    ("train_semantic_controlnet", "train", ("A",)),
)


def two_weathers(root):
    """A: clear and labelled. B: fog and night, with labels to be scored by."""
    for name, weather in (("A", ["clear"]), ("B", ["fog", "night"])):
        write_streets(root / name, weather, 6, 2, 32, split=(0.4, 0.3, 0.3))
    return {"A": root / "A", "B": root / "B", "both": [str(root / "A"), str(root / "B")]}


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return two_weathers(tmp_path_factory.mktemp("rgb"))


def run_chain(root, streets):
    """Run every stage of an installed bundle; the parsed configuration of each."""
    ran = {}
    for name, kind, data in CHAIN:
        first = streets[data[0]]
        places = {"dataset_dir": first if isinstance(first, list) else str(first)}
        if len(data) > 1:
            places["unlabeled_dir"] = str(streets[data[1]])
        ran[name] = run_bundle(root / "configs" / f"{name}.json", kind, device="cpu", **places).parser
    return ran


@pytest.fixture(scope="module")
def trained(streets, tmp_path_factory):
    root = install("rgb_2d", tmp_path_factory.mktemp("bundles"), "small", TINY)
    run_chain(root, streets)
    return root


def test_everything_but_the_channels_comes_from_the_base_bundle():
    own, base = load_config(bundle_root("rgb_2d", "diffusion")), load_config(bundle_root("latent_diffusion"))
    assert own["num_channels"] == 3
    assert {key for key in base if own[key] != base[key]} == {"num_channels", "bundle_root"}
    assert from_bundle(bundle_root("rgb_2d", "diffusion"), "autoencoder_def").encoder.blocks[0].conv.in_channels == 3


def test_no_configuration_holds_a_training_or_a_network_of_its_own():
    for file in Path(bundle_root("rgb_2d"), "configs").glob("*.json"):
        if file.name != "metadata.json":
            text = file.read_text()
            assert '"base_bundle"' in text
            assert "Trainer" not in text
            assert len(text.splitlines()) < 40


def test_the_number_of_labels_comes_from_the_data_set(trained):
    assert read_metadata(trained / "segmentation" / "models" / "model.pt")["num_labels"] == len(STREET_LABELS)
    assert from_bundle(trained / "segmentation", "num_labels") == len(STREET_LABELS)
    net = from_bundle(trained / "semantic_controlnet", weights="model.pt")
    assert net.controlnet_cond_embedding.conv_in.conv.in_channels == len(STREET_LABELS)


def test_synthesis_writes_a_labelled_colour_data_set(trained, streets, tmp_path):
    settings = {"dataset_dir": str(streets["A"]), "output_dir": str(tmp_path / "s"), "count": 4, "device": "cpu"}
    run_bundle(trained / "configs" / "inference.json", "infer", **settings)
    assert check(tmp_path / "s", need_labels=True) == []
    header = read_header(tmp_path / "s")
    assert (header["modality"], header["colours"]) == ("RGB", read_header(streets["A"])["colours"])
    items = datalist(tmp_path / "s", "training", ("image", "label"))
    assert len(items) == 4
    assert read_array(items[0]["image"]).shape == (32, 32, 3)
    assert set(items[0]["synthetic"]["models"]) == {
        "autoencoder",
        "diffusion",
        "semantic",
        "uncertainty",
        "segmentation",
    }


def test_evaluation_tells_the_sub_domains_apart(trained, streets, tmp_path):
    settings = {"dataset_dir": str(streets["B"]), "output_dir": str(tmp_path), "device": "cpu"}
    run_bundle(trained / "configs" / "evaluate.json", "infer", **settings)
    found = json.loads((tmp_path / "sub_domains.json").read_text())
    assert set(found) == {"fog", "night"}
    confusion = np.array(json.loads((tmp_path / "metrics.json").read_text())["confusion"])
    assert confusion.shape == (10, 10)
    assert all(0 <= part["mean_iou"] <= 1 and len(part["iou"]) == 10 for part in found.values())


@pytest.mark.parametrize("part", ["diffusion", "uncertainty_controlnet", "semantic_controlnet"])
def test_every_part_samples_by_itself(part, trained, streets, tmp_path):
    settings = {"output_dir": str(tmp_path), "device": "cpu", "count": 2}
    if part == "semantic_controlnet":
        settings["dataset_dir"] = str(streets["A"])
    run_bundle(trained / "configs" / f"{part}.json", "infer", **settings)
    image = np.asarray(Image.open(tmp_path / "0000.png"))
    assert image.shape == (32, 32, 3)
    assert image.std() > 0


def test_label_maps_are_predicted_as_png(trained, streets, tmp_path):
    settings = {"dataset_dir": str(streets["B"]), "output_dir": str(tmp_path), "device": "cpu"}
    run_bundle(trained / "configs" / "segmentation.json", "infer", **settings)
    assert len(list(tmp_path.glob("*_label.png"))) == len(datalist(streets["B"], "test"))


@pytest.mark.parametrize("split", [("latent_diffusion", "train_autoencoder", "train_autoencoder")])
def test_both_files_on_the_command_line_run_from_any_folder(split, streets, tmp_path):
    base, file, own = split
    files = [f"{bundle_root(base)}/configs/{file}.json", f"{bundle_root('rgb_2d')}/configs/{own}.json"]
    words = ["--dataset_dir", str(streets["A"]), "--device", "cpu", "--max_epochs", "1", "--val_interval", "1"]
    words += ["--ckpt_dir", str(tmp_path / "models"), "--output_dir", str(tmp_path / "out")]
    words += ["--patch_size", "[16,16]", "--batch_size", "2"]
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", str(files), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "models" / "autoencoder.pt").is_file()


def test_gray_images_are_refused(trained, tmp_path):
    gray = tmp_path / "gray"
    with DatasetWriter(gray, About(name="g", device="d", labels={0: "a", 1: "b"}, suffix=".png")) as writer:
        for split in ("training", "validation"):
            writer.add(split, np.arange(1024, dtype=np.uint8).reshape(32, 32), subject=split)
    with pytest.raises(RuntimeError) as caught:
        run_bundle(trained / "configs" / "train_autoencoder.json", dataset_dir=str(gray), device="cpu")
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, ValueError):
        error = error.__cause__
    assert "1 channel(s); expected 3" in str(error)
