"""A latent diffusion model as one object: images and scaled latents, and what does not belong together."""

import dataclasses

import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import nn

from tiny_networks import COARSE, LATENT, SCHEDULE, build_autoencoder, build_ldm, build_unet
from unicorn_monai.latent_diffusion import LatentDiffusion, StoredAutoencoder, downsampling, num_channels
from unicorn_monai.schedulers import DDIM

SCALE = 0.7


class Halves(nn.Module):
    """An autoencoder without loss: the same numbers, stored otherwise."""

    def encode(self, image):
        return image.unflatten(-1, (-1, 4)).unflatten(-3, (-1, 4)).movedim((-3, -1), (2, 3)).flatten(1, 3), None

    def decode_stage_2_outputs(self, z):
        return z.unflatten(1, (-1, 4, 4)).movedim((2, 3), (-3, -1)).flatten(-4, -3).flatten(-2, -1)


def stored(load=build_autoencoder):
    return StoredAutoencoder("a", load, num_channels=1, downsampling=4)


@torch.no_grad()
def test_latents_are_the_scaled_means_of_the_autoencoder(autoencoder):
    images = torch.rand(3, 1, 16, 16)
    latents = build_ldm(autoencoder=autoencoder, scale_factor=SCALE).encode(images)
    assert latents.shape == (3, LATENT, 4, 4)
    assert torch.equal(latents, autoencoder.encode(images)[0] * SCALE)
    assert torch.equal(build_ldm(autoencoder=autoencoder, scale_factor=2 * SCALE).encode(images), 2 * latents)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_decoding_in_chunks_is_decoding_at_once(autoencoder, size):
    latents = torch.randn(5, LATENT, 4, 4)
    at_once = autoencoder.decode_stage_2_outputs(latents / SCALE)
    ldm = build_ldm(autoencoder=autoencoder, scale_factor=SCALE)
    torch.testing.assert_close(ldm.decode(latents, size), at_once, rtol=0, atol=1e-5)
    assert ldm.decode(latents).shape == (5, 1, 16, 16)


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_what_an_autoencoder_without_loss_encodes_is_decoded_to_the_same_whatever_the_scale(scale):
    images = torch.rand(3, 1, 16, 16)
    ldm = build_ldm(build_unet(in_channels=16), Halves(), scale_factor=scale, latent_shape=(16, 4, 4))
    assert ldm.encode(images).shape == (3, 16, 4, 4)
    torch.testing.assert_close(ldm.decode(ldm.encode(images)), images, rtol=0, atol=1e-6)
    other = dataclasses.replace(ldm, scale_factor=2 * scale)
    torch.testing.assert_close(other.decode(ldm.encode(images)), images / 2, rtol=0, atol=1e-6)


def test_memory_that_runs_out_in_the_decoder_costs_time_but_no_image(autoencoder, monkeypatch):
    latents, decode, sizes = torch.randn(5, LATENT, 4, 4), autoencoder.decode_stage_2_outputs, []
    expected = build_ldm(autoencoder=autoencoder).decode(latents)

    def crowded(z):
        sizes.append(len(z))
        if len(z) > 2:
            raise torch.OutOfMemoryError
        return decode(z)

    monkeypatch.setattr(autoencoder, "decode_stage_2_outputs", crowded)
    torch.testing.assert_close(build_ldm(autoencoder=autoencoder).decode(latents, 4), expected, rtol=0, atol=1e-5)
    assert sizes == [4, 2, 2, 1]


def test_a_stored_autoencoder_is_loaded_where_it_is_needed_and_not_before(autoencoder):
    loaded = []
    kept = stored(lambda: loaded.append(1) or autoencoder)
    ldm, own = build_ldm(autoencoder=kept), build_ldm(autoencoder=autoencoder)
    assert (ldm.image_size, downsampling(kept), num_channels(kept)) == ((16, 16), 4, 1)
    assert loaded == []
    images = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(ldm.encode(images), own.encode(images))
        assert torch.equal(ldm.decode(torch.ones(2, LATENT, 4, 4)), own.decode(torch.ones(2, LATENT, 4, 4)))
    assert loaded == [1, 1]
    assert own.loaded_autoencoder() is ldm.loaded_autoencoder() is autoencoder


def test_the_autoencoder_tells_the_size_and_the_channels_of_the_images(autoencoder):
    assert (downsampling(autoencoder), num_channels(autoencoder)) == (4, 1)
    assert build_ldm(autoencoder=autoencoder, latent_shape=(LATENT, 4, 8)).image_size == (16, 32)
    volumes = build_ldm(build_unet(3), build_autoencoder(3), latent_shape=(LATENT, 4, 4, 2))
    assert volumes.image_size == (16, 16, 8)


def test_noise_is_added_by_the_schedule_of_the_training_and_not_by_that_of_the_sampler():
    noise_schedule = DDPMScheduler(1000, clip_sample=False, **SCHEDULE)
    ldm = build_ldm(scheduler=DDIM(50, **COARSE), train_scheduler=noise_schedule)
    latents, noise = torch.randn(2, 3, LATENT, 4, 4)
    timesteps = torch.tensor([0, 400, 999])
    alpha = noise_schedule.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    wanted = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    torch.testing.assert_close(ldm.add_noise(latents, noise, timesteps), wanted)


def test_the_device_is_that_of_the_unet(unet):
    assert build_ldm(unet).device == torch.device("cpu")
    assert build_ldm(unet.to("meta"), stored()).device == torch.device("meta")


def test_a_list_of_a_configuration_becomes_a_shape():
    assert build_ldm(latent_shape=[LATENT, 4, 4]).latent_shape == (LATENT, 4, 4)
    parts = {field.name: getattr(build_ldm(), field.name) for field in dataclasses.fields(LatentDiffusion)}
    assert LatentDiffusion(**parts | {"latent_shape": [LATENT, 4, 4]}).latent_shape == (LATENT, 4, 4)


def test_a_model_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        build_ldm().scale_factor = 2.0


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_factor_that_cannot_be_is_refused(scale):
    with pytest.raises(ValueError, match=r"scale_factor is .*; expected 1 / std of the latents, above 0"):
        build_ldm(scale_factor=scale)


def test_latents_that_the_unet_does_not_take_are_refused():
    with pytest.raises(ValueError, match=r"latent_shape is \(4, 4, 4\); expected the 3 channels of the U-Net"):
        build_ldm(latent_shape=(4, 4, 4))
