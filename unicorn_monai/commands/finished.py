"""The commands on what is finished: a run, whose report or images are made anew, or a bundle that travels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from unicorn_monai.system.console import BadUsage, Device, Run, Seed, Weight, Whole, described, tell
from unicorn_monai.system.terminal import LINES, say


def synthesize(
    *,
    run: Run,
    count: Annotated[Whole, described("Training images to make; validation images come on top.")],
    output: Annotated[Path, described("The new data set, a folder or a URL.", "--output", "-o")],
    weight: Weight = None,
    seed: Seed = 1,
    device: Device = None,
) -> None:
    """Make more labelled synthetic images with the networks of a finished run."""
    from unicorn_monai.bundle.installation import drawing
    from unicorn_monai.bundle.run import run_bundle
    from unicorn_monai.commands.asked import weight_asked
    from unicorn_monai.data.remote import absolute
    from unicorn_monai.experiment.settings import bundle_places, settings_of
    from unicorn_monai.synthesis.writer import outcome

    (settings, chosen), bundles = settings_of(run), run.resolve() / "bundles"
    mode, given = settings.main, weight if weight in (None, "auto") else weight_asked(weight)
    own = settings.sampling(mode) | bundle_places(bundles, settings) | ({} if device is None else {"device": device})
    own |= {"output_dir": absolute(output), "count": count, "seed": seed}
    own["uncertainty_weight"] = settings.weight_used(mode, chosen, given=given)
    run_bundle(bundles / drawing(mode) / "configs" / "inference.json", "infer", **own)
    tell(outcome(absolute(output)))


def clean(run: Run, /, *, output: Annotated[Path, described("The new data set.", "--output", "-o")]) -> None:
    """Write the synthetic data set of a run without the images that the search for copies flagged."""
    from unicorn_monai.data.layout import inside
    from unicorn_monai.evaluation.copies import write_without
    from unicorn_monai.system.records import read_flagged

    flagged = read_flagged(run)
    left_out = write_without(inside(run, "synthetic", f"'{run / 'synthetic'}'"), output, flagged)
    tell(f"{output}/dataset.json: {left_out} image(s) left out")


def report(run: Run, /) -> None:
    """Write the report of a finished run again."""
    from unicorn_monai.report.report import write_report

    tell(str(write_report(run)))


def summary(
    run: Annotated[Path, described("Folders of finished runs, e.g. one per seed.")],
    /,
    *more: Path,
    trim: Annotated[
        Path | None, described("Write what documents need of one run into this file, e.g. to commit it.")
    ] = None,
    write: Annotated[
        bool, described("The paths are Markdown documents: write the tables between their markers.")
    ] = False,
) -> None:
    """Mean and spread over several finished runs, as Markdown tables."""
    from unicorn_monai.experiment.settings import Settings
    from unicorn_monai.report import documents, tables, trimming

    if trim is not None and write:
        raise BadUsage("--trim takes one run, and not --write with it")
    paths, defaults = [run, *more], vars(Settings("labeled", "unlabeled", "output"))
    done = trimming.trim(paths, trim, defaults) if trim else documents.write_documents(paths) if write else None
    say(tables.summarise(paths) if done is None else done, LINES)


def seal(bundle: Annotated[Path, described("Folder of a bundle to be given away.")], /) -> None:
    """Write SHA256SUMS of a bundle and tell its sha256, for `verify`."""
    from unicorn_monai.bundle.verify import SUMS
    from unicorn_monai.bundle.verify import seal as write_sums

    say(f"{write_sums(bundle)}  {bundle / SUMS}")


def verify(
    bundle: Annotated[Path, described("Folder of a bundle.")],
    /,
    *,
    sums_sha256: Annotated[str | None, described("Sha256 of SHA256SUMS, as its author tells it.")] = None,
) -> int:
    """Look a bundle over before anything in it is parsed or run: checksums, links, code, weights."""
    from unicorn_monai.bundle.verify import findings

    found = findings(bundle, sums_sha256)
    for line in found:
        say(line)
    tell(f"{bundle}: {len(found) or 'no'} finding{'' if len(found) == 1 else 's'}")
    return 1 if found else 0


def import_weights(
    checkpoint: Annotated[Path, described("Checkpoint of monai-generative 0.2.3, or folder of a trained SegFormer.")],
    /,
    *,
    bundle: Annotated[Path, described("Bundle whose inference.json defines the same network.")],
    network: Annotated[str, described("Entry of inference.json.")] = "network_def",
    weights: Annotated[str, described("File under models to write.")] = "model.pt",
    entry: Annotated[str | None, described("Name of the state dictionary in the checkpoint.")] = None,
    values: Annotated[
        list[str] | None, described("What belongs to the weights, e.g. scale_factor=0.9; repeatable.", "--set")
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
            raise BadUsage(f"--set {text}: expected NAME=VALUE with a JSON value ({error})") from error
    tell(str(read_in(checkpoint, bundle, network, weights, entry, **metadata)))


COMMANDS = (synthesize, clean, report, summary, seal, verify, import_weights)
