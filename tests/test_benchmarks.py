"""The benchmarks run at tiny size; their numbers are not judged."""

import json
import platform
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import get_track_meta, set_track_meta
from PIL import Image
from safetensors.torch import save_file

from benchmarks import ablation, evaluation, layout, memory, same_run, samplers, sampling, scale, steps, training
from benchmarks.common import alternate, kinds_of, ratio, recorder, table
from data_prep.phantom import write_phantom
from tiny_networks import TINY
from unicorn_monai.experiment.experiment import Experiment
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.experiment.stages import needed
from unicorn_monai.system.weights import sha256

CPU = torch.device("cpu")


def test_works_take_turns_and_the_ratio_is_within_rounds():
    order = []
    works = {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}
    found = alternate(works, 3)
    assert "".join(order) == "abcbcacab"
    assert found == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}
    assert ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3.0


def test_a_profile_names_the_kinds_of_work():
    with recorder() as found:
        torch.nn.functional.conv2d(torch.randn(1, 8, 64, 64), torch.randn(8, 8, 3, 3))
    shares = kinds_of(found)
    assert sum(shares.values()) == pytest.approx(1)
    assert "convolution" in shares


def test_a_table_is_markdown():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_stock_loop_and_the_inferer_give_the_same_images():
    setup = sampling.Setup.build(64, batch=2, steps=2, device=CPU)
    plain = setup.changed(lambda network: sampling.attention(network, fused=False))
    images = [sampling.decode(s, loop(s)) for s, loop in ((plain, sampling.stock), (setup, sampling.inferer))]
    assert sampling.difference(*images) <= 1e-4
    for name, form in sampling.forms_of(setup, with_compiled=False, with_half=False).items():
        assert torch.equal(sampling.decode(setup, form.sampler()()), images[1]), name
        assert form.floor()() > 0
    assert images[0].std() > 0.1  # large enough for that to mean something
    assert sampling.floor(setup) > 0


def test_the_whole_evaluation_is_timed(capsys):
    evaluation.main(["--count", "40", "--size", "64", "--preset", "small", "--steps", "2", "--width", "30"])
    told = capsys.readouterr().out
    assert len(re.findall(r" s of processor time\n", told)) == 10
    ours, theirs = map(float, re.search(r"\(FID ([\d.]+) and ([\d.]+)\)", told).groups())
    assert ours == pytest.approx(theirs, rel=1e-4)
    shares = json.loads(re.search(r"by speckle: (.*)", told)[1])
    assert shares["exact"] == 1.0 > shares["synthetic"]


def test_every_stage_is_timed_against_the_loop():
    text = training.compare(64, list(training.STAGES), images=40, batch_size=4, iterations=1, rounds=1)
    rates, profiles = (part.splitlines()[2:] for part in text.split("\n\n"))
    for name, rate, kinds in zip(training.STAGES, rates, profiles, strict=True):
        stage, batch, *numbers, waiting = (cell.strip() for cell in rate.strip("|").split("|"))
        assert (stage, batch) == (name, "4")
        loop, here, ratio_ = map(float, numbers)
        assert ratio_ == pytest.approx(here / loop, rel=0.05)
        assert re.fullmatch(r"[\d.]+ %", waiting)
        assert "convolution" in kinds


def test_layout_supervision_costs_time_and_memory():
    lines = layout.compare(64, unroll=[1], batch_size=4, iterations=5).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["without", "with layout supervision, K = 1"]
    (_, _, once, memory, none), (_, _, times, more, _) = ([c.strip("| ") for c in x.split(" | ")] for x in lines[2:])
    assert (float(once), float(none)) == (1, 0)
    assert float(times) > 1  # a decoding and passes of another network are never free
    assert min(float(memory), float(more)) > 100


