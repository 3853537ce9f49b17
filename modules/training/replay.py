"""Replay: training clips that begin with the model's own latest prediction of their first frame."""
import torch
from torch import Tensor


class Replay:
    """The model's latest prediction of each training frame.

    A clip of T frames that begins with a real frame exposes a free-running model to at most T - 1 steps of its own
    errors; a rollout has hundreds. A clip that begins with what was predicted for its first frame, when that was the
    last frame of the previous clip, continues from there; that clip may itself start from a prediction, and so on.
    So the errors of long rollouts are met, and corrected, in short clips. (The sample pool of Mordvintsev et al. 2020,
    "Growing Neural Cellular Automata", applied to a recording.)

    Parameters
    ----------
    predictions : uint8 (N, 3, H, W), one per frame of the recording. is_known : bool (N,), which have been predicted.
    checksum : of the recording, which tells whether saved predictions belong to it.
    """

    def __init__(self, predictions: Tensor, is_known: Tensor, checksum: int = 0):
        self.predictions, self.is_known, self.checksum = predictions, is_known, checksum

    @classmethod
    def empty(cls, frames: Tensor, checksum: int = 0) -> "Replay":
        """No prediction yet of the frames uint8 (N, 3, H, W), on their device."""
        return cls(torch.zeros_like(frames), torch.zeros(len(frames), dtype=torch.bool, device=frames.device), checksum)

    def to(self, device: torch.device) -> "Replay":
        return Replay(self.predictions.to(device), self.is_known.to(device), self.checksum)

    def recall(self, index: Tensor, frames: Tensor, chosen: Tensor) -> Tensor:
        """Replace ``frames`` (B, 3, H, W) of the recording's ``index`` (B,) by their predictions where ``chosen``,
        bool (B,), and known."""
        known = (self.is_known[index] & chosen)[:, None, None, None]
        return torch.where(known, self.predictions[index].to(frames.dtype) / 255, frames)

    @torch.no_grad()
    def remember(self, index: Tensor, predictions: Tensor, is_kept: Tensor) -> None:
        """Store predictions (B, T-1, 3, H, W) in [0, 1] of the frames ``index`` (B, T-1) where ``is_kept``, bool and
        broadcast to (B, T-1). No frame may occur twice."""
        is_kept = is_kept.expand_as(index)
        rounded = (predictions.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
        self.predictions[index] = torch.where(is_kept[..., None, None, None], rounded, self.predictions[index])
        self.is_known[index] = self.is_known[index] | is_kept


def choose_first_frames(batch: object, any_first: float, replay: Replay | None, replayed: float, clips: int,
                        shard: slice, generator: torch.Generator) -> Tensor:
    """What the clips of a batch begin with instead of their own first frame.

    Parameters
    ----------
    batch : a shard of S of the batch's B clips (``Clips`` of dataloader.py).
    any_first : fraction of the clips that begin with the random frame that was drawn for them.
    replay, replayed : predictions, and the fraction of the clips that begin with the one of their first frame.
    clips, shard : B, and this rank's part of it; drawn for all, so that it does not depend on the division.

    Returns
    -------
    (S, 3, H, W). Cropped clips never begin with a prediction.
    """
    index, first = batch.index[:, 0], batch.frames[:, 0]
    drawn = torch.rand(2, clips, generator=generator)[:, shard].to(first.device, non_blocking=True)
    if any_first:
        is_any = drawn[0] < any_first
        index = torch.where(is_any, batch.random_index, index)
        first = torch.where(is_any[:, None, None, None], batch.random_frame, first)
    if replay is not None:
        first = replay.recall(index, first, (drawn[1] < replayed) & batch.is_whole)
    return first
