"""Scores against cases counted by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score
from torch.nn import functional

from unicorn_monai.bundle.installation import install
from unicorn_monai.bundle.references import from_bundle
from unicorn_monai.data.layout import read_header
from unicorn_monai.data.writer import About, DatasetWriter
from unicorn_monai.evaluation.comparison import closed_gaps, compare, over_seeds, score_trainings, strongest
from unicorn_monai.evaluation.scoring import (
    Counts,
    PooledIoU,
    confusion_matrix,
    count,
    overlap,
    per_image,
    score_images,
    scores,
    statistic,
    summarise,
)
from unicorn_monai.system.files import write_json
from unicorn_monai.system.weights import save_weights


def logits(prediction, labels=3):
    return functional.one_hot(prediction, labels).movedim(-1, 1).float()


# true 0 0 0 1 1 2, predicted 0 0 1 1 2 2: IoU 2/3, 1/3, 1/2; Dice 4/5, 2/4, 2/3
TRUE = torch.tensor([[[0, 0, 0], [1, 1, 2]]])
PREDICTED = torch.tensor([[[0, 0, 1], [1, 2, 2]]])
IOU, DICE = [2 / 3, 1 / 3, 1 / 2], [4 / 5, 2 / 4, 2 / 3]


def test_a_confusion_matrix_counts_true_labels_in_rows():
    assert confusion_matrix(PREDICTED, TRUE, 3).tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_the_scores_are_those_counted_by_hand():
    result = scores(confusion_matrix(PREDICTED, TRUE, 3))
    assert result["iou"] == pytest.approx(IOU)
    assert result["dice"] == pytest.approx(DICE)
    assert result["mean_iou"] == pytest.approx(0.5)
    assert result["mean_dice"] == pytest.approx(sum(DICE) / 3)


def test_the_layers_are_all_labels_but_the_first_and_the_last():
    matrix = np.array([[10, 0, 0, 0], [0, 2, 2, 0], [0, 0, 4, 0], [0, 0, 0, 10]])
    result = scores(matrix)
    assert result["iou"] == pytest.approx([1, 2 / 4, 4 / 6, 1])
    assert result["mean_iou_layers"] == pytest.approx((2 / 4 + 4 / 6) / 2)
    assert scores(matrix[:3, :3])["mean_iou_layers"] == pytest.approx(2 / 4)  # the retina of three labels
    assert scores(matrix[1:3, 1:3])["mean_iou_layers"] == pytest.approx((2 / 4 + 4 / 6) / 2)  # no others


def test_a_perfect_and_a_wrong_segmentation():
    assert scores(confusion_matrix(TRUE, TRUE, 3))["mean_iou"] == 1
    assert scores(confusion_matrix((TRUE + 1) % 3, TRUE, 3))["mean_dice"] == 0


def test_a_label_that_neither_occurs_nor_is_predicted_has_no_score():
    result = scores(confusion_matrix(PREDICTED, TRUE, 4))
    assert math.isnan(result["iou"][3])
    assert math.isnan(result["dice"][3])
    assert result["mean_iou"] == pytest.approx(0.5)


def test_a_label_that_is_predicted_but_does_not_occur_counts_as_missed():
    result = scores(confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), 2))
    assert result["iou"] == pytest.approx([2 / 3, 0])


def test_ignored_pixels_do_not_count():
    ignored = TRUE.clone()
    ignored[0, 0, 2] = 255
    assert confusion_matrix(PREDICTED, ignored, 3).tolist() == [[2, 0, 0], [0, 1, 1], [0, 0, 1]]


def test_nothing_but_ignored_pixels_cannot_be_scored():
    with pytest.raises(ValueError, match="No labelled pixel to score"):
        scores(confusion_matrix(PREDICTED, torch.full_like(TRUE, 255), 3))


def test_batches_are_pooled_before_they_are_scored():
    metric = PooledIoU(3)
    metric.update((logits(PREDICTED[:, :1]), TRUE[:, None, :1]))
    metric.update((logits(PREDICTED[:, 1:]), TRUE[:, None, 1:]))
    assert metric.compute() == pytest.approx(0.5)
    metric.reset()
    metric.update((logits(TRUE), TRUE[:, None]))
    assert metric.compute() == 1


def test_the_metric_gives_any_score_or_the_matrix_itself():
    for key, wanted in (("mean_dice", sum(DICE) / 3), ("confusion", [[2, 1, 0], [0, 1, 1], [0, 0, 1]])):
        metric = PooledIoU(3, key)
        metric.update((logits(PREDICTED), TRUE[:, None]))
        assert metric.compute() == pytest.approx(wanted) if key == "mean_dice" else metric.compute() == wanted


def test_logits_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        PooledIoU(3).update((torch.full((1, 3, 2, 3), float("nan")), TRUE[:, None]))


# ---------------------------------------------------------------- other definitions of the same


def test_pooled_scores_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    true, predicted = random.integers(0, 6, (2, 4000))
    result = scores(confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(true), 6))
    assert result["iou"] == pytest.approx(jaccard_score(true, predicted, average=None))
    assert result["dice"] == pytest.approx(f1_score(true, predicted, average=None))
    assert result["mean_iou"] == pytest.approx(jaccard_score(true, predicted, average="macro"))


def test_pooled_scores_are_those_of_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    random = np.random.default_rng(1)
    true, predicted = (torch.from_numpy(maps) for maps in random.integers(0, 5, (2, 4, 16, 16)))
    true[:, :3] = 255
    own = scores(confusion_matrix(predicted, true, 5))
    settings = {"num_classes": 5, "ignore_index": 255}
    iou = classification.MulticlassJaccardIndex(average="none", **settings)
    dice = classification.MulticlassF1Score(average="none", multidim_average="global", **settings)
    for p, t in zip(predicted, true, strict=True):  # pooled over batches
        iou.update(p[None], t[None])
        dice.update(p[None], t[None])
    assert own["iou"] == pytest.approx(iou.compute().tolist())
    assert own["dice"] == pytest.approx(dice.compute().tolist())
    counts = classification.MulticlassConfusionMatrix(**settings)(predicted, true)
    assert confusion_matrix(predicted, true, 5).tolist() == counts.tolist()


def test_many_matrices_at_once_are_scored_as_one_by_one():
    matrices = np.random.default_rng(1).integers(0, 9, (20, 5, 5)).astype(float)
    matrices[3, 2] = matrices[3, :, 2] = 0  # a label that is absent from one of them
    together = overlap(matrices)
    for i, matrix in enumerate(matrices):
        for key, value in scores(matrix).items():
            np.testing.assert_allclose(together[key][i], value)
    assert statistic("mean_dice")(matrices)[3] == pytest.approx(np.nanmean(scores(matrices[3])["dice"]))


# Two images, three labels. A: true 0 0 1 1, predicted 0 1 1 1 -> IoU 1/2, 2/3, absent. B: true 0 0 0 0, predicted
# 0 0 0 1 -> 3/4, 0 (predicted, does not occur), absent.
PAIR = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]]), torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])


def matrices(pair=PAIR, labels=3):
    return np.stack([confusion_matrix(p, t, labels).numpy() for p, t in zip(*pair, strict=True)]).astype(float)


def test_the_mean_over_images_follows_the_rule_for_absent_labels():
    found = per_image(matrices())
    assert found["iou"][:2] == pytest.approx([(1 / 2 + 3 / 4) / 2, (2 / 3 + 0) / 2])
    assert found["iou"][2] is None
    assert found["mean_iou"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + (3 / 4 + 0) / 2) / 2)
    assert found["excluded"] == 2


def test_pooled_and_per_image_are_two_numbers():
    pooled = scores(matrices().sum(axis=0))
    assert pooled["iou"][:2] == pytest.approx([4 / 6, 2 / 4])
    assert pooled["mean_iou"] == pytest.approx(7 / 12)
    assert per_image(matrices())["mean_iou"] == pytest.approx(23 / 48)


# ---------------------------------------------------------------- a whole test set


SIZE, LABELS, SPACING = 16, 4, (0.005, 0.01)


def truth(depth):
    """Layers of four rows from ``depth`` on."""
    rows = np.arange(SIZE)[:, None] - depth
    return np.broadcast_to(np.clip(rows // 4 + 1, 0, LABELS - 1) * (rows >= 0), (SIZE, SIZE)).astype(np.uint8)


def dataset(root, labels, modality="OCT", spacing=SPACING, subjects=("a", "a", "b", "b")):
    names = {i: f"label {i}" for i in range(LABELS)}
    with DatasetWriter(
        root, About(name="x", device="y", labels=names, modality=modality, spacing_mm=spacing)
    ) as writer:
        for label, subject in zip(labels, subjects, strict=True):
            writer.add("test", (60 * label).astype(np.uint8), label, subject=subject)
    return root


@pytest.fixture
def items(tmp_path):
    root = dataset(tmp_path / "set", [truth(d) for d in (2, 3, 4, 5)])
    return [
        {"image": str(i), "label": str(root / item["label"]), "subject": item["subject"], "spacing_mm": SPACING}
        for i, item in enumerate(read_header(root)["test"])
    ]


def prediction(shift):
    return torch.from_numpy(np.stack([truth(d + shift) for d in (2, 3, 4, 5)]))


def test_a_perfect_prediction_has_perfect_scores_and_certain_intervals(items):
    result = summarise(count(items, prediction(0), LABELS), seed=0)
    assert result["iou"] == result["dice"] == [1.0] * LABELS
    assert result["ci95"] == result["intervals"]["mean_dice"] == [1.0, 1.0]
    assert result["boundary"]["mean_um"] == result["boundary"]["p95_um"] == [0.0] * (LABELS - 1)
    assert result["broken_columns"] == {"share": 0.0, "ci95": [0.0, 0.0], "ci_unit": "image blocks"}
    assert result["ci_unit"] == result["boundary"]["ci_unit"] == "image blocks"  # of two subjects
    assert (result["n_test"], result["n_subjects"]) == (4, 2)


def test_layers_one_row_too_deep_are_five_micrometres_off(items):
    result = summarise(count(items, prediction(1), LABELS), seed=0)
    assert result["boundary"]["mean_um"] == pytest.approx([5.0] * 3)
    assert result["boundary"]["p95_um"] == pytest.approx([5.0] * 3)
    assert [result["boundary"][key] for key in ("all_mean_um", "all_p95_um")] == pytest.approx([5.0, 5.0])
    assert result["boundary"]["ci95"] == pytest.approx([5.0, 5.0])
    assert result["broken_columns"]["share"] == 0
    assert result["iou"][1] == pytest.approx(3 / 5)  # 3 of 4 rows shared, 5 in the union


def test_an_image_s_own_spacing_counts(items):
    items[0]["spacing_mm"] = (0.010, 0.01)
    mean = summarise(count(items, prediction(1), LABELS), seed=0)["boundary"]["mean_um"]
    assert mean == pytest.approx([(10 + 3 * 5) / 4] * 3)


def test_columns_with_a_missing_layer_are_counted(items):
    predicted = prediction(0)
    predicted[0, :, :8][predicted[0, :, :8] == 2] = 1  # label 2 is missing in half of one of four images
    assert summarise(count(items, predicted, LABELS), seed=0)["broken_columns"]["share"] == 1 / 8


def test_without_spacing_micrometres_are_not_computed(items):
    items[2]["spacing_mm"] = None
    result = summarise(count(items, prediction(1), LABELS), seed=0)
    assert result["boundary"] is None
    assert result["broken_columns"]["share"] == 0


def test_without_layers_there_are_no_surfaces(items):
    result = summarise(count(items, prediction(1), LABELS, layered=False), seed=0)
    assert result["boundary"] is None
    assert result["broken_columns"] is None


def test_a_label_absent_from_the_test_set_is_none_and_its_files_are_valid_json(items, tmp_path):
    counts = count(items, prediction(0), LABELS + 1)
    result = summarise(counts, seed=0)
    assert result["iou"][-1] is None
    assert result["mean_iou"] == 1
    assert result["boundary"]["mean_um"][-1] is None
    counts.save(tmp_path / "deep" / "counts.json")
    assert "NaN" not in (tmp_path / "deep" / "counts.json").read_text() + json.dumps(result)
    assert summarise(Counts.load(tmp_path / "deep" / "counts.json"), seed=0) == result


def test_set_ups_and_seeds_are_compared_from_their_records(items, tmp_path):
    for shift in (0, 1, 2):
        count(items, prediction(shift), LABELS).save(tmp_path / f"{shift}.json")
    good, bad, worse = (tmp_path / f"{shift}.json" for shift in (0, 1, 2))
    ious = [over_seeds([path], seed=0)["mean"] for path in (good, bad, worse)]
    assert ious[0] == 1
    assert compare([good], [bad, worse], seed=0)["difference"] == pytest.approx(1 - (ious[1] + ious[2]) / 2)
    assert compare([good], [bad], seed=0)["ci95"][0] > 0
    both = over_seeds([bad, worse], seed=0)
    assert both["seeds"] == pytest.approx(ious[1:])
    assert both["ci95"][0] <= both["mean"] <= both["ci95"][1]


def test_the_gap_is_closed_on_the_same_subjects(items, tmp_path):
    for name, shift in (("lower_bound", 3), ("upper_bound", 0), ("ours", 1)):
        count(items, prediction(shift), LABELS).save(tmp_path / f"{name}.json")
    records = {name: [tmp_path / f"{name}.json"] for name in ("lower_bound", "upper_bound", "ours")}
    ious = {name: over_seeds(paths, seed=0)["mean"] for name, paths in records.items()}
    found = closed_gaps(records, seed=0)
    assert list(found) == ["ours"]
    share = (ious["ours"] - ious["lower_bound"]) / (ious["upper_bound"] - ious["lower_bound"])
    assert found["ours"]["share"] == pytest.approx(share)
    low, high = found["ours"]["ci95"]
    assert low <= share <= high
    assert closed_gaps({name: records[name] for name in ("lower_bound", "ours")}, seed=0) == {}


def test_the_scores_of_two_trainings_are_means_and_have_the_intervals_of_the_mean(items, tmp_path):
    predictions, records = [prediction(1), prediction(2)], [tmp_path / "1.json", tmp_path / "2.json"]
    predictions[1][0, :, :8][predictions[1][0, :, :8] == 2] = 1  # 1 / 8 of the columns lack a layer
    counts = [count(items, p, LABELS) for p in predictions]
    for path, one in zip(records, counts, strict=True):
        one.save(path)
    each = [summarise(one, seed=0) for one in counts]
    found = score_trainings(each, records, seed=0)
    assert found.keys() == each[0].keys() | {"trainings"}
    for key in ("mean_iou", "mean_iou_layers"):
        assert found["per_image"][key] == pytest.approx(np.mean([one["per_image"][key] for one in each]))
    assert found["per_image"]["iou"] == pytest.approx(np.mean([one["per_image"]["iou"] for one in each], axis=0))
    assert found["broken_columns"]["share"] == pytest.approx(1 / 16)
    assert found["broken_columns"]["ci95"] == pytest.approx([0, 1 / 4])  # 2 of 4 images, the second training alone
    assert found["boundary"].keys() == each[0]["boundary"].keys()
    low, high = found["boundary"]["ci95"]
    assert low <= found["boundary"]["all_mean_um"] <= high
    same = score_trainings(each[:1] * 2, records[:1] * 2, seed=0)
    assert same["boundary"] == each[0]["boundary"]
    assert same["broken_columns"] == each[0]["broken_columns"]


def test_the_calibration_of_two_trainings_is_averaged_and_older_records_have_none(items, tmp_path):
    bins = [[0, 0, 0]] * 13 + [[4, 3.6, 3], [6, 5.9, 6]]
    losses = [[0.5, 2], [1.5, 3], [0.1, 1], [1.9, 4]]
    first = replace(count(items, prediction(0), LABELS), bins=bins, losses=losses)
    second = replace(first, losses=[[2 * loss, n] for loss, n in losses])
    old = count(items, prediction(0), LABELS)
    paths = [tmp_path / f"{i}.json" for i in range(3)]
    for path, one in zip(paths, (first, second, old), strict=True):
        one.save(path)
    content = json.loads(paths[2].read_text())
    write_json(paths[2], {key: value for key, value in content.items() if key not in ("bins", "losses")})
    each = [summarise(Counts.load(path), seed=0) for path in paths]
    assert [one["ece"] for one in each] == [pytest.approx((0.6 + 0.1) / 10)] * 2 + [None]
    assert [one["nll"] for one in each] == [pytest.approx(0.4), pytest.approx(0.8), None]
    assert each[2]["intervals"]["nll"] is None
    found = score_trainings(each[:2], paths[:2], seed=0)
    assert (found["ece"], found["nll"]) == (pytest.approx(0.07), pytest.approx(0.6))
    low, high = found["intervals"]["nll"]
    assert each[0]["intervals"]["nll"][0] <= low < 0.6 < high <= each[1]["intervals"]["nll"][1]
    mixed = score_trainings(each[1:], paths[1:], seed=0)
    assert mixed["ece"] is mixed["nll"] is mixed["intervals"]["nll"] is None


def test_one_subject_s_score_has_an_interval_over_blocks(items):
    for item in items:
        item["subject"] = "a"
    predicted = torch.cat([prediction(0)[:2], prediction(1)[2:]])
    result = summarise(count(items, predicted, LABELS), seed=0)
    assert (result["n_subjects"], result["ci_unit"]) == (1, "image blocks")
    low, high = result["ci95"]
    wrong = summarise(count(items[2:], prediction(1)[2:], LABELS), seed=0)["mean_iou"]
    assert (low, high) == (pytest.approx(wrong, abs=0.02), 1.0)  # the same kind of image in 1 of 16 draws each


def test_the_strongest_opponent_is_chosen_by_validation_images():
    setups = ("lower_bound", "augmentation", "fda", "cut+real", "unicorn+real", "semantic_only", "upper_bound")
    validation = dict(zip(setups, (0.4, 0.6, 0.7, 0.65, 0.8, 0.75, 0.9), strict=True))
    found = {name: {"mean_iou": 1 - v, "validation": {"mean_iou": v}} for name, v in validation.items()}
    assert strongest(found) == {
        "setup": "fda",
        "validation_mean_iou": 0.7,
        "chosen_by": "true labels of the unlabelled domain's validation images",
    }
    found["fda"]["validation"] = {"not_computed": "no label"}
    assert strongest(found)["setup"] == "cut+real", "the best of those that could be scored there"
    assert "no opponent was scored on validation" in strongest({"fda": found["fda"]})["not_computed"]
    assert "no opponent" in strongest({"unicorn": {}, "upper_bound": {}})["not_computed"]


def test_trainings_without_layers_have_no_surfaces(items, tmp_path):
    counts = count(items, prediction(1), LABELS, layered=False)
    counts.save(tmp_path / "1.json")
    found = score_trainings([summarise(counts, seed=0)] * 2, [tmp_path / "1.json"] * 2, seed=0)
    assert found["boundary"] is None
    assert found["broken_columns"] is None


def test_layers_that_no_training_has_seen_are_none(items, tmp_path):
    found = [[[9, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 9]]] * len(items)
    counts = Counts([str(item["image"]) for item in items], [str(item["subject"]) for item in items], found)
    counts.save(tmp_path / "1.json")
    both = score_trainings([summarise(counts, seed=0)] * 2, [tmp_path / "1.json"] * 2, seed=0)
    assert both["mean_iou"] == 1
    assert both["mean_iou_layers"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items.pop(), "Got 4 predictions for 3 images"),
        (lambda items: items.clear(), "Got 4 predictions for 0 images"),
        (lambda items: items[1].pop("subject"), "'1' has no 'subject'"),
    ],
)
def test_sets_that_do_not_match_are_refused(items, change, message):
    change(items)
    with pytest.raises(ValueError, match=message):
        count(items, prediction(0), LABELS)


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        ([0, 3], [0, 1], "prediction holds values 0 to 3; expected 0 to 2"),
        ([0, 1], [0, 3], "label map holds values 0 to 3; expected 0 to 2 or 255"),
        ([0, -1], [0, 1], "prediction holds values -1"),
        ([0, 1, 1], [0, 1], r"shape \(3,\), label map \(2,\)"),
    ],
)
def test_labels_out_of_range_are_refused(predicted, true, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(torch.tensor(predicted), torch.tensor(true), 3)


def test_records_of_other_images_or_none_are_refused(items, tmp_path):
    count(items, prediction(0), LABELS).save(tmp_path / "a.json")
    count(items[:2], prediction(0)[:2], LABELS).save(tmp_path / "b.json")
    write_json(tmp_path / "c.json", {"other": 1})
    with pytest.raises(ValueError, match=r"b.json' was scored on other images than '.*a.json'"):
        compare([tmp_path / "a.json"], [tmp_path / "b.json"], seed=0)
    with pytest.raises(ValueError, match="No record to compare"):
        over_seeds([], seed=0)
    with pytest.raises(ValueError, match="holds no counts"):
        over_seeds([tmp_path / "c.json"], seed=0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    changes = {"inference.json": {"num_labels": LABELS, "network_def::channels": [4, 8], "network_def::strides": [2]}}
    root = install("retinal_unet", tmp_path_factory.mktemp("bundles"), overrides=changes)
    save_weights(from_bundle(root), root / "models" / "model.pt")
    return root


def test_a_network_is_scored_on_a_data_set_and_its_counts_are_kept(bundle, tmp_path):
    root = dataset(tmp_path / "set", [truth(d) for d in (2, 3, 4, 5)])
    arguments = (bundle, bundle / "models" / "model.pt", root, "test", 0, torch.device("cpu"))
    result = score_images(*arguments, record=tmp_path / "counts.json")
    assert result.keys() >= {"mean_iou", "mean_iou_layers", "iou", "mean_dice", "n_test", "ci95"}
    counts = Counts.load(tmp_path / "counts.json")
    assert sum(pixels for pixels, _, _ in counts.bins) == 4 * SIZE**2
    assert sum(hits for _, _, hits in counts.bins) == np.trace(np.sum(counts.confusion, axis=0))
    assert [pixels for _, pixels in counts.losses] == [SIZE**2] * 4
    assert (0 <= result["ece"] <= 1, result["nll"] > 0) == (True, True)
    assert (result["n_test"], result["n_subjects"]) == (4, 2)
    assert over_seeds([tmp_path / "counts.json"], seed=0)["mean"] == pytest.approx(result["mean_iou"])
    assert score_images(*arguments) == result


def test_pictures_of_streets_have_no_surfaces(bundle, tmp_path):
    root = dataset(tmp_path / "set", [truth(d) for d in (2, 3, 4, 5)], modality="photograph")
    result = score_images(bundle, bundle / "models" / "model.pt", root, "test", 0, torch.device("cpu"))
    assert result["boundary"] is None


def test_a_network_with_other_labels_is_refused(bundle, tmp_path):
    with DatasetWriter(tmp_path / "set", About(name="x", device="y", labels={0: "a", 1: "b"})) as writer:
        writer.add("test", np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8), subject="s")
    with pytest.raises(ValueError, match="has 2 labels, the network 4"):
        score_images(bundle, bundle / "models" / "model.pt", tmp_path / "set", "test", 0, torch.device("cpu"))


def test_a_network_that_gives_no_numbers_is_refused(bundle, tmp_path, monkeypatch):
    root = dataset(tmp_path / "set", [truth(d) for d in (2, 3, 4, 5)])
    forward = torch.nn.Module.__call__
    monkeypatch.setattr("monai.networks.nets.UNet.forward", lambda self, x: forward(self.model, x) * float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        score_images(bundle, bundle / "models" / "model.pt", root, "test", 0, torch.device("cpu"))
