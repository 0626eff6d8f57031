"""One HTML file that says what a run achieved, readable in two minutes by a clinician or an engineer.

The verdict comes first: how much of the gap between the bounds the retrained network closed,

    (mean IoU - lower bound) / (upper bound - lower bound),

then the numbers it rests on, the pictures, the checks and how to repeat it. The file loads nothing (pictures are data
URIs, charts are inline SVG, there is no script) and what was not computed is called so, never 0.
"""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

from unicorn_monai.data.layout import WEATHER
from unicorn_monai.report import figures as charts
from unicorn_monai.report import report_images, report_repeat
from unicorn_monai.report.checks import image_checks
from unicorn_monai.report.markup import (
    MISSING,
    NAMES,
    absent_labels,
    as_html,
    figure,
    fixed,
    name_of,
    nested,
    number,
    ordered,
    page,
    percent,
    picture,
    section,
    table,
    within,
)
from unicorn_monai.report.trainings import SEMANTIC_ONLY
from unicorn_monai.system.files import PathLike, write_text
from unicorn_monai.system.intake import read_text

MAIN = "unicorn+real"
CORE = ("lower_bound", "upper_bound", MAIN, "unicorn")  # always have a column, the first ones
FORCED = (
    "<p><b>Forced:</b> the autoencoder does not keep the images (see Checks), and the run went on because of "
    "<code>--force</code>: everything after the autoencoder was trained on such images.</p>"
)
SETS = ("labeled", "unlabeled", "unicorn", "unicorn_paper")


def write_report(run_dir: PathLike) -> Path:
    """Write ``report.html`` into a run folder from its JSON files and pictures.

    Args:
        run_dir: folder with ``results.json``; the other files and ``pictures/`` may be absent.

    Returns:
        Path of the report.

    Raises:
        ValueError: if ``results.json`` is missing, or a file does not hold what it should.
    """
    folder = Path(run_dir)
    if not (folder / "results.json").is_file():
        raise ValueError(f"'{folder}' holds no results.json. Let the experiment finish; --resume goes on with it.")
    write_text(folder / "report.html", page(folder.resolve().name, "\n".join(sections(folder))))
    return folder / "report.html"


def sections(folder: Path) -> list[str]:
    """The page from top to bottom, as HTML.

    Raises:
        ValueError: a file does not hold what it should.
    """
    try:
        return _sections(folder)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(
            f"results.json of '{folder}', or a file beside it, does not hold what an experiment writes "
            f"({type(error).__name__}: {error}). Let the experiment write it again; --resume does."
        ) from error


def _sections(folder: Path) -> list[str]:
    results, experiment = _read(folder, "results.json", dict), _read(folder, "experiment.json", dict)
    parts = [
        *_forced(results),
        _verdict(results),
        section("Segmentation of the unlabelled device", _scores(results, nested(experiment, "settings"))),
        section("Differences on the same eyes", report_images.differences(results)),
        '<div class="pair">',
        section("Uncertainty of the images", _uncertainties(results, _read(folder, "uncertainties.json", dict))),
        section("Does the generator obey?", _control(results)),
        "</div>",
        section("Pictures", _pictures(folder)),
        section("How much uncertainty, how much label?", report_images.weights(results, folder)),
        '<div class="pair">',
        section("Do the images look alike?", report_images.distances(results)),
        section("Are there copies of training images?", report_images.copies(results, folder)),
        "</div>",
        '<div class="pair">',
        section("Checks", _checks(results)),
        section("Time per stage", report_repeat.seconds(nested(results, "seconds"), results.get("wall_seconds"))),
        "</div>",
    ]
    if results.get("modality", "OCT") != "OCT":
        parts = [_of_scenes(part) for part in parts]
    if known := nested(results, "words"):
        what = "weather words" if set(known) <= set(WEATHER) else "words"
        parts = [part.replace(NAMES[SEMANTIC_ONLY], f"Label map and {what}") for part in parts]
    return [*parts, section("How to repeat it", report_repeat.repeat(results, experiment))]


def _of_scenes(text: str) -> str:
    """Devices and eyes are domains and scenes where the images are no OCT; embedded pictures stay as they are."""
    words = {"device": "domain", "eyes": "scenes"}
    return re.sub(r'data:[^"]*|\b(device|eyes)\b', lambda found: words.get(found[0], found[0]), text)


