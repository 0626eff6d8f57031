"""The command line, ``unicorn-monai COMMAND``: from a demo to the check of a bundle.

Exit status: 0 done, 1 failed (one paragraph, no traceback unless ``--debug``), 2 bad usage, 3 not finite (images,
latents, losses, weights, outputs), 130 stopped by Ctrl-C, 143 stopped by SIGTERM with the state saved.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module  # of data_prep at run time: the library does not depend on it
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from unicorn_monai.commands import benchmarking, finished
from unicorn_monai.system.console import (
    BAD_USAGE,
    BadUsage,
    Device,
    Seed,
    Weight,
    Whole,
    command_line,
    described,
    log_to_console,
    run_commands,
    tell,
)
from unicorn_monai.system.errors import tell_root_cause_last
from unicorn_monai.system.terminal import say

app = command_line(
    "unicorn-monai",
    "UnIACorN: from labelled images of one device and unlabelled images of another to a segmentation network that "
    "works on the second. Exit status: 0 done, 1 failed, 2 bad usage, 3 NaN or infinity in images, latents, losses, "
    "weights or outputs, 130 stopped by Ctrl-C, 143 by SIGTERM (go on with --resume).",
)
for command in (benchmarking.benchmark, *finished.COMMANDS):
    app.command(command)

Preset = Literal["quick", "full"]
AtLeastOne = Annotated[Whole, Parameter(validator=Number(gte=1))]
Resume = Annotated[bool, described("Go on with a run folder; finished stages are skipped.")]
Force = Annotated[bool, described("Go on though autoencoder or generator fail their check.")]
Rest = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]
app.meta.help_flags, app.meta.end_of_options_delimiter = [], ""  # are left to the command


@app.meta.default
def options(*words: Rest, debug: Annotated[bool, described("Show tracebacks.")] = False) -> int | None:
    """Options of every command."""
    os.environ["UNICORN_DEBUG"] = "1" if debug else ""
    log_to_console()
    if not words:
        app.help_print()
        return BAD_USAGE
    return app(words)


@app.command
def demo(
    *,
    output: Annotated[Path, described("Run folder.", "--output", "-o")] = Path("runs/demo"),
    preset: Annotated[Preset, described("64 x 64, for a CPU, or 256 x 256, with all baselines, for a GPU.")] = "quick",
    size: Annotated[Whole | None, described("64 or 256 pixels, with networks to match; default: as preset.")] = None,
    scene: Annotated[Literal["oct", "street"], described("Two devices, or clear and bad weather.")] = "oct",
    seed: Seed = 0,
    device: Device = None,
    resume: Resume = False,
    force: Force = False,
) -> int:
    """Simulate two OCT devices or streets in clear and bad weather, run the whole experiment, write the report."""
    if size not in (None, 64, 256):
        raise BadUsage(f"--size is {size}; expected 64 or 256, the sizes there are networks for")
    small = preset == "quick" if size is None else size == 64
    simulated = import_module("data_prep.demo").Demo(output, scene == "street", preset == "full", small, seed)
    for sentence in simulated.simulate():
        tell(sentence)
    return _run(simulated.settings(device), resume, force)


@app.command
def experiment(
    *,
    labeled: Annotated[Path | None, described("Data set of the labelled domain.")] = None,
    unlabeled: Annotated[Path | None, described("Data set of the unlabelled domain.")] = None,
    output: Annotated[Path | None, described("Run folder; runs/experiment by default.", "--output", "-o")] = None,
    config: Annotated[Path | None, described("JSON file with settings; options given here win.")] = None,
    preset: Annotated[Preset | None, described("Size of the networks, length of training.")] = None,
    seed: Annotated[Whole | None, described("Seed of everything.")] = None,
    device: Device = None,
    weight: Weight = None,
    samples_per_label: Annotated[AtLeastOne | None, described("Synthetic images of each label map, 1 or more.")] = None,
    rounds: Annotated[
        AtLeastOne | None, described("2 or more, of the mode compositional: measure the uncertainties anew and go on.")
    ] = None,
    resume: Resume = False,
    force: Force = False,
) -> int:
    """Run the whole method on two data sets of your own."""
    from unicorn_monai.commands.asked import settings_asked

    given = {"labeled": labeled, "unlabeled": unlabeled, "output": output, "preset": preset, "seed": seed}
    given |= {"device": device, "samples_per_label": samples_per_label, "rounds": rounds}
    settings = settings_asked(config, given, weight)
    if missing := [name for name in ("labeled", "unlabeled") if name not in settings]:
        raise BadUsage(f"missing --{' and --'.join(missing)}, on the command line or in --config")
    from unicorn_monai.data.layout import read_header

    for folder in (labeled, unlabeled):  # one that is not there is told before PyTorch is loaded
        if folder is not None:
            read_header(folder)
    return _run(settings, resume, force)


@app.command
def label(
    *,
    studies: Annotated[Path, described("Folder of the images to label; labels are written into it.")],
    run: Annotated[Path | None, described("Folder of a finished run; needed the first time.")] = None,
    network: Annotated[
        str | None, described("Set-up whose network to serve; the recommended one by default.", "--network", "--setup")
    ] = None,
    host: Annotated[str, described("Address to listen on.")] = "127.0.0.1",
    port: Annotated[Whole, described("Port of the server.")] = 8000,
    folder: Annotated[Path | None, described("Folder of the app; one for each studies by default.", "--app")] = None,
    names: Annotated[
        list[str] | None, described("Another name of the server, as a proxy's; repeatable.", "--allow-host")
    ] = None,
) -> None:
    """Label images in a viewer, most uncertain first: a MONAI Label server with the networks of a finished run."""
    from unicorn_monai.monailabel.launch import label_studies

    label_studies(studies, run, network, host, port, folder, names or ())


@app.command(help_flags=[], end_of_options_delimiter="")
def prepare(*words: Rest) -> int:
    """Convert scans to the data set format: = python -m data_prep.SOURCE INPUT OUTPUT; --help lists the sources."""
    if find_spec("data_prep") is None:
        raise BadUsage("the data preparation is not installed; install the wheel, or run in a checkout")
    return import_module("data_prep").prepare(words, "unicorn-monai prepare")


@app.command
def check(
    dataset: Annotated[Path, described("Data set folder.")],
    /,
    *,
    labels: Annotated[bool, described("Every image must have a label map.")] = False,
    as_json: Annotated[bool, described("One JSON document instead of lines.", "--json")] = False,
) -> int:
    """Look for what would poison an experiment: = python -m data_prep.check DATASET."""
    words = [str(dataset), *["--labels"] * labels, *["--json"] * as_json]
    return import_module("data_prep.check").main(words, "unicorn-monai check")


def _run(settings: dict[str, Any], resume: bool, force: bool) -> int:
    from unicorn_monai.experiment.experiment import Experiment
    from unicorn_monai.experiment.settings import Settings
    from unicorn_monai.report.tables import score_table

    run = Experiment(Settings.from_dict(settings), resume, force=force)
    try:
        report = run.run()
    except KeyboardInterrupt:
        tell("interrupted; go on with --resume", "yellow")
        return 130
    Console().print(score_table(run.results))
    say(f"report: {report}")
    return 0


def main() -> None:
    """Run the command line; turn failures into one paragraph and exit status 1."""
    try:
        sys.exit(run_commands(app))
    except Exception as error:
        from unicorn_monai.system.errors import NOT_FINITE, NotFinite, explain, root_cause

        if os.environ.get("UNICORN_DEBUG"):
            tell_root_cause_last()
            raise
        cause = root_cause(error)
        tell(f"error: {explain(cause)}", "red")
        sys.exit(NOT_FINITE if isinstance(cause, NotFinite) else 1)


if __name__ == "__main__":
    main()
