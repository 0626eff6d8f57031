"""Do autoencoder and diffusion model keep the images? The bounds that the report judges by and the log warns of.

Speckle: standard deviation of the image minus its local mean; entropy: mean uncertainty of the segmentation network.
Both of reconstructions over those of the originals, and the standard deviation of sampled over training latents.
"""

from __future__ import annotations

from typing import Any

from unicorn_monai.evaluation.markup import fixed, name_of, nested, number, percent

TOLERANCE = 0.15  # of speckle and entropy after the autoencoder
LATENT_STD = (0.9, 1.1)  # sampled / training latents


def image_checks(results: dict[str, Any]) -> list[tuple[str, str, bool | None]]:
    """(what is to hold, what was found, whether it holds) of each check; None and an empty text where not computed.

    Args:
        results: "autoencoder" and "diffusion" of ``results.json``, where they are there.
    """
    checks = []
    for domain in ("labeled", "unlabeled"):
        part = nested(nested(results, "autoencoder"), domain)
        for key, what in (("high_pass_std", "speckle"), ("entropy", "entropy")):
            before, after = map(number, part.get(key) or (None, None))
            change = after / before - 1 if before and after is not None else None
            good = None if change is None else abs(change) <= TOLERANCE + 1e-9
            found = "" if change is None else f"{fixed(before, 3)} \u2192 {fixed(after, 3)} ({percent(change, '+')})"
            checks += [(f"{name_of(domain)}, autoencoder: {what} within \u00b1{percent(TOLERANCE)}", found, good)]
    ratio, (low, high) = number(nested(results, "diffusion").get("latent_std")), LATENT_STD
    good = None if ratio is None else low <= ratio <= high
    found = "" if ratio is None else fixed(ratio, 2)
    return [*checks, (f"Diffusion model: spread of sampled latents {low} to {high} of the training's", found, good)]
