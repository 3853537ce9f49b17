"""KL divergence and clip loss: torch.distributions, closed forms, gradients, slow sums.

    python -m pytest tests/test_objective.py
"""
import numpy as np
import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from modules.objective import LOG_SCALE, MSE_FLOOR, clip_loss, kl_divergence

B, T, H, W = 3, 5, 4, 6


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def posterior(*shape: int, requires_grad: bool = False):
    """mu and logvar in float64."""
    return (torch.randn(*shape, dtype=torch.float64).requires_grad_(requires_grad),
            torch.randn(*shape, dtype=torch.float64).requires_grad_(requires_grad))


def clips():
    """predictions, targets, mu and logvar in float64."""
    return *torch.rand(2, B, T - 1, 3, H, W, dtype=torch.float64), *posterior(B, T - 1, 4, H, W)


# kl_divergence

@pytest.mark.parametrize("shape", [(1, 4, 3, 3), (3, 4, 2, 5), (5, 7)])
def test_divergence_equals_torch_distributions(shape):
    mu, logvar = posterior(*shape)
    each = torch_kl(Normal(mu, torch.exp(logvar / 2)), Normal(torch.zeros_like(mu), torch.ones_like(mu)))
    torch.testing.assert_close(kl_divergence(mu, logvar), each.flatten(1).sum(1).mean())
    torch.testing.assert_close(kl_divergence(mu, logvar, "mean"), each.mean())


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_divergence_is_zero_at_the_prior_only(reduction):
    zero = torch.zeros(2, 4, 3, 3, dtype=torch.float64)
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


# clip_loss

@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("beta, l1", [(0.0, 0.0), (0.3, 0.0), (0.3, 0.7)])
def test_loss_is_the_sum_over_frames_averaged_over_the_batch(beta, l1, reduction):
    predictions, targets, mu, logvar = clips()
    mse = kl = absolute = 0.0
    for b in range(B):
        for t in range(T - 1):
            difference = predictions[b, t] - targets[b, t]
            mse += difference.square().mean().item() / B
            absolute += difference.abs().mean().item() / B
            values = 0.5 * (mu[b, t] ** 2 + logvar[b, t].exp() - 1 - logvar[b, t])
            kl += (values.sum() if reduction == "sum" else values.mean()).item() / B
    found = clip_loss(predictions, targets, mu, logvar, beta, reduction, l1)
    assert [value.item() for value in found] == pytest.approx([mse + beta * kl + l1 * absolute, mse, kl], rel=1e-12)


def test_optimal_variance_equals_the_likelihood_maximised_by_a_search():
    """Up to a constant and LOG_SCALE, the loss is the Gaussian negative log-likelihood at the best variance."""
    targets = torch.rand(1, 1, 3, H, W, dtype=torch.float64)
    zero = torch.zeros(1, 1, 4, H, W, dtype=torch.float64)
    found, expected = [], []
    for error in (0.05, 0.1, 0.3):
        predictions = targets + error * torch.randn_like(targets)
        found.append(clip_loss(predictions, targets, zero, zero, 1.0, decoder_variance="optimal")[0].item())
        deviations = torch.logspace(-3, 0.5, 20001, dtype=torch.float64)
        squares = (predictions - targets).square().mean()
        likelihood = (deviations.square().log() + squares / deviations.square()).min().item()
        expected.append(LOG_SCALE * likelihood)
    assert np.diff(found) == pytest.approx(np.diff(expected), rel=1e-2)  # MSE_FLOOR makes a small difference


def test_optimal_variance_weights_each_frame_by_its_own_error():
    """The gradient is that of the MSE times LOG_SCALE / (MSE + MSE_FLOOR), frame by frame."""
    targets = torch.zeros(2, 2, 3, H, W, dtype=torch.float64)
    mse = torch.tensor([[LOG_SCALE, 1e-4], [0.1, 1e-9]], dtype=torch.float64)
    predictions = mse.sqrt()[..., None, None, None].expand_as(targets).clone().requires_grad_()
    zero = torch.zeros(2, 2, 4, H, W, dtype=torch.float64)
    losses = {variance: clip_loss(predictions, targets, zero, zero, 1.0, decoder_variance=variance)
              for variance in ("fixed", "optimal")}
    assert torch.equal(losses["fixed"][1], losses["optimal"][1])  # the MSE is reported as it is
    fixed, optimal = (torch.autograd.grad(loss[0], predictions)[0] for loss in losses.values())
    weight = LOG_SCALE / (mse + MSE_FLOOR)
    torch.testing.assert_close(optimal, weight[..., None, None, None] * fixed)
    assert weight[0, 0].item() == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("variance", ["fixed", "optimal"])
def test_loss_is_zero_at_a_perfect_prediction_and_the_prior(variance):
    frames, zero = torch.rand(B, T - 1, 3, H, W), torch.zeros(B, T - 1, 4, H, W)
    losses = clip_loss(frames, frames, zero, zero, 1.0, l1=0.1, decoder_variance=variance)
    assert [value.item() for value in losses] == [0, 0, 0]


@pytest.mark.parametrize("argument", ["kl_reduction", "decoder_variance"])
def test_unknown_choices_are_rejected(argument):
    with pytest.raises(ValueError, match="median"):
        clip_loss(*clips(), 1.0, **{argument: "median"})
