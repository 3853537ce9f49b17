"""Plots of one run."""
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modules.evaluation.metrics import MIN_SLOPE_FRAMES, SCORED_FRAMES, slope
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
    fit_columns,
    legend_text,
    limit_axis,
    make_panels,
    mark_best,
    mark_non_finite,
    save_figure,
    set_log_scale,
    to_float,
)

# Of sequences: the palette and darker shades of it. Grey is repeating the first frame.
SEQUENCE_COLOURS = [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY,
                    "#003A5C", "#6E3000", "#00523B", "#7A3F5D", "#7A5200", "#2B6A8C"]
SMOOTHED_FRAMES = 9  # that the running mean of a curve spans where several curves overlap


@dataclass
class Rollout:
    """Scores of a generated sequence, (T-1,) each: of the frames 1, 2, ..., without the given frame 0."""
    psnr: Tensor | list[float]  # dB
    repeat_first: Tensor | list[float]  # PSNR of repeating the first frame instead, dB
    restarted: Tensor | list[float] | None = None  # PSNR of a rollout that is restarted from real frames, dB
    brightness_error: Tensor | list[float] | None = None  # -1..1


def plot_losses(history: list[dict], path: str | Path) -> None:
    """Errors of training and validation over the epochs, the training objective, and the validation PSNR.

    Raises
    ------
    OSError : the file cannot be written.
    """
    figure, (error, objective, quality) = make_panels((2, 1.6, 2))
    _draw_errors(error, history)
    _draw_objective(objective, history)
    draw_column(quality, history, "val_psnr", GREEN, "validation PSNR, mean over the frames")
    mark_non_finite(quality, history, "val_psnr")
    mark_best(quality, history, "val_psnr")
    limit_axis(quality, history, val_psnr=GREEN)
    quality.set_ylabel("PSNR (dB)")
    save_figure(figure, [error, objective, quality], path, "Loss and validation PSNR")


def plot_teacher_forcing(history: list[dict], path: str | Path) -> None:
    """Teacher-forcing ratio, KL weight and losses over the epochs. Epochs that used teacher forcing are shaded.

    Raises
    ------
    OSError : the file cannot be written.
    """
    figure, panels = make_panels((1.6, 1.3, 1.6, 2))
    ratio, weight, objective, error = panels
    draw_column(ratio, history, "tfr", PURPLE, "teacher-forcing ratio")
    ratio.set(ylabel="ratio", ylim=(-0.05, 1.05))
    draw_column(weight, history, "beta", ORANGE, "KL weight β")
    weight.set_ylabel("β")
    weight.set_ylim(bottom=min(0.0, weight.get_ylim()[0]))
    _draw_objective(objective, history)
    _draw_errors(error, history)
    label = "epochs that used teacher forcing"
    for first, last in _intervals([row["epoch"] for row in history if to_float(row.get("tf_used")) > 0]):
        for panel in panels:
            panel.axvspan(first - 0.5, last + 0.5, color=SKY, alpha=0.25, linewidth=0, zorder=0, label=label)
            label = None  # one legend entry, in the first panel
    save_figure(figure, panels, path, "Teacher forcing, KL weight and loss")


