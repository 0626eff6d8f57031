"""Branches of stages side by side: what waits for what, and what a failure ends."""

import json
import multiprocessing
import time
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch

from unicorn_monai.experiment import stages
from unicorn_monai.experiment.stages import Stages, side_by_side


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stages.time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def run(tmp_path) -> Stages:
    (tmp_path / "stages").mkdir()
    return Stages(tmp_path, torch.device("cpu"), 0)


def test_a_stage_notes_its_seconds_and_threads_with_those_of_interrupted_attempts(run, clock, monkeypatch):
    def work(seconds, error=None):
        clock.now += seconds
        if error is not None:
            raise error
        return {"n": 1}

    for threads, seconds, error in ((2, 30, KeyboardInterrupt()), (4, 5, ValueError("the disk is full"))):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with pytest.raises(type(error)):
            run.stage("diffusion", lambda seconds=seconds, error=error: work(seconds, error))
        assert not run.marker("diffusion").exists()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert run.stage("diffusion", lambda: work(10)) == {"n": 1}
    spent = json.loads(run.marker("diffusion").read_text())
    assert (spent["seconds"], spent["threads"], spent["core_seconds"]) == (45, 1, 2 * 30 + 4 * 5 + 10)
    assert list((run.run_dir / "stages" / "unfinished").iterdir()) == []
    assert run.stage("diffusion", lambda: work(1000)) == {"n": 1}  # finished before
    assert json.loads(run.marker("diffusion").read_text()) == spent


def test_a_stage_that_is_finished_says_by_whom(tmp_path, run, caplog):
    caplog.set_level("INFO", "unicorn_monai")
    run.stage("here", lambda: 1)
    Stages(tmp_path, torch.device("cpu"), 0).stage("elsewhere", lambda: 2)  # as a process of the run would
    caplog.clear()
    assert [run.stage(name, lambda: 0) for name in ("here", "elsewhere")] == [1, 2]
    assert caplog.messages == ["elsewhere: finished by another process of this run"]
    caplog.clear()
    resumed = Stages(tmp_path, torch.device("cpu"), 0)
    assert [resumed.stage(name, lambda: 0) for name in ("here", "elsewhere")] == [1, 2]
    assert caplog.messages == ["here: finished before, skipped", "elsewhere: finished before, skipped"]


def test_core_seconds_add_up_and_count_one_thread_where_none_was_noted(run):
    run.marker("old").write_text(json.dumps({"seconds": 7.0, "result": None, "commands": {}}))
    run.marker("new").write_text(json.dumps({"seconds": 5.0, "threads": 4, "core_seconds": 20.0}))
    assert run.core_seconds(["old", "new"]) == 27


def test_a_description_that_fails_is_told_and_tried_again_and_a_broken_program_is_not_hidden(run):
    def fails(error):
        raise error

    assert run.described("distances", lambda: fails(ValueError("no <file>"))) == {"not_computed": "no <file>"}
    with pytest.raises(RuntimeError):
        run.described("distances", lambda: fails(RuntimeError("out of memory")))
    assert run.described("distances", lambda: {"n": 2}) == {"n": 2}
    assert run.described("distances", lambda: fails(ValueError("never"))) == {"n": 2}


def note(folder: Path, before: list, branch: tuple, threads: int) -> None:
    """Leave a file; "fails" fails, "sleeps" takes a minute, "patient" waits until another branch has left its file."""
    for name, *_ in before:
        if not (folder / name).exists():
            raise RuntimeError(f"{branch[0]} started before {name} was finished")
    name, *awaited = branch
    if name == "fails":
        raise ValueError("this one fails")
    if name == "sleeps":
        time.sleep(60)
    for _ in range(600):
        if all((folder / other).exists() for other in awaited):
            break
        time.sleep(0.1)
    else:
        raise RuntimeError(f"{name} was not to wait for its own chain, and {awaited} never came")
    (folder / name).write_text(f"{[b[0] for b in before]} {multiprocessing.get_start_method()} {threads}")


def test_the_others_of_a_chain_wait_for_its_first_and_not_for_other_chains(tmp_path):
    chains = [[("patient", "after_quick_2"), ("after_patient",)], [("quick",), ("after_quick_1",), ("after_quick_2",)]]
    side_by_side(note, chains, 2, tmp_path)
    found = {path.name: path.read_text().rsplit(" ", 2)[0] for path in tmp_path.iterdir()}
    assert found == {
        "patient": "[]",
        "quick": "[]",
        "after_patient": "['patient']",
        "after_quick_1": "['quick']",
        "after_quick_2": "['quick']",
    }


def test_cores_are_shared_among_the_processes(tmp_path):
    side_by_side(note, [[("one",)], [("two",)]], 2, tmp_path)
    assert (tmp_path / "one").read_text().split()[-1] == str(max(1, torch.get_num_threads() // 2))


def test_a_branch_starts_processes_of_its_own_as_any_program_does(tmp_path):
    side_by_side(note, [[("one",)]], 1, tmp_path)  # the branch itself is spawned
    assert (tmp_path / "one").read_text().split()[-2] == multiprocessing.get_start_method()


def test_the_first_failure_ends_all_and_its_error_arrives(tmp_path):
    chains = [[("fails",), ("after_failure",)], [("sleeps",)]]
    with pytest.raises(ValueError, match="this one fails"):
        side_by_side(note, chains, 2, tmp_path)
    assert list(tmp_path.iterdir()) == [], "waited for a branch that the failure should have ended"


def test_a_failure_arrives_also_when_another_chain_ends_at_the_same_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "wait", lambda running, return_when: wait(running))  # seen together, whichever is first
    with pytest.raises(ValueError, match="this one fails"):
        side_by_side(note, [[("quick",), ("after_quick",)], [("fails",), ("after_failure",)]], 2, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["quick"]
