"""SegFormer (Xie et al. 2021) as a segmentation network like any other here: image in [0, 1] -> logits of its size.

The architecture and its weights are those of `transformers` (``pip install 'unicorn-monai[street]'``), so published
folders can be loaded. What this adds: ImageNet's normalisation, and logits enlarged from a quarter of the size BEFORE
the softmax, since entropy and overlap are about probabilities of pixels.

The names of the weights in memory differ between releases of `transformers` and from those in its files. Our
``model.pt`` holds the names in memory and is refused by a release with others; what is to last is a folder written by
:meth:`SegFormer.save_pretrained`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from unicorn_monai.datasets import IGNORE_LABEL, PathLike

SIZES: dict[str, dict[str, Any]] = {  # Table 6 of the paper
    "b0": {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 160, 256], "decoder_hidden_size": 256},
    "b1": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 256},
    "b2": {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768},
    "b3": {"depths": [3, 4, 18, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768},
    "b4": {"depths": [3, 8, 27, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768},
    "b5": {"depths": [3, 6, 40, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768},
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, standard deviation


class SegFormer(nn.Module):
    """SegFormer with logits at image resolution.

    Args:
        num_labels: number of labels K.
        size: "b0" to "b5".
        pretrained: folder of a trained SegFormer (config.json, model.safetensors); its decoder's last layer is replaced
            by a fresh one where it has another number of labels. Random weights without it.
        config: more entries of ``SegformerConfig``.

    Raises:
        ValueError: unknown size, a folder that holds no SegFormer, `transformers` is not installed.
    """

    mean: Tensor
    std: Tensor
    network: Any  # of transformers

    def __init__(
        self,
        num_labels: int,
        size: str = "b0",
        pretrained: PathLike | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        transformers = _transformers()
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


def _load(model: Any, folder: Path, own: dict[str, Any]) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"'{folder}' holds no SegFormer: no config.json. Give a folder as `save_pretrained` writes it."
        )
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


def _transformers() -> Any:
    try:
        import transformers  # type: ignore[missing-import]
    except ImportError as error:
        raise ValueError(
            "SegFormer needs the package transformers, which is missing. Run pip install 'unicorn-monai[street]', "
            "or use a network of MONAI."
        ) from error
    return transformers
