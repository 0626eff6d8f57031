"""The RGB bundle trains and samples with the library and the configurations of the latent diffusion bundle."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from unicorn_monai.bundle import bundle_root, from_bundle, install, load_config, run_bundle
from unicorn_monai.datasets import DatasetWriter

TINY = {
    "inference.json": {
        "autoencoder_def::channels": [8, 8, 8],
        "network_def::channels": [16, 16, 16],
        "network_def::num_head_channels": 16,
        "num_inference_steps": 2,
        "count": 2,
    },
    "train_autoencoder.json": {"max_epochs": 1, "val_interval": 1, "patch_size": [16, 16], "batch_size": 4},
    "train_diffusion.json": {"max_epochs": 1, "val_interval": 1, "num_inference_steps": 2},
}


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """Sky above a road, in colour."""
    root = tmp_path_factory.mktemp("rgb") / "data"
    random = np.random.default_rng(0)
    with DatasetWriter(
        root, name="street", device="camera", labels={0: "sky", 1: "road"}, modality="RGB", suffix=".png"
    ) as writer:
        for i in range(12):
            horizon = random.integers(8, 24)
            image = np.empty((32, 32, 3), np.uint8)
            image[:horizon], image[horizon:] = (90, 140, 220), (80, 80, 70)
            noisy = np.clip(image + random.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
            writer.add("training" if i < 8 else "validation", noisy, subject=f"drive{i}")
    return root


def test_everything_but_the_channels_comes_from_the_base_bundle():
    own, base = load_config(bundle_root("rgb_2d")), load_config(bundle_root("latent_diffusion"))
    assert own["num_channels"] == 3
    assert {key for key in base if own[key] != base[key]} == {"num_channels", "bundle_root"}
    assert from_bundle(bundle_root("rgb_2d"), "autoencoder_def").encoder.blocks[0].conv.in_channels == 3


def test_the_rgb_bundle_trains_and_samples(street, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = install("rgb_2d", tmp_path / "bundles", "small", TINY)
    for part in ("autoencoder", "diffusion"):
        run_bundle(root / "configs" / f"train_{part}.json", dataset_dir=str(street), device="cpu")
    run_bundle(root / "configs" / "inference.json", "infer", device="cpu", output_dir=str(tmp_path / "out"))
    image = np.asarray(Image.open(tmp_path / "out" / "0000.png"))
    assert image.shape == (32, 32, 3)
    assert image.std() > 0
    reconstructions = np.asarray(Image.open(root / "output" / "autoencoder" / "epoch_0001.png"))
    assert reconstructions.ndim == 3


def test_both_files_on_the_command_line_run_from_any_folder(street, tmp_path):
    files = [f"{bundle_root(name)}/configs/train_autoencoder.json" for name in ("latent_diffusion", "rgb_2d")]
    words = ["--dataset_dir", str(street), "--device", "cpu", "--max_epochs", "1", "--val_interval", "1"]
    words += ["--ckpt_dir", str(tmp_path / "models"), "--output_dir", str(tmp_path / "out")]
    words += ["--patch_size", "[16,16]", "--batch_size", "2"]
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", str(files), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "models" / "autoencoder.pt").is_file()


def test_gray_images_are_refused(street, tmp_path):
    root = install("rgb_2d", tmp_path / "bundles", "small", TINY)
    gray = tmp_path / "gray"
    with DatasetWriter(gray, name="g", device="d", labels={0: "a", 1: "b"}, suffix=".png") as writer:
        for split in ("training", "validation"):
            writer.add(split, np.arange(1024, dtype=np.uint8).reshape(32, 32), subject=split)
    with pytest.raises(RuntimeError) as caught:
        run_bundle(root / "configs" / "train_autoencoder.json", dataset_dir=str(gray), device="cpu")
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, ValueError):
        error = error.__cause__
    assert "1 channel(s); expected 3" in str(error)
