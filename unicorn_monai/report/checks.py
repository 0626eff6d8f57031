"""Are the images of autoencoder, generator and sampler as they should be? The bounds that report and log judge by.

Speckle: standard deviation of the image minus its local mean; entropy: mean uncertainty of the segmentation network.
Both of reconstructions over those of the originals; the standard deviation of sampled over training latents; the
sampler's errors where the right answer is known (``sampler_trial.py``). How well the uncertainty that steers separates
the domains (``segmentation/devices_apart.py``), and whether the synthetic images have the look that was asked for and
no mesh (``quality/``). Before them, whether the reconstructions are usable at all (``experiment/reconstructions.py``),
without which a run does not go on.
"""

from __future__ import annotations

from unicorn_monai.report.naming import fixed, name_of, percent
from unicorn_monai.report.results import Kept, Looks, Pair, Results, Sampler
from unicorn_monai.sampler_trial import BOUNDS

TOLERANCE = 0.15  # of speckle and entropy after the autoencoder
LATENT_STD = (0.9, 1.1)  # sampled / training latents
TEXTURE = (0.5, 2.0)  # speckle of reconstructions / originals beyond which these are other images
ENOUGH = 0.9  # pairs of images whose uncertainties are in the right order (`segmentation/devices_apart.py`)
TOLD_APART = 0.9  # accuracy of the classifier of looks below which it can say nothing
IN_LOOK = 0.98  # synthetic images in the look that was asked for
MESH = 1.5  # power of the strongest line (`quality/mesh.py`)
GRID = 1.2  # steps at the borders of the latents' squares, reconstructions / originals; blocks beyond

Check = tuple[str, str, bool | None]  # what is to hold, what was found, whether it holds; "" and None: not computed


def ratio(pair: Pair) -> float | None:
    """The second of two numbers over the first; None where one is missing, or the first is 0."""
    before, after = pair
    return after / before if before and after is not None else None


def usable_checks(results: Results) -> list[Check]:
    """Of what decides whether a run goes on after its autoencoder; none of a run older than these checks."""
    checks: list[Check] = []
    for domain in ("labeled", "unlabeled") if results.reconstructions else ():
        part, name = results.reconstructions.get(domain, Kept()), f"{name_of(domain)}, autoencoder"
        error, allowed = part.error
        what = f"{name}: error of the means of 4 x 4 pixels, of their variance, at most {fixed(allowed, 3)}"
        texture = f"{name}: texture {TEXTURE[0]} to {TEXTURE[1]} of the originals'"
        grid = f"{name}: no blocks, steps at their borders at most {GRID} of the originals'"
        checks += [
            (what, "", None) if error is None or allowed is None else (what, fixed(error, 3), error <= allowed),
            _between(texture, ratio(part.high_pass_std), TEXTURE),
            _between(grid, ratio(part.grid), (0.0, GRID)),
        ]
    return checks


def image_checks(results: Results) -> list[Check]:
    """Of the images of autoencoder, generator and sampler, and of the uncertainty that steers."""
    checks = usable_checks(results)
    for domain in ("labeled", "unlabeled"):
        part = results.autoencoder.get(domain, Kept())
        for pair, what in ((part.high_pass_std, "speckle"), (part.entropy, "entropy")):
            found, good, kept = "", None, ratio(pair)
            if kept is not None:
                found = f"{fixed(pair[0], 3)} \u2192 {fixed(pair[1], 3)} ({percent(kept - 1, '+')})"
                good = abs(kept - 1) <= TOLERANCE + 1e-9
            checks.append((f"{name_of(domain)}, autoencoder: {what} within \u00b1{percent(TOLERANCE)}", found, good))
    checks += [*separation_checks(results), *look_checks(results)]
    spread = f"Diffusion model: spread of sampled latents {LATENT_STD[0]} to {LATENT_STD[1]} of the training's"
    checks.append(_between(spread, results.diffusion.latent_std, LATENT_STD))
    drawn = [one.sampler for one in results.drawn.values() if one.sampler.name is not None]  # of a joint model
    return [*checks, _sampler(next(iter(drawn), results.diffusion.sampler))]


def separation_checks(results: Results) -> list[Check]:
    """Does the uncertainty that steers tell the devices apart?"""
    part = results.separation
    auc = part.auc.get(part.acquisition or "")
    if auc is None:
        return []
    what = f"Uncertainty that steers: an image of each device, in the same order in {percent(ENOUGH)} of pairs"
    return [(what, f"{part.acquisition}: {percent(max(auc, 1 - auc))}", max(auc, 1 - auc) >= ENOUGH)]


def look_checks(results: Results) -> list[Check]:
    """Have the main synthetic images the look of the unlabelled device, and no mesh over them?"""
    part, checks = results.looks, list[Check]()
    ours = part.sets.get("unicorn", Looks())
    if ours.in_look is not None and part.accuracy is not None:
        bound = min(IN_LOOK, part.real if part.real is not None else IN_LOOK)  # no more than of its own images
        what = f"Synthetic images: at least {percent(bound)} in the look of the unlabelled device"
        found = f"{percent(ours.in_look)} (by a classifier that is right on {percent(part.accuracy)} of real images)"
        checks.append((what, found, ours.in_look >= bound) if part.accuracy >= TOLD_APART else (what, "", None))
    if ours.mesh is not None:
        what = f"Synthetic images: no mesh, no frequency of more than {MESH} times the power of those beside it"
        checks.append(_between(what, ours.mesh, (0.0, MESH)))
    return checks


def _between(what: str, found: float | None, bounds: tuple[float, float]) -> Check:
    return (what, "", None) if found is None else (what, fixed(found, 2), bounds[0] <= found <= bounds[1])


def _sampler(part: Sampler) -> Check:
    names = ("mean", "spread", "distance")
    bounds = [f"{what} within {percent(bound)}" for what, bound in zip(names, BOUNDS, strict=True)]
    expected = f"Sampler, of known data with exact predictions: {', '.join(bounds)}"
    errors = [error for error in (part.mean, part.spread, part.distance) if error is not None]
    if part.name is None or part.steps is None or len(errors) < len(names):
        return expected, "", None
    found = ", ".join(f"{what} {percent(error, '+')}" for what, error in zip(names, errors, strict=True))
    good = all(abs(error) <= bound for error, bound in zip(errors, BOUNDS, strict=True))
    return expected, f"{part.name} in {part.steps:.0f} steps: {found}", good
