"""MLflow tracking of an experiment: one parent run, a child for every stage.

The store is a SQLite file of the run folder, or the server that ``MLFLOW_TRACKING_URI`` names.
Tracking never stops a training: what the store refuses (a locked or damaged file, a full disk, a server that is down)
is told once, and the numbers from there on are appended to ``tracking.jsonl`` of the run folder.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing about a clinic's runs leaves the machine by itself
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a server that is down is not waited for

from ignite.engine import Engine, Events
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from unicorn_monai.handlers import scalars

logger = logging.getLogger("unicorn_monai")
for chatty in ("mlflow", "alembic"):  # they tell about their own database at every start
    logging.getLogger(chatty).setLevel(logging.WARNING)

PARENT_TAG = "mlflow.parentRunId"
LOSS_INTERVAL = 50  # iterations between two logged losses: each costs about 85 ms


class Tracker:
    """The parent run of an experiment.

    Args:
        run_dir: run folder; the store is ``mlflow.db`` in it.
        name: of the parent run.
        enabled: False tracks nothing.
        parent: id of a parent run that another process has opened; None opens one.
    """

    def __init__(self, run_dir: Path, name: str, enabled: bool = True, parent: str | None = None) -> None:
        self.run_dir, self.parent = run_dir, parent or ""
        self.client: MlflowClient | None = None
        self.lost = False  # the store has failed; what it misses goes to `local`
        self.local = run_dir / "tracking.jsonl"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir.resolve() / 'mlflow.db'}"
        if enabled:
            self._try(lambda: self._open(name))

    def _open(self, name: str) -> None:
        if self.uri.startswith("sqlite:///"):  # MLflow tries for two minutes what cannot work
            with closing(sqlite3.connect(self.uri.removeprefix("sqlite:///"))) as store:
                store.execute("PRAGMA schema_version")
        client = self.client = MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name("unicorn_monai")
        artifacts = (self.run_dir / "mlartifacts").resolve().as_uri()
        self.experiment = (
            experiment.experiment_id
            if experiment
            else client.create_experiment("unicorn_monai", artifact_location=artifacts)
        )
        self.parent = self.parent or client.create_run(self.experiment, run_name=name).info.run_id

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
            logger.warning(f"MLflow tracking stopped ({error}); the numbers from here on are in '{self.local}'.")
            self.client, self.lost = None, True

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

    def stage(self, name: str, parameters: dict[str, Any]) -> StageTracker:
        """Open the child run of a stage."""
        return StageTracker(self, name, parameters)

    def close(self, metrics: dict[str, float], artifacts: list[Path]) -> None:
        """Log the results and end the parent run."""
        if self.client is None:
            self.note("results", metrics)
            return
        client = self.client

        def finish() -> None:
            for key, value in metrics.items():
                client.log_metric(self.parent, key, value)
            for path in artifacts:
                client.log_artifact(self.parent, str(path))
            client.set_terminated(self.parent)

        self._try(finish)


class StageTracker:
    """The child run of one stage; an Ignite handler that logs losses and validation metrics."""

    def __init__(self, tracker: Tracker, name: str, parameters: dict[str, Any]) -> None:
        self.tracker, self.name, self.run = tracker, name, ""
        if tracker.client is not None:
            client = tracker.client

            def start() -> None:
                self.run = client.create_run(
                    tracker.experiment, run_name=name, tags={PARENT_TAG: tracker.parent, "mlflow.runName": name}
                ).info.run_id
                for key, value in parameters.items():
                    client.log_param(self.run, key.replace("::", "."), str(value)[:500])

            tracker._try(start)
        tracker.note(name, {"parameters": {key: str(value)[:500] for key, value in parameters.items()}})

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=LOSS_INTERVAL), self._log_loss)

    def _log_loss(self, engine: Engine) -> None:
        self.log(scalars(engine), engine.state.iteration)

    def log(self, metrics: dict[str, float], step: int = 0) -> None:
        """Log numbers."""
        for key, value in metrics.items():
            client = self.tracker.client
            if client is not None and self.run:
                self.tracker._try(lambda c=client, k=key, v=value: c.log_metric(self.run, k, v, step=step))
        self.tracker.note(self.name, {"step": step, **metrics})

    def close(self, status: str, artifacts: list[Path] | None = None) -> None:
        """End the run as FINISHED, FAILED or KILLED, with files to keep."""
        client = self.tracker.client
        if client is not None and self.run:
            for path in artifacts or []:
                self.tracker._try(lambda p=path: client.log_artifact(self.run, str(p), "samples"))
            self.tracker._try(lambda: client.set_terminated(self.run, status))
        self.tracker.note(self.name, {"status": status})
