"""What diffusers writes, in MONAI's terms: the arguments that a ``config.json`` means, the file's name of a parameter.

Stable Diffusion's U-Net and ControlNet are MONAI's ``DiffusionModelUNet`` and ``ControlNet`` under other names. A rule
goes from MONAI's name to that of the file, so one table serves reading and writing, and what is left over on either
side is an error. Options that MONAI's networks do not have are refused by name, not ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from monai.networks.nets import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unicorn_monai.system.files import PathLike
from unicorn_monai.system.intake import read_text
from unicorn_monai.system.networks import freeze

WEIGHTS = "diffusion_pytorch_model"

# Options of which the networks here know one value only, which is the default of diffusers.
_FIXED_ENCODER = {
    "act_fn": "silu", "addition_embed_type": None, "addition_time_embed_dim": None, "class_embed_type": None,
    "downsample_padding": 1, "encoder_hid_dim": None, "encoder_hid_dim_type": None, "flip_sin_to_cos": True,
    "freq_shift": 0, "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None, "num_class_embeds": None, "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None, "resnet_time_scale_shift": "default",
    "transformer_layers_per_block": 1, "upcast_attention": False,
}  # fmt: skip
_FIXED = {
    "UNet2DConditionModel": {
        **_FIXED_ENCODER, "attention_type": "default", "center_input_sample": False, "class_embeddings_concat": False,
        "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": None, "dropout": 0.0,
        "dual_cross_attention": False, "mid_block_only_cross_attention": None, "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": False, "reverse_transformer_layers_per_block": None, "time_cond_proj_dim": None,
        "time_embedding_act_fn": None, "time_embedding_dim": None, "time_embedding_type": "positional",
        "timestep_post_act": None,
    },
    "ControlNetModel": {
        **_FIXED_ENCODER, "controlnet_conditioning_channel_order": "rgb", "global_pool_conditions": False,
    },
    "AutoencoderKL": {
        "act_fn": "silu", "latents_mean": None, "latents_std": None, "mid_block_add_attention": True,
        "shift_factor": None, "use_post_quant_conv": True, "use_quant_conv": True,
    },
}  # fmt: skip
# Options that are taken over, or that change nothing here (sample_size, force_upcast, ...).
_TAKEN = {
    "in_channels", "out_channels", "block_out_channels", "layers_per_block", "down_block_types", "up_block_types",
    "norm_num_groups", "norm_eps", "attention_head_dim", "cross_attention_dim", "use_linear_projection",
    "conditioning_channels", "conditioning_embedding_out_channels", "latent_channels", "scaling_factor", "sample_size",
    "force_upcast", "addition_embed_type_num_heads",
}  # fmt: skip
_REMEDY = {
    "upcast_attention": (
        " It guards float16 from overflow and changes nothing in float32 or bfloat16: set it to false in that file if "
        "you use these."
    ),
    "addition_embed_type": " Stable Diffusion XL is not supported; use a Stable Diffusion 1.x or 2.x folder.",
    "num_class_embeds": " Upscalers are not supported; use a text-to-image Stable Diffusion 1.x or 2.x folder.",
}

# MONAI's name of a parameter -> the file's, rule by rule.
_UNET = (
    (r"\.conv\.(weight|bias)$", r".\1"),  # MONAI wraps every convolution
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^out\.0\.", "conv_norm_out."),
    (r"^out\.2\.", "conv_out."),
    (r"^middle_block\.resnet_1\.", "mid_block.resnets.0."),
    (r"^middle_block\.resnet_2\.", "mid_block.resnets.1."),
    (r"^middle_block\.attention\.", "mid_block.attentions.0."),
    (r"\.downsampler\.op\.", ".downsamplers.0.conv."),
    (r"\.upsampler\.postconv\.", ".upsamplers.0.conv."),
    (r"\.skip_connection\.", ".conv_shortcut."),
    (r"\.out_proj\.", ".to_out.0."),
    (r"\.ff\.linear1\.", ".ff.net.0.proj."),
    (r"\.ff\.linear2\.", ".ff.net.2."),
)
_VAE = (
    (r"\.conv\.(weight|bias)$", r".\1"),
    (r"\.upsamplers\.0\.postconv\.", ".upsamplers.0.conv."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.attentions\.0\.norm\.", ".attentions.0.group_norm."),
    (r"\.attn\.out_proj\.", ".to_out.0."),
    (r"\.attn\.to_", ".to_"),
)
_OLD_VAE = (
    (r"\.to_out\.0\.", ".proj_attn."),
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
)


def unet_name(parameter: str) -> str:
    """The file's name of a parameter of ``DiffusionModelUNet`` or ``ControlNet``."""
    return _renamed(parameter, _UNET)


