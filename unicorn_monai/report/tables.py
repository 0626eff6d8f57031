"""Several runs of one experiment (seeds) in one table: mean, spread over the seeds, and how much of the gap was closed.

gap closed = (mean IoU of a set-up - lower bound) / (upper bound - lower bound)

The spread is that of the runs. Beside it stands the 95 % interval of every run over its subjects, where it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from unicorn_monai.report.markup import nested, number
from unicorn_monai.report.report import gap_closed
from unicorn_monai.system.files import PathLike, parse_json
from unicorn_monai.system.terminal import printable


def summarise(run_dirs: Sequence[PathLike]) -> str:
    """Markdown tables of the scores, the control and the checks of one or several finished runs.

    A row that only some of the runs have says how many.

    Raises:
        ValueError: a folder without results, results that are none, a run given twice, or runs with different labels.
    """
    runs = [_read(Path(folder)) for folder in run_dirs]
    if not runs:
        raise ValueError("No run given; expected the folder of at least one finished run.")
    _require_once(run_dirs, runs)
    if len({str(run["labels"]) for run in runs}) > 1:
        raise ValueError("The runs have different labels; summarise runs of one experiment only.")
    return "\n".join([*_score_rows(runs), "", *_control_rows(runs), "", *_check_rows(runs)])


def _read(folder: Path) -> dict[str, Any]:
    """The results of a run, as far as every run has them."""
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist; expected the folder of a finished run.")
    results = parse_json(path)
    if not isinstance(results, dict):
        raise ValueError(f"'{path}' is a {type(results).__name__}; expected the results of a run, a table.")
    for key, kind in (("labels", list), ("segmentation", dict), ("uncertainty", dict), ("seconds", dict)):
        if not isinstance(results.get(key), kind):
            raise ValueError(
                f"'{path}': '{key}' is {results.get(key)!r}; expected what an experiment writes there. Is it the "
                "folder of a finished run? Finish it with --resume."
            )
    return results


def _require_once(run_dirs: Sequence[PathLike], runs: Sequence[dict[str, Any]]) -> None:
    """Refuse a run that is given twice, also by a link or as a copy: what is the same has no spread."""
    for (a, one), (b, other) in combinations(zip(run_dirs, runs, strict=True), 2):
        weights = [_weights(run) for run in (one, other)]
        both = weights[0].keys() & weights[1].keys()
        folder = Path(a).resolve() == Path(b).resolve()
        trained = bool(both) and all(weights[0][name] == weights[1][name] for name in both)
        if folder or trained or one == other:
            why = "the same folder" if folder else "the same networks, by sha256" if trained else "the same results"
            raise ValueError(
                f"'{a}' and '{b}' are one run ({why}); expected each once, since mean and spread are over runs. Leave "
                "one out, or run the experiment with another --seed."
            )


def _weights(run: dict[str, Any]) -> dict[str, Any]:
    """Sha256 of what a run has trained, by its place in the run."""
    return {name: value for name, value in nested(run, "sha256").items() if name.endswith(".pt")}


def _score_rows(runs: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| trained on | mean IoU | layers only | mean Dice | gap closed | 95 % interval of it |"]
    lines += ["|---|---|---|---|---|---|"]
    for setup in dict.fromkeys(setup for run in runs for setup in run["segmentation"]):
        having = [run for run in runs if setup in run["segmentation"]]
        cells = [
            _spread([_number(run, "segmentation", setup, key) for run in having])
            for key in ("mean_iou", "mean_iou_layers", "mean_dice")
        ]
        closed = [gap_closed(run, setup) for run in having] if setup not in ("lower_bound", "upper_bound") else []
        percent = [100 * c[0] for c in closed if c is not None]
        cells.append(_spread(percent, ".0f", " %") if percent else "")
        ends = [c[1] for c in closed if c is not None and c[1] is not None]
        cells.append("; ".join(f"{100 * low:.0f} to {100 * high:.0f} %" for low, high in ends))
        lines.append(f"| {cell(setup)}{_of(having, runs)} | {' | '.join(cells)} |")
    return lines


def _control_rows(runs: Sequence[dict[str, Any]]) -> list[str]:
    controls = dict.fromkeys(key for run in runs for key in run if key.split("_")[0] == "control")
    setups = [cell(key.replace("control", "unicorn")) for key in controls]
    lines = [f"| {' | '.join(['measured', *setups])} |", "|---" * (1 + len(setups)) + "|"]
    for name, key in (
        ("Spearman of requested and measured uncertainty", "spearman"),
        ("mean absolute error of the uncertainty", "mean_absolute_error"),
        ("label fidelity (mean IoU)", "label_fidelity_mean_iou"),
        ("the oracle's own mean IoU on real images", "oracle_mean_iou"),
    ):
        row = [_spread([_number(run, control, key) for run in runs]) for control in controls]
        lines.append(f"| {name} | {' | '.join(row)} |")
    return lines


def _check_rows(runs: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| check | value |", "|---|---|"]
    for domain in ("labeled", "unlabeled"):
        for key, name in (("high_pass_std", "speckle"), ("entropy", "entropy")):
            pairs = [nested(nested(run, "autoencoder"), domain).get(key) for run in runs]
            ratios = [_ratio(pair) for pair in pairs]
            lines.append(f"| {name} of reconstructions / originals, {domain} (0.85 to 1.15) | {_spread(ratios)} |")
    latents = [_number(run, "diffusion", "latent_std") for run in runs]
    lines.append(f"| std of sampled / training latents (0.9 to 1.1) | {_spread(latents)} |")
    for name in dict.fromkeys(name for run in runs for name in run["uncertainty"]):
        means = [_number(run, "uncertainty", name, "mean") for run in runs if name in run["uncertainty"]]
        lines.append(f"| mean uncertainty, {cell(name)}{_of(means, runs)} | {_spread(means)} |")
    minutes = [sum(filter(None, map(number, run["seconds"].values()))) / 60 for run in runs]
    lines.append(f"| minutes of all stages | {_spread(minutes, '.1f')} |")
    wall = [seconds / 60 for run in runs if (seconds := _number(run, "wall_seconds")) is not None]
    lines.append(f"| minutes by the clock, uninterrupted | {_spread(wall, '.1f')} |")
    return lines


def _number(run: dict[str, Any], *keys: str) -> float | None:
    """A number of the results, None where it was not computed."""
    for key in keys[:-1]:
        run = nested(run, key)
    return number(run.get(keys[-1]))


def _ratio(pair: Any) -> float | None:
    """Second / first of two numbers, None where it was not computed."""
    known = [number(v) for v in pair] if isinstance(pair, list) else []
    first, second = known if len(known) == 2 else (None, None)
    return second / first if first and second is not None else None


def cell(text: str) -> str:
    """A name within a row: it ends no cell and no line, and no reader of Markdown takes it for HTML."""
    return escape(printable(text), quote=False).replace("|", "\\|")


def _of(having: Sequence[Any], runs: Sequence[Any]) -> str:
    return "" if len(having) == len(runs) else f" ({len(having)} of {len(runs)} runs)"


def _spread(values: Sequence[float | None], form: str = ".3f", unit: str = "") -> str:
    """Mean and, for several values, the smallest and largest."""
    numbers = [v for v in values if v is not None]
    if not numbers:
        return "not computed"
    text = f"{np.mean(numbers):{form}}{unit}"
    return text if len(numbers) == 1 else f"{text} ({min(numbers):{form}} to {max(numbers):{form}})"
