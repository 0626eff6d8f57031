"""Scores as tables: of a run for a terminal; of one or several runs (seeds) as Markdown: mean and spread over them.

gap closed = (mean IoU of a set-up - lower bound) / (upper bound - lower bound)

The spread is that of the runs. Beside it stands the 95 % interval of every run over its subjects, where it has one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.markup import escape as plain
from rich.table import Table

from unicorn_monai.report.checks import ratio
from unicorn_monai.report.naming import drawn
from unicorn_monai.report.results import LOWER, UPPER, Kept, Results, Scores, read
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.terminal import printable

NEEDED = ("labels", "segmentation", "uncertainty", "seconds")  # every finished run has them
Rows = list[list[str]]  # head first


def summarise(run_dirs: Sequence[PathLike]) -> str:
    """Markdown tables of the scores, the control and the checks of one or several finished runs.

    A row that only some of the runs have says how many.
    """
    runs = read_runs(run_dirs)
    return "\n\n".join(markdown(table(runs)) for table in (scores, control, checks))


def read_runs(run_dirs: Sequence[PathLike]) -> list[Results]:
    """The results of runs of one experiment, each given once: folders, or files of results."""
    if not run_dirs:
        raise ValueError("No run given; expected the folder of at least one finished run.")
    runs = [_read(Path(place)) for place in run_dirs]
    _require_once(run_dirs, runs)
    if any(run.labels != runs[0].labels for run in runs):
        raise ValueError("The runs have different labels; summarise runs of one experiment only.")
    return runs


def _read(place: Path) -> Results:
    path = place if place.suffix == ".json" else place / "results.json"
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist; expected the folder of a finished run.")
    results = read(path, Results)
    if lacking := [key for key in NEEDED if key not in results.model_fields_set]:
        raise ValueError(
            f"'{path}': '{lacking[0]}' is None; expected what an experiment writes there. Is it the folder of a "
            "finished run? Finish it with --resume."
        )
    return results


def _require_once(run_dirs: Sequence[PathLike], runs: Sequence[Results]) -> None:
    """Refuse a run that is given twice, also by a link or as a copy: what is the same has no spread."""
    for (a, one), (b, other) in combinations(zip(run_dirs, runs, strict=True), 2):
        weights = [{k: v for k, v in run.sha256.items() if k.endswith(".pt")} for run in (one, other)]
        both = weights[0].keys() & weights[1].keys()
        folder = Path(a).resolve() == Path(b).resolve()
        trained = bool(both) and all(weights[0][name] == weights[1][name] for name in both)
        if folder or trained or one == other:
            why = "the same folder" if folder else "the same networks, by sha256" if trained else "the same results"
            raise ValueError(
                f"'{a}' and '{b}' are one run ({why}); expected each once, since mean and spread are over runs. Leave "
                "one out, or run the experiment with another --seed."
            )


def scores(runs: Sequence[Results]) -> Rows:
    """Means of every set-up, and the share of the gap between the bounds that it closes.

    Calibration and the mean IoU on the labelled device follow, where a run has them.
    """
    head = ["trained on", "mean IoU", "95 % interval", "layers only", "mean Dice", "gap closed", "95 % interval of it"]
    more = _further([part for run in runs for part in run.segmentation.values()])
    rows = [[*head, *more]]
    for setup, each in _gathered(run.segmentation for run in runs).items():
        closed = [gap for run in runs if setup not in (LOWER, UPPER) and (gap := run.gap_closed(setup))]
        rows.append(
            [
                cell(setup) + _of(each, runs),
                _spread(part.mean_iou for part in each),
                "; ".join(shown(part.ci95, ".3f") + _over(part.ci_unit) for part in each if part.ci95),
                _spread(part.mean_iou_layers for part in each),
                _spread(part.mean_dice for part in each),
                _spread((gap.share for gap in closed), ".0%") if closed else "",
                "; ".join(shown(gap.ci95, ".0%") + _over(gap.ci_unit) for gap in closed if gap.ci95),
                *(_spread(map(value, each)) for value in more.values()),
            ]
        )
    return rows


def _further(parts: Sequence[Scores]) -> dict[str, Callable[[Scores], float | None]]:
    """Columns that only some runs have: name -> value of a set-up."""
    columns: dict[str, Callable[[Scores], float | None]] = {
        "labelled device": lambda part: part.labelled_device.mean_iou,
        "ECE": lambda part: part.ece,
        "NLL": lambda part: part.nll,
    }
    return {name: value for name, value in columns.items() if any(value(part) is not None for part in parts)}


def _over(unit: str | None) -> str:
    """What an interval is over, where that is not subjects."""
    return "" if unit in (None, "subjects") else f" ({drawn(unit)})"


def labels(runs: Sequence[Results]) -> Rows:
    """IoU of every label."""
    setups = _gathered(run.segmentation for run in runs)
    rows = [["label", *map(cell, setups)]]
    for i, label in enumerate(runs[0].labels):
        ious = ((part.iou[i] for part in each if part.iou) for each in setups.values())
        rows.append([cell(label), *(_spread(values, ".2f") for values in ious)])
    return rows


def domains(runs: Sequence[Results]) -> Rows:
    """Mean IoU of every set-up in each sub-domain of the test images."""
    setups = _gathered(run.segmentation for run in runs)
    names = _gathered(part.sub_domains for run in runs for part in run.segmentation.values())
    rows = [["trained on", *map(cell, names)]]
    for setup, each in setups.items():
        found = _gathered(part.sub_domains for part in each)
        rows.append([cell(setup), *(_spread(part.mean_iou for part in found.get(name, ())) for name in names)])
    return rows


def differences(runs: Sequence[Results]) -> Rows:
    """Mean IoU of every set-up minus that of a reference: with its interval for one run, else over the runs."""
    references = {k: _gathered(each) for k, each in _gathered(run.differences for run in runs).items() if any(each)}
    rows = [["trained on", *(f"minus {cell(reference)}" for reference in references)]]
    for setup in _gathered(part for run in runs for part in run.differences.values()):
        rows.append([cell(setup)])
        for reference, differing in references.items():
            found = differing.get(setup, [])
            ends = f" ({shown(found[0].ci95, '.3f')})" if len(runs) == 1 and found and found[0].ci95 else ""
            rows[-1].append("" if setup == reference else _spread((d.difference for d in found), "+.3f") + ends)
    return rows


def control(runs: Sequence[Results]) -> Rows:
    """Do the images obey?"""
    names = _gathered(run.control for run in runs)
    rows = [["measured", *(cell(key.replace("control", "unicorn")) for key in names)]]
    for name, key in (
        ("Spearman of requested and measured uncertainty", "spearman"),
        ("mean absolute error of the uncertainty", "mean_absolute_error"),
        ("label fidelity (mean IoU)", "label_fidelity_mean_iou"),
        ("the oracle's own mean IoU on real images", "oracle_mean_iou"),
    ):
        rows.append([name, *(_spread(getattr(part, key) for part in each) for each in names.values())])
    return rows


def weights(runs: Sequence[Results]) -> Rows:
    """The control at every weight of the uncertainty."""
    columns = ("measured_mean", "distance", "label_consistency", "oracle_mean_iou")
    rows = [["weight", "measured uncertainty", "distance to the requested", "consistency", "label fidelity"]]
    for name, each in _gathered(run.weights for run in runs).items():
        for weight, found in _gathered({w.weight: w for w in part.table} for part in each).items():
            first = f"{cell(name)}, {'not computed' if weight is None else f'{weight:g}'}"
            rows.append([first, *(_spread(getattr(w, column) for w in found) for column in columns)])
    return rows


def distances(runs: Sequence[Results]) -> Rows:
    """FID of every set of images to the real ones."""
    rows = [["FID", "to labeled", "to unlabeled"]]
    for name in _gathered(part for run in runs for part in run.fid.fid.values()):
        each = ((run.fid.fid.get(real, {}).get(name) for run in runs) for real in ("labeled", "unlabeled"))
        rows.append([cell(name), *(_spread(values, ".2f") for values in each)])
    return rows


def checks(runs: Sequence[Results]) -> Rows:
    """Of the images, and how long the runs took."""
    rows = [["check", "value"]]
    for domain in ("labeled", "unlabeled"):
        kept = [run.autoencoder.get(domain, Kept()) for run in runs]
        for name, pairs in (("speckle", [k.high_pass_std for k in kept]), ("entropy", [k.entropy for k in kept])):
            what = f"{name} of reconstructions / originals, {domain} (0.85 to 1.15)"
            rows.append([what, _spread(map(ratio, pairs))])
    rows.append(["std of sampled / training latents (0.9 to 1.1)", _spread(run.diffusion.latent_std for run in runs)])
    for name, each in _gathered(run.uncertainty for run in runs).items():
        rows.append([f"mean uncertainty, {cell(name)}{_of(each, runs)}", _spread(part.mean for part in each)])
    minutes = [sum(filter(None, run.seconds.values())) / 60 for run in runs]
    rows.append(["minutes of all stages", _spread(minutes, ".1f")])
    wall = [run.wall_seconds / 60 for run in runs if run.wall_seconds is not None]
    rows.append(["minutes by the clock, uninterrupted", _spread(wall, ".1f")])
    return rows


TABLES: dict[str, Callable[[Sequence[Results]], Rows]] = {
    table.__name__: table for table in (scores, labels, domains, differences, control, weights, distances, checks)
}


def markdown(rows: Rows) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def cell(text: str) -> str:
    """A name within a row: it ends no cell and no line, and no reader of Markdown takes it for HTML."""
    return escape(printable(text), quote=False).replace("|", "\\|")


def shown(value: Any, form: str) -> str:
    """A number as ``form`` says, per cent with a space; a list of numbers, as an interval, with "to" between them."""
    if isinstance(value, list | tuple):
        each = [shown(one, form) for one in value]
        unit = " %" if all(one.endswith(" %") for one in each) else ""
        return " to ".join(one.removesuffix(" %") for one in each) + unit
    return "not computed" if value is None else f"{value:{form}}".replace("%", " %")


def _gathered(tables: Iterable[Mapping[Any, Any]]) -> dict[Any, list[Any]]:
    """Every name of the tables, in order, with what each table that has it says."""
    found = defaultdict[Any, list[Any]](list)
    for table in tables:
        for name, entry in table.items():
            found[name].append(entry)
    return dict(found)


def _of(having: Sequence[Any], runs: Sequence[Any]) -> str:
    return "" if len(having) == len(runs) else f" ({len(having)} of {len(runs)} runs)"


def _spread(values: Iterable[float | None], form: str = ".3f") -> str:
    """Mean and, for several values, the smallest and largest."""
    numbers = [value for value in values if value is not None]
    text = shown(sum(numbers) / len(numbers) if numbers else None, form)
    return text if len(numbers) < 2 else f"{text} ({shown([min(numbers), max(numbers)], form)})"


def score_table(content: Mapping[str, Any]) -> Table:
    """The scores of a run that has just ended, for a terminal."""
    results = Results.of(content)
    layers = results.modality == "OCT"
    more = _further([*results.segmentation.values()])
    columns = ("trained on", "all labels", *["layers"] * layers, "95 % interval", *more)
    table = Table(*columns, title="Mean IoU on the unlabelled domain")
    for name, part in results.segmentation.items():
        values = (part.mean_iou, *[part.mean_iou_layers] * layers, part.ci95, *(of(part) for of in more.values()))
        table.add_row(plain(printable(name)), *(shown(value, ".3f") for value in values))
    missing = results.absent_labels
    notes = [f"without a pixel in the test images: {', '.join(missing)}"] if missing else []
    notes += [f"intervals over {drawn(results.ci_unit)}"] if _over(results.ci_unit) else []
    notes += [f"strongest opponent: {results.strongest.setup}"] if results.strongest.setup else []
    labelled, total = results.label_maps.get("test", (0, 0))
    if labelled is not None and total is not None and labelled < total:
        scores_of = f"scores are of the other {labelled:.0f}" if labelled else "nothing can be scored"
        left = f"{total - labelled:.0f} of {total:.0f}"
        notes.append(f"{left} test images of the unlabelled domain have no label map: {scores_of}")
    if results.forced:
        notes.append(f"forced: {results.forced}")
    table.caption = plain(printable("; ".join(notes))) or None
    return table
