"""Which sampler at how many steps? Errors where the right answer is known, one Gaussian and two mixtures: seconds.

    python -m benchmarks.samplers

The larger of the errors over the three, in standard deviations: of the spread, and the distance of samples to the right
quantiles (``unicorn_monai/sampler_trial.py``). All samplers call the network once a step.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common import table
from unicorn_monai.bundle import arguments, bundle_root
from unicorn_monai.sampler_trial import sampling_error
from unicorn_monai.schedulers import DDIM, DPMSolverPlusPlus, UniPC

SAMPLERS = (DDIM, DPMSolverPlusPlus, UniPC)


def measure(steps: Sequence[int]) -> str:
    """The table: spread and distance of each sampler, a row for each number of steps."""
    schedule = arguments(bundle_root("latent_diffusion"), "scheduler")
    rows = []
    for n in steps:
        errors = [sampling_error(sampler(**schedule), n) for sampler in SAMPLERS]
        rows.append([str(n), *(f"{error.spread:+.1%}, {error.distance:.1%}" for error in errors)])
    return table(["steps", *(sampler.__name__ for sampler in SAMPLERS)], rows)


if __name__ == "__main__":
    print(measure((5, 7, 8, 10, 15, 20, 25, 35, 50)))
