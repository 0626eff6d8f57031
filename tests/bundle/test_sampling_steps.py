"""Runs whose sampler would be wrong are refused before anything is trained; those that try the machinery are told."""

from __future__ import annotations

import copy

import pytest

from data_prep.phantom import write_phantom
from tiny_networks import TINY
from unicorn_monai.bundle.installation import install
from unicorn_monai.bundle.references import definition, from_bundle
from unicorn_monai.bundle.run import run_bundle
from unicorn_monai.bundle.sampling_steps import SAMPLING, check_steps, describe, is_coarse
from unicorn_monai.experiment.experiment import Experiment
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.report.checks import image_checks
from unicorn_monai.report.results import Results
from unicorn_monai.schedulers import DDIM, UniPC, _tell
from unicorn_monai.system.errors import root_cause

BRIEF = {"max_epochs": 1, "iterations_per_epoch": 2}


def overrides(steps: int, training: dict | None = None, bundle: str = "latent_diffusion", file: str = "inference.json"):
    """A number of denoising steps, and the length of the diffusion model's training."""
    changes = {"latent_diffusion": {"train_diffusion.json": training or {}}}
    changes.setdefault(bundle, {}).setdefault(file, {})["num_inference_steps"] = steps
    return changes


@pytest.mark.parametrize("preset", ["small", None])
def test_the_bundles_own_steps_are_right_and_their_sampler_is_the_best(preset, tmp_path):
    check_steps(preset)
    assert not is_coarse(preset)
    root = install("latent_diffusion", tmp_path, preset)
    scheduler = from_bundle(root, "scheduler")
    assert type(scheduler) is UniPC
    assert not scheduler.coarse
    found = describe(scheduler, definition(root, "num_inference_steps"))
    assert found["right"]
    assert max(abs(found[key]) for key in ("mean", "spread", "distance")) < 0.011


@pytest.mark.parametrize(("bundle", "file"), SAMPLING, ids=["/".join(place) for place in SAMPLING])
def test_too_few_steps_are_refused_wherever_they_are_set(bundle, file):
    message = f"num_inference_steps is 5 in {bundle}/configs/{file}: UniPC with 5 steps is wrong.*Take 7 steps or more"
    with pytest.raises(ValueError, match=message):
        check_steps("small", overrides(5, None, bundle, file))
    check_steps("small", overrides(7, None, bundle, file))


@pytest.mark.parametrize(
    ("training", "coarse"),
    [
        (BRIEF, True),
        ({"max_epochs": 33, "iterations_per_epoch": 3}, True),
        ({"max_epochs": 50, "iterations_per_epoch": 2}, False),
        ({"max_epochs": 1}, True),  # 50 iterations
        ({"max_epochs": 1, "iterations_per_epoch": None}, False),  # as many as there are batches
    ],
)
def test_a_diffusion_model_of_less_than_100_iterations_tries_the_machinery(training, coarse):
    assert is_coarse("small", overrides(2, training)) is coarse
    if coarse:
        check_steps("small", overrides(2, training))
    else:
        with pytest.raises(ValueError, match="UniPC with 2 steps is wrong"):
            check_steps("small", overrides(2, training))


def test_a_sampler_is_judged_by_the_training_of_the_mode():
    brief = {"latent_diffusion": {"train_diffusion.json": BRIEF}}
    assert is_coarse("small", brief, ["paper"])
    assert not is_coarse("small", brief, ["joint"])
    assert not is_coarse("small", brief, ["joint", "paper"])
    assert is_coarse("small", {"joint": {"train.json": BRIEF}}, ["joint"])
    assert is_coarse("small", brief | {"joint": {"train.json": BRIEF}}, ["joint", "paper"])


def test_another_sampler_needs_steps_of_its_own():
    changes = {"latent_diffusion": {"inference.json": {"scheduler::_target_": "unicorn_monai.schedulers.DDIM"}}}
    with pytest.raises(ValueError, match=r"num_inference_steps is 15 .*: DDIM with 15 steps is wrong.*Take 40 steps"):
        check_steps("small", changes)


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name, device in (("labeled", "spectralis"), ("unlabeled", "home_oct")):
        write_phantom(root / name, device, n_subjects=4, scans_per_subject=1, size=32, split=(0.5, 0.25, 0.25))
    return [str(root / name) for name in ("labeled", "unlabeled")]


def test_an_experiment_refuses_a_wrong_sampler_before_it_begins(domains, tmp_path):
    with pytest.raises(ValueError, match=r"num_inference_steps is 3 in .*: UniPC with 3"):
        Experiment(Settings(*domains, str(tmp_path / "r"), preset="quick", device="cpu", overrides=overrides(3)))
    assert not (tmp_path / "r").exists()


def test_a_run_that_tries_the_machinery_is_told_and_marked(domains, tmp_path, caplog):
    _tell.cache_clear()
    tiny = copy.deepcopy(TINY)
    del tiny["latent_diffusion"]["inference.json"]["coarse_sampling"]
    run = Experiment(Settings(*domains, str(tmp_path / "r"), preset="quick", device="cpu", overrides=tiny))
    assert "UniPC with 2 steps is wrong: " in caplog.text
    run.folder.install_bundles()
    assert from_bundle(run.folder.bundle_dir("latent_diffusion"), "scheduler").coarse


@pytest.mark.parametrize(("file", "kind"), [("train_diffusion.json", "train"), ("inference.json", "infer")])
def test_a_bundle_refuses_a_wrong_sampler_before_it_reads_an_image(file, kind, tmp_path):
    root = install("latent_diffusion", tmp_path, "small")
    with pytest.raises(RuntimeError) as caught:
        run_bundle(root / "configs" / file, kind, device="cpu", num_inference_steps=4)
    assert str(root_cause(caught.value)).startswith("UniPC with 4 steps is wrong")


@pytest.mark.parametrize(("scheduler", "n", "good"), [(UniPC(1000), 15, True), (DDIM(1000), 20, False)])
def test_results_and_report_tell_how_right_the_sampler_is(scheduler, n, good):
    part = describe(scheduler, n)
    expected, found, right = image_checks(Results.of({"diffusion": {"sampler": part}}))[-1]
    assert right is good is part["right"]
    assert "mean within 5\u00a0%, spread within 10\u00a0%, distance within 10\u00a0%" in expected
    assert found.startswith(f"{type(scheduler).__name__} in {n} steps: mean ")


def test_a_run_without_a_record_of_its_sampler_has_no_verdict():
    assert image_checks(Results())[-1][1:] == ("", None)
