"""What the network is given: histogram specification of a fed-back frame, crops of training clips, replay."""
import torch
from torch import Tensor
from torch.nn import functional

HISTOGRAM_REFERENCES = ("off", "previous", "first")
SMALLEST_CROP = 0.5  # of a side: a person at twice the size is about as close as one comes


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


def draw_windows(count: int, fraction: float, generator: torch.Generator) -> Tensor:
    """For each clip the window that is shown of it: a random crop for a ``fraction`` of them, the whole for the others.

    Sides are uniform in [SMALLEST_CROP, 1), the same share of height and width; the place is uniform.

    Returns
    -------
    (count, 3): left and top edge and side, in shares of the picture; the whole picture is (0, 0, 1).
    """
    chosen, side, left, top = torch.rand(4, count, generator=generator)
    side = torch.where(chosen < fraction, SMALLEST_CROP + (1 - SMALLEST_CROP) * side, 1.0)
    return torch.stack([left * (1 - side), top * (1 - side), side], dim=1)


def crop(clips: Tensor, windows: Tensor) -> Tensor:
    """Show a window of each clip in the size of the whole, resized bilinearly; the same one for all frames of a clip.

    Parameters
    ----------
    clips : (B, T, C, H, W), float.
    windows : (B, 3), left and top edge and side as ``draw_windows`` gives them.

    Returns
    -------
    (B, T, C, H, W). Where the window is the whole, the very same values.
    """
    if not len(clips):  # the share of a process that has none; affine_grid would refuse
        return clips
    left, top, side = windows.to(clips.dtype).unbind(dim=1)
    # grid_sample counts from -1 to 1 between the outer edges of the picture.
    zero = torch.zeros_like(side)
    theta = torch.stack([torch.stack([side, zero, 2 * left + side - 1], dim=1),
                         torch.stack([zero, side, 2 * top + side - 1], dim=1)], dim=1)
    flat = clips.flatten(1, 2)  # a clip's frames are channels of one picture: they share their grid
    grid = functional.affine_grid(theta, list(flat.shape), align_corners=False)
    shown = functional.grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # What is not cropped is exactly as it was, not as rounded coordinates would have it.
    return torch.where((side < 1)[:, None, None, None], shown, flat).unflatten(1, clips.shape[1:3])


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
