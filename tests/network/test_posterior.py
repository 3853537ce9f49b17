"""The posterior and its samples: formula, clamp, moments, gradients, source of the noise.

    python -m pytest tests/network/test_posterior.py
"""
import math

import pytest
import torch
from formulas import (
    chain,
    conv,
    conv_shapes,
    depth_conv_block,
    depth_conv_shapes,
    leaky,
    residual,
    residual_shapes,
    scaled,
    shapes,
)

from modules.network.posterior import LOGVAR_RANGE, GaussianPredictor, reparameterize
from modules.objective import kl_divergence


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def posterior(*shape: int, requires_grad: bool = False):
    """mu and logvar in float64."""
    return (torch.randn(*shape, dtype=torch.float64).requires_grad_(requires_grad),
            torch.randn(*shape, dtype=torch.float64).requires_grad_(requires_grad))


# GaussianPredictor

@pytest.mark.parametrize("F, L, N", [(8, 4, 4), (16, 2, 8), (128, 32, 12)])
def test_predictor_has_the_courses_names_and_shapes(F, L, N):
    assert shapes(GaussianPredictor(F, L, N)) == (
        residual_shapes("0.", F + L, N // 4) | depth_conv_shapes("1.", N // 4, N // 4)
        | residual_shapes("2.", N // 4, N // 2) | depth_conv_shapes("3.", N // 2, N // 2)
        | residual_shapes("4.", N // 2, N) | conv_shapes("6", N, 2 * N, 1))


def test_predictor_equals_its_formula_with_logvar_clamped():
    predictor = scaled(GaussianPredictor(8, 4, 8))
    weights = predictor.state_dict()
    frame, pose = (torch.randn(2, channels, 8, 8, dtype=torch.float64) for channels in (8, 4))
    x = chain(torch.cat([frame, pose], dim=1), weights, *[residual, depth_conv_block] * 2, residual)
    x = conv(leaky(x), weights, "6")
    assert x[:, 8:].abs().max() > 10  # the clamp acts
    torch.testing.assert_close(predictor(frame, pose), (x[:, :8], x[:, 8:].clamp(-10, 10)))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("factor", [1e3, 1e6])
def test_extreme_outputs_give_finite_samples_divergences_and_gradients(factor, reduction):
    predictor = GaussianPredictor(8, 4, 4)
    with torch.no_grad():
        predictor[-1].weight *= factor
    mu, logvar = predictor(torch.randn(2, 8, 5, 7), torch.randn(2, 4, 5, 7))
    assert logvar.min() == LOGVAR_RANGE[0] and logvar.max() == LOGVAR_RANGE[1]
    z = reparameterize(mu, logvar)
    divergence = kl_divergence(mu, logvar, reduction)
    (divergence + z.square().mean()).backward()
    assert z.isfinite().all() and divergence.isfinite()
    gradients = torch.cat([value.grad.flatten() for value in predictor.parameters()])
    assert gradients.isfinite().all() and gradients.abs().max() > 0


# reparameterize

def test_sample_is_mu_plus_deviation_times_noise():
    mu, logvar = posterior(2, 4, 3, 3)
    noise = torch.randn_like(mu)
    expected = [m + math.sqrt(math.exp(v)) * n for m, v, n in
                zip(mu.flatten().tolist(), logvar.flatten().tolist(), noise.flatten().tolist(), strict=True)]
    torch.testing.assert_close(reparameterize(mu, logvar, noise).flatten(), torch.tensor(expected, dtype=mu.dtype))


def test_samples_have_the_posteriors_moments():
    mu, variance = torch.tensor([0.0, 1.5, -3.0]), torch.tensor([1.0, 4.0, 0.01])
    count = 200_000
    samples = reparameterize(mu.expand(count, -1), variance.log().expand(count, -1)).double()
    error = (samples.mean(0) - mu).abs() / (variance / count).sqrt()
    assert (error < 5).all()  # standard errors of the mean
    assert ((samples.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / count)).all()
    correlation = torch.corrcoef(samples.T) - torch.eye(3)
    assert (correlation.abs() < 5 / math.sqrt(count)).all()  # independent noise for each value


def test_gradient_of_the_sample():
    mu, logvar = posterior(2, 3, 2, 2, requires_grad=True)
    noise = torch.randn_like(mu)
    assert torch.autograd.gradcheck(lambda m, v: reparameterize(m, v, noise), (mu, logvar))


def test_noise_comes_from_the_generator_and_without_one_from_the_global_seed():
    mu, logvar = posterior(2, 4, 3, 3)

    def draw(seed):
        return reparameterize(mu, logvar, generator=torch.Generator().manual_seed(seed))

    before = torch.random.get_rng_state()
    noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(1), dtype=mu.dtype)
    assert torch.equal(draw(1), reparameterize(mu, logvar, noise))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    draws = [(torch.manual_seed(seed), reparameterize(mu, logvar))[1] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
