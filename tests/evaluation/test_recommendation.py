"""A recommendation end to end, on real networks at tiny size and scenes whose truth is known."""

import json
import math

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from unicorn_monai.evaluation.expected_iou import Line, fit_lines, fit_temperatures
from unicorn_monai.evaluation.recommendation import judge, recommend, score_on
from unicorn_monai.evaluation.reverse_validation import ReverseValidation, features_of
from unicorn_monai.evaluation.verdict import CRITERIA

SIZE = 16


def scenes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Dark above, bright below a border that lies elsewhere in every image; label maps 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    border = torch.randint(4, SIZE - 4, (count, 1, 1, 1), generator=generator)
    label = (torch.arange(SIZE)[None, None, :, None] >= border).long().expand(count, 1, SIZE, SIZE)
    noise = 0.05 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    return (0.2 + 0.6 * label + noise).clamp(0, 1), label


class Threshold(nn.Module):
    """Label 1 where the image is brighter than a value, sure by a factor; swapped below zero."""

    def __init__(self, value: float, sure: float = 20.0) -> None:
        super().__init__()
        self.value, self.sure = value, sure

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = self.sure * (images - self.value)
        return torch.cat([-bright, bright], dim=1)


@pytest.fixture
def networks() -> dict[str, nn.Module]:
    return {"right": Threshold(0.5), "also": Threshold(0.45), "third": Threshold(0.55), "blind": Threshold(0.99)}


def test_the_network_that_sees_is_recommended_over_the_blind_one(networks):
    images, label = scenes(8, 0)
    verdict, reverse = judge(networks, images.split(3), 2)
    labelled = [scenes(4, 1)]
    more = {"reverse": reverse.scores(labelled), "synthetic": score_on(networks, labelled, 2)}
    found = recommend(verdict, "agreement", more=more)
    assert found["setup"] in ("right", "also", "third")
    assert (found["images"], found["candidates"]) == (8, [*networks])
    assert set(found["scores"]) == {*CRITERIA, "calibrated", "jury", "reverse", "synthetic"}
    truth = score_on(networks, [(images, label)], 2)
    for criterion in ("agreement", "belief", "information", "jury", "reverse", "synthetic"):
        scores = {name: -math.inf if v is None else v for name, v in found["scores"][criterion].items()}
        assert min(scores, key=scores.get) == "blind", criterion
    assert truth["right"] == 1
    assert found["estimate"] == found["estimates"][found["setup"]] == found["estimators"]["confidence"]
    lines = dict.fromkeys(networks, Line(0.0, 0.1, 0.5, 0.01))
    calibrated = recommend(verdict, "agreement", lines)
    assert calibrated["estimate"] == pytest.approx(0.1 + 0.5 * found["estimate"])
    assert calibrated["estimate"] == calibrated["estimates"][found["setup"]] == calibrated["estimators"]["calibrated"]
    json.dumps(found, allow_nan=False)


def test_networks_that_are_no_jurors_do_not_raise_their_like(networks):
    """Blind networks, surer than the others: as jurors they praise each other."""
    images, _ = scenes(8, 0)
    seeing = {name: Threshold(value, 0.5) for name, value in (("right", 0.5), ("also", 0.45), ("third", 0.55))}
    blind = {f"blind {value}": Threshold(value) for value in (0.99, 0.98, 0.97, 0.96)}
    verdict, _ = judge(seeing | blind, images.split(3), 2)
    assert recommend(verdict, "jury")["setup"] in blind
    found = recommend(verdict, "jury", jurors=[*seeing])
    assert found["setup"] in seeing
    assert found["jurors"] == [*seeing]
    assert max(found["scores"]["jury"][name] for name in blind) < min(found["scores"]["jury"][n] for n in seeing)


def test_networks_are_judged_as_they_are_used_and_left_as_they_were():
    """Dropout is off while they are judged; a U-Net of MONAI, twice: agreement 1."""
    torch.manual_seed(0)
    network = UNet(2, 1, 3, (4, 8), (2,), dropout=0.5).train()
    verdict, _ = judge({"a": network, "b": network}, [torch.rand(2, 1, SIZE, SIZE)], 3)
    assert verdict.scores()["agreement"] == {"a": 1.0, "b": 1.0}
    assert network.training


def test_a_network_with_damaged_weights_is_named(networks):
    images, label = scenes(4, 0)
    damaged = networks | {"third": Threshold(float("nan"))}
    changes = {"none": torch.Tensor.float}
    for use in (
        lambda: fit_temperatures(damaged, [(images, label)]),
        lambda: fit_lines(damaged, lambda: [(images, label)], changes, 2, dict.fromkeys(damaged, 1.0)),
        lambda: judge(damaged, [images], 2),
    ):
        with pytest.raises(ValueError, match="The output of the network 'third'"):
            use()


def test_a_criterion_that_is_not_there_is_refused(networks):
    verdict, _ = judge(networks, scenes(2, 0)[0].split(1), 2)
    with pytest.raises(ValueError, match="criterion is 'luck'; expected one of agreement, belief"):
        recommend(verdict, "luck")
    with pytest.raises(ValueError, match="with finite values"):
        recommend(verdict, "synthetic", more={"synthetic": dict.fromkeys(networks, float("nan"))})


def test_what_is_learned_from_true_labels_finds_them_on_another_device():
    """Half as bright and of less contrast: each image is scaled, so nothing changes for the model."""
    images, label = scenes(8, 0)
    wrong = torch.randint(0, 2, label.shape, generator=torch.Generator().manual_seed(3))
    model = ReverseValidation(["true", "random", "one"], 2)
    for part in (slice(0, 3), slice(3, 8)):
        seen = {"true": label[part, 0], "random": wrong[part, 0], "one": torch.ones_like(label[part, 0])}
        model.update(images[part], seen)
    other, truth = scenes(4, 1)
    scores = model.scores([(other / 2, truth)])
    assert scores["true"] > 0.95
    assert scores["random"] < 0.7
    assert scores["one"] == pytest.approx((truth == 1).double().mean().item() / 2), "0 is never said, so its IoU is 0"


def test_features_do_not_change_with_brightness_and_contrast():
    images, _ = scenes(2, 0)
    assert torch.allclose(features_of(images), features_of(0.3 * images + 0.4), atol=1e-4)
    with pytest.raises(ValueError, match="No image was given"):
        ReverseValidation(["a"], 2).discriminant("a")
