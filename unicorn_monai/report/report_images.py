"""Sections of the report about sets of images: fusion weights, distances (Table 2), and the search for copies."""

from __future__ import annotations

from html import unescape
from pathlib import Path
from typing import Any

from unicorn_monai.report.markup import MISSING, figure, fixed, name_of, nested, ordered, percent, picture, table, told

COPIES = {
    "exact": "unchanged",
    "noise": "with noise",
    "blur": "blurred",
    "contrast": "of other contrast",
    "mirrored": "mirrored",
    "shifted": "shifted",
}


def weights(results: dict[str, Any], run: Path) -> str:
    """Control and label fidelity as functions of the fusion weight, with a picture for each weight."""
    text = (
        "<p>The same label maps and noise at several weights of the Uncertainty-ControlNet; the uncertainties are "
        "drawn from the unlabelled device's. Distance: of measured and requested uncertainties (Wasserstein). "
        "Consistency: how well a network without labels of the unlabelled device (the one of the lower bound with "
        "augmentation) finds the label map, corrected for chance. Label fidelity: mean IoU of the label map and what a "
        "network trained with such labels sees.</p>"
    )
    measured = nested(results, "weights")
    found = {name: value for name, value in measured.items() if value.get("table")}
    if not found:
        needs = f"needs the network of the set-up \u201c{name_of('augmentation')}\u201d."
        why = next((told(value["reason"]) for value in measured.values() if value.get("reason")), needs)
        return f"{text}<p>{MISSING}: {why}</p>"
    columns = (
        ("Requested", "requested_mean", 3),
        ("Measured", "measured_mean", 3),
        ("Rank corr.", "spearman", 2),
        ("Distance", "distance", 3),
        ("Consistency", "label_consistency", 2),
        ("Label fidelity", "oracle_mean_iou", 3),
    )
    for name, value in found.items():
        rows = {f"{row['weight']:g}": [fixed(row.get(key), n) for _, key, n in columns] for row in value["table"]}
        text += f"<h3>{name_of(name)}</h3>" + table(["Weight", *(head for head, _, _ in columns)], rows)
        judged = (
            "" if value.get("oracle") else " Label fidelity: no labels of the unlabelled device to train a judge with."
        )
        text += f'<p class="fine">Without labels one would take {told(value.get("reason")).rstrip(".")}.{judged}</p>'
        pictures = ""
        for row in value["table"]:
            file = Path("pictures", unescape(f"weights_{name}"), unescape(str(row.get("picture"))))
            if row.get("picture") and (run / file).is_file():
                pictures += figure(picture(run, file, f"Weight {row['weight']:g}"), f"Weight {row['weight']:g}.")
        text += (
            f"<details><summary>Label maps and images at each weight</summary>{pictures}</details>" if pictures else ""
        )
    return text


def distances(results: dict[str, Any]) -> str:
    """Table 2: FID, and KID in thousandths, between the sets of images."""
    fid = nested(results, "fid")
    text = (
        "<p>Table 2. Frechet distance (FID) between sets of training images, and kernel distance (KID) times 1000 "
        "below it. Small is alike. A real set with itself: two halves of other eyes, the least to expect. These "
        "numbers describe; they do not say what a network trained on the images is worth.</p>"
    )
    names = [key for key in fid if isinstance(fid[key], dict) and key not in ("kid", "kid_std")]
    if not names:
        why = f": {told(fid['not_computed'])}" if fid.get("not_computed") else ""
        return f"{text}<p>{MISSING}{why}</p>"
    real = [name for name in ("labeled", "unlabeled") if name in names]
    sets = ordered(names, real)
    text += _pairs(fid, sets, real)
    if len(sets) > len(real):
        text += f"<details><summary>Every pair of sets</summary>{_pairs(fid, sets, sets)}</details>"
    return (
        text
        + f'<p class="fine">{fixed(fid.get("n"), 0)} images of each set. Features: {told(fid.get("features"))}.</p>'
    )


def _pairs(fid: dict[str, Any], sets: list[str], others: list[str]) -> str:
    """FID, and KID below it, of every set to each of the others; a synthetic set with itself has neither."""
    kids, stds = nested(fid, "kid"), nested(fid, "kid_std")
    rows: dict[str, list[str]] = {name_of(name): [] for name in sets}
    for name in sets:
        for other in others:
            kid, std = (nested(part, name).get(other) for part in (kids, stds))
            known = kid is not None and std is not None
            below = f"<br><small>{fixed(1000 * kid, 1)} \u00b1 {fixed(1000 * std, 1)}</small>" if known else ""
            itself = name == other and other not in nested(fid, name)
            rows[name_of(name)].append("" if itself else fixed(nested(fid, name).get(other), 2) + below)
    return table(["Images", *(f"to {name_of(other)}" for other in others)], rows)


