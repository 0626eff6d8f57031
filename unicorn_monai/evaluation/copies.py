"""Does a synthetic image copy a training image? An audit that knows what images of one label map share by construction.

1. Nearest training image by the features of a network (cosine, standardised), and the largest correlation of the
   label-controlled speckle (``residual.py``) with ``CANDIDATES`` training images: half of them the nearest by features,
   half by the spectrum of the speckle (which finds copies of changed contrast, shifted and mirrored ones), and always
   the training image whose label map was used.
2. How near is too near? The same search in held-out real images, which no generative network was trained on, gives
   what the synthetic images reach without copying: the 95th and the 99th percentile of it are the thresholds. A
   synthetic image whose speckle lies above the 99th percentile is FLAGGED. An honest generator has about one in a
   hundred flagged for every held-out set's worth of training images.
3. Images made from a training image's label map share its anatomy. The same numbers for images made from held-out label
   maps (the control set) say how much of it is the label map's part.
4. Copies of training images, changed in six ways, are planted to show what the audit would find.
5. The closest pairs, with their structural similarity when aligned, for people to look at.

Counts have exact (Clopper-Pearson) intervals. An audit that finds nothing does not make a data set private.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.metrics.regression import SSIMMetric
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from unicorn_monai.data.layout import (
    HEADER,
    SPLITS,
    colours_of,
    index_of,
    layout_of,
    local_folder,
    read_header,
    resolve_item,
)
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.evaluation.features import Features
from unicorn_monai.evaluation.residual import Aligned, fingerprint, speckle_residual
from unicorn_monai.images.files import read_array, write_array
from unicorn_monai.images.pictures import tile
from unicorn_monai.images.transforms import LoadPixelsd, read_image
from unicorn_monai.segmentation.predict import predict_labels
from unicorn_monai.system.files import PathLike, write_json
from unicorn_monai.system.records import KNOWN, TABLE, TEXT, take, tell_unread

LEVELS = (95, 99)  # percentiles of the held-out images
FLAG = 99  # the one above which an image is flagged
LEAST = 40  # held-out images
CANDIDATES = 20  # training images whose speckle is compared with that of each image
CLOSEST, SHOWN = 50, 8  # pairs listed, and on the sheet

TRANSFORMS: dict[str, Callable[[NDArray, np.random.Generator], NDArray]] = {
    "exact": lambda image, random: image,
    "noise": lambda image, random: image + 0.05 * random.standard_normal(image.shape),
    "blur": lambda image, random: ndimage.gaussian_filter(image, [0, 1, 1]),
    "contrast": lambda image, random: 0.1 + 0.7 * image,
    "mirrored": lambda image, random: image[..., ::-1],
    "shifted": lambda image, random: np.roll(image, (3, 3), (-2, -1)),
}
GEOMETRIC = ("mirrored", "shifted")  # move the label map too


class TooFewImages(ValueError):
    """Too few held-out images for a threshold."""


@dataclass(frozen=True)
class Material:
    """Images in memory with all that they are compared by."""

    items: Sequence[dict[str, Any]]  # entries of their data sets
    images: Tensor  # (images, channels, rows, columns) in [0, 1], float16
    labels: Tensor  # (images, rows, columns) uint8
    features: Tensor  # (images, D)

    def residual(self, index: int) -> Tensor:
        """Label-controlled speckle of one image, over the mean of its channels."""
        image, label = self.images[index].float().mean(dim=0).numpy(), self.labels[index].numpy()
        return torch.from_numpy(speckle_residual(image, label))


@dataclass(frozen=True)
class Audited:
    """The sets of an audit."""

    synthetic: Material  # to audit
    training: Material  # every real image a generative network was trained on, of both domains
    held_out: Material  # real images of other subjects, of both domains in about the same proportion
    control: Material | None = None  # synthetic images made from label maps that no network was trained on


def gather(
    items: Sequence[dict[str, Any]],
    features: Features,
    num_labels: int,
    num_channels: int = 1,
    segmentation: nn.Module | None = None,
    device: torch.device | str = "cpu",
) -> Material:
    """Read the images of a ``datalist``, their label maps and their features.

    ``segmentation``, on ``device``, gives the label maps of images that have none, as those of the unlabelled domain.
    """
    if not items:
        raise ValueError("No images to audit; expected at least one.")
    images = torch.stack([read_image(str(item["image"]), num_channels).half() for item in items])
    load = LoadPixelsd(["label"], num_labels=num_labels)
    labels = torch.zeros(len(items), *images.shape[2:], dtype=torch.uint8)
    without = [i for i, item in enumerate(items) if "label" not in item]
    if without:
        paths = [str(items[i]["image"]) for i in without]
        if segmentation is None:
            raise ValueError(f"'{paths[0]}' has no label map, which the audit needs; give a segmentation network.")
        labels[without] = predict_labels(segmentation, paths, torch.device(device), num_channels)
    for i, item in enumerate(items):
        if "label" in item:
            labels[i] = load.read_label(str(item["label"]))[0].to(torch.uint8)
    return Material(items, images, labels, features.of(items, num_channels))


@dataclass(frozen=True)
class Matches:
    """For each image of a set its nearest training image by features, and the best by speckle."""

    embedding: NDArray[np.floating]  # (images,) cosine
    residual: NDArray[np.floating]  # (images,) in [-1, 1]
    training: NDArray[np.integer]  # (images,) index of the best by speckle
    shift: NDArray[np.integer]  # (images, 2)
    mirrored: NDArray[np.bool_]  # (images,)


class Nearest:
    """Nearest known vectors by cosine, every component standardised over the known ones, (known, D)."""

    def __init__(self, known: Tensor) -> None:
        self.mean, self.std = known.mean(dim=0), known.std(dim=0).clamp_min(1e-9)
        self.known = functional.normalize((known - self.mean) / self.std, dim=1)

    def __call__(self, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Similarity and index of the ``count`` nearest of each vector, each (vectors, count), best first."""
        if vectors.shape[1] != self.known.shape[1]:
            raise ValueError(
                f"Features of width {vectors.shape[1]}, of training images {self.known.shape[1]}; compute both with "
                "one feature network."
            )
        found = functional.normalize((vectors - self.mean) / self.std, dim=1) @ self.known.T
        best = found.topk(min(count, len(self.known)), dim=1)
        return best.values, best.indices


