"""FID and KID against closed forms, MONAI and sums written out; the table of distances."""

import numpy as np
import pytest
import torch
from monai.metrics.fid import get_fid_score
from scipy.linalg import sqrtm

from unicorn_monai.evaluation.distribution import FeatureSet, distances, fid, kid, split_subjects


def sample(n, d, shift=0.0, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / d**0.5
    return shift + scale * torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing


@pytest.mark.parametrize(("n", "d"), [(20, 64), (64, 64), (200, 16), (2, 8)], ids=["N<D", "N=D", "N>D", "two images"])
def test_fid_is_that_of_the_square_root_of_the_product_of_covariances(n, d):
    a, b = sample(n, d), sample(n, d, shift=0.3, scale=1.4, seed=1)
    s, t = (np.cov(x.numpy(), rowvar=False) for x in (a, b))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * np.real(sqrtm(s @ t)))
    assert fid(a, b) == pytest.approx(float(expected), rel=2e-5)


def test_fid_is_monai_s_where_the_covariance_has_full_rank():
    a, b = sample(300, 12), sample(300, 12, shift=0.5, seed=1)
    assert fid(a, b) == pytest.approx(get_fid_score(a, b).item(), rel=1e-6)


def test_fid_of_a_shifted_set_is_the_squared_shift_and_of_a_scaled_one_known_too():
    a = sample(50, 8)
    assert fid(a, a + 3) == pytest.approx(8 * 9)
    a = a - a.mean(dim=0)
    trace = a.square().sum().item() / 49
    assert fid(a, 2 * a) == pytest.approx(trace)  # (2 - 1)^2 tr S


def test_a_set_has_no_distance_to_itself_in_any_order():
    a = sample(30, 64)
    assert fid(a, a.flip(0)) == pytest.approx(0, abs=1e-9)
    assert fid(a, sample(30, 64, seed=1)) == pytest.approx(fid(sample(30, 64, seed=1), a))


def test_single_precision_is_lifted_to_double():
    a, b = sample(40, 80) + 100, sample(40, 80, seed=1) + 100
    assert fid(a.float(), b.float()) == pytest.approx(fid(a, b), rel=1e-4)


def test_kid_is_the_sum_written_out():
    a, b = sample(7, 5), sample(7, 5, shift=0.5, seed=1)

    def k(x, y):
        return (float(x @ y) / 5 + 1) ** 3

    within = [np.mean([k(x[i], x[j]) for i in range(7) for j in range(7) if i != j]) for x in (a, b)]
    between = np.mean([k(x, y) for x in a for y in b])
    assert kid(a, b)[0] == pytest.approx(sum(within) - 2 * between)


def test_kid_has_no_bias_where_fid_has():
    pairs = [(sample(40, 16, seed=i), sample(40, 16, seed=1000 + i)) for i in range(60)]
    kids = np.array([kid(a, b)[0] for a, b in pairs])
    assert abs(kids.mean()) < 4 * kids.std() / np.sqrt(60)
    assert np.mean([fid(a, b) for a, b in pairs]) > 1


def test_the_standard_deviation_of_kid_shrinks_with_the_number_of_images():
    small, large = (kid(sample(n, 16), sample(n, 16, shift=0.2, seed=1))[1] for n in (30, 480))
    assert 0 < large < small / 2


@pytest.mark.parametrize("distance", [fid, kid])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (sample(9, 4), sample(8, 4), r"shapes \(9, 4\) and \(8, 4\); expected equal numbers of images"),
        (sample(9, 4), sample(9, 5), "one feature network"),
        (sample(1, 4), sample(1, 4), r"shape \(1, 4\); expected \(images, D\) with at least 2 images"),
        (torch.full((9, 4), float("nan")), sample(9, 4), "NaN or infinite"),
        (sample(9, 4)[None], sample(9, 4), r"shape \(1, 9, 4\)"),
    ],
    ids=["sizes", "widths", "one image", "NaN", "shape"],
)
def test_sets_that_cannot_be_compared_are_refused(distance, a, b, message):
    with pytest.raises(ValueError, match=message):
        distance(a, b)


# ---------------------------------------------------------------- the table


def sets():
    subjects = [f"s{i // 5}" for i in range(60)]
    return {
        "labeled": FeatureSet(sample(60, 8), subjects),
        "unlabeled": FeatureSet(sample(80, 8, shift=2, seed=1), [f"t{i // 5}" for i in range(80)]),
        "unicorn": FeatureSet(sample(50, 8, shift=1.5, seed=2), subjects[:50]),
    }


def test_the_table_holds_every_pair_and_the_floor_of_the_real_sets():
    table = distances(sets(), "net", ["labeled", "unlabeled"])
    assert table["features"] == "net"
    assert table["n"] == 30  # half of the smallest real set
    for one in sets():
        for other in sets():
            if one != other:
                assert table[one][other] == table[other][one] > 0
                assert table["kid_std"][one][other] > 0
    assert "unicorn" not in table["unicorn"]
    assert table["unlabeled"]["unlabeled"] < table["unlabeled"]["unicorn"] < table["unlabeled"]["labeled"]
    assert abs(table["kid"]["labeled"]["labeled"]) < table["kid"]["labeled"]["unicorn"]


def test_the_same_seed_gives_the_same_table():
    real = ["labeled", "unlabeled"]
    assert distances(sets(), "net", real, 3) == distances(sets(), "net", real, 3) != distances(sets(), "net", real, 4)


def test_a_real_set_of_one_subject_has_no_floor():
    one = sets() | {"labeled": FeatureSet(sample(60, 8), ["s"] * 60)}
    table = distances(one, "net", ["labeled", "unlabeled"])
    assert table["labeled"]["labeled"] is None
    assert table["kid"]["labeled"]["labeled"] is None
    assert table["unlabeled"]["unlabeled"] is not None
    assert table["labeled"]["unicorn"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (FeatureSet(sample(1, 8), ["s"]), r"'unicorn' has 1 image\(s\)"),
        (FeatureSet(sample(9, 8), ["s"]), r"'unicorn' has 9 image\(s\) of 1 listed"),
        (FeatureSet(sample(9, 7), ["s"] * 9), r"widths \{'labeled': 8, 'unlabeled': 8, 'unicorn': 7\}"),
    ],
)
def test_sets_that_do_not_fit_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        distances(sets() | {"unicorn": change}, "net", ["labeled", "unlabeled"])


def test_halves_share_no_subject_and_hold_every_image_once():
    subjects = ["a"] * 7 + ["b"] * 3 + ["c"] * 2 + ["d"] * 2
    first, second = split_subjects(subjects)
    assert sorted([*first, *second]) == list(range(14))
    assert not {subjects[i] for i in first} & {subjects[i] for i in second}
    assert abs(len(first) - len(second)) <= 2
    assert split_subjects(["a"] * 4) is None
