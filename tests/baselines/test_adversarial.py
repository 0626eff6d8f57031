"""CycleGAN and CUT at their limits, where the values are known, and their training at tiny size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.networks.nets import PatchDiscriminator
from monai.transforms import Compose, RandFlipd, RandSpatialCropd
from torch import Tensor, nn

from unicorn_monai.baselines.adversarial import (
    LastWeights,
    TranslationSheet,
    TranslationTrainer,
    discriminator_loss,
    generator_loss,
)
from unicorn_monai.baselines.cut import CUT, PatchProjection, patch_nce
from unicorn_monai.baselines.cyclegan import CycleGAN, ImagePool
from unicorn_monai.baselines.networks import ResnetGenerator, feature_channels
from unicorn_monai.baselines.unpaired import UnpairedDataset, UnpairedLoader, collate_unpaired, unpaired_images
from unicorn_monai.bundle.installation import bundle_root
from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.images.transforms import LoadPixelsd
from unicorn_monai.system.errors import NotFinite
from unicorn_monai.training.budget import TimeBudget
from unicorn_monai.training.handlers import Progress
from unicorn_monai.training.settings import TranslationSettings

LAYERS = [0, 2, 3, 4]


def generator(**changes: Any) -> ResnetGenerator:
    return ResnetGenerator(**({"channels": 4, "num_blocks": 2} | changes))


def discriminator() -> PatchDiscriminator:
    return PatchDiscriminator(2, channels=4, in_channels=1, num_layers_d=2, norm="INSTANCE")


class Constant(nn.Module):
    """A discriminator that always says the same."""

    def __init__(self, score: float) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.tensor(score))

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image, self.score.expand(len(image), 1, 2, 2)]


def cyclegan(g: nn.Module, f: nn.Module, score: float = 1.0, **settings: Any) -> CycleGAN:
    return CycleGAN(g, f, Constant(score), Constant(score), **settings)


def cut(**settings: Any) -> CUT:
    g = generator()
    projection = PatchProjection(feature_channels(g, LAYERS), width=8, num_patches=16)
    return CUT(g, discriminator(), projection, LAYERS, **settings)


# ---------------------------------------------------------------- generator and discriminator


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_translated_image_has_the_size_of_its_source_and_stays_in_range(dims, channels):
    image = torch.rand(2, channels, *[8, 12, 8][:dims])
    translated = generator(spatial_dims=dims, in_channels=channels)(image)
    assert translated.shape == image.shape
    assert 0 <= translated.min() <= translated.max() <= 1


def test_features_are_those_on_the_way_to_the_image():
    g, image = generator(), torch.rand(2, 1, 16, 16)
    translated, features = g.translate(image, LAYERS)
    assert torch.equal(translated, g(image))
    assert torch.equal(features[0], image * 2 - 1)
    assert (
        [f.shape[1] for f in features] == feature_channels(g, LAYERS) == feature_channels(g, LAYERS) == [1, 8, 16, 16]
    )
    assert [f.shape[-1] for f in features] == [16, 8, 4, 4]
    assert all(torch.equal(a, b) for a, b in zip(features, g.encode(image, LAYERS), strict=True))


def test_every_image_of_a_batch_is_translated_by_itself():
    g, images = generator(), torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(g(images)[1:2], g(images[1:2]), atol=1e-6, rtol=0)


def test_a_constant_image_has_no_frame():
    # a border of zeros would shine through; a mirrored constant is the same constant. Without the transposed
    # convolutions, whose borders see zeros in the papers too
    translated = generator(num_downs=0)(torch.full((1, 1, 16, 16), 0.3))
    assert translated.std().item() == pytest.approx(0, abs=1e-6)


def test_a_residual_unit_can_lower_and_raise_its_input():
    unit, features = generator().stages[3], torch.rand(1, 16, 8, 8)
    change = unit(features) - features
    assert change.min() < 0 < change.max()


def receptive_field(network: nn.Module) -> int:
    """Rows that one output sees, by the gradient; the normalisations, which see the whole image, taken away."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.InstanceNorm2d | nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    for weight in network.parameters():
        nn.init.constant_(weight, 0.1)
    image = torch.ones(1, 1, 256, 256, requires_grad=True)
    scores = network(image)[-1]
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    rows = image.grad[0, 0].abs().sum(dim=1).nonzero()
    return int(rows.max() - rows.min() + 1)


def test_the_discriminator_judges_patches_of_70_pixels():
    assert receptive_field(from_bundle(bundle_root("style_transfer"), "discriminator_def")) == 70


