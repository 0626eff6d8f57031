"""Killed at any moment, a stage leaves nothing unreadable, and goes on to the same bytes as an uninterrupted one."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from killed_stages import prepare, run, unreadable

SHORT = ("simulate", "synthesise", "encode", "train", "translate")
KILLS = 2  # of each short stage
FULL_KILLS = {"simulate": 30, "synthesise": 50, "encode": 40, "train": 40, "experiment": 40, "translate": 20}  # 220


@pytest.fixture(scope="module")
def forks():
    """Processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_stages"])
    return context


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare(tmp_path_factory.mktemp("data"))


def start(forks, stage: str, data: Path, folder: Path):
    begun = forks.Event()
    process = forks.Process(target=run, args=(stage, data, folder, begun))
    process.start()
    assert begun.wait(300), "the process has not started"
    return process


def finish(process) -> float:
    started = time.monotonic()
    process.join(1800)
    assert process.exitcode == 0, process.exitcode
    return time.monotonic() - started


def content(folder: Path) -> dict[str, bytes]:
    """Every file but locks (that of a killed process is nobody's) and TensorBoard's, which every process has anew."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "tensorboard")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.startswith(".lock")}


def kill_and_go_on(forks, stage: str, data: Path, root: Path, kills: int, seed: int = 0) -> tuple[Path, Path, int]:
    """A run left alone and one that was killed; how often."""
    moments = random.Random(seed)
    whole, killed = root / "whole", root / "killed"
    seconds = finish(start(forks, stage, data, whole))
    assert unreadable(whole) == []
    done, process = 0, None
    while done < kills:
        process = start(forks, stage, data, killed)
        process.join(moments.uniform(0, 0.7 * seconds))
        if process.exitcode is not None:
            assert process.exitcode == 0, Path(f"{killed}.out").read_text()[-3000:]
            break  # it got to the end; there is nothing left to kill
        process.kill()
        process.join()
        done += 1
        assert unreadable(killed) == [], f"after kill {done}"
    finish(start(forks, stage, data, killed))
    return whole, killed, done


@pytest.mark.parametrize("stage", SHORT)
def test_a_stage_that_is_killed_ends_as_if_it_had_not_been(forks, data, tmp_path, stage):
    whole, killed, done = kill_and_go_on(forks, stage, data, tmp_path, KILLS)
    assert content(killed) == content(whole)
    if stage == "synthesise":
        logs = [Path(f"{folder}.log").read_text().split() for folder in (whole, killed)]
        assert set(logs[0]) == set(logs[1])
        assert len(logs[1]) <= len(logs[0]) + done, "at most one batch for each kill is made twice"


@pytest.mark.slow
@pytest.mark.parametrize("stage", FULL_KILLS)
def test_two_hundred_kills_harm_nothing(forks, data, tmp_path, stage):
    left, seed = FULL_KILLS[stage], 1
    while left > 0:
        root = tmp_path / str(seed)
        whole, killed, done = kill_and_go_on(forks, stage, data, root, min(left, 10), seed)
        if stage == "experiment":
            same_experiment(whole, killed)
        else:
            assert content(killed) == content(whole)
        left, seed = left - done, seed + 1


def alive(pid: int) -> bool:
    """Whether a process is at work; one that has ended may still be in the list, for its new parent to ask about."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(what: str, condition, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def test_branches_end_with_their_parent_and_save_what_they_have(forks, data, tmp_path):
    finish(start(forks, "train_long", data, tmp_path / "whole"))
    folder = tmp_path / "both"
    for number in (signal.SIGKILL, signal.SIGTERM):
        parent = start(forks, "train_two", data, folder)
        begun = [folder / f"{name}.begun" for name in ("one", "two")]
        states = [folder / name / "models" / "resume.pt" for name in ("one", "two")]
        wait_for("processes", lambda files=begun: all(f.exists() and f.read_text() for f in files))
        at = time.time_ns()
        wait_for("states", lambda files=states, at=at: all(f.exists() and f.stat().st_mtime_ns > at for f in files))
        branches = [int(file.read_text()) for file in begun]
        assert all(alive(pid) for pid in branches), "the trainings are too short for this test"
        os.kill(parent.pid, number)
        parent.join(300)
        assert parent.exitcode == (-signal.SIGKILL if number == signal.SIGKILL else 143)
        wait_for("the branches' end", lambda pids=branches: not any(alive(pid) for pid in pids))
        assert unreadable(folder) == []
    told = Path(f"{folder}.out").read_text()
    assert told.count("Told to end; the state is in") == 4, told[-3000:]
    for name in ("one", "two"):
        finish(start(forks, "train_long", data, folder / name))
        assert content(folder / name) == content(tmp_path / "whole")


def same_experiment(whole: Path, killed: Path) -> None:
    """Data sets and weights byte for byte; the rest tells of seconds and folders."""
    for pattern in ("synthetic*/**/*", "labeled_augmented/**/*", "**/models/*.pt", "segmentation/**/*.pt"):
        names = {str(p.relative_to(whole / "run")) for p in (whole / "run").glob(pattern) if p.is_file()}
        assert names == {str(p.relative_to(killed / "run")) for p in (killed / "run").glob(pattern) if p.is_file()}
        for name in sorted(names):
            same = (whole / "run" / name).read_bytes() == (killed / "run" / name).read_bytes()
            assert same, name
    assert not list(killed.rglob(".tmp-*"))
    assert not [path for path in killed.rglob(".lock*") if path.is_file()]


def test_the_test_would_notice(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.pt").write_bytes(os.urandom(100))
    (tmp_path / "c.nii.gz").write_bytes(b"")
    (tmp_path / "items.jsonl").write_text('{"a": 1}\n{"b"\n{"c')
    (tmp_path / ".tmp-x-1-d.json").write_text("{")
    assert sorted(line.split(":")[0] for line in unreadable(tmp_path)) == ["a.json", "b.pt", "c.nii.gz", "items.jsonl"]
