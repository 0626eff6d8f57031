"""The bundles that come with this package: where they lie, their configurations, copies with presets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from unicorn_monai.bundle.root import with_root
from unicorn_monai.system.files import PathLike, atomic

CHAIN = ("semantic_controlnet", "uncertainty_controlnet", "synthesis")  # one after the other, on a frozen U-Net
GENERATOR = ("retinal_unet", "latent_diffusion", *CHAIN, "joint")
BUNDLES = (*GENERATOR, "style_transfer", "rgb_2d")
_STAYS = {"models", "__pycache__", "presets"}  # is not copied with a bundle


def bundle_root(name: str, part: str | None = None) -> str:
    """Folder of a bundle that comes with this package (installed, or in a checkout), or of a part of it.

    A bundle of several networks has a part for each: ``configs/PART.json`` is the part's ``inference.json``, and
    ``PART/models`` holds its weights. So a part can stand wherever a bundle is expected.
    """
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "bundles" / name, here.parent / "bundles" / name):
        if folder.is_dir():
            return str(folder if part is None else folder / part)
    raise ValueError(f"No bundle '{name}' comes with unicorn_monai; expected one of {list(BUNDLES)}.")


def drawing(mode: str) -> str:
    """The bundle that draws images in a mode."""
    return controlling(mode)[-1]


def controlling(mode: str) -> tuple[str, ...]:
    """The bundles that a mode has besides segmentation network and autoencoder; the last one draws."""
    return ("joint",) if mode == "joint" else CHAIN


def sibling(bundle_root: PathLike, part: str) -> str:
    """Another part of the same bundle (for configurations); the folder of this part need not exist yet."""
    return str(Path(bundle_root).parent / part)


def load_config(bundle_root: PathLike, name: str = "inference.json") -> dict[str, Any]:
    """A configuration of a bundle, or of a part of one, whose ``bundle_root`` is the folder it was read from.

    With a ``base_bundle``, its entries on top of that bundle's: of the configuration of the same name there, or of its
    ``base_config``. Refused is a folder whose name MONAI would change.
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


def install(
    name: str,
    output: PathLike,
    preset: str | Sequence[str] | None = None,
    overrides: dict[str, dict] | None = None,
) -> Path:
    """Copy a bundle to ``output/name``; what is there and differs is replaced, weights are kept.

    Its configurations take over the settings of ``presets/<preset>.json``, {"train.json": {"max_epochs": 40, ...},
    ...}, of several presets one after the other, and then ``overrides`` of the same form; those on top of another one
    of the bundle have what is set there.
    """
    source, target = Path(bundle_root(name)), Path(output) / name
    settings = _merged(source, preset, overrides)
    for path in (source / "configs").glob("*.json"):
        if "base_bundle" in ConfigParser.load_config_file(path):  # the copy is complete
            settings.setdefault(path.name, {})
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    content = {file: (source / file).read_bytes() for file in files if not _STAYS & set(file.parts)}
    for file in settings:
        config = _changed(source, file, settings, target / "configs" / file)
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
    return _changed(source, file, _merged(source, preset, overrides), source / "configs" / file)


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
        if config.get("base_bundle", source.name) != source.name:
            found.append(Path(bundle_root(config["base_bundle"])) / "presets" / f"{preset}.json")
            table = json.loads(found[-1].read_text()) if found[-1].is_file() else {}
            settings[path.name] = dict(table.get(config.get("base_config", path.name), {}))
    if not any(path.is_file() for path in found):
        raise ValueError(f"Bundle '{source.name}' has no preset '{preset}'; expected a file '{found[0]}'.")
    own = json.loads(found[0].read_text()) if found[0].is_file() else {}
    return settings | {file: settings.get(file, {}) | changes for file, changes in own.items()}


def _changed(source: Path, file: str, settings: dict[str, dict[str, Any]], path: Path) -> dict[str, Any]:
    """A configuration with the settings of its file, whose entries ``a::b::c`` must exist: a misspelt key cannot pass.

    What a configuration on top of another one of the same bundle has from there, has the settings of that one's file.
    """
    place = source / "configs" / file
    own = ConfigParser.load_config_file(place) if place.is_file() else {}
    if own.pop("base_bundle", None) == source.name:
        base = own.pop("base_config")
        parser = ConfigParser(_changed(source, base, settings, path.with_name(base)))
        parser.update(own)
        config = parser.get()
    else:
        config = _read(source, file)
    for key, value in settings.get(file, {}).items():
        parent, leaf = find_entry(config, key, path)
        parent[leaf] = value
    return config


def find_entry(config: dict[str, Any], key: str, path: PathLike) -> tuple[Any, Any]:
    """The dictionary or list that holds the entry ``a::b::c``, which must exist, and its key or index there."""
    node: Any = config
    parent = leaf = None
    for part in key.split("::"):
        parent, leaf = node, int(part) if isinstance(node, list) and part.isdecimal() else part
        try:
            node = parent[leaf]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"'{path}' has no entry '{key}' to set. Check the spelling.") from None
    return parent, leaf
