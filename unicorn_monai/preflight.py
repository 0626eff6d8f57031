"""What a bundle checks in seconds, before it reads an image: options, settings, labels, weights that belong together.

    "checks": [{"_target_": "unicorn_monai.preflight.check_settings", "max_epochs": "@max_epochs", ...}, ...],
    "initialize": ["@checks", ...]

MONAI takes a misspelt option (``--max_epoch 3``) for a new entry of the configuration and trains without it, and finds
a wrong type where it is first used, which may be hours later, when all images are encoded.
"""

from __future__ import annotations

import ast
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.bundle.scripts import run

from unicorn_monai.augmentation import AUGMENTATIONS
from unicorn_monai.bundle import find_entry, metadata_of
from unicorn_monai.datasets import SPLITS, PathLike, label_names, list_folders
from unicorn_monai.fusion import MODES

PRECISIONS = ("float32", "bfloat16")
_TRACKING = ("output_dir", "tracking_uri", "experiment_name", "run_name", "save_execute_config")  # of `--tracking`
Rule = tuple[Callable[[Any], bool], str]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return (_whole(value) or isinstance(value, float)) and math.isfinite(value)


def _several(value: Any, rule: Callable[[Any], bool], counts: Sequence[int] = (2,)) -> bool:
    return isinstance(value, list | tuple) and len(value) in counts and all(rule(v) for v in value)


_POSITIVE: Rule = (lambda v: _whole(v) and v >= 1, "at least one, a whole number")
_OPTIONAL: Rule = (lambda v: v is None or (_whole(v) and v >= 1), "at least one, a whole number, or null")
_NATURAL: Rule = (lambda v: _whole(v) and v >= 0, "0 or more, a whole number")
_RATE: Rule = (lambda v: _number(v) and v > 0, "a number above 0")
_WEIGHT: Rule = (lambda v: _number(v) and v >= 0, "a number, 0 or more")
_SWITCH: Rule = (lambda v: isinstance(v, bool), "true or false (True or False on the command line)")

RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("max_epochs", "val_interval", "sample_interval", "batch_size", "num_inference_steps", "cache_num"), _POSITIVE
    ),
    **dict.fromkeys(("iterations_per_epoch", "patience", "count"), _OPTIONAL),
    **dict.fromkeys(("num_workers", "adversarial_start", "pool_size"), _NATURAL),
    **dict.fromkeys(("learning_rate", "discriminator_learning_rate", "timestep_shift", "temperature"), _RATE),
    **dict.fromkeys(("kl_weight", "spectral_weight", "speckle_weight", "adversarial_weight", "ce_weight"), _WEIGHT),
    **dict.fromkeys(("nce_weight", "identity_weight", "cycle_weight", "uncertainty_weight"), _WEIGHT),
    **dict.fromkeys(("resume", "augment"), _SWITCH),
    "max_seconds": (lambda v: v is None or (_number(v) and v > 0), "a number above 0, or null for no limit"),
    "seed": (lambda v: _whole(v) and 0 <= v < 2**32, "a whole number, 0 to 4294967295"),
    "ema_decay": (lambda v: _number(v) and 0 <= v < 1, "a number, 0 or more and below 1"),
    "patch_size": (lambda v: _several(v, _POSITIVE[0]), "[rows, columns]"),
    "guidance": (
        lambda v: _several(v, _number, (2, 3)),
        "two or three numbers, [uncertainty, label map] or [uncertainty, label map, text]",
    ),
}
CHOICES = {"precision": PRECISIONS, "mode": MODES, "augmentation": AUGMENTATIONS, "split": SPLITS}


def check_settings(device: torch.device | str | None = None, **settings: Any) -> None:
    """Refuse settings of a wrong type or value, and options that the configuration does not have.

    Args:
        device: where to run.
        **settings: some of ``RULES`` and ``CHOICES``.

    Raises:
        ValueError: naming the setting, its value and what was expected.
    """
    refuse_unknown_options()
    for name, value in settings.items():
        if name in CHOICES:
            for choice in value if name == "split" and isinstance(value, list | tuple) else [value]:
                if choice not in CHOICES[name]:
                    raise ValueError(f"Unknown {name} '{choice}'; expected one of {list(CHOICES[name])}.")
        elif name not in RULES:
            raise ValueError(f"There is no rule for '{name}'; expected some of {sorted(RULES | CHOICES)}.")
        elif not RULES[name][0](value):
            raise ValueError(f"{name} is {value!r}; expected {RULES[name][1]}.")
    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is '{device}', but PyTorch sees no GPU here. Use cpu, or install PyTorch for CUDA.")


def check_labels(dataset_dir: PathLike | Sequence[Any], num_labels: int) -> None:
    """Refuse a data set with more or fewer labels than the network.

    Raises:
        ValueError: naming both.
    """
    for folder in list_folders(dataset_dir):
        names = label_names(folder)
        if len(names) != num_labels:
            raise ValueError(
                f"'{folder}' has {len(names)} labels ({', '.join(names)}), the configuration num_labels {num_labels}. "
                "Set num_labels in retinal_unet's inference.json and train again, or use another data set."
            )


