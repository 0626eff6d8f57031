"""The commands of every bundle's documentation, run as written, one after the other, on two tiny devices."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.phantom import write_phantom
from unicorn_monai.bundle import install
from unicorn_monai.datasets import check, datalist

ROOT = Path(__file__).parent.parent
ORDER = ("retinal_unet", "latent_diffusion", "uncertainty_controlnet", "semantic_controlnet", "synthesis")
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}
ONE_EPOCH = {"max_epochs": 1, "val_interval": 1}
TINY = {  # the commands stay as they are; only the configurations are small
    "retinal_unet": {
        "inference.json": {"network_def::channels": [8, 16], "network_def::strides": [2]},
        "train.json": ONE_EPOCH | {"batch_size": 4, "iterations_per_epoch": 2},
        "pseudo_label.json": {"threshold": 0.11},  # a network of one epoch is sure of nothing
    },
    "latent_diffusion": {
        "inference.json": {
            "autoencoder_def::channels": [8, 8, 8],
            "network_def::channels": [16, 16, 16],
            "network_def::num_head_channels": 16,
            "num_inference_steps": 2,
        },
        "train_autoencoder.json": ONE_EPOCH | {"patch_size": [32, 32], "batch_size": 4},
        "train_diffusion.json": ONE_EPOCH | {"iterations_per_epoch": 2, "num_inference_steps": 2},
    },
    "uncertainty_controlnet": {"train.json": ONE_EPOCH | {"iterations_per_epoch": 2, "num_inference_steps": 2}},
    "semantic_controlnet": {"train.json": ONE_EPOCH | {"iterations_per_epoch": 2, "num_inference_steps": 2}},
    "synthesis": {"inference.json": {"batch_size": 64}},
}


def commands(bundle: str) -> list[str]:
    text = (ROOT / "bundles" / bundle / "docs" / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.slow
def test_the_commands_of_the_bundles_run_as_written(tmp_path):
    for name, device in (("A", "spectralis"), ("B", "home_oct")):
        write_phantom(tmp_path / name, device, n_subjects=6, scans_per_subject=2, size=32, split=(0.5, 0.25, 0.25))
    for bundle in ORDER:
        install(bundle, tmp_path / "bundles", "small", TINY[bundle])
    done = []
    everything = [command for bundle in ORDER for command in commands(bundle)]
    retraining = [c for c in everything if ("SYNTHETIC" in c and "synthesis" not in c) or "retrained/model.pt" in c]
    together = [c for c in everything if c.startswith("torchrun")][::-1]  # trains again: what builds on it comes before
    first = [c for c in everything if c not in retraining + together]
    for command in first + retraining + together:
        run = subprocess.run(
            command, shell=True, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, f"{command}\n{(run.stdout + run.stderr)[-3000:]}"
        done.append(command)
    assert len(done) >= 18
    for folder in ("SYNTHETIC", "MORE", "PAPER"):
        assert check(tmp_path / folder, need_labels=True) == []
    assert len(datalist(tmp_path / "MORE", "training")) == 5000
    assert (tmp_path / "retrained" / "model.pt").is_file()
    assert (tmp_path / "results").is_dir()


def test_every_bundle_documents_commands():
    assert all(commands(path.name) for path in (ROOT / "bundles").iterdir() if (path / "configs").is_dir())
