"""Bundles use each other's networks by reference: a network is defined once, in its bundle's ``inference.json``.

``from_bundle(bundle_root, id, weights)`` builds what another bundle defines; ``install`` copies bundles into a run
folder with the settings of a preset merged in, so that a finished run holds complete bundles with their weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import get_track_meta, set_track_meta
from monai.networks.nets import ControlNet, DiffusionModelUNet
from torch import nn

from unicorn_monai.checkpoints import load_weights, read_metadata
from unicorn_monai.datasets import PathLike
from unicorn_monai.distributed import local_device
from unicorn_monai.durable import atomic
from unicorn_monai.fusion import MODES
from unicorn_monai.networks import copy_encoder, freeze
from unicorn_monai.own_root import ENTRY, literal_root, root_above, with_root
from unicorn_monai.wiring import require_literal

BUNDLES = (
    "retinal_unet",
    "latent_diffusion",
    "semantic_controlnet",
    "uncertainty_controlnet",
    "synthesis",
    "style_transfer",
    "rgb_2d",
)
_STAYS = {"models", "__pycache__", "presets"}  # is not copied with a bundle


def bundle_root(name: str, part: str | None = None) -> str:
    """Folder of a bundle that comes with this package (installed, or in a checkout), or of a part of it.

    A bundle of several networks has a part for each: ``configs/PART.json`` is the part's ``inference.json``, and
    ``PART/models`` holds its weights. So a part can stand wherever a bundle is expected.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "bundles" / name, here.parent / "bundles" / name):
        if folder.is_dir():
            return str(folder if part is None else folder / part)
    raise ValueError(f"No bundle '{name}' comes with unicorn_monai; expected one of {list(BUNDLES)}.")


def sibling(bundle_root: PathLike, part: str) -> str:
    """Another part of the same bundle (for configurations); the folder of this part need not exist yet."""
    return str(Path(bundle_root).parent / part)


def load_config(bundle_root: PathLike, name: str = "inference.json") -> dict[str, Any]:
    """A configuration of a bundle, or of a part of one, whose ``bundle_root`` is the folder it was read from.

    With a ``base_bundle``, its entries on top of that bundle's: of the configuration of the same name there, or of its
    ``base_config``.

    Raises:
        ValueError: no such file, or a folder whose name MONAI would change.
    """
    config, whole = _read(bundle_root, name), Path(bundle_root, "configs", name).is_file()
    return with_root(config, bundle_root if whole else Path(bundle_root).parent)


def _read(bundle_root: PathLike, name: str = "inference.json") -> dict[str, Any]:
    """A configuration as it stands, with its base."""
    root, path = Path(bundle_root), Path(bundle_root) / "configs" / name
    part = root.parent / "configs" / f"{root.name}.json"
    if name == "inference.json" and not path.is_file() and part.is_file():
        root, path = root.parent, part
    if not path.is_file():
        raise ValueError(
            f"'{bundle_root}' is not a bundle: no configs/{name} in it. Check the path; a bundle that others refer to "
            "lies beside them, or its path is given."
        )
    config = ConfigParser.load_config_file(path)
    base, file = config.pop("base_bundle", None), config.pop("base_config", name)
    if base is None:
        return config
    parser = ConfigParser(_read(root.parent / base, file))
    parser.update(config)
    return parser.get()


def definition(bundle_root: PathLike, id: str = "network_def", config_file: str = "inference.json") -> Any:
    """A configuration entry of another bundle as it stands there, not built."""
    config = _read(bundle_root, config_file)
    if id not in config:
        raise ValueError(f"configs/{config_file} of '{bundle_root}' has no entry '{id}', only {sorted(config)}.")
    return config[id]


def from_bundle(
    bundle_root: PathLike,
    id: str = "network_def",
    weights: str | None = None,
    device: torch.device | str | None = None,
    frozen: bool = True,
    settings: dict[str, Any] | None = None,
) -> Any:
    """Build what another bundle's ``inference.json`` defines.

    Args:
        bundle_root: the bundle's folder.
        id: entry of its configuration, e.g. "network_def" or "scheduler".
        weights: file under the bundle's ``models`` folder to load, e.g. "model.pt"; not read where the networks that
            the bundle defines come with their weights (see :func:`metadata_of`).
        device: where to put a network.
        frozen: evaluation mode and no gradients, for a network with weights.
        settings: entries of the configuration to replace, e.g. ``{"num_labels": 19}``.
    """
    require_literal(settings or {}, "settings")
    parser = ConfigParser(_read(bundle_root) | {ENTRY: literal_root(bundle_root)} | (settings or {}))
    definition(bundle_root, id)
    thing = parser.get_parsed_content(id)
    if weights is not None:
        if not _comes_with_weights(bundle_root, weights):
            load_weights(thing, Path(bundle_root) / "models" / weights)
        if frozen:
            freeze(thing)
    return thing if device is None else thing.to(device)


