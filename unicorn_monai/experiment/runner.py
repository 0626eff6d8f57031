"""What runs the stages of one run folder: each once, tracked, repeatable by hand, independent ones side by side.

A stage that finished leaves ``RUN/stages/<name>.json`` with its result, written last. Where it ran a configuration of a
bundle, the command beside the result does the same again from the start, into ``RUN/repeated/<name>``.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from unicorn_monai.bundle.installation import drawing
from unicorn_monai.bundle.run import run_bundle
from unicorn_monai.experiment.processes import side_by_side
from unicorn_monai.experiment.stages import Stage, ordered, widest
from unicorn_monai.experiment.tracking import StageTracker, Tracker, ended, numbers
from unicorn_monai.experiment.versions import git_revision
from unicorn_monai.fusion import MODES
from unicorn_monai.system.files import Occupied, sweep, write_json
from unicorn_monai.system.records import read_spent, read_stage

logger = logging.getLogger("unicorn_monai")

BRANCH_LOCK = ".lock-branch-"
DRAWING = [drawing(mode) for mode in MODES]  # bundles that draw images
LAST_BREATH = 300.0  # seconds that a process has for the iteration it is in, and for saving its state


class Runner:
    """What runs the stages of one run folder, all with one seed, and gathers their results.

    ``elsewhere``: this is a process beside the one that was started.
    """

    def __init__(
        self, run_dir: Path, device: torch.device, seed: int, results: dict | None = None, elsewhere: bool = False
    ) -> None:
        self.run_dir, self.device, self.seed = run_dir, device, seed
        self.results: dict[str, Any] = {} if results is None else results
        self.tracker = Tracker(run_dir, run_dir.name, enabled=False)
        self.commands: dict[str, str] = {}
        self._by = f"done by process {os.getpid()} in " if elsewhere else ""
        self._tracked, self._noted = StageTracker(self.tracker, ""), 0

    def marker(self, name: str) -> Path:
        """What a finished stage leaves: its result, seconds, threads and commands."""
        return self.run_dir / "stages" / f"{name}.json"

    def walk(self, stages: Sequence[Stage], jobs: int = 1, task: Callable[[str, int], None] | None = None) -> None:
        """Run what is not finished of a plan, in order, ``jobs`` stages at a time.

        ``task`` runs the stage of a name with a number of threads in another process, which imports it by its name.
        """
        for alone, group in groupby(ordered(stages), lambda stage: stage.alone):
            part = list(group)
            room = 1 if alone else min(jobs, widest(part))
            if room > 1 and task is not None:
                self._side_by_side(part, room, task)
            else:
                for stage in part:
                    self.run(stage)

    def _side_by_side(self, part: list[Stage], jobs: int, task: Callable[[str, int], None]) -> None:
        """Run a part of the plan in processes of their own; gates are looked at here as soon as they can be."""
        left = [stage for stage in part if not self._finished(stage)]
        for stage in part:
            if stage not in left:
                logger.info(f"{stage.name}: finished before, skipped")

        def look(gate: Stage) -> None:
            self.recall(part)
            self.run(gate)

        side_by_side(task, left, jobs, look)
        self.recall(part)

    def _finished(self, stage: Stage) -> bool:
        return stage.kept and self.marker(stage.name).exists()

    def recall(self, stages: Sequence[Stage]) -> None:
        """Take up what finished stages have left, without a word, in the order of the stages."""
        for stage in filter(self._finished, stages):
            self._take_up(stage)

    def forget(self, stages: Sequence[Stage]) -> None:
        """Take measurements anew that need what is yet to be made, as the images of a baseline that was added."""
        there = set[str]()
        for stage in ordered(stages):
            complete = there.issuperset(stage.needs)
            if stage.kept and not stage.makes and not complete:
                self.marker(stage.name).unlink(missing_ok=True)
            if self._finished(stage) if stage.kept else complete:
                there |= stage.things

    def run(self, stage: Stage) -> Any:
        """Run one stage unless it is finished; its result."""
        if not stage.kept:
            return self._put(stage, stage.work())
        if self._finished(stage):
            logger.info(f"{stage.name}: finished before, skipped")
            return self._take_up(stage)
        try:
            return self._put(stage, self._do(stage))
        except ValueError as reason:
            if not stage.optional:
                raise
            logger.warning(f"{stage.name}: not computed: {reason}")
            return self._put(stage, {"not_computed": str(reason)})

    def _take_up(self, stage: Stage) -> Any:
        kept = read_stage(self.marker(stage.name))
        others = {key: command for key, command in self.commands.items() if key not in kept["commands"]}
        self.commands = others | kept["commands"]
        return self._put(stage, kept["result"])

    def _put(self, stage: Stage, result: Any) -> Any:
        """Write a result down where it belongs, behind those that are there."""
        table = self.results
        for key in stage.result[:-1]:
            table = table.setdefault(key, {})
        if stage.result:
            table.pop(stage.result[-1], None)
            table[stage.result[-1]] = result
        return result

    def _do(self, stage: Stage) -> Any:
        logger.info(f"== {stage.name}")
        marker, started, before = self.marker(stage.name), time.monotonic(), set(self.commands)
        unfinished = marker.parent / "unfinished" / marker.name
        self._tracked, self._noted = self.tracker.stage(stage.name), 0
        try:
            result = stage.work()
        except BaseException as error:
            self._tracked.close(ended(error))
            with suppress(OSError):  # a full disk, say, which is the error that is told
                unfinished.parent.mkdir(parents=True, exist_ok=True)
                write_json(unfinished, effort(started, unfinished))
            raise
        spent = effort(started, unfinished)
        commands = {k: v for k, v in self.commands.items() if k not in before}
        write_json(marker, {**spent, "result": result, "commands": commands, "git_revision": git_revision()})
        unfinished.unlink(missing_ok=True)
        self._tracked.close("FINISHED", numbers(result) | {"seconds": spent["seconds"]})
        logger.info(f"   {stage.name}: {self._by}{spent['seconds']} s")
        return result

    def core_seconds(self, stages: Sequence[str]) -> float:
        """Seconds x threads that finished stages took; where the threads were not noted, they count as one."""
        found = [read_spent(self.marker(stage)) for stage in stages]
        return sum(one.get("core_seconds", one["seconds"]) for one in found)

    def bundle(self, root: Path, config: str, kind: str = "train", **overrides: Any) -> None:
        """Run one configuration of a bundle in this process, going on with what is there, and note its command."""
        file = root / "configs" / config
        if kind == "train" or root.name in DRAWING:
            overrides.setdefault("seed", self.seed)
        self.note(file, **overrides)
        overrides["device"] = str(self.device)
        if kind == "train":
            overrides["resume"] = True
        self._tracked.parameters({"config": str(file), **overrides})
        run_bundle(file, kind, [self._tracked] if kind == "train" else [], **overrides)

    def note(self, file: Path, **overrides: Any) -> None:
        """Print and keep the shell command that does what a configuration does in this stage, again from the start.

        It writes into a folder of its own and leaves what the run has made as it is.
        """
        known, stage, self._noted = ConfigParser.load_config_file(file), self._tracked.name, self._noted + 1
        folder = self.run_dir / "repeated" / (stage + (f"_{self._noted}" if self._noted > 1 else ""))
        own = {key: str(folder) for key in ("ckpt_dir", "output_dir") if key in known}
        for key in {
            "prior_path",
            "uncertainties_path",
            "output",
        } & overrides.keys():  # files that a stage writes, never reads
            own[key] = str(folder / Path(overrides[key]).name)
        if "resume" in known:
            own["resume"] = "False"
        settings = {"config_file": file} | overrides | own | {"device": self.device}
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        command = shlex.join(["python", "-m", "monai.bundle", "run", *words])
        self.commands[f"{file.parents[1].name}/{file.name} {stage} {len(self.commands)}"] = command
        logger.info(f"   to repeat: {command}")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """One experiment in a run folder at a time, and no process of one that was killed."""
        with Occupied(self.run_dir / ".lock"):
            for left in self.run_dir.glob(f"{BRANCH_LOCK}*"):
                with Occupied(left, patience=LAST_BREATH):
                    pass
            sweep(self.run_dir, below=True)
            yield

    def branch(self) -> Occupied:
        """A process beside the one that was started; it outlives that one, if killed, until it has saved its state."""
        return Occupied(self.run_dir / f"{BRANCH_LOCK}{os.getpid()}")


def effort(started: float, unfinished: Path) -> dict[str, float]:
    """What a stage took since ``time.monotonic()`` at its start, and in attempts before, which left ``unfinished``.

    An attempt that was killed outright leaves no record. Core seconds are seconds x threads of PyTorch.
    """
    seconds, threads = time.monotonic() - started, torch.get_num_threads()
    before = read_spent(unfinished) if unfinished.is_file() else {"seconds": 0.0}
    return {
        "seconds": round(before["seconds"] + seconds, 1),
        "threads": threads,
        "core_seconds": round(before.get("core_seconds", before["seconds"]) + seconds * threads, 1),
    }
