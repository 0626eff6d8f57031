"""Stable Diffusion's networks against those of diffusers, on a tiny one with random weights."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.networks.nets import ControlNet, DiffusionModelUNet

from tiny_networks import Words
from unicorn_monai.backbones.stable_diffusion import (
    export_diffusers,
    latent_shape,
    load_autoencoder,
    load_controlnet,
    load_unet,
    new_controlnet,
    sampler,
    scale_factor,
    stored_autoencoder,
    train_scheduler,
    unet_definition,
)
from unicorn_monai.controlnets import controlnet_for, copy_encoder
from unicorn_monai.data.items import datalist
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.diffusion.latents import LatentDataset, LatentLoader
from unicorn_monai.diffusion.task import ControlNetTask
from unicorn_monai.diffusion.text import ClipTextEncoder, PromptEmbeddings, PromptTemplate, Text
from unicorn_monai.diffusion.training import ControlNetInferer, LatentPrepareBatch
from unicorn_monai.images.transforms import read_image
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.latent_diffusion import LatentDiffusion
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Requests
from unicorn_monai.synthesis.writer import Synthesizer
from unicorn_monai.system.networks import freeze
from unicorn_monai.training.settings import DiffusionSettings

diffusers = pytest.importorskip("diffusers", reason="needs diffusers: make test-street")
pytest.importorskip("transformers", reason="needs transformers: make test-street")
from stable_diffusion_folder import FORMS, build, make_old, randomize  # noqa: E402

LABELS, SIZE, LATENT = 5, 64, 8
PRECISION = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(scope="module", params=FORMS)
def folder(request, tmp_path_factory):
    return build(tmp_path_factory.mktemp("sd") / request.param, request.param)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sd") / "first")


@pytest.fixture
def own(first, tmp_path):
    """A copy of the folder, to be changed."""
    return shutil.copytree(first, tmp_path / "sd")


@pytest.fixture(params=PRECISION, ids=str)
def dtype(request):
    return request.param


def reference(folder, part, kind, dtype=torch.float32):
    return freeze(getattr(diffusers, kind).from_pretrained(folder / part).to(dtype))


def reference_controlnet(folder, channels, seed):
    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    return randomize(diffusers.ControlNetModel.from_unet(unet, conditioning_channels=channels), std=0.05)


@pytest.fixture
def controlnets(folder, tmp_path):
    """Those of diffusers, semantic and uncertainty, and ours read from what it wrote."""
    theirs = [reference_controlnet(folder, channels, seed) for seed, channels in enumerate((LABELS, 1))]
    for i, net in enumerate(theirs):
        net.save_pretrained(tmp_path / f"controlnet{i}")
    return theirs, [load_controlnet(tmp_path / f"controlnet{i}") for i in range(2)]


def inputs(dtype=torch.float32, batch=2, latent=(LATENT, LATENT)):
    x = torch.randn(batch, 4, *latent, dtype=dtype)
    image = [8 * side for side in latent]
    hints = (
        torch.rand(batch, LABELS, *image, dtype=dtype),
        torch.randn(batch, 1, 1, 1, dtype=dtype).expand(-1, 1, *image),
    )
    return x, torch.tensor([10, 700])[:batch], torch.randn(batch, 77, 32, dtype=dtype), hints


def street(root):
    """Four RGB images with label maps, of two sub-domains."""
    about = About(name="s", device="camera", labels=dict(enumerate("abcde")), modality="RGB", suffix=".png")
    with DatasetWriter(root, about) as writer:
        for i in range(4):
            random = np.random.default_rng(i)
            image = random.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
            label = random.integers(0, LABELS, (SIZE, SIZE), dtype=np.uint8)
            writer.add("training", image, label, subject=f"s{i}", sub_domain=["clear", "fog"][i % 2])
    return root


def assert_equal(ours, theirs, dtype=torch.float32):
    """To the precision asked for, relative to the largest value: random networks do not keep to any scale."""
    scale = max(1.0, theirs.abs().max().item())
    assert (ours - theirs).abs().max().item() <= PRECISION[dtype] * scale


def model(folder, scheduler=None, text=None, unet=None) -> LatentDiffusion:
    """The folder's model, for images of the size of the tests."""
    return LatentDiffusion(
        load_autoencoder(folder),
        unet or load_unet(folder),
        scheduler or sampler(folder, coarse=True),
        train_scheduler(folder),
        scale_factor(folder),
        latent_shape(folder, (SIZE, SIZE)),
        text,
    )


