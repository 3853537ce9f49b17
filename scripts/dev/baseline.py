"""The baseline: the course's training loop and rollout, written plainly.

The optimised implementation is compared with it, by a test for equal results and by benchmark.py for time. Every part
of the network is called frame by frame, in eager mode, in the model's precision (float32) and in PyTorch's default
memory layout, with the plain Adam. Only the label encoder sees the poses 2..T of all clips in one call, as in every
training step, because its BatchNorm uses the statistics of the whole batch. The rollout takes all sequences as one
batch, where the course takes them one by one, so that the comparison is of the implementation only.
"""
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

from modules.evaluation.metrics import to_uint8
from modules.network.cvae import CVAE

MODES = ("free_running", "teacher_forced", "bptt")


def clip_loss(model: CVAE, frames: Tensor, labels: Tensor, noise: Tensor, beta: float, mode: str) -> Tensor:
    """The loss of a batch of clips, a scalar: MSE + beta * KL, summed over the frames 2..T, averaged over the clips.

    Parameters
    ----------
    frames, labels : (B, T, 3, H, W) in [0, 1]. noise : (B, T-1, N, H, W) from N(0, I).
    mode : the input of the next step. "teacher_forced": the real frame; "free_running": the prediction, detached;
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
               beta: float, mode: str, max_norm: float) -> float:
    """One update of the weights. Returns the loss; reading it synchronises with the device, as in the course's loop."""
    optimizer.zero_grad()
    loss = clip_loss(model, frames, labels, noise, beta, mode)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def generate(model: CVAE, first_frame: Tensor, labels: Tensor, generator: torch.Generator,
             progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> Tensor:
    """Free-running rollout with z ~ N(0, I) of a model in evaluation mode.

    Parameters
    ----------
    first_frame : (B, 3, H, W) in [0, 1]. labels : (B, T, 3, H, W) in [0, 1].
    generator : source of z, on first_frame's device. progress : wraps the loop over the frames.

    Returns
    -------
    uint8 (B, T, 3, H, W) on the CPU.
    """
    video = [first_frame]
    for t in progress(range(1, labels.shape[1])):
        z = torch.randn(len(first_frame), model.N_dim, *first_frame.shape[2:], generator=generator,
                        device=first_frame.device, dtype=first_frame.dtype)
        fused = model.decoder_fusion(model.frame_encoder(video[-1]), model.label_encoder(labels[:, t]), z)
        video.append(model.generator(fused))
    return to_uint8(torch.stack(video, dim=1)).cpu()
