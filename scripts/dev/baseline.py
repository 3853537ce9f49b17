"""The course's loop written out plainly: what the optimised is compared with, in results by a test and in time by
benchmark.py.

Every part of the network is called frame by frame, in eager float32 (or whatever the model is in) and in the memory
layout that PyTorch starts with; Adam is the plain one. Only the label encoder sees the poses 2..T of all clips in one
call, as in every training step: its BatchNorm's statistics are those of the whole batch.

A generation takes all sequences as one batch, where the course takes one after the other, so that a comparison is of
the implementation alone. All arguments are those of modules/cvae.py, in the same shapes.
"""
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

from modules.evaluation.metrics import to_uint8
from modules.network.cvae import CVAE

MODES = ("free_running", "teacher_forced", "bptt")


def clip_loss(model: CVAE, frames: Tensor, labels: Tensor, noise: Tensor, beta: float, mode: str) -> Tensor:
    """The loss of a batch of clips, a scalar: the sum over frames 2..T of MSE + beta * KL, averaged over the clips.

    Parameters
    ----------
    frames, labels : (B, T, 3, H, W) in [0, 1]. noise : (B, T-1, N, H, W) from N(0, I).
    mode : what is fed to the next step. "teacher_forced": the real frame; "free_running": the prediction, detached;
        "bptt": the prediction.
    """
    batch, length = frames.shape[:2]
    poses = model.label_encoder(labels[:, 1:].flatten(0, 1)).unflatten(0, (batch, length - 1))
    previous = frames[:, 0]
    loss = 0.0
    for t in range(1, length):
        mu, logvar = model.gaussian_predictor(model.frame_encoder(frames[:, t]), poses[:, t - 1])
        z = mu + torch.exp(logvar / 2) * noise[:, t - 1]
        fused = model.decoder_fusion(model.frame_encoder(previous), poses[:, t - 1], z)
        prediction = model.generator(fused)
        kl = -0.5 * torch.sum(1 + logvar - mu**2 - torch.exp(logvar)) / batch
        loss = loss + functional.mse_loss(prediction, frames[:, t]) + beta * kl
        previous = {"teacher_forced": frames[:, t], "free_running": prediction.detach(), "bptt": prediction}[mode]
    return loss


def train_step(model: CVAE, optimizer: torch.optim.Optimizer, frames: Tensor, labels: Tensor, noise: Tensor,
               beta: float, mode: str, largest_norm: float) -> float:
    """One update of the weights. Returns the loss, for which the host waits, as in the course's loop."""
    optimizer.zero_grad()
    loss = clip_loss(model, frames, labels, noise, beta, mode)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), largest_norm)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def generate(model: CVAE, first_frame: Tensor, labels: Tensor, generator: torch.Generator,
             progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> Tensor:
    """The free-running roll-out, z ~ N(0, I), of a model in evaluation mode: uint8 (B, T, 3, H, W) on the CPU."""
    video = [first_frame]
    for t in progress(range(1, labels.shape[1])):
        z = torch.randn(len(first_frame), model.N_dim, *first_frame.shape[2:], generator=generator,
                        device=first_frame.device, dtype=first_frame.dtype)
        fused = model.decoder_fusion(model.frame_encoder(video[-1]), model.label_encoder(labels[:, t]), z)
        video.append(model.generator(fused))
    return to_uint8(torch.stack(video, dim=1)).cpu()
