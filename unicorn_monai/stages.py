"""Running the stages of an experiment: each once, tracked, repeatable by hand, independent ones side by side.

A stage that finished leaves ``RUN/stages/<name>.json`` with its result, written last. Independent branches of stages
run in processes of their own; the parent then walks through the same branches, finds every stage finished and picks up
the results. So the order of the stages is written down once, and a run with one process does the same.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from unicorn_monai.bundle import run_bundle
from unicorn_monai.datasets import write_json
from unicorn_monai.durable import Occupied, sweep
from unicorn_monai.handlers import read_json
from unicorn_monai.tracking import StageTracker, Tracker

logger = logging.getLogger("unicorn_monai")

Branch = tuple[Any, ...]  # name of a method of the experiment, and its arguments
Chain = Sequence[Branch]  # a branch, then those that need nothing but it


class Stages:
    """What runs the stages of one run folder.

    Args:
        run_dir: run folder.
        device: where to train.
        seed: of every stage.
    """

    def __init__(self, run_dir: Path, device: torch.device, seed: int) -> None:
        self.run_dir, self.device, self.seed = run_dir, device, seed
        self.tracker = Tracker(run_dir, run_dir.name, enabled=False)
        self.commands: dict[str, str] = {}
        self._current, self._tracked = "", list[StageTracker]()

    def marker(self, name: str) -> Path:
        """What a finished stage leaves: its result, seconds, threads and commands."""
        return self.run_dir / "stages" / f"{name}.json"

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Run one stage unless it is finished; its result is kept."""
        marker = self.marker(name)
        if marker.exists():
            logger.info(f"{name}: finished before, skipped")
            kept = read_json(marker)
            self.commands |= kept["commands"]
            return kept["result"]
        logger.info(f"== {name}")
        started, before, unfinished = time.monotonic(), set(self.commands), marker.parent / "unfinished" / marker.name
        self._current, self._tracked = name, []
        try:
            result = work()
        except BaseException as error:
            self._close("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
            with suppress(OSError):  # a full disk, say, which is the error that is told
                unfinished.parent.mkdir(parents=True, exist_ok=True)
                write_json(unfinished, effort(started, unfinished))
            raise
        spent = effort(started, unfinished)
        self._close("FINISHED")
        commands = {k: v for k, v in self.commands.items() if k not in before}
        write_json(marker, {**spent, "result": result, "commands": commands})
        unfinished.unlink(missing_ok=True)
        logger.info(f"   {name}: {spent['seconds']} s")
        return result

    def described(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A stage that can fail without the run: the reason stands in its result, and a resumption tries again.

        Only what a ``ValueError`` explains, such as a feature network that does not fit the images.
        """
        try:
            return self.stage(name, work)
        except ValueError as error:
            logger.warning(f"{name}: not computed: {error}")
            return {"not_computed": str(error)}

    def core_seconds(self, stages: Sequence[str]) -> float:
        """Seconds x threads that finished stages took; where the threads were not noted, they count as one."""
        found = [read_json(self.marker(stage)) for stage in stages]
        return sum(one.get("core_seconds", one["seconds"]) for one in found)

    def _close(self, status: str) -> None:
        for tracked in self._tracked:
            tracked.close(status)

    def bundle(self, root: Path, config: str, kind: str = "train", **overrides: Any) -> None:
        """Run one configuration of a bundle in this process and note the equivalent shell command."""
        file = root / "configs" / config
        if kind == "train" or root.name == "synthesis":
            overrides.setdefault("seed", self.seed)
        if kind == "train":
            overrides["resume"] = True
        overrides["device"] = str(self.device)
        words = ["python", "-m", "monai.bundle", "run", "--config_file", str(file)]
        words += [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
        command = shlex.join(words)
        self.commands[f"{root.name}/{config} {self._current} {len(self.commands)}"] = command
        logger.info(f"   {command}")
        handlers = []
        if kind == "train":
            handlers = [self.tracker.stage(self._current, {"config": str(file), **overrides})]
            self._tracked += handlers
        run_bundle(file, kind, handlers, **overrides)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """One experiment in a run folder at a time."""
        with Occupied(self.run_dir / ".lock"):
            sweep(self.run_dir)
            for folder in ("stages", "stages/unfinished", "pictures", "evaluation"):
                sweep(self.run_dir / folder)
            yield


def effort(started: float, unfinished: Path) -> dict[str, float]:
    """What a stage took, with its attempts that ended before (an attempt that was killed outright leaves no record).

    Args:
        started: ``time.monotonic()`` at its start.
        unfinished: what the attempts before have left.

    Returns:
        "seconds", "threads" of PyTorch in this attempt, "core_seconds" (seconds x threads).
    """
    seconds, threads = time.monotonic() - started, torch.get_num_threads()
    before = read_json(unfinished) if unfinished.is_file() else {"seconds": 0.0, "core_seconds": 0.0}
    return {
        "seconds": round(before["seconds"] + seconds, 1),
        "threads": threads,
        "core_seconds": round(before["core_seconds"] + seconds * threads, 1),
    }


def side_by_side(work: Callable[..., None], chains: Sequence[Chain], jobs: int, *shared: Any) -> None:
    """Run ``work(*shared, before, branch, threads)`` for every branch, in processes of their own.

    The first branch of every chain waits for nothing, the others for that first one (``before``, a list) and not for
    each other. The first failure ends all.

    Args:
        work: a function at the top level of a module.
        chains: what to run.
        jobs: processes at a time; they share the processor's cores.
        shared: first arguments of ``work``.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "TQDM_DISABLE")}
    os.environ |= {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}  # bars of two processes overwrite each other
    try:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            chain_of: dict[Future, Chain] = {pool.submit(work, *shared, [], c[0], threads): c for c in chains}
            running = set(chain_of)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for failed in (future for future in done if future.exception()):  # before anything more is begun
                    pool.shutdown(wait=False, cancel_futures=True)
                    for process in multiprocessing.active_children():
                        process.terminate()
                    failed.result()
                for first, *others in (chain_of[future] for future in done & chain_of.keys()):
                    running |= {pool.submit(work, *shared, [first], branch, threads) for branch in others}
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
