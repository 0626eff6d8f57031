"""Does the method do what it says? The autoencoder's speckle, the latents' spread, and the control of the uncertainty.

Control: for a grid of requested uncertainties the same label maps are synthesised and the uncertainty of the images is
measured with the segmentation network the prior belongs to. Label fidelity: the mean IoU between the label maps asked
for and what an oracle (the network trained on the unlabelled domain's real labels where there are any) sees in the
synthetic images, beside the oracle's score on real images.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from unicorn_monai.bundle.references import definition, from_bundle, weights_metadata
from unicorn_monai.bundle.sampling_steps import describe
from unicorn_monai.data.items import datalist
from unicorn_monai.data.uncertainties import read_uncertainties
from unicorn_monai.diffusion.latents import LatentDataset
from unicorn_monai.diffusion.text import null_context
from unicorn_monai.evaluation.fusion_weight import NoWeight, agreement, choose_weight, control_over_weights, measure_of
from unicorn_monai.evaluation.scoring import confusion_matrix, scores
from unicorn_monai.images.pictures import evenly
from unicorn_monai.images.speckle import high_pass_std
from unicorn_monai.images.transforms import LoadPixelsd, read_image
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.report.trainings import SYNTHETIC
from unicorn_monai.segmentation.predict import predict_labels
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Request, Requests, with_uncertainty
from unicorn_monai.system.files import write_json
from unicorn_monai.uncertainty import image_uncertainty

if TYPE_CHECKING:
    from unicorn_monai.experiment.experiment import Experiment

GRID = 8  # requested uncertainties
MAPS = 12  # label maps at each
WEIGHT_MAPS = 32  # label maps at each fusion weight
BATCH = 32

logger = logging.getLogger("unicorn_monai")


@torch.no_grad()
def reconstruction(run: Experiment) -> dict[str, dict[str, list[float]]]:
    """High-pass standard deviation and mean entropy of validation images, [original, reconstruction] per domain."""
    autoencoder = from_bundle(run.bundle_dir("latent_diffusion"), "autoencoder_def", "autoencoder.pt", run.device)
    segmentation, channels = _segmentation(run), run.num_channels
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
def latent_statistics(run: Experiment, count: int = 64) -> dict[str, Any]:
    """Standard deviation of sampled latents over that of the training latents: 0.9 to 1.1 for a trained model.

    With it, how right the sampler is that drew them. Those are of both domains; with words, every second image is asked
    for without, as the labelled ones are told.
    """
    root = run.bundle_dir("latent_diffusion")
    generator, told, sampled = make_generator(run, None), words(run), []
    told["subdomains"] = [name for asked in told["subdomains"] or [] for name in (asked, "")]
    original = generator.inferer.decode
    generator.inferer.decode = lambda latents, *_: sampled.append(latents) or latents  # type: ignore[method-assign]
    for start in range(0, count, 16):
        generator(Requests(count, run.settings.seed, **told)[start : start + 16])
    generator.inferer.decode = original  # type: ignore[method-assign]
    autoencoder = from_bundle(root, "autoencoder_def", "autoencoder.pt", run.device)
    dataset = LatentDataset(
        [run.labeled, run.unlabeled], "training", autoencoder, root / "models" / "latents", run.num_channels
    )
    training = float(dataset.mean[0].double().square().mean() + dataset.std[0].double().square().mean()) ** 0.5
    ratio = float(torch.cat(sampled).double().square().mean().sqrt()) / (training * generator.inferer.scale_factor)
    return {"latent_std": ratio, "n": count, "sampler": describe(generator.inferer.scheduler, generator.steps)}


def words(run: Experiment) -> dict[str, Any]:
    """What makes :class:`Requests` name the unlabelled domain's sub-domains in turn; nothing in a run without words."""
    root = run.bundle_dir("latent_diffusion")
    return {key: from_bundle(root, key) for key in ("template", "subdomains")}