# ---------------------------------------------------------------- exactness


@torch.no_grad()
def test_the_unet_is_that_of_diffusers(folder, dtype):
    ours, theirs = load_unet(folder).to(dtype), reference(folder, "unet", "UNet2DConditionModel", dtype)
    assert type(ours) is DiffusionModelUNet
    x, t, context, _ = inputs(dtype)
    assert_equal(ours(x, t, context=context), theirs(x, t, context).sample, dtype)


@torch.no_grad()
def test_images_need_not_be_square(folder):
    ours, theirs = load_unet(folder), reference(folder, "unet", "UNet2DConditionModel")
    x, t, context, _ = inputs(latent=(8, 16))
    assert_equal(ours(x, t, context=context), theirs(x, t, context).sample)


@torch.no_grad()
def test_the_controlnets_are_those_of_diffusers(controlnets, dtype):
    x, t, context, hints = inputs(dtype)
    for theirs, ours, hint in zip(*controlnets, hints, strict=True):
        assert type(ours) is ControlNet
        down, mid = ours.to(dtype)(x, t, controlnet_cond=hint, context=context)
        expected = theirs.to(dtype)(x, t, context, hint, return_dict=False)
        assert len(down) == len(expected[0])
        for a, b in zip([*down, mid], [*expected[0], expected[1]], strict=True):
            assert b.abs().max() > 1e-3  # a residual that is zero would prove nothing
            assert_equal(a, b, dtype)


@torch.no_grad()
@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
def test_the_fused_step_is_the_multi_controlnet_of_diffusers(folder, controlnets, dtype, w):
    x, t, context, (label_map, hint) = inputs(dtype)
    theirs, ours = ([net.to(dtype) for net in nets] for nets in controlnets)
    ldm = model(folder, unet=load_unet(folder).to(dtype))
    prediction = DualControlNetInferer(ldm, *ours, w, "paper")(x, t, label_map, hint, context)
    both = diffusers.MultiControlNetModel(theirs)
    down, mid = both(x, t, context, [label_map, hint], [1 - w, w], return_dict=False)
    unet = reference(folder, "unet", "UNet2DConditionModel", dtype)
    extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    assert_equal(prediction, unet(x, t, context, **extra).sample, dtype)


@torch.no_grad()
def test_the_autoencoder_is_that_of_diffusers(folder, dtype):
    ours, theirs = load_autoencoder(folder).to(dtype), reference(folder, "vae", "AutoencoderKL", dtype)
    image = torch.rand(2, 3, SIZE, 2 * SIZE, dtype=dtype)
    mean, std = ours.encode(image)
    expected = theirs.encode(2 * image - 1).latent_dist
    assert mean.shape == (2, 4, LATENT, 2 * LATENT)
    assert_equal(mean, expected.mean, dtype)
    assert_equal(std, expected.std, dtype)
    z = torch.randn_like(mean)
    assert_equal(ours.decode_stage_2_outputs(z), theirs.decode(z).sample / 2 + 0.5, dtype)
    assert_equal(ours.reconstruct(image), theirs.decode(expected.mean).sample / 2 + 0.5, dtype)


@pytest.mark.parametrize("w", [0.25, 0.8])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_whole_run_is_that_of_the_pipeline(folder, controlnets, w, scale):
    prompts, seeds, n = ["a street, rain", "photo of fog"], [3, 4], 25
    theirs, (semantic, uncertainty) = controlnets
    _, _, _, (label_map, hint) = inputs()
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(folder, controlnet=theirs)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.stack([torch.randn(4, LATENT, LATENT, generator=torch.Generator().manual_seed(s)) for s in seeds])
    latents = pipeline(
        prompts, image=[label_map, hint], latents=noise, num_inference_steps=n, guidance_scale=scale,
        controlnet_conditioning_scale=[1 - w, w], output_type="latent", height=SIZE, width=SIZE,
    ).images  # fmt: skip
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample / 2 + 0.5

    clip = ClipTextEncoder(folder)
    ldm = model(folder, sampler(folder, "DDIM"), Words(clip.encode([""]), clip.encode))
    inferer = DualControlNetInferer(ldm, semantic, uncertainty, w, "paper", (1.0, 1.0, scale))
    images = inferer.sample(label_map, hint, seeds, n, context=ldm.text(prompts))
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)