def gap_closed(results: dict[str, Any], setup: str = MAIN) -> tuple[float, tuple[float, float] | None] | None:
    """Share of the gap between lower and upper bound that a set-up closed.

    Args:
        results: ``results.json``. A run finished before it held "gap" gives the share alone.
        setup: which set-up.

    Returns:
        The share (0 at the lower bound, 1 at the upper) and, where it was computed, its 95 % interval over the subjects
        on which all three are scored; None if a score is missing or the upper bound is not above the lower.
    """
    segmentation, gap = nested(results, "segmentation"), nested(nested(results, "gap"), setup)
    lower, upper, score = (_score(segmentation, key) for key in ("lower_bound", "upper_bound", setup))
    if lower is None or upper is None or score is None or upper <= lower:
        return None
    share = number(gap.get("share"))
    return (score - lower) / (upper - lower) if share is None else share, _interval(gap)


# ---------------------------------------------------------------------- sections, top to bottom


def _forced(results: dict[str, Any]) -> list[str]:
    """What a reader must know before anything else; a section or none."""
    return [f'<section class="bad">{FORCED}</section>'] if results.get("forced") else []


def _verdict(results: dict[str, Any]) -> str:
    segmentation, simulated = nested(results, "segmentation"), results.get("simulated")
    score = {key: value for key in _setups(segmentation) if (value := _score(segmentation, key)) is not None}
    lacking = [name_of(key) for key in ("lower_bound", MAIN, "upper_bound") if key not in score]
    gap = gap_closed(results)
    if gap:
        sentence = _gap_sentence(*gap)
        values = ", ".join(f"{name_of(key)} {score[key]:.3f}" for key in ("lower_bound", MAIN, "upper_bound"))
        notes = f"Mean IoU (overlap of predicted and true labels, 1 is perfect): {values}."
        notes += " The interval is over the subjects; all three are scored on the same ones." if gap[1] else ""
        better = [f"{name_of(k)} {v:.3f}" for k, v in score.items() if v > score[MAIN] and k != "upper_bound"]
        notes += f" Better in this run: {', '.join(better)}." if better else ""
    else:
        reason = f"no score for {', '.join(lacking)}" if lacking else "the upper bound is not above the lower bound"
        reason = "nothing was scored" if len(lacking) == 3 else reason
        gained = f"{_gain_sentence(results, score)} How" if lacking == [name_of("upper_bound")] else "how"
        sentence = f"{gained} much of the gap {name_of(MAIN)} closed <strong>cannot be computed</strong>: {reason}."
        known = nested(results, "not_computed").values()
        why = [f"{why[0].upper()}{why[1:]}. " for why in map(str, known)] if lacking else []
        notes = "".join(why) or ("Scores need labels in the test images of the unlabelled device. " if lacking else "")
        means = {key: nested(nested(results, "uncertainty"), key).get("mean") for key in SETS[:3]}
        notes += "Mean uncertainty: " + ", ".join(f"{name_of(k)} {fixed(v, 3)}" for k, v in means.items()) + "."
    kind, what = "simulated", str(simulated)
    if simulated == "none":
        kind, pill = "real", "Real images"
    elif simulated is None:
        pill = "Not recorded whether the images are simulated"
    else:
        pill, sentence = f"Simulated {what}: no evidence about real ones", f"On simulated {what}, {sentence}"
    text = f'<p class="pill {kind}">{pill}</p>\n<h1>{sentence[0].upper()}{sentence[1:]}</h1>\n<p>{notes}</p>'
    return f'<section class="verdict"><div>{text}</div>{_gap_chart(segmentation, score)}</section>'


def _gap_sentence(share: float, interval: tuple[float, float] | None) -> str:
    amount, name = f"<strong>{percent(share)}</strong>", name_of(MAIN)
    ci = f" (95\u00a0% interval {' to '.join(map(percent, interval))})" if interval else ""
    doubt = "; the interval includes 0, so a gain is not shown" if interval and interval[0] <= 0 < share else ""
    gap = "the gap between lower and upper bound"
    if share <= 0:
        return f"{name} did not improve on the lower bound: it closed {amount} of {gap}{ci}."
    if share < 1:
        return f"{name} closed {amount} of {gap}{ci}; it did not reach the upper bound{doubt}."
    return f"{name} reached the upper bound: it closed {amount} of {gap}{ci}{doubt}."


