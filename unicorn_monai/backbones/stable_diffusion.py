"""Stable Diffusion 1.x and 2.x as MONAI networks: read a folder that diffusers wrote, write ControlNets back.

    model_index.json   unet/   vae/   text_encoder/   tokenizer/   scheduler/        (config.json + safetensors each)

The U-Net and the ControlNets are stock MONAI networks (one constant apart: GroupNorm before the transformers has an
epsilon of 1e-6 here, 1e-5 elsewhere), the autoencoder needs the subclass below. All give what diffusers' networks give,
to rounding (``tests/backbones/test_stable_diffusion.py``). Prompts are encoded in `diffusion.text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets import AutoencoderKL, ControlNet, DiffusionModelUNet
from monai.networks.nets.autoencoderkl import Decoder, Encoder
from monai.networks.nets.diffusion_model_unet import SpatialTransformer
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from unicorn_monai.backbones import diffusers_layout as layout
from unicorn_monai.controlnets import controlnet_for
from unicorn_monai.latent_diffusion import StoredAutoencoder
from unicorn_monai.schedulers import DDIM, DPMSolverPlusPlus, UniPC
from unicorn_monai.system.files import PathLike, sweep, write_json
from unicorn_monai.system.networks import require
from unicorn_monai.system.weights import save_tensors, sha256

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionControlNetPipeline", "StableDiffusionImg2ImgPipeline")
Device = torch.device | str | None
SAMPLERS = {"DDIM": DDIM, "DPMSolverPlusPlus": DPMSolverPlusPlus, "UniPC": UniPC}
EMBEDDING_CHANNELS = (16, 32, 96, 256)  # of the ControlNets' condition embedding, as diffusers has it


class StableDiffusionAutoencoder(AutoencoderKL):
    """MONAI's ``AutoencoderKL`` with what Stable Diffusion's has besides; images in [0, 1], as everywhere here.

    Those are: a SiLU before the last convolution of either half, one residual block more per level in the decoder, an
    encoder that gives mean and log-variance in one tensor, of which the two quantising convolutions see everything,
    and images in [-1, 1].
    """

    def __init__(
        self,
        channels: Sequence[int] = (128, 256, 512, 512),
        latent_channels: int = 4,
        num_channels: int = 3,
        num_res_blocks: int = 2,
        norm_num_groups: int = 32,
    ) -> None:
        levels = len(channels)
        shared: dict[str, Any] = {"spatial_dims": 2, "channels": tuple(channels), "attention_levels": (False,) * levels}
        shared |= {"norm_num_groups": norm_num_groups, "norm_eps": 1e-6, "use_flash_attention": True}
        super().__init__(
            in_channels=num_channels, out_channels=num_channels, latent_channels=latent_channels,
            num_res_blocks=num_res_blocks, **shared,
        )  # fmt: skip
        self.encoder = Encoder(
            in_channels=num_channels, out_channels=2 * latent_channels, num_res_blocks=(num_res_blocks,) * levels,
            **shared,
        )  # fmt: skip
        self.decoder = Decoder(
            in_channels=latent_channels, out_channels=num_channels, num_res_blocks=(num_res_blocks + 1,) * levels,
            **shared,
        )  # fmt: skip
        for half in (self.encoder, self.decoder):
            blocks: Any = half.blocks
            blocks.insert(len(blocks) - 1, nn.SiLU())
        self.quant_conv_mu = Convolution(2, 2 * latent_channels, latent_channels, kernel_size=1, conv_only=True)
        self.quant_conv_log_sigma = Convolution(2, 2 * latent_channels, latent_channels, kernel_size=1, conv_only=True)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (batch, channels, rows, columns) in [0, 1] -> mean and standard deviation of the latents."""
        return super().encode(2 * x - 1)

    def decode(self, z: Tensor) -> Tensor:
        """Latents -> images in [0, 1], up to what the decoder overshoots."""
        return (super().decode(z) + 1) / 2


