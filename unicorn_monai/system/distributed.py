"""One training in several processes: what the ``multi_gpu_*.json`` of the bundles are made of, started by ``torchrun``.

The network in training is wrapped for the trainer only: whatever else holds it (optimizer, moving average, weights on
disk) keeps the bare one, so a training can go on with another number of processes. In a single process every function
here is without effect.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized
from datetime import timedelta
from weakref import WeakSet

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.utils import manual_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.distributed import DistributedSampler

rank = idist.get_rank  # number of this process; 0 where there is only one
main_first = idist.one_rank_first  # runs a block in the first process before the others, which find the files it wrote
_PARALLEL: WeakSet[DistributedDataParallel] = WeakSet()


def start(hours: float = 6.0) -> None:
    """Join the processes that ``torchrun`` started: NCCL on GPUs, else gloo; any may wait ``hours`` for the others."""
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"This configuration is for several processes, and {', '.join(missing)} are not in the environment; start "
            "it with `torchrun --nproc_per_node=N`."
        )
    gpus = local_device().type == "cuda"
    idist.initialize("nccl" if gpus else "gloo", timeout=timedelta(hours=hours))


def stop() -> None:
    """Leave the other processes, all at once: one that goes while another still receives breaks the connection.

    Networks of :func:`parallel` train no more afterwards. They hold the group, whose threads would outlive Python and
    end the process by a signal where they are late to free a tensor (pytorch/pytorch issue 190489).
    """
    if is_active():
        idist.barrier()
        for network in _PARALLEL:
            for holder in ("reducer", "logger", "process_group"):
                setattr(network, holder, None)
        idist.finalize()


def is_active() -> bool:
    """Whether this process has joined others, or could have: ``torchrun`` may start a single one."""
    return idist.backend() is not None


def share() -> tuple[int, int]:
    """(number of this process, processes) of work that needs no communication; (0, 1) for a process by itself.

    ``torchrun`` sets ``RANK`` and ``WORLD_SIZE``; so may a job array, since nobody has to find the others.
    """
    try:
        rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        rank = processes = -1
    if not 0 <= rank < processes:
        found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
        raise ValueError(f"The environment says {found}; expected numbers, 0 <= RANK < WORLD_SIZE.")
    return rank, processes


def by_torchrun() -> bool:
    """Whether ``torchrun`` started this process, which then has others beside it and ends with them."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def among_others() -> str:
    """Which of several processes the environment says this is, for messages."""
    own, processes = share()
    return f"process {own + 1} of {processes} (RANK={own}, WORLD_SIZE={processes} in the environment)"


def require_single(what: str) -> None:
    """Refuse that ``what`` is one of several processes, as variables that were left in the environment have it."""
    if share()[1] > 1:
        raise ValueError(
            f"This would be {among_others()}; {what} is one process, and would make only a share of the images. "
            "`unset RANK WORLD_SIZE`, or start it without torchrun."
        )


def is_main() -> bool:
    """Whether this process writes files and shows progress."""
    return rank() == 0


def local_device() -> torch.device:
    """This process's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        raise ValueError(f"Process {index} of this machine has no GPU: there are {count}. Lower --nproc_per_node.")
    return torch.device("cuda", index)


def parallel(network: nn.Module, device: torch.device | str) -> DistributedDataParallel:
    """A network whose gradients are averaged over the processes; its weights start as those of the first process."""
    wrapped = DistributedDataParallel(network, device_ids=[device] if torch.device(device).type == "cuda" else None)
    _PARALLEL.add(wrapped)
    return wrapped


def bare(network: nn.Module) -> nn.Module:
    """The network inside :func:`parallel`, or the network itself."""
    return network.module if isinstance(network, DistributedDataParallel) else network


class SharedOrder(DistributedSampler):
    """Sampler of a shuffled epoch of which every process has its share; the trainer tells it the epoch.

    ``iterations``: batches of ``batch_size`` images that each process draws, whatever the size of the data set; None:
    every image once, but for a last batch of one. ``processes``, ``number`` of this one: None as they were started.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        iterations: int | None = None,
        processes: int | None = None,
        number: int | None = None,
    ) -> None:
        super().__init__(dataset, processes, number, shuffle=True)  # type: ignore[arg-type]  # its length is asked for
        whole = self.num_samples
        draws = without_lone(whole, batch_size) if iterations is None else iterations * batch_size
        self.draws = None if iterations is None and draws == whole else draws
        if self.draws is not None:
            self.num_samples, self.total_size = self.draws, self.draws * self.num_replicas

    def __iter__(self) -> Iterator[int]:
        """Positions in the data set; one order after the other where it has fewer images than an epoch."""
        if self.draws is None:  # every image once
            return super().__iter__()
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        size = len(self.dataset)  # type: ignore[arg-type]
        orders = [torch.randperm(size, generator=generator) for _ in range(-(-self.total_size // size))]
        return iter(torch.cat(orders)[: self.total_size][self.rank :: self.num_replicas].tolist())


def without_lone(images: int, batch_size: int) -> int:
    """How many of ``images`` an epoch draws where a last batch of one image is left out.

    Batch normalisation may have a single value to average over in it; in the next epoch another image is left out.
    """
    return images - 1 if images > batch_size > 1 and images % batch_size == 1 else images


class RankSeeds:
    """Ignite handler: other random numbers in every process and epoch, the same ones after an interruption.

    With one seed for all, every process would draw the same noise and timesteps for its images.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed the generators of PyTorch, NumPy and Python."""
        manual_seed(int(np.random.SeedSequence([self.seed, engine.state.epoch, rank()]).generate_state(1)[0]))


def from_main(value: float) -> float:
    """The first process's number, in every process."""
    number = torch.tensor(value, dtype=torch.float64)  # a bare one would travel with 32 bits
    return torch.as_tensor(idist.broadcast(number)).item()


def average_gradients(network: nn.Module) -> None:
    """Average the gradients over the processes, for trainings that cannot wrap their networks by :func:`parallel`.

    Adversarial trainings call a network several times before one backward pass, partly, or not at all.
    """
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    if not is_active() or not gradients:
        return
    flat = torch.as_tensor(idist.all_reduce(torch.cat([gradient.flatten() for gradient in gradients])))
    flat /= idist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def same_weights(network: nn.Module) -> None:
    """Give every process the first process's weights."""
    for value in network.state_dict().values():
        value.copy_(idist.broadcast(value))
