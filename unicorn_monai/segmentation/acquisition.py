"""Other answers to "how uncertain?" than Eqs. (3) and (4): what is asked per pixel, and how pixels are summed up.

Acquisition, per pixel in [0, 1], p = softmax of the logits, K labels, <.> the mean over several predictions:

    entropy       H(p) / log K                                  Eq. (3), the paper's and the default
    max_softmax   (1 - max_k p_k) K / (K - 1)
    margin        1 - (p_first - p_second)                      the two most probable labels
    mc_dropout    (H(<p>) - <H(p)>) / log K                     mutual information, predictions with dropout switched on
    ensemble      the same                                      predictions of several networks
    tta           H(<p>) / log K                                predictions of the image mirrored and of other contrast

Aggregation: ``mean`` over the image (Eq. 4, the paper's and the default), ``retina`` (mean weighted with the
probability that a pixel is neither the first nor the last label), ``p95`` (95th percentile).

In ``joint`` mode an experiment takes the acquisition that separates the domains best (``devices_apart.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn

from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.system.files import PathLike
from unicorn_monai.uncertainty import normalised_entropy, predictive_entropy

GAMMAS = (1.0, 0.8, 1.25)  # contrasts of test-time augmentation, each as is and mirrored


def max_softmax(logits: Tensor) -> Tensor:
    """1 - the largest probability, over its largest value: (batch, labels, *spatial) -> (batch, 1, *spatial)."""
    labels = _checked(logits).shape[1]
    return (1 - logits.float().softmax(dim=1).amax(dim=1, keepdim=True)) * labels / (labels - 1)


def margin(logits: Tensor) -> Tensor:
    """1 - the distance of the two largest probabilities: (batch, labels, *spatial) -> (batch, 1, *spatial)."""
    first, second = _checked(logits).float().softmax(dim=1).topk(2, dim=1).values.split(1, dim=1)
    return 1 - (first - second)


def mean_prediction(samples: Tensor) -> Tensor:
    """Logarithm of the mean probability: (batch, samples, labels, *spatial) -> (batch, labels, *spatial)."""
    log_mean = samples.float().log_softmax(dim=2).logsumexp(dim=1) - math.log(samples.shape[1])
    return log_mean.clamp(min=-1e4)  # -inf, of a probability that underflowed, would read as damaged logits


def entropy_of_mean(samples: Tensor) -> Tensor:
    """(batch, samples, labels, *spatial) -> (batch, 1, *spatial)."""
    return normalised_entropy(mean_prediction(samples))


def mutual_information(samples: Tensor) -> Tensor:
    """What the predictions disagree about: (batch, samples, labels, *spatial) -> (batch, 1, *spatial), in [0, 1]."""
    within = predictive_entropy(samples.flatten(0, 1)).unflatten(0, samples.shape[:2]).mean(dim=1)
    between = predictive_entropy(mean_prediction(samples))
    return ((between - within) / math.log(samples.shape[2])).clamp(0.0, 1.0)


SINGLE: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": normalised_entropy,
    "max_softmax": max_softmax,
    "margin": margin,
}
SAMPLED: dict[str, Callable[[Tensor], Tensor]] = {
    "mc_dropout": mutual_information,
    "ensemble": mutual_information,
    "tta": entropy_of_mean,
}
AGGREGATIONS = ("mean", "retina", "p95")


@dataclass(frozen=True)
class Measure:
    """Uncertainty of images from the logits of a segmentation network."""

    acquisition: str = "entropy"
    aggregation: str = "mean"

    def __post_init__(self) -> None:
        _require_name("acquisition", self.acquisition, (*SINGLE, *SAMPLED))
        _require_name("aggregation", self.aggregation, AGGREGATIONS)

    def __call__(self, logits: Tensor) -> Tensor:
        """One number per image, (batch,), in [0, 1].

        Logits are (batch, labels, *spatial), or (batch, samples, labels, rows, columns) from a :class:`SampledInferer`.
        """
        if self.acquisition in SINGLE:
            pixels, mean = SINGLE[self.acquisition](logits), logits
        else:
            if logits.ndim != 5 or logits.shape[1] < 2:  # labels of a single prediction would pass for samples
                raise ValueError(
                    f"'{self.acquisition}' got logits of shape {tuple(logits.shape)}; expected (batch, samples >= 2, "
                    "labels, rows, columns). Use the inferer of `make_inferer`."
                )
            pixels, mean = SAMPLED[self.acquisition](logits), mean_prediction(logits)
        return aggregate(pixels, mean, self.aggregation)


def aggregate(pixels: Tensor, logits: Tensor, aggregation: str) -> Tensor:
    """Sum up the uncertainties (batch, 1, *spatial) of each image's pixels: (batch,)."""
    values = pixels.flatten(1)
    if aggregation == "p95":
        return values.kthvalue(max(1, math.ceil(0.95 * values.shape[1])), dim=1).values
    if aggregation == "retina" and logits.shape[1] > 2:
        retina = logits.float().log_softmax(dim=1)[:, 1:-1].logsumexp(dim=1).flatten(1)
        return (retina.clamp(min=-1e4).softmax(dim=1) * values).sum(dim=1).clamp(0.0, 1.0)
    return values.mean(dim=1)