def check_folder(folder: PathLike) -> Path:
    """The folder, if it holds a Stable Diffusion 1.x or 2.x text-to-image pipeline; not XL, inpainting, ..."""
    path = Path(folder) / "model_index.json"
    kind = layout.read_json(path, "index of a pipeline").get("_class_name")
    require(kind in PIPELINES, f"'{path}' describes a {kind}; supported are Stable Diffusion 1.x and 2.x: {PIPELINES}.")
    return Path(folder)


def unet_definition(folder: PathLike) -> dict[str, Any]:
    """Arguments of ``DiffusionModelUNet`` for the U-Net of a Stable Diffusion folder."""
    part = check_folder(folder) / "unet"
    arguments = layout.unet_arguments(layout.read_config(part, "UNet2DConditionModel"), part / "config.json")
    latent = layout.vae_arguments(*_vae_config(folder))["latent_channels"]
    got = {arguments["in_channels"], arguments["out_channels"]}
    require(got == {latent}, f"'{part / 'config.json'}' has channels {got}; expected the {latent} of the autoencoder's "
            "latents (inpainting and upscaling networks are not supported).")  # fmt: skip
    return arguments


def load_unet(folder: PathLike, variant: str | None = None, device: Device = None) -> DiffusionModelUNet:
    """The U-Net of a Stable Diffusion folder, frozen, float32; ``variant`` of its file, e.g. "fp16" or "non_ema"."""
    with torch.device("meta"):  # no time and memory for weights that are replaced
        unet = DiffusionModelUNet(**unet_definition(folder))
    path = layout.weights_file(Path(folder) / "unet", variant)
    layout.fill(_stable_diffusion_eps(unet), layout.read_weights(path), layout.unet_name, path)
    return unet.to(device)


def new_controlnet(folder: PathLike, conditioning_channels: int) -> ControlNet:
    """A ControlNet for a Stable Diffusion folder, with random weights; `controlnets.copy_encoder` fills its encoder.

    The hint at image resolution has as many channels as there are labels, or 1 for the uncertainty.
    """
    levels = len(layout.vae_arguments(*_vae_config(folder))["channels"])
    require(levels == len(EMBEDDING_CHANNELS), f"'{folder}/vae/config.json' has {levels} levels; the ControlNet's "
            f"condition embedding halves {len(EMBEDDING_CHANNELS) - 1} times, for 4 levels.")  # fmt: skip
    return _stable_diffusion_eps(controlnet_for(unet_definition(folder), conditioning_channels, EMBEDDING_CHANNELS))


def load_controlnet(folder: PathLike, variant: str | None = None, device: Device = None) -> ControlNet:
    """A ControlNet that diffusers wrote, frozen, float32; its hint has as many channels as its ``config.json`` says."""
    config, path = layout.read_config(folder, "ControlNetModel"), Path(folder) / "config.json"
    with torch.device("meta"):
        channels = config.get("conditioning_embedding_out_channels", EMBEDDING_CHANNELS)
        controlnet = controlnet_for(
            layout.unet_arguments(config, path), config.get("conditioning_channels", 3), channels
        )
    path = layout.weights_file(folder, variant)
    layout.fill(_stable_diffusion_eps(controlnet), layout.read_weights(path), layout.unet_name, path)
    return controlnet.to(device)


