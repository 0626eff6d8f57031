"""What a bundle checks in seconds, before it reads an image: labels, and weights that belong together."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unicorn_monai.bundle.references import metadata_of
from unicorn_monai.bundle.settings import _check_value
from unicorn_monai.data.layout import label_names, list_folders
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.system.files import PathLike

logger = logging.getLogger("unicorn_monai")


def check_labels(dataset_dir: PathLike | Sequence[Any], num_labels: int) -> None:
    """Refuse a data set with more or fewer labels than the network."""
    for folder in list_folders(dataset_dir):
        names = label_names(folder)
        if len(names) != num_labels:
            raise ValueError(
                f"'{folder}' has {len(names)} labels ({', '.join(names)}), the configuration num_labels {num_labels}. "
                "Set num_labels in retinal_unet's inference.json and train again, or use another data set."
            )


def ready(*parts: Any, **more: Any) -> None:
    """Does nothing: its arguments, such as networks with weights, are built and checked before those of others."""


def trained_on(
    latent_diffusion: PathLike,
    uncertainty_controlnet: PathLike | None = None,
    mode: str | None = None,
    prior: UncertaintyPrior | None = None,
) -> dict[str, Any]:
    """What is stored with a ControlNet's weights: which other weights they belong to, and which hint; checked first.

    A Semantic-ControlNet has a ``mode`` and, unless that is ``paper``, the ``uncertainty_controlnet`` that it is
    trained on top of; an Uncertainty-ControlNet has the ``prior`` that made hints of the uncertainties.
    """
    if mode is not None:
        _check_value("mode", mode)
    check_chain(latent_diffusion, uncertainty_controlnet=uncertainty_controlnet, mode=mode, prior=prior)
    unet = metadata_of(latent_diffusion)
    found = {"unet_sha256": unet["sha256"], "scale_factor": unet.get("scale_factor")}
    if mode is not None:
        found["mode"] = mode
    if uncertainty_controlnet is not None and mode != "paper":
        found["base_sha256"] = metadata_of(uncertainty_controlnet)["sha256"]
    if prior is not None and uncertainty_controlnet is None:
        found["hint"] = _hint(prior)
    return found


def hint_of(prior: UncertaintyPrior) -> dict[str, Any]:
    """What is stored with the weights of controls: which hints of which uncertainties they were trained for."""
    return {"hint": _hint(prior)}


def check_joint(
    joint: PathLike,
    latent_diffusion: PathLike,
    scheduler: Any = None,
    prior: UncertaintyPrior | None = None,
    mode: str = "joint",
) -> None:
    """Refuse a joint model of another autoencoder, ``prediction_type`` or hint than it was trained with."""
    if mode != "joint":
        raise ValueError(f"mode is '{mode}'; a joint model draws in the mode 'joint' alone. Others: bundle synthesis.")
    name, model = f"The joint model of '{joint}'", metadata_of(joint)
    _expect(name, model, "autoencoder_sha256", metadata_of(latent_diffusion, "autoencoder.pt")["sha256"])
    if scheduler is not None:
        _expect(name, model, "prediction_type", str(scheduler.prediction_type))
    if prior is not None:
        _expect_hint(name, model, prior)


def check_chain(
    latent_diffusion: PathLike,
    semantic_controlnet: PathLike | None = None,
    uncertainty_controlnet: PathLike | None = None,
    mode: str | None = None,
    scheduler: Any = None,
    scale_factor: float | None = None,
    prior: UncertaintyPrior | None = None,
) -> None:
    """Refuse weights that were not trained for each other, as far as they tell.

    ``scheduler`` (its ``prediction_type``) and ``scale_factor`` must be those of the U-Net's training, the hint of
    ``prior`` the one of the Uncertainty-ControlNet's, where that takes part: not in the training of a
    Semantic-ControlNet in ``paper`` mode.
    """
    if mode == "joint":
        raise ValueError("mode is 'joint'; ControlNets beside a frozen U-Net are of 'compositional' or 'paper' mode.")
    unet = metadata_of(latent_diffusion)
    diffusion = f"The diffusion model of '{latent_diffusion}'"
    _expect(diffusion, unet, "autoencoder_sha256", metadata_of(latent_diffusion, "autoencoder.pt")["sha256"])
    if scheduler is not None:
        _expect(diffusion, unet, "prediction_type", str(scheduler.prediction_type))
    if scale_factor is not None and not math.isclose(unet.get("scale_factor", scale_factor), scale_factor):
        _expect(diffusion, unet, "scale_factor", scale_factor)
    style = None
    trained = uncertainty_controlnet is not None and Path(uncertainty_controlnet, "models", "model.pt").is_file()
    if uncertainty_controlnet is not None and (mode != "paper" or trained):
        name, style = f"The ControlNet of '{uncertainty_controlnet}'", metadata_of(uncertainty_controlnet)
        _expect(name, style, "unet_sha256", unet["sha256"])
        if prior is not None and (mode != "paper" or semantic_controlnet is not None):
            _expect_hint(name, style, prior)
    if semantic_controlnet is not None:
        name, semantic = f"The ControlNet of '{semantic_controlnet}'", metadata_of(semantic_controlnet)
        _expect(name, semantic, "unet_sha256", unet["sha256"])
        _expect(name, semantic, "mode", mode)
        if style is not None and mode != "paper":
            _expect(name, semantic, "base_sha256", style["sha256"])


def _expect(
    name: str, metadata: dict[str, Any], key: str, value: Any, remedy: str = "Use what it was trained with,"
) -> None:
    if value is not None and metadata.get(key, value) != value:
        raise ValueError(
            f"{name} was trained with {key} {_short(metadata[key])}, in use is {_short(value)}. {remedy} or train it "
            "again."
        )


def _hint(prior: UncertaintyPrior) -> dict[str, Any]:
    """What decides the hint of an uncertainty: the network that measured it, how, and the scaling."""
    names = ("segmentation_sha256", "acquisition", "aggregation", "scaling", "offset", "scale")
    return {name: getattr(prior, name) for name in names} | {"both_quantiles": list(prior.both_quantiles)}


def _expect_hint(name: str, metadata: dict[str, Any], prior: UncertaintyPrior) -> None:
    trained = metadata.get("hint")
    if trained is None:
        logger.warning(
            f"{name} was trained before weights told the scaling of their hint; nobody can tell whether that of the "
            f"prior, '{prior.scaling}', is the right one."
        )
        return
    for key, value in _hint(prior).items():
        if not _close(trained[key], value):
            _expect(name, trained, key, value, "Give the prior it was trained with (prior_path),")


def _close(one: Any, other: Any) -> bool:
    """The same, but for the last digits of what is measured: they differ between machines."""
    numbers = isinstance(one, float | list) and np.shape(one) == np.shape(other)
    return np.allclose(one, other, rtol=1e-3, atol=1e-6) if numbers else one == other


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)
