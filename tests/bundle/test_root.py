"""The root of a bundle is the folder of the configuration that runs, wherever a copy of it lies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out
from monai.bundle.scripts import run as run_monai

from unicorn_monai.bundle.installation import BUNDLES, bundle_root, install, load_config
from unicorn_monai.bundle.references import arguments, definition, from_bundle
from unicorn_monai.bundle.root import files_of, root_above

TELL = '[\'$print("ROOT", @bundle_root, "LABELS", @num_labels, "WEIGHTS", @ckpt_dir)\']'
QUIET = {"initialize": [], "finalize": []}


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> Path:
    """All bundles, copied as anybody copies a folder; the segmentation network has other labels."""
    folder = tmp_path_factory.mktemp("copies")
    for name in BUNDLES:
        shutil.copytree(bundle_root(name), folder / name, ignore=shutil.ignore_patterns("models", "output"))
    path = folder / "retinal_unet" / "configs" / "inference.json"
    path.write_text(path.read_text().replace('"num_labels": 10', '"num_labels": 3'))
    return folder


def told(command: list[str], cwd: Path) -> str:
    words = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", *command, "--run", TELL]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ROOT")]
    assert lines, done.stderr[-2000:]
    return lines[0]


def test_the_shell_runs_a_copy_with_the_copy_s_definitions_and_weights(copies, tmp_path):
    (tmp_path / "arguments.json").write_text(
        json.dumps({"config_file": str(copies / "retinal_unet/configs/train.json"), **QUIET})
    )
    root = copies / "retinal_unet"
    wanted = f"ROOT {root} LABELS 3 WEIGHTS {root}/models"
    assert told(["--args_file", "arguments.json"], tmp_path) == wanted
    inside = ["--config_file", "train.json", "--initialize", "[]", "--finalize", "[]"]
    assert told(inside, root / "configs") == wanted


FILES = [
    (["retinal_unet/configs/train.json"], "retinal_unet"),
    (["retinal_unet/configs/train.json", "OURS/retinal_unet/configs/multi_gpu_train.json"], "retinal_unet"),
    (["OURS/retinal_unet/configs/train.json", "rgb_2d/configs/train_segmentation.json"], "rgb_2d/segmentation"),
    (["OURS/synthesis/configs/inference.json", "rgb_2d/configs/inference.json"], "rgb_2d"),
]


@pytest.mark.parametrize(("files", "root"), FILES)
def test_of_several_files_the_one_whose_root_holds_decides(copies, capfd, files, root):
    ours = str(Path(bundle_root("retinal_unet")).parent)
    paths = [file.replace("OURS", ours) if file.startswith("OURS") else str(copies / file) for file in files]
    run_monai(config_file=paths, run="$print('ROOT', @bundle_root)", **QUIET)
    assert f"ROOT {copies / root}\n" in capfd.readouterr().out


def test_programs_that_run_a_copy_find_it(copies):
    root = copies / "retinal_unet"
    workflow = ConfigWorkflow(str(root / "configs" / "train.json"), logging_file=False, initialize=["@ckpt_dir"])
    assert workflow.initialize() == [f"{root}/models"]
    assert workflow.parser.get_parsed_content("ckpt_dir") == f"{root}/models"
    assert workflow.parser.get_parsed_content("num_labels") == 3
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    metadata["network_data_format"]["outputs"]["pred"]["num_channels"] = 3
    (root / "metadata.json").write_text(json.dumps(metadata))
    verify_net_in_out("network_def", str(root / "metadata.json"), str(root / "configs" / "evaluate.json"), "cpu", 1, 2)


def test_from_bundle_and_load_config_read_the_copy(copies):
    root = copies / "retinal_unet"
    assert from_bundle(root, "ckpt_path") == f"{root}/models/model.pt"
    assert arguments(root)["out_channels"] == 3
    assert ConfigParser(load_config(root, "evaluate.json")).get_parsed_content("num_labels") == 3
    assert load_config(copies / "rgb_2d", "diffusion.json")["bundle_root"] == f"{copies}/rgb_2d/diffusion"
    assert load_config(copies / "rgb_2d" / "diffusion")["bundle_root"] == f"{copies}/rgb_2d/diffusion"
    assert definition(copies / "synthesis", "bundle_root") == {"_target_": "unicorn_monai.bundle.own_root"}


def test_a_relative_folder_is_no_other(copies, monkeypatch):
    monkeypatch.chdir(copies)
    assert load_config("retinal_unet")["bundle_root"] == str(copies / "retinal_unet")
    assert from_bundle("retinal_unet", "num_labels") == 3


def test_a_parser_of_one_s_own_is_told_the_root_or_refused(copies):
    parser = ConfigParser()
    parser.read_config(str(copies / "retinal_unet" / "configs" / "train.json"))
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("num_labels")
    assert str(caught.value.__cause__).startswith("bundle_root is not given")
    parser["bundle_root"] = str(copies / "retinal_unet")
    assert parser.get_parsed_content("num_labels") == 3


def test_an_installed_copy_may_be_moved(tmp_path):
    install("retinal_unet", tmp_path / "before", "small", {"inference.json": {"num_labels": 5}})
    (tmp_path / "before").rename(tmp_path / "after")
    root = tmp_path / "after" / "retinal_unet"
    assert str(tmp_path / "before") not in "".join(p.read_text() for p in root.rglob("*.json"))
    assert from_bundle(root, "ckpt_path") == f"{root}/models/model.pt"


def test_a_sibling_that_is_not_beside_a_copy_is_named(copies, tmp_path):
    shutil.copytree(copies / "uncertainty_controlnet", tmp_path / "uncertainty_controlnet")
    with pytest.raises(RuntimeError) as caught:
        from_bundle(tmp_path / "uncertainty_controlnet")
    error: BaseException = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert "latent_diffusion' is not a bundle" in str(error)
    assert "lies beside" in str(error)


def test_a_link_is_a_file_of_the_folder_it_lies_in(copies, tmp_path):
    (tmp_path / "snapshot" / "configs").mkdir(parents=True)
    link = tmp_path / "snapshot" / "configs" / "train.json"
    link.symlink_to(copies / "retinal_unet" / "configs" / "train.json")
    assert root_above(link) == str(tmp_path / "snapshot")
    assert root_above(tmp_path / "x.json") == str(tmp_path)


@pytest.mark.parametrize("files", ["a.json", ["a.json"], "['a.json']", Path("a.json"), ("a.json",)])
def test_files_are_taken_as_monai_takes_them(files):
    assert files_of(files) == ["a.json"]
    assert files_of("a.json,b.json") == ["a.json", "b.json"]
    assert os.fspath(Path("a,b.json")) == "a,b.json"
