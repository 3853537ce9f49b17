"""How far a predicted frame is from the real one: PSNR, SSIM, brightness, and the course's score.

The measures take frames as (..., 3, H, W) and answer one number per frame, shape (...), and those numbers are
averaged: the PSNR of a whole batch is that of its mean squared error, which the worst frames dominate, and is
not the mean of the frames' PSNRs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PSNR_CAP = 100.0  # dB; equal frames have infinite PSNR, and one infinity would make every mean infinite
SCORED_FRAMES = 600  # the course scores frames 1..600 of each sequence of 630
DRIFT_WINDOW = 60  # frames at the start and at the end of those, which tell how far a roll-out drifts
# Pixels per SSIM call, which holds some thirty float copies of what it compares. Small enough for a
# processor's cache: chunks of 1 << 18 take three times as long and 300 MB more memory.
SSIM_CHUNK_PIXELS = 1 << 14


def psnr(prediction: Tensor, target: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of each frame.

    Parameters
    ----------
    prediction, target : Tensor (..., 3, H, W)
        Frames with values 0..`data_range`. uint8 frames need ``data_range=255``.
    data_range : float
        Distance between black and white: 1 for float frames, 255 for stored pixels.

    Returns
    -------
    Tensor (...)
        dB, ``10 log10(data_range^2 / MSE)`` with the MSE over one frame's channels and pixels; at most
        `PSNR_CAP`. A frame with a NaN has PSNR NaN. float32; float64 where an input is.

    Raises
    ------
    ValueError
        The shapes differ or are not frames, `data_range` is not positive, or uint8 frames come with another
        range than 255.
    """
    _check_frames(prediction, target)
    _check_range(prediction, target, data_range)
    # Float before the subtraction: 3 - 5 in uint8 is 254.
    mse = (_as_float(prediction) - _as_float(target)).square().mean(dim=(-3, -2, -1))
    return (10 * torch.log10(data_range**2 / mse)).clamp(max=PSNR_CAP)