def arguments(bundle_root: PathLike, id: str = "network_def") -> dict[str, Any]:
    """The constructor arguments of what a bundle defines, references resolved: a dictionary without ``_target_``."""
    parser = ConfigParser(_read(bundle_root) | {ENTRY: literal_root(bundle_root)})
    return {
        key: parser.get_parsed_content(f"{id}::{key}") for key in definition(bundle_root, id) if not key.startswith("_")
    }


def base_controlnet(
    mode: str,
    bundle_root: PathLike,
    device: torch.device | str | None = None,
    settings: dict[str, Any] | None = None,
) -> nn.Module | None:
    """The frozen ControlNet another is trained on top of: none in ``paper`` mode, else the one of ``bundle_root``."""
    if mode not in MODES:
        raise ValueError(f"Unknown mode '{mode}'; expected one of {list(MODES)}.")
    return None if mode == "paper" else from_bundle(bundle_root, "network_def", "model.pt", device, settings=settings)


def start_controlnet(controlnet: ControlNet, unet: DiffusionModelUNet, initial_weights: PathLike | None) -> ControlNet:
    """Where the training of a ControlNet starts: at the U-Net's encoder, or at the weights of a training before."""
    copy_encoder(controlnet, unet)
    if initial_weights is not None:
        load_weights(controlnet, initial_weights)
    return controlnet


def weights_sha256(**paths: PathLike) -> dict[str, str]:
    """Sha256 of each of several weights files ``BUNDLE/models/FILE``, by name."""
    return {name: metadata_of(Path(path).parent.parent, Path(path).name)["sha256"] for name, path in paths.items()}


def with_weights(network: nn.Module, path: PathLike, device: torch.device | str | None = None) -> nn.Module:
    """Load weights into a network, freeze it and put it on a device."""
    load_weights(network, path)
    return freeze(network).to(device)


def metadata_of(bundle_root: PathLike, weights: str = "model.pt") -> dict[str, Any]:
    """What is known about a bundle's weights: what is stored with ``models/WEIGHTS``.

    The networks of some bundles come with weights of another origin, e.g. a folder of Stable Diffusion. Such a bundle
    has an entry ``weights_metadata``, which gives the same for each file that is not there.
    """
    if _comes_with_weights(bundle_root, weights):
        return from_bundle(bundle_root, "weights_metadata")[weights]
    return read_metadata(Path(bundle_root) / "models" / weights)


def _comes_with_weights(bundle_root: PathLike, weights: str) -> bool:
    if (Path(bundle_root) / "models" / weights).is_file():
        return False
    try:
        return "weights_metadata" in load_config(bundle_root)
    except ValueError:  # no bundle, only weights; reading them tells what is missing
        return False


def weights_metadata(bundle_root: PathLike, weights: str, key: str) -> Any:
    """One entry of what is known about a bundle's weights, e.g. "scale_factor" or "sha256"."""
    path, metadata = Path(bundle_root) / "models" / weights, metadata_of(bundle_root, weights)
    if key not in metadata:
        raise ValueError(f"The weights '{path}' carry no '{key}', only {sorted(metadata)}. Train this stage again.")
    return metadata[key]


def default_device() -> torch.device:
    """The first GPU where there is one (of several processes, each has its own), else the CPU."""
    return local_device()


def install(
    name: str,
    output: PathLike,
    preset: str | Sequence[str] | None = None,
    overrides: dict[str, dict] | None = None,
) -> Path:
    """Copy a bundle and merge a preset's settings into its configurations.

    Args:
        name: the bundle.
        output: the copy is ``output/name``; what is there and differs is replaced, weights are kept.
        preset: ``presets/<preset>.json`` of the bundle: {"train.json": {"max_epochs": 40, ...}, ...}; several are
            merged one after the other.
        overrides: more settings of the same form, which win.
    """
    source, target = Path(bundle_root(name)), Path(output) / name
    settings = _merged(source, preset, overrides)
    for path in (source / "configs").glob("*.json"):
        if "base_bundle" in ConfigParser.load_config_file(path):  # the copy is complete
            settings.setdefault(path.name, {})
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    content = {file: (source / file).read_bytes() for file in files if not _STAYS & set(file.parts)}
    for file, changes in settings.items():
        config = _read(source, file)
        for key, value in changes.items():
            _assign(config, key, value, target / "configs" / file)
        content[Path("configs", file)] = f"{json.dumps(config, indent=2)}\n".encode()
    for file, wanted in content.items():
        path = target / file
        if not path.is_file() or path.read_bytes() != wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as temporary:
                temporary.write_bytes(wanted)
    return target


