"""Stages: what waits for what, what is done again, and what a failure of one of several processes ends."""

import json
import multiprocessing
import time
from concurrent.futures import wait
from functools import partial
from pathlib import Path

import pytest
import torch

from unicorn_monai.experiment import processes, runner
from unicorn_monai.experiment.processes import side_by_side
from unicorn_monai.experiment.runner import Runner
from unicorn_monai.experiment.stages import Stage, needed, ordered, widest


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(runner.time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def run(tmp_path) -> Runner:
    (tmp_path / "stages").mkdir()
    return Runner(tmp_path, torch.device("cpu"), 0)


def alone(name, work) -> Stage:
    return Stage(name, (), (), work)


def test_a_stage_notes_its_seconds_and_threads_with_those_of_interrupted_attempts(run, clock, monkeypatch):
    def work(seconds, error=None):
        clock.now += seconds
        if error is not None:
            raise error
        return {"n": 1}

    for threads, seconds, error in ((2, 30, KeyboardInterrupt()), (4, 5, ValueError("the disk is full"))):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with pytest.raises(type(error)):
            run.run(alone("diffusion", lambda seconds=seconds, error=error: work(seconds, error)))
        assert not run.marker("diffusion").exists()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert run.run(alone("diffusion", lambda: work(10))) == {"n": 1}
    spent = json.loads(run.marker("diffusion").read_text())
    assert (spent["seconds"], spent["threads"], spent["core_seconds"]) == (45, 1, 2 * 30 + 4 * 5 + 10)
    assert list((run.run_dir / "stages" / "unfinished").iterdir()) == []
    assert run.run(alone("diffusion", lambda: work(1000))) == {"n": 1}  # finished before
    assert json.loads(run.marker("diffusion").read_text()) == spent


def test_a_stage_that_is_finished_is_not_run_again_and_says_so_once(run, caplog):
    caplog.set_level("INFO", "unicorn_monai")
    stage, results = Stage("scores", (), (), lambda: 1, ("segmentation", "lower_bound")), run.results
    assert run.run(stage) == 1
    assert [text.partition(":")[0] for text in caplog.messages] == ["== scores", "   scores"]
    caplog.clear()
    again = Runner(run.run_dir, torch.device("cpu"), 0)
    assert again.run(Stage("scores", (), (), lambda: 2, ("segmentation", "lower_bound"))) == 1
    assert caplog.messages == ["scores: finished before, skipped"]
    assert results == again.results == {"segmentation": {"lower_bound": 1}}


def test_core_seconds_add_up_and_count_one_thread_where_none_was_noted(run):
    run.marker("old").write_text(json.dumps({"seconds": 7.0, "result": None, "commands": {}}))
    run.marker("new").write_text(json.dumps({"seconds": 5.0, "threads": 4, "core_seconds": 20.0}))
    assert run.core_seconds(["old", "new"]) == 27


def test_a_description_that_fails_is_told_and_tried_again_and_a_broken_program_is_not_hidden(run):
    def distances(error=None):
        def work():
            if error is not None:
                raise error
            return {"n": 2}

        return Stage("distances", (), (), work, alone=True, optional=True)

    assert run.run(distances(ValueError("no <file>"))) == {"not_computed": "no <file>"}
    with pytest.raises(RuntimeError):
        run.run(distances(RuntimeError("out of memory")))
    assert run.run(distances()) == {"n": 2}
    assert run.run(distances(ValueError("never"))) == {"n": 2}
    with pytest.raises(ValueError, match="'distances' is optional, but not alone"):
        Stage("distances", (), (), int, optional=True)


# ---------------------------------------------------------------- the plan


def stage(name: str, *needs: str, makes: tuple[str, ...] | None = None, **more) -> Stage:
    return Stage(name, needs, (name,) if makes is None else makes, int, **more)


PLAN = [
    stage("control", "synthesis", makes=()),
    stage("synthesis", "generator"),
    stage("autoencoder"),
    stage("judge"),
    stage("usable", "autoencoder", kept=False),
    stage("diffusion", "usable", makes=("generator",)),
]


def test_the_order_is_that_of_the_needs_and_else_as_declared():
    names = [one.name for one in ordered(PLAN)]
    assert names == ["autoencoder", "judge", "usable", "diffusion", "synthesis", "control"]
    assert [one.name for one in needed(PLAN, ["synthesis"])] == ["autoencoder", "usable", "diffusion", "synthesis"]
    assert [one.name for one in needed(PLAN, ["judge"])] == ["judge"]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([stage("a", "b"), stage("b", "a")], r"or only after them: \{'a': \['b'\], 'b': \['a'\]\}"),
        ([stage("a"), stage("b", "c")], r"No stage makes what these need.*\{'b': \['c'\]\}"),
        ([stage("a"), stage("a")], r"\['a'\] are each the name of, or made by, two stages"),
        ([stage("a", makes=("c",)), stage("b"), stage("c", "b")], r"\['c'\] are each the name of, or made by"),
    ],
)
def test_a_plan_that_cannot_be_walked_is_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        ordered(plan)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ([stage("a"), stage("b", "a"), stage("c")], 2),
        ([stage("a"), stage("b"), stage("c"), stage("d", "c"), stage("e", "c")], 4),
        ([stage("a"), stage("b", "a"), stage("c", "b")], 1),
        ([stage("a"), stage("gate", "a", kept=False), stage("b", "gate"), stage("c", "gate")], 2),
        ([stage("gate", kept=False)], 0),
    ],
)
def test_no_more_processes_share_the_cores_than_can_run_at_a_time(plan, expected):
    assert widest(plan) == expected


