"""Replay: clips that begin with the model's own latest predictions."""
import torch
from torch import Tensor


class Replay:
    """The model's own latest prediction of each training frame, for clips to begin with.

    A clip of T frames that begins with a real frame shows a free-running model no more than T - 1 steps of its own
    errors; a roll-out makes hundreds. A clip that begins with what was predicted for its first frame, when that was the
    last of the clip before it, goes on from there; that clip may itself have begun with a prediction, and so on. So the
    errors of long roll-outs are met, and corrected, in short clips. (The sample pool of Mordvintsev et al. 2020,
    "Growing Neural Cellular Automata", carried over to a recording.)

    Parameters
    ----------
    predictions : uint8 (N, 3, H, W), of each frame of the recording. is_known : bool (N,), whether there is one.
    of : a check sum of the recording, by which a saved one is known to belong to it.
    """

    def __init__(self, predictions: Tensor, is_known: Tensor, of: int = 0):
        self.predictions, self.is_known, self.of = predictions, is_known, of

    def to(self, device: torch.device) -> "Replay":
        """The same on a device."""
        return Replay(self.predictions.to(device), self.is_known.to(device), self.of)

    def recall(self, index: Tensor, frames: Tensor, chosen: Tensor, disturbance: Tensor | float = 0.0) -> Tensor:
        """The ``frames`` (B, 3, H, W) of the recording's ``index`` (B,), but their predictions, with ``disturbance``
        added, where they are ``chosen``, bool (B,), and there is one."""
        known = (self.is_known[index] & chosen)[:, None, None, None]
        return torch.where(known, self.predictions[index].to(frames.dtype) / 255 + disturbance, frames)

    @torch.no_grad()
    def remember(self, index: Tensor, predictions: Tensor, good: Tensor) -> None:
        """Keep predictions (B, T-1, 3, H, W) in [0, 1] of the frames ``index`` (B, T-1), where ``good``, bool and
        broadcast to (B, T-1). No frame may come twice."""
        good = good.expand_as(index)
        rounded = (predictions.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
        self.predictions[index] = torch.where(good[..., None, None, None], rounded, self.predictions[index])
        self.is_known[index] = self.is_known[index] | good
