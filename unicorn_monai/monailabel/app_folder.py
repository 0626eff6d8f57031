"""The folder that MONAI Label serves and writes into: copies of a finished run's bundles.

    APP/main.py                  one import
    APP/app.json                 run, set-up, label names, settings of the synthesis
    APP/model/retinal_unet       the segmentation network that is served and trained on
    APP/generator/<bundle>       the networks of the synthesis, and the segmentation network of their uncertainties;
                                 none of a run without a generator

Training changes ``APP/model`` only, neither the run nor the generator: a prior belongs to the network that measured.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from unicorn_monai.bundle.installation import controlling
from unicorn_monai.experiment.settings import bundle_places, settings_of
from unicorn_monai.report.recommended import bundle_of, networks_of, reason_of
from unicorn_monai.report.results import Results, read
from unicorn_monai.system.files import PathLike, read_json, write_json
from unicorn_monai.system.weights import copy_weights, read_metadata

SEGMENTATION = "retinal_unet"
MAIN = '"""Served by MONAI Label."""\n\nfrom unicorn_monai.monailabel.app import UnicornApp# noqa: F401\n'
RECORD, DEFAULT = "app.json", "unicorn+real"
NOT_SERVED = (
    "*last.pt",
    "resume.pt",
    "*_before.pt",
    "latents",
    "uncertainties*.json",
    "tried",
    "output",
    "__pycache__",
    ".*",
)


def make_app(app_dir: PathLike, run: PathLike | None, setup: str | None = None) -> dict[str, Any]:
    """Make the folder of an app, or go on with one; weights that were trained in it are kept. Returns ``app.json``.

    Args:
        app_dir: the folder.
        run: folder of a finished run; None goes on with what is there.
        setup: whose segmentation weights are served first, a folder of ``RUN/segmentation`` or "lower_bound"; None
            takes the network that the run recommends, or without a recommendation that of synthetic and real images.
    """
    app_dir = Path(app_dir).resolve()
    if (app_dir / RECORD).is_file():
        return _begun(app_dir, run, setup)
    if run is None:
        raise ValueError(f"There is no app in '{app_dir}' yet. Give a finished run by --run.")
    run = Path(run).resolve()
    if not (run / "results.json").is_file():
        raise ValueError(f"'{run}' is no finished run: it has no results.json. Finish it with `--resume`.")
    settings, chosen = settings_of(run, "*.json")
    mode, labels = next(iter(settings.modes), None), read_json(run / "results.json")["labels"]
    setup, why = _choice(run, setup)
    weights = _weights(run, setup)
    temporary = app_dir.with_name(f".tmp-{app_dir.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    for name in ("retinal_unet", "latent_diffusion", *controlling(mode)) if mode else ():
        places = bundle_places(app_dir / "generator", settings, name)
        _copy(run / "bundles" / name, temporary / "generator" / name, places)
    served = Path("model", SEGMENTATION)
    _copy(bundle_of(run, setup), temporary / served, {"bundle_root": str(app_dir / served)})
    copy_weights(weights, temporary / served / "models" / "model.pt")
    _name_labels(temporary / served / "configs" / "metadata.json", labels)
    content = {
        "run": str(run),
        "setup": setup,
        "why": why,
        "labels": labels,
        "mode": mode,
        "uncertainty_weight": settings.weight_used(mode, chosen) if mode else None,
        "guidance": list(settings.guidance_of(mode)) if mode else [],
    }
    (temporary / "main.py").write_text(MAIN)
    write_json(temporary / RECORD, content)
    app_dir.mkdir(parents=True, exist_ok=True)
    for path in sorted(temporary.iterdir(), key=lambda p: p.name == RECORD):  # the record last: it says all is there
        target = app_dir / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.rename(target)
    temporary.rmdir()
    return content


def _begun(app_dir: Path, run: PathLike | None, setup: str | None) -> dict[str, Any]:
    """What the app in a folder was made of, if it is what is asked for now."""
    before = read_json(app_dir / RECORD)
    if run is not None and before["run"] != str(Path(run).resolve()):
        raise ValueError(
            f"The app in '{app_dir}' was made from the run '{before['run']}', not '{run}'. Leave out --run to go "
            "on with it, or give another folder by --app."
        )
    if setup is not None and before["setup"] != setup:
        raise ValueError(
            f"The app in '{app_dir}' started with the weights '{before['setup']}', not '{setup}'. Leave out "
            "--network to go on with it, or give another folder by --app."
        )
    return before


def _choice(run: Path, setup: str | None) -> tuple[str, str]:
    """Which network is served, and why, in a sentence."""
    if setup is not None:
        return setup, "asked for by --network"
    part = read(run / "results.json", Results).recommendation
    if part.setup is None:
        return DEFAULT, f"trained on synthetic and real images; no recommendation: {part.not_computed or 'none made'}"
    expected = f" (expected mean IoU {part.low:.2f} to {part.high:.2f})" if None not in (part.low, part.high) else ""
    return part.setup, f"recommended without labels{expected}, because {reason_of(part.criterion)}"


def _weights(run: Path, setup: str) -> Path:
    trained = networks_of(run)
    if setup not in trained:
        others = f"expected one of {', '.join(trained)}; choose one by --network"
        raise ValueError(f"'{run}' has no segmentation weights '{setup}'; {others if trained else 'it has none'}.")
    read_metadata(trained[setup])
    return trained[setup]


def _copy(source: Path, target: Path, entries: dict[str, str]) -> None:
    """Copy a bundle, and set those of the entries that a configuration of it has."""
    if not (source / "configs").is_dir():
        raise ValueError(f"'{source}' is missing; the run is not complete. Finish it with `--resume`.")
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*NOT_SERVED))
    for path in (target / "configs").glob("*.json"):
        config = ConfigParser.load_config_file(path)
        if "bundle_root" in config:
            write_json(path, config | {key: value for key, value in entries.items() if key in config})


def _name_labels(metadata: Path, labels: list[str]) -> None:
    """Tell the run's own labels; MONAI Label takes the value 0 for background, which nobody paints."""
    content = read_json(metadata)
    content["network_data_format"]["outputs"]["pred"] |= {
        "num_channels": len(labels),
        "channel_def": {str(value): "background" if value == 0 else name for value, name in enumerate(labels)},
    }
    write_json(metadata, content)
