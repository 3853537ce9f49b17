"""How much a predicted frame differs from the real one: PSNR, SSIM, brightness, and the course's score.

Frames are (..., 3, H, W), and each metric returns one value per frame, (...), so that values are averaged over frames:
the PSNR of a whole batch is that of its mean squared error, which the worst frames dominate, not the mean PSNR.
"""
from collections.abc import Sequence

import torch
from torch import Tensor

PSNR_CAP = 100.0  # dB; the PSNR of equal frames is infinite, which would make every mean infinite
SCORED_FRAMES = 600  # the course scores frames 1..600 of each sequence of 630
DRIFT_WINDOW = 60  # frames at the start and at the end of the scored ones that are compared to measure drift
MIN_SLOPE_FRAMES = 120  # start, end and slope of a shorter rollout say nothing about a long one
# Pixels per SSIM call, which holds some thirty float copies of its input. Small enough for a processor's cache: chunks
# of 1 << 18 take three times as long and 300 MB more memory.
SSIM_CHUNK_PIXELS = 1 << 14


def psnr(prediction: Tensor, target: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of each frame, 10 log10(data_range^2 / MSE) with the MSE over channels and pixels.

    Parameters
    ----------
    prediction, target : (..., 3, H, W), values 0..data_range.
    data_range : difference between white and black: 1 for float frames, 255 for uint8 frames.

    Returns
    -------
    (...), dB, at most PSNR_CAP; NaN for a frame that holds NaN. float64 if an input is, else float32.

    Raises
    ------
    ValueError : the shapes differ or are not frames, data_range is not positive, or it is not 255 for uint8 frames.
    """
    _check_frames(prediction, target)
    _check_range(prediction, target, data_range)
    # Float before the subtraction: 3 - 5 in uint8 is 254.
    mse = (_as_float(prediction) - _as_float(target)).square().mean(dim=(-3, -2, -1))
    return (10 * torch.log10(data_range**2 / mse)).clamp(max=PSNR_CAP)


def ssim(prediction: Tensor, target: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity of each frame (Wang et al. 2004, "Image Quality Assessment: From Error Visibility to
    Structural Similarity"; computed by torchmetrics).

    The Gaussian window is 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03. If the shorter side is below 11 pixels, it is the
    largest odd window that fits, with sigma 0.3 times its radius as for 11x11; such values are comparable only between
    frames of the same size.

    Parameters
    ----------
    prediction, target : (..., 3, H, W), H and W at least 3, values 0..data_range.
    data_range : difference between white and black: 1 for float frames, 255 for uint8 frames.

    Returns
    -------
    (...), -1..1, 1 for equal frames. float64 if both inputs are, else float32, with errors up to 0.002 in flat frames.

    Raises
    ------
    ValueError : as ``psnr``, or the frames are smaller than 3x3.
    """
    # Imported here: it takes seconds, and training does not need it.
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_frames(prediction, target)
    _check_range(prediction, target, data_range)
    height, width = target.shape[-2:]
    radius = min(5, (min(height, width) - 1) // 2)
    if radius < 1:
        raise ValueError(f"SSIM needs frames of at least 3x3 pixels, got {height}x{width}")
    chunk = max(1, SSIM_CHUNK_PIXELS // (height * width))
    chunks = zip(*(frames.reshape(-1, 3, height, width).split(chunk) for frames in (prediction, target)), strict=True)
    values = [structural_similarity_index_measure(_as_float(p), _as_float(t), sigma=0.3 * radius,
                                                  data_range=float(data_range), reduction="none") for p, t in chunks]
    return torch.cat(values).reshape(target.shape[:-3])


def brightness_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean value of each predicted frame minus that of the real one.

    It shows a rollout that drifts towards black or white, which PSNR does not tell from other errors.

    Parameters
    ----------
    prediction, target : (..., 3, H, W), float in [0, 1], or uint8.

    Returns
    -------
    (...), -1..1; negative: too dark.

    Raises
    ------
    ValueError : the shapes differ or are not frames.
    """
    _check_frames(prediction, target)
    predicted, real = (_as_float(frames).mean(dim=(-3, -2, -1)) / (255 if frames.dtype == torch.uint8 else 1)
                       for frames in (prediction, target))
    return predicted - real


def repeat_first(frames: Tensor) -> Tensor:
    """Repeat frame 0: the trivial prediction that every model has to beat.

    Parameters
    ----------
    frames : (..., T, 3, H, W).

    Returns
    -------
    (..., T, 3, H, W), an expanded view of frame 0; clone it before writing to it.

    Raises
    ------
    ValueError : T is 0, or the shape is not that of a clip.
    """
    if frames.dim() < 4 or frames.shape[-4] == 0:
        raise ValueError(f"a clip must have shape (..., T, 3, H, W) with T at least 1, got {tuple(frames.shape)}")
    return frames[..., :1, :, :, :].expand_as(frames)


def course_score(psnr_per_frame: Tensor | Sequence[float]) -> float:
    """The course's score of a sequence: mean PSNR over frames 1..600, or 1..T-1 of a shorter sequence.

    Parameters
    ----------
    psnr_per_frame : (T,), dB of each frame, including the given frame 0, which is not scored.

    Returns
    -------
    dB.

    Raises
    ------
    ValueError : not a vector, or fewer than two frames.
    """
    if isinstance(psnr_per_frame, Tensor):
        psnr_per_frame = psnr_per_frame.detach().cpu()  # first: not every device has float64
    values = torch.as_tensor(psnr_per_frame, dtype=torch.float64)
    if values.dim() != 1 or len(values) < 2:
        raise ValueError(f"psnr_per_frame must be a vector of at least two frames, got shape {tuple(values.shape)}")
    return values[1:1 + SCORED_FRAMES].mean().item()


def slope(per_frame: Tensor | Sequence[float]) -> float:
    """How fast a score changes over consecutive frames: the slope of its least-squares line, per 600 frames.

    Parameters
    ----------
    per_frame : (T,), T at least 1, score of each frame.

    Returns
    -------
    The score's unit per 600 frames; 0 for a single frame; NaN if a value is.
    """
    values = torch.as_tensor(per_frame, dtype=torch.float64).detach().cpu()
    time = torch.arange(len(values), dtype=torch.float64)
    time -= time.mean()
    spread = time.square().sum().clamp(min=0.5)  # two frames have 0.5; one has 0, and 0 / 0 would be NaN
    return SCORED_FRAMES * ((time * (values - values.mean())).sum() / spread).item()


def start_end_slope(psnr_per_frame: Tensor, brightness_per_frame: Tensor) -> dict[str, float]:
    """How much worse a rollout becomes over the scored frames: 1..600, or 1..T-1 of a shorter sequence.

    Parameters
    ----------
    psnr_per_frame, brightness_per_frame : (T,), dB and brightness error of each frame, including the given frame 0.

    Returns
    -------
    psnr_start, psnr_end : mean PSNR over the first and the last DRIFT_WINDOW of these frames, 1..60 and 541..600, dB.
    psnr_slope : dB per 600 frames.
    brightness_error_end : mean brightness error over the last DRIFT_WINDOW frames.

    Raises
    ------
    ValueError : as ``course_score``.
    """
    course_score(psnr_per_frame)
    scored, brightness = (values[1:1 + SCORED_FRAMES] for values in (psnr_per_frame, brightness_per_frame))
    return {"psnr_start": scored[:DRIFT_WINDOW].mean().item(), "psnr_end": scored[-DRIFT_WINDOW:].mean().item(),
            "psnr_slope": slope(scored), "brightness_error_end": brightness[-DRIFT_WINDOW:].mean().item()}


def to_uint8(frames: Tensor) -> Tensor:
    """Convert float frames to the pixels that are stored, shown and scored.

    Parameters
    ----------
    frames : any shape; float, 0 is black and 1 is white, or uint8, which is returned unchanged.

    Returns
    -------
    uint8 of the same shape, round(255 x) clipped to 0..255.

    Raises
    ------
    ValueError : a value is NaN, or the dtype is neither float nor uint8.
    """
    if frames.dtype == torch.uint8:
        return frames
    if not frames.is_floating_point():
        raise ValueError(f"frames must be float or uint8, got {frames.dtype}")
    if frames.isnan().any():
        raise ValueError("frames hold NaN: the model or its input has diverged")
    # Clip before the cast: the cast of a float beyond 255 wraps around or is undefined.
    return (_as_float(frames) * 255).round().clamp(0, 255).to(torch.uint8)


def _as_float(frames: Tensor) -> Tensor:
    """float64 stays; half precision and integers become float32, which every device supports."""
    return frames if frames.dtype == torch.float64 else frames.float()


def _check_frames(prediction: Tensor, target: Tensor) -> None:
    """ValueError unless both are frames of the same shape: broadcasting would compare the wrong frames."""
    if prediction.shape != target.shape:
        raise ValueError(f"prediction has shape {tuple(prediction.shape)}, but target has {tuple(target.shape)}")
    if prediction.dim() < 3 or prediction.shape[-3] != 3 or prediction.numel() == 0:
        raise ValueError(f"frames must have shape (..., 3, H, W), got {tuple(prediction.shape)}")


def _check_range(prediction: Tensor, target: Tensor, data_range: float) -> None:
    """ValueError if data_range does not fit the frames: every PSNR would be off by 48 dB."""
    if data_range <= 0:
        raise ValueError(f"data_range must be positive, got {data_range}")
    if torch.uint8 in (prediction.dtype, target.dtype) and data_range != 255:
        raise ValueError(f"uint8 frames need data_range=255, got {data_range}")