def test_the_small_preset_s_discriminator_judges_patches_of_34_pixels():
    assert receptive_field(PatchDiscriminator(2, 4, 1, num_layers_d=2, norm="INSTANCE")) == 34


# ---------------------------------------------------------------- least squares


@pytest.mark.parametrize(("score", "generator_wants", "real", "fake"), [(1, 0, 0, 1), (0, 1, 1, 0), (-2, 9, 9, 4)])
def test_the_adversarial_terms_are_plain_least_squares(score, generator_wants, real, fake):
    scores = [torch.zeros(1), torch.full((2, 1, 3, 3), float(score))]
    assert generator_loss(scores).item() == generator_wants
    assert discriminator_loss(scores, scores).item() == 0.5 * (real + fake)


# ---------------------------------------------------------------- CycleGAN


def test_generators_that_change_nothing_have_no_cycle_and_no_identity_loss():
    terms, (there, back) = cyclegan(nn.Identity(), nn.Identity()).generator_terms(*torch.rand(2, 3, 1, 8, 8))
    assert terms["cycle"].item() == terms["identity"].item() == terms["loss"].item() == 0
    assert there.shape == back.shape == (3, 1, 8, 8)


class Shift(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, image: Tensor) -> Tensor:
        return image + self.by


def test_the_terms_of_cyclegan_by_hand():
    # there and back cancel: no cycle loss. Each generator moves its own target by 0.1, 0.2 in the range [-1, 1].
    # The discriminators say 0.5: (0.5 - 1)^2 each.
    source, target = torch.rand(2, 3, 1, 8, 8)
    terms, _ = cyclegan(Shift(0.1), Shift(-0.1), 0.5).generator_terms(source, target)
    assert terms["cycle"].item() == pytest.approx(0, abs=1e-6)
    assert terms["identity"].item() == pytest.approx(0.4, abs=1e-6)
    assert terms["adversarial"].item() == pytest.approx(0.5)
    assert terms["loss"].item() == pytest.approx(0.5 + 0.5 * 10 * 0.4, abs=1e-5)
    one_way, _ = cyclegan(Shift(0.1), nn.Identity(), 0.5, cycle_weight=3.0).generator_terms(source, target)
    assert one_way["cycle"].item() == pytest.approx(0.4, abs=1e-6)
    assert one_way["loss"].item() == pytest.approx(0.5 + 3 * 0.4 + 0.5 * 3 * 0.2, abs=1e-5)


def test_without_identity_weight_no_identity_is_computed():
    terms, _ = cyclegan(nn.Identity(), nn.Identity(), identity_weight=0).generator_terms(*torch.rand(2, 1, 1, 8, 8))
    assert "identity" not in terms


def test_a_pool_of_size_zero_passes_through():
    images = torch.rand(4, 1, 2, 2)
    pool = ImagePool(0)
    assert pool(images) is images
    assert pool.images == []


def test_a_pool_shows_new_images_until_it_is_full_and_then_every_second_one():
    pool = ImagePool(50)
    new = torch.arange(1000.0).reshape(-1, 1, 1, 1)
    shown = torch.cat([pool(image[None]) for image in new])
    assert torch.equal(shown[:50], new[:50])
    fresh = (shown[50:] == new[50:]).float().mean().item()
    assert fresh == pytest.approx(0.5, abs=0.05)
    assert len(pool.images) == 50
    everything = torch.cat([shown.flatten(), torch.stack(pool.images).flatten()])  # nothing is lost, nothing made up
    assert set(everything.tolist()) == set(new.flatten().tolist())
    old = shown[50:][shown[50:] != new[50:]]
    assert len(set(old.tolist())) == len(old), "an image that was shown is gone from the pool"


def test_a_pool_keeps_no_gradient_and_does_not_change_with_its_images():
    pool, image = ImagePool(2), torch.zeros(1, 1, 2, 2)
    pool(image)
    image += 1
    assert pool.images[0].sum() == 0


def test_a_pool_is_restored():
    pool, other = ImagePool(3), ImagePool(3)
    pool(torch.rand(3, 1, 2, 2))
    other.load_state_dict(pool.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(pool.images, other.images, strict=True))


# ---------------------------------------------------------------- CUT