def ssim(prediction: Tensor, target: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity of each frame (Wang et al. 2004, as torchmetrics computes it).

    The Gaussian window is 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03. Where a frame's shorter side is below
    11 pixels, the window is the largest odd one that fits, and sigma 0.3 of its radius, as in the 11x11 one;
    such numbers compare only with those of frames of one size.

    Parameters
    ----------
    prediction, target : Tensor (..., 3, H, W)
        Frames with values 0..`data_range`, H and W at least 3. uint8 frames need ``data_range=255``.
    data_range : float
        Distance between black and white.

    Returns
    -------
    Tensor (...)
        -1..1, where 1 means equal. float32, which is off by up to 0.002 where frames are flat; float64 where
        both inputs are.

    Raises
    ------
    ValueError
        As `psnr`, or the frames are smaller than 3x3.
    """
    # Imported here: it takes seconds, and training needs none of it.
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_frames(prediction, target)
    _check_range(prediction, target, data_range)
    height, width = target.shape[-2:]
    radius = min(5, (min(height, width) - 1) // 2)
    if radius < 1:
        raise ValueError(f"SSIM needs frames of at least 3x3 pixels, not {height}x{width}.")
    chunk = max(1, SSIM_CHUNK_PIXELS // (height * width))
    scores = []
    for p, t in zip(_flat(prediction).split(chunk), _flat(target).split(chunk), strict=True):
        scores.append(
            structural_similarity_index_measure(
                _as_float(p), _as_float(t), sigma=0.3 * radius, data_range=float(data_range), reduction="none"
            )
        )
    return torch.cat(scores).reshape(target.shape[:-3])


def brightness_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean value of each predicted frame minus that of the real one.

    A free-running roll-out that drifts to black shows here long before PSNR tells why.

    Parameters
    ----------
    prediction, target : Tensor (..., 3, H, W)
        Float frames in [0, 1], or uint8 frames, which are divided by 255.

    Returns
    -------
    Tensor (...)
        -1..1: negative is too dark, positive too bright.

    Raises
    ------
    ValueError
        The shapes differ or are not frames.
    """
    _check_frames(prediction, target)
    means = [
        _as_float(frames).mean(dim=(-3, -2, -1)) / (255 if frames.dtype == torch.uint8 else 1)
        for frames in (prediction, target)
    ]
    return means[0] - means[1]


def repeat_first(frames: Tensor) -> Tensor:
    """Frame 0 in the place of every frame: the prediction that any model has to beat.

    Parameters
    ----------
    frames : Tensor (..., T, 3, H, W)

    Returns
    -------
    Tensor (..., T, 3, H, W)
        A view of frame 0 without a copy: clone it before writing into it.

    Raises
    ------
    ValueError
        The clip has no frame.
    """
    if frames.dim() < 4 or frames.shape[-4] == 0:
        raise ValueError(f"A clip has shape (..., T, 3, H, W) with T at least 1, not {tuple(frames.shape)}.")
    return frames[..., :1, :, :, :].expand_as(frames)


def course_score(psnr_per_frame: Tensor | Sequence[float]) -> float:
    """The course's number for one sequence: mean PSNR over frames 1..600.

    Parameters
    ----------
    psnr_per_frame : Tensor (T,) or sequence of float
        dB of every frame, the given frame 0 included, which is not scored. A sequence with fewer than 601
        frames is scored over 1..T-1.

    Returns
    -------
    float
        dB.

    Raises
    ------
    ValueError
        It is no vector, or holds fewer than two frames.
    """
    if isinstance(psnr_per_frame, Tensor):
        psnr_per_frame = psnr_per_frame.detach().cpu()  # first: not every device has float64
    values = torch.as_tensor(psnr_per_frame, dtype=torch.float64)
    if values.dim() != 1 or len(values) < 2:
        raise ValueError(
            f"The score needs a vector with the PSNR of frame 0 and more, not shape {tuple(values.shape)}."
        )
    return values[1 : 1 + SCORED_FRAMES].mean().item()


def slope(per_frame: Tensor | Sequence[float]) -> float:
    """How fast a score changes over a roll-out: the slope of its least-squares line, for each `SCORED_FRAMES` frames.

    Parameters
    ----------
    per_frame : Tensor (T,) or sequence of float
        The score of frames that follow each other, in the score's unit; at least one.

    Returns
    -------
    float
        The score's unit per 600 frames; 0 for one frame. A NaN makes it NaN.
    """
    values = torch.as_tensor(per_frame, dtype=torch.float64).detach().cpu()
    time = torch.arange(len(values), dtype=torch.float64)
    time -= time.mean()
    spread = time.square().sum().clamp(min=0.5)  # that of two frames; one has none, and no slope
    return SCORED_FRAMES * ((time * (values - values.mean())).sum() / spread).item()


def drift(psnr_per_frame: Tensor, brightness_per_frame: Tensor) -> dict[str, float]:
    """How much worse a roll-out becomes over the frames that the course scores.

    Parameters
    ----------
    psnr_per_frame, brightness_per_frame : Tensor (T,)
        dB and brightness error of every frame, the given frame 0 included, which is left out. Of a sequence with
        fewer than 601 frames all others count.

    Returns
    -------
    dict
        psnr_start, psnr_end: mean PSNR over the first and the last `DRIFT_WINDOW` of these frames, 1..60 and 541..600;
        psnr_slope: dB per 600 frames; brightness_error_end: mean brightness error over the last window.

    Raises
    ------
    ValueError
        As `course_score`.
    """
    course_score(psnr_per_frame)
    scored, brightness = (values[1 : 1 + SCORED_FRAMES] for values in (psnr_per_frame, brightness_per_frame))
    return {
        "psnr_start": scored[:DRIFT_WINDOW].mean().item(),
        "psnr_end": scored[-DRIFT_WINDOW:].mean().item(),
        "psnr_slope": slope(scored),
        "brightness_error_end": brightness[-DRIFT_WINDOW:].mean().item(),
    }


def to_uint8(frames: Tensor) -> Tensor:
    """Float frames as the pixels that are stored, shown and scored.

    Parameters
    ----------
    frames : Tensor, any shape
        Float with 0 for black and 1 for white; values outside are clipped. uint8 frames come back unchanged.

    Returns
    -------
    Tensor, same shape
        uint8, ``round(255 x)`` clipped to 0..255.

    Raises
    ------
    ValueError
        A value is NaN, which no pixel can show, or the dtype is neither float nor uint8.
    """
    if frames.dtype == torch.uint8:
        return frames
    if not frames.is_floating_point():
        raise ValueError(f"to_uint8 takes float frames in [0, 1] or uint8 frames, not {frames.dtype}.")
    if frames.isnan().any():
        raise ValueError("The frames hold NaN, which is no pixel value: the model or its input has diverged.")
    # Clip before the cast: a float beyond 255 wraps around or is undefined as uint8.
    return (_as_float(frames) * 255).round().clamp(0, 255).to(torch.uint8)


def _as_float(frames: Tensor) -> Tensor:
    """float64 stays; half precision and integers become float32, which every device has."""
    return frames if frames.dtype == torch.float64 else frames.float()


def _flat(frames: Tensor) -> Tensor:
    """(..., 3, H, W) -> (N, 3, H, W)."""
    return frames.reshape(-1, *frames.shape[-3:])


def _check_frames(prediction: Tensor, target: Tensor) -> None:
    """Raise ValueError unless both are frames of one shape: broadcasting would compare the wrong frames."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"The prediction has shape {tuple(prediction.shape)}, but the target has {tuple(target.shape)}."
        )
    if prediction.dim() < 3 or prediction.shape[-3] != 3 or prediction.numel() == 0:
        raise ValueError(f"Frames have shape (..., 3, H, W), not {tuple(prediction.shape)}.")


def _check_range(prediction: Tensor, target: Tensor, data_range: float) -> None:
    """Raise ValueError where the range cannot be that of the frames: every PSNR would be 48 dB off."""
    if data_range <= 0:
        raise ValueError(f"data_range must be positive, not {data_range}.")
    if torch.uint8 in (prediction.dtype, target.dtype) and data_range != 255:
        raise ValueError(f"uint8 frames have the range 0..255: give data_range=255, not {data_range}.")