def _gain_sentence(results: dict[str, Any], score: dict[str, float]) -> str:
    """What can be said without an upper bound."""
    found = nested(nested(nested(results, "differences"), "lower_bound"), MAIN)
    gain, ends = score[MAIN] - score["lower_bound"], _interval(found)
    ci = f", 95\u00a0% interval {fixed(ends[0], 3)} to {fixed(ends[1], 3)}" if ends else ""
    doubt = "; it includes 0, so a gain is not shown" if ends and ends[0] <= 0 < gain else ""
    raised = f"the mean IoU from {score['lower_bound']:.3f} to {score[MAIN]:.3f}"
    return f"{name_of(MAIN)} {'raised' if gain > 0 else 'lowered'} {raised} ({fixed(gain, 3)}{ci}{doubt})."


def _gap_chart(segmentation: dict[str, Any], score: dict[str, float]) -> str:
    if not score:
        return ""
    rising = sorted(score, key=score.__getitem__)
    rows = [(name_of(key), score[key], _interval(segmentation[key])) for key in rising]
    gap = (score["lower_bound"], score["upper_bound"]) if {"lower_bound", "upper_bound"} <= set(score) else None
    caption = ["Mean IoU on the unlabelled device", *(["shaded: the gap"] if gap else [])]
    caption += ["bars: 95\u00a0% intervals"] if any(interval for _, _, interval in rows) else []
    return figure(charts.dots(rows, name_of(MAIN), gap), "; ".join(caption) + ".")


def _scores(results: dict[str, Any], settings: dict[str, Any]) -> str:
    segmentation = nested(results, "segmentation")
    if not segmentation:
        return f"<p>{MISSING}</p>"
    keys = _setups(segmentation)
    columns = {key: nested(segmentation, key) for key in keys}
    labels = results.get("labels") or range(max(len(column.get("iou") or ()) for column in columns.values()))
    for key, column in columns.items():
        if (found := len(column.get("iou") or labels)) != len(labels):
            raise ValueError(f"'{key}' of results.json has {found} IoUs; expected {len(labels)}, one per label.")
    ranked = [key for key in keys if key != "upper_bound" and _score(segmentation, key) is not None]
    best = keys.index(max(ranked, key=lambda key: _score(segmentation, key) or 0.0)) if ranked else None
    head = [name_of(key) + (' <em class="tag">best</em>' if i == best else "") for i, key in enumerate(keys)]
    rows = {
        f"<small>{i}</small>{label}": [fixed((c.get("iou") or {i: None})[i], 2) for c in columns.values()]
        for i, label in enumerate(labels)
    }
    rows["Mean IoU, all labels"] = [fixed(c.get("mean_iou"), 3) for c in columns.values()]
    ends = [_interval(c) for c in columns.values()]
    rows["95\u00a0% interval of it"] = [f"{e[0]:.3f}\u2013{e[1]:.3f}" if e else MISSING for e in ends]
    outer = f"without {labels[0]} and {labels[-1]}" if len(labels) > 2 else "all labels"
    for name in dict.fromkeys(name for column in columns.values() for name in column.get("sub_domains") or {}):
        each = (nested(nested(column, "sub_domains"), name) for column in columns.values())
        rows[f"Mean IoU, {name}"] = [fixed(part.get("mean_iou"), 3) for part in each]
    layers = f"Layers only: {outer}. " if results.get("modality", "OCT") == "OCT" else ""
    if layers:
        rows["Mean IoU, layers only"] = [fixed(c.get("mean_iou_layers"), 3) for c in columns.values()]
    rows["Mean Dice"] = [fixed(c.get("mean_dice"), 3) for c in columns.values()]
    rows["Mean IoU, mean over images"] = [fixed(nested(c, "per_image").get("mean_iou"), 3) for c in columns.values()]
    for title, entry in (("mean", "all_mean_um"), ("95th percentile", "all_p95_um")) if layers else ():
        rows[f"Boundary error, {title} (\u00b5m)"] = [
            fixed(nested(c, "boundary").get(entry), 1) for c in columns.values()
        ]
    broken = [number(nested(c, "broken_columns").get("share")) for c in columns.values()]
    if layers:
        rows["A-scans with a broken layer"] = [MISSING if share is None else percent(share) for share in broken]
    if any(nested(c, "trainings") for c in columns.values()):
        rows["Std over trainings"] = [fixed(nested(c, "trainings").get("std"), 3) for c in columns.values()]
    rows[_test_images(results)] = [fixed(c.get("n_test"), 0) for c in columns.values()]
    rows["Test subjects"] = [fixed(c.get("n_subjects"), 0) for c in columns.values()]
    mode = f" UnIACorN without a named mode is {settings['modes'][0]}." if settings.get("modes") else ""
    surfaces = _surfaces(columns, labels)
    return (
        "<p>Table 1. IoU on test images of the unlabelled device. Lower bound: trained on the labelled device only. "
        "Upper bound: trained on true labels of the unlabelled device. UnIACorN: trained on synthetic images; + real: "
        f"and on the labelled device's.{mode}</p>{table(['Label', *head], rows, best, summary=len(labels))}{surfaces}"
        f'<p class="fine">{layers}Best: highest mean IoU, the upper bound aside.{_absent(results)}{_left_out(results)}'
        f"{report_repeat.trainings(settings)}{report_repeat.budget(results)}</p>"
    )


