"""The control over the fusion weights with real networks, and the choice of a weight from tables made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_networks import LABELS, LATENT, SCHEDULE, build_ldm
from unicorn_monai.bundle.installation import install
from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.evaluation.fusion_weight import (
    GRIDS,
    NoWeight,
    agreement,
    choose_weight,
    control_over_weights,
    measure_of,
    obedience,
)
from unicorn_monai.images.files import write_array
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.prior import UncertaintyPrior
from unicorn_monai.schedulers import DDIM
from unicorn_monai.segmentation.acquisition import Measure, SampledInferer
from unicorn_monai.synthesis.generator import Generator
from unicorn_monai.synthesis.requests import Request, with_uncertainty
from unicorn_monai.system.networks import freeze
from unicorn_monai.system.weights import save_weights, sha256
from unicorn_monai.uncertainty import image_uncertainty

SIZE = 16
PRIOR = UncertaintyPrior(0.3, 0.1, "zscore", 0.2, 0.1, "a" * 64)


@pytest.fixture
def segmentation():
    torch.manual_seed(1)
    return freeze(
        torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, LABELS, 1))
    )


def measured_by(network, measure=image_uncertainty):
    return lambda images: measure(network(images))


@pytest.fixture
def make(unet, autoencoder, semantic, uncertainty):
    def build(mode="compositional", **changes):
        networks = {"semantic": semantic, "uncertainty": uncertainty} | changes
        shape = (LATENT, SIZE // 4, SIZE // 4)
        ldm = build_ldm(unet, autoencoder, DDIM(1000, coarse=True, **SCHEDULE), latent_shape=shape)
        return Generator(DualControlNetInferer(ldm, **networks, mode=mode), PRIOR, LABELS, 2)

    return build


@pytest.fixture
def requests(tmp_path):
    found = []
    for i in range(5):
        label = (np.arange(SIZE)[:, None] // (3 + i) + np.zeros((SIZE, SIZE))).clip(max=LABELS - 1).astype(np.uint8)
        write_array(tmp_path / f"{i}.png", label)
        found.append(Request(i, 100 + i, label=str(tmp_path / f"{i}.png"), uncertainty=0.1 + 0.1 * i))
    return found


@pytest.mark.parametrize("mode", GRIDS)
def test_every_weight_of_the_mode_is_measured_and_has_its_picture(make, requests, segmentation, tmp_path, mode):
    table = control_over_weights(
        make(mode), requests, measured_by(segmentation), segmentation, folder=tmp_path / "pictures", batch_size=2
    )
    assert tuple(row["weight"] for row in table) == GRIDS[mode]
    assert len({row["measured_mean"] for row in table}) == len(table)
    for row in table:
        assert row["n"] == 5
        assert row["requested_mean"] == pytest.approx(0.3)
        assert -1 <= row["label_consistency"] <= 1
        assert np.asarray(Image.open(tmp_path / "pictures" / row["picture"])).shape == (2 * SIZE + 2, 5 * SIZE + 8)


def test_the_numbers_are_those_of_the_images_at_that_weight(make, requests, segmentation):
    generator = make()
    (row,) = control_over_weights(generator, requests, measured_by(segmentation), segmentation, weights=[1.5])
    logits = segmentation(generator(requests, weight=1.5))
    assert row["measured_mean"] == pytest.approx(image_uncertainty(logits).mean().item(), rel=1e-5)
    assert row["picture"] is None
    margin = measured_by(segmentation, Measure("margin", "p95"))
    (other,) = control_over_weights(generator, requests, margin, segmentation, weights=[1.5])
    assert other["measured_mean"] != pytest.approx(row["measured_mean"])
    assert other["label_consistency"] == row["label_consistency"]


def test_images_are_measured_as_those_of_the_prior_were(tmp_path, segmentation):
    changes = {"num_labels": LABELS, "network_def::channels": [4, 8], "network_def::strides": [2]}
    root = install("retinal_unet", tmp_path, overrides={"inference.json": changes | {"network_def::dropout": 0.3}})
    members = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for i, path in enumerate(members):
        torch.manual_seed(i)
        save_weights(from_bundle(root), path)
    first, second = (from_bundle(root, weights=str(path)) for path in members)
    images = torch.rand(3, 1, SIZE, SIZE)

    prior = replace(PRIOR, acquisition="ensemble", ensemble={str(members[1]): sha256(members[1])})
    both = torch.stack([first(images), second(images)], dim=1)
    torch.testing.assert_close(measure_of(prior, first, root)(images), Measure("ensemble")(both))

    few, many = (replace(PRIOR, acquisition="mc_dropout", aggregation="p95", samples=n) for n in (2, 9))
    found = measure_of(many, first, root)(images)
    samples = SampledInferer("mc_dropout", 9)(images, first)
    torch.testing.assert_close(found, Measure("mc_dropout", "p95")(samples))
    assert not torch.allclose(found, measure_of(few, first, root)(images))

    plain = image_uncertainty(segmentation(images))
    torch.testing.assert_close(measure_of(PRIOR, segmentation, root)(images), plain)
    save_weights(first, members[1])
    with pytest.raises(ValueError, match=r"an ensemble with '.*b\.pt' of the sha256"):
        measure_of(prior, first, root)
    members[1].unlink()
    with pytest.raises(ValueError, match="which now has none: there is no such file"):
        measure_of(prior, first, root)


def test_without_the_uncertainty_its_request_plays_no_part(make, requests, segmentation):
    generator = make("paper")
    tables = [
        control_over_weights(generator, part, measured_by(segmentation), segmentation, weights=[0.0])[0]
        for part in (requests, with_uncertainty(requests, 0.9))
    ]
    assert tables[0]["measured_mean"] == tables[1]["measured_mean"]
    assert tables[1]["spearman"] is None  # all the same was asked for


def test_agreement_is_what_was_counted_by_hand():
    found = agreement(np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.3, 0.4]))
    assert found["spearman"] == pytest.approx(1)
    assert [found["mean_absolute_error"], found["distance"]] == pytest.approx([0.1, 0.1])
    assert agreement(np.array([0.1, 0.2]), np.array([0.3, 0.3]))["spearman"] is None  # constant: not computed
    swapped = agreement(np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.2, 0.1]))
    assert swapped["distance"] == pytest.approx(0, abs=1e-12)  # the distribution is right, the order is not
    assert swapped["spearman"] == pytest.approx(-1)


def test_an_obedient_image_has_consistency_one_and_one_that_ignores_its_map_none():
    labels = torch.stack([torch.arange(8)[:, None].expand(8, 8) // (2 + i) for i in range(3)]).clamp(max=2)
    assert obedience(labels, labels, 3)["label_consistency"] == pytest.approx(1)
    with pytest.raises(NoWeight, match="All label maps are the same"):  # an experiment goes on without the table
        obedience(labels, labels[:1].expand_as(labels), 3)
    assert obedience(labels.roll(1, 0), labels, 3)["label_consistency"] == -1  # obeys the map of another
    same = labels[:1].expand(3, -1, -1)
    assert abs(obedience(same, labels, 3)["label_consistency"]) < 1e-9


def rows(*triples):
    return [dict(zip(("weight", "distance", "label_consistency"), triple, strict=True)) for triple in triples]


@pytest.mark.parametrize(
    ("table", "weight"),
    [
        (rows((1, 0.10, 0.9), (2, 0.05, 0.8), (3, 0.08, 0.7)), 2),  # the best match
        (rows((1, 0.10, 0.9), (2, 0.051, 0.8), (3, 0.05, 0.7)), 2),  # equal within 5 %: the smaller weight
        (rows((1, 0.10, 0.9), (2, 0.05, 0.44), (3, 0.01, 0.1)), 1),  # the others do not obey their label maps
        (rows((0.5, 0.2, 0.3)), 0.5),
    ],
)
def test_the_weight_is_the_smallest_that_matches_best_and_keeps_the_labels(table, weight):
    chosen, reason = choose_weight(table)
    assert chosen == weight
    assert reason.startswith(f"weight {weight:g}: ")


def test_what_was_excluded_is_said():
    assert "1 of 2 weights excluded" in choose_weight(rows((1, 0.1, 0.9), (2, 0.05, 0.2)))[1]
    assert choose_weight(rows((1, 0.1, 0.9), (2, 0.05, 0.5)))[0] == 2


@pytest.mark.parametrize(
    ("table", "message"), [([], "No weights to choose from"), (rows((1, 0.1, -0.1)), "do the images follow")]
)
def test_there_is_no_weight_where_nothing_is_obeyed(table, message):
    with pytest.raises(ValueError, match=message):
        choose_weight(table)


@pytest.mark.parametrize(
    ("change", "weights", "message"),
    [
        (lambda r: r[:1], None, "Got 1 requests"),
        (lambda r: [Request(i, i, label=x.label) for i, x in enumerate(r)], None, "Got 5 requests, 0 of them with an"),
        (lambda r: r, [], "and 0 weights"),
        (lambda r: [Request(i, i, label=r[0].label, uncertainty=0.1) for i in range(3)], [1.0], "maps are the same"),
    ],
)
def test_requests_that_cannot_be_measured_are_refused(make, requests, segmentation, change, weights, message):
    with pytest.raises(ValueError, match=message):
        control_over_weights(make(), change(requests), measured_by(segmentation), segmentation, weights)


def test_a_generator_without_a_controlnet_is_refused(make, requests, segmentation):
    with pytest.raises(ValueError, match="lacks a ControlNet"):
        control_over_weights(make(uncertainty=None), requests, measured_by(segmentation), segmentation)


def test_a_judge_that_gives_no_numbers_is_refused(make, requests, segmentation):
    judge = freeze(torch.nn.Conv2d(1, LABELS, 1))
    judge.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"output of the judge holds NaN"):
        control_over_weights(make(), requests, measured_by(segmentation), judge)
