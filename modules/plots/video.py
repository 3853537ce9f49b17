"""GIF and MP4 files."""
import math
from pathlib import Path
from typing import BinaryIO

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageSequence
from torch import Tensor
from torch.nn import functional

from modules.evaluation.metrics import to_uint8
from utils import atomic_write

MIN_HEIGHT = 128  # pixels: smaller clips are enlarged to at least this height,
GIF_HEIGHT = 96  # and those in a GIF, whose size grows with it, to this
LABELS = ["truth", "prediction", "pose"]
SEPARATOR = 2  # columns between the clips of a tile, before any enlargement
GIF_COLOURS = 255  # one of the 256 colours stays free: it marks pixels that did not change
GIF_TOLERANCE = 10  # a pixel whose values differ by at most this, of 255, does not change
HELD_PIXELS = 1 << 21  # whose colours are held at once: bounds memory
PALETTE_SAMPLES = 1 << 17  # pixels of a clip that its GIF palette is computed from
# Quality close to lossless. The first encoder that ffmpeg was built with is used; some builds lack libx264.
MP4_ENCODERS = {"libx264": {"crf": "16", "preset": "medium"}, "mpeg4": {"qmin": "2", "qmax": "2"}}


def tile(*clips: Tensor, labels: list[str] | None = None, min_height: int = MIN_HEIGHT) -> Tensor:
    """Clips side by side with a thin grey line between them.

    Parameters
    ----------
    clips : (T, 3, H, W), float in [0, 1] or uint8; widths may differ.
    labels : one per clip, written above it. The clips are enlarged first, so that the text is legible.
    min_height : of a labelled clip, pixels.

    Returns
    -------
    Tensor (T, 3, H', W')
        uint8. Without labels H' is H.

    Raises
    ------
    ValueError : no clip, clips of different length or height, not one label per clip, or NaN.
    """
    clips = [_check_clip(clip) for clip in clips]
    if not clips:
        raise ValueError("tile needs at least one clip")
    if len({(len(clip), clip.shape[2]) for clip in clips}) > 1:
        raise ValueError(f"clips in a tile must have the same length and height, got the shapes "
                         f"{[tuple(clip.shape) for clip in clips]}")
    separator = SEPARATOR
    if labels is not None:
        if len(labels) != len(clips):
            raise ValueError(f"tile needs one label per clip, got {len(labels)} labels for {len(clips)} clips")
        factor = _factor(clips[0], min_height)
        separator = factor * max(1, 2 * SEPARATOR // factor)  # whole pixels of the clips, for shrink_gif
        clips = [torch.cat([_label_band(label, clip), clip], dim=2)
                 for label, clip in zip(labels, (_enlarge(clip, min_height) for clip in clips), strict=True)]
    line = torch.full((*clips[0].shape[:3], separator), 128, dtype=torch.uint8)
    return torch.cat([part for clip in clips for part in (line, clip)][1:], dim=3)


def write_gif(clip: Tensor, path: str | Path, fps: float = 20) -> None:
    """Write a GIF that loops forever and lasts T / fps seconds, rounded to 10 ms.

    All frames share one palette, without dithering, and while a pixel hardly changes it keeps its mean colour, so that
    static regions do not flicker and take few bytes. Consecutive equal frames are stored once and shown longer.

    Parameters
    ----------
    clip : Tensor (T, 3, H, W)
        Float in [0, 1] or uint8. Enlarged by an integer factor to a height of at least 96 pixels.
    fps : float
        Frames per second, above 0 and at most 50: viewers slow down GIFs with frames of 10 ms.

    Raises
    ------
    ValueError : the clip has the wrong shape or contains NaN, or the frame rate is out of range.
    OSError : the file cannot be written.
    """
    _save_gif(_hold_colours(_check_clip(clip)), path, fps)


def write_mp4(clip: Tensor, path: str | Path, fps: float = 20) -> None:
    """Write an H.264 video in yuv420p, which common players support, or MPEG-4 where libx264 is missing.

    Parameters
    ----------
    clip : Tensor (T, 3, H, W)
        Float in [0, 1] or uint8. Enlarged by an integer factor to a height of at least 128 pixels. yuv420p needs even
        sides: an odd side repeats its last line.
    fps : float
        Frames per second, above 0.

    Raises
    ------
    ValueError : the clip has the wrong shape or contains NaN, or the frame rate is out of range.
    OSError : the file cannot be written.
    """
    import av  # loads ffmpeg, which only MP4 files need
    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be above 0 and finite, got {fps}")
    frames = _enlarge(_check_clip(clip), MIN_HEIGHT).permute(0, 2, 3, 1).numpy()
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    encoder = next(name for name in MP4_ENCODERS if name in av.codecs_available)
    with iio.imopen("<bytes>", "w", plugin="pyav", extension=".mp4") as file:
        file.init_video_stream(encoder, fps=fps, pixel_format="yuv420p")
        file._video_stream.options = MP4_ENCODERS[encoder]  # imageio has no argument for the quality
        content = file.write(frames)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def shrink_gif(path: str | Path | BinaryIO, labelled: bool) -> bytes:
    """A GIF from `write_gif` or `side_by_side_gif` at the model's resolution and without labels.

    It takes a fraction of the bytes, for a page that enlarges it again. A GIF that was not enlarged keeps its size.

    Parameters
    ----------
    labelled : whether the clips have labels above them, as `side_by_side_gif` writes them.

    Raises
    ------
    OSError, ValueError, EOFError, SyntaxError : the file cannot be read; the exceptions are Pillow's.
    """
    with Image.open(path) as gif:
        width, height = gif.size
        if labelled:
            height = next((rows for rows in range(height) if rows + _band_height(rows) == height), height)
        box = (0, gif.height - height, width, gif.height)
        factors = [factor for factor in range(1, MIN_HEIGHT + 1) if height % factor == width % factor == 0]
        for index in range(0, gif.n_frames, 16):  # a few frames suffice to find the factor
            gif.seek(index)
            frame = np.asarray(gif.convert("RGB").crop(box))
            factors = [factor for factor in factors if np.array_equal(
                frame, frame[::factor, ::factor].repeat(factor, 0).repeat(factor, 1))]
        frames, durations = [], []
        for frame in ImageSequence.Iterator(gif):
            durations.append(frame.info.get("duration", 0))
            frames.append(np.asarray(frame.convert("RGB").crop(box))[::factors[-1], ::factors[-1]])
    return _encode_gif(np.stack(frames), durations)


def side_by_side_gif(truth: Tensor, prediction: Tensor, poses: Tensor, path: str | Path, fps: float = 20) -> None:
    """Write a GIF of truth | prediction | pose with labels above.

    Parameters
    ----------
    truth, prediction, poses : (T, 3, H, W), float in [0, 1] or uint8.

    Raises
    ------
    ValueError, OSError : as `tile` and `write_gif`.
    """
    # Before they are enlarged: it takes a fraction of the memory.
    clips = [_hold_colours(_check_clip(clip)) for clip in (truth, prediction, poses)]
    _save_gif(tile(*clips, labels=LABELS, min_height=GIF_HEIGHT), path, fps)


def side_by_side_mp4(truth: Tensor, prediction: Tensor, poses: Tensor, path: str | Path, fps: float = 20) -> None:
    """Write an MP4 of truth | prediction | pose with labels above: larger than the GIF, in full quality.

    Parameters and exceptions are those of `side_by_side_gif`.
    """
    write_mp4(tile(truth, prediction, poses, labels=LABELS), path, fps)


def _check_clip(clip: Tensor) -> Tensor:
    """The clip as uint8 on the CPU. ValueError: wrong shape or NaN."""
    if clip.dim() != 4 or clip.shape[1] != 3 or clip.numel() == 0:
        raise ValueError(f"a clip must have shape (T, 3, H, W) with T at least 1, got {tuple(clip.shape)}")
    return to_uint8(clip.detach()).cpu()


def _factor(clip: Tensor, min_height: int) -> int:
    return math.ceil(min_height / clip.shape[2])


def _enlarge(clip: Tensor, min_height: int) -> Tensor:
    """Repeat pixels, so that nothing is smoothed."""
    return functional.interpolate(clip, scale_factor=_factor(clip, min_height), mode="nearest-exact")


def _band_height(height: int) -> int:
    return max(16, height // 8 // 2 * 2)


def _label_band(label: str, clip: Tensor) -> Tensor:
    """(T, 3, band, W): black text on white, to go above a clip."""
    height, width = _band_height(clip.shape[2]), clip.shape[3]
    band = Image.new("RGB", (width, height), "white")
    font = ImageFont.load_default(size=0.75 * height)
    ImageDraw.Draw(band).text((width / 2, height / 2), label, fill="black", font=font, anchor="mm")
    return torch.from_numpy(np.array(band)).permute(2, 0, 1).expand(len(clip), 3, height, width)


def _hold_colours(clip: Tensor) -> Tensor:
    """Replace each pixel's colours, while they differ by at most GIF_TOLERANCE, by their mean: uint8 (T, 3, H, W).

    The mean, not the first of them, so that the noise of a single frame does not stay.
    """
    rows = max(1, HELD_PIXELS // (len(clip) * clip.shape[3]))
    return torch.cat([_hold_band(band) for band in clip.split(rows, dim=2)], dim=2)


def _hold_band(clip: Tensor) -> Tensor:
    frames = clip.numpy()
    low = high = frames[0]
    is_start = np.ones((len(frames), *frames.shape[2:]), dtype=bool)  # of a run of colours to be averaged
    for index, frame in enumerate(frames[1:], start=1):
        low, high = np.minimum(low, frame), np.maximum(high, frame)
        is_start[index] = (high - low > GIF_TOLERANCE).any(axis=0)
        low, high = (np.where(is_start[index], frame, bound) for bound in (low, high))
    runs = is_start.transpose(1, 2, 0).ravel().cumsum().reshape(*frames.shape[2:], -1).transpose(2, 0, 1) - 1
    counts = np.bincount(runs.ravel())
    means = [(np.bincount(runs.ravel(), channel.ravel()) / counts).round() for channel in frames.swapaxes(0, 1)]
    return torch.from_numpy(np.stack([mean.astype(np.uint8)[runs] for mean in means], axis=1))


def _save_gif(clip: Tensor, path: str | Path, fps: float) -> None:
    if not 0 < fps <= 50:
        raise ValueError(f"fps of a GIF must be above 0 and at most 50, got {fps}")
    # GIF has a resolution of 10 ms. Rounding the times, not the durations, keeps the error from accumulating.
    times = [10 * round(100 * index / fps) for index in range(len(clip) + 1)]
    content = _encode_gif(clip.permute(0, 2, 3, 1).numpy(), np.diff(times).tolist(), _factor(clip, GIF_HEIGHT))
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _encode_gif(frames: np.ndarray, durations: list[int], factor: int = 1) -> bytes:
    """A GIF of frames, uint8 (T, H, W, 3), each enlarged by ``factor`` and shown for its duration in ms.

    The palette comes from median cut and k-means over pixels sampled from the whole clip.
    """
    if frames[..., 0].size > PALETTE_SAMPLES:
        rng = np.random.default_rng(0)
        pixels = frames[tuple(rng.integers(side, size=(PALETTE_SAMPLES, 1)) for side in frames.shape[:3])]
    else:
        pixels = frames.reshape(-1, 1, 3)
    palette = Image.fromarray(pixels).quantize(GIF_COLOURS, method=Image.Quantize.MEDIANCUT, kmeans=1)
    indices = np.stack([Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames])
    return iio.imwrite("<bytes>", indices.repeat(factor, 1).repeat(factor, 2), plugin="pillow", extension=".gif",
                       is_batch=True, save_all=True, palette=bytes(palette.getpalette()), duration=durations, loop=0,
                       disposal=1, optimize=True)
