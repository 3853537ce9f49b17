"""Frames and pose images of a recording, and the clips that it can be cut into."""
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Recording:
    """Frames and pose images of a recording, in numeric order.

    frames, labels : uint8 (N, 3, H, W); numbers : int64 (N,), strictly increasing.
    """
    frames: Tensor
    labels: Tensor
    numbers: Tensor

    def __repr__(self) -> str:
        return f"Recording({describe_frames(self.frames)})"

    def head(self, count: int) -> "Recording":
        """The first ``count`` frames."""
        return Recording(self.frames[:count], self.labels[:count], self.numbers[:count])

    def to(self, device: torch.device) -> "Recording":
        """The recording with frames and labels on ``device``; the numbers stay on the CPU."""
        return Recording(self.frames.to(device), self.labels.to(device), self.numbers)

    def checksum(self, *settings: object) -> int:
        """CRC-32 of shape, frames, labels, numbers and any settings: equal for equal datasets and settings."""
        crc = zlib.crc32(repr((*self.frames.shape, *settings)).encode())
        for part in (self.frames, self.labels, self.numbers):
            crc = zlib.crc32(part.cpu().contiguous().numpy(), crc)
        return crc


def describe_frames(frames: Tensor) -> str:
    return f"{len(frames)} frames of {frames.shape[-2]} x {frames.shape[-1]}"


def segments(numbers: Tensor) -> Tensor:
    """Bounds of the segments, which the jumps in the numbers (N,) separate: segment i is bounds[i]..bounds[i + 1] - 1.

    Returns
    -------
    (segments + 1,) int64, from 0 to N.
    """
    cuts = (numbers.diff() != 1).nonzero().flatten() + 1
    return torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), len(numbers))])


def clip_starts(numbers: Tensor, length: int, stride: int) -> Tensor:
    """Positions at which clips of ``length`` frames start, such that no clip crosses a jump in the numbers.

    Parameters
    ----------
    numbers : (N,) int, strictly increasing.
    length : frames per clip. stride : frames between clip starts, counted from the start of each segment.

    Returns
    -------
    (clips,) int64, each in 0..N - length.
    """
    bounds = segments(numbers).tolist()
    return torch.cat([torch.arange(begin, max(end - length + 1, begin), stride)
                      for begin, end in zip(bounds[:-1], bounds[1:], strict=True)])
