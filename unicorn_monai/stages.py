"""Running the stages of an experiment: each once, tracked, repeatable by hand, independent ones side by side.

A stage that finished leaves ``RUN/stages/<name>.json`` with its result, written last. Where it ran a configuration of a
bundle, the command beside the result does the same again from the start, into ``RUN/repeated/<name>``.

Independent branches of stages run in processes of their own; the parent then walks through the same branches, finds
every stage finished and picks up the results. So the order of the stages is written down once, and a run with one
process does the same.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from unicorn_monai.bundle import run_bundle
from unicorn_monai.datasets import write_json
from unicorn_monai.durable import Occupied, sweep
from unicorn_monai.handlers import read_json
from unicorn_monai.tracking import StageTracker, Tracker, ended, numbers

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
        self._current, self._tracked, self._noted = "", StageTracker(self.tracker, ""), 0

    def marker(self, name: str) -> Path:
        """What a finished stage leaves: its result, seconds and commands."""
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
        started, before = time.monotonic(), set(self.commands)
        self._current, self._tracked, self._noted = name, self.tracker.stage(name), 0
        try:
            result = work()
        except BaseException as error:
            self._tracked.close(ended(error))
            raise
        seconds = round(time.monotonic() - started, 1)
        commands = {k: v for k, v in self.commands.items() if k not in before}
        write_json(marker, {"seconds": seconds, "result": result, "commands": commands})
        self._tracked.close("FINISHED", numbers(result) | {"seconds": seconds})
        logger.info(f"   {name}: {seconds} s")
        return result

    def bundle(self, root: Path, config: str, kind: str = "train", **overrides: Any) -> None:
        """Run one configuration of a bundle in this process, going on with what is there, and note its command."""
        file = root / "configs" / config
        if kind == "train" or root.name == "synthesis":
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
        known, self._noted = ConfigParser.load_config_file(file), self._noted + 1
        folder = self.run_dir / "repeated" / (self._current + (f"_{self._noted}" if self._noted > 1 else ""))
        own = {key: str(folder) for key in ("ckpt_dir", "output_dir") if key in known}
        if "prior_path" in overrides:  # as a setting of a stage it is written, never read
            own["prior_path"] = str(folder / Path(overrides["prior_path"]).name)
        if "resume" in known:
            own["resume"] = "False"
        words = ["python", "-m", "monai.bundle", "run", "--config_file", str(file)]
        settings = overrides | own | {"device": str(self.device)}
        words += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        command = shlex.join(words)
        self.commands[f"{file.parents[1].name}/{file.name} {self._current} {len(self.commands)}"] = command
        logger.info(f"   to repeat: {command}")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """One experiment in a run folder at a time."""
        with Occupied(self.run_dir / ".lock"):
            sweep(self.run_dir)
            for folder in ("stages", "pictures", "evaluation"):
                sweep(self.run_dir / folder)
            yield


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