def vae_names(autoencoder: AutoencoderKL) -> dict[str, str]:
    """For each parameter of a Stable Diffusion autoencoder, but those of ``quant_conv``, its name in the file."""
    parts: dict[str, str] = {}
    for half in ("encoder", "decoder"):
        blocks: Any = getattr(autoencoder, half).blocks
        parts |= {f"{half}.blocks.{i}": f"{half}.{name}" for i, name in enumerate(_vae_blocks(half, blocks))}
    names = {}
    for parameter in autoencoder.state_dict():
        block = re.match(r"(en|de)coder\.blocks\.\d+", parameter)
        own = parameter if block is None else parts[block[0]] + parameter[block.end() :]
        if not parameter.startswith("quant_conv"):
            names[parameter] = _renamed(own, _VAE)
    return names


def old_vae_name(name: str) -> str:
    """The name that diffusers before 0.18 gave to a parameter of the autoencoder's attention."""
    return _renamed(name, _OLD_VAE)


def _vae_blocks(half: str, blocks: nn.ModuleList) -> Iterator[str]:
    """Names of the blocks, which MONAI keeps in one list and diffusers by level."""
    kinds = [type(block).__name__ for block in blocks]
    middle = kinds.index("SpatialAttentionBlock")
    level = resnet = 0
    for i, kind in enumerate(kinds):
        if i in (middle - 1, middle + 1):
            yield f"mid_block.resnets.{int(i > middle)}"
        elif kind == "SpatialAttentionBlock":
            yield "mid_block.attentions.0"
        elif kind == "AEKLResBlock":
            yield f"{'down' if half == 'encoder' else 'up'}_blocks.{level}.resnets.{resnet}"
            resnet += 1
        elif kind in ("AEKLDownsample", "UpSample"):
            yield f"down_blocks.{level}.downsamplers.0" if half == "encoder" else f"up_blocks.{level}.upsamplers.0"
            level, resnet = level + 1, 0
        else:
            yield {"GroupNorm": "conv_norm_out", "SiLU": "conv_act"}.get(kind, "conv_in" if i == 0 else "conv_out")