def plot_psnr(rollouts: dict[str, Rollout], path: str | Path, title: str) -> None:
    """PSNR per frame of one or more rollouts and, below it, their brightness errors.

    A sequence has one colour, in which its restarted rollout is dashed. Repeating the first frame is one grey curve,
    the mean over the sequences that are long enough. The legends give the means and, for long rollouts, the slope.

    Parameters
    ----------
    rollouts : by the name of the sequence.

    Raises
    ------
    OSError : the file cannot be written.
    """
    labels, errors = {}, {}
    for name, rollout in rollouts.items():
        labels[name] = f"{legend_text(name)}: {_describe(rollout.psnr)}"
        if rollout.restarted is not None:
            labels[name] += f"; restarted {np.mean(_to_list(rollout.restarted)):.2f} dB"
        if rollout.brightness_error is not None:
            errors[name] = f"{legend_text(name)}: {_describe_range(rollout.brightness_error)}"
    rows = sum(-(-len(texts) // fit_columns(texts)) for texts in (labels.values(), errors.values()))
    figure, (quality, *below) = make_panels((3.2, 2) if errors else (3.2,), legend_rows=rows)
    has_restarts = any(rollout.restarted is not None for rollout in rollouts.values())
    is_crowded = len(rollouts) > 1 or has_restarts
    for index, (name, rollout) in enumerate(rollouts.items()):
        color = SEQUENCE_COLOURS[index % len(SEQUENCE_COLOURS)]
        _draw_frames(quality, rollout.psnr, color, labels[name], is_crowded)
        if rollout.restarted is not None:
            _draw_frames(quality, rollout.restarted, color, None, is_crowded, "--")
        if name in errors:
            _draw_frames(below[0], rollout.brightness_error, color, errors[name], is_crowded)
    if rollouts:
        baseline = _mean_curve([rollout.repeat_first for rollout in rollouts.values()])
        whose = ", mean of the sequences" if len(rollouts) > 1 else ""
        _draw_frames(quality, baseline, GREY, f"repeat the first frame{whose}: {_describe(baseline, with_slope=False)}")
        # Its first frames score far above all others and would squeeze the curves.
        highest = max(value for rollout in rollouts.values() for values in (rollout.psnr, rollout.restarted)
                      if values is not None for value in [0.0, *_to_list(values)])
        if max(_to_list(baseline), default=0) > highest + 2:
            quality.set_ylim(top=highest + 2)
    if has_restarts:
        quality.plot([], [], "--", color="black", label="restarted from real frames")
    quality.set_ylabel("PSNR (dB)")
    for panel in below:
        panel.axhline(0, color=GREY, linewidth=0.8, zorder=0, label="as bright as the truth; the range is -1..1")
        panel.set_ylabel("brightness error")
    is_smoothed = is_crowded and max(len(rollout.psnr) for rollout in rollouts.values()) >= MIN_SLOPE_FRAMES
    notes = [f"bold: mean over {SMOOTHED_FRAMES} frames"] * is_smoothed
    notes += ["slopes in dB per 600 frames"] * any("slope" in label for label in labels.values())
    save_figure(figure, [quality, *below], path, "; ".join([title, *notes]), "frame")


def _describe(psnr: Tensor | list[float], with_slope: bool = True) -> str:
    values = _to_list(psnr)
    if not values:
        return "no frame"
    is_long = with_slope and len(values) >= MIN_SLOPE_FRAMES
    # Over the same frames as metrics.start_end_slope.
    return f"mean {np.mean(values):.2f} dB" + (f", slope {slope(values[:SCORED_FRAMES]):+.1f}" if is_long else "")


def _describe_range(errors: Tensor | list[float]) -> str:
    values = _to_list(errors)
    return f"mean {np.mean(values):+.3f} ({min(values):+.3f}..{max(values):+.3f})" if values else "no frame"


def _mean_curve(curves: list[Tensor | list[float]]) -> Tensor:
    """Each frame's mean over the curves that are long enough."""
    curves = [torch.as_tensor(_to_list(curve)) for curve in curves]
    return torch.nn.utils.rnn.pad_sequence(curves, padding_value=torch.nan).nanmean(dim=1)


def _draw_errors(panel, history: list[dict]) -> None:
    colors = {"train_mse": BLUE, "val_loss": VERMILION}
    draw_column(panel, history, "train_mse", BLUE, "training")
    draw_column(panel, history, "val_loss", VERMILION, "validation, free-running")
    mark_non_finite(panel, history, *colors)
    set_log_scale(panel, history, *colors)
    limit_axis(panel, history, **colors)
    panel.set_ylabel("MSE per frame")


def _draw_objective(panel, history: list[dict]) -> None:
    draw_column(panel, history, "train_loss", BLUE, "training objective")
    mark_non_finite(panel, history, "train_loss")
    set_log_scale(panel, history, "train_loss")
    limit_axis(panel, history, train_loss=BLUE)
    panel.set_ylabel("loss per frame")


def _to_list(values: Tensor | list[float]) -> list[float]:
    return torch.as_tensor(values).flatten().tolist()


def _draw_frames(panel, values: Tensor | list[float], color: str, label: str | None, is_crowded: bool = False,
                 style: str = "-") -> None:
    """Draw a value per frame. Where other curves overlap it, a long one is pale below its running mean."""
    values = _to_list(values)
    frames = np.arange(1, len(values) + 1)
    marker = "." if len(values) <= MAX_MARKED_POINTS else None
    if is_crowded and len(values) >= MIN_SLOPE_FRAMES:
        panel.plot(frames, values, color=color, linewidth=0.7, alpha=0.25, zorder=1.5)
        values = np.convolve(values, np.full(SMOOTHED_FRAMES, 1 / SMOOTHED_FRAMES), "valid")
        frames = frames[SMOOTHED_FRAMES // 2:-(SMOOTHED_FRAMES // 2)]
    panel.plot(frames, values, style, color=color, marker=marker, linewidth=1.3, label=label)


def _intervals(epochs: list[int]) -> Iterator[tuple[int, int]]:
    """First and last epoch of each interval of consecutive epochs."""
    for _, group in groupby(enumerate(epochs), key=lambda pair: pair[1] - pair[0]):
        interval = [epoch for _, epoch in group]
        yield interval[0], interval[-1]
