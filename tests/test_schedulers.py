"""Samplers on a Gaussian, where the best noise predictor is known and the result can be worked out.

Data are N(MEAN, SPREAD^2), one number each. With a = alphas_cumprod[t], x_t is N(sqrt(a) MEAN, a SPREAD^2 + 1 - a) and
the exact noise prediction is affine in x_t, so a deterministic sampler maps x_T affinely to x_0: the two points -1 and
1, of mean 0 and standard deviation 1, give its mean and standard deviation without any random error.
"""

import contextlib
import functools
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler, RFlowScheduler

from tiny_networks import SCHEDULE
from unicorn_monai import sampler_trial
from unicorn_monai.sampler_trial import exact_x0, quantiles, sampling_error
from unicorn_monai.schedulers import DDIM, DPMSolverPlusPlus, UniPC, _tell, prepare_timesteps, seeded_step

MEAN, SPREAD = 1.5, 0.5
STEPS = (10, 15, 20, 25, 30, 50, 300, 1000)
SAMPLERS = (DDIM, DPMSolverPlusPlus, UniPC)


def exact_noise(x, alpha):
    return (1 - alpha).sqrt() * (x - alpha.sqrt() * MEAN) / (alpha * SPREAD**2 + 1 - alpha)


def exact_output(prediction_type, x, alpha):
    noise = exact_noise(x, alpha)
    x0 = (x - (1 - alpha).sqrt() * noise) / alpha.sqrt()
    outputs = {"epsilon": noise, "sample": x0, "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * x0}
    return outputs[prediction_type]


def timesteps_of(scheduler, n):
    """Without a trial: for what the sampler does, right or not."""
    scheduler.set_timesteps(n)
    return scheduler.timesteps.tolist()


def run(scheduler, n, x, **step_options):
    """Denoise ``x`` with the exact predictor."""
    for t in timesteps_of(scheduler, n):
        output = exact_output(str(scheduler.prediction_type), x, scheduler.alphas_cumprod[t].double())
        x, _ = scheduler.step(output, t, x, **step_options)
    return x


def moments(scheduler, n):
    x = run(scheduler, n, torch.tensor([-1.0, 1.0], dtype=torch.float64))
    return x.mean().item(), x.std(unbiased=False).item()


def continuous_limit(scheduler):
    """Standard deviation after infinitely many steps from T - 1 to 0, and the last one to the predicted x0."""
    first, last = scheduler.alphas_cumprod[-1].item(), scheduler.alphas_cumprod[0].item()
    at_zero = math.sqrt((last * SPREAD**2 + 1 - last) / (first * SPREAD**2 + 1 - first))
    return at_zero * math.sqrt(last) * SPREAD**2 / (last * SPREAD**2 + 1 - last)


@pytest.mark.parametrize("n", STEPS)
def test_ddim_gives_the_closed_form(n):
    """With a' the next alphas_cumprod a step multiplies x - sqrt(a) MEAN by
    (sqrt(a a') SPREAD^2 + sqrt((1 - a) (1 - a'))) / (a SPREAD^2 + 1 - a)."""
    scheduler = DDIM(1000, **SCHEDULE)
    alphas = [scheduler.alphas_cumprod[t].item() for t in timesteps_of(scheduler, n)]
    expected = 1.0
    for a, b in zip(alphas, [*alphas[1:], 1.0], strict=True):
        expected *= (math.sqrt(a * b) * SPREAD**2 + math.sqrt((1 - a) * (1 - b))) / (a * SPREAD**2 + 1 - a)
    mean, std = moments(scheduler, n)
    # alphas_cumprod are single precision; their rounding adds up to less than 1e-5.
    assert std == pytest.approx(expected, abs=1e-5)
    assert mean == pytest.approx(MEAN * (1 - math.sqrt(alphas[0]) * expected), abs=1e-5)


# Measured, to four digits; 1e-4 leaves room for that rounding alone.
@pytest.mark.parametrize(
    ("sampler", "n", "mean", "std"),
    [
        (DDIM, 10, 1.4936, 0.3554),
        (DDIM, 15, 1.4929, 0.3970),
        (DDIM, 20, 1.4925, 0.4188),
        (DDIM, 25, 1.4923, 0.4329),
        (DDIM, 30, 1.4921, 0.4430),
        (DDIM, 50, 1.4917, 0.4635),
        (DDIM, 300, 1.4912, 0.4921),
        (DDIM, 1000, 1.4911, 0.4966),
        (DPMSolverPlusPlus, 10, 1.4909, 0.5090),
        (DPMSolverPlusPlus, 15, 1.4910, 0.5056),
        (DPMSolverPlusPlus, 20, 1.4910, 0.5030),
        (DPMSolverPlusPlus, 25, 1.4910, 0.5013),
        (DPMSolverPlusPlus, 30, 1.4910, 0.5005),
        (DPMSolverPlusPlus, 50, 1.4911, 0.4993),
        (DPMSolverPlusPlus, 300, 1.4911, 0.4988),
        (DPMSolverPlusPlus, 1000, 1.4911, 0.4988),
        (UniPC, 10, 1.4907, 0.5177),
        (UniPC, 15, 1.4910, 0.5049),
        (UniPC, 20, 1.4910, 0.5012),
        (UniPC, 25, 1.4911, 0.4999),
        (UniPC, 30, 1.4911, 0.4993),
        (UniPC, 50, 1.4911, 0.4988),
        (UniPC, 300, 1.4911, 0.4987),
        (UniPC, 1000, 1.4911, 0.4987),
    ],
)
def test_mean_and_spread_of_the_gaussian_are_pinned(sampler, n, mean, std):
    assert moments(sampler(1000, **SCHEDULE), n) == pytest.approx((mean, std), abs=1e-4)


@pytest.mark.parametrize("n", STEPS)
def test_ddim_converges_at_first_order(n):
    """The error is below C / n; C = 2 holds at every n."""
    scheduler = DDIM(1000, **SCHEDULE)
    assert moments(scheduler, n)[1] == pytest.approx(continuous_limit(scheduler), abs=2 / n)


@pytest.mark.parametrize("n", STEPS)
def test_dpm_solver_converges_at_second_order(n):
    """The error is below C / n^2 with C = 2.2; 4e-4 is left where all 1000 timesteps near 0 are in use already."""
    scheduler = DPMSolverPlusPlus(1000, **SCHEDULE)
    assert moments(scheduler, n)[1] == pytest.approx(continuous_limit(scheduler), abs=2.2 / n**2 + 4e-4)


@pytest.mark.parametrize("n", STEPS)
def test_unipc_converges_at_third_order(n):
    """The error is below C / n^3 with C = 23; of what is left near 0, half as much as above."""
    scheduler = UniPC(1000, **SCHEDULE)
    assert moments(scheduler, n)[1] == pytest.approx(continuous_limit(scheduler), abs=23 / n**3 + 2e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("n", STEPS)
def test_the_mean_is_off_only_by_what_the_noise_schedule_leaves_of_the_signal(sampler, n):
    """Sampling starts at mean 0 instead of sqrt(a_T) MEAN, 0.018; an affine sampler keeps that, times its spread."""
    scheduler = sampler(1000, **SCHEDULE)
    mean, std = moments(scheduler, n)
    left = math.sqrt(scheduler.alphas_cumprod[-1].item())
    assert mean == pytest.approx(MEAN * (1 - left * std), abs=2e-5)
    assert abs(mean - MEAN) < 0.01


@pytest.mark.parametrize("n", [2, 7, 40, 400])
def test_the_correction_of_unipc_is_exact_where_x0_is_quadratic_in_log_snr(n):
    """x / sigma grows by the integral of exp(lambda) x0(lambda), which is known for a polynomial x0."""
    scheduler = UniPC(1000, **SCHEDULE)
    alphas = scheduler.alphas_cumprod[timesteps_of(scheduler, n + 1)].double()
    lambdas = alphas.logit() / 2
    p0, p1, p2 = 0.3, -1.2, 0.7

    def x0(at):
        return p0 + p1 * at + p2 * at**2

    def integral(at):
        return at.exp() * (p0 + p1 * (at - 1) + p2 * (at**2 - 2 * at + 2))

    x = torch.tensor([0.4, -2.0], dtype=torch.float64)
    for i in range(1, n):
        before, here, there = lambdas[i - 1], lambdas[i], lambdas[i + 1]
        nodes = (x0(there), alphas[i + 1], x, alphas[i], x0(here), (x0(before), before))
        growth = x / (1 - alphas[i]).sqrt() + integral(there) - integral(here)
        torch.testing.assert_close(UniPC._correct(*nodes), growth * (1 - alphas[i + 1]).sqrt(), rtol=0, atol=1e-9)


def test_dpm_solver_in_15_steps_is_closer_than_ddim_in_100():
    solver, ddim = DPMSolverPlusPlus(1000, **SCHEDULE), DDIM(1000, **SCHEDULE)
    limit = continuous_limit(ddim)
    assert abs(moments(solver, 15)[1] - limit) < abs(moments(ddim, 100)[1] - limit)


def test_ddpm_gives_the_closed_form():
    """Each step is affine with fresh noise, so the variance follows v' = k^2 v + variance. 20000 draws: the mean has a
    standard error of 0.0035, the standard deviation one of 0.0025; four of each are allowed."""
    scheduler = DDPMScheduler(1000, clip_sample=False, **SCHEDULE)
    a = scheduler.alphas_cumprod.double()
    offset, variance = -a[-1].sqrt().item() * MEAN, 1.0
    for t in range(999, -1, -1):
        before = a[t - 1] if t else torch.ones((), dtype=torch.float64)
        beta = 1 - a[t] / before
        gain = a[t].sqrt() * SPREAD**2 / (a[t] * SPREAD**2 + 1 - a[t])  # of the predicted x0
        k = (before.sqrt() * beta * gain + (a[t] / before).sqrt() * (1 - before)) / (1 - a[t])
        offset, variance = (k * offset).item(), (k**2 * variance + (1 - before) / (1 - a[t]) * beta).item()
    assert math.sqrt(variance) == pytest.approx(SPREAD, rel=0.02)  # what is lost to the smaller of both variances

    generator = torch.Generator().manual_seed(0)
    x = run(scheduler, 1000, torch.randn(20000, 1, generator=generator), generator=generator)
    assert x.mean().item() == pytest.approx(MEAN + offset, abs=4 * 0.0035)
    assert x.std().item() == pytest.approx(math.sqrt(variance), abs=4 * 0.0025)


STABLE_DIFFUSION = {"schedule": "scaled_linear_beta", "beta_start": 0.00085, "beta_end": 0.012}
OFFSET = {"steps_offset": 1, "set_alpha_to_one": False}  # as Stable Diffusion is sampled
OTHERS = {
    "MONAI's DDIM": lambda **schedule: DDIMScheduler(1000, clip_sample=False, **schedule),
    "PNDM": lambda **schedule: PNDMScheduler(1000, skip_prk_steps=True, **schedule),
    "PNDM with offset": lambda **schedule: PNDMScheduler(1000, skip_prk_steps=True, **OFFSET, **schedule),
    "leading": lambda **schedule: DDIM(1000, timestep_spacing="leading", **OFFSET, **schedule),
}


OURS = {sampler.__name__: lambda sampler=sampler, **schedule: sampler(1000, **schedule) for sampler in SAMPLERS}
SCHEDULES = {"bundles": SCHEDULE, "Stable Diffusion": STABLE_DIFFUSION}


def let_through(make, numbers):
    """Those of the numbers of steps at which the scheduler is not refused."""
    found = []
    for n in numbers:
        with contextlib.suppress(ValueError):
            prepare_timesteps(make(), n)
            found.append(n)
    return found


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", [*OURS, *OTHERS])
def test_whatever_is_let_through_is_right(name, schedule):
    """From N(0, 1) instead of the quantiles of x_T, so the noise schedule leaves the mean where it was."""
    make = functools.partial((OURS | OTHERS)[name], **SCHEDULES[schedule])
    numbers = let_through(make, (1, 2, 3, 5, 10, 20, 40, 50, 100, 250))
    assert {50, 100, 250} <= set(numbers)
    assert not {1, 2, 3, 5} & set(numbers)
    for n in numbers:
        scheduler = make()
        scheduler.clip_sample = False
        mean, std = moments(scheduler, n)
        left = MEAN * math.sqrt(scheduler.alphas_cumprod[-1].item()) * std
        assert abs(mean + left - MEAN) < 0.06 * SPREAD
        assert abs(std / SPREAD - 1) < 0.11


@pytest.mark.parametrize(
    ("sampler", "schedule", "least"),
    [
        (DDIM, "bundles", 35),
        (DPMSolverPlusPlus, "bundles", 8),
        (UniPC, "bundles", 7),
        (DDIM, "Stable Diffusion", 25),
        (DPMSolverPlusPlus, "Stable Diffusion", 6),
        (UniPC, "Stable Diffusion", 6),
    ],
)
def test_how_many_steps_a_sampler_needs(sampler, schedule, least):
    """Refused below, right from there on."""
    numbers = (1, 2, 3, 4, 5, least - 1, least, least + 1, 50, 100)
    assert let_through(lambda: sampler(1000, **SCHEDULES[schedule]), numbers) == [n for n in numbers if n >= least]


@pytest.mark.parametrize(
    ("name", "n", "message"),
    [
        (
            "DDIM",
            3,
            "standard deviation is off by 75% .up to 10% is right., .* Take 40 steps or more, or .*UniPC with 7 ",
        ),
        ("UniPC", 2, r"standard deviation is off by 95% .* and a sample by 83% \(10%\)\. Take 7 steps or more\.$"),
        ("MONAI's DDIM", 10, r"the mean by 17% of it \(5%\)"),
        ("PNDM", 5, r"the mean by 82% of it \(5%\).* Take 12 steps"),
        ("leading", 2, r"off by 70% .*, the mean by 15% of it"),
    ],
)
def test_too_few_steps_are_refused_with_the_errors_they_would_make(name, n, message):
    with pytest.raises(ValueError, match=f"with {n} steps is wrong: .*{message}"):
        prepare_timesteps((OURS | OTHERS)[name](**SCHEDULE), n)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_coarse_sampler_is_let_through_with_a_warning(sampler, caplog):
    _tell.cache_clear()
    scheduler = sampler(1000, coarse=True, **SCHEDULE)
    assert prepare_timesteps(scheduler, 4) == prepare_timesteps(scheduler, 4) == scheduler.timesteps.tolist()
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once
    assert f"{sampler.__name__} with 4 steps is wrong: " in caplog.text
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        prepare_timesteps(scheduler, 0)


class NoisyDDIM(DDIM):
    """Somebody else's: right means and wrong spreads."""

    def step(self, model_output, timestep, sample):
        x, x0 = super().step(model_output, timestep, sample)
        return (x, x0) if timestep else (x + 0.5 * (x - x.mean(dim=1, keepdim=True)), x0)


class Gathered(DDIM):
    """Somebody else's: of right mean and spread, but its samples are not the data's."""

    def step(self, model_output, timestep, sample):
        x, x0 = super().step(model_output, timestep, sample)
        if timestep:
            return x, x0
        mean, std = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
        return mean + std * torch.where(torch.arange(x.shape[1]) % 2 == 0, -1.0, 1.0), x0


class ForgetfulDDPM(DDPMScheduler):
    """Somebody else's: stochastic, without the noise."""

    def step(self, model_output, timestep, sample, generator=None):
        return super().step(model_output, timestep, sample, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("scheduler", "n"),
    [
        (NoisyDDIM(1000, **SCHEDULE), 100),
        (Gathered(1000, **SCHEDULE), 100),
        (ForgetfulDDPM(1000, clip_sample=False, **SCHEDULE), 1000),
    ],
)
def test_a_scheduler_of_somebody_else_is_tried_alike(scheduler, n):
    with pytest.raises(ValueError, match=f"{type(scheduler).__name__} with {n} steps is wrong"):
        prepare_timesteps(scheduler, n)


@pytest.mark.parametrize(("kind", "n"), [(DDIMScheduler, 50), (DDPMScheduler, 1000), (UniPC, 20), (DDIM, 50)])
def test_a_scheduler_that_would_clip_latents_is_refused(kind, n):
    with pytest.raises(ValueError, match=f"{kind.__name__} has clip_sample true; expected false"):
        prepare_timesteps(kind(1000, clip_sample=True, **SCHEDULE), n)


class Scaled(DDIM):
    def __init__(self, scale, **options):
        super().__init__(**options)
        self.scale = scale

    def step(self, model_output, timestep, sample):
        found, x0 = super().step(model_output, timestep, sample)
        return found * float(self.scale), x0


def test_two_of_somebodys_samplers_are_not_taken_for_each_other():
    right, wrong = (Scaled(torch.tensor(scale), num_train_timesteps=100, **SCHEDULE) for scale in (1.0, 1.3))
    assert sampling_error(right, 50).tolerable
    assert not sampling_error(wrong, 50).tolerable


def test_no_number_is_advised_that_is_refused_next():
    with pytest.raises(ValueError, match=r"Take 40 steps, or unicorn_monai"):
        prepare_timesteps(OTHERS["MONAI's DDIM"](**SCHEDULE), 10)


@pytest.mark.parametrize("total", [5, 50, 200])
def test_all_steps_of_ddpm_are_right(total):
    assert prepare_timesteps(DDPMScheduler(total, clip_sample=False, **SCHEDULE), total) == list(range(total))[::-1]


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_errors_do_not_depend_on_what_is_predicted(prediction_type):
    for sampler in SAMPLERS:
        found = sampling_error(sampler(1000, prediction_type=prediction_type, **SCHEDULE), 10)
        assert found == pytest.approx(sampling_error(sampler(1000, **SCHEDULE), 10), abs=1e-5)


def test_the_errors_vanish_with_ever_more_steps():
    """Of what is left, the step from timestep 0 to the predicted x0 takes 0.003 of the spread."""
    assert sampling_error(UniPC(1000, **SCHEDULE), 1000) == pytest.approx((0, 0, 0), abs=4e-3)
    few, more = (sampling_error(DDIM(1000, **SCHEDULE), n) for n in (50, 100))
    assert more.spread == pytest.approx(few.spread / 2, rel=0.15)  # of first order


def test_an_error_that_is_not_a_number_is_not_tolerable():
    assert not sampler_trial.SamplingError(0.0, math.nan, 0.0).tolerable
    assert sampler_trial.SamplingError(-0.05, 0.1, 0.1).tolerable


def test_the_quantiles_are_those_of_the_distributions():
    """Mean and variance of a mixture: sum w m, and sum w (s^2 + m^2) less the square of that."""
    w, m, s = sampler_trial.WEIGHTS, sampler_trial.MEANS, sampler_trial.SPREADS
    mean = (w * m).sum(axis=0)[:, 0]
    std = ((w * (s**2 + m**2)).sum(axis=0)[:, 0] - mean**2) ** 0.5
    found = quantiles(1.0)
    assert (found.mean(axis=1), found.std(axis=1)) == (pytest.approx(mean, abs=5e-3), pytest.approx(std, rel=0.02))
    assert (np.diff(found) > 0).all()


def test_the_prediction_is_the_mean_of_the_data_given_x_t():
    """Integrated numerically over the data, by Bayes' rule."""
    a, x = 0.3, np.array([-1.0, 0.2, 1.7])
    w, m, s = (table[:, :, 0] for table in (sampler_trial.WEIGHTS, sampler_trial.MEANS, sampler_trial.SPREADS))
    grid = np.linspace(-5, 5, 20001)
    for i in range(3):
        density = sum(w[k, i] / s[k, i] * np.exp(-((grid - m[k, i]) ** 2) / 2 / s[k, i] ** 2) for k in range(2))
        likelihood = np.exp(-((x[:, None] - a**0.5 * grid) ** 2) / 2 / (1 - a))
        expected = (density * likelihood * grid).sum(axis=1) / (density * likelihood).sum(axis=1)
        assert exact_x0(np.tile(x, (3, 1)), a)[i] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n", [15, 20, 25, 50])
def test_unipc_is_the_best_of_the_samplers(n):
    """Why it is the default: nearest to every quantile, in as many calls of the network."""
    ddim, solver, unipc = (sampling_error(sampler(1000, **SCHEDULE), n).distance for sampler in SAMPLERS)
    assert unipc < solver < ddim


def test_a_scheduler_is_tried_without_being_touched():
    scheduler = DDIMScheduler(1000, **SCHEDULE)
    sampling_error(scheduler, 50)
    assert scheduler.clip_sample  # by default, which the trial leaves out
    pndm = PNDMScheduler(1000, skip_prk_steps=True, **SCHEDULE)
    prepare_timesteps(pndm, 50)
    assert (pndm.counter, pndm.ets) == (0, [])


def test_a_sampler_is_tried_once_and_anew_with_other_options(monkeypatch):
    tried = []
    monkeypatch.setattr(sampler_trial, "_found", {})
    monkeypatch.setattr(
        sampler_trial, "_tried", lambda *given: tried.append(given) or sampler_trial.SamplingError(0, 0, 0)
    )
    for _ in range(2):
        prepare_timesteps(DDIM(1000, **SCHEDULE), 50)
    assert len(tried) == 1
    other = {"timestep_spacing": "leading", "set_alpha_to_one": False, "prediction_type": "sample", "beta_end": 0.02}
    for name, value in other.items():
        prepare_timesteps(DDIM(1000, **(SCHEDULE | {name: value})), 50)
    prepare_timesteps(UniPC(1000, **SCHEDULE), 50)
    prepare_timesteps(UniPC(1000, **SCHEDULE), 40)
    assert len(tried) == 1 + len(other) + 2


def test_timesteps_beyond_the_last_are_refused():
    with pytest.raises(ValueError, match=r"PNDMScheduler with 1000 steps and steps_offset 1 begins at timestep 1000; "):
        prepare_timesteps(OTHERS["PNDM with offset"](**SCHEDULE), 1000)


def test_another_kind_of_scheduler_is_refused():
    with pytest.raises(ValueError, match="The scheduler is RFlowScheduler; expected DDPM, DDIM or PNDM of MONAI"):
        prepare_timesteps(RFlowScheduler(1000), 50)


def test_ddim_with_all_steps_is_that_of_monai():
    ours, theirs = DDIM(50, **SCHEDULE), DDIMScheduler(50, clip_sample=False, **SCHEDULE)
    x = torch.randn(4, 3)
    torch.testing.assert_close(run(ours, 50, x), run(theirs, 50, x))


def test_final_alpha_of_the_schedule_is_honoured():
    x = torch.randn(4, 3)
    for steps in (20, 50):
        scheduler = DDIM(50, set_alpha_to_one=False, **SCHEDULE)
        timesteps_of(scheduler, steps)
        same, _ = scheduler.step(torch.randn(4, 3), 0, x)
        torch.testing.assert_close(same, x)  # from timestep 0 to timestep 0


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_what_the_network_predicts_does_not_matter(sampler, prediction_type):
    x = torch.randn(4, 3, dtype=torch.float64)
    noise = run(sampler(1000, **SCHEDULE), 12, x)
    other = run(sampler(1000, prediction_type=prediction_type, **SCHEDULE), 12, x)
    torch.testing.assert_close(noise, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_predicted_x0_is_clamped_only_if_asked_for(sampler):
    free, clamped = (sampler(10, clip_sample=clip, **SCHEDULE) for clip in (False, True))
    timesteps_of(free, 5)
    timesteps_of(clamped, 5)
    x, noise = torch.full((1, 1), 30.0), torch.zeros(1, 1)
    assert free.step(noise, 9, x)[1].item() > 30
    assert clamped.step(noise, 9, x)[1].item() == 1
    assert not sampler(10).clip_sample


@pytest.mark.parametrize("sampler", SAMPLERS[1:])
def test_first_and_only_step_of_a_multistep_solver_is_that_of_ddim(sampler):
    x, noise = torch.randn(2, 3), torch.randn(2, 3)
    for n in (1, 2):
        solver, ddim = sampler(1000, **SCHEDULE), DDIM(1000, **SCHEDULE)
        assert timesteps_of(solver, n) == timesteps_of(ddim, n)
        torch.testing.assert_close(solver.step(noise, 999, x), ddim.step(noise, 999, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS[1:])
def test_a_second_run_of_a_multistep_solver_remembers_nothing_of_the_first(sampler):
    solver, x = sampler(1000, **SCHEDULE), torch.randn(4, 3)
    first = run(solver, 10, x)
    for t in timesteps_of(solver, 10)[:4]:  # a run that is broken off
        solver.step(torch.randn(4, 3), t, x)
    assert torch.equal(run(solver, 10, x), first)


def test_dpm_solver_steps_evenly_in_log_snr():
    solver = DPMSolverPlusPlus(1000, **SCHEDULE)
    lambdas = solver.alphas_cumprod[timesteps_of(solver, 15)].logit() / 2
    # Near t = 0 one timestep is 0.35 wide, half of which rounding may add at either end of a step.
    torch.testing.assert_close(lambdas.diff(), torch.full((14,), lambdas.diff().mean().item()), rtol=0, atol=0.35)
    torch.testing.assert_close(lambdas.diff()[:9], torch.full((9,), lambdas.diff().mean().item()), rtol=0, atol=0.01)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("total", [1, 7, 50])
def test_timesteps_fall_strictly_from_the_last_to_0_at_any_number_of_steps(sampler, total):
    scheduler = sampler(total, **SCHEDULE)
    for n in range(1, total + 1):
        timesteps = timesteps_of(scheduler, n)
        assert len(timesteps) == n
        assert timesteps[0] == total - 1
        assert timesteps[-1] == (0 if n > 1 else total - 1)
        assert all(a > b for a, b in pairwise(timesteps))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_timesteps_end_at_the_offset(sampler):
    timesteps = timesteps_of(sampler(1000, steps_offset=1, set_alpha_to_one=False, **SCHEDULE), 20)
    assert (timesteps[0], timesteps[-1]) == (999, 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_timesteps_given_as_tensors_are_the_same_steps(sampler):
    x, noise = torch.randn(2, 3), torch.randn(2, 3)
    number, tensor = sampler(1000, **SCHEDULE), sampler(1000, **SCHEDULE)
    timesteps_of(number, 10)
    timesteps_of(tensor, 10)
    assert torch.equal(number.step(noise, 999, x)[0], tensor.step(noise, tensor.timesteps[0], x)[0])


@pytest.mark.parametrize("n", [0, -1, 1001])
@pytest.mark.parametrize("scheduler", [*SAMPLERS, DDIMScheduler, DDPMScheduler])
def test_an_impossible_number_of_steps_is_refused(scheduler, n):
    with pytest.raises(ValueError, match=f"num_inference_steps is {n}; expected 1 to 1000"):
        prepare_timesteps(scheduler(1000), n)


@pytest.mark.parametrize(
    ("scheduler", "n", "message"),
    [
        (
            DDPMScheduler(1000),
            50,
            r"50 of 1000 steps yields noise.*Use 1000 steps, or unicorn_monai\.schedulers\.UniPC",
        ),
        (DDPMScheduler(1000), 999, "yields noise"),
        (DDIMScheduler(1000), 30, r"do not divide 1000.*unicorn_monai\.schedulers\.DDIM"),
        (DDIMScheduler(1000), 300, "do not divide 1000"),
        (PNDMScheduler(1000), 50, "skip_prk_steps False"),
    ],
)
def test_what_would_sample_a_wrong_distribution_is_refused(scheduler, n, message):
    with pytest.raises(ValueError, match=message):
        prepare_timesteps(scheduler, n)


@pytest.mark.parametrize(
    ("scheduler", "n"),
    [
        (DDPMScheduler(1000, clip_sample=False), 1000),
        (DDIMScheduler(1000, clip_sample=False), 50),
        (PNDMScheduler(1000, skip_prk_steps=True), 50),
    ],
)
def test_what_monai_does_right_is_let_through(scheduler, n):
    timesteps = prepare_timesteps(scheduler, n)
    assert timesteps == scheduler.timesteps.tolist()
    assert all(type(t) is int for t in timesteps)


def test_a_stochastic_step_draws_from_each_images_own_generator():
    scheduler = DDPMScheduler(10, clip_sample=False, **SCHEDULE)
    x, noise = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    together, x0 = seeded_step(scheduler, noise, 9, x, generators)
    for i, seed in enumerate((5, 6, 7)):
        generator = torch.Generator().manual_seed(seed)
        alone, alone_x0 = scheduler.step(noise[i : i + 1], 9, x[i : i + 1], generator=generator)
        assert torch.equal(together[i : i + 1], alone)
        assert torch.equal(x0[i : i + 1], alone_x0)


def test_a_deterministic_step_is_the_schedulers_own():
    scheduler = DDIM(10, **SCHEDULE)
    timesteps_of(scheduler, 5)
    x, noise = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    assert torch.equal(seeded_step(scheduler, noise, 9, x, [])[0], scheduler.step(noise, 9, x)[0])


def test_leading_timesteps_are_multiples_of_the_stride():
    scheduler = DDIM(1000, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [801, 601, 401, 201, 1]
    for n in (1, 7, 999, 1000):
        scheduler.set_timesteps(n)
        assert (scheduler.timesteps.diff() < 0).all()
        assert 0 <= scheduler.timesteps[-1] <= scheduler.timesteps[0] <= 999
    with pytest.raises(ValueError, match="Unknown timestep_spacing 'trailing'; expected 'linspace' or 'leading'"):
        DDIM(1000, timestep_spacing="trailing")
