"""What a bundle checks in seconds, before it reads an image: options, settings, labels, weights that belong together.

    "checks": [{"_target_": "unicorn_monai.preflight.check_settings", "max_epochs": "@max_epochs", ...}, ...],
    "initialize": ["@checks", ...]

MONAI takes a misspelt option (``--max_epoch 3``) for a new entry of the configuration and trains without it, and finds
a wrong type where it is first used, which may be hours later, when all images are encoded.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.bundle.scripts import run

from unicorn_monai.augmentation import AUGMENTATIONS
from unicorn_monai.bundle import BUNDLES, bundle_root, configured, find_entry, metadata_of
from unicorn_monai.datasets import SPLITS, PathLike, label_names, list_folders
from unicorn_monai.fusion import MODES
from unicorn_monai.own_root import files_of
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.records import NUMBER, Rule
from unicorn_monai.wiring import changed_wiring, is_reference, require_literal, wiring

logger = logging.getLogger("unicorn_monai")

PRECISIONS = ("float32", "bfloat16")
_TRACKING = ("output_dir", "tracking_uri", "experiment_name", "run_name", "save_execute_config")  # of `--tracking`


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_number = NUMBER[0]


def _several(value: Any, rule: Callable[[Any], bool], counts: Sequence[int] = (2,)) -> bool:
    return isinstance(value, list | tuple) and len(value) in counts and all(rule(v) for v in value)


POSITIVE: Rule = (lambda v: _whole(v) and v >= 1, "at least one, a whole number")
OPTIONAL: Rule = (lambda v: v is None or (_whole(v) and v >= 1), "at least one, a whole number, or null")
NATURAL: Rule = (lambda v: _whole(v) and v >= 0, "0 or more, a whole number")
RATE: Rule = (lambda v: _number(v) and v > 0, "a number above 0")
WEIGHT: Rule = (lambda v: _number(v) and v >= 0, "a number, 0 or more")
SHARE: Rule = (lambda v: _number(v) and 0 <= v <= 1, "a number, 0 to 1")
SWITCH: Rule = (lambda v: isinstance(v, bool), "true or false (True or False on the command line)")

RULES: dict[str, Rule] = {
    **dict.fromkeys(("max_epochs", "val_interval", "sample_interval", "batch_size", "cache_num"), POSITIVE),
    **dict.fromkeys(("num_inference_steps", "accumulation_steps", "samples"), POSITIVE),
    **dict.fromkeys(("iterations_per_epoch", "patience", "count"), OPTIONAL),
    **dict.fromkeys(("num_workers", "adversarial_start", "pool_size"), NATURAL),
    **dict.fromkeys(("learning_rate", "discriminator_learning_rate", "timestep_shift", "temperature"), RATE),
    **dict.fromkeys(
        (f"{term}_weight" for term in ("kl", "spectral", "speckle", "perceptual", "adversarial", "ce")), WEIGHT
    ),
    **dict.fromkeys(("nce_weight", "identity_weight", "cycle_weight", "uncertainty_weight"), WEIGHT),
    "save_minutes": WEIGHT,
    **dict.fromkeys(("resume", "augment", "compile", "cuda_graphs", "coarse_sampling"), SWITCH),
    **dict.fromkeys(("threshold", "decay_start"), SHARE),
    "max_seconds": (lambda v: v is None or (_number(v) and v > 0), "a number above 0, or null for no limit"),
    "seed": (lambda v: _whole(v) and 0 <= v < 2**32, "a whole number, 0 to 4294967295"),
    "ema_decay": (lambda v: _number(v) and 0 <= v < 1, "a number, 0 or more and below 1"),
    "patch_size": (lambda v: _several(v, POSITIVE[0]), "[rows, columns]"),
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
        if name not in RULES | CHOICES:
            raise ValueError(f"There is no rule for '{name}'; expected some of {sorted(RULES | CHOICES)}.")
        _check_value(name, value)
    if settings.get("mode") == "paper" and settings.get("uncertainty_weight", 0) > 1:
        weight = settings["uncertainty_weight"]
        raise ValueError(f"uncertainty_weight is {weight}; the mode 'paper' weighs by (1 - w, w), expected 0 to 1.")
    if device is not None:
        check_device(device)
        if settings.get("cuda_graphs") and torch.device(device).type != "cuda":
            raise ValueError(f"cuda_graphs is true, but device is '{device}'; expected a GPU. Set it to false.")


def require_rule(name: str, value: Any, rule: Rule) -> None:
    """Refuse a value that breaks its rule."""
    if not rule[0](value):
        raise ValueError(f"{name} is {value!r}; expected {rule[1]}.")


def _check_value(name: str, value: Any, where: str = "") -> None:
    if name in RULES:
        require_rule(name + where, value, RULES[name])
    for choice in value if name == "split" and isinstance(value, list | tuple) else [value]:
        if name in CHOICES and choice not in CHOICES[name]:
            raise ValueError(f"Unknown {name} '{choice}'{where}; expected one of {list(CHOICES[name])}.")


def check_device(device: torch.device | str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ValueError: naming it and those there are.
    """
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is {device!r}; expected cpu, cuda or cuda:0, cuda:1, ...") from error
    there = wanted.type in ("cpu", "cuda") or (wanted.type == "mps" and torch.backends.mps.is_available())
    if not there:  # PyTorch knows more kinds, of which some hold no numbers, than machines have
        raise ValueError(f"device is '{device}', which this machine does not have; expected cpu, cuda or cuda:0, ...")
    if wanted.type == "cuda":
        count = torch.cuda.device_count()
        if not count:
            raise ValueError(
                f"device is '{device}', but PyTorch sees no GPU here. Use cpu, or install PyTorch for CUDA."
            )
        if (wanted.index or 0) >= count:
            raise ValueError(f"device is '{device}', but PyTorch sees {count} GPU(s) here: cuda:0 to cuda:{count - 1}.")


