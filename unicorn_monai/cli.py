"""The command line, ``unicorn-monai COMMAND``: from a demo to the check of a bundle.

Exit status: 0 done, 1 failed (one paragraph, no traceback unless ``--debug``), 2 bad usage, 3 not finite (images,
latents, losses, weights, outputs), 130 stopped by Ctrl-C, 143 stopped by SIGTERM with the state saved.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from unicorn_monai.report.terminal import score_table
from unicorn_monai.system.console import Commands, log_to_console
from unicorn_monai.system.intake import finite, read_text
from unicorn_monai.system.terminal import LINES, printable, say

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="UnIACorN: from labelled images of one device and unlabelled images of another to a segmentation network that "
    "works on the second. Exit status: 0 done, 1 failed, 2 bad usage, 3 NaN or infinity in images, latents, losses, "
    "weights or outputs, 130 stopped by Ctrl-C, 143 by SIGTERM (go on with --resume).",
)
console = Console(stderr=True)


def tell(text: str, style: str | None = None) -> None:
    """A message on standard error."""
    console.print(printable(text, LINES), style=style, markup=False, soft_wrap=True)


Output = Annotated[Path, typer.Option("--output", "-o", help="Run folder.")]
Seed = Annotated[int, typer.Option(help="Seed of everything.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda:0, ...; the first GPU by default.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run folder; finished stages are skipped.")]
Force = Annotated[bool, typer.Option("--force", help="Go on though the autoencoder does not keep the images.")]
Weight = Annotated[str | None, typer.Option(help="Weight of the Uncertainty-ControlNet, a number or auto.")]

# Trainings of the quick demo, in epochs of a fixed number of iterations (`iterations_per_epoch` of the preset): two
# thirds of what the experiments of the documents use at this size.
BRIEF: dict[str, dict[str, dict[str, int]]] = {
    "retinal_unet": {"train.json": {"max_epochs": 15}},
    "latent_diffusion": {"train_autoencoder.json": {"max_epochs": 9}, "train_diffusion.json": {"max_epochs": 26}},
    "uncertainty_controlnet": {"train.json": {"max_epochs": 12}},
    "semantic_controlnet": {"train.json": {"max_epochs": 12}},
}


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Options of every command."""
    os.environ["UNICORN_DEBUG"] = "1" if debug else ""
    log_to_console()


