"""Several runs of one experiment (seeds) in one table: mean, spread over the seeds, and how much of the gap was closed.

gap closed = (mean IoU of a set-up - lower bound) / (upper bound - lower bound)

The spread is that of the runs. Beside it stands the 95 % interval of every run over its subjects, where it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unicorn_monai.datasets import PathLike
from unicorn_monai.evaluation.report import gap_closed
from unicorn_monai.handlers import read_json


def summarise(run_dirs: Sequence[PathLike]) -> str:
    """Markdown tables of the scores, the control and the checks of one or several finished runs.

    A row that only some of the runs have says how many.

    Raises:
        ValueError: a folder without results, or runs with different labels.
    """
    runs = [read_json(Path(folder) / "results.json") for folder in run_dirs]
    if not runs:
        raise ValueError("No run given; expected the folder of at least one finished run.")
    if len({tuple(run["labels"]) for run in runs}) > 1:
        raise ValueError("The runs have different labels; summarise runs of one experiment only.")
    lines = ["| trained on | mean IoU | layers only | mean Dice | gap closed | 95 % interval of it |"]
    lines += ["|---|---|---|---|---|---|"]
    for setup in dict.fromkeys(setup for run in runs for setup in run["segmentation"]):
        having = [run for run in runs if setup in run["segmentation"]]
        found = [run["segmentation"] for run in having]
        cells = [_spread([s[setup][key] for s in found]) for key in ("mean_iou", "mean_iou_layers", "mean_dice")]
        closed = [gap_closed(run, setup) for run in having] if setup not in ("lower_bound", "upper_bound") else []
        percent = [100 * c[0] for c in closed if c is not None]
        cells.append(_spread(percent, ".0f", " %") if percent else "")
        ends = [c[1] for c in closed if c is not None and c[1] is not None]
        cells.append("; ".join(f"{100 * low:.0f} to {100 * high:.0f} %" for low, high in ends))
        lines.append(f"| {setup}{_of(having, runs)} | {' | '.join(cells)} |")
    controls = dict.fromkeys(key for run in runs for key in run if key.split("_")[0] == "control")
    setups = [key.replace("control", "unicorn") for key in controls]
    lines += ["", f"| {' | '.join(['measured', *setups])} |", "|---" * (1 + len(setups)) + "|"]
    for name, key in (
        ("Spearman of requested and measured uncertainty", "spearman"),
        ("mean absolute error of the uncertainty", "mean_absolute_error"),
        ("label fidelity (mean IoU)", "label_fidelity_mean_iou"),
        ("the oracle's own mean IoU on real images", "oracle_mean_iou"),
    ):
        row = [_spread([c[key] for run in runs if (c := run.get(control)) is not None]) for control in controls]
        lines.append(f"| {name} | {' | '.join(row)} |")
    lines += ["", "| check | value |", "|---|---|"]
    for domain in ("labeled", "unlabeled"):
        for key, name in (("high_pass_std", "speckle"), ("entropy", "entropy")):
            ratios = [run["autoencoder"][domain][key][1] / run["autoencoder"][domain][key][0] for run in runs]
            lines.append(f"| {name} of reconstructions / originals, {domain} (0.85 to 1.15) | {_spread(ratios)} |")
    latents = [run["diffusion"]["latent_std"] for run in runs]
    lines.append(f"| std of sampled / training latents (0.9 to 1.1) | {_spread(latents)} |")
    for name in dict.fromkeys(name for run in runs for name in run["uncertainty"]):
        means = [run["uncertainty"][name]["mean"] for run in runs if name in run["uncertainty"]]
        lines.append(f"| mean uncertainty, {name}{_of(means, runs)} | {_spread(means)} |")
    lines.append(f"| minutes of all stages | {_spread([sum(r['seconds'].values()) / 60 for r in runs], '.1f')} |")
    wall = [run["wall_seconds"] / 60 for run in runs if "wall_seconds" in run]
    lines.append(f"| minutes by the clock, uninterrupted | {_spread(wall, '.1f')} |")
    return "\n".join(lines)


def _of(having: Sequence[Any], runs: Sequence[Any]) -> str:
    return "" if len(having) == len(runs) else f" ({len(having)} of {len(runs)} runs)"


def _spread(values: Sequence[float | None], form: str = ".3f", unit: str = "") -> str:
    """Mean and, for several values, the smallest and largest."""
    numbers = [v for v in values if v is not None]
    if not numbers:
        return "not computed"
    text = f"{np.mean(numbers):{form}}{unit}"
    return text if len(numbers) == 1 else f"{text} ({min(numbers):{form}} to {max(numbers):{form}})"
