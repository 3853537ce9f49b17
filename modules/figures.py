"""Every plot, GIF and MP4.

Files are replaced whole (files.py). Matplotlib is imported by the first plot, so that training starts without it,
and is used through its figure objects: nothing is shared with a notebook's pyplot.

`history` is a list of dicts, one per epoch, with the keys epoch, train_loss, train_mse, train_kl, beta, tfr,
tf_used, lr, val_loss, val_psnr. val_loss and val_psnr are None in epochs without validation; any may be NaN.
"""
import io
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageSequence
from torch import Tensor

from modules.files import replacing
from modules.metrics import SCORED_FRAMES, slope, to_uint8

# Okabe and Ito's palette: the colours stay apart for every kind of colour vision, and in grey as well.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, GREY = "#56B4E9", "#E69F00", "#666666"
CYCLE = [(BLUE, "-"), (VERMILION, "-"), (GREEN, "-"), (GREY, "--"), (PURPLE, "-"), (ORANGE, "--"), (SKY, ":")]
RUN_COLOURS, RUN_STYLES = [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY], ["-", "--", ":", "-."]
DPI = 120
COMPARED_WIDTH, COMPARED_DPI = 5.5, 175  # inches; as many pixels as the others, with letters for a telephone
CROWDED = 300  # epochs from which on compared lines are thinner: what jumps up and down would become a surface
LONGEST_NAME = 40  # letters of a run's name that a legend has room for, with a remark after it
FAR_APART = 20  # ratio of two runs' KL weights from which on the smaller would be a flat line on a linear scale
MARKED_POINTS = 40  # up to so many points each gets a dot; more would merge into a thick line
SLOPE_FROM = 120  # frames: the slope of a shorter roll-out says nothing about a long one
SHOWN_HEIGHT = 128  # pixels: smaller clips are enlarged to at least this height
SEPARATOR = 2  # columns between the clips of a tile, before any enlargement
H264 = "libx264"  # ffmpeg's encoder; some builds leave it out for its licence
PALETTE_PIXELS = 1 << 17  # pixels of a clip that its GIF palette is made from


# Plots

def plot_losses(history: list[dict], path: str | Path) -> None:
    """Training and validation loss over the epochs; below them the validation PSNR with its best epoch.

    The two losses are no rivals on one scale: a training loss adds up the frames of a clip, the mean squared error of
    each or its logarithm, and beta times the KL divergence; a validation loss is the mean squared error of a frame.
    The labels say so.

    Raises
    ------
    OSError : the file cannot be written.
    """
    figure, (loss, quality) = _panels(2, heights=(3, 2))
    # The wide pale line stays visible where the objective is the MSE, the KL adds next to nothing, and both coincide.
    _curve(loss, history, "train_mse", SKY, "train: MSE, sum over a clip's frames", width=3.5)
    _curve(loss, history, "train_loss", BLUE, "train: the objective, sum over a clip's frames")
    _curve(loss, history, "val_loss", VERMILION, "validation: MSE, mean per frame")
    _mark_lost(loss, history, "train_loss", "train_mse", "val_loss")
    _log_scale(loss, history, "train_loss", "train_mse", "val_loss")
    loss.set_ylabel("loss")
    _curve(quality, history, "val_psnr", GREEN, "validation PSNR")
    _mark_lost(quality, history, "val_psnr")
    _mark_best(quality, history, "val_psnr")
    quality.set_ylabel("PSNR (dB)")
    _finish(figure, [loss, quality], path, "Loss and validation PSNR")


