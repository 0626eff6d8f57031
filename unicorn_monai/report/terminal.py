"""The scores of a finished run, for a terminal."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from unicorn_monai.report.markup import absent_labels
from unicorn_monai.system.terminal import printable


def score_table(results: dict[str, Any]) -> Table:
    """The scores of a finished run, for a terminal."""
    table = Table(title="Mean IoU on the unlabelled domain")
    layers = results.get("modality", "OCT") == "OCT"
    for column in ("trained on", "all labels", *(["layers"] if layers else []), "95 % interval"):
        table.add_column(column)
    for name, scores in results["segmentation"].items():
        interval = scores["ci95"]
        text = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "not computed"
        means = [scores["mean_iou"], *([scores["mean_iou_layers"]] if layers else [])]
        table.add_row(
            escape(printable(name)), *("not computed" if mean is None else f"{mean:.3f}" for mean in means), text
        )
    missing = absent_labels(results)
    notes = [f"without a pixel in the test images: {', '.join(missing)}"] if missing else []
    labelled, total = results.get("label_maps", {}).get("test", (0, 0))
    if labelled < total:
        scores_of = f"scores are of the other {labelled}" if labelled else "nothing can be scored"
        notes.append(
            f"{total - labelled} of {total} test images of the unlabelled domain have no label map: {scores_of}"
        )
    if results.get("forced"):
        notes.append("forced: the autoencoder does not keep the images, on which everything after it was trained")
    table.caption = escape(printable("; ".join(notes))) or None
    return table
