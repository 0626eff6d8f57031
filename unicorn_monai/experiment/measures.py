"""Does the method do what it says? What is measured of a generator's images, from networks, a generator and folders.

The autoencoder's speckle and the latents' spread. The control of the uncertainty: for a grid of requested uncertainties
the same label maps are synthesised and the uncertainty of the images is measured with the segmentation network the
prior belongs to. Label fidelity: the mean IoU between the label maps asked for and what an oracle (the network trained
on the unlabelled domain's real labels where there are any) sees in the synthetic images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from unicorn_monai.bundle.sampling_steps import describe
from unicorn_monai.data.items import datalist
from unicorn_monai.diffusion.latents import LatentDataset
from unicorn_monai.evaluation.copies import Material
from unicorn_monai.evaluation.features import Features
from unicorn_monai.evaluation.fusion_weight import agreement
from unicorn_monai.evaluation.scoring import confusion_matrix, scores
from unicorn_monai.images.speckle import high_pass_std
from unicorn_monai.images.transforms import LoadPixelsd, read_image
from unicorn_monai.segmentation.predict import predict_labels
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Request, Requests, with_uncertainty
from unicorn_monai.uncertainty import image_uncertainty

GRID = 8  # requested uncertainties
BATCH = 32
SAMPLED = 16  # images sampled at a time

Measured = Callable[[Tensor], Tensor]  # images (batch, channels, rows, columns) -> uncertainties (batch,)


# ---------------------------------------------------------------- autoencoder and diffusion model


@torch.no_grad()
def reconstruction(
    autoencoder: AutoencoderKL,
    segmentation: nn.Module,
    domains: Mapping[str, Path],
    channels: int,
    device: torch.device,
) -> dict[str, dict[str, list[float]]]:
    """High-pass standard deviation and mean entropy of validation images, [original, reconstruction] per domain."""

    def texture(image: Tensor) -> tuple[float, float]:
        return high_pass_std(image).item(), image_uncertainty(segmentation(image)).item()

    result = {}
    for name, folder in domains.items():
        originals, reconstructed = [], []
        for item in datalist(folder, "validation"):
            image = read_image(item["image"], channels)[None].to(device)
            originals.append(texture(image))
            reconstructed.append(texture(autoencoder.reconstruct(image).clamp(0, 1)))
        before, after = np.mean(originals, axis=0), np.mean(reconstructed, axis=0)
        result[name] = {
            "high_pass_std": [float(before[0]), float(after[0])],
            "entropy": [float(before[1]), float(after[1])],
        }
    return result


@torch.no_grad()
def latent_statistics(generator: Generator, requests: Sequence[Request], dataset: LatentDataset) -> dict[str, Any]:
    """Standard deviation of sampled latents over that of the training latents: 0.9 to 1.1 for a trained model.

    With it, how right the sampler is that drew them.

    Args:
        generator: the diffusion model alone.
        requests: what to sample.
        dataset: the training latents of both domains.
    """
    sampled = [generator.latents(requests[start : start + SAMPLED]) for start in range(0, len(requests), SAMPLED)]
    training = float(dataset.mean[0].double().square().mean() + dataset.std[0].double().square().mean()) ** 0.5
    ratio = float(torch.cat(sampled).double().square().mean().sqrt()) / (training * generator.ldm.scale_factor)
    return {"latent_std": ratio, "n": len(requests), "sampler": describe(generator.ldm.scheduler, generator.steps)}


# ---------------------------------------------------------------- control of uncertainty and label map


@torch.no_grad()
def measure(
    generator: Generator, maps: Sequence[Request], uncertainty: Measured, least: float, most: float
) -> dict[str, Any]:
    """Requested against measured uncertainty of the same label maps, from the least to the most."""
    curve, requested, measured = [], [], []
    for value in np.linspace(least, most, GRID):
        images = generator([*with_uncertainty(maps, float(value))])
        u = uncertainty(images).cpu().numpy()
        curve.append({"requested": float(value), "measured_mean": float(u.mean()), "measured_std": float(u.std())})
        requested += [float(value)] * len(u)
        measured += u.tolist()
    found = agreement(np.array(requested), np.array(measured))
    return {**{key: found[key] for key in ("spearman", "mean_absolute_error")}, "curve": curve}


def label_fidelity(
    oracle: nn.Module, synthetic: Path, num_labels: int, num_channels: int, device: torch.device
) -> float:
    """Mean IoU between the label maps of a synthetic data set and what the oracle segments in its images."""
    items = datalist(synthetic, "training", ("image", "label"))
    load = LoadPixelsd(["label"], num_labels=num_labels)
    prediction = predict_labels(oracle, [item["image"] for item in items], device, num_channels)
    truth = torch.stack([load.read_label(item["label"])[0] for item in items])
    return scores(confusion_matrix(prediction, truth, num_labels))["mean_iou"]


@torch.no_grad()
def measured_in(dataset_dir: Path, uncertainty: Measured, channels: int, device: torch.device) -> np.ndarray:
    """Uncertainty of every training image of a data set: (images,)."""
    paths, parts = [str(item["image"]) for item in datalist(dataset_dir, "training")], []
    for start in range(0, len(paths), BATCH):
        images = torch.stack([read_image(path, channels) for path in paths[start : start + BATCH]])
        parts.append(uncertainty(images.to(device)).cpu())
    return torch.cat(parts).numpy()


@torch.no_grad()
def control_set(generator: Generator, requests: Requests, features: Features) -> Material:
    """Images synthesised like a data set, but from label maps that no network was trained on."""
    parts = []
    for start in range(0, len(requests), SAMPLED):
        batch = requests[start : start + SAMPLED]
        labels = generator.labels(batch)
        images = generator(batch, labels).cpu()
        parts.append((images.half(), labels[:, 0].to(torch.uint8), features(images)))  # type: ignore[index]
    images, labels, found = (torch.cat(part) for part in zip(*parts, strict=True))
    return Material([{}] * len(requests), images, labels, found)
