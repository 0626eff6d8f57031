"""Criteria without labels against cases whose truth is known."""

import math

import pytest
import torch

from unicorn_monai.evaluation.verdict import (
    Verdict,
    expected_confusion,
    mean_iou_of,
    neighbourhood_density,
    one_hot_of,
    other_view,
    tempered,
    turned_back,
)


def maps(seed: int = 0, labels: int = 3) -> torch.Tensor:
    return torch.randint(0, labels, (2, 8, 8), generator=torch.Generator().manual_seed(seed))


def sure_of(label: torch.Tensor, labels: int = 3, share: float = 1.0) -> torch.Tensor:
    """Probability ``share`` for a label map, the rest spread evenly."""
    one = torch.nn.functional.one_hot(label, labels).movedim(-1, 1).float()
    return one * share + (1 - share) / labels


def test_under_the_truth_itself_the_expected_iou_is_the_iou():
    """Three of four pixels right: IoU 2/3 and 1/2."""
    seen, truth = torch.tensor([[[0, 0], [0, 1]]]), torch.tensor([[[0, 0], [1, 1]]])
    confusion = expected_confusion(seen, sure_of(truth, 2))
    assert confusion.tolist() == [[[2, 1], [0, 1]]]
    assert mean_iou_of(confusion).item() == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_belief_of_one_half_expects_a_third():
    """Two labels, each pixel as likely: 4 / (8 + 8 - 4) of both."""
    seen = torch.tensor([0, 1]).repeat(8).reshape(1, 4, 4)
    assert mean_iou_of(expected_confusion(seen, torch.full((1, 2, 4, 4), 0.5))).item() == pytest.approx(1 / 3)


def test_labels_that_never_occur_do_not_count():
    seen = torch.zeros(1, 4, 4, dtype=torch.long)
    assert mean_iou_of(expected_confusion(seen, sure_of(seen, 5))) == 1


def test_the_jury_are_the_others_each_heard_as_it_is_worth():
    """a agrees with b in all, with c in three of four pixels; b is worth 0.05 log 3 more than c: 3 to 1."""
    truth, other = torch.tensor([[[0, 0], [1, 1]]]), torch.tensor([[[0, 0], [0, 1]]])
    found = {"a": sure_of(truth, 2), "b": sure_of(truth, 2), "c": sure_of(other, 2)}
    verdict = Verdict([*found], 2)
    verdict.update(found, found)
    apart = (2 / 3 + 1 / 2) / 2
    worth = {"a": 0.9, "b": 0.5 + 0.05 * math.log(3), "c": 0.5}
    heard = verdict.jury(worth, ["b", "c"])
    assert heard == pytest.approx({"a": (3 + apart) / 4, "b": apart, "c": apart})
    alone = verdict.jury(worth, ["b"])
    assert math.isnan(alone["b"])
    assert (alone["a"], alone["c"]) == pytest.approx((1.0, apart))
    with pytest.raises(ValueError, match=r"The jurors \['x'\] were not looked at"):
        verdict.jury(worth, ["x", "a"])


def test_who_is_expected_to_be_far_below_the_best_juror_is_not_considered():
    found = {name: sure_of(maps()) for name in "abc"}
    verdict = Verdict([*found], 3)
    verdict.update(found, found)
    jury = verdict.jury({"a": 0.6, "b": 0.51, "c": 0.49}, ["a", "b", "c"])
    assert (jury["a"], jury["b"]) == (1.0, 1.0)
    assert math.isnan(jury["c"])
    assert verdict.jury({"a": 0.9, "b": 0.51, "c": 0.49}, ["b", "c"])["c"] == 1.0, "a is no juror"