def plot_teacher_forcing(history: list[dict], path: str | Path) -> None:
    """Teacher-forcing ratio, KL weight and loss over the epochs; those that used teacher forcing are shaded.

    Raises
    ------
    OSError : the file cannot be written.
    """
    figure, (ratio, weight, loss) = _panels(3, heights=(2, 1.3, 2.4))
    _curve(ratio, history, "tfr", PURPLE, "teacher-forcing ratio")
    ratio.set(ylabel="ratio", ylim=(-0.05, 1.05))
    _curve(weight, history, "beta", ORANGE, "KL weight β")
    weight.set_ylabel("β")
    weight.set_ylim(bottom=min(0.0, weight.get_ylim()[0]))
    _curve(loss, history, "train_loss", BLUE, "train loss, sum over a clip's frames")
    _curve(loss, history, "val_loss", VERMILION, "validation loss, mean per frame")
    _mark_lost(loss, history, "train_loss", "val_loss")
    _log_scale(loss, history, "train_loss", "val_loss")
    loss.set_ylabel("loss")
    label = "epochs that used teacher forcing"
    for start, end in _runs([row["epoch"] for row in history if _number(row.get("tf_used")) > 0]):
        for panel in (ratio, weight, loss):
            panel.axvspan(start - 0.5, end + 0.5, color=SKY, alpha=0.25, linewidth=0, zorder=0, label=label)
            label = None  # one entry in the first panel's legend stands for all
    _finish(figure, [ratio, weight, loss], path, "Teacher forcing, KL weight and loss")


def plot_psnr(curves: dict[str, Tensor | list[float]], path: str | Path, title: str,
              brightness: dict[str, Tensor | list[float]] | None = None) -> None:
    """PSNR per frame of one or more roll-outs; the legend gives each one's mean and, where it is long, its slope.

    Parameters
    ----------
    curves : label -> dB of the frames 1, 2, ... (the given frame 0 is left out by the caller).
    brightness : label -> brightness error of the same frames, drawn below; the labels are those of ``curves``.

    Raises
    ------
    OSError : the file cannot be written.
    """
    figure, (panel, *below) = _panels(1 + bool(brightness), heights=(3.2, 1.6)[:1 + bool(brightness)])
    styles, note = {}, ""
    for index, (label, values) in enumerate(curves.items()):
        values = torch.as_tensor(values, dtype=torch.float64).flatten().tolist()
        styles[label] = CYCLE[index % len(CYCLE)]
        mean = f"mean {np.mean(values):.2f} dB" if values else "no frame"
        if len(values) >= SLOPE_FROM:
            mean += f", slope {slope(values[:SCORED_FRAMES]):+.1f}"  # of the frames that drift() takes
            note = "; slopes in dB per 600 frames"
        _per_frame(panel, values, *styles[label], f"{label}, {mean}")
    panel.set(ylabel="PSNR (dB)")
    if brightness:
        below[0].axhline(0, color=GREY, linewidth=0.8, zorder=0)
        for label, values in brightness.items():
            _per_frame(below[0], torch.as_tensor(values, dtype=torch.float64).flatten().tolist(), *styles[label])
        below[0].set_ylabel("brightness error")
    _finish(figure, [panel, *below], path, title + note, "frame")


def _per_frame(panel, values: list[float], color: str, style: str, label: str | None = None) -> None:
    marker = "." if len(values) <= MARKED_POINTS else None
    panel.plot(range(1, len(values) + 1), values, style, color=color, marker=marker, linewidth=1.3, label=label)


# Plots that compare runs: `runs` is run's name -> history, which may be empty. A run has one colour everywhere.

