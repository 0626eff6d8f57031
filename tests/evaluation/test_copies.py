"""The audit on images whose origin is known: new eyes, known label maps with new speckle, and copies."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.stats import beta
from torch import nn
from torch.nn import functional

from unicorn_monai.data.checks import check
from unicorn_monai.data.items import datalist
from unicorn_monai.data.layout import read_header
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.evaluation.copies import (
    Audited,
    Nearest,
    Searcher,
    _aligned,
    audit,
    gather,
    proportion,
    write_without,
)
from unicorn_monai.evaluation.features import Features
from unicorn_monai.evaluation.residual import Aligned, fingerprint, speckle_residual
from unicorn_monai.images.files import read_array

SIZE, LABELS = 48, 4


def label_map(random):
    depth = np.cumsum([random.integers(6, 16), random.integers(8, 14), random.integers(8, 14)])
    bend = 3 * np.sin(np.linspace(0, 3, SIZE) + random.uniform(0, 6))
    return (np.arange(SIZE)[:, None, None] >= depth + bend[:, None]).sum(axis=2).astype(np.uint8)


def speckled(label, random):
    """The grey value of each layer with fully developed speckle: (rows, columns) in [0, 1]."""
    grey = np.array([0.1, 0.6, 0.35, 0.8])[label]
    return np.clip((grey**4 * random.gamma(3, 1 / 3, label.shape)) ** 0.25, 0, 1)


def write(root, images, split, labels=None, subject="s", **fields):
    names = {i: f"label {i}" for i in range(LABELS)}
    with DatasetWriter(root, About(name="x", device="y", labels=names, spacing_mm=(0.004, 0.01))) as writer:
        for i, image in enumerate(images):
            own = {key: value[i] for key, value in fields.items()}
            label = None if labels is None else labels[i]
            writer.add(split, (255 * image).round().astype(np.uint8), label, subject=f"{subject}{i // 2}", **own)
    return datalist(root, split)


def tiles(images):
    """Feature network without training: mean grey value of 8 x 8 tiles."""
    return functional.avg_pool2d(images, 8).flatten(1)


FEATURES = Features("tiles", "0" * 64, "unit", tiles, torch.device("cpu"), {})


class World:
    """Training, held-out and synthetic sets; ``copies`` of the synthetic images are training images,
    the others are blurred by ``smooth`` pixels."""

    def __init__(self, root: Path, copies: int = 0, seed: int = 0, smooth: float = 0.0) -> None:
        random = np.random.default_rng(seed)
        self.maps = [label_map(random) for _ in range(60)]
        others = [label_map(random) for _ in range(60)]
        images = [speckled(label, random) for label in self.maps]
        made = [speckled(label, random) for label in self.maps]
        made = [ndimage.gaussian_filter(image, smooth) for image in made]
        made[:copies] = images[:copies]
        self.synthetic_dir = root / "synthetic"
        training = write(root / "training", images, "training", self.maps)
        held_out = write(root / "held_out", [speckled(m, random) for m in others], "test", others, "h")
        origin = [{"seed": i, "source_label": f"{i:06d}.nii.gz"} for i in range(60)]
        synthetic = write(self.synthetic_dir, made, "training", self.maps, synthetic=origin)
        control = write(root / "control", [speckled(m, random) for m in others], "training", others, "h")
        self.sets = [gather(items, FEATURES, LABELS) for items in (synthetic, training, held_out, control)]

    def audit(self, folder, **settings):
        synthetic, training, held_out, control = self.sets
        return audit(Audited(synthetic, training, held_out, control), FEATURES, folder, planted=20, **settings)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    root = tmp_path_factory.mktemp("honest")
    return World(root).audit(root / "audit")


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    root = tmp_path_factory.mktemp("copied")
    world = World(root, copies=6)
    return world, world.audit(root / "audit"), root / "audit"


def test_a_training_image_is_found_by_its_label_map_of_its_own_data_set_and_by_one_that_was_guessed(tmp_path):
    training = World(tmp_path).sets[1]
    items = [dict(item, dataset="data/labeled") for item in training.items]
    items[4] = {key: value for key, value in items[4].items() if key != "label"} | {"guessed_label": "guessed/a.png"}
    found = Searcher(replace(training, items=items)).by_label
    assert found["guessed/a.png"] == [4]
    assert found["labeled/000003.nii.gz"] == found["000003.nii.gz"] == [3]
    assert "labeled/000004.nii.gz" not in found


# ---------------------------------------------------------------- the residual


def test_a_residual_has_unit_length_and_nothing_at_the_edges_of_labels():
    random = np.random.default_rng(0)
    label = label_map(random)
    residual = speckle_residual(speckled(label, random), label)
    assert np.linalg.norm(residual) == pytest.approx(1, rel=1e-5)
    edges = label[1:] != label[:-1]
    assert (residual[1:][edges] == 0).all()
    assert (residual[:-1][edges] == 0).all()


def test_flat_layers_leave_nothing_whatever_their_grey_values():
    label = label_map(np.random.default_rng(0))
    assert np.abs(speckle_residual(np.array([0.1, 0.9, 0.3, 0.7])[label], label)).max() == 0
    assert np.abs(speckle_residual(np.full((SIZE, SIZE), 0.5), label)).max() == 0


def test_contrast_and_brightness_do_not_matter_and_ignored_pixels_do_not_count():
    random = np.random.default_rng(1)
    label = label_map(random)
    image = speckled(label, random)
    np.testing.assert_allclose(speckle_residual(image, label), speckle_residual(0.2 + 3 * image, label), atol=1e-5)
    label[:, :10] = 255
    assert (speckle_residual(image, label)[:, :10] == 0).all()


def test_the_anatomy_that_two_images_share_is_not_in_their_residuals():
    random = np.random.default_rng(2)
    label = label_map(random)
    a, b = speckled(label, random), speckled(label, random)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.7
    assert abs((speckle_residual(a, label) * speckle_residual(b, label)).sum()) < 0.1


def test_a_residual_needs_its_label_map():
    with pytest.raises(ValueError, match=r"shape \(4, 4\), its label map \(4, 5\)"):
        speckle_residual(np.zeros((4, 4)), np.zeros((4, 5), np.uint8))


@pytest.mark.parametrize("columns", [40, 41])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("shift", [(0, 0), (3, -5), (-8, 8)])
def test_the_alignment_is_the_largest_of_all_correlations(columns, mirrored, shift):
    query = functional.normalize(torch.randn(36, columns).flatten(), dim=0).reshape(36, columns)
    moved = (query.flip(-1) if mirrored else query).roll(shift, (0, 1))
    others = torch.stack([moved, torch.randn(36, columns) / (36 * columns) ** 0.5])
    similarity, found, flipped = Aligned(36, columns)(query, others)
    assert similarity[0].item() == pytest.approx(1, abs=1e-4)
    assert tuple(found[0].tolist()) == shift
    assert bool(flipped[0]) is mirrored
    by_hand = max(
        (side.roll((y, x), (0, 1)) * others[1]).sum().item()
        for side in (query, query.flip(-1))
        for y in range(-8, 9)
        for x in range(-8, 9)
    )
    assert similarity[1].item() == pytest.approx(by_hand, abs=1e-5)


def test_the_fingerprint_does_not_change_with_shift_and_mirroring():
    image = torch.randn(1, 36, 40)
    expected = fingerprint(image)
    torch.testing.assert_close(fingerprint(image.flip(-1)), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fingerprint(image.roll((5, -7), (1, 2))), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(fingerprint(torch.randn(1, 36, 40)), expected, atol=1)


# ---------------------------------------------------------------- the audit


def test_label_maps_of_training_images_are_no_copies(honest):
    shares = honest["sets"]["synthetic"]
    assert shares["embedding"]["95"]["share"] > 0.5  # by their anatomy they would all be suspects
    assert shares["residual"]["99"]["ci95"][0] <= 0.01
    assert len(honest["flagged"]) <= 4
    assert honest["expected_by_chance"] == pytest.approx(0.6)


@pytest.mark.parametrize("smooth", [0.7, 1.5])
def test_images_of_another_texture_are_no_copies(tmp_path, smooth):
    result = World(tmp_path, smooth=smooth).audit(tmp_path / "audit")  # how much strangers correlate depends on it
    assert result["sets"]["synthetic"]["residual"]["99"]["ci95"][0] <= 0.02
    assert len(result["flagged"]) <= 5


def test_the_threshold_of_real_images_is_given_beside_the_one_in_use(honest):
    real = honest["held_out_thresholds"]
    for quantity in ("embedding", "residual"):
        assert real[quantity].keys() == honest["thresholds"][quantity].keys() == {"95", "99"}
        assert real["synthetic"][quantity]["99"]["n"] == honest["sets"]["synthetic"][quantity]["99"]["n"]
    assert real["residual"]["95"] < real["residual"]["99"]
    above = honest["sets"]["held_out"]["residual"]["99"]["share"] > 0.01  # of real images above the threshold in use
    assert above == (real["residual"]["99"] > honest["thresholds"]["residual"]["99"])


def test_the_control_set_shows_what_anatomy_alone_does(honest):
    control = honest["sets"]["control"]
    assert control["embedding"]["95"]["share"] < honest["sets"]["synthetic"]["embedding"]["95"]["share"] / 2
    for sets in ("control", "held_out"):
        assert honest["sets"][sets]["residual"]["95"]["ci95"][0] <= 0.1
        assert honest["sets"][sets]["residual"]["95"]["share"] < 0.3


@pytest.mark.parametrize("kind", ["exact", "noise", "blur", "contrast", "mirrored", "shifted"])
def test_planted_copies_are_found(honest, kind):
    assert honest["planted"][kind]["residual"]["99"]["share"] >= 0.9
    assert honest["planted"][kind]["residual"]["99"]["n"] == 20


def test_real_copies_are_flagged_by_name_and_come_first(copied):
    _, result, _ = copied
    wanted = {f"images/{i:06d}.nii.gz" for i in range(6)}
    assert wanted <= set(result["flagged"])
    assert len(result["flagged"]) <= 6 + 4
    first = result["closest"][:6]
    assert {pair["synthetic"] for pair in first} == wanted
    for pair in first:
        assert Path(pair["training"]).name == Path(pair["synthetic"]).name
        assert pair["flagged"]
        assert pair["shift"] == [0, 0]
        assert not pair["mirrored"]
        assert pair["ssim"] == pytest.approx(1, abs=1e-3)
    assert result["closest"][20]["ssim"] < 0.9


def test_the_audit_leaves_a_sheet_and_its_numbers(copied):
    _, result, folder = copied
    assert json.loads((folder / "audit.json").read_text()) == result
    sheet = np.asarray(Image.open(folder / "closest.png")).astype(int)
    assert sheet.shape == (3 * SIZE + 4, 8 * SIZE + 14)
    assert np.abs(sheet[:SIZE, :SIZE] - sheet[SIZE + 2 : 2 * SIZE + 2, :SIZE]).max() == 0  # a copy
    assert np.abs(sheet[:SIZE, -SIZE:] - sheet[SIZE + 2 : 2 * SIZE + 2, -SIZE:]).max() > 20  # none


def test_a_mirrored_and_shifted_pair_is_shown_aligned(copied):
    world, _, _ = copied
    training = world.sets[1]
    moved = training.images[:1].flip(-1).roll((2, 3), (-2, -1))
    copies = type(training)([{}], moved, training.labels[:1].flip(-1).roll((2, 3), (-2, -1)), tiles(moved.float()))
    matches = Searcher(training)(copies)
    image, other = _aligned(copies, training, matches, 0)
    assert matches.training[0] == 0
    assert torch.equal(image, other)


def test_the_same_seed_gives_the_same_audit(copied, tmp_path):
    world, result, _ = copied
    assert world.audit(tmp_path) == result


def test_proportions_have_exact_intervals():
    low, high = proportion(3, 50)["ci95"]
    assert [low, high] == pytest.approx([beta.ppf(0.025, 3, 48), beta.ppf(0.975, 4, 47)], rel=1e-4)
    assert proportion(0, 20)["ci95"] == pytest.approx([0, 1 - 0.025 ** (1 / 20)])


# ---------------------------------------------------------------- without the flagged ones


def test_a_data_set_is_written_without_flagged_items(copied, tmp_path):
    world, result, _ = copied
    dropped = write_without(world.synthetic_dir, tmp_path / "clean", result["flagged"])
    assert dropped == len(result["flagged"]) >= 6
    assert check(tmp_path / "clean", need_labels=True) == []
    before, after = read_header(world.synthetic_dir), read_header(tmp_path / "clean")
    kept = [item for item in before["training"] if item["image"] not in result["flagged"]]
    assert after["training"] == kept
    assert after["without_flagged"] == dropped
    assert {key: after[key] for key in ("labels", "spacing_mm", "device")} == {
        key: before[key] for key in ("labels", "spacing_mm", "device")
    }
    name = kept[0]["image"]
    assert np.array_equal(read_array(world.synthetic_dir / name), read_array(tmp_path / "clean" / name))


def test_items_that_are_not_there_or_all_items_cannot_be_left_out(copied, tmp_path):
    world, _, _ = copied
    with pytest.raises(ValueError, match=r"has no image 'images/9.png'"):
        write_without(world.synthetic_dir, tmp_path / "a", ["images/9.png"])
    everything = [item["image"] for item in read_header(world.synthetic_dir)["training"]]
    with pytest.raises(ValueError, match="nothing would be left"):
        write_without(world.synthetic_dir, tmp_path / "a", everything)


# ---------------------------------------------------------------- bad input


def subset(material, count, **changes):
    parts = (material.items[:count], material.images[:count], material.labels[:count], material.features[:count])
    fields = dict(zip(("items", "images", "labels", "features"), parts, strict=True)) | changes
    return type(material)(**fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: [s[0], s[1], subset(s[2], 30)], r"30 held-out image\(s\); expected at least 40"),
        (lambda s: [s[0], s[1], subset(s[2], 1)], r"1 held-out image\(s\); expected at least 40"),
        (lambda s: [subset(s[0], 9, features=torch.rand(9, 5)), s[1], s[2]], "width 5, of training images 36"),
        (lambda s: [subset(s[0], 9, images=torch.rand(9, 1, 8, 8)), s[1], s[2]], r"shape \(1, 8, 8\), training images"),
    ],
    ids=["few held out", "one held out", "widths", "sizes"],
)
def test_what_cannot_be_audited_is_refused(copied, tmp_path, change, message):
    world, _, _ = copied
    with pytest.raises(ValueError, match=message):
        audit(Audited(*change(world.sets)), FEATURES, tmp_path)


def test_images_without_label_maps_need_a_segmentation_network(tmp_path):
    random = np.random.default_rng(0)
    items = write(tmp_path / "set", [speckled(label_map(random), random) for _ in range(3)], "training")
    with pytest.raises(ValueError, match=r"has no label map.*give a segmentation network"):
        gather(items, FEATURES, LABELS)
    material = gather(items, FEATURES, LABELS, segmentation=nn.Conv2d(1, LABELS, 1))
    assert material.labels.shape == (3, SIZE, SIZE)
    assert material.labels.max() < LABELS
    with pytest.raises(ValueError, match="No images to audit"):
        gather([], FEATURES, LABELS)


def test_the_nearest_is_found_by_its_direction():
    known = torch.randn(9, 4)
    similarity, index = Nearest(known)(known[3:4], 20)
    assert index[0, 0] == 3
    assert similarity[0, 0].item() == pytest.approx(1, abs=1e-6)
    assert similarity.shape == (1, 9)