def check_overrides(overrides: Any, presets: Callable[[str], Sequence[str]] = lambda bundle: ()) -> None:
    """Refuse settings of single bundles, {bundle: {"train.json": {"max_epochs": 10}}}, that would not be taken.

    They change data only: what a bundle runs, calls and refers to is its own.

    Args:
        overrides: the settings.
        presets: names of the presets that are merged into a bundle before them.

    Raises:
        ValueError: naming the bundle, configuration or setting, and what there is.
    """
    known = [name for name in BUNDLES if name != "rgb_2d"]  # an experiment on colours runs the other bundles, too
    form = "expected {bundle: {configuration: {setting: value}}}, e.g. " + '{"retinal_unet": {"train.json": {...}}}.'
    if not isinstance(overrides, dict):
        raise ValueError(f"overrides is {overrides!r}; {form}")
    for bundle, files in overrides.items():
        if bundle not in known:
            raise ValueError(f"overrides names the bundle '{bundle}'; expected some of {known}.")
        configs = sorted(path.name for path in Path(bundle_root(bundle), "configs").glob("*.json"))
        if not isinstance(files, dict):
            raise ValueError(f"overrides of '{bundle}' is {files!r}; {form}")
        for file, changes in files.items():
            if file not in configs:
                raise ValueError(
                    f"overrides of '{bundle}' names the configuration '{file}'; expected one of {configs}."
                )
            if not isinstance(changes, dict):
                raise ValueError(f"overrides of '{bundle}/{file}' is {changes!r}; {form}")
            _check_changes(configured(bundle, presets(bundle), file=file), changes, f"{bundle}/{file}")


def _check_changes(config: dict[str, Any], changes: dict[str, Any], where: str) -> None:
    """Refuse changes of a configuration that are none of data, and those that break a rule."""
    file = where.replace("/", "/configs/")
    before, places = copy.deepcopy(config), {key: find_entry(config, key, file) for key in changes}
    for key, value in changes.items():
        if not is_reference(value):
            require_literal(value, f"overrides of {where}: {key}")
            _check_value(key, value, f" (overrides of {where})")
        parent, leaf = places[key]
        if key not in RULES | CHOICES and isinstance(parent[leaf], list) and not isinstance(value, list):
            raise ValueError(f"{key} (overrides of {where}) is {value!r}; expected a list, as {parent[leaf]!r:.80}.")
        parent[leaf] = value
    for key in changed_wiring(before, config):
        setting = next((name for name in changes if f"{key}::".startswith(f"{name}::")), key)
        plain = setting in RULES | CHOICES  # whose rule lets nothing but numbers and known words through
        if not plain or not _is_data(config, changes.get(setting), {setting}):
            raise ValueError(
                f"overrides of {where} changes what '{key}' runs or refers to; expected other data: numbers, texts, or "
                "lists of them, where there are such. Write it into the configuration of the bundle, if it is yours."
            )


def _is_data(config: dict[str, Any], value: Any, asked: set[str]) -> bool:
    """Whether a value is data, or refers to data."""
    if not is_reference(value):
        return not wiring(value)
    key = value.removeprefix("@").replace("#", "::")
    if key in asked:
        return False
    try:
        parent, leaf = find_entry(config, key, "overrides")
    except ValueError:
        return False
    return _is_data(config, parent[leaf], asked | {key})


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
    latent_diffusion: PathLike,
    uncertainty_controlnet: PathLike | None = None,
    mode: str | None = None,
    prior: UncertaintyPrior | None = None,
) -> dict[str, Any]:
    """What is stored with a ControlNet's weights: which other weights they belong to, and which hint.

    Args:
        latent_diffusion: bundle of the U-Net.
        uncertainty_controlnet: bundle of the ControlNet it is trained on top of.
        mode: of the Semantic-ControlNet; in ``paper`` mode it is trained on its own.
        prior: of the Uncertainty-ControlNet; how it made a hint of an uncertainty.
    """
    unet = metadata_of(latent_diffusion)
    found = {"unet_sha256": unet["sha256"], "scale_factor": unet.get("scale_factor")}
    if mode is not None:
        found["mode"] = mode
    if uncertainty_controlnet is not None and mode != "paper":
        found["base_sha256"] = metadata_of(uncertainty_controlnet)["sha256"]
    if prior is not None:
        found["hint"] = _hint(prior)
    return found


