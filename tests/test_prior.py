"""The uncertainty prior: what is fitted, what is sampled, what the ControlNet is shown (Eq. 5)."""

import json
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import ks_2samp as kstest

from unicorn_monai.prior import UncertaintyPrior

SHA = "a" * 64


@pytest.fixture
def labeled():
    return torch.linspace(0.01, 0.05, 40)


@pytest.fixture
def unlabeled():
    return torch.linspace(0.1, 0.3, 60) ** 1.1


def truncated_moments(mean, std):
    """Mean and standard deviation of a Gaussian truncated to [0, 1], in closed form."""
    a, b = -mean / std, (1 - mean) / std
    pdf = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in (a, b)]
    mass = 0.5 * (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2)))
    shift = (pdf[0] - pdf[1]) / mass
    return mean + std * shift, std * math.sqrt(1 + (a * pdf[0] - b * pdf[1]) / mass - shift**2)


def test_fit_is_the_mean_and_standard_deviation_of_the_unlabelled_domain(labeled, unlabeled):
    prior = UncertaintyPrior.fit(labeled, unlabeled, SHA)
    assert prior.mean == pytest.approx(unlabeled.mean().item(), rel=1e-6)
    assert prior.std == pytest.approx(unlabeled.std().item(), rel=1e-6)
    assert prior.segmentation_sha256 == SHA


def test_zscore_hint_has_zero_mean_and_unit_spread_over_both_domains(labeled, unlabeled):
    both = torch.cat([labeled, unlabeled])
    hint = UncertaintyPrior.fit(labeled, unlabeled, SHA, "zscore").hint(both)
    assert hint.shape == both.shape
    assert hint.mean().item() == pytest.approx(0, abs=1e-6)
    assert hint.std().item() == pytest.approx(1, abs=1e-6)


def test_paper_hint_is_the_uncertainty_itself(labeled, unlabeled):
    prior = UncertaintyPrior.fit(labeled, unlabeled, SHA, "paper")
    assert torch.equal(prior.hint(unlabeled), unlabeled)


def test_scaling_of_the_hint_does_not_change_what_is_sampled(labeled, unlabeled):
    priors = [UncertaintyPrior.fit(labeled, unlabeled, SHA, scaling) for scaling in ("zscore", "paper")]
    assert torch.equal(priors[0].sample(range(10)), priors[1].sample(range(10)))


def test_a_sample_depends_on_its_own_seed_only(labeled, unlabeled):
    prior = UncertaintyPrior.fit(labeled, unlabeled, SHA)
    together = prior.sample([5, 6, 7, 5])
    torch.manual_seed(123)  # the global generator plays no part
    alone = torch.cat([prior.sample([seed]) for seed in (5, 6, 7, 5)])
    assert torch.equal(together, alone)
    assert together[0] == together[3]
    assert together[:3].unique().numel() == 3