def test_every_item_is_synthesised_encoded_and_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["scale", "--items", "130", "--folder", str(tmp_path)])
    scale.main()
    told = capsys.readouterr().out
    for stage, count in (("synthesis", 130), ("encoding", 260), ("training", 130)):
        assert re.search(rf"^{stage} +{count} ", told, re.MULTILINE)
    assert len(list((tmp_path / "set" / "images").iterdir())) == 130


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_kept_memory_saves_new_pages():
    lines = memory.compare(batch_size=16, steps=4, rounds=1).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(memory.NETWORKS)
    for line in lines[2:]:
        left, kept, ratio_ = map(float, line.strip("| ").split(" | ")[1:4])
        assert ratio_ == pytest.approx(left / kept, rel=0.05)
    left, kept = map(float, lines[2].strip("| ").split(" | ")[4:])
    assert kept < left / 2  # of the segmentation U-Net, whose images are larger than latents


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The part of a finished run that the number of steps depends on."""
    root = tmp_path_factory.mktemp("steps")
    folders = {name: root / name for name in ("labeled", "unlabeled")}
    for folder, device in zip(folders.values(), ("spectralis", "home_oct"), strict=True):
        write_phantom(folder, device, n_subjects=6, scans_per_subject=2, size=32, split=(0.5, 0.25, 0.25))
    values = {"preset": "quick", "device": "cpu", "overrides": TINY, "count": 4, "modes": ("compositional",)}
    run = Experiment(Settings(*map(str, folders.values()), str(root / "run"), **values, tracking=False), force=True)
    set_track_meta(True)  # MONAI's default, which other tests of this process may have left switched off
    run.claim()
    run.folder.install_bundles()
    known = [stage.name for stage in run.stages if stage.name.endswith("_evaluation") and "unicorn" not in stage.name]
    run.walk(needed(run.stages, [*known, "textures", "latents", "unicorn_semantic_controlnet"]))
    return run.folder.run_dir


def test_steps_measures_every_sampler_and_number_once_and_leaves_the_run_alone(finished, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    text = steps.measure(finished, tmp_path, [2, 3], [0], [None, "UniPC"])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path for path in finished.rglob("*") if path.is_file()} == before.keys()
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["the run's own", "2"], ["the run's own", "3"], ["UniPC", "2"], ["UniPC", "3"]]
    assert all(re.fullmatch(r"[\d.]+", cell) for row in rows for cell in row[2:])

    header = json.loads((tmp_path / "seed0_UniPC" / "synthetic_3" / "dataset.json").read_text())
    assert len(header["training"]) == 4
    command = json.loads((tmp_path / "seed0_UniPC" / "stages" / "synthesis_3.json").read_text())["commands"]
    assert "UniPC" in str(command)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    assert steps.measure(finished, tmp_path, [2, 3], [0], [None, "UniPC"]) == text
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")} == made


def test_samplers_prints_errors_that_fall_with_the_steps():
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in samplers.measure([2, 25]).splitlines()]
    assert rows[0] == ["steps", "DDIM", "DPMSolverPlusPlus", "UniPC"]
    few, many = ([float(text) for cell in row[1:] for text in re.findall(r"[+-]?[\d.]+", cell)] for row in rows[2:])
    assert all(abs(b) < abs(a) / 5 for a, b in zip(few, many, strict=True))


def test_trainings_leave_monais_tracking_of_metadata_as_it_was(finished):
    assert get_track_meta()


def test_steps_refuses_a_run_without_an_oracle(finished, tmp_path):
    (tmp_path / "experiment.json").write_text((finished / "experiment.json").read_text())
    with pytest.raises(ValueError, match="has no network of the upper bound; expected a finished run"):
        steps.measure(tmp_path, tmp_path / "out", [2], [0])


def test_an_ablation_changes_one_thing_and_leaves_the_run_alone(finished, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    text = ablation.compare(finished, tmp_path, ["no_guessed_labels", "no_guidance"], [None])
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()[2:]]
    assert [row[0] for row in rows] == ["no guessed labels", "no guidance"]
    assert all(re.fullmatch(r"-?[\d.]+", cell) for row in rows for cell in row[1:])

    unguessed, unguided = tmp_path / "no_guessed_labels", tmp_path / "no_guidance"
    assert not (unguessed / "guessed").exists()
    nets = [
        folder / "bundles" / "semantic_controlnet" / "models" / "model.pt" for folder in (finished, unguided, unguessed)
    ]
    assert sha256(nets[0]) == sha256(nets[1]) != sha256(nets[2])  # taken over where only the synthesis changes
    shared = [
        folder / "bundles" / "latent_diffusion" / "models" / "model.pt" for folder in (finished, unguided, unguessed)
    ]
    assert len({sha256(path) for path in shared}) == 1
    item = json.loads((unguided / "synthetic" / "dataset.json").read_text())["training"][0]
    assert item["synthetic"]["guidance"] == [1.0, 1.0]
    assert ablation.compare(finished, tmp_path, ["no_guessed_labels", "no_guidance"], [None]) == text


def test_an_ablation_refuses_a_run_that_lacks_what_it_builds_on(finished, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.json").write_text((finished / "experiment.json").read_text())
    with pytest.raises(ValueError, match="has no folder 'bundles/retinal_unet'; expected a finished run"):
        ablation.compare(tmp_path / "run", tmp_path / "out", ["plain_hint"], [None])


def test_two_runs_are_the_same_unless_a_weight_a_pixel_or_a_score_differs(tmp_path, capsys):
    for name in ("before", "after"):
        (tmp_path / name / "models").mkdir(parents=True)
        save_file({"a": torch.arange(3.0), "b": torch.zeros(2)}, tmp_path / name / "models" / "model.safetensors")
        Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / name / "sheet.png")
        results = {"segmentation": {"unicorn": {"iou": [0.5, 0.25]}}, "seconds": {"unicorn": len(name)}}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    runs = [str(tmp_path / name) for name in ("before", "after")]
    assert same_run.main(runs) == 0  # seconds are no difference
    results["segmentation"]["unicorn"]["iou"][1] = 0.250000001
    (tmp_path / "after" / "results.json").write_text(json.dumps(results))
    save_file({"a": torch.arange(3.0), "b": torch.tensor([0.0, -0.0])}, tmp_path / "after/models/model.safetensors")
    Image.fromarray(np.eye(4, dtype=np.uint8)[::-1]).save(tmp_path / "after" / "sheet.png")
    capsys.readouterr()
    assert same_run.main(runs) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("differs: ")] == [
        "differs: models/model.safetensors: b",
        "differs: sheet.png",
        "differs: results.json/segmentation/unicorn/iou/1",
    ]
    for folder in ("b1", "c2"):  # copies that MLflow keeps, in folders with random names
        copies = tmp_path / "after" / "mlartifacts" / folder
        copies.mkdir(parents=True)
        Image.fromarray(np.eye(4, dtype=np.uint8)).save(copies / "sheet.png")
    assert not [line for line in same_run.differences(*map(Path, runs)) if "mlartifacts" in line]
    (tmp_path / "after" / "sheet.png").unlink()
    assert f"only in '{runs[0]}': sheet.png" in same_run.differences(*map(Path, runs))