def test_a_measurement_of_what_is_yet_to_be_made_is_taken_anew_and_nothing_is_made_again(run):
    for name in ("autoencoder", "diffusion", "synthesis", "control"):
        run.marker(name).write_text("{}")
    run.forget(PLAN)
    assert run.marker("control").exists()
    run.marker("autoencoder").unlink()  # its loss is no reason to train what was trained on it
    run.marker("synthesis").unlink()
    run.forget(PLAN)
    assert {path.stem for path in run.run_dir.glob("stages/*")} == {"diffusion"}


def test_a_gate_is_looked_at_in_every_run_and_ends_it_before_what_needs_it(run):
    looked, made = list[int](), list[int]()

    def look():
        looked.append(1)
        if len(looked) == 1:
            raise ValueError("not usable")

    plan = [
        Stage("autoencoder", (), ("autoencoder",), int),
        Stage("gate", ("autoencoder",), ("usable",), look, kept=False),
        Stage("diffusion", ("usable",), ("diffusion",), lambda: made.append(1)),
    ]
    with pytest.raises(ValueError, match="not usable"):
        run.walk(plan)
    assert made == []
    run.walk(plan)
    run.walk(plan)
    assert (len(looked), len(made)) == (3, 1)
    assert {path.stem for path in run.run_dir.glob("stages/*")} == {"autoencoder", "diffusion"}


# ---------------------------------------------------------------- side by side


def note(folder: Path, name: str, threads: int) -> None:
    """Leave a file; "fails" fails, "sleeps" takes a minute, "patient" waits until another stage has left its file."""
    if name == "fails":
        raise ValueError("this one fails")
    if name == "sleeps":
        time.sleep(60)
    if name == "patient":
        for _ in range(600):
            if (folder / "second").exists():
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("no other stage may wait for this one, and none came")
    there = sorted(path.name for path in folder.iterdir())
    (folder / name).write_text(f"{multiprocessing.get_start_method()} {threads} {' '.join(there)}")


def no_gate(gate: Stage) -> None:
    raise AssertionError(gate.name)


def test_each_waits_for_what_it_needs_and_for_nothing_else_and_cores_are_shared(tmp_path):
    plan = [stage("patient"), stage("after", "patient"), stage("first"), stage("second", "first")]
    side_by_side(partial(note, tmp_path), plan, 2, no_gate)
    there = {path.name: set(path.read_text().split()[2:]) for path in tmp_path.iterdir()}
    assert there.keys() == {one.name for one in plan}
    assert "patient" in there["after"]
    assert there["second"] == {"first"}
    method, threads = (tmp_path / "first").read_text().split()[:2]
    assert threads == str(max(1, torch.get_num_threads() // 2))
    assert method == multiprocessing.get_start_method(), "the process was spawned; what it starts is not"


def test_the_first_that_can_run_is_begun_and_gates_are_looked_at_here(tmp_path):
    looked = []
    plan = [stage("one"), stage("gate", "one", kept=False), stage("two", "gate"), stage("three")]
    side_by_side(partial(note, tmp_path), plan, 1, lambda gate: looked.append(sorted(tmp_path.iterdir())))
    assert looked == [[tmp_path / "one"]]
    assert [(tmp_path / name).read_text().split()[2:] for name in ("two", "three")] == [["one"], ["one", "two"]]


def test_stages_that_wait_for_each_other_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"\['one', 'two'\] wait for each other"):
        side_by_side(partial(note, tmp_path), [stage("one", "two"), stage("two", "one")], 2, no_gate)


def test_the_first_failure_ends_all_and_its_error_arrives(tmp_path):
    plan = [stage("fails"), stage("after", "fails"), stage("sleeps")]
    with pytest.raises(ValueError, match="this one fails"):
        side_by_side(partial(note, tmp_path), plan, 2, no_gate)
    assert list(tmp_path.iterdir()) == [], "waited for a stage that the failure should have ended"


def test_a_gate_that_is_not_met_ends_all(tmp_path):
    plan = [stage("one"), stage("gate", "one", kept=False), stage("sleeps")]
    with pytest.raises(AssertionError, match="gate"):
        side_by_side(partial(note, tmp_path), plan, 2, no_gate)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_failure_arrives_also_when_another_stage_ends_at_the_same_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "wait", lambda running, return_when: wait(running))  # seen together, any order
    plan = [stage("quick"), stage("after_quick", "quick"), stage("fails"), stage("after_failure", "fails")]
    with pytest.raises(ValueError, match="this one fails"):
        side_by_side(partial(note, tmp_path), plan, 2, no_gate)
    assert [path.name for path in tmp_path.iterdir()] == ["quick"]


def elsewhere(folder: Path, name: str, threads: int) -> None:
    """A stage of the plan below, as a process of a run does it."""
    there = Runner(folder, torch.device("cpu"), 0, elsewhere=True)
    with there.branch():
        there.run(Stage(name, (), (), lambda: {"threads": threads}, ("segmentation", name)))


def test_a_run_says_what_its_processes_did_by_themselves_and_nothing_twice(run, caplog, capfd):
    caplog.set_level("INFO", "unicorn_monai")
    plan = [stage(name, result=("segmentation", name)) for name in ("one", "two", "three")]
    run.walk(plan[2:])
    caplog.clear()
    run.walk(plan, 2, partial(elsewhere, run.run_dir))
    assert caplog.messages == ["three: finished before, skipped"]
    assert list(run.results["segmentation"]) == ["one", "two", "three"], "in the order of the plan"
    there = Runner(run.run_dir, torch.device("cpu"), 0, elsewhere=True)
    caplog.clear()
    there.run(alone("four", int))
    assert caplog.messages[0] == "== four"
    assert caplog.messages[1].startswith(f"   four: done by process {multiprocessing.current_process().pid} in 0.")
