"""What is asked for depends on the run's seed and the index only; label maps change their shape, not their meaning."""

import numpy as np
import pytest
import torch

from tiny_synthesis import STEPS, label_maps, synthesizer
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.diffusion.text import PromptTemplate
from unicorn_monai.images.warping import warp
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Request, Requests, derive_seed, with_uncertainty

PRIOR = UncertaintyPrior(mean=0.2, std=0.05, scaling="paper", offset=0.0, scale=1.0, segmentation_sha256="x")
COUNTS = {"training": 4, "validation": 2}


@pytest.fixture
def layers():
    """Six layers whose borders bend."""
    columns = torch.linspace(0, 3, 40)
    depth = torch.arange(48)[:, None] + 3 * torch.sin(columns)[None]
    return (depth / 8).long().clamp(0, 5)[None]


@pytest.fixture
def data(tmp_path):
    with DatasetWriter(tmp_path / "data", About(name="n", device="d", labels={0: "a", 1: "b"})) as writer:
        for split, count in COUNTS.items():
            for i in range(count):
                pixels = np.full((4, 4), i % 2, np.uint8)
                writer.add(split, pixels, pixels, subject=f"{split}{i}")
    return tmp_path / "data"


def test_a_changed_label_map_has_the_same_labels(layers):
    for seed in range(20):
        changed = warp(layers, seed, "nearest")
        assert changed.shape == layers.shape
        assert changed.dtype == layers.dtype
        assert set(changed.unique().tolist()) == set(layers.unique().tolist())
        assert not torch.equal(changed, layers)


def test_a_changed_label_map_keeps_the_order_of_the_layers(layers):
    assert all((warp(layers, seed, "nearest").diff(dim=1) >= 0).all() for seed in range(20))


def test_left_and_right_are_exchanged_as_often_as_not():
    halves = torch.zeros(1, 20, 40, dtype=torch.long)
    halves[..., 20:] = 1
    exchanged = sum(warp(halves, seed, "nearest")[..., :5].float().mean().item() > 0.5 for seed in range(40))
    assert 10 < exchanged < 30


def test_a_change_depends_on_its_seed_only(layers):
    torch.manual_seed(1)
    first = warp(layers, 7, "nearest")
    torch.manual_seed(2)
    assert torch.equal(warp(layers, 7, "nearest"), first)
    assert not torch.equal(warp(layers, 8, "nearest"), first)


def test_ignored_pixels_stay_ignored(layers):
    assert (warp(torch.full_like(layers, 255), 3, "nearest") == 255).all()


def test_seeds_derived_from_different_numbers_differ():
    seeds = {derive_seed(run, index) for run in range(10) for index in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2) != derive_seed(1, 2, 1)


def test_every_label_map_gets_an_image_and_an_uncertainty_of_its_own(data):
    requests = Requests(label_dir=data, split=["training", "validation"], uncertainty=PRIOR)
    assert [request.split for request in requests] == ["training"] * 4 + ["validation"] * 2
    assert [request.index for request in requests] == list(range(6))
    assert len({request.label for request in requests}) == 6
    assert len({request.uncertainty for request in requests}) == 6
    assert [request.subject for request in requests][:2] == ["training0", "training1"]


def test_more_images_take_the_label_maps_in_turn_and_every_split_in_proportion(data):
    requests = Requests(count=8, label_dir=data, split=["training", "validation"])
    assert [request.split for request in requests].count("validation") == 4
    assert requests[0].label == requests[4].label
    assert requests[0].seed != requests[4].seed
    assert len(Requests(count=1, label_dir=data, split=["training", "validation"])) == 2


def another(folder, count, **about):
    """A data set of so many label maps."""
    with DatasetWriter(folder, About(name="n", device="d", labels={0: "a", 1: "b"}, **about)) as writer:
        for i in range(count):
            writer.add("training", np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), subject=f"other{i}")
    return folder


