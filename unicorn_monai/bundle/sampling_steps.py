"""Are the numbers of denoising steps of a run right for its sampler? Asked before anything is trained.

A run whose diffusion model is hardly trained makes noise with any sampler: it tries the machinery, and is told instead
of refused. Its sampler is marked ``coarse_sampling`` in the run's bundles, and results and report say what it is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai.bundle import ConfigParser

from unicorn_monai.bundle.installation import CHAIN, configured
from unicorn_monai.sampler_trial import sampling_error
from unicorn_monai.schedulers import Sampler, prepare_timesteps

HARDLY_TRAINED = 100  # iterations; the small preset has 1,900
FROZEN, JOINT = ("latent_diffusion", "train_diffusion.json"), ("joint", "train.json")  # trainings of diffusion models
SAMPLING = (  # configurations with a number of their own
    ("latent_diffusion", "inference.json"),
    FROZEN,
    ("uncertainty_controlnet", "train.json"),
    ("semantic_controlnet", "train.json"),
    JOINT,
    *((bundle, "inference.json") for bundle in (*CHAIN, "joint")),
)


def is_coarse(preset: str | None, overrides: Mapping[str, Any] | None = None, modes: Sequence[str] = ()) -> bool:
    """Whether the diffusion models of a run's modes are all trained so briefly that no sampler matters."""
    lengths = []
    for bundle, file in {JOINT if mode == "joint" else FROZEN for mode in modes} or {FROZEN}:
        training = configured(bundle, preset, (overrides or {}).get(bundle), file)
        lengths.append((training["max_epochs"], training["iterations_per_epoch"]))
    return all(isinstance(n, int) and isinstance(each, int) and n * each < HARDLY_TRAINED for n, each in lengths)


def check_steps(preset: str | None, overrides: Mapping[str, Any] | None = None, modes: Sequence[str] = ()) -> None:
    """Refuse numbers of denoising steps at which a run's sampler is wrong."""
    changes = overrides or {}
    sampler = ConfigParser(configured("latent_diffusion", preset, changes.get("latent_diffusion")))
    if is_coarse(preset, overrides, modes):
        sampler["coarse_sampling"] = True
    scheduler = sampler.get_parsed_content("scheduler")
    for bundle, file in SAMPLING:
        steps = configured(bundle, preset, changes.get(bundle), file)["num_inference_steps"]
        if not isinstance(steps, int):  # that of latent_diffusion
            continue
        try:
            prepare_timesteps(scheduler, steps)
        except ValueError as error:
            raise ValueError(f"num_inference_steps is {steps} in {bundle}/configs/{file}: {error}") from error


def describe(scheduler: Sampler, num_inference_steps: int) -> dict[str, Any]:
    """What ``results.json`` says of the sampler: its name, its steps, its errors, and whether they are tolerable."""
    error = sampling_error(scheduler, num_inference_steps)
    name = {"name": type(scheduler).__name__, "steps": num_inference_steps}
    return name | {key: round(value, 4) for key, value in error._asdict().items()} | {"right": error.tolerable}
