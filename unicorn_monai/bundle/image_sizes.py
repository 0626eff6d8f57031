"""Which images a run can take: both domains go through all of its networks, which halve them and double them again.

    segmentation U-Net     product of its strides
    latent diffusion       2^(levels of the autoencoder - 1) x 2^(levels of the U-Net - 1), so for the ControlNets
    style transfer         2^(halvings of the generator)

Rows and columns must be multiples of each; the style transfer's, with its mirrored borders, at least two multiples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from monai.bundle import ConfigParser

from unicorn_monai.bundle.installation import configured, load_config
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import SPLITS, label_names, list_folders, read_header
from unicorn_monai.images.files import read_shape
from unicorn_monai.system.files import PathLike


def multiples(
    preset: str | None, overrides: Mapping[str, Any] | None = None, translates: bool = False
) -> dict[str, int]:
    """What image sides must be multiples of, by network; ``translates``: the style transfer's too."""
    bundles = ["retinal_unet", "latent_diffusion", *["style_transfer"] * translates]
    tables = [_factors(configured(bundle, preset, (overrides or {}).get(bundle))) for bundle in bundles]
    return {name: factor for table in tables for name, factor in table.items()}


def _factors(config: dict[str, Any]) -> dict[str, int]:
    """What the networks of an ``inference.json`` need; nothing where they do not say, as those of a folder."""
    parser, network = ConfigParser(config), config.get("network_def", {})

    def levels(definition: str) -> int:
        return 2 ** (len(parser.get_parsed_content(f"{definition}::channels")) - 1)

    if "autoencoder_def" in config:
        known = "channels" in network and "channels" in config["autoencoder_def"]
        return {"the latent diffusion model": levels("autoencoder_def") * levels("network_def")} if known else {}
    if "num_downs" in network:
        return {"the style transfer": 2 ** parser.get_parsed_content("network_def::num_downs")}
    if "strides" in network:
        return {"the segmentation network": math.prod(parser.get_parsed_content("network_def::strides"))}
    return {}


def check_sides(dataset_dir: PathLike | Sequence[Any], bundle_root: PathLike) -> None:
    """Refuse images whose sides the networks of a bundle cannot halve and double again, before one is read."""
    for name, factor in _factors(load_config(bundle_root)).items():
        for folder in list_folders(dataset_dir):
            splits = [split for split in SPLITS if read_header(folder).get(split)]
            if not splits:
                continue
            rows, columns, *_ = read_shape(datalist(folder, splits[0])[0]["image"])
            if rows % factor or columns % factor:
                fitting = tuple(max(1, round(side / factor)) * factor for side in (rows, columns))
                raise ValueError(
                    f"The images of '{folder}' are {(rows, columns)} (rows, columns); expected multiples of {factor}, "
                    f"since {name} halves them. Convert them again with another `--size` of data_prep, e.g. {fitting}."
                )


def check_domains(labeled: PathLike, unlabeled: PathLike, factors: Mapping[str, int]) -> None:
    """Refuse two data sets that the networks cannot see together, though each is sound by itself."""
    modality = read_header(labeled).get("modality", "OCT")
    channels, sizes = (3 if modality == "RGB" else 1), {}
    for folder in (labeled, unlabeled):
        rows, columns, *colours = read_shape(datalist(folder, "training")[0]["image"])
        sizes[folder] = (rows, columns)
        found = colours[0] if colours else 1
        if found != channels:
            raise ValueError(
                f"The images of '{folder}' have {found} channel(s); expected {channels}, since the modality of "
                f"'{labeled}' is '{modality}'. Convert them alike, or correct 'modality' in dataset.json (RGB for "
                "colours)."
            )
    if sizes[labeled] != sizes[unlabeled]:
        raise ValueError(
            f"The images of '{labeled}' are {sizes[labeled]} (rows, columns), those of '{unlabeled}' "
            f"{sizes[unlabeled]}; expected one size, for the same networks see both. Convert one of them again with "
            "the `--size` of data_prep."
        )
    multiple = math.lcm(*factors.values())
    if any(side % multiple for side in sizes[labeled]):
        fitting = tuple(max(1, round(side / multiple)) * multiple for side in sizes[labeled])
        raise ValueError(
            f"The images of both domains are {sizes[labeled]} (rows, columns); expected multiples of {multiple}, since "
            f"the networks halve them ({', '.join(f'{name}: {factor}' for name, factor in factors.items())}). Convert "
            f"both again with another `--size` of data_prep, e.g. {fitting}."
        )
    names = [label_names(folder) for folder in (labeled, unlabeled)]
    if names[1] and names[0] != names[1]:  # without any label map nothing can disagree
        raise ValueError(
            f"The labels of '{labeled}' are {names[0]}, those of '{unlabeled}' {names[1]}; expected the same in the "
            "same order. Convert both with the same labels, or correct 'labels' in dataset.json."
        )
