"""Stages side by side in processes of their own: what waits for what, and what ends them all.

The first failure ends all, and so do SIGTERM (exit status 143) and Ctrl-C, which the parent passes on. That it is gone
(SIGKILL) its processes notice. Each ends as it would by itself: a training saves its state first.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import connection
from typing import Any

import torch

from unicorn_monai.experiment.stages import Stage
from unicorn_monai.system.errors import STOPPED, on_sigterm


def side_by_side(
    task: Callable[[str, int], None], stages: Sequence[Stage], jobs: int, here: Callable[[Stage], Any]
) -> None:
    """Call ``task(name, threads)`` for every stage in a process of its own, as soon as what it needs is there.

    Args:
        task: what a new process can import: a function at the top level of a module, or a ``partial`` of one.
        stages: in order; of those that could run the first is begun. What none of them makes is there.
        jobs: processes at a time; they share the processor's cores.
        here: called in this process with a stage that is not ``kept``.
    """
    if not any(stage.kept for stage in stages):
        for stage in stages:
            here(stage)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "TQDM_DISABLE")}
    os.environ |= {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}  # bars of two processes overwrite each other
    spawn = multiprocessing.get_context("spawn")
    try:
        with on_sigterm(partial(sys.exit, STOPPED)), ProcessPoolExecutor(jobs, spawn, _end_with_parent) as pool:
            try:
                _walk(lambda stage: pool.submit(_work, task, stage.name, threads), stages, jobs, here)
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


def _walk(submit: Callable[[Stage], Future], stages: Sequence[Stage], jobs: int, here: Callable[[Stage], Any]) -> None:
    """Begin what can run while there is room; the first failure is raised."""
    waiting, running = list(stages), dict[Future, Stage]()
    while waiting or running:
        missing = set[str]().union(*(stage.things for stage in [*waiting, *running.values()]))
        ready = [stage for stage in waiting if not missing & set(stage.needs)]
        if gate := next((stage for stage in ready if not stage.kept), None):
            here(gate)
            waiting.remove(gate)
            continue
        for stage in ready[: jobs - len(running)]:
            running[submit(stage)] = stage
            waiting.remove(stage)
        if not running:
            raise ValueError(f"{[stage.name for stage in waiting]} wait for each other; the order of stages is wrong.")
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            future.result()
            del running[future]


def _work(task: Callable[[str, int], None], name: str, threads: int) -> None:
    """One stage; a training that has saved its state, told to end, ends the process, which the pool would keep."""
    try:
        task(name, threads)
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
