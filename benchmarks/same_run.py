"""Do two runs hold the same weights, images and scores, to the last bit? For changes that must change nothing.

    python -m benchmarks.same_run BEFORE AFTER

BEFORE and AFTER are finished runs of the same settings, made by two commits on one machine (kernels round differently
on another), e.g. by `unicorn-monai experiment --config SETTINGS --output BEFORE` in a checkout of each. Files are
compared by what they hold and not by their bytes, so that a new version number or another order of entries is no
difference: tensors of every ``.safetensors``, pixels of every image, numbers and texts of ``results.json`` but those
that tell of time, place and machine. What lies under ``mlartifacts`` is left out: copies, in folders that MLflow names
at random. Caches of latents have names that come from the folders of their images and are compared without. Prints
what differs, by name; exit status 1 if anything does. CycleGAN and CUT train by the clock, so they always differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

# Entries of results.json that tell of time, place or machine.
ELSEWHERE = ("seconds", "wall_seconds", "commands", "environment", "sha256", "budget", "without_command")

COPIES = "mlartifacts"  # what MLflow keeps, in folders with random names
CACHE = "latents"  # files named after the folders of their images: compared by what they hold


def digest(array: np.ndarray) -> str:
    """Sha256 of an array: type, shape and values."""
    head = json.dumps([str(array.dtype), array.shape]).encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and text of a JSON document by its place in it."""
    if not isinstance(node, dict | list):
        yield name, node
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from leaves(child, f"{name}/{key}")


def contents(run: Path) -> dict[str, Any]:
    """What a run holds: by name the digest of a tensor or an image, or a value of its results.

    Raises:
        ValueError: it is not finished.
    """
    if not (run / "results.json").is_file():
        raise ValueError(f"'{run}' holds no results.json; expected a finished run.")
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if COPIES in path.relative_to(run).parts:
            continue
        if path.suffix == ".safetensors" and CACHE in path.parts:
            found |= {f"{path.parent.relative_to(run)}: {digest(v)}": True for v in load_file(path).values()}
        elif path.suffix == ".safetensors":
            found |= {f"{name}: {key}": digest(value) for key, value in load_file(path).items()}
        elif path.name.endswith(".nii.gz"):
            found[name] = digest(np.asanyarray(nibabel.load(path).dataobj))
        elif path.suffix == ".png":
            found[name] = digest(np.asarray(Image.open(path)))
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return found | {f"results.json{k}": v for k, v in leaves(results) if k.split("/")[1] not in ELSEWHERE}


def differences(before: Path, after: Path) -> list[str]:
    """One line for everything that only one of two runs has, or that is not the same in both."""
    one, other = contents(before), contents(after)
    lines = [f"only in '{before}': {name}" for name in one if name not in other]
    lines += [f"only in '{after}': {name}" for name in other if name not in one]
    return lines + [f"differs: {name}" for name in one if name in other and one[name] != other[name]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args(arguments)
    found = differences(options.before, options.after)
    for line in found:
        print(line)
    print(f"{len(contents(options.before))} tensors, images and values compared, {len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
