"""AUC of two groups, on tables small enough to count."""

import pytest
import torch

from unicorn_monai.segmentation.devices_apart import separation


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "expected"),
    [
        ([0.1, 0.2], [0.3, 0.4], 1.0),
        ([0.3, 0.4], [0.1, 0.2], 0.0),
        ([0.1, 0.3], [0.2, 0.4], 3 / 4),
        ([0.2, 0.2], [0.2, 0.2], 0.5),
        ([0.1, 0.2, 0.2], [0.2], 2 / 3),
    ],
)
def test_pairs_in_the_right_order_are_counted_and_ties_are_halves(labelled, unlabelled, expected):
    assert separation(torch.tensor(labelled), torch.tensor(unlabelled)) == pytest.approx(expected)


def test_it_does_not_depend_on_the_scale():
    a, b = torch.rand(20, generator=torch.Generator().manual_seed(0)), torch.rand(30) + 0.2
    assert separation(a, b) == separation(a.exp(), b.exp())


def test_no_image_of_one_domain_is_refused():
    with pytest.raises(ValueError, match="Got 0 labelled and 2 unlabelled images"):
        separation(torch.empty(0), torch.ones(2))
