"""Running the stages of an experiment: each once, tracked, repeatable by hand, independent ones side by side.

A stage that finished leaves ``RUN/stages/<name>.json`` with its result, written last. Where it ran a configuration of a
bundle, the command beside the result does the same again from the start, into ``RUN/repeated/<name>``.

Independent branches of stages run in processes of their own; the parent then walks through the same branches, finds
every stage finished and picks up the results. So the order of the stages is written down once, and a run with one
process does the same. However the parent ends, its processes end too, as they would by themselves: a training saves its
state first. What ends it by SIGTERM or Ctrl-C it passes on; that it is gone (SIGKILL) they notice.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from unicorn_monai.bundle.run import run_bundle
from unicorn_monai.experiment.tracking import StageTracker, Tracker, ended, numbers
from unicorn_monai.system.errors import STOPPED, on_sigterm
from unicorn_monai.system.files import Occupied, sweep, write_json
from unicorn_monai.system.records import read_spent, read_stage

logger = logging.getLogger("unicorn_monai")

BRANCH_LOCK = ".lock-branch-"
LAST_BREATH = 300.0  # seconds that a branch has for the iteration it is in, and for saving its state
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
        self.finished_before = {path.stem for path in (run_dir / "stages").glob("*.json")}
        self.finished_here: set[str] = set()
        self._tracked, self._noted = StageTracker(self.tracker, ""), 0

    def marker(self, name: str) -> Path:
        """What a finished stage leaves: its result, seconds, threads and commands."""
        return self.run_dir / "stages" / f"{name}.json"

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Run one stage unless it is finished; its result is kept."""
        marker = self.marker(name)
        if marker.exists():
            if name in self.finished_before:
                logger.info(f"{name}: finished before, skipped")
            elif name not in self.finished_here:
                logger.info(f"{name}: finished by another process of this run")
            kept = read_stage(marker)
            self.commands |= kept["commands"]
            return kept["result"]
        logger.info(f"== {name}")
        started, before, unfinished = time.monotonic(), set(self.commands), marker.parent / "unfinished" / marker.name
        self._tracked, self._noted = self.tracker.stage(name), 0
        try:
            result = work()
        except BaseException as error:
            self._tracked.close(ended(error))
            with suppress(OSError):  # a full disk, say, which is the error that is told
                unfinished.parent.mkdir(parents=True, exist_ok=True)
                write_json(unfinished, effort(started, unfinished))
            raise
        spent = effort(started, unfinished)
        commands = {k: v for k, v in self.commands.items() if k not in before}
        write_json(marker, {**spent, "result": result, "commands": commands})
        unfinished.unlink(missing_ok=True)
        self.finished_here.add(name)
        self._tracked.close("FINISHED", numbers(result) | {"seconds": spent["seconds"]})
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
        found = [read_spent(self.marker(stage)) for stage in stages]
        return sum(one.get("core_seconds", one["seconds"]) for one in found)

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
        known, stage, self._noted = ConfigParser.load_config_file(file), self._tracked.name, self._noted + 1
        folder = self.run_dir / "repeated" / (stage + (f"_{self._noted}" if self._noted > 1 else ""))
        own = {key: str(folder) for key in ("ckpt_dir", "output_dir") if key in known}
        if "prior_path" in overrides:  # as a setting of a stage it is written, never read
            own["prior_path"] = str(folder / Path(overrides["prior_path"]).name)
        if "resume" in known:
            own["resume"] = "False"
        words = ["python", "-m", "monai.bundle", "run", "--config_file", str(file)]
        settings = overrides | own | {"device": str(self.device)}
        words += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        command = shlex.join(words)
        self.commands[f"{file.parents[1].name}/{file.name} {stage} {len(self.commands)}"] = command
        logger.info(f"   to repeat: {command}")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """One experiment in a run folder at a time, and no branch of one that was killed."""
        with Occupied(self.run_dir / ".lock"):
            for left in self.run_dir.glob(f"{BRANCH_LOCK}*"):
                with Occupied(left, patience=LAST_BREATH):
                    pass
            sweep(self.run_dir, below=True)
            yield

    def branch(self) -> Occupied:
        """A branch in a process of its own, which outlives a parent that is killed until it has saved its state."""
        return Occupied(self.run_dir / f"{BRANCH_LOCK}{os.getpid()}")