@pytest.mark.parametrize("patches", [2, 16])
def test_patches_that_all_look_alike_cost_the_logarithm_of_their_number(patches):
    alike = nn.functional.normalize(torch.ones(3, patches, 8), dim=-1)
    assert patch_nce(alike, alike).tolist() == pytest.approx([math.log(patches)] * 3, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_identical_features_of_patches_that_have_nothing_in_common(temperature):
    apart = torch.eye(8)[None]
    wanted = math.log(1 + 7 * math.exp(-1 / temperature))
    assert patch_nce(apart, apart, temperature).item() == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    mixed_up = patch_nce(apart, apart.roll(1, dims=1), temperature).item()
    assert mixed_up == pytest.approx(wanted + 1 / temperature, rel=1e-4)


def test_no_gradient_goes_through_the_keys():
    query, key = (torch.rand(1, 4, 8, requires_grad=True) for _ in range(2))
    patch_nce(query, key).sum().backward()
    assert query.grad is not None
    assert key.grad is None


def test_projected_features_have_unit_length_and_stay_at_their_positions():
    projection = PatchProjection([3, 5], width=8, num_patches=10)
    features = [torch.rand(2, 3, 6, 6), torch.rand(2, 5, 2, 2)]
    positions = projection.positions(features)
    assert [len(set(at.tolist())) for at in positions] == [10, 4]
    vectors = projection(features, positions)
    assert [tuple(v.shape) for v in vectors] == [(2, 10, 8), (2, 4, 8)]
    assert all(torch.allclose(v.norm(dim=-1), torch.ones(())) for v in vectors)
    by_hand = projection.heads[0](features[0][1, :, positions[0][7] // 6, positions[0][7] % 6])
    torch.testing.assert_close(vectors[0][1, 7], by_hand / by_hand.norm())


def test_the_loss_of_cut_is_the_sum_of_its_terms():
    source, target = torch.rand(2, 2, 1, 16, 16)
    terms, translated = cut(nce_weight=2.0, identity_weight=3.0).generator_terms(source, target)
    wanted = terms["adversarial"] + 2 * terms["nce"] + 3 * terms["identity"]
    assert terms["loss"].item() == pytest.approx(wanted.item())
    assert translated[0].shape == source.shape
    assert "identity" not in cut(identity_weight=0.0).generator_terms(source, target)[0]


def test_cut_trains_the_generator_and_the_heads():
    objective = cut()
    terms, _ = objective.generator_terms(*torch.rand(2, 2, 1, 16, 16))
    terms["loss"].backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in objective.projection.parameters())
    assert objective.generator.stages[0].conv.weight.grad.abs().sum() > 0


# ---------------------------------------------------------------- unpaired batches


def images(count: int, value: float, size: int = 16) -> list[dict[str, Tensor]]:
    return [{"image": torch.full((1, size, size), value + i)} for i in range(count)]


def test_a_batch_has_images_of_both_domains_and_an_epoch_a_fixed_length():
    data = UnpairedDataset(images(3, 0), images(5, 100))
    batches = list(UnpairedLoader(data, batch_size=4, iterations=30))
    assert len(batches) == 30
    source = torch.cat([b["source"][:, 0, 0, 0] for b in batches])
    target = torch.cat([b["target"][:, 0, 0, 0] for b in batches])
    assert [int((source == i).sum()) for i in range(3)] == [40, 40, 40]
    assert set(target.tolist()) == {100, 101, 102, 103, 104}
    pairs = {(int(s), int(t)) for s, t in zip(source, target, strict=True)}
    assert len(pairs) == 15


def test_the_pairs_depend_on_the_seed_only():
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        loader = UnpairedLoader(UnpairedDataset(images(3, 0), images(5, 100)), 2, 5)
        return torch.cat([torch.cat([b["source"], b["target"]]) for b in loader])

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_a_batch_names_the_files_of_both_domains():
    source, target = (
        [{**item, "image_path": f"{name}{i}.png"} for i, item in enumerate(images(2, 0))] for name in ("a", "b")
    )
    for batch in UnpairedLoader(UnpairedDataset(source, target), 2, 3):
        assert [path[0] for path in batch["image_path"]] == ["a", "b", "a", "b"]
        assert [int(path[1]) for path in batch["image_path"][::2]] == batch["source"][:, 0, 0, 0].tolist()
        assert [int(path[1]) for path in batch["image_path"][1::2]] == batch["target"][:, 0, 0, 0].tolist()


def test_a_label_map_goes_with_its_source_image_and_none_comes_from_the_target():
    source, target = ([{**item, "label": item["image"].long()} for item in images(3, start)] for start in (0, 100))
    for batch in UnpairedLoader(UnpairedDataset(source, target), 4, 5):
        assert batch.keys() == {"source", "target", "source_label", "image_path"}
        assert torch.equal(batch["source_label"], batch["source"].long())
    plain = UnpairedDataset(images(3, 0), target)
    assert next(iter(UnpairedLoader(plain, 4, 1))).keys() == {"source", "target", "image_path"}


def test_label_maps_change_no_random_number():
    drawn = []
    for labelled in (False, True):
        torch.manual_seed(0)
        source = [{**item, **({"label": item["image"].long()} if labelled else {})} for item in images(3, 0)]
        loader = UnpairedLoader(UnpairedDataset(source, images(5, 100)), 2, 5)
        drawn.append(torch.cat([torch.cat([b["source"], b["target"]]) for b in loader]))
    assert torch.equal(*drawn)


def test_crops_and_flips_keep_image_and_label_map_together(tmp_path):
    """The grey value of every pixel is its label, in a data set that is cropped and mirrored as in the training."""
    for name, labelled in (("a", True), ("b", False)):
        with DatasetWriter(tmp_path / name, About(name=name, device=name, labels={i: str(i) for i in range(9)})) as new:
            for i in range(4):
                label = np.random.default_rng(i).integers(0, 9, (16, 16), dtype=np.uint8)
                new.add("training", label, label if labelled else None, subject=str(i))
    keys, may = ["image", "label"], {"allow_missing_keys": True}
    crop, flip = RandSpatialCropd(keys, (8, 8), random_size=False, **may), RandFlipd(keys, 0.5, 1, **may)
    transform = Compose([LoadPixelsd(keys, num_labels=9, allow_missing_keys=True), crop, flip])
    data = unpaired_images((tmp_path / "a", tmp_path / "b"), "training", transform, 4, keys)
    for batch in UnpairedLoader(data, 4, 10):
        assert batch["source"].shape == batch["source_label"].shape == batch["target"].shape == (4, 1, 8, 8)
        assert torch.equal((255 * batch["source"]).round().long(), batch["source_label"])


@pytest.mark.parametrize("where", ["image", "weights"])
def test_numbers_that_are_not_finite_are_told_with_the_images_of_both_domains(tmp_path, where):
    _, trainer = train("cut", paths=True)
    Progress("CUT").attach(trainer)
    LastWeights(trainer.network, tmp_path / "model.pt", TimeBudget()).attach(trainer)
    if where == "image":
        for item in trainer.data_loader.dataset.target:
            item["image"][:] = math.nan
        message = (
            r"CUT: the \w+ is nan at iteration 1 \(batch of dark\d\.png, bright\d\.png, dark\d\.png, bright\d\.png\)"
        )
    else:
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=4), lambda: next(trainer.network.parameters()).data.fill_(math.nan)
        )
        message = r"model\.pt' was not written\. .* Found after iteration 4 \(batch of dark\d\.png, bright\d\.png, "
    with pytest.raises(NotFinite, match=message):
        trainer.run()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- training


