"""The training objective: reconstruction error of a clip plus beta times the KL divergence.

For one frame x with d values, prediction x^ and latent z, the negative evidence lower bound (Kingma & Welling 2014,
"Auto-Encoding Variational Bayes", equation 3) is

    -log N(x; x^, s^2 I) + KL(q || N(0, I)),   with   -log N(x; x^, s^2 I) = d/2 * (log(2 pi s^2) + MSE / s^2).

- decoder variance "fixed": s is a constant. Multiplied by 2 s^2 / d and without constants, the bound is MSE + beta * KL
  with beta = 2 s^2 / d. The course's objective; beta is set by the schedule.
- decoder variance "optimal": s^2 maximises the likelihood of each frame, s^2 = MSE, which gives d/2 * log(MSE) up to a
  constant (Rybkin, Daniilidis & Levine 2021, "Simple and Effective VAE Training with Calibrated Decoders", optimal
  sigma-VAE; there with one variance per batch). The error is LOG_SCALE * log(1 + MSE / MSE_FLOOR). Its gradient is that
  of the MSE times LOG_SCALE / (MSE + MSE_FLOOR): the same direction, with more weight on frames that are nearly right.

A clip's loss is the sum over its predicted frames.
"""
import torch
from torch import Tensor
from torch.nn import functional

DECODER_VARIANCES = ("fixed", "optimal")
# The MSE at which both decoder variances have the same gradient: 27 dB, the quality of a half-trained model. So beta,
# l1 and gradient clipping have about the same strength with either.
LOG_SCALE = 0.002
MSE_FLOOR = 1e-5  # 50 dB: keeps the logarithm bounded; errors below it hardly count


def kl_divergence(mu: Tensor, logvar: Tensor, reduction: str = "sum") -> Tensor:
    """KL(N(mu, e^logvar) || N(0, I)) in nats, averaged over the batch.

    -1/2 * sum(1 + logvar - mu^2 - e^logvar) over the latent map (Kingma & Welling 2014, appendix B).

    Parameters
    ----------
    mu, logvar : (B, ...), one latent map per row.
    reduction : "sum" or "mean" over the latent map.

    Returns
    -------
    Scalar, at least 0.

    Raises
    ------
    ValueError : unknown ``reduction``.
    """
    divergence = -0.5 * (1 + logvar - mu.square() - logvar.exp())
    if reduction == "sum":
        return divergence.flatten(1).sum(1).mean()
    if reduction == "mean":
        return divergence.mean()
    raise ValueError(f'KL reduction must be "sum" or "mean", got "{reduction}"')


def clip_loss(predictions: Tensor, targets: Tensor, mu: Tensor, logvar: Tensor, beta: float, kl_reduction: str = "sum",
              l1: float = 0.0, decoder_variance: str = "fixed") -> tuple[Tensor, Tensor, Tensor]:
    """error + beta * KL + l1 * mean absolute error, summed over the predicted frames and averaged over the batch.

    Parameters
    ----------
    predictions, targets : (B, T-1, 3, H, W).
    mu, logvar : (B, T-1, N, H, W), of the posteriors.
    beta : weight of the KL divergence, at least 0.
    kl_reduction : over a frame's latent map, see ``kl_divergence``.
    l1 : weight of the mean absolute error, at least 0.
    decoder_variance : "fixed" (the error is the MSE) or "optimal" (its logarithm); see the module's docstring.

    Returns
    -------
    loss, mse, kl : scalars, summed over the frames. With decoder_variance "fixed" and l1 = 0, loss = mse + beta * kl.

    Raises
    ------
    ValueError : unknown ``kl_reduction`` or ``decoder_variance``.
    """
    if decoder_variance not in DECODER_VARIANCES:
        raise ValueError(f'decoder_variance must be one of {", ".join(DECODER_VARIANCES)}, got "{decoder_variance}"')
    steps = targets.shape[1]
    mse = steps * functional.mse_loss(predictions, targets)
    kl = steps * kl_divergence(mu.flatten(0, 1), logvar.flatten(0, 1), kl_reduction)
    error = mse
    if decoder_variance == "optimal":
        frame_mse = (predictions - targets).square().mean(dim=(-3, -2, -1))  # (B, T-1)
        error = steps * LOG_SCALE * torch.log1p(frame_mse / MSE_FLOOR).mean()
    loss = error + beta * kl
    if l1:
        loss = loss + l1 * steps * functional.l1_loss(predictions, targets)
    return loss, mse, kl
