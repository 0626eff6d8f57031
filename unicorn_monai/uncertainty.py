"""How uncertain is a segmentation network about an image? Predictive entropy, Eqs. (3) and (4) of UnIACorN.

    H(x) = - sum_k p_k log p_k          per pixel, p = softmax of the network's logits            (3)
    u(x) = mean over pixels of H(x) / log K          one number per image, in [0, 1]              (4)

with K labels. Natural logarithm; 0 log 0 = 0. A network that is sure everywhere gives u = 0, one that knows nothing
gives u = 1; well-trained networks give 0.01 to 0.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unicorn_monai.system.errors import NotFinite


def predictive_entropy(logits: Tensor) -> Tensor:
    """Entropy of the predicted label distribution at every pixel, Eq. (3).

    Args:
        logits: (batch, labels, *spatial), before the softmax.

    Returns:
        (batch, 1, *spatial), in nats, in [0, log(labels)].

    Raises:
        ValueError: fewer than two labels, or logits that are not finite.
    """
    if logits.ndim < 3 or logits.shape[1] < 2:
        raise ValueError(f"Logits have shape {tuple(logits.shape)}; expected (batch, labels >= 2, *spatial).")
    logits = logits.float()
    if not torch.isfinite(logits).all():
        raise NotFinite("Logits hold NaN or infinite values; check the image and the segmentation weights.")
    lowest = torch.finfo(logits.dtype).min  # -inf, from logits near the limits of float, would give 0 * -inf = NaN
    log_probability = logits.log_softmax(dim=1).clamp(min=lowest)
    entropy = -(log_probability.exp() * log_probability).sum(dim=1, keepdim=True)
    return entropy.clamp(0.0, math.log(logits.shape[1]))  # rounding may leave the interval by 1e-7


def normalised_entropy(logits: Tensor) -> Tensor:
    """Eq. (3) divided by its maximum log K: (batch, 1, *spatial), in [0, 1]."""
    return predictive_entropy(logits) / math.log(logits.shape[1])


def image_uncertainty(logits: Tensor) -> Tensor:
    """Mean normalised entropy of each image, Eq. (4): (batch,), in [0, 1]."""
    return normalised_entropy(logits).flatten(1).mean(dim=1)