def configured(
    name: str,
    preset: str | Sequence[str] | None = None,
    overrides: dict[str, dict] | None = None,
    file: str = "inference.json",
) -> dict[str, Any]:
    """The configuration that :func:`install` would write, as it is before anything is built."""
    source = Path(bundle_root(name))
    config = _read(source, file)
    for key, value in _merged(source, preset, overrides).get(file, {}).items():
        _assign(config, key, value, source / "configs" / file)
    return config


def _merged(
    source: Path, preset: str | Sequence[str] | None, overrides: dict[str, dict] | None
) -> dict[str, dict[str, Any]]:
    names = [] if preset is None else [preset] if isinstance(preset, str) else preset
    settings: dict[str, dict[str, Any]] = {}
    for table in (*(_preset(source, name) for name in names), overrides or {}):
        for file, changes in table.items():
            settings[file] = settings.get(file, {}) | changes
    return settings


def _preset(source: Path, preset: str) -> dict[str, dict[str, Any]]:
    """Settings of a preset by file; a configuration on top of another bundle's takes over that one's."""
    found = [source / "presets" / f"{preset}.json"]
    settings: dict[str, dict[str, Any]] = {}
    for path in sorted((source / "configs").glob("*.json")):
        config = ConfigParser.load_config_file(path)
        if "base_bundle" in config:
            found.append(Path(bundle_root(config["base_bundle"])) / "presets" / f"{preset}.json")
            table = json.loads(found[-1].read_text()) if found[-1].is_file() else {}
            settings[path.name] = dict(table.get(config.get("base_config", path.name), {}))
    if not any(path.is_file() for path in found):
        raise ValueError(f"Bundle '{source.name}' has no preset '{preset}'; expected a file '{found[0]}'.")
    own = json.loads(found[0].read_text()) if found[0].is_file() else {}
    return settings | {file: settings.get(file, {}) | changes for file, changes in own.items()}


def _assign(config: dict[str, Any], key: str, value: Any, path: Path) -> None:
    """Set ``a::b::c``; the entry must exist, so a misspelt key cannot pass."""
    parent, leaf = find_entry(config, key, path)
    parent[leaf] = value


def find_entry(config: dict[str, Any], key: str, path: PathLike) -> tuple[Any, Any]:
    """The dictionary or list that holds the entry ``a::b::c``, and its key or index there.

    Raises:
        ValueError: there is none.
    """
    parent: Any = None
    node: Any = config
    leaf: Any = None
    for part in key.split("::"):
        parent, leaf = node, int(part) if isinstance(node, list) and part.isdecimal() else part
        try:
            node = parent[leaf]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"'{path}' has no entry '{key}' to set. Check the spelling.") from None
    return parent, leaf


def run_bundle(
    config_file: PathLike, workflow_type: str = "train", handlers: Sequence[Any] = (), **overrides: Any
) -> ConfigWorkflow:
    """Run a bundle configuration in this process, as ``python -m monai.bundle run`` would.

    Args:
        config_file: the configuration.
        workflow_type: "train" or "infer".
        handlers: Ignite handlers to attach to the trainer, and to the evaluator of its validation, e.g. for tracking.
        **overrides: settings, ``id=value``; texts and lists of them are data, never expressions or references.

    Raises:
        ValueError: an override that the configuration does not have, or that MONAI would not take as it is.
    """
    config_file = Path(config_file).absolute()
    plain = {key: value for key, value in overrides.items() if not isinstance(value, dict)}
    require_literal({"config_file": str(config_file)} | plain, config_file.name)
    config = ConfigParser.load_config_file(config_file)
    for key in overrides:
        if key.split("::")[0] not in config:
            raise ValueError(f"'{config_file}' has no entry '{key}', only {sorted(config)}. Check the spelling.")
        find_entry(config, key, config_file)
    if isinstance(config.get(ENTRY), dict):  # it finds itself; so do parts that are built outside the workflow
        overrides.setdefault(ENTRY, with_root(config, root_above(config_file))[ENTRY])
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns that the next line is as it is
    workflow = ConfigWorkflow(
        config_file=str(config_file),
        meta_file=str(config_file.with_name("metadata.json")),
        logging_file=False,  # type: ignore[arg-type]  # the caller's logging stays as it is
        workflow_type=workflow_type,
        **overrides,
    )
    tracked = get_track_meta()
    try:
        workflow.initialize()
        engines = ["train::trainer", *(["validate::evaluator"] if "evaluator" in config.get("validate", {}) else [])]
        for handler in handlers:
            for engine in engines:
                handler.attach(workflow.parser.get_parsed_content(engine))
        workflow.run()
        workflow.finalize()
    finally:
        set_track_meta(
            tracked
        )  # trainings switch it off: without metadata MONAI's transforms take a quarter of the time
    return workflow