def test_training_moves_the_weights_as_with_diffusers(folder, controlnets):
    theirs, ours = controlnets[0][0], controlnets[1][0]
    unets = reference(folder, "unet", "UNet2DConditionModel", torch.float64), load_unet(folder).double()
    losses = []
    for i, net in enumerate((theirs.double(), ours.double())):
        optimizer = torch.optim.AdamW(net.train().requires_grad_(True).parameters(), lr=1e-3)
        torch.manual_seed(5)
        own = []
        for _ in range(3):
            x, t, context, (label_map, _) = inputs(torch.float64)
            if i == 0:
                down, mid = net(x, t, context, label_map, return_dict=False)
                extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
                prediction = unets[0](x, t, context, **extra).sample
            else:
                down, mid = net(x, t, label_map, context=context)
                extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
                prediction = unets[1](x, t, context=context, **extra)
            loss = (prediction - torch.ones_like(prediction)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            own.append(loss.item())
        losses.append(own)
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][0] != pytest.approx(losses[0][2], rel=1e-3)


def test_the_old_layout_holds_the_same(own, first):
    old = make_old(own)
    for load in (load_unet, load_autoencoder):
        states = [load(folder).state_dict() for folder in (first, old)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    prompts = ["a photo of rain", "", "Zürich 12"]
    assert torch.equal(ClipTextEncoder(first).encode(prompts), ClipTextEncoder(old).encode(prompts))


def test_weights_in_half_precision_are_read_as_float32(own, first):
    net = diffusers.UNet2DConditionModel.from_pretrained(first / "unet").half()
    net.save_pretrained(own / "unet", variant="fp16")
    unet = load_unet(own, variant="fp16")
    assert {p.dtype for p in unet.parameters()} == {torch.float32}
    assert not any(p.requires_grad or p.is_meta for p in unet.parameters())


# ---------------------------------------------------------------- our own ControlNets, and back


def test_a_new_controlnet_is_a_copy_of_the_encoder(folder):
    unet = load_unet(folder)
    net = copy_encoder(new_controlnet(folder, LABELS), unet)
    x, t, context, (label_map, _) = inputs()
    down, mid = net(x, t, label_map, context=context)
    assert not any(r.any() for r in [*down, mid])
    again = controlnet_for(unet, LABELS, (16, 32, 96, 256))
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in again.state_dict().items()}


@torch.no_grad()
def test_exported_controlnets_are_read_by_diffusers(folder, tmp_path):
    net = randomize(copy_encoder(new_controlnet(folder, LABELS), load_unet(folder)), std=0.05)
    export_diffusers(net, tmp_path / "export", folder)
    theirs = diffusers.ControlNetModel.from_pretrained(tmp_path / "export").double()
    x, t, context, (label_map, _) = inputs(torch.float64)
    down, mid = net.double()(x, t, label_map, context=context)
    expected = theirs(x, t, context, label_map, return_dict=False)
    for a, b in zip([*down, mid], [*expected[0], expected[1]], strict=True):
        assert_equal(a, b, torch.float64)
    back = load_controlnet(tmp_path / "export").state_dict()
    assert all(torch.equal(value.float(), back[key]) for key, value in net.state_dict().items())


def test_an_export_has_the_configuration_that_diffusers_writes(folder, tmp_path):
    export_diffusers(new_controlnet(folder, 1), tmp_path / "ours", folder)
    reference_controlnet(folder, 1, 0).save_pretrained(tmp_path / "theirs")
    ours, theirs = (diffusers.ControlNetModel.load_config(tmp_path / name) for name in ("ours", "theirs"))
    loaded = diffusers.ControlNetModel.from_pretrained(tmp_path / "ours").config
    assert {key: value for key, value in loaded.items() if theirs.get(key) != value and not key.startswith("_")} == {}
    assert ours["_class_name"] == theirs["_class_name"]


def test_a_controlnet_of_another_unet_is_not_exported(first, unet, tmp_path):
    with pytest.raises(ValueError, match="does not belong to the U-Net of"):
        export_diffusers(controlnet_for(unet, 3), tmp_path / "export", first)
    assert not (tmp_path / "export").exists()


