"""What do sampling and one training step of a ControlNet cost, here and in diffusers? Timed; nothing is judged here.

    python -m benchmarks.stable_diffusion                    full size on the first GPU, 512 x 512, bfloat16
    python -m benchmarks.stable_diffusion --tiny             the tiny form of the tests, on the CPU

Stable Diffusion 1.5 by shape, its weights random, so prompts are random embeddings. Both sides get the same weights,
noise, number of steps, two ControlNets and classifier-free guidance; needs the extra `street` and diffusers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from diffusers import ControlNetModel as TheirControlNet
from torch import Tensor, nn

from unicorn_monai.backbones import (
    export_diffusers,
    latent_shape,
    load_autoencoder,
    load_unet,
    new_controlnet,
    sampler,
    scale_factor,
    train_scheduler,
)
from unicorn_monai.controlnets import copy_encoder
from unicorn_monai.diffusion import ControlNetInferer, ControlNetTask, PromptTemplate
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.latent_diffusion import LatentDiffusion
from unicorn_monai.system import finite, freeze
from unicorn_monai.training import DiffusionSettings

LABELS, TOKENS = 20, 77
FULL = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
TINY = {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32, "attention_head_dim": 4}
VAE = {True: (32, 32, 64, 64), False: (128, 256, 512, 512)}


def write_folder(root: Path, tiny: bool) -> None:
    """A Stable Diffusion 1.x folder with random weights, without its text encoder."""
    UNet2DConditionModel(sample_size=64, **(TINY if tiny else FULL)).save_pretrained(root / "unet")
    AutoencoderKL(
        block_out_channels=VAE[tiny], layers_per_block=2, latent_channels=4, norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(root / "vae")  # fmt: skip
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(root / "scheduler")  # fmt: skip
    (root / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))


class RandomWords:
    """Stands for the text: random embeddings, since the folder has no text encoder."""

    template, subdomains = PromptTemplate(), ()

    def __init__(self, width: int, device: torch.device) -> None:
        self.width, self.device = width, device
        self.null = self([""])

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(prompts, tokens, dimensions)."""
        return torch.randn(len(prompts), TOKENS, self.width, device=self.device)


def ldm_of(folder: Path, o: argparse.Namespace, words: RandomWords) -> LatentDiffusion:
    """The folder's model on the device of the options."""
    device = torch.device(o.device)
    return LatentDiffusion(
        load_autoencoder(folder, device=device),
        load_unet(folder, device=device),
        sampler(folder, "DDIM", coarse=True),
        train_scheduler(folder),
        scale_factor(folder),
        latent_shape(folder, (o.size, o.size)),
        words,
    )


def timed(run: Callable[[], Any], repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of the fastest of several runs after one to warm up, and the largest memory used."""
    run()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    memory = {"gigabytes": torch.cuda.max_memory_allocated() / 2**30} if device.type == "cuda" else {}
    return {"seconds": min(seconds), **memory}


def sampling(folder: Path, controlnets: list[nn.Module], o: argparse.Namespace) -> dict[str, Any]:
    """A batch of images with both ControlNets and classifier-free guidance: ours, theirs."""
    device = torch.device(o.device)
    label_map = torch.nn.functional.one_hot(torch.randint(0, LABELS, (o.batch, o.size, o.size)), LABELS)
    label_map, hint = label_map.movedim(-1, 1).float().to(device), torch.randn(o.batch, device=device)
    words = RandomWords((TINY if o.tiny else FULL)["cross_attention_dim"], device)
    ldm = ldm_of(folder, o, words)
    context, null = words([""] * o.batch), words.null
    seeds = list(range(o.batch))
    inferer = DualControlNetInferer(ldm, *controlnets, 0.5, "paper", (1, 1, o.guidance))

    def ours() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=o.bfloat16):
            latents = inferer.sample_latents(label_map, hint, seeds, o.steps, context=context)
            with torch.no_grad():
                return ldm.decode(latents, o.batch)

    result: dict[str, Any] = {"ours": timed(ours, o.repeats, device)}
    dtype = torch.bfloat16 if o.bfloat16 else torch.float32
    nets = [TheirControlNet.from_pretrained(folder / f"controlnet{i}", torch_dtype=dtype) for i in range(2)]
    pipeline = StableDiffusionControlNetPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype), text_encoder=None, tokenizer=None,
        unet=UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype),
        controlnet=MultiControlNetModel(nets), scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).to(device)  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    image = hint.reshape(-1, 1, 1, 1).expand(-1, 1, o.size, o.size).contiguous()
    shape = latent_shape(folder, (o.size, o.size))
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def theirs() -> Any:
        return pipeline(
            prompt_embeds=context.to(dtype), negative_prompt_embeds=null.to(dtype).expand_as(context),
            image=[label_map.to(dtype), image.to(dtype)], controlnet_conditioning_scale=[0.5, 0.5],
            latents=noise.to(device, dtype), num_inference_steps=o.steps, guidance_scale=o.guidance, output_type="pt",
            height=o.size, width=o.size,
        ).images  # fmt: skip

    result["diffusers"] = timed(theirs, o.repeats, device)
    result["times as fast"] = result["diffusers"]["seconds"] / result["ours"]["seconds"]
    for side in ("ours", "diffusers"):
        result[side]["seconds per image"] = result[side]["seconds"] / o.batch
    return result


def training(folder: Path, o: argparse.Namespace) -> dict[str, float]:
    """One step of AdamW for the Semantic-ControlNet: forward, backward, update."""
    device = torch.device(o.device)
    words = RandomWords((TINY if o.tiny else FULL)["cross_attention_dim"], device)
    ldm = ldm_of(folder, o, words)
    net = copy_encoder(new_controlnet(folder, LABELS).to(device), ldm.unet)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)
    settings = DiffusionSettings(device=device, precision="bfloat16" if o.bfloat16 else "float32")
    inferer = ControlNetInferer(ControlNetTask(ldm, "semantic", settings, LABELS))
    latents = torch.randn(o.batch, *ldm.latent_shape, device=device)
    conditions = {
        "semantic": torch.rand(o.batch, LABELS, o.size, o.size, device=device),
        "context": words([""] * o.batch),
        "timesteps": torch.randint(0, 1000, (o.batch,), device=device),
    }

    def step() -> None:
        noise = torch.randn_like(latents)
        loss = (inferer(latents, net, noise=noise, **conditions) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return timed(step, o.repeats, device)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=finite, default=7.5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--float32", dest="bfloat16", action="store_false")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_folder(root, options.tiny)
        controlnets = [freeze(new_controlnet(root, channels)).to(options.device) for channels in (LABELS, 1)]
        for i, net in enumerate(controlnets):
            export_diffusers(net, root / f"controlnet{i}", root)  # type: ignore[arg-type]
        result: dict[str, Any] = {"settings": vars(options), "sampling": sampling(root, controlnets, options)}
        del controlnets
        result["training step"] = training(root, options)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
