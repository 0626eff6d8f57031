"""Networks of monai-generative 0.2.3 with known weights, and what they answer: so must `backbones.legacy`.

    python tests/helpers/legacy_reference.py FOLDER

needs torch and monai-generative 0.2.3 (`make test-legacy` makes an environment of them) and writes ``legacy.json``, of
which ``tests/files`` holds a copy, and a checkpoint of every network. Weights and inputs follow from their names, so
the tests have the same ones without monai-generative.
"""

from __future__ import annotations

import base64
import json
import sys
from importlib.metadata import version
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor, nn

AUTOENCODER = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": 1,
    "num_channels": [8, 16],
    "attention_levels": [False, False],
    "latent_channels": 3,
    "norm_num_groups": 4,
}
LOCAL = {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
CONTROLNET = {
    "spatial_dims": 2,
    "in_channels": 3,
    "num_res_blocks": 1,
    "num_channels": [8, 16],
    "attention_levels": [False, True],
    "norm_num_groups": 4,
    "num_head_channels": 8,
}
UNET = {**CONTROLNET, "out_channels": 3}
HINT = {"conditioning_embedding_in_channels": 4, "conditioning_embedding_num_channels": [4, 8]}
CROSS = {"with_conditioning": True, "cross_attention_dim": 5, "transformer_num_layers": 2}
CLASSES = {"num_class_embeds": 4, "resblock_updown": True}
SOLID = {"spatial_dims": 3, "num_head_channels": [4, 4]}
CASES = {
    "autoencoder without attention": ("AutoencoderKL", {**AUTOENCODER, **LOCAL}),
    "autoencoder with non-local attention": ("AutoencoderKL", AUTOENCODER),
    "autoencoder with attention": ("AutoencoderKL", {**AUTOENCODER, "attention_levels": [False, True]}),
    "autoencoder with transposed convolutions": ("AutoencoderKL", {**AUTOENCODER, "use_convtranspose": True}),
    "autoencoder in 3D": ("AutoencoderKL", {**AUTOENCODER, "spatial_dims": 3, "attention_levels": [False, True]}),
    "U-Net": ("DiffusionModelUNet", UNET),
    "U-Net with attention in the middle only": ("DiffusionModelUNet", {**UNET, "attention_levels": [False, False]}),
    "U-Net with cross-attention": ("DiffusionModelUNet", {**UNET, **CROSS}),
    "U-Net with classes": ("DiffusionModelUNet", {**UNET, **CLASSES}),
    "U-Net in 3D": ("DiffusionModelUNet", {**UNET, **SOLID}),
    "ControlNet": ("ControlNet", {**CONTROLNET, **HINT}),
    "ControlNet with cross-attention": ("ControlNet", {**CONTROLNET, **HINT, **CROSS}),
    "ControlNet with classes": ("ControlNet", {**CONTROLNET, **HINT, **CLASSES}),
    "ControlNet in 3D": ("ControlNet", {**CONTROLNET, **HINT, **SOLID}),
}


def numbers(name: str, shape: list[int]) -> Tensor:
    """Numbers in [-1, 1] that follow from the name; uniform ones are the same on every processor."""
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(crc32(name.encode()))) - 1


def weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A state dictionary of random weights, of a size that keeps the outputs near 1."""
    state = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            state[name] = numbers(name, shape) * (3 / torch.Size(shape[1:]).numel()) ** 0.5
        else:
            state[name] = 0.2 * numbers(name, shape) + float(name.endswith("weight"))
    return state


def answers(kind: str, arguments: dict, network: nn.Module) -> dict[str, Tensor]:
    """What a network, of monai-generative or of today's MONAI, makes of inputs that follow from its arguments."""
    dims = arguments["spatial_dims"]
    if kind == "AutoencoderKL":
        mean, std = network.encode(numbers("image", [1, 1, *[16, 16, 4][:dims]]))
        decoded = network.decode(numbers("latent", [1, 3, *[8, 8, 2][:dims]]))
        return {"mean": mean, "std": std, "decoded": decoded}
    inputs = {"x": numbers("noisy", [2, 3, *[8, 8, 4][:dims]]), "timesteps": torch.tensor([3, 700])}
    if arguments.get("with_conditioning"):
        inputs["context"] = numbers("context", [2, 6, arguments["cross_attention_dim"]])
    if arguments.get("num_class_embeds"):
        inputs["class_labels"] = torch.tensor([1, 3])
    if kind == "DiffusionModelUNet":
        return {"prediction": network(**inputs)}
    down, middle = network(**inputs, controlnet_cond=numbers("hint", [2, 4, *[16, 16, 8][:dims]]))
    return {**{f"down {i}": residual for i, residual in enumerate(down)}, "middle": middle}


def packed(tensor: Tensor) -> str:
    """A tensor's float32 values as text."""
    return base64.b64encode(tensor.detach().float().contiguous().numpy().tobytes()).decode()


def unpacked(text: str) -> Tensor:
    """The values in a text made by `packed`, flat."""
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)


def main(folder: Path) -> None:
    """Write the reference and the checkpoints."""
    from generative.networks import nets

    record: dict = {"versions": {name: version(name) for name in ("monai-generative", "monai", "torch")}, "cases": {}}
    folder.mkdir(parents=True, exist_ok=True)
    for index, (case, (kind, arguments)) in enumerate(CASES.items()):
        network = getattr(nets, kind)(**arguments).eval()
        shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
        network.load_state_dict(weights(shapes))
        with torch.no_grad():
            found = answers(kind, arguments, network)
        record["cases"][case] = {"shapes": shapes, "answers": {name: packed(value) for name, value in found.items()}}
        torch.save(network.state_dict(), folder / f"{index}.pt")
    lines = ",\n".join(f"{json.dumps(case)}: {json.dumps(content)}" for case, content in record["cases"].items())
    text = f'{{"versions": {json.dumps(record["versions"])},\n"cases": {{\n{lines}\n}}}}\n'
    (folder / "legacy.json").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