def _test_images(results: dict[str, Any]) -> str:
    """What the row of test images is called: where some have no label map, of how many they are."""
    maps = nested(results, "label_maps").get("test")
    labelled, total = map(number, maps) if isinstance(maps, list | tuple) and len(maps) == 2 else (None, None)
    told = labelled is not None and total is not None and labelled < total
    return f"Test images with a label map, of {fixed(total, 0)}" if told else "Test images"


def _absent(results: dict[str, Any]) -> str:
    """Why a label has no score, or one of 0."""
    names = absent_labels(results)
    why = "without a pixel in the test images: 0 where predicted, else no score, and in no mean"
    return f" {', '.join(names)}: {why}." if names else ""


def _left_out(results: dict[str, Any]) -> str:
    """Why a column says "not computed"."""
    reasons = nested(results, "not_computed").items()
    return "".join(f" {name_of(key)}, not computed: {why}." for key, why in reasons)


def _surfaces(columns: dict[str, dict[str, Any]], labels: Any) -> str:
    """Mean absolute error and 95th percentile of every surface."""
    found = {key: nested(c, "boundary") for key, c in columns.items() if nested(c, "boundary")}
    if not found:
        return ""
    rows = {}
    for i in range(len(labels) - 1):
        cells = [(b["mean_um"][i], b["p95_um"][i]) for b in found.values()]
        rows[f"below {labels[i]}"] = [f"{fixed(mean, 1)} / {fixed(p95, 1)}" for mean, p95 in cells]
    content = table(["Surface", *map(name_of, found)], rows)
    return f"<details><summary>Error of every surface, \u00b5m: mean / 95th percentile</summary>{content}</details>"


def _uncertainties(results: dict[str, Any], values: dict[str, list[float]]) -> str:
    for key, numbers in values.items():
        if not all(number(u) is not None and 0 <= u <= 1 for u in numbers):
            raise ValueError(f"'{key}' of uncertainties.json holds a value outside [0, 1]. Measure it again.")
    text = (
        "<p>How unsure the network trained on the labelled device is about an image (0 sure, 1 guessing). Synthetic "
        "images should lie where the unlabelled device lies.</p>"
    )
    sets = {name_of(key): values[key] for key in ordered(values, SETS) if values[key]}
    aim = values.get("unlabeled")
    caption = "Image uncertainty; every row scaled to its own peak"
    caption += "; dashed: mean of the unlabelled device." if aim else "."
    chart = charts.histograms(sets, sum(aim) / len(aim) if aim else None) if sets else ""
    text += figure(chart, caption) if sets else f"<p>Histogram: {MISSING}</p>"
    summary, fid = nested(results, "uncertainty"), nested(nested(results, "fid"), "unlabeled")
    rows = {}
    for key in ordered({**summary, **fid}, SETS):
        s = nested(summary, key)
        rows[name_of(key)] = [fixed(s.get("mean"), 3), fixed(s.get("std"), 3), fixed(s.get("n"), 0)]
        rows[name_of(key)] += [fixed(fid.get(key), 1)] if fid else []
    head = ["Images", "Mean", "Std", "Number", *(["FID to the unlabelled device"] if fid else [])]
    return text + (table(head, rows) if rows else f"<p>Means: {MISSING}</p>")