def test_the_best_is_preferred_however_far_it_stands_out():
    """Twelve networks with errors of their own and honest beliefs: who lacks the best juror is not preferred for it."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 2, (4, 32, 32), generator=generator)
    for best, others in ((1.0, 0.8), (0.95, 0.85), (0.9, 0.88)):
        rights = {str(i): best if i == 5 else others for i in range(12)}
        found = {}
        for name, right in rights.items():
            wrong = torch.rand(truth.shape, generator=generator) >= right
            found[name] = sure_of(torch.where(wrong, 1 - truth, truth), 2, 2 * right - 1)
        verdict = Verdict([*found], 2)
        verdict.update(found, found)
        worth = {name: right / (2 - right) for name, right in rights.items()}
        known = {name: value for name, value in verdict.jury(worth, verdict.names).items() if not math.isnan(value)}
        assert max(known, key=known.get) == "5", (best, others)


def test_every_opinion_is_the_expected_confusion_of_two_networks():
    found = {
        name: torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(i)).softmax(1)
        for i, name in enumerate("ab")
    }
    verdict = Verdict([*found], 3)
    verdict.update(found, found)
    for i, n in enumerate("ab"):
        for j, m in enumerate("ab"):
            alone = expected_confusion(found[n].argmax(1), found[m]).sum(dim=0)
            assert torch.allclose(verdict.opinions[i, j], alone, atol=1e-4)


def test_the_one_that_agrees_with_the_others_is_preferred():
    truth = maps()
    wrong = truth.clone()
    wrong[:, :4] = (wrong[:, :4] + 1) % 3
    found = {"a": sure_of(truth), "b": sure_of(truth), "odd": sure_of(wrong)}
    verdict = Verdict([*found], 3)
    verdict.update(found, found)
    scores = verdict.scores()
    assert scores["agreement"]["a"] == scores["agreement"]["b"] == 1
    assert scores["agreement"]["odd"] < 0.6
    assert scores["belief"]["odd"] < scores["belief"]["a"]
    assert set(scores["consistency"].values()) == {1.0}


def test_information_is_that_of_sure_and_different_labels():
    """Sure of two labels as often: log 2; always the same, or never sure: 0."""
    half = torch.tensor([0, 1]).repeat(32).reshape(1, 8, 8)
    found = {
        "both": sure_of(half, 2),
        "same": sure_of(torch.zeros_like(half), 2),
        "unsure": torch.full((1, 2, 8, 8), 0.5),
    }
    verdict = Verdict([*found], 2)
    verdict.update(found, found)
    information = verdict.scores()["information"]
    assert information["both"] == pytest.approx(math.log(2))
    assert information["same"] == information["unsure"] == pytest.approx(0)


def test_what_changes_with_the_view_is_not_consistent():
    label = maps()
    verdict = Verdict(["steady", "fickle"], 3)
    views = {"steady": sure_of(label), "fickle": sure_of((label + 1) % 3)}
    verdict.update({"steady": sure_of(label), "fickle": sure_of(label)}, views)
    assert verdict.scores()["consistency"] == {"steady": 1.0, "fickle": 0.0}


def test_batches_are_as_good_as_one():
    found = {
        name: torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(i)).softmax(1)
        for i, name in enumerate("ab")
    }
    whole, parts = Verdict("ab", 3), Verdict("ab", 3)
    whole.update(found, found)
    for part in (slice(0, 1), slice(1, 4)):
        parts.update(*[{name: p[part] for name, p in found.items()}] * 2)
    for criterion, scores in whole.scores().items():
        assert parts.scores()[criterion] == pytest.approx(scores, abs=1e-6)


def test_pixels_of_one_kind_are_the_densest():
    """All alike: log of the number of the others."""
    alike = sure_of(torch.zeros(1, 8, 8, dtype=torch.long))
    assert neighbourhood_density(alike) == pytest.approx(math.log(63), rel=1e-5)
    assert neighbourhood_density(sure_of(maps(labels=3)[:1])) < math.log(40)


def test_the_most_probable_label_is_a_belief():
    assert torch.equal(one_hot_of(sure_of(maps(), share=0.4)), sure_of(maps()))


def test_a_label_that_nobody_sees_does_not_count():
    sure = one_hot_of(torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.0, 0.0]]).reshape(1, 3, 1, 2))
    verdict = Verdict("ab", 3)
    verdict.update(dict.fromkeys("ab", 0.97 * sure + 0.01), dict.fromkeys("ab", sure))
    assert verdict.scores()["belief"]["a"] == pytest.approx(0.98 / (0.99 + 0.99 - 0.98)), "of two labels, not of three"


def test_one_network_and_no_image_are_refused():
    with pytest.raises(ValueError, match="two networks or more"):
        Verdict(["a"], 3)
    with pytest.raises(ValueError, match="No image was given"):
        Verdict(["a", "b"], 3).scores()


def test_equal_networks_agree_and_a_constant_one_says_nothing():
    p = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).softmax(1)
    verdict = Verdict("abc", 3)
    verdict.update(dict.fromkeys("abc", p), dict.fromkeys("abc", p))
    assert verdict.scores()["agreement"] == dict.fromkeys("abc", 1.0)
    constant = torch.tensor([0.7, 0.2, 0.1]).reshape(1, 3, 1, 1).expand(2, 3, 8, 8)
    verdict = Verdict(["constant", "other"], 3)
    verdict.update(both := {"constant": constant, "other": p}, both)
    assert verdict.scores()["information"]["constant"] == pytest.approx(0, abs=1e-6)


def test_each_image_keeps_its_own_counts():
    seen, belief = torch.tensor([[[0, 0]], [[0, 1]]]), sure_of(torch.tensor([[[0, 1]], [[0, 1]]]), 2)
    assert expected_confusion(seen, belief).tolist() == [[[1, 1], [0, 0]], [[1, 0], [0, 1]]]
    each = mean_iou_of(expected_confusion(seen, belief))
    assert each.tolist() == [pytest.approx(1 / 4), 1]
    assert mean_iou_of(torch.zeros(2, 2)).isnan()


def test_a_temperature_takes_roots():
    """T = 2 takes 0.9 and 0.1 to 3 : 1; T = 1 changes nothing."""
    p = torch.tensor([0.9, 0.1]).reshape(1, 2, 1, 1)
    assert tempered(p, 2.0).flatten().tolist() == pytest.approx([0.75, 0.25])
    assert tempered(p, 1.0).flatten().tolist() == pytest.approx([0.9, 0.1])


def test_confidence_is_the_iou_that_a_network_expects_of_itself():
    """As sure as one half of each pixel: a third, as above; its temperature counts."""
    p = sure_of(torch.tensor([0, 1]).repeat(8).reshape(1, 4, 4), 2, 0.8)  # 0.9 and 0.1
    verdict = Verdict("ab", 2, {"a": 2.0})
    verdict.update(dict.fromkeys("ab", p), dict.fromkeys("ab", p))
    assert verdict.scores()["confidence"] == pytest.approx({"a": 0.75 / 1.25, "b": 0.9 / 1.1})


def test_the_other_view_is_mirrored_and_changed_and_turned_back():
    images = torch.zeros(4, 1, 16, 16)
    images[..., :8] = 0.9  # bright on the left: on the right in the other view
    view = other_view(images, torch.Generator().manual_seed(0))
    assert view.shape == images.shape
    assert 0 <= view.min() <= view.max() <= 1
    assert (view[..., 10:].mean(dim=(1, 2, 3)) > view[..., :6].mean(dim=(1, 2, 3)) + 0.2).all()
    assert not torch.equal(view, images.flip(-1))
    assert len({tuple(v.flatten().tolist()) for v in view}) == 4, "each image is changed in its own way"
    assert torch.equal(turned_back(images.flip(-1)), images)
    again = other_view(images, torch.Generator().manual_seed(0))
    assert torch.equal(view, again)