def train(
    method: str, epochs: int = 1, precision: str = "float32", paths: bool = False
) -> tuple[Any, TranslationTrainer]:
    torch.manual_seed(0)
    objective: Any = cut()
    if method == "cyclegan":
        objective = CycleGAN(generator(), generator(), discriminator(), discriminator(), pool_size=3)
    bright = [{"image": 0.6 + 0.4 * torch.rand(1, 16, 16)} for _ in range(4)]
    dark = [{"image": 0.4 * torch.rand(1, 16, 16)} for _ in range(6)]
    for name, domain in (("dark", dark), ("bright", bright)) if paths else ():
        for i, item in enumerate(domain):
            item["image_path"] = f"{name}{i}.png"  # type: ignore[assignment]
    trainer = TranslationTrainer(
        TranslationSettings(max_epochs=epochs, precision=precision),
        UnpairedLoader(UnpairedDataset(dark, bright), 2, 4),
        objective,
        *(torch.optim.Adam(part.parameters(), 0.002) for part in (objective.trained, objective.judges)),
    )
    return objective, trainer


@pytest.mark.parametrize("method", ["cyclegan", "cut"])
def test_a_training_step_moves_both_sides_and_says_what_they_lose(method):
    objective, trainer = train(method)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (objective.trained, objective.judges)]
    trainer.run()
    after = [m.state_dict() for m in (objective.trained, objective.judges)]
    for old, new in zip(before, after, strict=True):
        changed = {key.split(".")[0] for key in old if not torch.equal(old[key], new[key])}
        assert changed == {key.split(".")[0] for key in old}
    output = trainer.state.output
    assert {"loss", "adversarial", "discriminator", "identity"} <= output.keys()
    assert all(math.isfinite(value) for value in output.values() if isinstance(value, float))
    assert output["pred"].requires_grad is False