def effort(started: float, unfinished: Path) -> dict[str, float]:
    """What a stage took, with its attempts that ended before (an attempt that was killed outright leaves no record).

    Args:
        started: ``time.monotonic()`` at its start.
        unfinished: what the attempts before have left.

    Returns:
        "seconds", "threads" of PyTorch in this attempt, "core_seconds" (seconds x threads).
    """
    seconds, threads = time.monotonic() - started, torch.get_num_threads()
    before = read_spent(unfinished) if unfinished.is_file() else {"seconds": 0.0}
    return {
        "seconds": round(before["seconds"] + seconds, 1),
        "threads": threads,
        "core_seconds": round(before.get("core_seconds", before["seconds"]) + seconds * threads, 1),
    }


def side_by_side(work: Callable[..., None], chains: Sequence[Chain], jobs: int, *shared: Any) -> None:
    """Run ``work(*shared, before, branch, threads)`` for every branch, in processes of their own.

    The first branch of every chain waits for nothing, the others for that first one (``before``, a list) and not for
    each other. The first failure ends all, and so do SIGTERM (exit status 143) and Ctrl-C.

    Args:
        work: a function at the top level of a module.
        chains: what to run.
        jobs: processes at a time; they share the processor's cores.
        shared: first arguments of ``work``.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "TQDM_DISABLE")}
    os.environ |= {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}  # bars of two processes overwrite each other
    spawn = multiprocessing.get_context("spawn")
    try:
        with on_sigterm(_end), ProcessPoolExecutor(jobs, spawn, _end_with_parent) as pool:
            try:
                _walk(lambda *own: pool.submit(_work, work, *shared, *own, threads), chains)
            except BaseException as error:  # a failure, SIGTERM, Ctrl-C; before anything more is begun
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()
                if isinstance(error, BrokenProcessPool):
                    raise RuntimeError(
                        "A process of the run was killed, perhaps for want of memory. Go on with --resume; "
                        '"jobs": 1 in the settings needs less.'
                    ) from error
                raise
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def widest(chains: Sequence[Chain]) -> int:
    """How many branches can run at a time: the first of a chain runs alone, the others beside each other."""
    return sum(max(1, len(chain) - 1) for chain in chains)


def _walk(submit: Callable[[list[Branch], Branch], Future], chains: Sequence[Chain]) -> None:
    """Begin the first branch of every chain, and the others when it is finished; the first failure is raised."""
    chain_of: dict[Future, Chain] = {submit([], chain[0]): chain for chain in chains}
    running = set(chain_of)
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for failed in (future for future in done if future.exception()):
            failed.result()
        for first, *others in (chain_of[future] for future in done & chain_of.keys()):
            running |= {submit([first], branch) for branch in others}


def _end() -> None:
    raise SystemExit(STOPPED)


def _work(work: Callable[..., None], *arguments: Any) -> None:
    """One branch; a training that has saved its state, told to end, ends the process, which the pool would keep."""
    try:
        work(*arguments)
    except SystemExit as told:
        logging.shutdown()
        sys.stdout.flush()
        os._exit(told.code if isinstance(told.code, int) else 1)


def _end_with_parent() -> None:
    """Set up a process of the pool: it ends by SIGTERM when its parent is gone; Ctrl-C reaches it by the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # It was spawned, since PyTorch's threads and GPUs do not survive a fork; processes that load data, which use
    # neither, would inherit that and import everything anew, one after the other, in every epoch.
    multiprocessing.set_start_method(None, force=True)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("A process of the pool has no parent; start it by `side_by_side`.")

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