@app.command()
def demo(
    output: Output = Path("runs/demo"),
    preset: Annotated[
        str, typer.Option(help="quick: 64 x 64, for a CPU. full: 256 x 256, with all baselines, for a GPU.")
    ] = "quick",
    size: Annotated[
        int | None, typer.Option(help="64 or 256 pixels, with networks to match; that of the preset by default.")
    ] = None,
    scene: Annotated[
        str, typer.Option(help="Which simulated world: oct (two devices) or street (clear and bad weather).")
    ] = "oct",
    seed: Seed = 0,
    device: Device = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Simulate two OCT devices or streets in clear and bad weather, run the whole experiment, write the report."""
    if scene not in ("oct", "street"):
        raise typer.BadParameter(f"unknown scene '{scene}'; expected: oct, street")
    if preset not in ("quick", "full"):
        raise typer.BadParameter(f"unknown preset '{preset}'; expected: quick, full")
    if size not in (None, 64, 256):
        raise typer.BadParameter(f"--size is {size}; expected 64 or 256, the sizes there are networks for")
    small = preset == "quick" if size is None else size == 64
    from unicorn_monai.data.journal import begun
    from unicorn_monai.report.trainings import AUGMENTED, BASELINES, BENT, SEMANTIC_ONLY

    folders = {name: output / "data" / name for name in ("labeled", "unlabeled")}
    for name, folder in folders.items():
        if begun(folder) or not (folder / "dataset.json").is_file():
            count, what = (_simulate_oct if scene == "oct" else _simulate_street)(name, folder, small, seed)
            tell(f"simulated {count} {what}: {folder}")
    baselines = [*(BASELINES if preset == "full" else AUGMENTED)]
    if scene == "street":
        baselines = [name for name in baselines if name not in BENT]
    _run(
        {
            "labeled": str(folders["labeled"]),
            "unlabeled": str(folders["unlabeled"]),
            "output": str(output),
            "preset": "quick" if small else "full",  # of the networks
            "seed": seed,
            "device": device,
            "baselines": [*baselines, *([SEMANTIC_ONLY] if scene == "street" else [])],
            "trainings": 3 if preset == "full" else 1,
            "words": scene == "street",
            "overrides": BRIEF if scene == "oct" and preset == "quick" and small else None,
        },
        resume,
        force,
    )


def _simulate_oct(name: str, folder: Path, small: bool, seed: int) -> tuple[int, str]:
    size, subjects, look = (64, 60, "demo") if small else (256, 150, "full")
    kind = "spectralis" if name == "labeled" else "home_oct"
    _data_prep("phantom").write_phantom(folder, kind, subjects, 10, size, seed, (0.667, 0.1, 0.233), preset=look)
    return subjects * 10, f"B-scans of {size} x {size}"


def _simulate_street(name: str, folder: Path, small: bool, seed: int) -> tuple[int, str]:
    size, drives, frames = ((64, 64), 60, 10) if small else ((128, 256), 150, 20)
    streets = _data_prep("street_phantom")
    weather = ["clear"] if name == "labeled" else list(streets.BAD_WEATHER)
    streets.write_streets(folder, weather, drives, frames, size, seed, (0.667, 0.1, 0.233))
    return drives * frames, f"street scenes of {size[0]} x {size[1]}"


@app.command()
def experiment(
    labeled: Annotated[Path | None, typer.Option(help="Data set of the labelled domain.")] = None,
    unlabeled: Annotated[Path | None, typer.Option(help="Data set of the unlabelled domain.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder; runs/experiment by default.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="JSON file with settings; options given here win.")] = None,
    preset: Annotated[str | None, typer.Option(help="quick or full: size of the networks, length of training.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything.")] = None,
    device: Device = None,
    weight: Weight = None,
    samples_per_label: Annotated[int | None, typer.Option(min=1, help="Synthetic images of each label map.")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="2 or more: measure the uncertainties anew and go on.")
    ] = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Run the whole method on two data sets of your own."""
    if preset not in (None, "quick", "full"):
        raise typer.BadParameter(f"unknown preset '{preset}'; expected: quick, full")
    settings: dict[str, Any] = {"output": "runs/experiment"}
    if config is not None:
        try:
            settings |= json.loads(read_text(config))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"Cannot read the settings '{config}' ({error}). Expected a JSON object.") from error
    given = {"labeled": labeled, "unlabeled": unlabeled, "output": output, "preset": preset, "seed": seed}
    given |= {"device": device, "samples_per_label": samples_per_label, "rounds": rounds}
    settings |= {k: str(v) if isinstance(v, Path) else v for k, v in given.items() if v is not None}
    if weight is not None:
        settings |= _weights(settings, weight)
    missing = [name for name in ("labeled", "unlabeled") if name not in settings]
    if missing:
        raise typer.BadParameter(f"missing --{' and --'.join(missing)}, on the command line or in --config")
    from unicorn_monai.data.layout import read_header

    for folder in (labeled, unlabeled):  # one that is not there is told before PyTorch is loaded
        if folder is not None:
            read_header(folder)
    _run(settings, resume, force)


