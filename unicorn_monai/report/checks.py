"""Do autoencoder, diffusion model and sampler keep the images? The bounds that report and log judge by.

Speckle: standard deviation of the image minus its local mean; entropy: mean uncertainty of the segmentation network.
Both of reconstructions over those of the originals; the standard deviation of sampled over training latents; the
sampler's errors where the right answer is known (``sampler_trial.py``). Before them, whether the reconstructions are
usable at all (``experiment/reconstructions.py``), without which a run does not go on.
"""

from __future__ import annotations

from typing import Any

from unicorn_monai.report.markup import fixed, name_of, nested, number, percent
from unicorn_monai.sampler_trial import BOUNDS, SamplingError

TOLERANCE = 0.15  # of speckle and entropy after the autoencoder
LATENT_STD = (0.9, 1.1)  # sampled / training latents
_ERRORS = SamplingError._fields
TEXTURE = (0.5, 2.0)  # speckle of reconstructions / originals beyond which these are other images
GRID = 1.2  # steps at the borders of the latents' squares, reconstructions / originals; blocks beyond


def usable_checks(results: dict[str, Any]) -> list[tuple[str, str, bool | None]]:
    """As :func:`image_checks`, of what decides whether a run goes on after its autoencoder.

    Args:
        results: "reconstructions" of ``results.json``, where it is there.
    """
    checks: list[tuple[str, str, bool | None]] = []
    if not (measured := nested(results, "reconstructions")):  # a run older than these checks
        return checks
    for domain in ("labeled", "unlabeled"):
        part, name = nested(measured, domain), f"{name_of(domain)}, autoencoder"
        error, allowed = map(number, part.get("error") or (None, None))
        what = f"{name}: error of the means of 4 x 4 pixels, of their variance, at most {fixed(allowed, 3)}"
        good = None if error is None or allowed is None else error <= allowed
        checks.append((what, "" if good is None else fixed(error, 3), good))
        for key, what, (low, high) in (
            ("high_pass_std", f"texture {TEXTURE[0]} to {TEXTURE[1]} of the originals'", TEXTURE),
            ("grid", f"no blocks, steps at their borders at most {GRID} of the originals'", (0.0, GRID)),
        ):
            before, after = map(number, part.get(key) or (None, None))
            ratio = after / before if before and after is not None else None
            good = None if ratio is None else low <= ratio <= high
            checks.append((f"{name}: {what}", "" if ratio is None else fixed(ratio, 2), good))
    return checks


def image_checks(results: dict[str, Any]) -> list[tuple[str, str, bool | None]]:
    """(what is to hold, what was found, whether it holds) of each check; None and an empty text where not computed.

    Args:
        results: "autoencoder" and "diffusion" of ``results.json``, where they are there.
    """
    checks = usable_checks(results)
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
    checks += [(f"Diffusion model: spread of sampled latents {low} to {high} of the training's", found, good)]
    return [*checks, _sampler(nested(nested(results, "diffusion"), "sampler"))]


def _sampler(part: dict[str, Any]) -> tuple[str, str, bool | None]:
    """The check of the sampler."""
    bounds = [f"{what} within {percent(bound)}" for what, bound in zip(_ERRORS, BOUNDS, strict=True)]
    errors = {what: value for what in _ERRORS if (value := number(part.get(what))) is not None}
    name, steps = part.get("name"), number(part.get("steps"))
    expected = f"Sampler, of known data with exact predictions: {', '.join(bounds)}"
    if not isinstance(name, str) or steps is None or len(errors) < len(_ERRORS):
        return expected, "", None
    found = ", ".join(f"{what} {percent(value, '+')}" for what, value in errors.items())
    good = all(abs(value) <= bound for value, bound in zip(errors.values(), BOUNDS, strict=True))
    return expected, f"{name} in {steps:.0f} steps: {found}", good