def run_style(index: int) -> tuple[str, str]:
    """Colour and line style of run number ``index``; 28 of them differ."""
    return RUN_COLOURS[index % len(RUN_COLOURS)], RUN_STYLES[index // len(RUN_COLOURS) % len(RUN_STYLES)]


def best(history: list[dict], key: str) -> tuple[int, float] | None:
    """Epoch and value of a column's largest finite number."""
    points = [point for point in zip(*_points(history, key), strict=True) if math.isfinite(point[1])]
    return max(points, key=lambda point: point[1]) if points else None


def compare_losses(runs: dict[str, list[dict]], path: str | Path) -> None:
    """Training loss, its parts MSE and KL, and validation loss of several runs, each in a panel with a log scale.

    Raises
    ------
    OSError : the file cannot be written.
    """
    titles = {"train_loss": "training loss: the objective, sum over a clip's frames",
              "train_mse": "training MSE, sum over a clip's frames",
              "train_kl": "training KL divergence, sum over a clip's frames",
              "val_loss": "validation loss: MSE, mean per frame, free-running"}
    figure, panels = _compare_panels("Losses", runs, heights=(2,) * 4, lost=tuple(titles))
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        _compare_curves(panel, runs, key, title)
        _log_scale(panel, [row for history in runs.values() for row in history], key)
    _finish(figure, panels, path)


def compare_schedules(runs: dict[str, list[dict]], path: str | Path) -> None:
    """KL weight and teacher-forcing ratio of several runs against their losses.

    Shades of several runs would cover each other. So the epochs that used teacher forcing are bars in a row for each
    run, in the order of the legend, right below the ratio and above the losses.

    Raises
    ------
    OSError : the file cannot be written.
    """
    heights = (1.4, 1.4, 0.3 + 0.2 * len(runs), 2, 2)
    figure, panels = _compare_panels("KL weight and teacher forcing against loss", runs, heights,
                                     lost=("train_loss", "val_loss"))
    weight, ratio, used, train, val = panels
    _compare_curves(weight, runs, "beta", "KL weight β")
    tops = [top[1] for history in runs.values() if (top := best(history, "beta")) and top[1] > 0]
    if tops and max(tops) > FAR_APART * min(tops):
        weight.set_yscale("log", nonpositive="clip")  # a weight of 0 lies below the panel
    else:
        weight.set_ylim(bottom=min(0.0, weight.get_ylim()[0]))
    _compare_curves(ratio, runs, "tfr", "teacher-forcing ratio")
    ratio.set_ylim(-0.05, 1.05)
    used.set_title("epochs that used teacher forcing (height: share of the clips)", loc="left", fontsize=10)
    for index, history in enumerate(runs.values()):
        _bars(used, history, len(runs) - 1 - index, run_style(index)[0])
    used.set(yticks=[], ylim=(-0.1, len(runs)))
    for panel, key, title in ((train, "train_loss", "training loss, sum over a clip's frames"),
                              (val, "val_loss", "validation loss, mean per frame, free-running")):
        _compare_curves(panel, runs, key, title)
        _log_scale(panel, [row for history in runs.values() for row in history], key)
    _finish(figure, panels, path)


def compare_quality(runs: dict[str, list[dict]], path: str | Path) -> None:
    """Validation PSNR of several runs over the epochs, with each one's best.

    Raises
    ------
    OSError : the file cannot be written.
    """
    labels = {}
    for name, history in runs.items():
        top = best(history, "val_psnr")
        labels[name] = f", best {top[1]:.2f} dB in epoch {top[0]}" if top else ", not validated" if history else ""
    figure, (panel,) = _compare_panels("Validation PSNR", runs, heights=(3.5,), lost=("val_psnr",), remarks=labels)
    _compare_curves(panel, runs, "val_psnr", "mean over the frames of the free-running validation roll-out")
    for index, history in enumerate(runs.values()):
        _mark_best(panel, history, "val_psnr", run_style(index)[0], in_legend=False)
    panel.set_ylabel("PSNR (dB)")
    _finish(figure, [panel], path)


def compare_psnr_per_frame(moments: dict[str, dict[str, tuple[int, list[float]] | None]], path: str | Path) -> None:
    """PSNR of each frame of the validation roll-outs of several runs, a panel for each moment of the training.

    Parameters
    ----------
    moments : the panel's title -> run's name -> epoch and dB of the frames 1, 2, ..., or None where a run has not
        recorded them. Each moment names all runs in the same order.

    Raises
    ------
    OSError : the file cannot be written.
    """
    rows = sum(map(len, moments.values()))
    figure, panels = _panels(len(moments), (2.6,) * len(moments), COMPARED_WIDTH, COMPARED_DPI, legend_rows=rows)
    for panel, (title, curves) in zip(panels, moments.items(), strict=True):
        for index, (name, recorded) in enumerate(curves.items()):
            color, style = run_style(index)
            epoch, values = recorded or (0, [])
            remark = f", epoch {epoch}, mean {np.mean(values):.2f} dB" if values else ", not recorded"
            panel.plot(range(1, len(values) + 1), [value if math.isfinite(value) else math.nan for value in values],
                       style, color=color, linewidth=_run_width(index, len(curves)),
                       marker="." if 0 < len(values) <= MARKED_POINTS else None, label=_legend_text(name) + remark)
        panel.set_ylabel(f"PSNR (dB), {title}")
    _finish(figure, list(panels), path, "PSNR per frame of the validation roll-out", "frame", legend_columns=1)


def _compare_panels(title: str, runs: dict[str, list[dict]], heights: tuple[float, ...], lost: tuple[str, ...],
                    remarks: dict[str, str] | None = None) -> tuple:
    """A figure with panels and one legend above them all: its title, which line is which run, a remark on each.

    ``lost`` are the columns whose lost numbers are going to be marked.
    """
    from matplotlib.lines import Line2D
    handles = []
    for index, (name, history) in enumerate(runs.items()):
        color, style = run_style(index)
        remark = (remarks or {}).get(name, "") if history else ", no epoch yet"
        handles.append(Line2D([], [], color=color, linestyle=style, label=_legend_text(name) + remark))
    if any(_lost(history, lost) for history in runs.values()):
        handles.append(Line2D([], [], color="black", linestyle="", marker="x", markersize=5,
                              label="not a finite number"))
    columns = 2 if max(len(handle.get_label()) for handle in handles) <= 30 else 1
    rows = math.ceil(len(handles) / columns)
    figure, panels = _panels(len(heights), heights, COMPARED_WIDTH, COMPARED_DPI, rows)
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=9, title=title,
                  title_fontsize=12, alignment="left")
    return figure, list(panels)