@pytest.mark.parametrize("method", ["cyclegan", "cut"])
def test_a_training_is_the_same_at_every_repetition(method):
    states = []
    for _ in range(2):
        objective, trainer = train(method)
        trainer.run()
        states.append(objective.trained.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("method", ["cyclegan", "cut"])
def test_half_the_precision_gives_nearly_the_same_losses(method):
    outputs = []
    for precision in ("float32", "bfloat16"):
        _, trainer = train(method, precision=precision)
        losses: list[dict] = []
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=1), lambda e, kept=losses: kept.append(e.state.output)
        )
        trainer.run()
        outputs.append(losses[0])
    for name in outputs[0].keys() - {"image", "pred"}:
        assert outputs[1][name] == pytest.approx(outputs[0][name], rel=0.03)
    assert outputs[1]["pred"].dtype == torch.float32


@pytest.mark.parametrize("method", ["cyclegan", "cut"])
def test_dark_images_become_brighter_where_the_target_domain_is_bright(method):
    objective, trainer = train(method, epochs=15)
    trainer.run()
    dark = 0.4 * torch.rand(8, 1, 16, 16)
    assert objective.generator(dark).mean().item() > dark.mean().item() + 0.1


@pytest.mark.parametrize("method", ["cyclegan", "cut"])
def test_the_state_of_an_objective_is_restored(method):
    objective, trainer = train(method)
    trainer.run()
    torch.manual_seed(5)
    other: Any = cut() if method == "cut" else CycleGAN(generator(), generator(), discriminator(), discriminator())
    other.load_state_dict(objective.state_dict())
    image = torch.rand(1, 1, 16, 16)
    assert torch.equal(other.generator(image), objective.generator(image))
    assert torch.equal(other.discriminator(image)[-1], objective.discriminator(image)[-1])


def test_a_sheet_shows_source_translation_and_target():
    sheet = TranslationSheet(Shift(0.25), UnpairedDataset(images(9, 0), images(3, 100)), count=8)()
    assert sheet.shape == (3, 3, 1, 16, 16)
    assert sheet[:, :, 0, 0, 0].tolist() == [[0, 4, 8], [0.25, 4.25, 8.25], [100, 101, 102]]


# ---------------------------------------------------------------- what is wrong is refused

BAD: dict[str, tuple[Any, str]] = {
    "odd size": (lambda: generator()(torch.rand(1, 1, 18, 16)), r"\(1, 1, 18, 16\).*multiples of 4"),
    "channels": (lambda: generator()(torch.rand(1, 3, 16, 16)), r"expected \(batch, 1, rows, columns\)"),
    "no channels": (lambda: generator(channels=0), "channels 0"),
    "no such layer": (lambda: feature_channels(generator(), [0, 99]), r"layers is \[0, 99\]; expected some of 0 to 8"),
    "no layer": (lambda: feature_channels(generator(), []), r"layers is \[\]"),
    "pool": (lambda: ImagePool(-1), "pool_size is -1; expected 0"),
    "one patch": (lambda: PatchProjection([1], num_patches=1), "num_patches is 1; expected at least 2"),
    "temperature": (lambda: cut(temperature=0.0), "temperature is 0.0; expected a number above 0"),
    "heads": (lambda: CUT(generator(), discriminator(), PatchProjection([1]), [0, 1]), "the projection has 1 heads"),
    "no source": (lambda: UnpairedDataset([], images(1, 0)), "The source domain has no image"),
    "no target": (lambda: UnpairedDataset(images(1, 0), []), "The target domain has no image"),
    "batch": (lambda: UnpairedLoader(UnpairedDataset(images(1, 0), images(1, 0)), 0, 1), "batch_size is 0"),
    "iterations": (lambda: UnpairedLoader(UnpairedDataset(images(1, 0), images(1, 0)), 1, 0), "iterations is 0"),
    "sizes in a batch": (
        lambda: collate_unpaired(
            [{"source": torch.ones(1, 4, 4), "target": torch.ones(1, s, 4)} for s in (4, 8)],
        ),
        r"Images differ in size: .*\(1, 8, 4\).* lower patch_size",
    ),
    "sizes on a sheet": (
        TranslationSheet(nn.Identity(), UnpairedDataset(images(1, 0), images(1, 0, size=8))),
        r"\(16, 16\) and \(8, 8\) pixels; expected one size for the sheet",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_fault_is_refused_by_name(fault):
    call, message = BAD[fault]
    with pytest.raises(ValueError, match=message):
        call()


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="Unknown precision 'half'"):
        TranslationSettings(precision="half")
