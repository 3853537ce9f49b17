"""The objective: reconstruction error of a clip plus beta times the KL divergence."""
import torch
from torch import Tensor
from torch.nn import functional

DECODER_VARIANCES = ("fixed", "optimal")
# The MSE at which the loss of the optimal variance has the gradient of the MSE itself: 27 dB, what a half-trained model
# reaches. There, beta, l1 and the clipping of gradients weigh as much as beside the MSE.
HALFWAY_MSE = 0.002
SMALLEST_MSE = 1e-5  # 50 dB: below it an error hardly counts, and the logarithm stays bounded


def kl_divergence(mu: Tensor, logvar: Tensor, reduction: str = "sum") -> Tensor:
    """KL(N(mu, e^logvar) || N(0, I)) in nats, averaged over the batch (Kingma & Welling 2014, appendix B).

    -1/2 * sum(1 + logvar - mu^2 - e^logvar) over the latent map.

    Parameters
    ----------
    mu, logvar : (B, ...): one latent map a row.
    reduction : "sum" over the latent map, or "mean" over it (the sum divided by the map's size).

    Returns
    -------
    A scalar, at least 0.

    Raises
    ------
    ValueError : another reduction.
    """
    divergence = -0.5 * (1 + logvar - mu.square() - logvar.exp())
    if reduction == "sum":
        return divergence.flatten(1).sum(1).mean()
    if reduction == "mean":
        return divergence.mean()
    raise ValueError(f'the KL reduction is "sum" or "mean", not "{reduction}"')


def clip_loss(predictions: Tensor, targets: Tensor, mu: Tensor, logvar: Tensor, beta: float,
              kl_reduction: str = "sum", l1: float = 0.0, free_bits: float = 0.0,
              decoder_variance: str = "fixed") -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a clip, averaged over the batch: error + l1 * |error| + beta * KL, summed over its predicted frames.

    The error is the negative log-likelihood of the frame under a Gaussian around the prediction, up to a constant and a
    factor: with one variance for all frames the MSE; with the variance that is the likeliest for each frame, its MSE,
    HALFWAY_MSE * log(1 + MSE / SMALLEST_MSE) (Rybkin, Daniilidis & Levine 2021, "Simple and Effective VAE Training with
    Calibrated Decoders", the optimal variance). The latter is the mean PSNR but for sign, scale and that floor.

    Parameters
    ----------
    predictions, targets : (B, T-1, 3, H, W); the MSE is the mean over a frame's values.
    mu, logvar : (B, T-1, N, H, W).
    beta : weight of the KL divergence, at least 0.
    l1 : weight of the mean absolute error, at least 0.
    free_bits : of each clip's KL divergence, mean over its frames and reduced as ``kl_reduction`` says, what costs
        nothing more to use: beta weighs max(KL, free_bits) (Kingma et al. 2016, "Improved Variational Inference with
        Inverse Autoregressive Flow", where it is kept for each latent channel).
    decoder_variance : "fixed" or "optimal".

    Returns
    -------
    loss, mse, kl : scalars, summed over the frames; loss = mse + beta * kl with a fixed variance, l1 and free_bits 0.
    """
    steps = targets.shape[1]
    mse = steps * functional.mse_loss(predictions, targets)
    kl = steps * kl_divergence(mu.flatten(0, 1), logvar.flatten(0, 1), kl_reduction)
    weighed = kl
    if free_bits:  # clip by clip, so that it does not matter which clips share a batch
        weighed = torch.stack([(steps * kl_divergence(*clip, kl_reduction)).clamp(min=steps * free_bits)
                               for clip in zip(mu, logvar, strict=True)]).mean()
    error = mse
    if decoder_variance == "optimal":
        each = (predictions - targets).square().mean(dim=(-3, -2, -1))
        error = steps * HALFWAY_MSE * torch.log1p(each / SMALLEST_MSE).mean()
    loss = error + beta * weighed
    if l1:
        loss = loss + l1 * steps * functional.l1_loss(predictions, targets)
    return loss, mse, kl
