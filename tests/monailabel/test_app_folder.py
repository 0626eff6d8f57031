"""Which network of a run is served: the recommended one, unless another is asked for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from torch import nn

from data_prep.phantom import write_phantom
from tiny_networks import TINY
from unicorn_monai.experiment.run import Run
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.monailabel.app_folder import make_app
from unicorn_monai.system.files import read_json, write_json
from unicorn_monai.system.weights import read_metadata, save_weights

RECOMMENDED = {"setup": "histogram", "criterion": "agreement", "low": 0.661, "high": 0.758}
NETWORKS = ("histogram", "unicorn+real", "batch_norm")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a finished run has of it: bundles, settings, results, and the weights of four set-ups."""
    for name, device in (("labeled", "spectralis"), ("unlabeled", "home_oct")):
        write_phantom(tmp_path / name, device, n_subjects=3, scans_per_subject=1, size=32, split=(0.4, 0.3, 0.3))
    folders = (str(tmp_path / name) for name in ("labeled", "unlabeled", "run"))
    settings, root = Settings(*folders, preset="quick", overrides=TINY, baselines=("batch_norm",)), tmp_path / "run"
    Run(settings).install_bundles()
    for i, folder in enumerate(["bundles/retinal_unet/models", *(f"segmentation/{name}" for name in NETWORKS)]):
        (root / folder).mkdir(parents=True, exist_ok=True)
        save_weights(nn.Linear(1, i + 1), root / folder / "model.pt")
    write_json(root / "experiment.json", {"settings": asdict(settings)})
    results(root, recommendation=RECOMMENDED)
    return root


def results(run: Path, **more: object) -> None:
    write_json(run / "results.json", {"labels": ["vitreous", "retina"], **more})


def served(app: Path) -> str:
    return read_metadata(app / "model" / "retinal_unet" / "models" / "model.pt")["sha256"]


def weights(run: Path, folder: str) -> str:
    return read_metadata(run / folder / "model.pt")["sha256"]


def test_the_recommended_network_is_served_and_the_reason_is_kept(run, tmp_path):
    content = make_app(tmp_path / "app", run)
    assert content["setup"] == "histogram"
    assert content["why"] == (
        "recommended without labels (expected mean IoU 0.66 to 0.76), because its label maps agree best with what all "
        "networks say together"
    )
    assert served(tmp_path / "app") == weights(run, "segmentation/histogram")
    assert read_json(tmp_path / "app" / "app.json") == content == make_app(tmp_path / "app", None)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("lower_bound", "bundles/retinal_unet/models"), ("batch_norm", "segmentation/batch_norm")],
)
def test_another_network_of_the_run_is_served_where_it_is_asked_for(run, tmp_path, name, folder):
    content = make_app(tmp_path / "app", run, name)
    assert (content["setup"], content["why"]) == (name, "asked for by --network")
    assert served(tmp_path / "app") == weights(run, folder)
    config = read_json(tmp_path / "app" / "model" / "retinal_unet" / "configs" / "inference.json")
    assert config["network_def"]["norm"] == ("batch" if name == "batch_norm" else "instance"), "the network it is of"
    with pytest.raises(ValueError, match=f"weights '{name}', not 'histogram'. Leave out --network"):
        make_app(tmp_path / "app", run, "histogram")


@pytest.mark.parametrize(
    ("entry", "why"),
    [({}, "none made"), ({"recommendation": {"not_computed": "fewer than 8 images"}}, "fewer than 8 images")],
)
def test_without_a_recommendation_it_is_that_of_synthetic_and_real_images(run, tmp_path, entry, why):
    results(run, **entry)
    content = make_app(tmp_path / "app", run)
    assert content["setup"] == "unicorn+real"
    assert content["why"] == f"trained on synthetic and real images; no recommendation: {why}"
    assert served(tmp_path / "app") == weights(run, "segmentation/unicorn+real")


def test_weights_that_are_missing_are_named_with_those_that_are_there(run, tmp_path):
    (run / "segmentation" / "histogram" / "model.pt").unlink()
    there = "expected one of lower_bound, batch_norm, unicorn\\+real; choose one by --network"
    with pytest.raises(ValueError, match=f"no segmentation weights 'histogram'; {there}"):
        make_app(tmp_path / "app", run)
    assert not (tmp_path / "app").exists()
