"""GIF and MP4 files."""
import io
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageSequence
from torch import Tensor

from modules.evaluation.metrics import to_uint8
from utils import atomic_write

SHOWN_HEIGHT = 128  # pixels: smaller clips are enlarged to at least this height
SEPARATOR = 2  # columns between the clips of a tile, before any enlargement
H264 = "libx264"  # ffmpeg's encoder; some builds leave it out for its licence
PALETTE_PIXELS = 1 << 17  # pixels of a clip that its GIF palette is made from


def tile(*clips: Tensor, labels: list[str] | None = None) -> Tensor:
    """Clips side by side with a thin grey line between them.

    Parameters
    ----------
    clips : (T, 3, H, W), float in [0, 1] or uint8; widths may differ.
    labels : one for each clip, written above it. The clips are enlarged first, so that letters are legible.

    Returns
    -------
    Tensor (T, 3, H', W')
        uint8. Without labels H' is H.

    Raises
    ------
    ValueError : no clip, clips of different length or height, more or fewer labels than clips, NaN.
    """
    clips = [_check_clip(clip) for clip in clips]
    if not clips:
        raise ValueError("tile needs at least one clip.")
    if len({(len(clip), clip.shape[2]) for clip in clips}) > 1:
        shapes = [tuple(clip.shape) for clip in clips]
        raise ValueError(f"Clips side by side need one length and one height, not the shapes {shapes}.")
    if labels is not None and len(labels) != len(clips):
        raise ValueError(f"tile got {len(labels)} labels for {len(clips)} clips.")
    separator = SEPARATOR
    if labels is not None:
        clips = [torch.cat([_label_band(label, clip), clip], dim=2)
                 for label, clip in zip(labels, map(_enlarge, clips), strict=True)]
        separator *= 2
    line = torch.full((*clips[0].shape[:3], separator), 128, dtype=torch.uint8)
    parts = [part for clip in clips for part in (line, clip)][1:]
    return torch.cat(parts, dim=3)


def write_gif(clip: Tensor, path: str | Path, fps: float = 20) -> None:
    """A GIF that shows every frame once, lasts T / fps seconds to the nearest 10 ms and loops for ever.

    One palette of 256 colours, made from pixels all over the clip, serves every frame: what does not move
    does not flicker, and only what moves is stored. Where frames repeat, one is stored and shown longer.

    Parameters
    ----------
    clip : Tensor (T, 3, H, W)
        Float in [0, 1] or uint8. Enlarged by a whole factor to a height of at least 128 pixels.
    fps : float
        Frames per second, above 0 and at most 50: viewers slow down GIFs with frames of 10 ms.

    Raises
    ------
    ValueError : the clip is no clip or holds NaN, or the frame rate is out of range.
    OSError : the file cannot be written.
    """
    if not 0 < fps <= 50:
        raise ValueError(f"A GIF shows more than 0 and at most 50 frames per second, not {fps}.")
    clip = _check_clip(clip)
    frames = clip.permute(0, 2, 3, 1).numpy()  # (T, H, W, 3)
    factor = _factor(clip)
    size = (clip.shape[3] * factor, clip.shape[2] * factor)
    palette = _palette(frames)
    pictures = (Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
                .resize(size, Image.Resampling.NEAREST) for frame in frames)
    # GIF counts time in 10 ms. Rounding the moments, not the durations, keeps the error from adding up.
    moments = [round(100 * index / fps) for index in range(len(frames) + 1)]
    durations = [10 * (end - start) for start, end in zip(moments[:-1], moments[1:], strict=True)]
    with atomic_write(path) as temporary:
        next(pictures).save(temporary, format="GIF", save_all=True, append_images=pictures,
                            duration=durations, loop=0, disposal=1)


