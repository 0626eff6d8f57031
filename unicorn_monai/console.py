"""What the commands show, and how they end when nobody reads it any more."""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from unicorn_monai.evaluation.markup import absent_labels
from unicorn_monai.terminal import PrintableFormatter, guard_terminal, printable

CLOSED_PIPE = 141  # what a shell reports of a program that SIGPIPE has ended
logger = logging.getLogger("unicorn_monai")


def log_to_console() -> None:
    """Show the package's messages on standard error: in colours on a terminal, else as plain lines with the time."""
    terminal = sys.stderr.isatty()
    handler: logging.Handler = logging.StreamHandler()
    if terminal:
        handler = RichHandler(console=Console(stderr=True), show_path=False, show_level=False, markup=False)
    handler.setFormatter(PrintableFormatter("%(message)s" if terminal else "%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    guard_terminal()


@contextmanager
def unsaid() -> Iterator[None]:
    """Keep the package's messages to itself, but warnings: they have been shown already."""
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """End quietly, with status 141, when whoever reads the output has gone, as in ``... | head``.

    A signal would do so for every pipe and socket of the process; a broken one of another kind stays an error.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        gone = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not gone:
            raise
        for stream in gone:  # what is left in it is written to nowhere when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise SystemExit(CLOSED_PIPE) from None


def _has_no_reader(stream: TextIO) -> bool:
    try:
        pipe = select.poll()
        pipe.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in pipe.poll(0))
    except (OSError, ValueError):  # no file, or closed
        return False


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


class Commands(TyperGroup):
    """The commands of a command line; each ends quietly when nobody reads its output any more."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with ends_with_its_reader():
            return super().invoke(ctx)
