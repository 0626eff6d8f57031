"""MLflow tracking of an experiment: one parent run, a child for every stage.

A child holds the settings of the configuration a stage ran, losses and validation metrics of a training with its sheets
of samples, the numbers among the stage's results, and how it ended. A run that is resumed goes on with its parent.

The store is a SQLite file of the run folder, or the server that ``MLFLOW_TRACKING_URI`` names.
Tracking never stops a training: what the store refuses (a locked or damaged file, a full disk, a server that is down)
is told once, and the numbers from there on are appended to ``tracking.jsonl`` of the run folder.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.telemetry import set_telemetry_client
from monai.engines import Evaluator
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from torch import Tensor

from unicorn_monai.system.files import write_json
from unicorn_monai.system.records import read_run_id
from unicorn_monai.training.handlers import scalars

logger = logging.getLogger("unicorn_monai")

PARENT_TAG = "mlflow.parentRunId"
LOSS_INTERVAL = 50  # iterations between two logged losses
FLUSH_SECONDS = 10.0  # between two calls that log numbers: each costs tens of milliseconds
AT_ONCE = 1000  # numbers in one call, the most that MLflow takes


def keep_mlflow_quiet() -> None:
    """Let MLflow send nothing about a clinic's runs anywhere by itself, wait for no server, and tell of no database."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a server that is down is not waited for
    set_telemetry_client()  # of the environment as it is now: MONAI imports MLflow, which looks there then
    for chatty in ("mlflow", "alembic"):  # at every start
        logging.getLogger(chatty).setLevel(logging.WARNING)


def ended(error: BaseException) -> str:
    """How MLflow calls the end of a run by an error: KILLED by somebody, or FAILED."""
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


def numbers(result: Any, name: str = "") -> dict[str, float]:
    """The numbers in nested dictionaries, ``{"a.b": 1.0}``; lists, texts and None are left out."""
    if isinstance(result, Tensor) and result.numel() == 1:
        result = result.item()
    if isinstance(result, dict):
        parts = [numbers(value, f"{name}.{key}".removeprefix(".")) for key, value in result.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {name: float(result)} if isinstance(result, int | float) and not isinstance(result, bool) and name else {}


def _metrics(rows: list[tuple[int, int, dict[str, float]]]) -> list[Metric]:
    """Rows of (milliseconds, step, numbers) as MLflow takes them, which allows not every character in a name."""
    return [Metric(re.sub(r"[^\w./ -]", "_", k), v, t, step) for t, step, row in rows for k, v in row.items()]


def store_uri(path: Path) -> str:
    """The address of an SQLite file for MLflow; one that it would read as another, and write there, is refused."""
    uri = f"sqlite:///{path}"
    if make_url(uri).database != str(path):
        raise ValueError(
            f"MLflow's store cannot be '{path}': in an address '?' and '%41' mean something else. Rename it, or "
            'set "tracking" to false.'
        )
    return uri


def address(run_dir: Path) -> str:
    """Where the runs of a run folder are recorded: in it, unless the environment names a server."""
    return os.environ.get("MLFLOW_TRACKING_URI") or store_uri(run_dir.resolve() / "mlflow.db")


class Tracker:
    """The parent run of an experiment; as a context manager it ends the run when an error comes through.

    Args:
        run_dir: run folder; the store is ``mlflow.db`` in it, ``mlflow_run.json`` tells the parent run's id.
        name: of the parent run.
        enabled: False tracks nothing.
        parent: id of a parent run that another process has opened; None goes on with the run folder's, or opens one.
    """

    def __init__(self, run_dir: Path, name: str, enabled: bool = True, parent: str | None = None) -> None:
        self.run_dir, self.parent = run_dir, parent or ""
        self.client: MlflowClient | None = None
        self.lost = False  # the store has failed; what it misses goes to `local`
        self.local = run_dir / "tracking.jsonl"
        self.uri = address(run_dir) if enabled else ""
        if enabled:
            keep_mlflow_quiet()
            self._try(lambda: self._open(name))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.send(self._end_children)  # what other processes left open when they were told to stop
            self.send(lambda client: client.set_terminated(self.parent, ended(error)))
            self.note("results", {"status": ended(error)})

    def _open(self, name: str) -> None:
        if self.uri.startswith("sqlite:///"):  # MLflow tries for two minutes what cannot work
            with closing(sqlite3.connect(make_url(self.uri).database or "")) as store:
                store.execute("PRAGMA schema_version")
        client = self.client = MlflowClient(tracking_uri=self.uri)
        known, artifacts = client.get_experiment_by_name("unicorn_monai"), self.run_dir.resolve() / "mlartifacts"
        new = {"name": "unicorn_monai", "artifact_location": artifacts.as_uri()}
        self.experiment = known.experiment_id if known else client.create_experiment(**new)
        if self.parent:
            return
        record = self.run_dir / "mlflow_run.json"
        before = read_run_id(record) if record.is_file() else None
        condition = f"attributes.run_id = '{before}'"
        if before is not None and client.search_runs([self.experiment], condition, max_results=1):
            self.parent = before
            self._end_children(client)  # of a process that was killed
            client.update_run(before, "RUNNING")
        else:
            self.parent = client.create_run(self.experiment, run_name=name).info.run_id
            write_json(record, {"run_id": self.parent})

    def _end_children(self, client: MlflowClient) -> None:
        """End the stages that nobody is working on any more."""
        condition = f"tags.`{PARENT_TAG}` = '{self.parent}' and attributes.status = 'RUNNING'"
        for run in client.search_runs([self.experiment], condition):
            client.set_terminated(run.info.run_id, "KILLED")

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
            logger.warning(f"MLflow tracking stopped ({error}); the numbers from here on are in '{self.local}'.")
            self.client, self.lost = None, True

    def send(self, call: Callable[[MlflowClient], Any]) -> Any:
        """Tell the store, while there is one; what it answers."""
        client = self.client
        return None if client is None else self._try(lambda: call(client))

    def note(self, name: str, numbers: dict[str, Any]) -> None:
        """Append to the local log, where the store has failed."""
        if not self.lost:
            return
        try:
            with self.local.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"run": name, "time": round(time.time(), 1), **numbers}) + "\n")
        except OSError as error:
            logger.warning(f"'{self.local}' cannot be written either ({error}).")
            self.lost = False

    def stage(self, name: str) -> StageTracker:
        """Open the child run of a stage."""
        return StageTracker(self, name)

    def close(self, metrics: dict[str, float], artifacts: list[Path]) -> None:
        """Log the results and end the parent run."""
        found = _metrics([(int(1000 * time.time()), 0, metrics)])
        self.send(lambda client: client.log_batch(self.parent, metrics=found))
        for path in artifacts:
            self.send(lambda client, path=path: client.log_artifact(self.parent, str(path)))
        self.send(lambda client: client.set_terminated(self.parent))
        self.note("results", metrics)


