"""MLflow tracking of an experiment: one parent run, a child for every stage, in a SQLite file of the run folder.

Tracking never stops a training: what the store refuses is reported once, and the stage goes on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing about a clinic's runs leaves the machine by itself

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
        self.uri = f"sqlite:///{run_dir.resolve() / 'mlflow.db'}"
        if enabled:
            self._try(lambda: self._open(name))

    def _open(self, name: str) -> None:
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
        except (MlflowException, SQLAlchemyError, OSError) as error:
            logger.warning(f"MLflow tracking stopped ({error}); the experiment goes on without it.")
            self.client = None

    def stage(self, name: str, parameters: dict[str, Any]) -> StageTracker:
        """Open the child run of a stage."""
        return StageTracker(self, name, parameters)

    def close(self, metrics: dict[str, float], artifacts: list[Path]) -> None:
        """Log the results and end the parent run."""
        if self.client is None:
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
        self.tracker, self.run = tracker, ""
        if tracker.client is not None:
            client = tracker.client

            def start() -> None:
                self.run = client.create_run(
                    tracker.experiment, run_name=name, tags={PARENT_TAG: tracker.parent, "mlflow.runName": name}
                ).info.run_id
                for key, value in parameters.items():
                    client.log_param(self.run, key.replace("::", "."), str(value)[:500])

            tracker._try(start)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=LOSS_INTERVAL), self._log_loss)

    def _log_loss(self, engine: Engine) -> None:
        self.log(scalars(engine), engine.state.iteration)

    def log(self, metrics: dict[str, float], step: int = 0) -> None:
        """Log numbers."""
        client = self.tracker.client
        if client is not None and self.run:
            for key, value in metrics.items():
                self.tracker._try(lambda k=key, v=value: client.log_metric(self.run, k, v, step=step))

    def close(self, status: str, artifacts: list[Path] | None = None) -> None:
        """End the run as FINISHED, FAILED or KILLED, with files to keep."""
        client = self.tracker.client
        if client is not None and self.run:
            for path in artifacts or []:
                self.tracker._try(lambda p=path: client.log_artifact(self.run, str(p), "samples"))
            self.tracker._try(lambda: client.set_terminated(self.run, status))
