"""Branches of stages side by side: what waits for what, and what a failure ends."""

import time
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch

from unicorn_monai import stages
from unicorn_monai.stages import side_by_side


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
    (folder / name).write_text(f"{[b[0] for b in before]} {threads}")


def test_the_others_of_a_chain_wait_for_its_first_and_not_for_other_chains(tmp_path):
    chains = [[("patient", "after_quick_2"), ("after_patient",)], [("quick",), ("after_quick_1",), ("after_quick_2",)]]
    side_by_side(note, chains, 2, tmp_path)
    found = {path.name: path.read_text().rsplit(" ", 1)[0] for path in tmp_path.iterdir()}
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
