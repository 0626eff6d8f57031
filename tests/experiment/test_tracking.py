"""Parent and child runs in MLflow: of a run that fails, is killed, and goes on."""

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from mlflow import MlflowClient
from monai.engines import SupervisedEvaluator

from unicorn_monai.experiment.runner import Runner
from unicorn_monai.experiment.stages import Stage
from unicorn_monai.experiment.tracking import Tracker, address, numbers, store_uri


def statuses(folder: Path) -> dict[str, list[str]]:
    """Status of every run by name, the oldest first."""
    client = MlflowClient(store_uri(folder / "mlflow.db"))
    found = client.search_runs(
        client.get_experiment_by_name("unicorn_monai").experiment_id, order_by=["attributes.start_time"]
    )
    names = dict.fromkeys(run.data.tags["mlflow.runName"] for run in found)
    return {name: [r.info.status for r in found if r.data.tags["mlflow.runName"] == name] for name in names}


def fail_in_the_second(runner: Runner, error: BaseException) -> None:
    """One stage that finishes, one of another process that is ended with this one, and one that fails."""

    def fail():
        raise error

    with Tracker(runner.run_dir, "run") as runner.tracker:
        runner.run(Stage("first", (), (), lambda: {"score": 0.5}))
        runner.tracker.stage("beside")
        runner.run(Stage("second", (), (), fail))


@pytest.mark.parametrize(("error", "status"), [(ValueError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_an_error_ends_stage_and_parent_and_a_resumed_run_goes_on_with_the_parent(tmp_path, error, status):
    runner = Runner(tmp_path, torch.device("cpu"), 0)
    (tmp_path / "stages").mkdir()
    with pytest.raises(type(error)):
        fail_in_the_second(runner, error)
    assert statuses(tmp_path) == {"run": [status], "first": ["FINISHED"], "beside": ["KILLED"], "second": [status]}
    before = runner.tracker.parent
    with Tracker(tmp_path, "run") as runner.tracker:
        assert statuses(tmp_path)["run"] == ["RUNNING"]
        for name in ("first", "second"):
            runner.run(Stage(name, (), (), lambda: None))
        runner.tracker.close({"score": 0.5}, [])
    assert runner.tracker.parent == before
    assert statuses(tmp_path) == {
        "run": ["FINISHED"],
        "first": ["FINISHED"],
        "beside": ["KILLED"],
        "second": [status, "FINISHED"],
    }


def test_what_a_killed_process_left_open_is_ended_when_the_run_goes_on(tmp_path):
    Tracker(tmp_path, "run").stage("diffusion")
    assert statuses(tmp_path) == {"run": ["RUNNING"], "diffusion": ["RUNNING"]}
    Tracker(tmp_path, "run")
    assert statuses(tmp_path) == {"run": ["RUNNING"], "diffusion": ["KILLED"]}


def test_a_parent_that_the_store_does_not_know_is_opened_anew(tmp_path, monkeypatch):
    before = Tracker(tmp_path, "run").parent
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}")
    assert Tracker(tmp_path, "run").parent not in ("", before)
    assert statuses(tmp_path / "other") == {"run": ["RUNNING"]}


def test_losses_and_validations_are_logged_at_their_iterations(tmp_path):
    tracker = Tracker(tmp_path, "run")
    stage = tracker.stage("diffusion")
    trainer = Engine(lambda *_: {"loss": 0.25})
    evaluator = SupervisedEvaluator(torch.device("cpu"), [], torch.nn.Identity())
    for engine in (trainer, evaluator):
        stage.attach(engine)
    trainer.run([0] * 60)
    evaluator.state.metrics = {"val_loss": torch.tensor(0.5), "confusion": torch.ones(2, 2)}
    stage._log_validation(evaluator)
    stage.close("FINISHED", {"a+b": 1.0} | {f"number {i}": i for i in range(2500)})  # more than MLflow takes at once
    client = MlflowClient(tracker.uri)
    found = {
        key: [(m.step, m.value) for m in client.get_metric_history(stage.run, key)]
        for key in ("loss", "validation.val_loss", "a_b", "number 2499")
    }
    assert found == {
        "loss": [(50, 0.25)],
        "validation.val_loss": [(60, 0.5)],
        "a_b": [(0, 1.0)],
        "number 2499": [(0, 2499.0)],
    }
    assert "validation.confusion" not in client.get_run(stage.run).data.metrics


def test_numbers_of_a_result():
    result = {"a": {"b": 1, "c": {"d": 0.5}}, "ci95": [0, 1], "text": "x", "none": None, "yes": True}
    assert numbers(result) == {"a.b": 1.0, "a.c.d": 0.5}
    assert numbers(None) == numbers([1, 2]) == numbers(3.0) == {}


@pytest.mark.parametrize("name", ["run 50% @x $y é::z #4", "100%", "a;b&c=d"])
def test_the_store_lies_in_the_run_whatever_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / name
    (folder / "stages").mkdir(parents=True)
    runner = Runner(folder, torch.device("cpu"), 0)
    with Tracker(folder, "run") as runner.tracker:
        runner.run(Stage("first", (), (), lambda: {"score": 0.5}))
        runner.tracker.close({"score": 1.0}, [folder / "stages" / "first.json"])
    assert statuses(folder) == {"run": ["FINISHED"], "first": ["FINISHED"]}
    assert list(tmp_path.iterdir()) == [folder]
    assert len(list(folder.rglob("first.json"))) == 2  # the stage's, and the store's copy


@pytest.mark.parametrize("name", ["run?", "a?b=1", "%41", "x%20y"])
def test_a_store_that_would_lie_elsewhere_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="MLflow's store cannot be"):
        Tracker(tmp_path / name, "run")
    Tracker(tmp_path / name, "run", enabled=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert address(tmp_path / name) == "http://127.0.0.1:1"
    assert list(tmp_path.iterdir()) == []
