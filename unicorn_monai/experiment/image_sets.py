"""The run's sets of images as wholes: their distances (Table 2), and whether synthetic images copy training images.

Both look at images through one feature network: a file given in the settings, or the encoder trained here on the real
images of both domains. Nothing here reads a true label of the unlabelled domain: where the search for copies needs one,
the retrained segmentation network gives it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import read_header
from unicorn_monai.evaluation.copies import Material, TooFewImages, audit, gather
from unicorn_monai.evaluation.distribution import FeatureSet, distances
from unicorn_monai.evaluation.features import Features, train_encoder
from unicorn_monai.experiment.measures import make_generator, network_of, synthetic_sets, words
from unicorn_monai.synthesis.requests import Requests

if TYPE_CHECKING:
    from unicorn_monai.experiment.experiment import Experiment

CONTROL = 128  # images from label maps that no network was trained on
BATCH = 16


def train_features(run: Experiment) -> dict[str, float]:
    """Train the default feature network: {"masked_error": mean absolute error of the grey values it fills in}."""
    iterations = (run.settings.features or {}).get("iterations", 1000)
    domains, path = [run.labeled, run.unlabeled], run.features_path
    error = train_encoder(domains, path, run.num_channels, iterations, seed=run.settings.seed, device=run.device)
    return {"masked_error": error}


def features_of(run: Experiment) -> Features:
    """The feature network of a run."""
    given = run.settings.features or {}
    if given.get("path"):
        arguments = given.get("arguments")
        return Features.from_file(given["path"], given["sha256"], given["preprocessing"], run.device, arguments)
    return Features.from_encoder(run.features_path, run.device)


def distances_of(run: Experiment) -> dict[str, Any]:
    """Table 2: FID and KID between every pair of the run's sets of training images."""
    features, sets = features_of(run), {}
    for name, folder in ({"labeled": run.labeled, "unlabeled": run.unlabeled} | synthetic_sets(run)).items():
        items = datalist(folder, "training")
        subjects = [str(item.get("subject")) for item in items]
        sets[name] = FeatureSet(features.of(items, run.num_channels), subjects)
    return distances(sets, features.name, ["labeled", "unlabeled"], run.settings.seed)


def search_copies(run: Experiment) -> dict[str, Any]:
    """Audit the main synthetic data set against every real image a generative network has seen.

    Held out are the validation images of both domains, and the test images of those that have some; the control set is
    made here from the labelled domain's validation label maps.
    """
    features, labels, segmentation = features_of(run), len(run.results["labels"]), network_of(run, "unicorn+real")

    def material(items: list[dict[str, Any]]) -> Material:
        return gather(items, features, labels, run.num_channels, segmentation, run.device)

    known = datalist(run.labeled, "training", ("image", "label")) + _unlabelled(run, ["training"])
    ours, theirs = (
        [split for split in ("validation", "test") if read_header(folder).get(split)]
        for folder in (run.labeled, run.unlabeled)
    )
    try:
        return audit(
            material(datalist(run.synthetic(run.settings.modes[0]), "training", ("image", "label"))),
            material(known),
            material(datalist(run.labeled, ours, ("image", "label")) + _unlabelled(run, theirs)),
            features,
            run.run_dir / "memorization",
            _control_set(run, features),
            seed=run.settings.seed,
        )
    except TooFewImages as reason:
        return {"not_computed": str(reason)}


def _unlabelled(run: Experiment, splits: list[str]) -> list[dict[str, Any]]:
    """Images of the unlabelled domain, with any label left out."""
    return [{k: v for k, v in item.items() if k != "label"} for item in datalist(run.unlabeled, splits)]


@torch.no_grad()
def _control_set(run: Experiment, features: Features) -> Material:
    """Images synthesised like the data set, but from label maps that no network was trained on."""
    main = run.settings.modes[0]
    generator, augment = make_generator(run, main), run.settings.changes_geometry()
    count = CONTROL if augment else min(CONTROL, len(datalist(run.labeled, "validation")))
    seed, prior = run.settings.seed + 1, generator.prior
    requests = Requests(count, seed, run.labeled, "validation", prior=prior, augment=augment, **words(run))
    parts = []
    for start in range(0, count, BATCH):
        batch = requests[start : start + BATCH]
        labels = generator.labels(batch)
        images = generator(batch, labels).cpu()
        parts.append((images.half(), labels[:, 0].to(torch.uint8), features(images)))  # type: ignore[index]
    images, labels, found = (torch.cat(part) for part in zip(*parts, strict=True))
    return Material([{}] * count, images, labels, found)