def _run_width(index: int, count: int) -> float:
    """Line width. The first runs have wider lines, so that they can be seen below others that coincide."""
    return 1.2 + 1.6 * (count - 1 - index) / max(1, count - 1)


def _legend_text(name: str) -> str:
    """A run's name for a legend: not too long, and nothing in it that matplotlib takes for its own signs."""
    if len(name) > LONGEST_NAME:
        half = LONGEST_NAME // 2
        name = f"{name[:half]}…{name[-half:]}"
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _compare_curves(panel, runs: dict[str, list[dict]], key: str, title: str) -> None:
    """Draw a column of all runs. Lost numbers are marked at the foot, a row for each run."""
    panel.set_title(title, loc="left", fontsize=10)
    span = max((history[-1]["epoch"] for history in runs.values() if history), default=0)
    for index, history in enumerate(runs.values()):
        color, style = run_style(index)
        width = _run_width(index, len(runs)) / (2 if span > CROWDED else 1)
        _curve(panel, history, key, color, None, width, style, span)
        _mark_lost(panel, history, key, color=color, label=None, foot=0.03 + 0.05 * (index % 8))


def _bars(panel, history: list[dict], row: int, color: str) -> None:
    """The share of clips under teacher forcing as bars on the line ``row``, which is as long as the run."""
    shares, edges = [], []
    for entry in history:
        if not edges or edges[-1] != entry["epoch"] - 0.5:  # the first epoch, or one after a gap
            shares += [0.0] * bool(edges)
            edges.append(entry["epoch"] - 0.5)
        used = _number(entry.get("tf_used"))
        shares.append(0.85 * used if used > 0 else 0.0)
        edges.append(entry["epoch"] + 0.5)
    if edges:
        panel.stairs([row + share for share in shares], edges, baseline=row, fill=True, color=color, linewidth=0)
        panel.plot([edges[0], edges[-1]], [row, row], color=color, linewidth=0.8)


# Parts of plots