def write_mp4(clip: Tensor, path: str | Path, fps: float = 20) -> None:
    """An H.264 video that common players show (yuv420p), or MPEG-4 where PyAV was built without libx264.

    Parameters
    ----------
    clip : Tensor (T, 3, H, W)
        Float in [0, 1] or uint8. Enlarged as for a GIF; an odd side gets its last line twice for the codec.
    fps : float
        Frames per second, above 0.

    Raises
    ------
    ValueError : the clip is no clip or holds NaN, or the frame rate is not positive.
    OSError : the file cannot be written.
    """
    import av  # loads ffmpeg; only those who ask for an MP4 need it
    if not 0 < fps < math.inf:
        raise ValueError(f"A video shows more than 0 frames per second, not {fps}.")
    clip = _check_clip(clip)
    height, width = (side * _factor(clip) for side in clip.shape[2:])
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    with atomic_write(path) as temporary, av.open(str(temporary), "w", format="mp4",
                                                options={"movflags": "faststart"}) as container:
        stream = _video_stream(container, Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        for frame in clip:
            pixels = np.pad(_enlarge(frame[None])[0].permute(1, 2, 0).numpy(), pad, mode="edge")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def shrink_gif(path: str | Path, labelled: bool) -> bytes:
    """The GIF with one pixel for each of the model's own, and without labels: a fraction of the bytes.

    For a page that enlarges it again. One that is not enlarged by a whole factor keeps its size.

    Parameters
    ----------
    labelled : whether there are labels above the clips, as ``side_by_side_gif`` writes them.

    Raises
    ------
    OSError, ValueError, EOFError, SyntaxError : it cannot be read, as Pillow says it.
    """
    with Image.open(path) as picture:
        width, height = picture.size
        if labelled:
            height = next((rows for rows in range(height) if rows + _band_height(rows) == height), height)
        box = (0, picture.height - height, width, picture.height)
        sample = [np.asarray(frame.convert("RGB").crop(box)) for index, frame in
                  enumerate(ImageSequence.Iterator(picture)) if index % 16 == 0]
        factor = next(factor for factor in range(SHOWN_HEIGHT, 0, -1) if height % factor == width % factor == 0 and all(
            np.array_equal(frame, frame[::factor, ::factor].repeat(factor, 0).repeat(factor, 1)) for frame in sample))
        picture.seek(0)
        palette, frames, durations = picture.copy(), [], []
        for frame in ImageSequence.Iterator(picture):
            durations.append(frame.info.get("duration", 0))
            small = frame.convert("RGB").crop(box).resize((width // factor, height // factor), Image.Resampling.NEAREST)
            frames.append(small.quantize(palette=palette, dither=Image.Dither.NONE))
    shrunk = io.BytesIO()
    frames[0].save(shrunk, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0,
                   disposal=1)
    return shrunk.getvalue()


def side_by_side_gif(
    truth: Tensor, prediction: Tensor, poses: Tensor, path: str | Path, fps: float = 20
) -> None:
    """A GIF of truth | prediction | pose with their names above.

    Parameters
    ----------
    truth, prediction, poses : (T, 3, H, W), float in [0, 1] or uint8.

    Raises
    ------
    ValueError, OSError : as `tile` and `write_gif`.
    """
    write_gif(tile(truth, prediction, poses, labels=["truth", "prediction", "pose"]), path, fps)


def _check_clip(clip: Tensor) -> Tensor:
    """The clip as uint8 on the CPU. ValueError: it is no clip."""
    if clip.dim() != 4 or clip.shape[1] != 3 or clip.numel() == 0:
        raise ValueError(f"A clip has shape (T, 3, H, W) with T at least 1, not {tuple(clip.shape)}.")
    return to_uint8(clip.detach()).cpu()


def _factor(clip: Tensor) -> int:
    return math.ceil(SHOWN_HEIGHT / clip.shape[2])


def _enlarge(clip: Tensor) -> Tensor:
    """Every pixel as a square, so that the model's own pixels are seen and nothing is smoothed over."""
    factor = _factor(clip)
    return clip.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def _band_height(height: int) -> int:
    return max(16, height // 8 // 2 * 2)


def _label_band(label: str, clip: Tensor) -> Tensor:
    """(T, 3, band, W): a label on white, to go above a clip."""
    height, width = _band_height(clip.shape[2]), clip.shape[3]
    band = Image.new("RGB", (width, height), "white")
    font = ImageFont.load_default(size=0.75 * height)
    ImageDraw.Draw(band).text((width / 2, height / 2), label, fill="black", font=font, anchor="mm")
    return torch.from_numpy(np.array(band)).permute(2, 0, 1).expand(len(clip), 3, height, width)


def _palette(frames: np.ndarray) -> Image.Image:
    """256 colours for a whole clip (T, H, W, 3): median cut over pixels from all over it, then k-means."""
    if frames.size <= 3 * PALETTE_PIXELS:
        pixels = frames.reshape(-1, 1, 3)
    else:
        dice = np.random.default_rng(0)
        pixels = frames[tuple(dice.integers(side, size=(PALETTE_PIXELS, 1)) for side in frames.shape[:3])]
    return Image.fromarray(pixels).quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)


def _video_stream(container, rate: Fraction):
    """Constant quality close to lossless: CRF 16 of H.264, or MPEG-4's quantiser 2."""
    import av
    try:
        return container.add_stream(H264, rate=rate, options={"crf": "16", "preset": "medium"})
    except av.codec.codec.UnknownCodecError:
        return container.add_stream("mpeg4", rate=rate, options={"qmin": "2", "qmax": "2"})