def test_sampling_leaves_the_global_generator_alone(labeled, unlabeled):
    state = torch.get_rng_state()
    UncertaintyPrior.fit(labeled, unlabeled, SHA).sample(range(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sample_is_unrelated_to_the_noise_of_the_same_seed():
    prior = UncertaintyPrior(0.5, 0.1, "paper", 0.0, 1.0, SHA)
    seeds = range(2000)
    noise = torch.stack([torch.randn(64, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    u = prior.sample(seeds)
    table = torch.corrcoef(torch.cat([u[:, None], noise, noise.abs()], dim=1).T)
    assert table[0, 1:].abs().max() < 5 / math.sqrt(2000)  # five standard errors: 128 comparisons


# Standard error of the mean of 20000 draws is std / 141; five of them are allowed. The spread's is std / 200.
@pytest.mark.parametrize(("mean", "std"), [(0.19, 0.05), (0.03, 0.05), (0.0, 0.2), (0.95, 0.3), (0.5, 2.0)])
def test_samples_follow_the_truncated_gaussian(mean, std):
    sample = UncertaintyPrior(mean, std, "paper", 0.0, 1.0, SHA).sample(range(20000)).double()
    expected_mean, expected_std = truncated_moments(mean, std)
    assert sample.min() >= 0
    assert sample.max() <= 1
    assert sample.mean().item() == pytest.approx(expected_mean, abs=5 * expected_std / math.sqrt(20000))
    assert sample.std().item() == pytest.approx(expected_std, rel=5 / math.sqrt(40000))


def test_without_spread_every_sample_is_the_mean():
    torch.testing.assert_close(
        UncertaintyPrior(0.2, 0.0, "paper", 0.0, 1.0, SHA).sample(range(5)), torch.full((5,), 0.2)
    )


def test_no_seeds_give_no_samples():
    assert UncertaintyPrior(0.2, 0.1, "paper", 0.0, 1.0, SHA).sample([]).shape == (0,)


def test_save_and_load_give_the_same_prior(tmp_path, labeled, unlabeled):
    prior = UncertaintyPrior.fit(labeled, unlabeled, SHA)
    prior.save(tmp_path / "run" / "prior.json")
    loaded = UncertaintyPrior.load(tmp_path / "run" / "prior.json", SHA)
    assert loaded == prior
    assert torch.equal(loaded.sample(range(5)), prior.sample(range(5)))


def test_the_statistics_of_another_segmentation_network_are_refused(tmp_path, labeled, unlabeled):
    UncertaintyPrior.fit(labeled, unlabeled, SHA).save(tmp_path / "prior.json")
    with pytest.raises(ValueError, match="not comparable"):
        UncertaintyPrior.load(tmp_path / "prior.json", "b" * 64)


def test_a_missing_prior_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No uncertainty prior"):
        UncertaintyPrior.load(tmp_path / "prior.json")


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"mean": 0.1}), json.dumps({"other": 1})])
def test_a_file_that_is_no_prior_is_refused(tmp_path, content):
    (tmp_path / "prior.json").write_text(content)
    with pytest.raises(ValueError, match="is no uncertainty prior"):
        UncertaintyPrior.load(tmp_path / "prior.json")


@pytest.mark.parametrize(
    "values", [[0.1], [], [0.1, math.nan], [0.1, -0.01], [0.1, 1.01]], ids=["one", "none", "NaN", "below 0", "above 1"]
)
@pytest.mark.parametrize("domain", ["labelled", "unlabelled"])
def test_values_that_are_no_uncertainties_are_refused(domain, values):
    good, bad = torch.tensor([0.1, 0.2]), torch.tensor(values)
    pair = (bad, good) if domain == "labelled" else (good, bad)
    with pytest.raises(ValueError, match=f"Uncertainties of the {domain} domain"):
        UncertaintyPrior.fit(*pair, SHA)


def test_an_unknown_scaling_is_refused(labeled, unlabeled):
    with pytest.raises(ValueError, match=r"Unknown scaling 'minmax'.*zscore"):
        UncertaintyPrior.fit(labeled, unlabeled, SHA, "minmax")


def test_equal_uncertainties_cannot_be_standardised():
    same = torch.full((4,), 0.1)
    with pytest.raises(ValueError, match="same uncertainty"):
        UncertaintyPrior.fit(same, same, SHA)


def test_a_prior_cannot_be_changed_by_accident():
    prior = UncertaintyPrior(0.2, 0.1, "paper", 0.0, 1.0, SHA)
    with pytest.raises(AttributeError):
        prior.mean = 0.3
    assert replace(prior, mean=0.3).mean == 0.3


# ---------------------------------------------------------------- scaling by quantiles, the empirical prior


def test_the_quantile_hint_is_uniform_with_zero_mean_and_unit_spread(labeled, unlabeled):
    both = torch.cat([labeled, unlabeled])
    hint = UncertaintyPrior.fit(labeled, unlabeled, SHA, "quantile").hint(both)
    assert hint.dtype == both.dtype
    assert hint.mean().item() == pytest.approx(0, abs=0.02)
    assert hint.std().item() == pytest.approx(1, abs=0.02)
    assert hint.abs().max().item() == pytest.approx(math.sqrt(3), abs=1e-5)
    assert (hint.sort().indices == both.sort().indices).all()


def test_the_quantile_hint_is_constant_beyond_what_was_measured(labeled, unlabeled):
    prior = UncertaintyPrior.fit(labeled, unlabeled, SHA, "quantile")
    hint = prior.hint(torch.tensor([[0.0, 0.001], [0.5, 1.0]]))
    assert hint.shape == (2, 2)
    assert hint[0, 0] == hint[0, 1] == -hint[1, 0] == -hint[1, 1]


def test_the_median_of_both_domains_has_the_quantile_hint_zero():
    prior = UncertaintyPrior.fit(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5]), SHA, "quantile")
    assert prior.hint(torch.tensor([0.3])).item() == pytest.approx(0, abs=1e-6)