@pytest.mark.parametrize("count", [1, 2, 4, 40])
def test_label_maps_of_several_data_sets_are_mixed_evenly_and_each_is_drawn_as_often(data, tmp_path, count):
    requests = Requests(label_dir=[data, another(tmp_path / "other", count)])
    assert len(requests) == 4 + count
    assert len({(request.source, request.label) for request in requests}) == 4 + count
    assert {request.source for request in requests} == {"data", "other"}
    first = [request.source for request in requests[: len(requests) // 2]]
    assert abs(first.count("other") - count / 2) <= 1
    again = Requests(count=2 * (4 + count), label_dir=[data, tmp_path / "other"])
    assert [request.label for request in again[4 + count :]] == [request.label for request in requests]


def test_every_sub_domain_is_asked_for_on_label_maps_of_every_data_set(data, tmp_path):
    folders = [data, another(tmp_path / "other", 4)]
    weather = ["fog", "rain"]
    requests = Requests(count=8, label_dir=folders, template=lambda item, named: named, subdomains=weather)
    assert {(request.source, request.prompt) for request in requests} == {
        (source, name) for source in ("data", "other") for name in weather
    }


def test_label_maps_of_several_data_sets_keep_the_size_of_their_pixels(data, tmp_path):
    other = another(tmp_path / "other", 4, spacing_mm=(0.002, 0.03))
    found = {request.source: request.spacing_mm for request in Requests(label_dir=[data, other])}
    assert found == {"data": None, "other": (0.002, 0.03)}
    assert {request.spacing_mm for request in Requests(label_dir=other)} == {None}, "the header tells it"


def test_a_request_does_not_depend_on_how_many_are_made(data):
    few, many = (Requests(count=n, seed=3, label_dir=data, uncertainty=PRIOR, augment=True) for n in (2, 6))
    assert list(few) == list(many)[:2]
    assert list(few) != list(Requests(count=2, seed=4, label_dir=data, uncertainty=PRIOR, augment=True))


def test_uncertainties_can_be_chosen():
    requests = Requests(count=3, uncertainty=[0.1, 0.3])
    assert [request.uncertainty for request in requests] == [0.1, 0.3, 0.1]
    assert [request.uncertainty for request in with_uncertainty(requests, 0.2)] == [0.2] * 3
    assert [request.uncertainty for request in Requests(count=2)] == [None, None]


@pytest.mark.parametrize("wrong", [[], [0.1, 15], [-0.1], [float("nan")]])
def test_chosen_uncertainties_are_shares(wrong):
    with pytest.raises(ValueError, match=r"uncertainty is \[.*expected at least one number, each in \[0, 1\]"):
        Requests(count=3, uncertainty=wrong)


def test_no_image_is_no_request():
    with pytest.raises(ValueError, match="count is 0; expected at least one image"):
        Requests(count=0)


def test_a_request_does_not_change():
    with pytest.raises(AttributeError):
        Request(0, 1).seed = 2


def test_a_prompt_names_the_scene_of_the_label_map_and_each_weather_in_turn(data):
    template = PromptTemplate("{prompt} of {subject}, {words}", "street")
    weathers = ["fog", "night", "rain"]
    requests = Requests(count=24, label_dir=data, template=template, subdomains=weathers)
    assert [r.prompt for r in requests][:2] == ["street of training0, foggy scene", "street of training1, night scene"]
    for label in {r.label for r in requests}:  # six images of each label map: every weather twice
        prompts = [r.prompt for r in requests if r.label == label]
        assert all(sum(word in prompt for prompt in prompts) == 2 for word in ("foggy", "night", "rainy"))
    assert [r.prompt for r in Requests(count=2, label_dir=data, template=template)] == [
        "street of training0",
        "street of training1",
    ]
    assert Requests(count=1, label_dir=data)[0].prompt is None


# ---------------------------------------------------------------- the generator


@pytest.fixture
def work(tmp_path):
    return synthesizer(label_maps(tmp_path / "labels"), tmp_path / "set")


def test_images_are_the_decoded_latents(work):
    generator, requests = work.generator, work.requests[:3]
    latents = generator.latents(requests)
    assert latents.shape == (3, *generator.ldm.latent_shape)
    images = generator(requests)
    assert images.shape == (3, 1, *generator.ldm.image_size)
    assert torch.equal(images, generator.ldm.decode(latents).clamp(0, 1))
    assert images.std() > 0.05  # large enough for that to mean something


def test_label_maps_weight_and_steps_of_a_call_are_those_of_latents_and_images(work):
    generator, requests = work.generator, work.requests[:2]
    usual, labels = generator.latents(requests), generator.labels(requests)
    assert torch.equal(generator.latents(requests, labels, 1.0, STEPS), usual)  # those of the generator
    for changed in ((labels.flip(2),), (labels, 0.2), (labels, None, STEPS + 1)):
        latents = generator.latents(requests, *changed)
        assert not torch.equal(latents, usual)
        assert torch.equal(generator(requests, *changed), generator.ldm.decode(latents).clamp(0, 1))
    assert torch.equal(generator.latents(requests), usual)  # and stay those of the call


def test_a_generator_in_half_precision_gives_other_latents_of_the_same_image(work):
    exact, requests = work.generator, work.requests[:2]
    rough = Generator(exact.inferer, exact.prior, exact.num_labels, exact.steps, "bfloat16")(requests)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact(requests))
    assert (rough - exact(requests)).abs().mean() < 0.05


def test_every_request_needs_an_uncertainty_where_there_is_a_net_for_it(work):
    with pytest.raises(ValueError, match=r"No uncertainty to ask the Uncertainty-ControlNet for"):
        work.generator(with_uncertainty(work.requests[:2], None))


def test_the_data_set_remembers_the_weight_and_the_guidance_of_the_inferer(work):
    assert (work.settings()["weight"], work.settings()["guidance"], work.settings()["mode"]) == (
        1.0,
        [1.5, 1.0],
        "compositional",
    )