class StageTracker:
    """The child run of one stage; an Ignite handler of its trainer and of the evaluator of the validation.

    Numbers are gathered and logged every ``FLUSH_SECONDS``, so a process that is killed loses the last of them.
    """

    def __init__(self, tracker: Tracker, name: str) -> None:
        self.tracker, self.name = tracker, name
        self._waiting: list[tuple[int, int, dict[str, float]]] = []
        self._flushed, self._configurations = time.monotonic(), 0
        self._iteration, self._sheet = 0, None
        own = {"run_name": name, "tags": {PARENT_TAG: tracker.parent, "mlflow.runName": name}}
        self.run = tracker.send(lambda client: client.create_run(tracker.experiment, **own).info.run_id) or ""

    def parameters(self, settings: dict[str, Any]) -> None:
        """Log the settings of a configuration; those of a further one in the same stage get a number."""
        self._configurations += 1
        prefix = f"{self._configurations}." if self._configurations > 1 else ""
        texts = {prefix + key.replace("::", "."): str(value)[:500] for key, value in settings.items()}
        self._send(lambda client: client.log_batch(self.run, params=[Param(k, v) for k, v in texts.items()]))
        self.tracker.note(self.name, {"parameters": texts})

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, behind what writes its sheets, or with an evaluator."""
        if isinstance(engine, Evaluator):
            engine.add_event_handler(Events.COMPLETED, self._log_validation)
        else:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._log_loss)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._log_sheet)

    def _log_loss(self, engine: Engine) -> None:
        self._iteration = engine.state.iteration
        if self._iteration % LOSS_INTERVAL == 0:
            self.log(scalars(engine), self._iteration)

    def _log_validation(self, engine: Engine) -> None:
        """A validation belongs to the iteration of the training after which it came."""
        self.log(numbers({"validation": engine.state.metrics}), self._iteration)

    def _log_sheet(self, engine: Engine) -> None:
        sheet = getattr(engine.state, "sample_sheet", None)
        if sheet is not None and sheet != self._sheet:
            self._sheet = sheet
            self._send(lambda client: client.log_artifact(self.run, str(sheet), "samples"))

    def log(self, metrics: dict[str, float], step: int = 0) -> None:
        """Log numbers, at the latest with those that come after ``FLUSH_SECONDS``."""
        self._waiting.append((int(1000 * time.time()), step, metrics))
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        rows, self._waiting, self._flushed = self._waiting, [], time.monotonic()
        metrics = _metrics(rows)
        for start in range(0, len(metrics), AT_ONCE):
            self._send(lambda client, at=start: client.log_batch(self.run, metrics=metrics[at : at + AT_ONCE]))
        for _, step, row in rows:
            self.tracker.note(self.name, {"step": step, **row})

    def _send(self, call: Callable[[MlflowClient], Any]) -> None:
        if self.run:
            self.tracker.send(call)

    def close(self, status: str, results: dict[str, float] | None = None) -> None:
        """End the run as FINISHED, FAILED or KILLED, with the numbers among the stage's results."""
        if results:
            self.log(results)
        self._flush()
        self._send(lambda client: client.set_terminated(self.run, status))
        self.tracker.note(self.name, {"status": status})