def ready(*parts: Any, **more: Any) -> None:
    """Does nothing: its arguments, such as networks with weights, are built and checked before those of others."""


def trained_on(
    latent_diffusion: PathLike, uncertainty_controlnet: PathLike | None = None, mode: str | None = None
) -> dict[str, Any]:
    """What is stored with a ControlNet's weights: which other weights they belong to.

    Args:
        latent_diffusion: bundle of the U-Net.
        uncertainty_controlnet: bundle of the ControlNet it is trained on top of.
        mode: of the Semantic-ControlNet; in ``paper`` mode it is trained on its own.
    """
    unet = metadata_of(latent_diffusion)
    found = {"unet_sha256": unet["sha256"], "scale_factor": unet.get("scale_factor")}
    if mode is not None:
        found["mode"] = mode
    if uncertainty_controlnet is not None and mode != "paper":
        found["base_sha256"] = metadata_of(uncertainty_controlnet)["sha256"]
    return found


def check_chain(
    latent_diffusion: PathLike,
    semantic_controlnet: PathLike | None = None,
    uncertainty_controlnet: PathLike | None = None,
    mode: str | None = None,
    scheduler: Any = None,
    scale_factor: float | None = None,
) -> None:
    """Refuse weights that were not trained for each other, as far as they tell.

    Args:
        latent_diffusion: bundle with autoencoder and U-Net.
        semantic_controlnet: bundle, where it is used.
        uncertainty_controlnet: bundle, where it is used.
        mode: "paper" or "compositional".
        scheduler: its ``prediction_type`` must be the one of the U-Net's training.
        scale_factor: in use; must be the one of the U-Net's training.

    Raises:
        ValueError: naming the weights and what they were trained for.
    """
    unet = metadata_of(latent_diffusion)
    diffusion = f"The diffusion model of '{latent_diffusion}'"
    _expect(diffusion, unet, "autoencoder_sha256", metadata_of(latent_diffusion, "autoencoder.pt")["sha256"])
    if scheduler is not None:
        _expect(diffusion, unet, "prediction_type", str(scheduler.prediction_type))
    if scale_factor is not None and not math.isclose(unet.get("scale_factor", scale_factor), scale_factor):
        _expect(diffusion, unet, "scale_factor", scale_factor)
    style = None
    if uncertainty_controlnet is not None and (mode != "paper" or _trained(uncertainty_controlnet)):
        style = metadata_of(uncertainty_controlnet)
    if style is not None:
        _expect(f"The ControlNet of '{uncertainty_controlnet}'", style, "unet_sha256", unet["sha256"])
    if semantic_controlnet is not None:
        name, semantic = f"The ControlNet of '{semantic_controlnet}'", metadata_of(semantic_controlnet)
        _expect(name, semantic, "unet_sha256", unet["sha256"])
        _expect(name, semantic, "mode", mode)
        if style is not None and mode != "paper":
            _expect(name, semantic, "base_sha256", style["sha256"])


def _trained(bundle_root: PathLike) -> bool:
    return (Path(bundle_root) / "models" / "model.pt").is_file()


def _expect(name: str, metadata: dict[str, Any], key: str, value: Any) -> None:
    if value is not None and metadata.get(key, value) != value:
        raise ValueError(
            f"{name} was trained with {key} {_short(metadata[key])}, in use is {_short(value)}. "
            "Use what it was trained with, or train it again."
        )


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)


def refuse_unknown_options(arguments: Sequence[str] | None = None) -> None:
    """Refuse options of ``python -m monai.bundle run`` that the configuration does not have.

    Args:
        arguments: behind ``run``; by default this process's, if it was started so.

    Raises:
        ValueError: naming the option.
    """
    if arguments is None:
        started_as = getattr(sys.modules["__main__"].__spec__, "name", "")
        if started_as != "monai.bundle.__main__" or sys.argv[1:2] != ["run"]:
            return
        arguments = sys.argv[2:]
    given: dict[str, str] = {}
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word.startswith("--"):
            key, _, value = word[2:].partition("=")
            given[key.replace("#", "::")] = value or following
    if "args_file" in given:
        given = {k: str(v) for k, v in ConfigParser.load_config_file(given["args_file"]).items()} | given
    files = given.get("config_file", "")
    names: list[str] = list(ast.literal_eval(files)) if files.startswith(("[", "(")) else [files]
    parser = ConfigParser()
    parser.read_config(names)
    known = set(inspect.signature(run).parameters) | (set(_TRACKING) if "tracking" in given else set())
    for key in given:
        entry = key.removeprefix("+").removesuffix("::_disabled_")  # MONAI's own words
        if entry.replace("-", "_") not in known and not entry.startswith("_meta_"):
            find_entry(parser.get(), entry, names[0])