def _renamed(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON file of a Stable Diffusion folder, or an error that says what the folder is expected to be."""
    if not path.is_file():
        raise ValueError(
            f"No {what} at '{path}'; expected a Stable Diffusion 1.x or 2.x folder as diffusers writes it "
            "(`save_pretrained`): model_index.json and the folders unet, vae, text_encoder, tokenizer, scheduler."
        )
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"'{path}' is not JSON ({error}). Copy the folder again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a {type(content).__name__}; expected an object of options.")
    return content


def read_config(folder: PathLike, kind: str) -> dict[str, Any]:
    """The ``config.json`` of a network of class ``kind``, every option of it one that MONAI's network has."""
    path = Path(folder) / "config.json"
    config = read_json(path, f"configuration of a {kind}")
    if config.get("_class_name") != kind:
        raise ValueError(f"'{path}' describes a {config.get('_class_name')}; expected a {kind}.")
    for key, value in config.items():
        if key.startswith("_") or key in _TAKEN:
            continue
        if key in _FIXED[kind]:
            expected = _FIXED[kind][key]
            if any(one != expected for one in (value if isinstance(value, list) else [value])):
                raise ValueError(f"'{path}' has {key}: {value!r}; supported: {expected!r}.{_REMEDY.get(key, '')}")
        elif value not in (None, False):
            raise ValueError(f"'{path}' has the option {key}: {value!r}, which is not known here; remove it if it is "
                             "without effect.")  # fmt: skip
    return config


def unet_arguments(config: dict[str, Any], path: PathLike) -> dict[str, Any]:
    """Arguments of ``DiffusionModelUNet`` (those of ``ControlNet`` are among them) from a ``config.json``."""
    channels, down = list(config["block_out_channels"]), list(config["down_block_types"])
    known = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}
    up = list(config.get("up_block_types", [block.replace("Down", "Up") for block in reversed(down)]))
    if set(down + up) - known or [block.replace("Up", "Down") for block in reversed(up)] != down:
        raise ValueError(
            f"'{path}' has down_block_types {down} and up_block_types {up}; supported: DownBlock2D and "
            "CrossAttnDownBlock2D, and the same levels on the way up."
        )
    heads = config.get("attention_head_dim", 8)  # a misnomer of diffusers: the number of heads
    heads = list(heads) if isinstance(heads, list) else [heads] * len(channels)
    dimension = config["cross_attention_dim"]
    if not isinstance(dimension, int) or any(c % h for c, h in zip(channels, heads, strict=True)):
        raise ValueError(
            f"'{path}' has cross_attention_dim {dimension} and attention_head_dim {heads} for block_out_channels "
            f"{channels}; expected one number, and heads that divide the channels."
        )
    return {
        "spatial_dims": 2,
        "in_channels": config.get("in_channels", 4),
        "out_channels": config.get("out_channels", 4),
        "num_res_blocks": config.get("layers_per_block", 2),
        "channels": channels,
        "attention_levels": [block.startswith("CrossAttn") for block in down],
        "norm_num_groups": config.get("norm_num_groups", 32),
        "norm_eps": config.get("norm_eps", 1e-5),
        "num_head_channels": [c // h for c, h in zip(channels, heads, strict=True)],
        "with_conditioning": True,
        "cross_attention_dim": dimension,
        "use_flash_attention": True,  # scaled_dot_product_attention: the same numbers in less memory
    }


def vae_arguments(config: dict[str, Any], path: PathLike) -> dict[str, Any]:
    """Arguments of ``StableDiffusionAutoencoder`` from a ``config.json``."""
    blocks = [*config["down_block_types"], *config["up_block_types"]]
    if set(blocks) != {"DownEncoderBlock2D", "UpDecoderBlock2D"}:
        raise ValueError(f"'{path}' has blocks {blocks}; supported: DownEncoderBlock2D and UpDecoderBlock2D.")
    return {
        "channels": list(config["block_out_channels"]),
        "latent_channels": config.get("latent_channels", 4),
        "num_channels": config.get("in_channels", 3),
        "num_res_blocks": config.get("layers_per_block", 1),
        "norm_num_groups": config.get("norm_num_groups", 32),
    }


def weights_file(folder: PathLike, variant: str | None = None) -> Path:
    """The safetensors file of a network in a folder; ``variant``, "fp16", "non_ema", ..., is part of its name."""
    path = Path(folder) / (f"{WEIGHTS}.{variant}.safetensors" if variant else f"{WEIGHTS}.safetensors")
    if not path.is_file():
        found = sorted(file.name for file in Path(folder).glob(f"{WEIGHTS}*")) or "none"
        raise ValueError(
            f"No weights at '{path}'; found {found}. Set `variant` to read another one, e.g. 'fp16'; pickled .bin "
            "files are not read: save the pipeline again with safe_serialization."
        )
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"'{path}' is truncated or damaged ({error}). Copy it again.") from error


def fill(network: nn.Module, tensors: dict[str, Tensor], name: Callable[[str], str], path: Path) -> nn.Module:
    """Give every parameter of ``network`` the tensor of its name in the file, as float32; it is frozen then.

    A tensor that is missing, of another shape, or left over is refused.
    """
    state, left = {}, dict(tensors)
    for parameter, value in network.state_dict().items():
        tensor = left.pop(name(parameter), None)
        if tensor is None:
            raise ValueError(f"'{path}' lacks the tensor '{name(parameter)}', which its config.json asks for.")
        if tensor.squeeze().shape != value.squeeze().shape:  # linear or 1 x 1 convolution: Stable Diffusion has both
            raise ValueError(
                f"'{name(parameter)}' in '{path}' has shape {tuple(tensor.shape)}; its config.json asks for "
                f"{tuple(value.shape)}. Weights and configuration belong to different networks."
            )
        state[parameter] = tensor.reshape(value.shape).float().contiguous()
    if left:
        raise ValueError(
            f"'{path}' has {len(left)} tensors that its config.json does not ask for, first '{min(left)}'. It is not a "
            "Stable Diffusion 1.x or 2.x network."
        )
    network.load_state_dict(state, assign=True)
    return freeze(network)