def _panels(count: int, heights: tuple[float, ...], width: float = 8, dpi: int = DPI, legend_rows: int = 0) -> tuple:
    """A figure with panels below each other that share the x axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    size = (width, 1.2 + 1.15 * sum(heights) + 0.18 * legend_rows)
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(count, sharex=True, squeeze=False, height_ratios=heights)[:, 0]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _points(history: list[dict], key: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one column; epochs without a value are left out, NaN stays."""
    rows = [(row["epoch"], _number(row[key])) for row in history if row.get(key) is not None]
    return [epoch for epoch, _ in rows], [value for _, value in rows]


def _curve(panel, history: list[dict], key: str, color: str, label: str | None, width: float = 1.5,
           style: str = "-", span: int = 0) -> None:
    """Draw a column over the epochs. What is not finite breaks the line. ``span``: epochs that the panel shows."""
    epochs, values = _points(history, key)
    values = [value if math.isfinite(value) else math.nan for value in values]
    own = max(1, epochs[-1] - epochs[0]) if epochs else 1
    marker = "o" if (len(epochs) - 1) * max(1, span / own) < MARKED_POINTS else None
    if not all(map(math.isnan, values)):
        panel.plot(epochs, values, style, color=color, linewidth=width, marker=marker, markersize=1.5 + width,
                   label=label)


def _lost(history: list[dict], keys: tuple[str, ...]) -> list[int]:
    """The epochs in which one of the columns holds a number that is not finite."""
    return sorted({epoch for key in keys for epoch, value in zip(*_points(history, key), strict=True)
                   if not math.isfinite(value)})


def _mark_lost(panel, history: list[dict], *keys: str, color: str = "black", label: str | None = "not a finite number",
               foot: float = 0.03) -> None:
    """Mark the epochs with a number that is not finite at the panel's foot: divergence must be seen."""
    lost = _lost(history, keys)
    if lost:
        panel.plot(lost, [foot] * len(lost), "x", color=color, markersize=5,
                   transform=panel.get_xaxis_transform(), label=label)


def _log_scale(panel, history: list[dict], *keys: str) -> None:
    """Log scale, unless none of the columns has anything positive: an empty log axis has no ticks."""
    if any(0 < value < math.inf for key in keys for value in _points(history, key)[1]):
        panel.set_yscale("log", nonpositive="mask")


def _mark_best(panel, history: list[dict], key: str, color: str = GREEN, in_legend: bool = True) -> None:
    top = best(history, key)
    if top:
        label = f"best: {top[1]:.2f} dB in epoch {top[0]}" if in_legend else None
        panel.plot([top[0]], [top[1]], "o", color=color, markersize=7, markerfacecolor="white",
                   markeredgewidth=1.5, label=label)


def _runs(epochs: list[int]) -> Iterator[tuple[int, int]]:
    """First and last epoch of each run of consecutive epochs."""
    start = previous = None
    for epoch in epochs:
        if previous is None or epoch != previous + 1:
            if start is not None:
                yield start, previous
            start = epoch
        previous = epoch
    if start is not None:
        yield start, previous


def _finish(figure, panels: list, path: str | Path, title: str = "", x_label: str = "epoch",
            legend_columns: int = 2) -> None:
    """Grid, legends beside the data, whole numbers on the x axis; then write the file."""
    from matplotlib.ticker import MaxNLocator
    for panel in panels:
        panel.grid(True, which="major", color="#DDDDDD", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        if all(line.get_marker() == "x" for line in panel.get_lines()):
            panel.text(0.5, 0.5, "no value", color=GREY, ha="center", va="center", transform=panel.transAxes)
            panel.set_yticks([])
        if panel.get_legend_handles_labels()[0]:
            panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=legend_columns, frameon=False, fontsize=9,
                         borderaxespad=0.2)
    panels[-1].set_xlabel(x_label)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    first, last = panels[-1].get_xlim()
    if last - first < 1:  # a single epoch or none
        middle = round((first + last) / 2)
        panels[-1].set_xlim(middle - 0.6, middle + 0.6)
    if title:
        figure.suptitle(title, fontsize=12)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:])


# Pictures that move

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
    with replacing(path) as temporary:
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
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4",
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