def _control(results: dict[str, Any]) -> str:
    keys = [key for key in ordered(results, ("control",)) if key.split("_")[0] == "control" and nested(results, key)]
    found = {name_of(key): nested(results, key) for key in keys}
    text = "<p>Images were asked for with given uncertainties, then measured. On the dashed line both agree.</p>"
    if not found:
        return f"{text}<p>{MISSING}</p>"
    series = {}
    for name, part in found.items():
        entries = ("requested", "measured_mean", "measured_std")
        points = ([number(point.get(key)) for key in entries] for point in part.get("curve") or [])
        known = sorted((x, mean, std or 0.0) for x, mean, std in points if x is not None and mean is not None)
        series |= {name: known} if known else {}
    text += figure(*charts.curve(series), kind="legend") if series else f"<p>Curve: {MISSING}</p>"
    lines = (
        ("Rank correlation", "spearman", 2),
        ("Mean absolute error", "mean_absolute_error", 3),
        ("Label fidelity: mean IoU with the labels asked for", "label_fidelity_mean_iou", 3),
        ("The same judge on real images", "oracle_mean_iou", 3),
    )
    text += table(["", *found], {what: [fixed(p.get(key), n) for p in found.values()] for what, key, n in lines})
    judges = sorted({name_of(str(part["oracle"])) for part in found.values() if part.get("oracle")})
    return text + (f'<p class="fine">Judge of the label fidelity: {", ".join(judges)}.</p>' if judges else "")


def _pictures(run: Path) -> str:
    figures, folder = [], Path("pictures")
    for entry in _read(run, "pictures/captions.json", list):
        told = str(entry.get("file"))
        file, title = unescape(told), str(entry.get("title", told))
        if Path(file).name != file:
            raise ValueError(f"captions.json names '{file}'; expected a file of '{run / folder}' itself, e.g. 'x.png'.")
        image = f"<p>{MISSING}: {told} is missing</p>"
        image = picture(run, folder / file, title) if (run / folder / file).is_file() else image
        figures += [f"<h3>{title}</h3>{figure(image, str(entry.get('caption', '')))}"]
    return "\n".join(figures) or f"<p>{MISSING}</p>"


def _checks(results: dict[str, Any]) -> str:
    words = {True: '<b class="ok">\u2713 OK</b>', False: '<b class="bad">\u2717 outside</b>', None: MISSING}
    rows = image_checks(results)
    items = (f"<li><span>{what}</span><span>{found}</span>{words[ok]}</li>" for what, found, ok in rows)
    return f'<ul class="checks">{"".join(items)}</ul>'


# ---------------------------------------------------------------------- reading


def _read(run: Path, name: str, kind: type) -> Any:
    """Content of a JSON file of the run as HTML; empty where there is none."""
    path = within(run, name)
    try:
        content = json.loads(read_text(path)) if path.is_file() else kind()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is not valid JSON ({error}). Write it again.") from error
    if not isinstance(content, kind):
        raise ValueError(f"'{path}' holds a {type(content).__name__}; expected a {kind.__name__}.")
    return as_html(content)


def _setups(segmentation: dict[str, Any]) -> list[str]:
    """The core, then the best first: a wide table shows its first columns only."""
    others = [key for key in segmentation if key not in CORE]
    best = sorted(others, key=lambda key: -(_score(segmentation, key) or 0.0))
    return [*CORE, *best] if segmentation else []


def _score(segmentation: dict[str, Any], setup: str) -> float | None:
    return number(nested(segmentation, setup).get("mean_iou"))


def _interval(scores: dict[str, Any]) -> tuple[float, float] | None:
    low, high = map(number, scores.get("ci95") or (None, None))
    return None if low is None or high is None else (low, high)