def test_training_needs_neither_clip_nor_the_autoencoder_once_both_have_been_used(own, tmp_path, monkeypatch):
    data = street(tmp_path / "data")

    def losses():
        text = Text(PromptEmbeddings(ClipTextEncoder(own), tmp_path / "cache"), PromptTemplate("a street, {words}"))
        dataset = LatentDataset(data, "training", stored_autoencoder(own), tmp_path / "cache", text, LABELS)
        unet = load_unet(own)
        ldm = LatentDiffusion(
            dataset.autoencoder, unet, sampler(own, coarse=True), train_scheduler(own), scale_factor(own),
            dataset.latent_shape, text,
        )  # fmt: skip
        assert ldm.image_size == (SIZE, SIZE)
        task = ControlNetTask(ldm, "semantic", DiffusionSettings(prompt_dropout=0.5), LABELS)
        torch.manual_seed(0)
        network = copy_encoder(new_controlnet(own, LABELS), unet)
        trainer = SupervisedTrainer(
            device=torch.device("cpu"), max_epochs=1, train_data_loader=LatentLoader(dataset, 2), network=network,
            optimizer=torch.optim.AdamW(network.parameters(), 1e-3), loss_function=torch.nn.MSELoss(), decollate=False,
            prepare_batch=LatentPrepareBatch(task), inferer=ControlNetInferer(task),
        )  # fmt: skip
        assert set(text.embeddings._known) == {"a street", "a street, foggy scene", ""}
        values = []
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: values.append(e.state.output["loss"].item()))
        trainer.run()
        return values

    first_run = losses()
    assert len(first_run) == 2
    monkeypatch.setattr(
        "unicorn_monai.backbones.stable_diffusion.load_autoencoder", lambda *_: pytest.fail("loaded again")
    )
    monkeypatch.setattr(ClipTextEncoder, "encode", lambda *_: pytest.fail("encoded again"))
    assert losses() == first_run


def test_a_run_makes_a_data_set_with_prompts(own, tmp_path):
    data, semantic = street(tmp_path / "data"), randomize(new_controlnet(own, LABELS), std=0.05)
    text = Text(PromptEmbeddings(ClipTextEncoder(own), tmp_path / "cache"), PromptTemplate())
    inferer = DualControlNetInferer(model(own, text=text), semantic, None, 1.0, "compositional", (1.0, 1.0, 3.0))
    generator = Generator(inferer, None, LABELS, 2)
    requests = Requests(label_dir=data, template=PromptTemplate(prompt="a street"), subdomains=["rain", "fog"])
    Synthesizer(generator, requests, tmp_path / "made", data).run()
    made = datalist(tmp_path / "made", "training", ("image", "label"))
    assert [item["synthetic"]["prompt"] for item in made] == ["a street, rainy scene", "a street, foggy scene"] * 2
    assert read_image(made[0]["image"], 3).shape == (3, SIZE, SIZE)
    before = generator(requests[:1])
    changed = Requests(label_dir=data, template=PromptTemplate(prompt="a photo of a street"), subdomains=["snow"])
    assert not torch.equal(generator(changed[:1]), before)
    rough = Generator(inferer, None, LABELS, 2, "bfloat16")(requests[:1])
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, before)
    assert (rough - before).abs().mean() < 0.05


# ---------------------------------------------------------------- settings


def test_the_scheduler_is_that_of_the_folder(folder):
    theirs = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    for scheduler in (train_scheduler(folder), sampler(folder), sampler(folder, "DDIM")):
        assert torch.equal(scheduler.alphas_cumprod, theirs.alphas_cumprod)
        assert scheduler.prediction_type == theirs.config.prediction_type
        assert scheduler.clip_sample is False
    ours = sampler(folder, "DDIM")
    for n in (1, 5, 30, 50):
        ours.set_timesteps(n)
        theirs.set_timesteps(n)
        assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert scale_factor(folder) == 0.18215


def test_latents_are_an_eighth_of_the_image(first):
    assert latent_shape(first, (512, 1024)) == [4, 64, 128]


@pytest.mark.parametrize("size", [(540, 960), (64, 100), (32, 32)])
def test_sides_that_cannot_be_halved_often_enough_are_refused(first, size):
    with pytest.raises(ValueError, match=r"sides that are multiples of 64, e\.g\. \(\d+, \d+\)"):
        latent_shape(first, size)


