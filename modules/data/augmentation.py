"""Random crops of training clips."""
import torch
from torch import Tensor
from torch.nn import functional

SMALLEST_CROP = 0.5  # of a side: a person at twice the size is about as close as one comes


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