@app.command()
def synthesize(
    run: Annotated[Path, typer.Option(help="Folder of a finished run.")],
    count: Annotated[int, typer.Option(help="Training images to make.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new data set, a folder or a URL.")],
    weight: Weight = None,
    seed: Seed = 1,
    device: Device = None,
) -> None:
    """Make more labelled synthetic images with the networks of a finished run."""
    from unicorn_monai.bundle.run import run_bundle
    from unicorn_monai.data.remote import absolute
    from unicorn_monai.experiment.settings import bundle_places, settings_of
    from unicorn_monai.synthesis.writer import outcome

    settings, chosen = settings_of(run)
    mode = settings.modes[0]
    overrides = {} if device is None else {"device": device}
    given = weight if weight in (None, "auto") else _number(weight)
    run_bundle(
        run.resolve() / "bundles" / "synthesis" / "configs" / "inference.json",
        "infer",
        **settings.sampling(mode),
        **bundle_places(run.resolve() / "bundles", settings),
        output_dir=absolute(output),
        count=count,
        seed=seed,
        uncertainty_weight=settings.weight_used(mode, chosen, given=given),
        **overrides,
    )
    tell(outcome(absolute(output)))


@app.command()
def clean(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new data set.")],
) -> None:
    """Write the synthetic data set of a run without the images that the search for copies flagged."""
    from unicorn_monai.data.layout import inside
    from unicorn_monai.evaluation.copies import write_without
    from unicorn_monai.system.records import read_flagged

    flagged = read_flagged(run)
    left_out = write_without(inside(run, "synthetic", f"'{run / 'synthetic'}'"), output, flagged)
    tell(f"{output}/dataset.json: {left_out} image(s) left out")


