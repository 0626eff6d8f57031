"""The commands of every bundle's documentation, run as written, one after the other, on two tiny devices."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.phantom import write_phantom
from tiny_networks import TINY
from unicorn_monai.bundle.installation import install
from unicorn_monai.data.checks import check
from unicorn_monai.data.items import datalist

ROOT = Path(__file__).parents[2]
ORDER = (
    "retinal_unet",
    "latent_diffusion",
    "uncertainty_controlnet",
    "semantic_controlnet",
    "synthesis",
    "joint",
    "style_transfer",
)
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}
SMALLER = {  # the commands stay as they are; only the configurations are small
    "retinal_unet": {
        "train.json": {"batch_size": 4, "iterations_per_epoch": 2},
        "pseudo_label.json": {"threshold": 0.11},  # a network of one epoch is sure of nothing
    },
    "latent_diffusion": {
        "train_autoencoder.json": {"batch_size": 4, "iterations_per_epoch": 2},
        "train_diffusion.json": {"iterations_per_epoch": 2},
    },
    **{f"{name}_controlnet": {"train.json": {"iterations_per_epoch": 2}} for name in ("uncertainty", "semantic")},
    "synthesis": {"inference.json": {"batch_size": 64}},
    "joint": {"train.json": {"max_epochs": 1, "val_interval": 1, "iterations_per_epoch": 2}},
    "style_transfer": {f"train_{name}.json": {"max_epochs": 1} for name in ("cut", "cyclegan", "cycada", "accut")},
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
        tiny, smaller = TINY.get(bundle, {}), SMALLER.get(bundle, {})
        settings = {file: tiny.get(file, {}) | smaller.get(file, {}) for file in tiny | smaller}
        install(bundle, tmp_path / "bundles", "small", settings)
    done = []
    everything = [command for bundle in ORDER for command in commands(bundle)]
    retraining = [c for c in everything if ("SYNTHETIC" in c and "synthesis" not in c) or "retrained/model.pt" in c]
    together = [c for c in everything if c.startswith("torchrun")][::-1]  # trains again: what builds on it comes before
    paper = [c for c in everything if "prior_paper" in c]  # trainings in the other mode, and the synthesis with them
    first = [c for c in everything if c not in retraining + together + paper]
    on_top = [c for c in together if "semantic_controlnet" in c]  # of weights that `paper` replaces
    for command in first + on_top + paper + retraining + [c for c in together if c not in on_top]:
        run = subprocess.run(
            command, shell=True, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, f"{command}\n{(run.stdout + run.stderr)[-3000:]}"
        done.append(command)
    assert len(done) >= 20
    for folder in ("SYNTHETIC", "MORE", "PAPER", "JOINT"):
        assert check(tmp_path / folder, need_labels=True) == []
    assert len(datalist(tmp_path / "MORE", "training")) == 5000
    assert (tmp_path / "retrained" / "model.pt").is_file()
    assert (tmp_path / "results").is_dir()


def test_every_bundle_documents_commands():
    assert all(commands(path.name) for path in (ROOT / "bundles").iterdir() if (path / "configs").is_dir())
