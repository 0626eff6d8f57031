"""Images that the networks of a run could not take are refused before anything is trained, and those they can, run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

from unicorn_monai.bundle import from_bundle, install
from unicorn_monai.datasets import SPLITS, DatasetWriter
from unicorn_monai.image_sizes import check_domains, multiples
from unicorn_monai.settings import Settings

LABELS = {0: "vitreous", 1: "retina", 2: "choroid"}
FACTORS = {"the segmentation network": 16, "the latent diffusion model": 16}


def write(
    root: Path, size: tuple[int, ...] = (32, 64), labels: dict[int, str] = LABELS, traced: bool = True, **more
) -> Path:
    random = np.random.default_rng(list(root.name.encode()))
    with DatasetWriter(root, name="n", device=root.name, labels=labels, **more) as writer:
        for split in SPLITS:
            for i in range(2):
                image = random.integers(0, 256, size, dtype=np.uint8)
                label = np.sort(random.integers(0, len(labels), size[:2]), axis=0).astype(np.uint8)
                writer.add(split, image, label if traced else None, subject=f"{root.name}-{split}-{i}")
    return root


def test_the_factors_are_those_of_the_networks():
    assert multiples(None) == FACTORS
    assert multiples("small") == {"the segmentation network": 8, "the latent diffusion model": 16}
    assert multiples("small", TINY) == {"the segmentation network": 2, "the latent diffusion model": 16}
    assert multiples(None, translates=True) == FACTORS | {"the style transfer": 4}
    deeper = {"retinal_unet": {"inference.json": {"network_def::strides": [2, 2, 2, 2, 2]}}}
    assert multiples("small", deeper)["the segmentation network"] == 32
    level = {"latent_diffusion": {"inference.json": {"autoencoder_def::channels": [8, 8, 8, 8]}}}
    assert multiples("small", level)["the latent diffusion model"] == 32


def test_a_side_that_is_a_multiple_passes_through_the_networks_and_another_does_not(tmp_path):
    install("retinal_unet", tmp_path, "small")
    install("latent_diffusion", tmp_path, "small", TINY["latent_diffusion"])
    unet = from_bundle(tmp_path / "retinal_unet").eval()
    diffusion = from_bundle(tmp_path / "latent_diffusion").eval()
    factors = multiples("small", {"latent_diffusion": TINY["latent_diffusion"]})
    latent = 4  # factor of the autoencoder
    times, channels = torch.zeros(1, dtype=torch.long), diffusion.in_channels
    side = 3 * math.lcm(*factors.values())
    assert unet(torch.zeros(1, 1, side, side)).shape[2:] == (side, side)
    assert diffusion(torch.zeros(1, channels, side // latent, side // latent), times).shape[2:] == (side // latent,) * 2
    with pytest.raises(RuntimeError, match="must match"):
        unet(torch.zeros(1, 1, side + latent, side))
    with pytest.raises(RuntimeError, match="must match"):
        diffusion(torch.zeros(1, channels, side // latent + 1, side // latent), times)


def test_domains_that_fit_together_pass(tmp_path):
    labeled, other = write(tmp_path / "a"), write(tmp_path / "b")
    check_domains(labeled, other, FACTORS)
    unlabelled = write(tmp_path / "c", labels={0: "a", 1: "b"}, traced=False)
    check_domains(labeled, unlabelled, FACTORS)
    header = json.loads((unlabelled / "dataset.json").read_text())
    (unlabelled / "dataset.json").write_text(json.dumps(header | {"labels": {"0": "a", "1": "b"}}))
    check_domains(labeled, unlabelled, FACTORS)  # a table of labels that no image has


UNFIT = {
    "sizes": (
        (64, 64),
        {},
        r"/a' are \(32, 64\).* those of '.*/b' \(64, 64\); expected one size.*`--size` of data_prep",
    ),
    "channels": ((32, 64, 3), {}, r"/b' have 3 channel\(s\); expected 1, since the modality of .*/a' is 'OCT'"),
    "label names": (
        (32, 64),
        {"labels": LABELS | {1: "sclera"}},
        r"\['vitreous', 'retina', 'choroid'\], those of .*'sclera', 'choroid'\]; expected the same",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_domains_that_do_not_fit_together_are_refused(tmp_path, case):
    size, more, message = UNFIT[case]
    with pytest.raises(ValueError, match=message):
        check_domains(write(tmp_path / "a"), write(tmp_path / "b", size, **more), FACTORS)


def test_an_experiment_refuses_a_size_that_its_networks_cannot_halve(tmp_path):
    folders = [str(write(tmp_path / name, (100, 100))) for name in ("a", "b")]
    message = (
        r"both domains are \(100, 100\).*expected multiples of 16.*the segmentation network: 8, the latent diffusion "
        r"model: 16.*`--size` of data_prep, e.g. \(96, 96\)"
    )
    with pytest.raises(ValueError, match=message):
        Settings(*folders, str(tmp_path / "r"), preset="quick").validate()
    header = json.loads((tmp_path / "a" / "dataset.json").read_text())
    (tmp_path / "a" / "dataset.json").write_text(json.dumps(header | {"modality": "RGB"}))
    with pytest.raises(ValueError, match=r"have 1 channel\(s\); expected 3"):
        Settings(*folders, str(tmp_path / "r"), preset="quick").validate()
