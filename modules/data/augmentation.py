"""From stored pixels to the network's, and random crops of training clips."""
import torch
from torch import Tensor
from torch.nn import functional

SMALLEST_CROP = 0.5  # of each side: a person twice as large is about as close as one gets to the camera


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float in [0, 1]."""
    return images.float() / 255


def draw_windows(count: int, fraction: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw a crop window for each clip: a random one for a ``fraction`` of the clips, the whole frame for the others.

    The side is uniform in [SMALLEST_CROP, 1), as a fraction of both height and width; the position is uniform.

    Returns
    -------
    (count, 3): left edge, top edge and side, as fractions of the frame; the whole frame is (0, 0, 1).
    """
    chosen, side, left, top = torch.rand(4, count, generator=generator)
    side = torch.where(chosen < fraction, SMALLEST_CROP + (1 - SMALLEST_CROP) * side, 1.0)
    return torch.stack([left * (1 - side), top * (1 - side), side], dim=1)


def crop(clips: Tensor, windows: Tensor) -> Tensor:
    """Crop each clip to its window and resize it bilinearly to the original size. All frames of a clip share a window.

    Parameters
    ----------
    clips : (B, T, C, H, W), float.
    windows : (B, 3), left edge, top edge and side, see :func:`draw_windows`.

    Returns
    -------
    (B, T, C, H, W). A clip whose window is the whole frame is returned bit for bit.
    """
    if not len(clips):  # the shard of a process may be empty, which affine_grid rejects
        return clips
    left, top, side = windows.to(clips.dtype).unbind(dim=1)
    # grid_sample coordinates are -1 and 1 at the outer edges of the frame.
    zero = torch.zeros_like(side)
    theta = torch.stack([torch.stack([side, zero, 2 * left + side - 1], dim=1),
                         torch.stack([zero, side, 2 * top + side - 1], dim=1)], dim=1)
    flat = clips.flatten(1, 2)  # the frames of a clip as channels of one image: they share the grid
    grid = functional.affine_grid(theta, list(flat.shape), align_corners=False)
    cropped = functional.grid_sample(flat, grid, mode="bilinear", padding_mode="border", align_corners=False)
    # Resampling with the identity would round.
    return torch.where((side < 1)[:, None, None, None], cropped, flat).unflatten(1, clips.shape[1:3])
