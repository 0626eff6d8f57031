"""Do synthetic images have the look that was asked for? A small classifier of the two devices' real images.

    p(unlabelled | x) = sigmoid(w f(x) + b)         f features of an image, standardised; w, b of least loss + l |w|^2
    accuracy          of real validation images, each device half
    in the look       share of images with p > 1/2

f are those of distances and audit (``evaluation/features.py``), in which contrast and texture show. What the
classifier is worth is told with it: where real images cannot be told apart, nobody can say what look an image has.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]
FEWEST_VALIDATED = 10  # validation images of a device: with one, chance alone tells devices apart in one run of four
RIDGE = 1e-2  # l, of the mean loss; features are standardised


class Look(NamedTuple):
    """A classifier of features (images, D)."""

    mean: Array
    scale: Array
    weight: Array
    offset: float

    @classmethod
    def fit(cls, labelled: Array, unlabelled: Array) -> Look:
        """Of the real training images of both devices, each device half."""
        for name, values in (("labelled", labelled), ("unlabelled", unlabelled)):
            if len(values) < 2:
                raise ValueError(f"Got {len(values)} {name} image(s); expected two or more to tell the devices apart.")
        both = np.concatenate([labelled, unlabelled])
        mean, scale = both.mean(axis=0), both.std(axis=0).clip(1e-9)
        x, sign = (both - mean) / scale, np.repeat([-1.0, 1.0], [len(labelled), len(unlabelled)])
        share = np.where(sign < 0, 0.5 / len(labelled), 0.5 / len(unlabelled))

        def loss(parameters: Array) -> tuple[float, Array]:
            margin = sign * (x @ parameters[:-1] + parameters[-1])
            slope = -share * sign / (1 + np.exp(margin.clip(-500, 500)))
            gradient = np.append(slope @ x + 2 * RIDGE * parameters[:-1], slope.sum())
            penalty = RIDGE * float(parameters[:-1] @ parameters[:-1])
            return float(share @ np.logaddexp(0, -margin)) + penalty, gradient

        best = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B").x
        return cls(mean, scale, best[:-1], float(best[-1]))

    def in_look(self, features: Array) -> float:
        """Share of images that look like the unlabelled device's."""
        if not len(features):
            raise ValueError("Got no image; expected one or more.")
        return float(np.mean((features - self.mean) / self.scale @ self.weight + self.offset > 0))

    def accuracy(self, labelled: Array, unlabelled: Array) -> float:
        """Of real images that it was not fitted to, each device half."""
        return (1 - self.in_look(labelled) + self.in_look(unlabelled)) / 2
