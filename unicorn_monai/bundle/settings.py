"""Options and settings of a bundle: what each may be, checked before anything is built.

    "checks": [{"_target_": "unicorn_monai.bundle.check_settings", "max_epochs": "@max_epochs", ...}, ...],
    "initialize": ["@checks", ...]

MONAI takes a misspelt option (``--max_epoch 3``) for a new entry of the configuration and trains without it, and finds
a wrong type where it is first used, which may be hours later, when all images are encoded.
"""

from __future__ import annotations

import copy
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.bundle.scripts import run

from unicorn_monai.bundle.expressions import changed_wiring, is_reference, require_literal, wiring
from unicorn_monai.bundle.installation import BUNDLES, bundle_root, configured, find_entry
from unicorn_monai.bundle.root import files_of
from unicorn_monai.data.layout import SPLITS
from unicorn_monai.fusion import MODES
from unicorn_monai.images.augmentation import AUGMENTATIONS
from unicorn_monai.joint import FORMS
from unicorn_monai.system.records import NUMBER, Rule

PRECISIONS = ("float32", "bfloat16", "auto")
_number = NUMBER[0]
_TRACKING = ("output_dir", "tracking_uri", "experiment_name", "run_name", "save_execute_config")  # of `--tracking`


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _several(value: Any, rule: Callable[[Any], bool], counts: Sequence[int] = (2,)) -> bool:
    return isinstance(value, list | tuple) and len(value) in counts and all(rule(v) for v in value)


POSITIVE: Rule = (lambda v: _whole(v) and v >= 1, "at least one, a whole number")
OPTIONAL: Rule = (lambda v: v is None or POSITIVE[0](v), "at least one, a whole number, or null")
NATURAL: Rule = (lambda v: _whole(v) and v >= 0, "0 or more, a whole number")
RATE: Rule = (lambda v: _number(v) and v > 0, "a number above 0")
WEIGHT: Rule = (lambda v: _number(v) and v >= 0, "a number, 0 or more")
SHARE: Rule = (lambda v: _number(v) and 0 <= v <= 1, "a number, 0 to 1")
SWITCH: Rule = (lambda v: isinstance(v, bool), "true or false (True or False on the command line)")
RULES: dict[str, Rule] = {
    **dict.fromkeys(("max_epochs", "val_interval", "sample_interval", "batch_size", "cache_num"), POSITIVE),
    **dict.fromkeys(("num_inference_steps", "accumulation_steps", "samples"), POSITIVE),
    **dict.fromkeys(("iterations_per_epoch", "patience", "count"), OPTIONAL),
    **dict.fromkeys(("num_workers", "adversarial_start", "pool_size", "steps"), NATURAL),
    **dict.fromkeys(("learning_rate", "discriminator_learning_rate", "timestep_shift", "temperature"), RATE),
    "rare_temperature": RATE,
    **dict.fromkeys(("kl_weight", "spectral_weight", "speckle_weight", "perceptual_weight", "ce_weight"), WEIGHT),
    **dict.fromkeys(("adversarial_weight", "nce_weight", "identity_weight", "cycle_weight"), WEIGHT),
    **dict.fromkeys(("uncertainty_weight", "save_minutes", "semantic_weight", "segmentation_weight"), WEIGHT),
    **dict.fromkeys(("step_size", "radius"), WEIGHT),
    "prompt_dropout": (lambda v: v is None or SHARE[0](v), "a share in [0, 1], or null"),
    **dict.fromkeys(("resume", "augment", "compile", "cuda_graphs", "coarse_sampling", "publish_last"), SWITCH),
    **dict.fromkeys(("threshold", "decay_start", "warmup", "rising"), SHARE),
    "max_seconds": (lambda v: v is None or (_number(v) and v > 0), "a number above 0, or null for no limit"),
    "left_out": (
        lambda v: _several(v, lambda share: _number(share) and 0 <= share < 1, (2,)),
        "two shares, 0 to below 1",
    ),
    "hint_noise": (lambda v: _number(v) and v >= 0, "a number, 0 or more"),
    "seed": (lambda v: _whole(v) and 0 <= v < 2**32, "a whole number, 0 to 4294967295"),
    "ema_decay": (lambda v: _number(v) and 0 <= v < 1, "a number, 0 or more and below 1"),
    **dict.fromkeys(("loss_function", "schedule"), (callable, "a component that can be called, {'_target_': ...}")),
    "patch_size": (lambda v: _several(v, POSITIVE[0]), "[rows, columns]"),
    "guidance": (
        lambda v: _several(v, _number, (2, 3)),
        "two or three numbers, [uncertainty, label map] or [uncertainty, label map, text]",
    ),
}
CHOICES = {
    "form": tuple(FORMS),
    "precision": PRECISIONS,
    "mode": MODES,
    "augmentation": AUGMENTATIONS,
    "split": SPLITS,
}


def check_settings(device: torch.device | str | None = None, **settings: Any) -> None:
    """Refuse settings of a wrong type or value, and options that the configuration does not have."""
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


def _check_value(name: str, value: Any, where: str = "") -> None:
    if name in RULES and not RULES[name][0](value):
        raise ValueError(f"{name}{where} is {value!r}; expected {RULES[name][1]}.")
    for choice in value if name == "split" and isinstance(value, list | tuple) else [value]:
        if name in CHOICES and choice not in CHOICES[name]:
            raise ValueError(f"Unknown {name} '{choice}'{where}; expected one of {list(CHOICES[name])}.")


def check_device(device: torch.device | str) -> None:
    """Refuse a device that this machine does not have."""
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

    They change data only: what a bundle runs, calls and refers to is its own. ``presets`` names those of a bundle.
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


def refuse_unknown_options(arguments: Sequence[str] | None = None) -> None:
    """Refuse options of ``python -m monai.bundle run`` that the configuration does not have, or that MONAI misreads.

    Those of this process, if it was started so, or ``arguments``, as they stand behind ``run``.
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
