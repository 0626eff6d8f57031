"""Latents of whole data sets: encoded once, mirrored rightly, scaled to unit variance."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import nn
from torch.utils.data import SequentialSampler

from tiny_networks import LATENT, SCHEDULE, build_unet
from unicorn_monai.data.items import datalist
from unicorn_monai.data.uncertainties import read_uncertainties
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.diffusion.latents import LatentDataset, LatentLoader, Uncertainties, latent_diffusion_of
from unicorn_monai.diffusion.text import PromptEmbeddings, PromptTemplate, Text
from unicorn_monai.diffusion.word_vectors import WordVectors
from unicorn_monai.images.files import write_array
from unicorn_monai.images.transforms import read_image
from unicorn_monai.latent_diffusion import StoredAutoencoder
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.schedulers import DDIM

SIZE, LABELS = 16, {0: "vitreous", 1: "RNFL", 2: "choroid"}


def write(root, count=6, size=SIZE, seed=0):
    random = np.random.default_rng(seed)
    with DatasetWriter(root, About(name="tiny", device="d", labels=LABELS)) as writer:
        for i in range(count):
            label = random.integers(0, len(LABELS), (size, size), dtype=np.uint8)
            writer.add("training", random.integers(0, 255, (size, size), dtype=np.uint8), label, subject=f"s{i}")
    return root


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data")


@pytest.fixture
def encoder(autoencoder):
    """An autoencoder whose latents have a mean and a deviation worth mentioning."""
    nn.init.normal_(autoencoder.quant_conv_mu.conv.weight, std=0.2)
    nn.init.constant_(autoencoder.quant_conv_log_sigma.conv.bias, -2.0)
    return autoencoder


@pytest.fixture
def make(data, encoder, tmp_path):
    def make(dataset_dir=data, split="training", **options):
        return LatentDataset(dataset_dir, split, encoder, tmp_path / "cache", **options)

    return make


def forbid(*_):
    raise AssertionError("encoded again")


def test_latents_are_those_of_the_autoencoder(data, encoder, make):
    item = make()[2]
    with torch.no_grad():
        mean, std = encoder.encode(read_image(datalist(data, "training")[2]["image"])[None])
    torch.testing.assert_close(item["mean"], mean[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(item["std"], std[0], rtol=1e-4, atol=1e-5)
    assert make().latent_shape == (LATENT, SIZE // 4, SIZE // 4)


def test_images_are_encoded_once(encoder, make, monkeypatch):
    first = make()
    monkeypatch.setattr(encoder, "encode", forbid)
    again = make()
    assert torch.equal(first.mean, again.mean)
    assert torch.equal(first.std, again.std)


def test_another_autoencoder_or_another_image_is_encoded_anew(data, encoder, make, monkeypatch):
    first = make().mean
    encoder.quant_conv_mu.conv.bias.data += 1.0
    torch.testing.assert_close(make().mean, first + 1.0, rtol=1e-4, atol=1e-4)
    write_array(data / "images" / "000001.nii.gz", np.zeros((SIZE, SIZE), np.uint8))
    monkeypatch.setattr(encoder, "encode", forbid)
    with pytest.raises(AssertionError, match="encoded again"):
        make()


def test_an_interrupted_encoding_leaves_nothing_behind(make, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "unicorn_monai.system.weights.save_file", lambda _, path, metadata: (path.write_bytes(b"half"), forbid())
    )
    with pytest.raises(AssertionError):
        make()
    assert not list((tmp_path / "cache").iterdir())


def test_the_scale_factor_gives_unit_variance(make):
    dataset = make()
    z = dataset.mean[0] + dataset.std[0] * torch.randn(200, *dataset.std[0].shape)
    assert (z * dataset.scale_factor).std().item() == pytest.approx(1, rel=0.02)
    assert dataset.std.mean() > dataset.mean.std() / 2, "the deviation of the latents has a part in it"


def test_a_mirrored_latent_belongs_to_the_mirrored_image_and_label_map(data, encoder, make):
    dataset = make(mirror=True, num_labels=len(LABELS))
    items = datalist(data, "training", ("image", "label"))
    sides = set()
    for _ in range(8):
        batch = dataset.__getitems__(list(range(len(items))))
        for mean, label, item, as_is in zip(
            batch["mean"], batch["label"], items, torch.cat(dataset.labels), strict=True
        ):
            mirrored = not torch.equal(label, as_is)
            sides.add(mirrored)
            image = read_image(item["image"])
            with torch.no_grad():
                wanted, _ = encoder.encode((image.flip(-1) if mirrored else image)[None])
            assert torch.equal(label, as_is.flip(-1) if mirrored else as_is)
            torch.testing.assert_close(mean, wanted[0], rtol=1e-4, atol=1e-5)
    assert sides == {True, False}


def test_without_mirroring_every_item_is_as_it_is(make):
    dataset = make(num_labels=len(LABELS))
    batch = dataset.__getitems__([3, 0])
    assert torch.equal(batch["mean"], dataset.mean[0, [3, 0]])
    assert torch.equal(batch["label"], torch.cat(dataset.labels)[[3, 0]])
    assert batch["index"].tolist() == [3, 0]


def test_several_data_sets_follow_each_other(data, make, tmp_path):
    other = write(tmp_path / "other", count=4, seed=1)
    both = make([data, other])
    assert len(both) == 10
    assert torch.equal(both.mean, torch.cat([make().mean, make(other).mean], dim=1))


def test_a_folder_may_be_written_with_a_slash_at_its_end(data, make):
    assert torch.equal(make(f"{data}{os.sep}").mean, make().mean)


def test_batches_are_whole_and_small_data_sets_make_one(make):
    loader = LatentLoader(make(), batch_size=4)
    assert [len(batch["mean"]) for batch in loader] == [4, 2]
    assert [len(batch["mean"]) for batch in LatentLoader(make(), batch_size=99)] == [6]


def test_batches_are_shuffled_or_follow_a_sampler(make):
    dataset = make()
    orders = {tuple(torch.cat([b["index"] for b in LatentLoader(dataset, 2, shuffle=True)]).tolist()) for _ in range(5)}
    assert len(orders) > 1
    assert all(sorted(order) == list(range(6)) for order in orders)
    loader = LatentLoader(dataset, 2, sampler=SequentialSampler(range(3)))
    assert [batch["index"].tolist() for batch in loader] == [[0, 1], [2]]


def test_uncertainties_are_found_by_the_path_of_the_image(data, make, tmp_path):
    items = datalist(data, "training")
    table = {item["image"]: i / 10 for i, item in enumerate(items)}
    (tmp_path / "u.json").write_text(json.dumps({"segmentation_sha256": "x", "images": table}))
    dataset = make(uncertainties=Uncertainties(tmp_path / "u.json"))
    assert dataset.__getitems__([4, 1])["uncertainty"].tolist() == pytest.approx([0.4, 0.1])
    other = datalist(write(tmp_path / "other"), "training")
    with pytest.raises(ValueError, match="lacks 6 of 6 images"):
        read_uncertainties(tmp_path / "u.json", other)


def test_uncertainties_of_another_segmentation_network_are_refused(data, make, tmp_path):
    table = {item["image"]: 0.1 for item in datalist(data, "training")}
    (tmp_path / "u.json").write_text(json.dumps({"segmentation_sha256": "a" * 64, "images": table}))
    assert len(make(uncertainties=Uncertainties(tmp_path / "u.json", "a" * 64)).uncertainty) == 6
    with pytest.raises(ValueError, match=r"u.json' was measured with .*aaaa\.\.\., expected bbbb.*not comparable"):
        make(uncertainties=Uncertainties(tmp_path / "u.json", "b" * 64))


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"images": {}})])
def test_a_file_without_uncertainties_is_refused(data, make, tmp_path, content):
    (tmp_path / "u.json").write_text(content)
    with pytest.raises(ValueError, match=r"u.json' holds no uncertainties"):
        make(uncertainties=Uncertainties(tmp_path / "u.json"))


def test_images_of_different_sizes_are_refused(data, make, tmp_path):
    large = write(tmp_path / "large", size=2 * SIZE)
    with pytest.raises(ValueError, match="Images differ in size"):
        make([data, large])
    write_array(data / "images" / "000005.nii.gz", np.zeros((SIZE, 2 * SIZE), np.uint8))
    with pytest.raises(ValueError, match=r"000005.*found shape \(16, 16\); expected that of its image, \(16, 32\)"):
        make()


def test_label_maps_of_different_sizes_are_refused(data, make):
    write_array(data / "labels" / "000005.nii.gz", np.zeros((SIZE, 2 * SIZE), np.uint8))
    with pytest.raises(ValueError, match=r"000005.*found shape \(16, 32\); expected that of its image"):
        make(num_labels=len(LABELS))


def test_a_stored_autoencoder_is_loaded_only_if_there_is_something_to_encode(data, encoder, tmp_path):
    loaded = []

    def dataset(identity):
        stored = StoredAutoencoder(identity, lambda: loaded.append(identity) or encoder, 1, 4)
        return LatentDataset(data, "training", stored, tmp_path / "cache")

    first = dataset("a")
    assert torch.equal(dataset("a").mean, first.mean)
    assert torch.equal(LatentDataset(data, "training", encoder, tmp_path / "other").mean, first.mean)
    assert loaded == ["a"]
    dataset("b")
    assert loaded == ["a", "b"]


def test_every_image_has_the_embedding_of_its_prompt(data, make, tmp_path):
    class Lengths:
        identity = "lengths"

        def encode(self, prompts):
            return torch.tensor([float(len(prompt)) for prompt in prompts]).reshape(-1, 1, 1).expand(-1, 2, 3)

    prompts = PromptEmbeddings(Lengths(), tmp_path / "prompts")
    header = json.loads((data / "dataset.json").read_text())
    for i, item in enumerate(header["training"]):
        item["sub_domain"] = ["clear", "fog", "night"][i % 3]
    (data / "dataset.json").write_text(json.dumps(header))
    dataset = make(text=Text(prompts, PromptTemplate("a street, {words}")))
    assert len(dataset.context) == 3
    batch = dataset.__getitems__([1, 0, 5])
    texts = ["a street, foggy scene", "a street", "a street, night scene"]
    assert torch.equal(batch["context"], prompts(texts))
    assert torch.equal(
        make(text=Text(prompts, PromptTemplate("{prompt}"))).context, prompts([""])
    )  # items without a prompt of their own
    assert "context" not in make()[0]


def test_a_model_trained_on_latents_has_their_scale_and_shape_and_the_text_of_their_prompts(make, encoder, tmp_path):
    text = Text(PromptEmbeddings(WordVectors(8, 2), tmp_path / "prompts"), PromptTemplate())
    dataset, unet = make(text=text), build_unet()
    sampler, noise = DDIM(1000, **SCHEDULE), DDPMScheduler(1000, **SCHEDULE)
    ldm = latent_diffusion_of(dataset, unet, sampler, noise, tmp_path)
    assert (ldm.scale_factor, ldm.latent_shape) == (dataset.scale_factor, (LATENT, SIZE // 4, SIZE // 4))
    parts = (ldm.autoencoder, ldm.unet, ldm.scheduler, ldm.train_scheduler, ldm.text, ldm.bundle_root)
    assert all(one is other for one, other in zip(parts, (encoder, unet, sampler, noise, text, tmp_path), strict=True))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({}, None),
        ({"acquisition": "ensemble"}, "holds the uncertainty by ensemble, the prior is of entropy"),
        ({"aggregation": "max"}, "of other networks or pixels"),
        ({"ensemble": {"/a/model.pt": "c" * 64}}, "of other networks or pixels"),
    ],
)
def test_uncertainties_and_prior_are_of_one_measurement(tmp_path, other, told):
    path = tmp_path / "u.json"
    path.write_text(json.dumps({"segmentation_sha256": "a" * 64, "images": {}, **other}))
    prior = UncertaintyPrior.fit(torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.5]), "a" * 64)
    if told is None:
        Uncertainties(path).require_measure_of(prior)
    else:
        with pytest.raises(ValueError, match=told):
            Uncertainties(path).require_measure_of(prior)


def test_uncertainties_that_are_not_there_are_told_as_everywhere(tmp_path):
    prior = UncertaintyPrior.fit(torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.5]), "a" * 64)
    with pytest.raises(ValueError, match="Run the 'uncertainty' configuration of retinal_unet first"):
        Uncertainties(tmp_path / "u.json").require_measure_of(prior)