def load_autoencoder(folder: PathLike, variant: str | None = None, device: Device = None) -> StableDiffusionAutoencoder:
    """The autoencoder of a Stable Diffusion folder, frozen, float32."""
    with torch.device("meta"):
        autoencoder = StableDiffusionAutoencoder(**layout.vae_arguments(*_vae_config(folder)))
    path = layout.weights_file(Path(folder) / "vae", variant)
    tensors = layout.read_weights(path)
    names = layout.vae_names(autoencoder)
    if not set(names.values()) & {key for key in tensors if ".to_q." in key}:
        names = {parameter: layout.old_vae_name(name) for parameter, name in names.items()}
    for kind in ("weight", "bias"):  # one convolution of both moments, here one for each
        moments = tensors.pop(f"quant_conv.{kind}", None)
        if moments is not None and len(moments) % 2 == 0:
            for part, tensor in zip(("mu", "log_sigma"), moments.chunk(2), strict=True):
                tensors[f"quant_conv_{part}.conv.{kind}"] = tensor
    layout.fill(autoencoder, tensors, lambda parameter: names.get(parameter, parameter), path)
    return autoencoder.to(device)


def stored_autoencoder(folder: PathLike, variant: str | None = None, device: Device = None) -> StoredAutoencoder:
    """The autoencoder of a Stable Diffusion folder for `latents.LatentDataset`, loaded only if latents are missing."""
    path = layout.weights_file(check_folder(folder) / "vae", variant)
    vae = layout.vae_arguments(*_vae_config(folder))
    load, factor = partial(load_autoencoder, folder, variant, device), 2 ** (len(vae["channels"]) - 1)
    return StoredAutoencoder(_sha256(path), load, vae["num_channels"], factor)


def weights_metadata(folder: PathLike) -> dict[str, dict[str, Any]]:
    """What is known about the weights of a Stable Diffusion folder, as `bundle.references.metadata_of` asks for it."""
    found = {part: _sha256(layout.weights_file(check_folder(folder) / part, None)) for part in ("vae", "unet")}
    unet = {
        "sha256": found["unet"],
        "autoencoder_sha256": found["vae"],
        "scale_factor": scale_factor(folder),
        "prediction_type": _schedule(folder)[0]["prediction_type"],
    }
    return {"model.pt": unet, "autoencoder.pt": {"sha256": found["vae"]}}


def _sha256(path: Path) -> str:
    """Of a file of gigabytes, which several parts of a configuration ask for: computed once."""
    stat = path.stat()
    return _sha256_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _sha256_of(path: Path, size: int, time: int) -> str:
    return sha256(path)


def scale_factor(folder: PathLike) -> float:
    """What the latents of a Stable Diffusion folder are multiplied by."""
    config, path = _vae_config(folder)
    value = config.get("scaling_factor", 0.18215)
    require(isinstance(value, int | float) and value > 0, f"'{path}' has scaling_factor {value!r}; expected above 0.")
    return value


