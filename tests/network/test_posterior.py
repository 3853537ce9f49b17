"""Posterior, its sample and its distance from the prior: formula, moments, gradients, clamp.

    python -m pytest tests/test_latent.py
"""
import math

import pytest
import torch
from test_layers import (
    conv,
    conv_shapes,
    depth_conv_block,
    depth_conv_shapes,
    leaky,
    lively,
    residual,
    residual_shapes,
    shapes,
)
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from modules.network.posterior import LOGVAR_RANGE, GaussianPredictor, reparameterize
from modules.objective import kl_divergence


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def posterior(*shape: int, requires_grad: bool = False):
    """mu and logvar in float64."""
    return (torch.randn(*shape, dtype=torch.float64).requires_grad_(requires_grad),
            torch.randn(*shape, dtype=torch.float64).requires_grad_(requires_grad))


def features(*sizes: int):
    return [torch.randn(2, channels, 8, 8, dtype=torch.float64) for channels in sizes]


# GaussianPredictor

@pytest.mark.parametrize("F, L, N", [(8, 4, 4), (16, 2, 8), (128, 32, 12)])
def test_predictor_has_the_courses_names(F, L, N):
    assert shapes(GaussianPredictor(F, L, N)) == (
        residual_shapes("0.", F + L, N // 4) | depth_conv_shapes("1.", N // 4, N // 4)
        | residual_shapes("2.", N // 4, N // 2) | depth_conv_shapes("3.", N // 2, N // 2)
        | residual_shapes("4.", N // 2, N) | conv_shapes("6", N, 2 * N, 1))


def test_predictor_is_its_formula():
    predictor = lively(GaussianPredictor(8, 4, 8))
    weights, (frame, pose) = predictor.state_dict(), features(8, 4)
    x = torch.cat([frame, pose], dim=1)
    for index, block in enumerate([residual, depth_conv_block, residual, depth_conv_block, residual]):
        x = block(x, weights, f"{index}.")
    x = conv(leaky(x), weights, "6")
    mu, logvar = predictor(frame, pose)
    assert mu.shape == logvar.shape == (2, 8, 8, 8)
    assert x[:, 8:].min() < -10 or x[:, 8:].max() > 10  # the clamp is at work
    torch.testing.assert_close(mu, x[:, :8])
    torch.testing.assert_close(logvar, x[:, 8:].clamp(-10, 10))


@pytest.mark.parametrize("size", [(4, 4), (5, 7)])
def test_predictor_keeps_small_and_odd_sizes(size):
    mu, logvar = GaussianPredictor(8, 4, 4)(torch.rand(1, 8, *size), torch.rand(1, 4, *size))
    assert mu.shape == logvar.shape == (1, 4, *size)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("factor", [1e3, 1e6])
def test_a_wild_predictor_gives_a_finite_sample_divergence_and_gradient(factor, reduction):
    predictor = GaussianPredictor(8, 4, 4)
    with torch.no_grad():
        predictor[-1].weight *= factor
    mu, logvar = predictor(torch.randn(2, 8, 8, 8), torch.randn(2, 4, 8, 8))
    assert logvar.min() == LOGVAR_RANGE[0] and logvar.max() == LOGVAR_RANGE[1]
    z = reparameterize(mu, logvar)
    divergence = kl_divergence(mu, logvar, reduction)
    (divergence + z.square().mean()).backward()
    assert z.isfinite().all() and divergence.isfinite()
    gradients = torch.cat([value.grad.flatten() for value in predictor.parameters()])
    assert gradients.isfinite().all() and gradients.abs().max() > 0


def test_the_clamps_range_holds_what_its_comment_promises():
    low, high = (torch.tensor(bound) for bound in LOGVAR_RANGE)
    assert torch.exp(high / 2).item() == pytest.approx(148.4, abs=0.1)
    assert 0 < kl_divergence(torch.zeros(1, 1), low.view(1, 1)) < kl_divergence(torch.zeros(1, 1), high.view(1, 1))
    assert kl_divergence(torch.zeros(1, 1), high.view(1, 1)) < 11_013


# reparameterize

def test_sample_is_mu_plus_deviation_times_noise():
    mu, logvar = posterior(2, 4, 3, 3)
    noise = torch.randn_like(mu)
    expected = [m + math.sqrt(math.exp(v)) * n for m, v, n in
                zip(mu.flatten().tolist(), logvar.flatten().tolist(), noise.flatten().tolist(), strict=True)]
    torch.testing.assert_close(reparameterize(mu, logvar, noise).flatten(), torch.tensor(expected, dtype=mu.dtype))


def test_many_samples_have_the_posteriors_moments():
    mu, variance = torch.tensor([0.0, 1.5, -3.0]), torch.tensor([1.0, 4.0, 0.01])
    count = 200_000
    samples = reparameterize(mu.expand(count, -1), variance.log().expand(count, -1)).double()
    error = (samples.mean(0) - mu).abs() / (variance / count).sqrt()
    assert (error < 5).all()  # standard errors of the mean
    assert ((samples.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / count)).all()
    correlation = torch.corrcoef(samples.T) - torch.eye(3)
    assert (correlation.abs() < 5 / math.sqrt(count)).all()  # each value has noise of its own


def test_gradient_of_the_sample_in_closed_form():
    mu, logvar = posterior(2, 4, 3, 3, requires_grad=True)
    noise = torch.randn_like(mu)
    reparameterize(mu, logvar, noise).sum().backward()
    torch.testing.assert_close(mu.grad, torch.ones_like(mu))
    torch.testing.assert_close(logvar.grad, 0.5 * torch.exp(logvar.detach() / 2) * noise)


def test_gradient_of_the_sample_numerically():
    mu, logvar = posterior(2, 3, 2, 2, requires_grad=True)
    noise = torch.randn_like(mu)
    assert torch.autograd.gradcheck(lambda m, v: reparameterize(m, v, noise), (mu, logvar))


def test_noise_comes_from_the_generator():
    mu, logvar = posterior(2, 4, 3, 3)

    def draw(value):
        return reparameterize(mu, logvar, generator=torch.Generator().manual_seed(value))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(1), dtype=mu.dtype)
    assert torch.equal(draw(1), reparameterize(mu, logvar, noise))
    assert draw(1).dtype == mu.dtype
    before = torch.random.get_rng_state()
    draw(1)
    assert torch.equal(torch.random.get_rng_state(), before)  # the global generator is left alone


def test_without_a_generator_the_global_seed_decides():
    mu, logvar = posterior(2, 4, 3, 3)
    draws = [(torch.manual_seed(value), reparameterize(mu, logvar))[1] for value in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


# kl_divergence

@pytest.mark.parametrize("shape", [(1, 4, 3, 3), (3, 4, 2, 5), (5, 7)])
def test_divergence_equals_torch_distributions(shape):
    mu, logvar = posterior(*shape)
    each = torch_kl(Normal(mu, torch.exp(logvar / 2)), Normal(torch.zeros_like(mu), torch.ones_like(mu)))
    torch.testing.assert_close(kl_divergence(mu, logvar, "sum"), each.flatten(1).sum(1).mean())
    torch.testing.assert_close(kl_divergence(mu, logvar, "mean"), each.mean())
    torch.testing.assert_close(kl_divergence(mu, logvar), kl_divergence(mu, logvar, "sum"))


def test_divergence_is_zero_at_the_prior_only():
    zero = torch.zeros(2, 4, 3, 3, dtype=torch.float64)
    for reduction in ("sum", "mean"):
        assert kl_divergence(zero, zero, reduction).item() == 0
        for offset in (-0.01, 0.01):
            assert kl_divergence(zero + offset, zero, reduction).item() > 0
            assert kl_divergence(zero, zero + offset, reduction).item() > 0


@pytest.mark.parametrize("reduction, divisor", [("sum", 2), ("mean", 2 * 4 * 3 * 3)])
def test_gradient_of_the_divergence_in_closed_form(reduction, divisor):
    mu, logvar = posterior(2, 4, 3, 3, requires_grad=True)
    kl_divergence(mu, logvar, reduction).backward()
    torch.testing.assert_close(mu.grad, mu.detach() / divisor)
    torch.testing.assert_close(logvar.grad, 0.5 * (logvar.detach().exp() - 1) / divisor)


@pytest.mark.parametrize("reduction", ["batchmean", "none", "SUM", ""])
def test_another_reduction_is_refused(reduction):
    with pytest.raises(ValueError, match=f'not "{reduction}"'):
        kl_divergence(*posterior(2, 4, 3, 3), reduction)