def test_the_empirical_prior_draws_what_was_measured(labeled):
    skewed = torch.distributions.Beta(1.5, 20.0).sample((500,))
    prior = UncertaintyPrior.fit(labeled, skewed, SHA, distribution="empirical")
    drawn = prior.sample(range(4000))
    assert drawn.min() >= skewed.min()
    assert drawn.max() <= skewed.max()
    assert kstest(drawn.numpy(), skewed.numpy()).statistic < 0.06
    gaussian = UncertaintyPrior.fit(labeled, skewed, SHA).sample(range(4000))
    assert kstest(gaussian.numpy(), skewed.numpy()).statistic > 0.06
    assert torch.equal(prior.sample([7]), prior.sample(range(8))[7:])


def test_rejected_draws_are_counted():
    half = UncertaintyPrior(0.0, 0.1, "paper", 0.0, 1.0, SHA)
    assert half.rejected(range(4000)) / 4000 == pytest.approx(0.5, abs=0.04)
    assert UncertaintyPrior(0.5, 0.01, "paper", 0.0, 1.0, SHA).rejected(range(100)) == 0
    assert half.rejected([]) == 0
    assert replace(half, distribution="empirical", quantiles=(0.0, 1.0)).rejected(range(100)) == 0


def test_the_new_settings_survive_the_file_and_old_files_are_read(tmp_path, labeled, unlabeled):
    prior = UncertaintyPrior.fit(
        labeled, unlabeled, SHA, "quantile", distribution="empirical", acquisition="margin", aggregation="p95"
    )
    prior.save(tmp_path / "prior.json")
    assert UncertaintyPrior.load(tmp_path / "prior.json") == prior
    old = {"mean": 0.2, "std": 0.1, "scaling": "zscore", "offset": 0.1, "scale": 0.05, "segmentation_sha256": SHA}
    (tmp_path / "old.json").write_text(json.dumps(old))
    loaded = UncertaintyPrior.load(tmp_path / "old.json")
    assert (loaded.distribution, loaded.acquisition, loaded.aggregation) == ("gaussian", "entropy", "mean")


def test_an_unknown_distribution_is_refused(labeled, unlabeled):
    with pytest.raises(ValueError, match=r"Unknown distribution 'uniform'.*empirical"):
        UncertaintyPrior.fit(labeled, unlabeled, SHA, distribution="uniform")


def test_equal_uncertainties_have_no_ranks():
    same = torch.full((4,), 0.1)
    with pytest.raises(ValueError, match="same uncertainty"):
        UncertaintyPrior.fit(same, same, SHA, "quantile")


@pytest.mark.parametrize(("distribution", "low", "high"), [("gaussian", 0.3, 0.7), ("empirical", 0.4, 0.6)])
def test_the_farthest_uncertainty_lies_on_the_other_side_of_what_is_asked_of(distribution, low, high):
    values = tuple(torch.linspace(0.4 - 0.2 / 62, 0.6 + 0.2 / 62, 65).tolist())
    prior = UncertaintyPrior(0.5, 0.1, "zscore", 0.0, 1.0, SHA, distribution, values)
    assert prior.farthest(0.1) == pytest.approx(high)
    assert prior.farthest(0.9) == pytest.approx(low)
    assert UncertaintyPrior(0.95, 0.1, "zscore", 0.0, 1.0, SHA).farthest(0.2) == 1.0, "u is at most 1"
