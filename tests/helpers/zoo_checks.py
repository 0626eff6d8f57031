"""What the continuous integration of MONAI's model zoo asks of a bundle (its ``ci/verify_bundle.py``, mode "full").

    directory     LICENSE, configs/metadata.json; preferred: models/model.pt, configs/inference.json
    version       named in "changelog" of the metadata
    metadata      follow their schema (``verify_metadata``)
    data shape    ``verify_net_in_out`` of ``network_def``
    TorchScript   ``ckpt_export`` of ``models/model.pt``

The zoo keeps lists of its own bundles that are left out of single checks. Ours, with the reasons:
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out
from torch import nn

SCHEMA = Path(__file__).parents[1] / "files" / "meta_schema.json"
NO_WEIGHTS_OF_ITS_OWN = {  # as `exclude_verify_preferred_files_list`
    "synthesis": "samples with the networks of the other bundles",
    "style_transfer": "several methods, each with weights of its own: models/METHOD/model.pt",
    "rgb_2d": "holds several networks, each as a part with weights of its own",
}
NO_SINGLE_TENSOR = {  # as the generative bundles in `exclude_verify_shape_list`
    "semantic_controlnet": "takes a latent, a timestep and a condition, and gives a list of residuals and another one",
    "uncertainty_controlnet": "the same",
    "synthesis": "its network_def is a ControlNet's",
    "joint": "takes a latent, a timestep and two conditions",
    "rgb_2d": "holds several networks; its own inference.json is that of synthesis",
}
NO_TORCHSCRIPT = {  # as the generative bundles in `exclude_verify_torchscript_list`
    **NO_SINGLE_TENSOR,
    "latent_diffusion": "MONAI's DiffusionModelUNet and AutoencoderKL cannot be scripted",
    "style_transfer": "weights of its own for each method",
}


def check_directory(root: Path) -> None:
    """The files that the zoo asks for."""
    wanted = ["LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md"]
    wanted += [] if root.name in NO_WEIGHTS_OF_ITS_OWN else ["models/model.pt"]
    assert [file for file in wanted if not (root / file).is_file()] == []


def check_version(root: Path) -> None:
    """The version is in the changelog, and what it needs is pinned so that pip understands it."""
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    pins = [metadata[f"{name}_version"] for name in ("monai", "pytorch", "numpy")]
    assert all(re.fullmatch(r"\d+(\.\d+)+", pin) for pin in [*pins, *metadata["required_packages_version"].values()])


def check_metadata(root: Path, scratch: Path) -> None:
    """The metadata follow the schema, which MONAI downloads unless it is there."""
    schema = shutil.copy(SCHEMA, scratch / "schema.json")
    verify_metadata(meta_file=str(root / "configs" / "metadata.json"), filepath=str(schema))


def check_shapes(root: Path, n: int = 1, **options) -> None:
    """The network takes and gives what the metadata say."""
    if "timesteps" in network_format(root)["inputs"]:
        options["extra_forward_args"] = {"timesteps": torch.zeros(1)}
    configs = [str(root / "configs" / file) for file in ("metadata.json", "inference.json")]
    verify_net_in_out("network_def", *configs, device="cpu", n=n, bundle_root=str(root), **options)


def network_format(root: Path) -> dict:
    """What the metadata say of the network."""
    return json.loads((root / "configs" / "metadata.json").read_text())["network_data_format"]


class Reconstruction(nn.Module):
    """An autoencoder as a network of one input and one output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network.reconstruct(image)


def check_autoencoder(root: Path, scratch: Path, n: int = 1) -> None:
    """The autoencoder takes and gives what the metadata say of it."""
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    path = scratch / "metadata.json"
    path.write_text(json.dumps(metadata | {"network_data_format": metadata["autoencoder_data_format"]}))
    verify_net_in_out(
        "reconstruction",
        str(path),
        str(root / "configs" / "inference.json"),
        device="cpu",
        n=n,
        bundle_root=str(root),
        reconstruction={"_target_": f"{__name__}.Reconstruction", "network": "@autoencoder_def"},
    )


def check_torchscript(root: Path, scratch: Path) -> None:
    """The weights can be exported, and what was exported can be loaded."""
    ckpt_export(
        net_id="network_def",
        filepath=str(scratch / "model.ts"),
        ckpt_file=str(root / "models" / "model.pt"),
        meta_file=str(root / "configs" / "metadata.json"),
        config_file=str(root / "configs" / "inference.json"),
        bundle_root=str(root),
    )
    torch.jit.load(str(scratch / "model.ts"))
