"""Whether an autoencoder keeps the images is known before anything is trained on them; a run ends where it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from data_prep.street_phantom import write_streets
from tests.data.test_manifest import prepared  # noqa: F401
from tiny_networks import TINY, build_autoencoder
from unicorn_monai.data.items import datalist
from unicorn_monai.experiment import reconstructions
from unicorn_monai.experiment.experiment import Experiment
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.experiment.stages import needed
from unicorn_monai.report.checks import image_checks, usable_checks
from unicorn_monai.report.report import write_report
from unicorn_monai.report.results import Results
from unicorn_monai.report.tables import score_table
from unicorn_monai.system.files import write_json


def squares(image: Tensor, side: int) -> Tensor:
    """A coarse picture."""
    return functional.interpolate(functional.avg_pool2d(image, side), scale_factor=side)


def smooth(image: Tensor) -> Tensor:
    return functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False)


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "black": torch.zeros_like,
    "white": torch.ones_like,
    "each image's mean": lambda image: torch.full_like(image, image.mean().item()),
    "noise": torch.rand_like,
    "negative": lambda image: 1 - image,
    "untrained": build_autoencoder().reconstruct,
    "blocks": lambda image: squares(image, 8),
    "large blocks": lambda image: squares(image, 16),
    "another brightness": lambda image: image * 0.5,
    "no texture": lambda image: functional.avg_pool2d(image, 5, 1, 2, count_include_pad=False),
    "turned round": lambda image: image.flip(-2),
    "blocks of the latents": lambda image: squares(image, 4),
    "blocks with texture": lambda image: squares(image, 4) + 0.5 * (image - squares(image, 4)),
}
KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "the images": lambda image: image,
    "a little noise": lambda image: image + 0.02 * torch.randn_like(image),
    "other speckle": lambda image: smooth(image) + (image - smooth(image)).flip(-1),
    "a little brighter": lambda image: image * 1.05,
}


def judged(reconstruct: Callable[[Tensor], Tensor], folder: Path) -> bool:
    paths = [item["image"] for split in ("training", "validation") for item in datalist(folder, split)]
    found = reconstructions.kept(paths, reconstruct, 1)
    return all(
        good for _, _, good in usable_checks(Results.of({"reconstructions": {"labeled": found, "unlabeled": found}}))
    )


@pytest.mark.parametrize("name", "AB")
@pytest.mark.parametrize("kind", REFUSED)
def test_images_that_are_not_kept(prepared, name, kind):  # noqa: F811
    assert not judged(REFUSED[kind], prepared / name)


@pytest.mark.parametrize("name", "AB")
@pytest.mark.parametrize("kind", KEPT)
def test_images_that_are_kept(prepared, name, kind):  # noqa: F811
    assert judged(KEPT[kind], prepared / name)


def settings(prepared: Path, output: Path) -> Settings:  # noqa: F811
    values = {"preset": "quick", "device": "cpu", "overrides": TINY, "count": 4, "tracking": False, "jobs": 1}
    return Settings(str(prepared / "A"), str(prepared / "B"), str(output), **values)


def test_a_run_ends_after_the_autoencoder_and_is_gone_on_with_by_force_only(prepared, tmp_path):  # noqa: F811
    run = Experiment(settings(prepared, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"--resume --force.*autoencoder does not keep the images: .*Labelled device"):
        run.run()
    done = {path.stem for path in (tmp_path / "run" / "stages").glob("*.json")}
    assert done == {"autoencoder", "reconstructions"}, "nothing was trained on such images"

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "bundles").rglob("*.pt")}
    with pytest.raises(ValueError, match="does not keep the images"):
        Experiment(settings(prepared, tmp_path / "run"), resume=True).run()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "bundles").rglob("*.pt")} == before
    assert {path.stem for path in (tmp_path / "run" / "stages").glob("*.json")} == done

    forced = Experiment(settings(prepared, tmp_path / "run"), resume=True, force=True)
    forced.claim()
    forced.walk(needed(forced.stages, ["usable images"]))
    assert "does not keep the images" in forced.results["forced"]
    assert json.loads((tmp_path / "run" / "experiment.json").read_text())["forced"] is True
    assert Experiment(settings(prepared, tmp_path / "run"), resume=True).folder.forced, "the next resumption knows"


def test_a_forced_run_says_so_in_its_report(tmp_path):
    lost = {"error": [3.0, 0.2], "high_pass_std": [0.1, 0.01], "mean": [0.8, 0.0]}
    results = {"reconstructions": {"labeled": lost, "unlabeled": lost}, "segmentation": {}}
    assert [good for _, _, good in image_checks(Results.of(results))[:6]] == [False, False, None] * 2
    write_json(tmp_path / "results.json", results | {"forced": "..."})
    text = write_report(tmp_path).read_text()
    assert text.index("because of <code>--force</code>") < text.index('class="verdict"'), "before anything else"
    assert "forced: ..." in str(score_table(results | {"forced": "..."}).caption)
    write_json(tmp_path / "results.json", results)
    assert "--force" not in write_report(tmp_path).read_text()


def test_a_run_from_before_this_check_is_not_judged_by_it():
    assert usable_checks(Results()) == []


@pytest.mark.parametrize(("kind", "good"), [("the images", True), ("black", False), ("blocks of the latents", False)])
def test_colours_are_judged_alike(tmp_path, kind, good):
    write_streets(tmp_path / "C", ["clear"], 3, 2, (64, 64), 0, (0.34, 0.33, 0.33))
    paths = [item["image"] for item in datalist(tmp_path / "C", "training")]
    found = reconstructions.kept(paths, (REFUSED | KEPT)[kind], 3)
    checks = usable_checks(Results.of({"reconstructions": {"labeled": found, "unlabeled": found}}))
    assert all(ok for _, _, ok in checks) is good


def test_a_cast_of_colours_is_an_error_too(tmp_path):
    write_streets(tmp_path / "C", ["clear"], 3, 2, (64, 64), 0, (0.34, 0.33, 0.33))
    paths = [item["image"] for item in datalist(tmp_path / "C", "training")]
    error, allowed = reconstructions.kept(
        paths,
        lambda image: image.mean(1, keepdim=True).expand_as(image) * torch.tensor([0.2, 1, 1.8]).reshape(1, 3, 1, 1),
        3,
    )["error"]
    assert error > allowed