@app.command()
def label(
    studies: Annotated[Path, typer.Option(help="Folder of the images to label; labels are written into it.")],
    run: Annotated[Path | None, typer.Option(help="Folder of a finished run; needed the first time.")] = None,
    setup: Annotated[str | None, typer.Option(help="Segmentation weights to start with, e.g. lower_bound.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the server.")] = 8000,
    folder: Annotated[
        Path | None, typer.Option("--app", help="Folder of the app; one for each studies by default.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Another name of the server, as a proxy's; repeatable.")
    ] = None,
) -> None:
    """Label images in a viewer, most uncertain first: a MONAI Label server with the networks of a finished run."""
    from unicorn_monai.monailabel.launch import label_studies

    label_studies(studies, run, setup, host, port, folder, names or ())


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Write the report of a finished run again."""
    from unicorn_monai.report.report import write_report

    tell(str(write_report(run)))


@app.command()
def summary(runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, e.g. one per seed.")]) -> None:
    """Mean and spread over several finished runs, as Markdown tables."""
    from unicorn_monai.report.tables import summarise

    say(summarise(runs), LINES)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def prepare(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="heidelberg, dicom, volumes, image_folder, ...")],
) -> None:
    """Convert scans to the data set format: = python -m data_prep.SOURCE INPUT OUTPUT; --help lists the sources."""
    if find_spec("data_prep") is None:
        raise typer.BadParameter("the data preparation is not installed; install the wheel, or run in a checkout")
    from data_prep import SOURCES, overview

    if source in ("--help", "-h"):
        say(overview(), LINES)
    elif source not in SOURCES:
        raise typer.BadParameter(f"unknown source '{source}'; expected one of {', '.join(SOURCES)}")
    else:
        raise typer.Exit(_data_prep(source).main(context.args))


@app.command()
def check(
    dataset: Annotated[Path, typer.Argument(help="Data set folder.")],
    labels: Annotated[bool, typer.Option("--labels", help="Every image must have a label map.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")] = False,
) -> None:
    """Look for what would poison an experiment: = python -m data_prep.check DATASET."""
    raise typer.Exit(
        _data_prep("check").main([str(dataset), *(["--labels"] if labels else []), *(["--json"] if as_json else [])])
    )


def _weights(settings: dict[str, Any], weight: str) -> dict[str, Any]:
    """What ``--weight`` sets: a number is that of the first mode, "auto" holds for every mode and needs a judge."""
    if weight != "auto":
        first = next(iter(settings.get("modes") or ["compositional"]))
        return {"paper_weight" if first == "paper" else "uncertainty_weight": _number(weight)}
    baselines = list(dict.fromkeys([*settings.get("baselines", []), "augmentation"]))
    return {"uncertainty_weight": "auto", "paper_weight": "auto", "baselines": baselines}


def _number(weight: float | str) -> float:
    try:
        return finite(weight)
    except ValueError:
        raise ValueError(f"--weight is '{weight}'; expected a finite number, or auto.") from None


@app.command()
def seal(bundle: Annotated[Path, typer.Argument(help="Folder of a bundle to be given away.")]) -> None:
    """Write SHA256SUMS of a bundle and tell its sha256, for `verify`."""
    from unicorn_monai.bundle.verify import SUMS
    from unicorn_monai.bundle.verify import seal as write_sums

    say(f"{write_sums(bundle)}  {bundle / SUMS}")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    sums_sha256: Annotated[str | None, typer.Option(help="Sha256 of SHA256SUMS, as its author tells it.")] = None,
) -> None:
    """Look a bundle over before anything in it is parsed or run: checksums, links, code, weights."""
    from unicorn_monai.bundle.verify import findings

    found = findings(bundle, sums_sha256)
    for line in found:
        say(line)
    tell(f"{bundle}: {len(found) or 'no'} finding{'' if len(found) == 1 else 's'}")
    raise typer.Exit(1 if found else 0)


@app.command("import-weights")
def import_weights(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint trained with monai-generative 0.2.3, or folder of a trained SegFormer.")
    ],
    bundle: Annotated[Path, typer.Option(help="Bundle whose inference.json defines the same network.")],
    network: Annotated[str, typer.Option(help="Entry of inference.json.")] = "network_def",
    weights: Annotated[str, typer.Option(help="File under models to write.")] = "model.pt",
    entry: Annotated[str | None, typer.Option(help="Name of the state dictionary in the checkpoint.")] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="What belongs to the weights, e.g. scale_factor=0.9; repeatable.")
    ] = None,
) -> None:
    """Read weights of monai-generative, or a SegFormer of transformers, into a bundle, with the same outputs."""
    if checkpoint.is_dir():
        from unicorn_monai.segmentation.segformer import import_pretrained

        tell(str(import_pretrained(checkpoint, bundle, weights)))
        return
    from unicorn_monai.backbones.legacy import import_weights as read_in

    metadata: dict[str, Any] = {}
    for text in values or []:
        name, _, value = text.partition("=")
        try:
            metadata[name] = json.loads(value)
        except ValueError as error:
            raise typer.BadParameter(f"--set {text}: expected NAME=VALUE with a JSON value ({error})") from error
    tell(str(read_in(checkpoint, bundle, network, weights, entry, **metadata)))


def _data_prep(name: str):
    """A module of data_prep, found by name at run time: the library does not depend on it."""
    return import_module(f"data_prep.{name}")


def _run(settings: dict[str, Any], resume: bool, force: bool) -> None:
    from unicorn_monai.experiment.experiment import Experiment
    from unicorn_monai.experiment.settings import Settings

    run = Experiment(Settings.from_dict(settings), resume, force=force)
    try:
        report = run.run()
    except KeyboardInterrupt:
        tell("interrupted; go on with --resume", "yellow")
        raise typer.Exit(130) from None
    Console().print(score_table(run.results))
    say(f"report: {report}")


def main() -> None:
    """Run the command line; turn failures into one paragraph and exit status 1."""
    try:
        app()
    except Exception as error:
        from unicorn_monai.system.errors import NOT_FINITE, NotFinite, explain, root_cause

        if os.environ.get("UNICORN_DEBUG"):
            raise
        cause = root_cause(error)
        tell(f"error: {explain(cause)}", "red")
        sys.exit(NOT_FINITE if isinstance(cause, NotFinite) else 1)


if __name__ == "__main__":
    main()
