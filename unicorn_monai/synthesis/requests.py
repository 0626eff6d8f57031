"""What is asked of the generator: one request for each image, which depends on (run seed, index) only."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from unicorn_monai.data.items import datalist, require_same_labels
from unicorn_monai.data.layout import list_folders, read_header
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.weights import sha256

logger = logging.getLogger("unicorn_monai")


@dataclass(frozen=True)
class Request:
    """One image to be made."""

    index: int  # position in the data set
    seed: int  # of the image's noise
    split: str = "training"
    subject: str = ""  # of the label map
    label: str | None = None  # file of the label map; None without semantic control
    source: str | None = None  # name of the data set that the label map is of
    uncertainty: float | None = None  # requested, in [0, 1]; None without uncertainty control
    augment: int | None = None  # seed of the label map's augmentation; None leaves it as it is
    prompt: str | None = None  # what the image is to show, in words
    spacing_mm: tuple[float, float] | None = None  # (axial, lateral) of the stored label map, where its item tells one


class Requests(Sequence[Request]):
    """The images to be made: label maps in turn, each with an uncertainty of its own; worked out when asked for.

    Args:
        count: images for the first split; every further split gets images in proportion to its label maps.
        seed: of the run.
        label_dir: data set with the label maps; None without semantic control. Those of several are mixed evenly.
        split: splits whose label maps are used, e.g. ["training", "validation"].
        uncertainty: drawn from a prior, or these in turn (as in the paper's Fig. 5); None without that control.
        augment: change the label maps' geometry a little (``images.warping.warp``).
        template: makes the prompts from the label maps' items.
        subdomains: the prompts name these in turn instead of the label maps' own, e.g. ["fog", "rain"].
    """

    def __init__(
        self,
        count: int | None = None,
        seed: int = 0,
        label_dir: PathLike | Sequence[PathLike] | None = None,
        split: str | Sequence[str] = "training",
        uncertainty: UncertaintyPrior | Sequence[float] | None = None,
        augment: bool = False,
        template: Callable[..., str] | None = None,
        subdomains: Sequence[str] | None = None,
    ) -> None:
        splits = [split] if isinstance(split, str) else list(split)
        maps = {s: _in_turn(label_dir, s) if label_dir is not None else [{}] for s in splits}
        self.maps = {s: [_told(item) for item in maps[s]] for s in splits}
        self.folders = 1 if label_dir is None else len(list_folders(label_dir))
        first = len(maps[splits[0]])
        count = first if count is None else count
        if count < 1:
            raise ValueError(f"count is {count}; expected at least one image.")
        self.counts = {s: max(1, round(count * len(maps[s]) / first)) for s in splits}
        self.seed, self.augment, self.template, self.subdomains = seed, augment, template, list(subdomains or [])
        self.items = maps if template is not None else {}
        prior = self.prior = uncertainty if isinstance(uncertainty, UncertaintyPrior) else None
        self.uncertainties: list[float] | None = None
        if not isinstance(uncertainty, UncertaintyPrior | None):
            self.uncertainties = [float(u) for u in uncertainty]
            if not self.uncertainties or not all(0 <= u <= 1 for u in self.uncertainties):
                raise ValueError(f"uncertainty is {self.uncertainties}; expected at least one number, each in [0, 1].")
        drawn = [derive_seed(seed, i) for i in range(min(len(self), 1000))]
        if prior is not None and (rejected := prior.rejected(drawn)):
            logger.info(
                f"{rejected} of {len(drawn)} draws of the uncertainty would lie outside [0, 1] without truncation"
            )

    def __len__(self) -> int:
        return sum(self.counts.values())

    @overload
    def __getitem__(self, index: int) -> Request: ...

    @overload
    def __getitem__(self, index: slice) -> list[Request]: ...

    def __getitem__(self, index: int | slice) -> Request | list[Request]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"Request {index} of {len(self)}.")
        place, splits = index, iter(self.counts)
        while place >= self.counts[split := next(splits)]:
            place -= self.counts[split]
        subject, label, source, spacing = self.maps[split][place % len(self.maps[split])]
        image_seed = derive_seed(self.seed, index)
        uncertainty = None if self.prior is None else float(self.prior.sample([image_seed])[0])
        if self.uncertainties is not None:
            uncertainty = self.uncertainties[place % len(self.uncertainties)]
        change = derive_seed(self.seed, index, 1) if self.augment else None
        prompt, spacing_mm = self._prompt(split, place), None if spacing is None else (spacing[0], spacing[1])
        return Request(index, image_seed, split, subject, label, source, uncertainty, change, prompt, spacing_mm)

    def _prompt(self, split: str, place: int) -> str | None:
        """The prompt of an image; the sub-domain is another one whenever its label map comes again.

        Neighbours of several data sets have the same, or each data set would be asked for some sub-domains only.
        """
        if self.template is None:
            return None
        again, item = divmod(place, len(self.items[split]))
        turn = again + item // self.folders
        named = self.subdomains[turn % len(self.subdomains)] if self.subdomains else None
        return self.template(self.items[split][item], named)

    def identity(self) -> str:
        """Sha256 of what decides every request, the content of the label maps too; their folder does not."""
        maps = {
            s: [(subject, label and (Path(label).name, sha256(label)), spacing) for subject, label, _, spacing in maps]
            for s, maps in self.maps.items()
        }  # neither its size nor its date tells a label map that was drawn anew
        prior = None if self.prior is None else asdict(self.prior)
        everything: list[Any] = [self.counts, self.seed, self.augment, self.uncertainties, prior, maps]
        if self.template is not None:
            everything.append([self._prompt(s, i) for s in self.counts for i in range(self.counts[s])])
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()


def _told(item: dict[str, Any]) -> tuple[str, str | None, str | None, Sequence[float] | None]:
    """What a request takes from a label map's item: subject, file, name of its data set, size of its pixels."""
    source = Path(item["dataset"]).name if "dataset" in item else None
    return str(item.get("subject", "")), item.get("label"), source, item.get("spacing_mm")


def _in_turn(label_dir: PathLike | Sequence[PathLike], split: str) -> list[dict[str, Any]]:
    """Items of one data set, or of several mixed evenly: each once, wherever one begins to count and ends.

    Where several differ in the size of their pixels, each item tells its own.
    """
    folders = list_folders(label_dir)
    each = [datalist(folder, split, ("image", "label")) for folder in folders]
    require_same_labels(folders)
    spacings = [read_header(folder).get("spacing_mm") for folder in folders]
    if any(spacing != spacings[0] for spacing in spacings):
        for spacing, items in zip(spacings, each, strict=True):
            for item in items:
                item.setdefault("spacing_mm", spacing)
    places = [((i + 0.5) / len(items), item) for items in each for i, item in enumerate(items)]
    return [item for _, item in sorted(places, key=lambda place: place[0])]


def derive_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, e.g. (run seed, index)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def with_uncertainty(requests: Sequence[Request], uncertainty: float) -> list[Request]:
    """The same requests at another uncertainty."""
    return [replace(request, uncertainty=uncertainty) for request in requests]
