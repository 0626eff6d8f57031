"""A run goes on with the data it was begun with, wherever they lie, and with no other."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep.phantom import write_phantom
from tiny_networks import TINY
from unicorn_monai.data import manifest
from unicorn_monai.data.layout import read_header
from unicorn_monai.experiment.experiment import Experiment
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.system.files import write_json


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name, device in (("A", "spectralis"), ("B", "home_oct")):
        write_phantom(root / name, device, n_subjects=4, scans_per_subject=1, size=32, split=(0.5, 0.25, 0.25))
    return root


@pytest.fixture
def begun(prepared, tmp_path) -> Settings:
    """A run that was begun, and no more."""
    for name in "AB":
        shutil.copytree(prepared / name, tmp_path / name)
    values = {"preset": "quick", "device": "cpu", "overrides": TINY, "count": 4, "tracking": False, "jobs": 1}
    settings = Settings(str(tmp_path / "A"), str(tmp_path / "B"), str(tmp_path / "run"), **values)
    Experiment(settings).claim()
    return settings


def first(folder: Path, kind: str) -> Path:
    return folder / read_header(folder)["training"][0][kind]


def other_values(path: Path) -> None:
    """The same size and format, other values."""
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine), path)


def replace_image(folder: Path) -> str:
    other_values(first(folder, "image"))
    return f"images/{first(folder, 'image').name} has another content"


def correct_label(folder: Path) -> str:
    other_values(first(folder, "label"))
    return f"labels/{first(folder, 'label').name} has another content"


def remove_label(folder: Path) -> str:
    header = read_header(folder)
    del header["validation"][0]["label"]
    name = Path(header["validation"][0]["image"]).name
    write_json(folder / "dataset.json", header)
    return f"labels/{name} is no longer listed"


def add_image(folder: Path) -> str:
    header, image = read_header(folder), first(folder, "image")
    shutil.copy(image, image.with_name("new.nii.gz"))
    other_values(image.with_name("new.nii.gz"))
    header["test"].append({"image": "images/new.nii.gz", "subject": header["test"][0]["subject"]})
    write_json(folder / "dataset.json", header)
    return "images/new.nii.gz was added"


def rename_label(folder: Path) -> str:
    header = read_header(folder)
    header["labels"]["1"] = "another layer"
    write_json(folder / "dataset.json", header)
    return "dataset.json says something else of the same files"


@pytest.mark.parametrize("change", [replace_image, correct_label, remove_label, add_image, rename_label])
def test_other_data_are_refused_by_name(begun, change):
    said = change(Path(begun.unlabeled))
    if change is rename_label:
        change(Path(begun.labeled))  # both must agree
    with pytest.raises(ValueError, match=f"The (un)?labeled data set .* is not what the run .* with: .*{said}"):
        Experiment(begun, resume=True)


def test_a_message_names_some_files_and_counts_the_others(begun):
    for path in (Path(begun.labeled) / "labels").iterdir():
        other_values(path)
    with pytest.raises(
        ValueError, match=r"A' is not what .*: labels/000000.*; labels/000001.*; labels/000002.* and 1 more"
    ):
        Experiment(begun, resume=True)


def test_files_that_were_touched_or_written_again_are_the_same(begun):
    for path in Path(begun.labeled).rglob("*.nii.gz"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        os.utime(path, (1, 1))
    (Path(begun.labeled) / "dataset.json").write_text(json.dumps(read_header(begun.labeled)))  # on one line
    Experiment(begun, resume=True).claim()
    kept = json.loads((Path(begun.output) / manifest.FILE).read_text())
    assert {found[1] for found in kept["labeled"]["files"].values()} == {10**9}, "next time they need not be read"


def test_files_are_read_where_size_or_time_differ_only(begun, monkeypatch):
    read = list[str]()
    monkeypatch.setattr(manifest, "sha256", lambda path: read.append(path.name) or "")
    Experiment(begun, resume=True)
    assert read == []
    os.utime(first(Path(begun.labeled), "image"), (1, 1))
    with pytest.raises(ValueError, match="has another content"):
        Experiment(begun, resume=True)
    assert read == [first(Path(begun.labeled), "image").name]


def test_data_that_were_moved_are_the_same_and_what_was_measured_names_their_new_place(begun, tmp_path):
    measured = Path(begun.output) / "bundles" / "retinal_unet" / "models" / "uncertainties.json"
    measured.parent.mkdir(parents=True)
    old, new = tmp_path / "A", tmp_path / "elsewhere" / "A"
    write_json(measured, {"images": {str(old / "images" / "0.png"): 0.1, str(tmp_path / "AA" / "0.png"): 0.2}})
    write_json(Path(begun.output) / "stages" / "x.json", {"commands": {"x": f"run --dataset_dir {old} --seed 0"}})
    new.parent.mkdir()
    old.rename(new)
    run = Experiment(replace(begun, labeled=str(new)), resume=True)
    run.claim()
    assert set(json.loads(measured.read_text())["images"]) == {
        str(new / "images" / "0.png"),
        str(tmp_path / "AA" / "0.png"),
    }
    assert f"--dataset_dir {new} --seed 0" in (Path(begun.output) / "stages" / "x.json").read_text()
    last = json.loads((Path(begun.output) / "experiment.json").read_text())
    assert last["resumed"][-1]["changed"] == {"labeled": [str(old), str(new)]}
    assert last["settings"]["labeled"] == str(new)


def test_another_number_of_jobs_or_device_goes_on_and_is_written_down(begun):
    run = Experiment(replace(begun, jobs=2, device=None), resume=True)
    run.claim()
    (again,) = json.loads((Path(begun.output) / "experiment.json").read_text())["resumed"]
    assert again["changed"] == {"jobs": [1, 2], "device": ["cpu", None]}
    with pytest.raises(ValueError, match="started with other settings: seed"):
        Experiment(replace(begun, jobs=2, seed=3), resume=True)


def test_a_run_from_before_the_comparison_goes_on_and_that_is_told(begun, caplog):
    (Path(begun.output) / manifest.FILE).unlink()
    replace_image(Path(begun.labeled))
    Experiment(begun, resume=True).claim()
    assert "was begun before runs kept what their data were" in caplog.text
    replace_image(Path(begun.labeled))
    with pytest.raises(ValueError, match="has another content"):
        Experiment(begun, resume=True)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"labeled": {"header": 1, "files": {}}, "unlabeled": []}'])
def test_a_damaged_comparison_is_refused(begun, content):
    (Path(begun.output) / manifest.FILE).write_text(content)
    with pytest.raises(ValueError, match=r"data\.json' (does not tell what the data|is not valid JSON)"):
        Experiment(begun, resume=True)