def check_chain(
    latent_diffusion: PathLike,
    semantic_controlnet: PathLike | None = None,
    uncertainty_controlnet: PathLike | None = None,
    mode: str | None = None,
    scheduler: Any = None,
    scale_factor: float | None = None,
    prior: UncertaintyPrior | None = None,
) -> None:
    """Refuse weights that were not trained for each other, as far as they tell.

    Args:
        latent_diffusion: bundle with autoencoder and U-Net.
        semantic_controlnet: bundle, where it is used.
        uncertainty_controlnet: bundle, where it is used.
        mode: "paper" or "compositional".
        scheduler: its ``prediction_type`` must be the one of the U-Net's training.
        scale_factor: in use; must be the one of the U-Net's training.
        prior: in use; its hint must be the one of the Uncertainty-ControlNet's training, where that takes part. It does
            not in the training of a Semantic-ControlNet in ``paper`` mode.

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
        name = f"The ControlNet of '{uncertainty_controlnet}'"
        _expect(name, style, "unet_sha256", unet["sha256"])
        if prior is not None and (mode != "paper" or semantic_controlnet is not None):
            _expect_hint(name, style, prior)
    if semantic_controlnet is not None:
        name, semantic = f"The ControlNet of '{semantic_controlnet}'", metadata_of(semantic_controlnet)
        _expect(name, semantic, "unet_sha256", unet["sha256"])
        _expect(name, semantic, "mode", mode)
        if style is not None and mode != "paper":
            _expect(name, semantic, "base_sha256", style["sha256"])


def _trained(bundle_root: PathLike) -> bool:
    return (Path(bundle_root) / "models" / "model.pt").is_file()


def _expect(
    name: str, metadata: dict[str, Any], key: str, value: Any, remedy: str = "Use what it was trained with,"
) -> None:
    if value is not None and metadata.get(key, value) != value:
        raise ValueError(
            f"{name} was trained with {key} {_short(metadata[key])}, in use is {_short(value)}. {remedy} or train it "
            "again."
        )


def _hint(prior: UncertaintyPrior) -> dict[str, Any]:
    """What decides the hint of an uncertainty: the network that measured it, how, and the scaling."""
    return {
        "segmentation_sha256": prior.segmentation_sha256,
        "acquisition": prior.acquisition,
        "aggregation": prior.aggregation,
        "scaling": prior.scaling,
        "offset": prior.offset,
        "scale": prior.scale,
        "both_quantiles": list(prior.both_quantiles),
    }


def _expect_hint(name: str, metadata: dict[str, Any], prior: UncertaintyPrior) -> None:
    trained = metadata.get("hint")
    if trained is None:
        logger.warning(
            f"{name} was trained before weights told the scaling of their hint; nobody can tell whether that of the "
            f"prior, '{prior.scaling}', is the right one."
        )
        return
    for key, value in _hint(prior).items():
        if not _close(trained[key], value):
            _expect(name, trained, key, value, "Give the prior it was trained with (prior_path),")


def _close(one: Any, other: Any) -> bool:
    """The same, but for the last digits of what is measured: they differ between machines."""
    numbers = isinstance(one, float | list) and np.shape(one) == np.shape(other)
    return np.allclose(one, other, rtol=1e-3, atol=1e-6) if numbers else one == other


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)


def refuse_unknown_options(arguments: Sequence[str] | None = None) -> None:
    """Refuse options of ``python -m monai.bundle run`` that the configuration does not have, or that MONAI misreads.

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
    names = files_of(given.get("config_file", ""))
    parser = ConfigParser()
    parser.read_config(names)
    known = set(inspect.signature(run).parameters) | (set(_TRACKING) if "tracking" in given else set())
    for key in given:
        entry = key.removeprefix("+").removesuffix("::_disabled_")  # MONAI's own words
        if entry.replace("-", "_") not in known and not entry.startswith("_meta_"):
            find_entry(parser.get(), entry, names[0])
            _refuse_misread(parser, key, given[key])


def _refuse_misread(parser: ConfigParser, key: str, text: str) -> None:
    """Refuse a value in which MONAI replaces something, and a path that it takes for an expression or a reference."""
    if text.startswith(("$", "%")):
        as_it_is = os.path.lexists(text) or text[1:].isidentifier()
    else:
        as_it_is = not is_reference(text) or text.removeprefix("@") not in parser
    if as_it_is:
        require_literal(text, f"--{key}")
