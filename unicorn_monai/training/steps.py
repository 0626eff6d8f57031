"""Parts of a training step: gradients, their finiteness, precision, learning rate, order of the data, the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Loss
from monai.engines import IterationEvents
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from unicorn_monai.system.distributed import without_lone
from unicorn_monai.system.errors import NotFinite, of_batch
from unicorn_monai.training.state import steps_now


class ClipGradients:
    """Ignite handler: clip the norm of a network's gradients before every step of the optimizer.

    A gradient that is not finite ends the training before it gets into the weights.
    """

    def __init__(self, network: nn.Module, max_norm: float = 1.0) -> None:
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI ``SupervisedTrainer``."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip what the coming step will use."""
        if not steps_now(engine):
            return
        scaler: Any = getattr(engine, "scaler", None)
        if scaler is not None:  # its gradients are thousands of times too large until it steps
            scaler.unscale_(engine.optimizer)  # type: ignore[attr-defined]
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        if scaler is None:  # it leaves out the step of a gradient that is not finite
            require_finite_gradient(norm, engine)


def require_finite_gradient(norm: Tensor, engine: Engine) -> None:
    """End the training, by the name of its batch, where the norm of the gradients is NaN or infinite."""
    if not torch.isfinite(norm):
        where = f"iteration {engine.state.iteration}{of_batch(engine)}"
        raise NotFinite(f"The gradient holds NaN or infinite values at {where}. Lower the learning rate.")


def random_order(dataset: Sized, batch_size: int, iterations: int | None = None) -> RandomSampler:
    """Sampler of a shuffled epoch: every item once, or ``iterations`` batches whatever the size of the data set.

    With a fixed number, trainings on data sets of different sizes take the same number of optimizer steps, and no batch
    is smaller than the others. Without, a last batch of one image is left out (:func:`distributed.without_lone`).
    """
    draws = without_lone(len(dataset), batch_size) if iterations is None else iterations * batch_size
    return RandomSampler(dataset, num_samples=draws)


class WarmupCosine(torch.optim.lr_scheduler.LambdaLR):
    """Learning rate: linear warm-up, then half a cosine to a hundredth of the peak; stepped at every iteration.

    The optimizer's is the peak; ``warmup`` is a share of all iterations, of which an epoch has as many as the data
    loader.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, max_epochs: int, data_loader: Any, warmup: float = 0.05
    ) -> None:
        total = max(1, max_epochs * len(data_loader))
        ramp = max(1, round(warmup * total))

        def factor(iteration: int) -> float:
            if iteration < ramp:
                return (iteration + 1) / ramp
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (iteration - ramp) / max(1, total - ramp))))

        super().__init__(optimizer, factor)


class WarmupHold(torch.optim.lr_scheduler.LambdaLR):
    """Learning rate: linear warm-up, the peak, then a straight fall to a fiftieth of it; stepped at every iteration.

    For networks whose moving average is taken at the end: it gains as long as the rate is high, and settles in the fall
    (Hägele et al., NeurIPS 2024). The optimizer's rate is the peak; ``warmup`` and ``hold`` are shares of all
    iterations, of which an epoch has as many as the data loader.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_epochs: int,
        data_loader: Any,
        warmup: float = 0.05,
        hold: float = 0.7,
    ) -> None:
        if not 0 <= warmup <= hold <= 1:
            raise ValueError(f"warmup is {warmup}, hold {hold}; expected shares, 0 <= warmup <= hold <= 1.")
        total = max(1, max_epochs * len(data_loader))
        ramp, held = max(1, round(warmup * total)), round(hold * total)

        def factor(iteration: int) -> float:
            fall = (total - iteration) / max(1, total - held)
            return min((iteration + 1) / ramp, 1.0, max(0.02, fall))

        super().__init__(optimizer, factor)


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error in float32, whatever precision the network ran in."""
    return torch.nn.functional.mse_loss(prediction.float(), target.float())


def loss_metric(loss_function: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Ignite metric: mean of a loss over the validation set; the evaluator must not decollate."""
    return Loss(loss_function, output_transform=lambda output: (output["pred"], output["label"]))


def computes_in_bfloat16(device: torch.device | str) -> bool:
    """Whether a device has instructions for it; where it has none, products are slower in it than in float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return torch.device(device).type == "cpu" and any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast_settings(device: torch.device | str, precision: str) -> dict[str, Any]:
    """Arguments of ``torch.autocast`` on a device, switched on by "bfloat16", and by "auto" where the device has it."""
    if precision not in ("float32", "bfloat16", "auto"):
        raise ValueError(f"Unknown precision '{precision}'; expected 'float32', 'bfloat16' or 'auto'.")
    enabled = precision == "bfloat16" or (precision == "auto" and computes_in_bfloat16(device))
    return {"device_type": torch.device(device).type, "dtype": torch.bfloat16, "enabled": enabled}
