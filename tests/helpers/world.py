"""A finished run at tiny size, a folder of studies, what `monai.bundle run` says about them; shared by the tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from data_prep.phantom import write_phantom
from tiny_networks import TINY
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import HEADER
from unicorn_monai.experiment.experiment import Experiment
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.images.files import read_array, write_array
from unicorn_monai.system.files import write_json

SIZE = 32
SPLIT = (0.5, 0.25, 0.25)
TRAINING = ("training", "validation", "test")


@dataclass(frozen=True)
class World:
    """Folders of a test module."""

    run: Path
    studies: Path
    truth: dict[str, Path]  # study -> file of its true label map


def make_world(root: Path) -> World:
    """A finished run on two simulated devices, and twelve B-scans of the second one in three forms."""
    for name, device in (("labeled", "spectralis"), ("unlabeled", "home_oct")):
        write_phantom(root / name, device, n_subjects=6, scans_per_subject=2, size=SIZE, split=SPLIT)
    folders = (str(root / name) for name in ("labeled", "unlabeled", "run"))
    tiny = {"preset": "quick", "device": "cpu", "overrides": TINY, "count": 8, "jobs": 1, "modes": ("compositional",)}
    Experiment(Settings(*folders, **tiny, style_augmentation=False, tracking=False), force=True).run()
    studies, truth = root / "studies", {}
    studies.mkdir()
    for i, item in enumerate(datalist(root / "unlabeled", TRAINING, ("image", "label"))):
        name, image = f"home_{i:02d}", Path(item["image"])
        if i % 4 == 1:  # a picture; not square, so that no axis can be taken for another
            write_array(studies / f"{name}.png", read_array(image)[:, : SIZE // 2])
            write_array(root / f"{name}.png", read_array(item["label"])[:, : SIZE // 2])
            truth[name] = root / f"{name}.png"
            continue
        if i % 4 == 2:  # a volume of one slice, with a position and an orientation
            affine = np.diag([-0.004, 0.012, 1, 1])
            affine[:3, 3] = 1, 2, 3
            nib.save(nib.Nifti1Image(read_array(image)[..., None], affine), studies / f"{name}.nii.gz")
        else:
            shutil.copy(image, studies / f"{name}.nii.gz")
        truth[name] = Path(item["label"])
    return World(root / "run", studies, truth)


def bundle_masks(bundle: Path, studies: Path, output: Path) -> dict[str, np.ndarray]:
    """What ``python -m monai.bundle run`` writes for every study: name -> label map (rows, columns)."""
    masks = {}
    for images in (sorted(studies.glob("*.nii.gz")), sorted(studies.glob("*.png"))):  # one size in a batch
        data = output / images[0].name
        (data / "images").mkdir(parents=True)
        for image in images:
            shutil.copy(image, data / "images" / image.name)
        items = [{"image": f"images/{image.name}", "subject": "s"} for image in images]
        labels = {str(value): f"label {value}" for value in range(10)}
        write_json(
            data / HEADER, {"name": "studies", "device": "d", "modality": "OCT", "labels": labels, "test": items}
        )
        words = [
            sys.executable,
            "-m",
            "monai.bundle",
            "run",
            "--config_file",
            str(bundle / "configs" / "inference.json"),
        ]
        words += ["--bundle_root", str(bundle), "--dataset_dir", str(data), "--output_dir", str(data / "out")]
        done = subprocess.run([*words, "--device", "cpu"], capture_output=True, text=True, check=False, cwd=output)
        assert done.returncode == 0, done.stderr[-2000:]
        rows = json.loads((data / "out" / "index.json").read_text())
        assert {Path(row["image"]).name for row in rows} == {image.name for image in images}
        for row in rows:
            masks[Path(row["image"]).name.split(".")[0]] = read_array(data / "out" / row["label"])
    return masks
