"""A tiny Stable Diffusion with random weights, written by diffusers and transformers themselves.

Everything is random, normalisations and what starts at zero too: two swapped tensors or a forgotten one would show.
Groups of eight channels: a group of two values of one pixel is normalised to -1 and 1 whatever they are, so rounding
would decide.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

FORMS = {
    "1.x": {"attention_head_dim": 4, "use_linear_projection": False, "prediction_type": "epsilon"},
    "2.x": {"attention_head_dim": [2, 4, 4, 4], "use_linear_projection": True, "prediction_type": "v_prediction"},
}
WORDS = ("a", "photo", "of", "street", "rain", "fog")
TOKENS = 77


def randomize(network: nn.Module, std: float = 0.1) -> nn.Module:
    """Random weights where a fresh network has ones (normalisations) or zeros (biases, a ControlNet's convolutions)."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim == 1:
                nn.init.normal_(weight, mean=float(name == "weight"), std=std)
            elif not weight.any():
                nn.init.normal_(weight, std=std)
    return network.eval().requires_grad_(False)


def build(root: Path, form: str = "1.x", seed: int = 0) -> Path:
    """Write the folder; returns it."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(seed)
    settings = dict(FORMS[form])
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=settings.pop("prediction_type"),
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=2, block_out_channels=(32, 64, 64, 64), cross_attention_dim=32,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, **settings,
    )  # fmt: skip
    vae = AutoencoderKL(
        layers_per_block=2, block_out_channels=(32, 32, 64, 64), norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.18215,
    )  # fmt: skip
    tokenizer, text_encoder = clip()
    StableDiffusionPipeline(
        vae=randomize(vae), text_encoder=text_encoder, tokenizer=tokenizer, unet=randomize(unet), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False,
    ).save_pretrained(root)  # fmt: skip
    return root


def clip():
    """A tokenizer that knows a few words, and spells the others, with a text encoder of its vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    vocabulary, merges = bpe()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=32, intermediate_size=37, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=TOKENS, bos_token_id=start, eos_token_id=end,
            pad_token_id=end, projection_dim=32,
        )
    )  # fmt: skip
    return tokenizer, randomize(text_encoder)


def bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte pairs: every byte, every byte at the end of a word, and what the words are merged from."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(pair) for pair in merges]
    return {t: i for i, t in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def make_old(root: Path) -> Path:
    """Turn a folder into what diffusers 0.10 and transformers 4 wrote: other names, and a tokenizer in three files."""
    vae = root / "vae" / "diffusion_pytorch_model.safetensors"
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = {}
    for key, value in load_file(vae).items():
        for new, old in names.items():
            key = key.replace(new, old)
        tensors[key] = value
    save_file(tensors, vae, metadata={"format": "pt"})

    clip_file = root / "text_encoder" / "model.safetensors"
    tensors = load_file(clip_file)
    if not any(key.startswith("text_model.") for key in tensors):
        tensors = {f"text_model.{key}": value for key, value in tensors.items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
    save_file(tensors, clip_file, metadata={"format": "pt"})

    vocabulary, merges = bpe()
    for file in (root / "tokenizer").iterdir():
        file.unlink()
    (root / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (root / "tokenizer" / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
               "unk_token": "<|endoftext|>"}  # fmt: skip
    (root / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(special))
    (root / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS} | special)
    )
    return root
