"""Plots of one run."""
from collections.abc import Iterator
from itertools import cycle, groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modules.evaluation.metrics import SCORED_FRAMES, slope
from modules.plots.style import (
    BLUE,
    GREEN,
    GREY,
    MAX_MARKED_POINTS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    draw_column,
    make_panels,
    mark_best,
    mark_non_finite,
    save_figure,
    set_log_scale,
    to_float,
)

CYCLE = [(BLUE, "-"), (VERMILION, "-"), (GREEN, "-"), (GREY, "--"), (PURPLE, "-"), (ORANGE, "--"), (SKY, ":")]
MIN_SLOPE_FRAMES = 120  # the slope of a shorter rollout says nothing about a long one


def plot_losses(history: list[dict], path: str | Path) -> None:
    """Training and validation loss over the epochs; below them the validation PSNR with its best epoch.

    The two losses have different units: a training loss sums the errors of a clip's frames and beta times the KL
    divergence; a validation loss is the mean squared error of one frame. The legend says so.

    Raises
    ------
    OSError : the file cannot be written.
    """
    figure, (loss, quality) = make_panels((3, 2))
    # Wide and pale, so that it stays visible below the objective where the two coincide (MSE loss, small KL term).
    draw_column(loss, history, "train_mse", SKY, "train: MSE, sum over a clip's frames", width=3.5)
    draw_column(loss, history, "train_loss", BLUE, "train: objective, sum over a clip's frames")
    draw_column(loss, history, "val_loss", VERMILION, "validation: MSE, mean per frame")
    mark_non_finite(loss, history, "train_loss", "train_mse", "val_loss")
    set_log_scale(loss, history, "train_loss", "train_mse", "val_loss")
    loss.set_ylabel("loss")
    draw_column(quality, history, "val_psnr", GREEN, "validation PSNR")
    mark_non_finite(quality, history, "val_psnr")
    mark_best(quality, history, "val_psnr")
    quality.set_ylabel("PSNR (dB)")
    save_figure(figure, [loss, quality], path, "Loss and validation PSNR")


def plot_teacher_forcing(history: list[dict], path: str | Path) -> None:
    """Teacher-forcing ratio, KL weight and loss over the epochs. Epochs that used teacher forcing are shaded.

    Raises
    ------
    OSError : the file cannot be written.
    """
    figure, (ratio, weight, loss) = make_panels((2, 1.3, 2.4))
    draw_column(ratio, history, "tfr", PURPLE, "teacher-forcing ratio")
    ratio.set(ylabel="ratio", ylim=(-0.05, 1.05))
    draw_column(weight, history, "beta", ORANGE, "KL weight β")
    weight.set_ylabel("β")
    weight.set_ylim(bottom=min(0.0, weight.get_ylim()[0]))
    draw_column(loss, history, "train_loss", BLUE, "train loss, sum over a clip's frames")
    draw_column(loss, history, "val_loss", VERMILION, "validation loss, mean per frame")
    mark_non_finite(loss, history, "train_loss", "val_loss")
    set_log_scale(loss, history, "train_loss", "val_loss")
    loss.set_ylabel("loss")
    label = "epochs that used teacher forcing"
    for first, last in _intervals([row["epoch"] for row in history if to_float(row.get("tf_used")) > 0]):
        for panel in (ratio, weight, loss):
            panel.axvspan(first - 0.5, last + 0.5, color=SKY, alpha=0.25, linewidth=0, zorder=0, label=label)
            label = None  # one legend entry, in the first panel
    save_figure(figure, [ratio, weight, loss], path, "Teacher forcing, KL weight and loss")


def plot_psnr(curves: dict[str, Tensor | list[float]], path: str | Path, title: str,
              brightness: dict[str, Tensor | list[float]] | None = None) -> None:
    """PSNR per frame of one or more rollouts. The legend gives each mean and, for long rollouts, the slope.

    Parameters
    ----------
    curves : label -> PSNR in dB of the frames 1, 2, ... (without the given frame 0).
    brightness : label -> brightness error of the same frames in -1..1, drawn below, with labels of ``curves``.

    Raises
    ------
    OSError : the file cannot be written.
    """
    figure, (quality, *below) = make_panels((3.2, 1.6) if brightness else (3.2,))
    styles = dict(zip(curves, cycle(CYCLE), strict=False))
    note = ""
    for label, values in curves.items():
        values = _to_list(values)
        summary = f"mean {np.mean(values):.2f} dB" if values else "no frame"
        if len(values) >= MIN_SLOPE_FRAMES:
            summary += f", slope {slope(values[:SCORED_FRAMES]):+.1f}"  # over the same frames as metrics.drift
            note = "; slopes in dB per 600 frames"
        _draw_frames(quality, values, *styles[label], f"{label}, {summary}")
    quality.set(ylabel="PSNR (dB)")
    if brightness:
        below[0].axhline(0, color=GREY, linewidth=0.8, zorder=0)
        for label, values in brightness.items():
            _draw_frames(below[0], _to_list(values), *styles[label])
        below[0].set_ylabel("brightness error")
    save_figure(figure, [quality, *below], path, title + note, "frame")


def _to_list(values: Tensor | list[float]) -> list[float]:
    return torch.as_tensor(values).flatten().tolist()


def _draw_frames(panel, values: list[float], color: str, style: str, label: str | None = None) -> None:
    marker = "." if len(values) <= MAX_MARKED_POINTS else None
    panel.plot(range(1, len(values) + 1), values, style, color=color, marker=marker, linewidth=1.3, label=label)


def _intervals(epochs: list[int]) -> Iterator[tuple[int, int]]:
    """First and last epoch of each interval of consecutive epochs."""
    for _, group in groupby(enumerate(epochs), key=lambda pair: pair[1] - pair[0]):
        interval = [epoch for _, epoch in group]
        yield interval[0], interval[-1]
