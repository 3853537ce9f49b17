"""The one scorer of both programs: free-running rollouts, and their scores on the pixels that are submitted."""
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from modules.evaluation.metrics import psnr, repeat_first, to_uint8


def rollout(model: torch.nn.Module, first_frames: Tensor, labels: list[Tensor], latent: str = "prior", seed: int = 0,
            precision: str = "fp32", progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> list[Tensor]:
    """Generate all sequences in one batch, each frame from the one before it. No real frame after the first is seen.

    Parameters
    ----------
    model : a CVAE; the rollout runs on its device.
    first_frames : uint8 (S, 3, H, W).
    labels : uint8 (T, 3, H, W) for each sequence; lengths may differ. The pose of frame 0 is not used.
    latent : "prior", z ~ N(0, I) for each frame, or "mean", z = 0.
    seed : of z, whose draws depend on nothing else.
    precision : "fp32" or "bf16" (autocast).
    progress : wraps the iterator over frames, for a progress bar or to stop between two frames.

    Returns
    -------
    uint8 (T, 3, H, W) for each sequence, on the CPU: the pixels that are submitted, the given first frame included.

    Raises
    ------
    ValueError : the rollout diverged, so that pixels are NaN or infinite.
    """
    device = next(model.parameters()).device
    longest = max(map(len, labels))
    # A shorter sequence repeats its last pose; what is generated from it is cut off again.
    padded = torch.stack([poses[torch.arange(longest).clamp(max=len(poses) - 1)] for poses in labels])
    noise = torch.Generator(device).manual_seed(seed)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        videos = model.generate(first_frames.to(device).float() / 255, padded.to(device).float() / 255, latent, noise,
                                progress)
    if not videos.isfinite().all():
        raise ValueError("the rollout diverged: it holds NaN or infinite pixels")
    videos = to_uint8(videos).cpu()
    return [video[:len(poses)] for video, poses in zip(videos, labels, strict=True)]


@dataclass
class Evaluation:
    """Scores of a generated sequence. ``video`` and ``truth``: uint8 (T, 3, H, W), the given frame 0 included."""
    video: Tensor
    truth: Tensor
    psnr: Tensor  # (T,), dB
    psnr_repeat_first: Tensor  # (T,), dB, of repeating frame 0 instead

    @property
    def mean_psnr(self) -> float:
        """Mean over the predicted frames 1..T-1, dB."""
        return self.psnr[1:].mean().item()

    @property
    def mean_psnr_repeat_first(self) -> float:
        return self.psnr_repeat_first[1:].mean().item()

    def __repr__(self) -> str:
        return f"Evaluation({len(self.video)} frames, {self})"

    def __str__(self) -> str:
        return f"PSNR {self.mean_psnr:.2f} dB (repeat first frame {self.mean_psnr_repeat_first:.2f})"

    @property
    def mse(self) -> float:
        """Mean squared error over the predicted frames, pixels in [0, 1]."""
        return ((self.video[1:].float() - self.truth[1:].float()) / 255).square().mean().item()


def score(video: Tensor, truth: Tensor) -> Evaluation:
    """Score a sequence from ``rollout`` against its real frames, both uint8 (T, 3, H, W) on the CPU."""
    return Evaluation(video, truth, psnr(video, truth, 255), psnr(repeat_first(truth), truth, 255))


def evaluate(model: torch.nn.Module, frames: Tensor, labels: Tensor, latent: str = "prior", seed: int = 0,
             precision: str = "fp32", progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> Evaluation:
    """Roll out one sequence from its first frame and score it. Arguments as in ``rollout``.

    Parameters
    ----------
    frames, labels : uint8 (T, 3, H, W).

    Raises
    ------
    ValueError : the rollout diverged.
    """
    video, = rollout(model, frames[:1], [labels], latent, seed, precision, progress)
    return score(video, frames.cpu())