def copies(results: dict[str, Any], run: Path) -> str:
    """The search for copies of training images: verdict, shares with intervals, what it would find, closest pairs."""
    audit = nested(results, "memorization")
    text = (
        "<p>Does a synthetic image copy a training image? Images made from one label map share its anatomy; compared "
        "is what the label map does not explain, the speckle. Too near is nearer than 99 % of the synthetic images are "
        "to held-out real images, which no generative network was trained on.</p>"
    )
    if not audit.get("sets"):
        why = f": {told(audit['not_computed'])}" if audit.get("not_computed") else ""
        return f"{text}<p>{MISSING}{why}</p>"
    sets, planted, flagged = nested(audit, "sets"), nested(audit, "planted"), audit.get("flagged") or []
    share = sets["synthetic"]["residual"]["99"]
    text += (
        f"<p><strong>{len(flagged)} of {share['n']} synthetic images are flagged</strong> "
        f"({percent(share['share'])}, 95\u00a0% interval {_interval(share)}); about "
        f"{fixed(audit.get('expected_by_chance'), 0)} are expected where nothing is copied.</p>"
    )
    rows = {}
    for key, name in (
        ("synthetic", "Synthetic"),
        ("control", "Synthetic, of held-out label maps"),
        ("held_out", "Real, held out"),
    ):
        if key in sets:
            rows[name] = [_share(sets[key][q]["99"]) for q in ("residual", "embedding")]
    rows |= {
        f"Planted copies, {what}": [_share(planted[k][q]["99"]) for q in ("residual", "embedding")]
        for k, what in COPIES.items()
        if k in planted
    }
    text += table(["Nearer to training images than that", "by speckle", "by features"], rows) + _real_thresholds(audit)
    closest = Path("memorization", "closest.png")
    if (run / closest).is_file():
        caption = "The closest pairs: synthetic above, training image below it, their difference at the bottom."
        text += figure(picture(run, closest, "Closest pairs"), caption)
    return text + (
        f'<p class="fine">{fixed(audit.get("n_training"), 0)} training images searched. Nothing found does not make a '
        "data set private.</p>"
    )


def _real_thresholds(audit: dict[str, Any]) -> str:
    """The threshold in use beside the one that held-out real images would give."""
    used, real = nested(nested(audit, "thresholds"), "residual").get("99"), nested(audit, "held_out_thresholds")
    if not real:
        return ""
    share = real["synthetic"]["residual"]["99"]
    return (
        f'<p class="fine">Too near, by speckle: a correlation above {fixed(used, 3)}. Held-out real images against '
        f"training images would give {fixed(real['residual']['99'], 3)}, above which {share['count']} of {share['n']} "
        "synthetic images lie; how much the speckle of strangers correlates depends on its texture, which is why it is "
        "not used.</p>"
    )


def differences(results: dict[str, Any]) -> str:
    """Paired differences of the mean IoU, each set-up against each reference on the same subjects."""
    found = {key: value for key, value in nested(results, "differences").items() if value}
    if not found:
        return f"<p>{MISSING}</p>"
    setups = ordered(dict.fromkeys(s for values in found.values() for s in values), ())
    rows = {
        name_of(setup): [
            _difference(values.get(setup)) if setup != reference else "" for reference, values in found.items()
        ]
        for setup in setups
    }
    text = "<p>Mean IoU of a set-up minus that of a reference on the same eyes, with 95\u00a0% interval.</p>"
    return text + table(["Set-up", *(f"minus {name_of(reference)}" for reference in found)], rows)


def _difference(value: dict[str, Any] | None) -> str:
    if not value:
        return MISSING
    low, high = value.get("ci95") or (None, None)
    sign = "+" if value["difference"] > 0 else ""
    ends = f"<br><small>{fixed(low, 3)} to {fixed(high, 3)}</small>" if low is not None else ""
    return sign + fixed(value["difference"], 3) + ends


def _share(value: dict[str, Any]) -> str:
    return f"{value['count']} of {value['n']}<br><small>{_interval(value)}</small>"


def _interval(value: dict[str, Any]) -> str:
    return " to ".join(percent(end) for end in value["ci95"])
