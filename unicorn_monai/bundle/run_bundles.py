"""The bundles of a run that comes from elsewhere: configurations are programs, so they must be this package's own.

They are compared with what ``bundle.install`` would write today, with the same presets and overrides; only data may
differ (number of labels, words). A file that Python would import is refused too, since MONAI puts a bundle's folder in
front of Python's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Any

from unicorn_monai.bundle.expressions import changed_wiring, require_literal
from unicorn_monai.bundle.installation import GENERATOR, bundle_root, configured
from unicorn_monai.system.files import parse_json

_ELSEWHERE = ("bundle_root", "prior_path", *GENERATOR)  # entries that an older run holds as absolute paths


def require_own_bundles(
    bundles: Path,
    presets: Callable[[str], Sequence[str]],
    overrides: Mapping[str, Mapping[str, Any]],
    places: Mapping[str, str],
    files: str = "inference.json",
) -> None:
    """Refuse bundles of a run that run anything but what this package's own would with the run's settings.

    Those are the ``presets`` of each bundle, the ``overrides`` and the ``places`` of what the generative bundles take
    from the segmentation; ``files`` is a pattern of the configurations that are going to be used.
    """
    if os.path.lexists(bundles / "configs"):  # where parts of a bundle would be looked for
        raise ValueError(f"'{bundles / 'configs'}' is no bundle of a run; expected bundles alone. Remove it.")
    for name in GENERATOR:
        root = bundles / name
        if not (root / "configs").is_dir():
            continue  # who needs it says so
        _require_data_only(root)
        shipped = sorted(Path(bundle_root(name), "configs").glob(files))
        for file in [*(path.name for path in shipped), "metadata.json"]:
            path = root / "configs" / file
            if path.is_file():
                expected = configured(name, presets(name), dict(overrides.get(name, {})), file)
                if {"prior_path", "retinal_unet"} <= expected.keys():
                    expected |= {key: place for key, place in places.items() if key in expected}
                _require_same(path, expected, bundles)


def _require_data_only(root: Path) -> None:
    for path in (root.parent, root, *root.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"'{path}' is a link to '{path.readlink()}'; expected a file of its own. Copy it there.")
        if path.name.endswith(tuple(all_suffixes())):
            raise ValueError(
                f"'{path}' is code, which Python would import; a run's bundles hold none. Look at it first."
            )


def _require_same(path: Path, expected: dict[str, Any], bundles: Path) -> None:
    found = parse_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' is no configuration; expected a JSON object.")
    for key in changed_wiring(expected, found):
        entry = key.partition("::")[0]
        if entry not in _ELSEWHERE or not _is_place(found.get(entry), bundles, entry):
            raise ValueError(
                f"'{path}' runs or refers to something else at '{key}' than the bundle of this package does with the "
                "settings of the run; it is of another version, or was changed. `unicorn-monai experiment "
                "--resume` with the settings of the run writes its bundles anew; or look at it (`unicorn-monai verify "
                f"{path.parents[1]}`)."
            )


def _is_place(value: Any, bundles: Path, name: str) -> bool:
    """Whether a value is a place of the bundles before the run was moved, or where they are now; a prior is data."""
    if not isinstance(value, str):
        return False
    try:
        require_literal(value, name)  # else MONAI makes another place of it
        place = Path(value).resolve()
        here = place.parent == bundles.resolve() and place.name in GENERATOR
        return name == "prior_path" or here or not place.exists()
    except (ValueError, OSError, RuntimeError):
        return False