def latent_shape(folder: PathLike, image_size: Sequence[int]) -> list[int]:
    """(channels, rows, columns) of the latents of images whose sides the networks can halve: multiples of 64."""
    vae = layout.vae_arguments(*_vae_config(folder))
    factor = 2 ** (len(vae["channels"]) - 1)
    multiple = factor * 2 ** (len(unet_definition(folder)["channels"]) - 1)
    fits = [max(multiple, multiple * round(side / multiple)) for side in image_size]
    require(
        list(image_size) == fits,
        f"The images are {tuple(image_size)} pixels; Stable Diffusion needs sides that are multiples of {multiple}, "
        f"e.g. {tuple(fits)}. Resample with the `--size` of data_prep.",
    )
    return [vae["latent_channels"], *(side // factor for side in image_size)]


def train_scheduler(folder: PathLike) -> DDPMScheduler:
    """The noise schedule of a Stable Diffusion folder, for training."""
    return DDPMScheduler(**_schedule(folder)[0])


def sampler(folder: PathLike, name: str = "UniPC", coarse: bool = False) -> DDIM:
    """A sampler with the noise schedule of a Stable Diffusion folder.

    "UniPC", "DPMSolverPlusPlus", or "DDIM" with the timesteps of diffusers' scheduler of that name; ``coarse`` as in
    :class:`unicorn_monai.schedulers.DDIM`.
    """
    require(name in SAMPLERS, f"Unknown sampler '{name}'; expected one of {list(SAMPLERS)}.")
    schedule, config = _schedule(folder)
    if name == "DDIM":
        schedule |= {
            "timestep_spacing": config.get("timestep_spacing", "leading"),
            "set_alpha_to_one": config.get("set_alpha_to_one", config.get("_class_name") == "DDIMScheduler"),
            "steps_offset": config.get("steps_offset", 0),
        }
    return SAMPLERS[name](coarse=coarse, **schedule)


def export_diffusers(controlnet: ControlNet, folder: PathLike, stable_diffusion: PathLike) -> None:
    """Write a ControlNet as diffusers does: ``ControlNetModel.from_pretrained(folder)`` reads it.

    It was trained for the U-Net of the folder ``stable_diffusion``.
    """
    config = layout.read_config(check_folder(stable_diffusion) / "unet", "UNet2DConditionModel")
    hint_channels = next(w for w in controlnet.controlnet_cond_embedding.parameters() if w.ndim > 1).shape[1]
    with torch.device("meta"):
        expected = new_controlnet(stable_diffusion, hint_channels)
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (controlnet, expected)]
    require(
        shapes[0] == shapes[1],
        f"The ControlNet does not belong to the U-Net of '{stable_diffusion}': {len(shapes[0])} parameters against "
        f"{len(shapes[1])}, or of other shapes.",
    )
    linear = config.get("use_linear_projection", False)
    tensors = {}
    for parameter, value in controlnet.state_dict().items():
        flat = linear and value.ndim > 1 and (".proj_in." in parameter or ".proj_out." in parameter)
        tensors[layout.unet_name(parameter)] = (value.flatten(1) if flat else value).detach().cpu()
    kept = ("act_fn", "attention_head_dim", "block_out_channels", "cross_attention_dim", "down_block_types",
            "downsample_padding", "flip_sin_to_cos", "freq_shift", "in_channels", "layers_per_block", "norm_eps",
            "norm_num_groups", "use_linear_projection")  # fmt: skip
    written = {key: config[key] for key in kept if key in config} | {
        "_class_name": "ControlNetModel",
        "conditioning_channels": hint_channels,
        "conditioning_embedding_out_channels": list(EMBEDDING_CHANNELS),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    sweep(Path(folder))
    write_json(Path(folder) / "config.json", written)
    save_tensors(tensors, Path(folder) / f"{layout.WEIGHTS}.safetensors", format="pt")


def _stable_diffusion_eps(network: Any) -> Any:
    """GroupNorm before a transformer has an epsilon of 1e-6, whatever ``norm_eps`` says; MONAI has one for all."""
    for module in network.modules():
        if isinstance(module, SpatialTransformer):
            module.norm.eps = 1e-6
    return network


def _vae_config(folder: PathLike) -> tuple[dict[str, Any], Path]:
    part = check_folder(folder) / "vae"
    return layout.read_config(part, "AutoencoderKL"), part / "config.json"


def _schedule(folder: PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of a MONAI scheduler, and the configuration that they are from."""
    path = check_folder(folder) / "scheduler" / "scheduler_config.json"
    config = layout.read_json(path, "configuration of a scheduler")
    schedules = {"scaled_linear": "scaled_linear_beta", "linear": "linear_beta"}
    for key, supported in {
        "beta_schedule": list(schedules),
        "prediction_type": ["epsilon", "v_prediction"],
        "trained_betas": [None],
        "rescale_betas_zero_snr": [False],
        "thresholding": [False],
    }.items():
        value = config.get(key, "linear" if key == "beta_schedule" else supported[0])
        require(value in supported, f"'{path}' has {key}: {value!r}; supported: {supported}.")
    return {
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "schedule": schedules[config.get("beta_schedule", "linear")],
        "beta_start": config.get("beta_start", 0.0001),
        "beta_end": config.get("beta_end", 0.02),
        "prediction_type": config.get("prediction_type", "epsilon"),
        "clip_sample": False,
    }, config