class Searcher:
    """Finds the nearest training images, of both domains."""

    def __init__(self, training: Material) -> None:
        self.training, self.candidates = training, min(CANDIDATES, len(training.items))
        self.residuals = torch.stack([training.residual(i).half() for i in range(len(training.items))])
        spectra = torch.cat([fingerprint(part) for part in self.residuals.split(64)])
        self.by_features, self.by_spectrum = Nearest(training.features), Nearest(spectra)
        self.align = Aligned(*training.images.shape[2:])
        self.by_label: dict[str, list[int]] = {}
        for i, item in enumerate(training.items):
            for name in _label_names(item):
                self.by_label.setdefault(name, []).append(i)

    def __call__(self, material: Material, description: str = "audit") -> Matches:
        """Search for every image of a set."""
        if material.images.shape[1:] != self.training.images.shape[1:]:
            raise ValueError(
                f"Images have shape {tuple(material.images.shape[1:])}, training images "
                f"{tuple(self.training.images.shape[1:])}; expected the same. Audit images of one size."
            )
        each = max(1, self.candidates // 2)
        similarity, nearest = self.by_features(material.features, each)
        found = []
        for i, item in enumerate(tqdm(material.items, desc=description, disable=None, leave=False)):
            residual = material.residual(i)
            made = item.get("synthetic") or {}
            source = "/".join(str(made[key]) for key in ("source_data", "source_label") if made.get(key))
            spectral = self.by_spectrum(fingerprint(residual[None]), each)[1][0]
            at = sorted({*nearest[i].tolist(), *spectral.tolist(), *self.by_label.get(source, [])})
            values, shifts, mirrored = self.align(residual, self.residuals[at])
            best = int(values.argmax())
            found.append((float(values[best]), at[best], shifts[best].tolist(), bool(mirrored[best])))
        residual, training, shift, mirror = (np.array(column) for column in zip(*found, strict=True))
        return Matches(similarity[:, 0].numpy(), residual, training, shift, mirror)


def _label_names(item: dict[str, Any]) -> list[str]:
    """What synthetic images may call the label map of a training image: its file, alone or below its data set's name.

    ``guessed_label`` is that of an image without a label of its own, which a network guessed.
    """
    label = Path(str(item.get("label", "")))
    own = [label.name, f"{Path(str(item.get('dataset', ''))).name}/{label.name}"] if label.name else []
    return [*own, *([str(item["guessed_label"])] if "guessed_label" in item else [])]


def audit(sets: Audited, features: Features, folder: PathLike, planted: int = 50, seed: int = 0) -> dict[str, Any]:
    """Compare synthetic with training images; see the head of this file.

    Args:
        sets: what is compared.
        features: the feature network all were gathered with.
        folder: gets ``closest.png`` (the pairs, their differences below) and ``audit.json`` (what is returned).
        planted: copies planted of each kind.
        seed: of the copies.

    Returns:
        "thresholds", "held_out_thresholds" (those that real images would give, and the synthetic images above them),
        "sets" (SET -> quantity -> level -> count, n, share, ci95), "planted" (the same per kind of copy),
        "flagged" (images, as ``dataset.json`` names them), "closest" pairs, and what it was done with.
    """
    synthetic, training, held_out = sets.synthetic, sets.training, sets.held_out
    if len(held_out.items) < LEAST:
        raise TooFewImages(
            f"{len(held_out.items)} held-out image(s); expected at least {LEAST}, validation and test images of "
            "subjects that no network has seen. Hold more real images out"
        )
    search, unseen = Searcher(training), Searcher(held_out)
    thresholds = _thresholds(unseen(synthetic, "audit: against held-out images"))
    ours, real = search(synthetic, "audit: synthetic images"), search(held_out, "audit: held-out images")
    found, of_real = {"synthetic": _shares(ours, thresholds), "held_out": _shares(real, thresholds)}, _thresholds(real)
    if sets.control is not None:
        found["control"] = _shares(search(sets.control, "audit: control images"), thresholds)
    flagged, order = ours.residual > thresholds["residual"][str(FLAG)], np.argsort(-ours.residual)[:CLOSEST]
    result = {
        "features": features.name,
        "features_sha256": features.sha256,
        "candidates": search.candidates,
        "n_training": len(training.items),
        "thresholds": thresholds,
        "held_out_thresholds": of_real | {"synthetic": _shares(ours, of_real)},
        "sets": found,
        "planted": _power(search, features, thresholds, planted, seed),
        "flagged": [_name(item) for item, bad in zip(synthetic.items, flagged, strict=True) if bad],
        "n_held_out": len(held_out.items),
        "expected_by_chance": (1 - FLAG / 100) * len(synthetic.items) * len(training.items) / len(held_out.items),
        "closest": [_pair(synthetic, training, ours, int(i), bool(flagged[i])) for i in order],
    }
    pairs = torch.stack([torch.stack(_aligned(synthetic, training, ours, int(i))) for i in order[:SHOWN]], dim=1)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_array(Path(folder) / "closest.png", tile(torch.cat([pairs, 0.5 + 0.5 * (pairs[:1] - pairs[1:])])))
    write_json(Path(folder) / "audit.json", result)
    return result


def _thresholds(matches: Matches) -> dict[str, dict[str, float]]:
    """Quantity -> level -> the percentile."""
    return {
        quantity: {str(level): float(np.percentile(getattr(matches, quantity), level)) for level in LEVELS}
        for quantity in ("embedding", "residual")
    }


def _shares(matches: Matches, thresholds: dict[str, dict[str, float]]) -> dict[str, Any]:
    """How many exceed each threshold, with exact 95 % intervals."""
    return {
        quantity: {
            level: proportion(int((getattr(matches, quantity) > t).sum()), len(matches.training))
            for level, t in levels.items()
        }
        for quantity, levels in thresholds.items()
    }


def proportion(count: int, n: int) -> dict[str, Any]:
    """A share with its exact (Clopper-Pearson) 95 % interval."""
    low, high = binomtest(count, n).proportion_ci(0.95, "exact")
    return {"count": count, "n": n, "share": count / n, "ci95": [float(low), float(high)]}


def _power(
    search: Searcher, features: Features, thresholds: dict[str, dict[str, float]], planted: int, seed: int
) -> dict[str, Any]:
    """Share of planted copies above each threshold, per kind of copy."""
    random = np.random.default_rng(seed)
    training = search.training
    chosen = random.permutation(len(training.items))[:planted]
    result = {}
    for kind, change in TRANSFORMS.items():
        images = torch.stack([_changed(training.images[i].float(), change, random) for i in chosen]).clamp(0, 1)
        labels = training.labels[chosen]
        if kind in GEOMETRIC:
            labels = torch.stack([_changed(label, change, random) for label in labels])
        found = torch.cat([features(part) for part in images.split(32)])
        copies = Material([{}] * len(chosen), images.half(), labels, found)
        result[kind] = _shares(search(copies, f"audit: planted copies, {kind}"), thresholds)
    return result


def _changed(image: Tensor, change: Callable[[NDArray, np.random.Generator], NDArray], random: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(change(image.numpy(), random))).to(image.dtype)


def _aligned(synthetic: Material, training: Material, matches: Matches, i: int) -> list[Tensor]:
    """A synthetic image, moved and mirrored onto its training image, and that: each (channels, rows, columns)."""
    image, other = synthetic.images[i].float(), training.images[int(matches.training[i])].float()
    image = image.flip(-1) if matches.mirrored[i] else image
    return [image.roll(tuple(int(s) for s in matches.shift[i]), (-2, -1)), other]


def _pair(synthetic: Material, training: Material, matches: Matches, i: int, flagged: bool) -> dict[str, Any]:
    image, other = _aligned(synthetic, training, matches, i)
    return {
        "synthetic": _name(synthetic.items[i]),
        "training": str(training.items[int(matches.training[i])]["image"]),
        "residual": float(matches.residual[i]),
        "embedding": float(matches.embedding[i]),
        "ssim": float(cast(Tensor, SSIMMetric(2, data_range=1.0)(image[None], other[None])).mean()),
        "shift": [int(s) for s in matches.shift[i]],
        "mirrored": bool(matches.mirrored[i]),
        "flagged": flagged,
    }


def _name(item: dict[str, Any]) -> str:
    """An image as ``dataset.json`` names it: relative to its data set."""
    path = Path(str(item["image"]))
    return str(path.relative_to(Path(item["dataset"]).resolve())) if "dataset" in item else str(path)


def write_without(dataset_dir: PathLike, output: PathLike, flagged: Sequence[str]) -> int:
    """Write a data set without flagged items; everything else stays as it is.

    ``flagged`` are images as ``dataset.json`` names them (``"flagged"`` of :func:`audit`). Returns how many were left
    out.
    """
    folder = local_folder(dataset_dir)
    header, drop = read_header(folder), set(flagged)
    items = [(split, item) for split in SPLITS for item in header.get(split, [])]
    unknown = sorted(drop - {item["image"] for _, item in items})
    if unknown:
        raise ValueError(f"'{dataset_dir}' has no image '{unknown[0]}', which was to be left out. Audit this data set.")
    kept = [(split, item) for split, item in items if item["image"] not in drop]
    if not kept:
        raise ValueError(f"All {len(items)} images of '{dataset_dir}' are flagged; nothing would be left.")
    path = Path(folder) / HEADER
    own = take(header, {"name": TEXT, "device": TEXT, "settings": TABLE}, path)
    rest = {key: value for key, value in header.items() if key not in SPLITS}
    tell_unread(rest.keys() - KNOWN, path, kept=True)
    suffix = ".png" if str(kept[0][1]["image"]).endswith(".png") else ".nii.gz"
    with DatasetWriter(
        output,
        About(
            name=own.get("name", "synthetic"),
            device=own.get("device", "synthetic"),
            **(layout_of(header) | {"suffix": suffix}),
        ),
        settings=own.get("settings"),
        entries=rest,
        without_flagged=len(drop),
        **colours_of(header),
    ) as writer:
        for split, item in kept:
            files = resolve_item(Path(folder), item, ("image",))
            label = read_array(files["label"]) if "label" in item else None
            subject, index = str(item.get("subject", "")), index_of(item, path)
            writer.add(split, read_array(files["image"]), label, subject=subject, index=index, entries=item)
    return len(items) - len(kept)
