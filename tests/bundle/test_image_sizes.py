"""Images that the networks of a run could not take are refused before anything is trained, and those they can, run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle.scripts import _get_fake_spatial_shape

import zoo_checks
from tiny_networks import TINY
from unicorn_monai.baselines.networks import ResnetGenerator
from unicorn_monai.bundle.image_sizes import check_domains, check_sides, multiples
from unicorn_monai.bundle.installation import bundle_root, install
from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.bundle.run import run_bundle
from unicorn_monai.data.layout import SPLITS
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.system.errors import root_cause

LABELS = {0: "vitreous", 1: "retina", 2: "choroid"}
FACTORS = {"the segmentation network": 16, "the latent diffusion model": 16}


def write(
    root: Path, size: tuple[int, ...] = (32, 64), labels: dict[int, str] = LABELS, traced: bool = True, **more
) -> Path:
    random = np.random.default_rng(list(root.name.encode()))
    with DatasetWriter(root, About(name="n", device=root.name, labels=labels, **more)) as writer:
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


@pytest.mark.parametrize("bundle", ["retinal_unet", "latent_diffusion", "style_transfer"])
def test_the_smallest_size_that_the_metadata_declare_runs(bundle, tmp_path):
    root = Path(bundle_root(bundle))
    zoo_checks.check_shapes(root)
    if bundle == "latent_diffusion":
        zoo_checks.check_autoencoder(root, tmp_path)


@pytest.mark.parametrize("bundle", ["semantic_controlnet", "uncertainty_controlnet"])
def test_the_smallest_size_of_a_controlnet_runs(bundle):
    inputs = zoo_checks.network_format(Path(bundle_root(bundle)))["inputs"]
    image, condition = (
        torch.rand(1, tensor["num_channels"], *_get_fake_spatial_shape(tensor["spatial_shape"]))
        for tensor in (inputs["image"], inputs["controlnet_cond"])
    )
    _, middle = from_bundle(bundle_root(bundle)).eval()(image, torch.zeros(1), condition)
    assert middle.shape == (1, 512, 1, 1)


@pytest.mark.parametrize(("downs", "least"), [(0, 4), (1, 4), (2, 8), (3, 16)])
def test_a_style_transfer_runs_from_two_multiples_on_and_says_so(downs, least):
    """Mirrored borders need something to mirror; a single row or column has no spread to normalise by."""
    generator = ResnetGenerator(channels=2, num_blocks=1, num_downs=downs)
    for size in ((least, least), (least, 2 * least), (least + 2**downs, least)):
        assert generator(torch.rand(1, 1, *size)).shape == (1, 1, *size)
    for size in ((least - 2**downs, least), (2 * least, least - 2**downs)):
        with pytest.raises(ValueError, match=f"multiples of {2**downs}, from {least} on. Resample with"):
            generator(torch.rand(1, 1, *size))


@pytest.mark.parametrize(
    ("bundle", "config", "named", "multiple"),
    [
        ("retinal_unet", "train", "the segmentation network", 16),
        ("retinal_unet", "uncertainty", "the segmentation network", 16),
        ("latent_diffusion", "train_autoencoder", "the latent diffusion model", 16),
        ("latent_diffusion", "train_diffusion", "the latent diffusion model", 16),
    ],
)
@pytest.mark.parametrize("size", [(8, 16), (24, 32)])
def test_a_bundle_refuses_a_size_that_its_networks_cannot_halve(bundle, config, named, multiple, size, tmp_path):
    data = write(tmp_path / "a", size)
    both = {"unlabeled_dir": str(data)} if config == "uncertainty" else {}
    path = Path(bundle_root(bundle)) / "configs" / f"{config}.json"
    with pytest.raises(RuntimeError) as caught:
        run_bundle(path, "train" if "train" in config else "infer", device="cpu", dataset_dir=str(data), **both)
    message = str(root_cause(caught.value))
    assert f"{size} (rows, columns); expected multiples of {multiple}, since {named} halves them" in message


def test_a_bundle_whose_networks_do_not_say_takes_any_size(tmp_path):
    check_sides(write(tmp_path / "a", (30, 50)), bundle_root("rgb_2d", "segformer"))
    check_sides(write(tmp_path / "b", (32, 48)), bundle_root("rgb_2d", "diffusion"))
    with pytest.raises(ValueError, match=r"\(30, 50\) .* multiples of 16.*e.g. \(32, 48\)\."):
        check_sides([str(tmp_path / "b"), str(tmp_path / "a")], bundle_root("rgb_2d", "diffusion"))
