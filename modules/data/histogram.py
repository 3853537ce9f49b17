"""Histogram specification of a frame that is fed back."""
import torch
from torch import Tensor
from torch.nn import functional

HISTOGRAM_REFERENCES = ("off", "previous", "first")


@torch.no_grad()
def match_histogram(frames: Tensor, references: Tensor) -> Tensor:
    """Remap each channel of each frame so that its values are distributed as those of its reference (histogram
    specification; Gonzalez and Woods, "Digital Image Processing", section 3.3).

    A value v becomes R^-1(F(v)), where F(v) is the share of the channel's pixels that are at most v, R the same for the
    reference, and R^-1 interpolates linearly between the values that occur, as scikit-image's match_histograms does.
    Equal values stay equal and the order of values stays. No gradient passes.

    Parameters
    ----------
    frames, references : (B, C, H, W), float. One frame for each reference.

    Returns
    -------
    (B, C, H, W), of the references' dtype.

    Raises
    ------
    ValueError : the shapes differ.
    """
    if frames.shape != references.shape:
        raise ValueError(f"histograms are matched frame by frame, not {tuple(frames.shape)} to "
                         f"{tuple(references.shape)}")
    values = frames.flatten(2).to(references.dtype).contiguous()
    target = references.flatten(2).sort(dim=-1).values
    count = target.shape[-1]
    place = torch.arange(count, device=target.device).expand_as(target)
    # R^-1 at the shares 1/n, 2/n, ..., 1: a value that occurs has the share of its last place in the sorted target, its
    # knot; between the knot before and its own the inverse is linear, and before the first it is constant.
    is_knot = functional.pad(target[..., 1:] != target[..., :-1], (0, 1), value=True)
    before = functional.pad(torch.where(is_knot, place, -1).cummax(dim=-1).values[..., :-1], (1, 0), value=-1)
    knot = torch.where(is_knot, place, count).flip(-1).cummin(dim=-1).values.flip(-1)
    start = torch.where(before < 0, target, target.gather(-1, before.clamp(min=0)))
    inverse = start + (target - start) * (place - before) / (knot - before)
    # F: how many of the channel's values are at most this one. On a sorted copy, since a search needs one.
    rank = torch.searchsorted(values.sort(dim=-1).values, values, right=True)
    matched = inverse.gather(-1, (rank - 1).clamp(min=0))  # below 1 only for NaN
    return matched.unflatten(-1, frames.shape[-2:])
