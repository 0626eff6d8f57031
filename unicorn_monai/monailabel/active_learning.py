"""Which B-scan next? The one the segmentation network is least certain of: u(x), Eq. (4), of all unlabelled studies.

An uncertainty belongs to the weights that gave it. Their sha256 is noted beside it, and an image is measured again as
soon as the weights are others. Images already served come last, those served longest ago first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from typing_extensions import TypedDict

from unicorn_monai.monailabel.client import Device, take
from unicorn_monai.monailabel.segmentation import Segmentation
from unicorn_monai.monailabel.studies import Studies

logger = logging.getLogger(__name__)

UNCERTAINTY = "uncertainty"
MEASURED_WITH = "uncertainty_weights"


class Scoring(TypedDict, total=False):
    """What a client may set."""

    device: Device


def outdated(studies: Studies, weights: str) -> list[str]:
    """Unlabelled real images that the network with these weights (sha256) has not measured yet."""
    return [i for i in studies.real(labeled=False) if studies.get_image_info(i).get(MEASURED_WITH) != weights]


class UncertaintyScoring(ScoringMethod):
    """Measure the uncertainty of every unlabelled image by the task of the segmentation."""

    def __init__(self, task: Segmentation) -> None:
        super().__init__("Image uncertainty (mean normalised entropy, 0 to 1) of every unlabelled image")
        self.task = task

    def check(self, request: Mapping[str, Any], studies: Studies) -> None:
        """Refuse wrong settings when a request arrives."""
        take(request, Scoring)

    def __call__(self, request: dict[str, Any], datastore: Studies) -> dict[str, Any]:
        """Measure what the current weights have not measured yet: {"total", "skipped", "executed", "scores"}."""
        settings, weights = take(request, Scoring), self.task.weights_sha256()
        images, scores, failed = outdated(datastore, weights), {}, {}
        for image in images:
            asked = {**settings, "image": datastore.get_image_uri(image), "result_write_to_file": False}
            try:
                scores[image] = self.task(asked)[1][UNCERTAINTY]
            except ValueError as error:  # one bad file does not keep the others from being measured
                failed[image] = str(error)
                logger.warning(f"{image} could not be measured: {error}")
        known = scores | dict.fromkeys(failed)
        datastore.update_images({i: {UNCERTAINTY: u, MEASURED_WITH: weights} for i, u in known.items()})
        total = len(datastore.real(labeled=False))
        result = {"total": total, "skipped": total - len(images), "executed": len(scores), "scores": scores}
        return result | ({"failed": failed} if failed else {})


class MostUncertainFirst(Strategy):
    """The unlabelled real image with the highest uncertainty that was not served yet."""

    def __init__(self) -> None:
        super().__init__("Most uncertain first; images already served come last, synthetic ones never")

    def __call__(self, request: dict[str, Any], datastore: Studies) -> str | None:
        """Id of the image; None when every image has a label. Refused while no image has been measured."""
        infos = {image: datastore.get_image_info(image) for image in datastore.real(labeled=False)}
        measured = {image: info[UNCERTAINTY] for image, info in infos.items() if info.get(UNCERTAINTY) is not None}
        if not infos:
            return None
        if not measured:
            raise ValueError(
                f"None of the {len(infos)} unlabelled images has been measured yet. Wait for the scoring method "
                f"'{UNCERTAINTY}' (GET /scoring/), or start it (POST /scoring/{UNCERTAINTY})."
            )
        served = {i: infos[i].get("strategy", {}).get(request.get("strategy"), {}).get("ts", 0) for i in measured}
        return min(measured, key=lambda image: (served[image], -measured[image], image))
