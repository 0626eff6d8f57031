"""Does the method do what it says? The autoencoder's speckle, the latents' spread, and the control of the uncertainty.

Control: for a grid of requested uncertainties the same label maps are synthesised and the uncertainty of the images is
measured with the segmentation network the prior belongs to. Label fidelity: the mean IoU between the label maps asked
for and what an oracle (the network trained on the unlabelled domain's real labels where there are any) sees in the
synthetic images, beside the oracle's score on real images.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from unicorn_monai.bundle import definition, from_bundle, weights_metadata
from unicorn_monai.datasets import datalist, write_json
from unicorn_monai.evaluation.segmentation import confusion_matrix, predict_labels, predict_uncertainty, scores
from unicorn_monai.handlers import read_json
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.latents import LatentDataset
from unicorn_monai.losses import high_pass_std
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.settings import SYNTHETIC
from unicorn_monai.synthesis import Generator, Request, Requests, with_uncertainty
from unicorn_monai.transforms import LoadPixelsd, read_image
from unicorn_monai.uncertainty import image_uncertainty

if TYPE_CHECKING:
    from unicorn_monai.experiment import Experiment

GRID = 8  # requested uncertainties
MAPS = 12  # label maps at each


@torch.no_grad()
def reconstruction(run: Experiment) -> dict[str, dict[str, list[float]]]:
    """High-pass standard deviation and mean entropy of validation images, [original, reconstruction] per domain."""
    autoencoder = from_bundle(run.bundle_dir("latent_diffusion", ""), "autoencoder_def", "autoencoder.pt", run.device)
    segmentation, channels = _segmentation(run), _channels(run)
    result = {}
    for name, folder in (("labeled", run.labeled), ("unlabeled", run.unlabeled)):
        paths = [item["image"] for item in datalist(folder, "validation")]
        originals, reconstructed = [], []
        for path in paths:
            image = read_image(path, channels)[None].to(run.device)
            originals.append(_texture(image, segmentation))
            reconstructed.append(_texture(autoencoder.reconstruct(image).clamp(0, 1), segmentation))
        before, after = np.mean(originals, axis=0), np.mean(reconstructed, axis=0)
        result[name] = {
            "high_pass_std": [float(before[0]), float(after[0])],
            "entropy": [float(before[1]), float(after[1])],
        }
    return result


def _texture(image: Tensor, segmentation: nn.Module) -> tuple[float, float]:
    return high_pass_std(image).item(), image_uncertainty(segmentation(image)).item()


@torch.no_grad()
def latent_statistics(run: Experiment, count: int = 64) -> dict[str, float]:
    """Standard deviation of sampled latents over that of the training latents: 0.9 to 1.1 for a trained model."""
    root = run.bundle_dir("latent_diffusion", "")
    generator = make_generator(run, None)
    sampled = []
    original = generator.inferer.decode
    generator.inferer.decode = lambda latents, *_: sampled.append(latents) or latents  # type: ignore[method-assign]
    for start in range(0, count, 16):
        generator(Requests(count, run.settings.seed)[start : start + 16])
    generator.inferer.decode = original  # type: ignore[method-assign]
    autoencoder = from_bundle(root, "autoencoder_def", "autoencoder.pt", run.device)
    dataset = LatentDataset(
        [run.labeled, run.unlabeled], "training", autoencoder, root / "models" / "latents", _channels(run)
    )
    training = float(dataset.mean[0].double().square().mean() + dataset.std[0].double().square().mean()) ** 0.5
    ratio = float(torch.cat(sampled).double().square().mean().sqrt()) / (training * generator.inferer.scale_factor)
    return {"latent_std": ratio, "n": count}


def make_generator(run: Experiment, mode: str | None) -> Generator:
    """The generator of one mode; None gives the diffusion model without any control."""
    root = run.bundle_dir("latent_diffusion", "")
    nets: dict[str, Any] = {}
    weight, guidance = 0.0, (1.0, 1.0)
    if mode is not None:
        weight, guidance = run.settings.weight(mode), run.settings.guidance_of(mode)
        nets = {
            "semantic": from_bundle(run.bundle_dir("semantic_controlnet", mode), weights="model.pt", device=run.device),
            "uncertainty": from_bundle(
                run.bundle_dir("uncertainty_controlnet", mode), weights="model.pt", device=run.device
            ),
            "prior": UncertaintyPrior.load(run.prior(mode)),
            "num_labels": len(run.results["labels"]),
        }
    return Generator(
        DualControlNetInferer(
            from_bundle(root, "scheduler"),
            weights_metadata(root, "model.pt", "scale_factor"),
            weight,
            mode or "paper",
            guidance,
        ),
        from_bundle(root, "autoencoder_def", "autoencoder.pt", run.device),
        from_bundle(root, "network_def", "model.pt", run.device),
        weights_metadata(root, "model.pt", "latent_shape"),
        definition(root, "num_inference_steps"),
        run.device,
        **nets,
    )


@torch.no_grad()
def measure(run: Experiment, mode: str, synthetic: Path) -> dict[str, Any]:
    """Requested against measured uncertainty, and label fidelity of the synthetic data set."""
    generator, segmentation = make_generator(run, mode), _segmentation(run)
    labeled = _uncertainties(run, run.labeled)
    prior = UncertaintyPrior.load(run.prior(mode))
    grid = np.linspace(labeled.mean(), min(1.0, prior.mean + 2 * prior.std), GRID)
    maps = Requests(MAPS, run.settings.seed, run.labeled, "validation")[:]
    curve, requested, measured = [], [], []
    for value in grid:
        images = generator([*with_uncertainty(maps, float(value))])
        u = image_uncertainty(segmentation(images)).cpu().numpy()
        curve.append({"requested": float(value), "measured_mean": float(u.mean()), "measured_std": float(u.std())})
        requested += [float(value)] * len(u)
        measured += u.tolist()
    return {
        "spearman": float(spearmanr(requested, measured).statistic),
        "mean_absolute_error": float(np.abs(np.array(requested) - np.array(measured)).mean()),
        "curve": curve,
        **label_fidelity(run, synthetic),
    }


def label_fidelity(run: Experiment, synthetic: Path) -> dict[str, Any]:
    """IoU between the label maps of a synthetic data set and what the oracle segments in its images."""
    setup = "upper_bound" if run.has_truth else "lower_bound"
    root = run.bundle_dir("retinal_unet", "")
    oracle = from_bundle(root, weights=str(run.weights(setup)), device=run.device)
    items = datalist(synthetic, "training", ("image", "label"))
    labels = len(run.results["labels"])
    load = LoadPixelsd(["label"], num_labels=labels)
    prediction = predict_labels(oracle, [item["image"] for item in items], run.device, _channels(run))
    truth = torch.stack([load.read_label(item["label"])[0] for item in items])
    return {
        "label_fidelity_mean_iou": scores(confusion_matrix(prediction, truth, labels))["mean_iou"],
        "oracle": f"segmentation network of '{setup}'",
        "oracle_mean_iou": run.results["segmentation"].get(setup, {}).get("mean_iou"),
    }


def summarise_uncertainties(run: Experiment) -> None:
    """Mean and standard deviation of the uncertainty of each set, and all values for the histogram."""
    values = {"labeled": _uncertainties(run, run.labeled), "unlabeled": _uncertainties(run, run.unlabeled)}
    segmentation = _segmentation(run)
    for mode in run.settings.modes:
        main = mode == run.settings.modes[0]
        folder = run.run_dir / ("synthetic" if main else f"synthetic_{mode}")
        paths = [item["image"] for item in datalist(folder, "training")]
        u = predict_uncertainty(segmentation, paths, run.device, _channels(run))
        values["unicorn" if main else f"unicorn_{mode}"] = u.numpy()
    for name in (name for name in SYNTHETIC if name in run.settings.baselines):
        paths = [item["image"] for item in datalist(run.run_dir / f"synthetic_{name}", "training")]
        values[name] = predict_uncertainty(segmentation, paths, run.device, _channels(run)).numpy()
    run.results["uncertainty"] = {
        name: {"mean": float(v.mean()), "std": float(v.std()), "n": len(v)} for name, v in values.items()
    }
    write_json(
        run.run_dir / "uncertainties.json", {name: [round(float(x), 6) for x in v] for name, v in values.items()}
    )


def _uncertainties(run: Experiment, folder: Path) -> np.ndarray:
    table = read_json(run.bundle_dir("retinal_unet", "") / "models" / "uncertainties.json")["images"]
    return np.array([table[item["image"]] for item in datalist(folder, "training")])


def _segmentation(run: Experiment) -> nn.Module:
    return from_bundle(run.bundle_dir("retinal_unet", ""), weights="model.pt", device=run.device)


def _channels(run: Experiment) -> int:
    return int(definition(run.bundle_dir("retinal_unet", ""), "num_channels"))


def example_requests(run: Experiment, count: int) -> list[Request]:
    """Label maps of the validation split, spread over its subjects."""
    total = len(datalist(run.labeled, "validation"))
    everything = Requests(total, run.settings.seed, run.labeled, "validation")
    return [everything[int(i)] for i in np.linspace(0, total - 1, min(count, total)).round()]