def make_generator(run: Experiment, variant: str | None, weight: float | None = None) -> Generator:
    """The generator of one variant; None gives the diffusion model without any control.

    Args:
        run: the experiment.
        variant: a mode or a round.
        weight: of the Uncertainty-ControlNet, if not the run's.
    """
    root = run.bundle_dir("latent_diffusion")
    nets: dict[str, Any] = {}
    mode, guidance = "paper", (1.0, 1.0)
    if variant is None:
        weight = 0.0
    else:
        weight, mode = run.weight(variant) if weight is None else weight, run.mode(variant)
        guidance = run.settings.guidance_of(mode)
        nets = {
            name: from_bundle(run.bundle_dir(f"{name}_controlnet", variant), weights="model.pt", device=run.device)
            for name in ("semantic", "uncertainty")
        }
        nets |= {"prior": load_prior(run, variant), "num_labels": len(run.results["labels"])}
    scale_factor, prompts = weights_metadata(root, "model.pt", "scale_factor"), from_bundle(root, "prompts")
    null = null_context(prompts)
    return Generator(
        DualControlNetInferer(from_bundle(root, "scheduler"), scale_factor, weight, mode, guidance, null),
        from_bundle(root, "autoencoder_def", "autoencoder.pt", run.device),
        from_bundle(root, "network_def", "model.pt", run.device),
        weights_metadata(root, "model.pt", "latent_shape"),
        definition(root, "num_inference_steps"),
        run.device,
        prompts=prompts,
        **nets,
    )


@torch.no_grad()
def over_weights(run: Experiment, variant: str) -> dict[str, Any]:
    """Control and label fidelity against the fusion weight, and the weight to take (see ``weights.py``).

    Returns:
        "table" of :func:`control_over_weights` (empty where all label maps are the same), "weight" and "reason" of
        :func:`choose_weight`, "judge", "oracle".
    """
    name = run.setup(variant)
    generator = make_generator(run, variant, weight=0.0)
    prior, uncertainty = _prior_and_measure(run, variant)
    requests = Requests(WEIGHT_MAPS, run.settings.seed, run.labeled, "validation", prior=prior, **words(run))[:]
    oracle = "upper_bound" if run.has_upper else None
    found: dict[str, Any] = {"table": [], "judge": "augmentation", "oracle": oracle}
    try:
        found["table"] = control_over_weights(
            generator,
            requests,
            uncertainty,
            network_of(run, "augmentation"),
            folder=run.run_dir / "pictures" / f"weights_{name}",
            oracle=None if oracle is None else network_of(run, oracle),
        )
        weight, reason = choose_weight(found["table"])
    except NoWeight as error:
        if run.settings.weight(run.mode(variant)) == "auto":
            raise
        return found | {"weight": None, "reason": f"no weight: {error}"}
    logger.info(f"   without labels one would take {reason}")
    return found | {"weight": weight, "reason": reason}


@torch.no_grad()
def measure(run: Experiment, variant: str, synthetic: Path) -> dict[str, Any]:
    """Requested against measured uncertainty, and label fidelity of the synthetic data set."""
    generator = make_generator(run, variant)
    labeled = _uncertainties(run, run.labeled, variant)
    prior, uncertainty = _prior_and_measure(run, variant)
    grid = np.linspace(labeled.mean(), min(1.0, prior.mean + 2 * prior.std), GRID)
    maps = Requests(MAPS, run.settings.seed, run.labeled, "validation", **words(run))[:]
    curve, requested, measured = [], [], []
    for value in grid:
        images = generator([*with_uncertainty(maps, float(value))])
        u = uncertainty(images).cpu().numpy()
        curve.append({"requested": float(value), "measured_mean": float(u.mean()), "measured_std": float(u.std())})
        requested += [float(value)] * len(u)
        measured += u.tolist()
    found = agreement(np.array(requested), np.array(measured))
    return {
        **{key: found[key] for key in ("spearman", "mean_absolute_error")},
        "curve": curve,
        **label_fidelity(run, synthetic),
    }


