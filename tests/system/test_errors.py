"""How a run ends: by which exit status, with which message, and with everybody's cleaning up done."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine

from unicorn_monai.bundle.installation import bundle_root
from unicorn_monai.experiment import versions
from unicorn_monai.system.errors import NotFinite, explain, of_batch, on_failure, on_sigterm
from unicorn_monai.system.networks import in_parts, require_finite
from unicorn_monai.training.state import random_state, set_random_state

ENDING = {"_target_": "unicorn_monai.system.end_in_one_sentence"}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


WRAPPED = """
import torch
from unicorn_monai.system.networks import require_finite
try:
    require_finite("A latent", torch.tensor([1.0, float("nan")]), " (batch of a.png)")
except ValueError as error:
    raise RuntimeError("MONAI wraps it") from error
"""
INSTALL = "from unicorn_monai.system.errors import tell_root_cause_last\ntell_root_cause_last()\n"


def ends(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_numbers_that_are_not_finite_have_an_exit_status_of_their_own_where_a_program_wants_it():
    done = ends("-c", INSTALL + INSTALL + WRAPPED)
    assert done.returncode == 3
    assert done.stderr.endswith("\nerror: A latent holds NaN or infinite values (batch of a.png).\n")
    assert done.stderr.count("RuntimeError: MONAI wraps it") == 1
    assert "NotFinite: A latent holds NaN or infinite values (batch of a.png)." in done.stderr
    assert ends("-c", INSTALL + "raise ValueError('anything else')").returncode == 1
    asked = "from unicorn_monai.system.errors import end_in_one_sentence\nend_in_one_sentence()\n"
    for elsewhere in (WRAPPED, asked + WRAPPED):  # a program that is not MONAI's command ends as Python does
        done = ends("-c", elsewhere)
        assert done.returncode == 1
        assert done.stderr.endswith("\nRuntimeError: MONAI wraps it\n")


def test_a_bundle_command_ends_with_that_status_too(tmp_path):
    check = {"_target_": "unicorn_monai.system.require_finite", "name": "A latent", "values": "$float('nan') * @one"}
    config = {"one": "$__import__('torch').ones(2)", "initialize": [ENDING, check], "run": []}
    path = tmp_path / "train.json"
    path.write_text(json.dumps(config))
    done = ends("-m", "monai.bundle", "run", "--config_file", str(path))
    assert done.returncode == 3
    assert done.stderr.endswith("\nerror: A latent holds NaN or infinite values.\n")


def test_a_bundle_command_ends_with_the_sentence_behind_monais_error():
    config = Path(bundle_root("retinal_unet")) / "configs" / "train.json"
    done = ends("-m", "monai.bundle", "run", "--config_file", str(config), "--dataset_dir", "nowhere")
    assert done.returncode == 1
    assert "RuntimeError: Failed to instantiate component" in done.stderr  # the traceback is all there
    *_, last = done.stderr.strip().splitlines()
    assert last == "error: Data set folder 'nowhere' does not exist. Make one with `unicorn-monai prepare`."


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"image_path": ["a", "b"]}, " (batch of a, b)"),
        ([{"image_path": "a"}, {"image_path": "b"}], " (batch of a, b)"),
        ({"index": torch.tensor([2, 0])}, " (batch of third, first)"),
        ({"index": torch.arange(3).repeat(3)}, " (batch of first, second, third, first and 5 more)"),
        ({"image": torch.zeros(1)}, ""),
        (torch.zeros(1), ""),
    ],
)
def test_a_batch_is_told_by_its_images(batch, words):
    engine = Engine(lambda *_: None)
    engine.state.batch = batch
    engine.state.dataloader = SimpleNamespace(dataset=SimpleNamespace(images=["first", "second", "third"]))
    assert of_batch(engine) == words


def test_everybody_cleans_up_before_the_error_goes_on():
    def fail(engine, batch):
        raise ValueError("the batch is bad")

    engine, cleaned = Engine(fail), []
    for name in ("bar", "lock"):
        on_failure(engine, lambda name=name: cleaned.append(name))
    with pytest.raises(ValueError, match="the batch is bad"):
        engine.run([0])
    assert cleaned in (["bar", "lock"], ["bar", "lock"] * 2)  # Ignite tells of an error of an iteration twice


def test_a_request_to_end_is_heard_within_the_block_only():
    heard = []
    before = signal.getsignal(signal.SIGTERM)
    with on_sigterm(lambda: heard.append(True)):
        os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [True]
    assert signal.getsignal(signal.SIGTERM) == before
    thread = threading.Thread(target=lambda: on_sigterm(lambda: None).__enter__())
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before


# ---------------------------------------------------------------- memory


def decoder(fits: int, error: type[Exception] = torch.OutOfMemoryError, message: str = "CUDA out of memory"):
    sizes = []

    def decode(batch):
        sizes.append(len(batch))
        if len(batch) > fits:
            raise error(message)
        return batch * 2

    return decode, sizes


@pytest.mark.parametrize("fits", [1, 2, 3, 5, 100])
def test_what_does_not_fit_into_memory_is_done_in_halves(fits):
    decode, sizes = decoder(fits)
    batch = torch.arange(10.0)
    assert torch.equal(in_parts(decode, batch, 8), batch * 2)
    assert sizes[0] == 8
    assert len(sizes) <= 3 + 10


def test_memory_of_the_processor_counts_too_but_no_other_error():
    decode, _ = decoder(2, RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    assert len(in_parts(decode, torch.zeros(5), 4)) == 5
    with pytest.raises(RuntimeError, match="shapes"):
        in_parts(decoder(0, RuntimeError, "shapes do not match")[0], torch.zeros(5), 4)
    with pytest.raises(torch.OutOfMemoryError):
        in_parts(decoder(0)[0], torch.zeros(5), 4)


def test_memory_that_runs_out_elsewhere_is_explained():
    assert "Lower batch_size" in explain(torch.OutOfMemoryError("CUDA out of memory."))


def test_finite_values_pass():
    values = torch.ones(3)
    assert require_finite("It", values) is values
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(NotFinite, match="It holds NaN or infinite"):
            require_finite("It", torch.tensor(bad))


@pytest.fixture
def revision_not_read_yet():
    versions.git_revision.cache_clear()
    yield
    versions.git_revision.cache_clear()


def test_a_machine_without_git_can_run_an_experiment(monkeypatch, tmp_path, revision_not_read_yet):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert versions.provenance()["git_revision"] is None


def test_the_revision_is_not_that_of_a_repository_around_an_installation(monkeypatch, tmp_path, revision_not_read_yet):
    installed = tmp_path / ".venv" / "provenance.py"
    installed.parent.mkdir()
    installed.write_text("")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    monkeypatch.setattr(versions, "__file__", str(installed))
    assert versions.provenance()["git_revision"] is None
    versions.git_revision.cache_clear()
    subprocess.run([*git, "add", str(installed)], check=True)
    revision = versions.provenance()["git_revision"]
    assert len(revision) == 40
    subprocess.run([*git, "commit", "-q", "-m", "while it runs"], check=True)
    assert versions.provenance()["git_revision"] == revision


def test_random_numbers_go_on_where_they_were():
    random.seed(0)
    random.gauss(0, 1)  # makes two numbers and keeps one
    state = random_state()
    expected = random.gauss(0, 1)
    set_random_state(state)
    assert random.gauss(0, 1) == expected