# ---------------------------------------------------------------- bad folders


def change(path, **options):
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


CONFIGURATIONS = {
    "XL pipeline": ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "describes a StableDiffusionXL"),
    "XL": ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type: .text_time.*XL is not"),
    "upcast": ("unet/config.json", {"upcast_attention": True}, "upcast_attention: True.*set it to false"),
    "classes": ("unet/config.json", {"num_class_embeds": 1000}, "num_class_embeds: 1000.*Upscalers are not supported"),
    "class": ("unet/config.json", {"_class_name": "UNet2DModel"}, "describes a UNet2DModel; expected a UNet2DCond"),
    "blocks": ("unet/config.json", {"down_block_types": ["AttnDownBlock2D"] * 4}, "down_block_types .* supported:"),
    "levels": ("unet/config.json", {"up_block_types": ["CrossAttnUpBlock2D"] * 4}, "the same levels on the way up"),
    "heads": ("unet/config.json", {"attention_head_dim": 5}, "heads that divide the channels"),
    "inpainting": ("unet/config.json", {"in_channels": 9}, "inpainting and upscaling networks are not supported"),
    "layers": ("unet/config.json", {"transformer_layers_per_block": [1, 2, 10, 10]}, "transformer_layers_per_block"),
    "future": ("unet/config.json", {"wavelets": "db4"}, "option wavelets: 'db4', which is not known"),
    "no shift": ("vae/config.json", {"shift_factor": 0.1}, "shift_factor: 0.1; supported: None"),
    "vae blocks": ("vae/config.json", {"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "supported: DownEncoderBl"),
    "schedule": ("scheduler/scheduler_config.json", {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule: 'squared"),
    "prediction": ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type: 'sample'"),
    "zero snr": ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: True"),
    "scale": ("vae/config.json", {"scaling_factor": 0}, "scaling_factor 0; expected above 0"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "options", "message"), CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_what_is_not_supported_is_refused_by_name(own, file, options, message):
    change(own / file, **options)
    with pytest.raises(ValueError, match=message):
        (load_unet(own), load_autoencoder(own), sampler(own), scale_factor(own))


def test_what_has_no_effect_is_not_refused(own):
    change(own / "unet" / "config.json", sample_size=96, new_switch=False, new_setting=None)
    load_unet(own)


def test_an_empty_folder_is_no_stable_diffusion(tmp_path):
    for load in (load_unet, load_autoencoder, unet_definition, train_scheduler, scale_factor):
        with pytest.raises(ValueError, match=r"expected a Stable Diffusion 1.x or 2.x folder"):
            load(tmp_path)


@pytest.mark.parametrize(("part", "load"), [("unet", load_unet), ("vae", load_autoencoder)])
def test_missing_or_damaged_weights_are_told(own, part, load):
    path = own / part / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:5], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors' is truncated or damaged"):
            load(own)
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"No weights at .* found \['diffusion_pytorch_model.bin'\]"):
        load(own)
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.fp16\.safetensors"):
        load(own, variant="fp16")


@pytest.mark.parametrize(("part", "load"), [("unet", load_unet), ("vae", load_autoencoder)])
def test_weights_that_do_not_fit_their_configuration_are_told(own, part, load):
    from safetensors.torch import load_file, save_file

    path = own / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({key: value for key, value in tensors.items() if key != "conv_in.weight" and "encoder.conv_in" not in key}
              , path)  # fmt: skip
    with pytest.raises(ValueError, match=r"lacks the tensor '.*conv_in.weight'"):
        load(own)
    save_file(tensors | {"more.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"has 1 tensors that .* first 'more.weight'"):
        load(own)
    save_file(tensors, path)
    change(own / part / "config.json", block_out_channels=[32, 32, 32, 64])
    with pytest.raises(ValueError, match=r"has shape .* belong to different networks"):
        load(own)


def test_a_configuration_that_is_not_json_is_told(own):
    (own / "unet" / "config.json").write_text("{'in_channels': 4")
    with pytest.raises(ValueError, match="is not JSON"):
        load_unet(own)


def test_an_unknown_sampler_is_refused(first):
    with pytest.raises(ValueError, match="Unknown sampler 'Euler'; expected one of"):
        sampler(first, "Euler")
