"""SegFormer (Xie et al. 2021) as a segmentation network like any other here: image in [0, 1] -> logits of its size.

The architecture and its weights are those of `transformers` (``pip install 'unicorn-monai[street]'``), so published
folders can be loaded. What this adds: ImageNet's normalisation, and logits enlarged from a quarter of the size BEFORE
the softmax, since entropy and overlap are about probabilities of pixels.

The names of the weights in memory differ between releases of `transformers` and from those in its files, which stay.
A ``SegFormer``'s state dictionary, and so our ``model.pt``, has the names of the files.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.images.files import IGNORE_LABEL
from unicorn_monai.system.files import PathLike
from unicorn_monai.system.intake import read_text
from unicorn_monai.system.weights import save_weights, sha256

SIZES: dict[str, dict[str, Any]] = {  # Table 6 of the paper
    "b0": {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 160, 256], "decoder_hidden_size": 256},
    "b1": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 256},
    "b2": {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768},
    "b3": {"depths": [3, 4, 18, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768},
    "b4": {"depths": [3, 8, 27, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768},
    "b5": {"depths": [3, 6, 40, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768},
}
_ARCHITECTURE = ("depths", "hidden_sizes", "decoder_hidden_size", "num_attention_heads", "sr_ratios", "patch_sizes",
                 "strides", "mlp_ratios")  # fmt: skip
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, standard deviation


class SegFormer(nn.Module):
    """SegFormer with logits at image resolution.

    Args:
        num_labels: number of labels K.
        size: "b0" to "b5".
        pretrained: folder of a trained SegFormer (config.json, model.safetensors); its decoder's last layer is replaced
            by a fresh one where it has another number of labels. Random weights without it.
        config: more entries of ``SegformerConfig``.
    """

    mean: Tensor
    std: Tensor
    network: Any  # of transformers

    def __init__(
        self, num_labels: int, size: str = "b0", pretrained: PathLike | None = None, config: dict | None = None
    ) -> None:
        super().__init__()
        try:
            import transformers  # type: ignore[missing-import]
        except ImportError as error:
            raise ValueError(
                "SegFormer needs the package transformers, which is missing. Run pip install 'unicorn-monai[street]', "
                "or use a network of MONAI."
            ) from error
        if size not in SIZES:
            raise ValueError(f"size is '{size}'; expected one of {list(SIZES)}.")
        model = transformers.SegformerForSemanticSegmentation
        own = {"num_labels": num_labels, "semantic_loss_ignore_index": IGNORE_LABEL}
        if pretrained is None:
            self.network = model(transformers.SegformerConfig(**(SIZES[size] | own | (config or {}))))
        else:
            self.network = _load(model, Path(pretrained), own | (config or {}))
        for name, values in zip(("mean", "std"), IMAGENET, strict=True):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)
        self.register_state_dict_post_hook(_to_file_names)
        self.register_load_state_dict_pre_hook(_to_own_names)

    def forward(self, image: Tensor) -> Tensor:
        """Image (batch, 3, rows, columns) in [0, 1] -> logits (batch, K, rows, columns)."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(
                f"SegFormer got an image of shape {tuple(image.shape)}; expected (batch, 3, rows, columns)."
            )
        logits = self.network(pixel_values=(image - self.mean) / self.std).logits
        return functional.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=False)

    def save_pretrained(self, folder: PathLike) -> None:
        """Write a folder that ``SegformerForSemanticSegmentation.from_pretrained`` of any release reads."""
        self.network.save_pretrained(str(folder))

    @cached_property
    def file_names(self) -> dict[str, str]:
        """Name of every weight in memory -> its name in a file, as this release of `transformers` writes it."""
        names = list(self.network.state_dict())
        with TemporaryDirectory() as folder:
            self.network.save_pretrained(folder, state_dict={name: torch.tensor([i]) for i, name in enumerate(names)})
            written = load_file(Path(folder) / "model.safetensors")
        found = {names[int(tag)]: name for name, tag in written.items() if tag.numel() == 1}
        if len(found) < max(len(names), len(written)):
            raise ValueError(
                f"This release of transformers writes {len(written)} tensors for the {len(names)} weights of a "
                "SegFormer; expected one for each. Use one that `make test-street` was run with (pyproject.toml)."
            )
        return {f"network.{name}": file for name, file in found.items()}


def _to_file_names(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    for own, file in module.file_names.items():
        state[prefix + file] = state.pop(prefix + own)


def _to_own_names(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for own, file in module.file_names.items():
        if prefix + file in state:
            state[prefix + own] = state.pop(prefix + file)


def import_pretrained(folder: PathLike, bundle_root: PathLike, weights: str = "model.pt") -> Path:
    """Publish a trained SegFormer of `transformers` as the weights of a part, e.g. ``rgb_2d/segformer``.

    Args:
        folder: config.json and model.safetensors, as ``save_pretrained`` writes them.
        bundle_root: the part; its ``segformer_size`` and ``config`` must be those of the folder.
        weights: file under ``models`` to write, which is returned.
    """
    labels = len(json.loads(read_text(_config(Path(folder)))).get("id2label", {})) or 2  # the default is left out
    network, own = SegFormer(labels, pretrained=folder), from_bundle(bundle_root, settings={"num_labels": labels})
    if not isinstance(own, SegFormer):
        raise ValueError(f"'{bundle_root}' defines a {type(own).__name__}; expected a SegFormer, as rgb_2d/segformer.")
    theirs, ours = ({k: _listed(getattr(net.network.config, k)) for k in _ARCHITECTURE} for net in (network, own))
    if differ := {key: value for key, value in theirs.items() if value != ours[key]}:
        own_values = {key: ours[key] for key in differ}
        raise ValueError(
            f"The SegFormer in '{folder}' has {differ}, that of '{bundle_root}' {own_values}. Set "
            f"`segformer_size` ({', '.join(SIZES)}) or `config` of the part to those of the folder."
        )
    target = Path(bundle_root) / "models" / weights
    save_weights(network, target, num_labels=labels, imported_sha256=sha256(Path(folder) / "model.safetensors"))
    return target


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # of a fresh configuration, and of one from a file


def _config(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"'{folder}' holds no SegFormer: no config.json. Give a folder as `save_pretrained` writes it."
        )
    return folder / "config.json"


def _load(model: Any, folder: Path, own: dict[str, Any]) -> nn.Module:
    _config(folder)
    try:
        network, found = model.from_pretrained(
            str(folder), local_files_only=True, ignore_mismatched_sizes=True, output_loading_info=True, **own
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"Cannot read a SegFormer from '{folder}' ({error}). Is model.safetensors complete?"
        ) from error
    if lacking := sorted(found["missing_keys"]):
        raise ValueError(
            f"'{folder}' lacks {len(lacking)} weights of a SegFormer, first '{lacking[0]}'. Copy it again."
        )
    return network