class SampledInferer(Inferer):
    """Predictions with dropout, of further networks, or of other views of each image, by one of ``SAMPLED``."""

    def __init__(self, acquisition: str, samples: int = 8, networks: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        _require_name("acquisition", acquisition, tuple(SAMPLED))
        if acquisition == "mc_dropout" and samples < 2:
            raise ValueError(f"samples is {samples}; expected at least 2 predictions with dropout.")
        if acquisition == "ensemble" and not networks:
            raise ValueError("'ensemble' needs further networks; give the weights of at least one as `ensemble`.")
        self.acquisition, self.samples, self.networks = acquisition, samples, list(networks)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args, **kwargs) -> Tensor:
        """Images (batch, channels, *spatial) in [0, 1] -> (batch, samples, labels, *spatial)."""
        if self.acquisition == "ensemble":
            return torch.stack([net(inputs) for net in (network, *self.networks)], dim=1)
        if self.acquisition == "tta":
            views = [inputs.clamp(0, 1) ** gamma for gamma in GAMMAS]
            as_is, mirrored = [network(v) for v in views], [network(v.flip(-1)).flip(-1) for v in views]
            return torch.stack(as_is + mirrored, dim=1)
        return self._with_dropout(inputs, network)

    def _with_dropout(self, inputs: Tensor, network: Callable[..., Tensor]) -> Tensor:
        modules = network.modules() if isinstance(network, nn.Module) else ()
        dropouts = [m for m in modules if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
        if not dropouts:
            raise ValueError(
                "'mc_dropout' needs a network trained with dropout; set network_def::dropout of the retinal_unet's "
                "inference.json above 0 and train it again, or use another acquisition."
            )
        devices = [inputs.device] if inputs.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            for module in dropouts:
                module.train()
            try:
                return torch.stack([network(inputs) for _ in range(self.samples)], dim=1)
            finally:
                for module in dropouts:
                    module.eval()


def make_inferer(
    acquisition: str,
    samples: int = 8,
    ensemble: Sequence[PathLike] = (),
    bundle_root: PathLike | None = None,
    device: torch.device | str | None = None,
) -> Inferer:
    """The inferer an acquisition needs.

    ``samples`` are predictions with dropout; ``ensemble`` are files of the weights of the further networks that
    ``bundle_root`` defines and ``device`` runs.
    """
    if acquisition in SINGLE:
        return SimpleInferer()
    networks = []
    for path in ensemble if acquisition == "ensemble" else ():
        if bundle_root is None:
            raise ValueError("An ensemble needs the bundle that defines its networks; give `bundle_root`.")
        networks.append(from_bundle(bundle_root, weights=str(Path(path).resolve()), device=device))
    return SampledInferer(acquisition, samples, networks)


def _checked(logits: Tensor) -> Tensor:
    predictive_entropy(logits)  # refuses what has the wrong shape or is not finite
    return logits


def _require_name(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"Unknown {what} '{name}'; expected one of {list(known)}.")
