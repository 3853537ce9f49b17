"""Histogram matching of frames that are fed back."""
import torch
from torch import Tensor
from torch.nn import functional

HISTOGRAM_TARGETS = ("off", "previous", "first")


@torch.no_grad()
def match_histogram(frames: Tensor, targets: Tensor) -> Tensor:
    """Match the histogram of each channel of each frame to that of its target frame (histogram specification;
    Gonzalez and Woods, "Digital Image Processing", section 3.3).

    A value v becomes G^-1(F(v)), where F is the cumulative distribution of the channel, F(v) being the fraction of its
    pixels that are at most v, and G that of the target. G^-1 interpolates linearly between the target's distinct
    values, as in scikit-image's ``match_histograms``. The mapping is monotonic and not differentiable: the result
    carries no gradient.

    Parameters
    ----------
    frames, targets : (B, C, H, W), float. One target frame for each frame.

    Returns
    -------
    (B, C, H, W), with the dtype of ``targets``.

    Raises
    ------
    ValueError : the shapes differ.
    """
    if frames.shape != targets.shape:
        raise ValueError(f"frames and targets must have the same shape, got {tuple(frames.shape)} and "
                         f"{tuple(targets.shape)}")
    values = frames.flatten(2).to(targets.dtype).contiguous()
    target = targets.flatten(2).sort(dim=-1).values
    count = target.shape[-1]
    position = torch.arange(count, device=target.device).expand_as(target)
    # G^-1 at 1/n, 2/n, ..., 1. The knot of a distinct value is its last position in the sorted target; G^-1 is linear
    # between the previous knot and this one, and constant before the first.
    is_knot = functional.pad(target[..., 1:] != target[..., :-1], (0, 1), value=True)
    previous = functional.pad(torch.where(is_knot, position, -1).cummax(dim=-1).values[..., :-1], (1, 0), value=-1)
    knot = torch.where(is_knot, position, count).flip(-1).cummin(dim=-1).values.flip(-1)
    start = torch.where(previous < 0, target, target.gather(-1, previous.clamp(min=0)))
    inverse = start + (target - start) * (position - previous) / (knot - previous)
    # n F(v), the number of values of the channel that are at most v.
    rank = torch.searchsorted(values.sort(dim=-1).values, values, right=True)
    matched = inverse.gather(-1, (rank - 1).clamp(min=0))  # the rank is below 1 only for NaN
    return matched.unflatten(-1, frames.shape[-2:])