def label_fidelity(run: Experiment, synthetic: Path) -> dict[str, Any]:
    """IoU between the label maps of a synthetic data set and what the oracle segments in its images."""
    setup = "upper_bound" if run.has_upper else "lower_bound"
    oracle = network_of(run, setup)
    items = datalist(synthetic, "training", ("image", "label"))
    labels = len(run.results["labels"])
    load = LoadPixelsd(["label"], num_labels=labels)
    prediction = predict_labels(oracle, [item["image"] for item in items], run.device, run.num_channels)
    truth = torch.stack([load.read_label(item["label"])[0] for item in items])
    return {
        "label_fidelity_mean_iou": scores(confusion_matrix(prediction, truth, labels))["mean_iou"],
        "oracle": f"segmentation network of '{setup}'",
        "oracle_mean_iou": own_score(run.results["segmentation"].get(setup, {})),
    }


def own_score(scores: dict[str, Any]) -> float | None:
    """Mean IoU of the first training of a set-up, whose network it is that judges; that of the set-up is over all."""
    trainings = scores.get("trainings")
    return trainings["mean_iou"][0] if trainings else scores.get("mean_iou")


def summarise_uncertainties(run: Experiment) -> None:
    """Mean and standard deviation of the uncertainty of each set, and all values for the histogram.

    All are measured with the lower bound's network, also those of further rounds, so that they can be compared.
    """
    values = {"labeled": _uncertainties(run, run.labeled), "unlabeled": _uncertainties(run, run.unlabeled)}
    _, uncertainty = _prior_and_measure(run, run.settings.modes[0])
    for name, folder in synthetic_sets(run).items():
        paths = [str(item["image"]) for item in datalist(folder, "training")]
        values[name] = _measured(uncertainty, paths, run.num_channels, run.device)
    run.results["uncertainty"] = {
        name: {"mean": float(v.mean()), "std": float(v.std()), "n": len(v)} for name, v in values.items()
    }
    write_json(
        run.run_dir / "uncertainties.json", {name: [round(float(x), 6) for x in v] for name, v in values.items()}
    )


def synthetic_sets(run: Experiment) -> dict[str, Path]:
    """Every synthetic data set of a run by the name of its set-up."""
    sets = {run.setup(variant): run.synthetic(variant) for variant in run.variants}
    return sets | {n: run.run_dir / f"synthetic_{n}" for n in SYNTHETIC if n in run.settings.baselines}


@torch.no_grad()
def _measured(
    uncertainty: Callable[[Tensor], Tensor], paths: list[str], channels: int, device: torch.device
) -> np.ndarray:
    parts = []
    for start in range(0, len(paths), BATCH):
        images = torch.stack([read_image(path, channels) for path in paths[start : start + BATCH]])
        parts.append(uncertainty(images.to(device)).cpu())
    return torch.cat(parts).numpy()


def _uncertainties(run: Experiment, folder: Path, variant: str = "") -> np.ndarray:
    table = run.bundle_dir("retinal_unet", variant) / "models" / "uncertainties.json"
    return read_uncertainties(table, datalist(folder, "training")).double().numpy()


def _segmentation(run: Experiment, variant: str = "") -> nn.Module:
    """The network whose uncertainties steer a variant."""
    return from_bundle(run.bundle_dir("retinal_unet", variant), weights="model.pt", device=run.device)


def load_prior(run: Experiment, variant: str) -> UncertaintyPrior:
    """The prior of a variant; one that another segmentation network measured is refused."""
    sha256 = weights_metadata(run.bundle_dir("retinal_unet", variant), "model.pt", "sha256")
    return UncertaintyPrior.load(run.prior(variant), sha256)


def _prior_and_measure(run: Experiment, variant: str) -> tuple[UncertaintyPrior, Callable[[Tensor], Tensor]]:
    """The prior of a variant, and the uncertainty (batch,) of images as it was measured for the prior."""
    prior = load_prior(run, variant)
    root = run.bundle_dir("retinal_unet", variant)
    return prior, measure_of(prior, _segmentation(run, variant), root, run.device)


def network_of(run: Experiment, setup: str) -> nn.Module:
    """The segmentation network of a set-up."""
    return from_bundle(run.bundle_dir("retinal_unet"), weights=str(run.weights(setup)), device=run.device)


def example_requests(run: Experiment, count: int) -> list[Request]:
    """Label maps of the validation split, spread over its subjects."""
    total = len(datalist(run.labeled, "validation"))
    everything = Requests(total, run.settings.seed, run.labeled, "validation", **words(run))
    return [everything[i] for i in evenly(total, count)]
