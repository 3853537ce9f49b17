"""Plots of one run."""
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modules.evaluation.metrics import SCORED_FRAMES, slope
from modules.plots.style import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    MARKED_POINTS,
    ORANGE,
    PURPLE,
    SKY,
    SLOPE_FROM,
    VERMILION,
    _curve,
    _finish,
    _log_scale,
    _mark_best,
    _mark_lost,
    _number,
    _panels,
    _runs,
)


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
