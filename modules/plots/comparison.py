"""Plots that compare runs. `runs` maps a run's name to its history, which may be empty.

The training losses of these histories are means per predicted frame, so that runs with clips of different lengths
share an axis. A run has the same colour and line style in every panel.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modules.plots.style import (
    BLUE,
    DIVERGED,
    GREEN,
    GREY,
    MAX_MARKED_POINTS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    axis_limits,
    best,
    draw_column,
    find_outside,
    legend_text,
    make_panels,
    mark_best,
    mark_non_finite,
    non_finite_epochs,
    save_figure,
    set_log_scale,
    to_float,
    widen,
)

RUN_COLOURS, RUN_STYLES = [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY], ["-", "--", ":", "-."]  # grey: no run
SIZE = {"width": 5.5, "dpi": 175}  # as many pixels as the plots of one run, with text that is legible on a phone
CROWDED_EPOCHS = 300  # lines of longer runs are thinner, so that noisy curves do not become solid areas
MAX_LINEAR_RATIO = 20  # KL weights further apart are named in the legend: the smaller one looks like zero
LIMITED = ("train_loss", "train_mse", "train_kl", "val_loss", "val_psnr")  # columns that divergence spoils
DIVERGED_PSNR = -10 * math.log10(DIVERGED["val_loss"])


@dataclass
class Recording:
    """The PSNR in dB of the frames 1, 2, ... of a validation rollout."""
    epoch: int
    psnr: list[float]
    repeat_first: list[float] | None = None  # of repeating the first frame instead


def run_style(index: int) -> tuple[str, str]:
    """Colour and line style of run number ``index``; 24 of them differ."""
    return RUN_COLOURS[index % len(RUN_COLOURS)], RUN_STYLES[index // len(RUN_COLOURS) % len(RUN_STYLES)]


def compare_losses(runs: dict[str, list[dict]], path: str | Path) -> None:
    """Training loss, its MSE and KL terms, and validation loss of several runs, each in a panel with a log scale.

    Raises
    ------
    OSError : the file cannot be written.
    """
    titles = {"train_loss": "training loss: objective, mean per frame",
              "train_mse": "training MSE, mean per frame",
              "train_kl": "training KL divergence, mean per frame",
              "val_loss": "validation loss: MSE, mean per frame, free running"}
    figure, panels = _make_run_panels("Losses", runs, (2,) * 4, tuple(titles))
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        _draw_losses(panel, runs, key, title)
    save_figure(figure, panels, path)


def compare_schedules(runs: dict[str, list[dict]], path: str | Path) -> None:
    """KL weight and teacher-forcing ratio of several runs against their losses.

    The axis of the KL weight is linear: a schedule is a shape. Where the weights of two runs are so far apart that one
    would look like zero, the legend names the largest weight of each.

    The epochs that used teacher forcing are bars, a row per run in the order of the legend: the shading that the
    plot of one run has would overlap.

    Raises
    ------
    OSError : the file cannot be written.
    """
    heights = (1.4, 1.4, 0.3 + 0.2 * len(runs), 2, 2)
    maxima = {name: top[1] for name, history in runs.items() if (top := best(history, "beta")) and top[1] > 0}
    are_apart = maxima and max(maxima.values()) > MAX_LINEAR_RATIO * min(maxima.values())
    remarks = {name: f", β up to {value:.2g}" for name, value in maxima.items()} if are_apart else {}
    figure, panels = _make_run_panels("KL weight and teacher forcing against loss", runs, heights,
                                      ("train_loss", "val_loss"), remarks)
    weight, ratio, used, train, val = panels
    _draw_runs(weight, runs, "beta", "KL weight β")
    weight.set_ylim(bottom=min(0.0, weight.get_ylim()[0]))
    _draw_runs(ratio, runs, "tfr", "teacher-forcing ratio")
    ratio.set_ylim(-0.05, 1.05)
    used.set_title("epochs that used teacher forcing (height: fraction of the clips)", loc="left", fontsize=10)
    for index, history in enumerate(runs.values()):
        _draw_bars(used, history, len(runs) - 1 - index, run_style(index)[0])
    used.set(yticks=[], ylim=(-0.1, len(runs)))
    _draw_losses(train, runs, "train_loss", "training loss: objective, mean per frame")
    _draw_losses(val, runs, "val_loss", "validation loss: MSE, mean per frame, free running")
    save_figure(figure, panels, path)


def compare_quality(runs: dict[str, list[dict]], path: str | Path) -> None:
    """Validation PSNR of several runs over the epochs, with the best epoch of each.

    Raises
    ------
    OSError : the file cannot be written.
    """
    remarks = {}
    for name, history in runs.items():
        top = best(history, "val_psnr")
        remarks[name] = f", best {top[1]:.2f} dB in epoch {top[0]}" if top else ", not validated"
    figure, (panel,) = _make_run_panels("Validation PSNR", runs, (3.5,), ("val_psnr",), remarks)
    _draw_runs(panel, runs, "val_psnr", "mean over the frames of the free-running validation rollout")
    for index, history in enumerate(runs.values()):
        mark_best(panel, history, "val_psnr", run_style(index)[0], in_legend=False)
    panel.set_ylabel("PSNR (dB)")
    save_figure(figure, [panel], path)


def compare_psnr_per_frame(moments: dict[str, dict[str, Recording | None]], path: str | Path) -> None:
    """PSNR per frame of the validation rollouts of several runs, a panel for each moment of training.

    Parameters
    ----------
    moments : panel title -> run's name -> its recording, or None where a run has none. Each moment lists all runs in
        the same order. Repeating the first frame is a grey curve, one for each validation sequence.

    Raises
    ------
    OSError : the file cannot be written.
    """
    figure, panels = make_panels((2.6,) * len(moments), **SIZE, legend_rows=sum(len(runs) + 1 for runs in
                                                                                moments.values()))
    for panel, (title, recordings) in zip(panels, moments.items(), strict=True):
        for index, (name, recorded) in enumerate(recordings.items()):
            color, style = run_style(index)
            values = recorded.psnr if recorded else []
            remark = f", epoch {recorded.epoch}, {_describe_mean(values)}" if values else ", not recorded"
            _draw_frames(panel, values, legend_text(name) + remark, style, color, _line_width(index, len(recordings)))
        recordings = {name: recorded for name, recorded in recordings.items() if recorded}
        baselines = {tuple(recorded.repeat_first): name for name, recorded in reversed(recordings.items())
                     if recorded.repeat_first}
        for values, name in reversed(baselines.items()):
            whose = f" of {legend_text(name)}" if len(baselines) > 1 else ""
            _draw_frames(panel, values, f"repeat the first frame{whose}, {_describe_mean(values)}", "-", GREY, 1.2)
        panel.set_ylabel(f"PSNR (dB), {title}")
        shown = [value for recorded in recordings.values() if mean_of(recorded.psnr) > DIVERGED_PSNR
                 for value in (*recorded.psnr, *(recorded.repeat_first or [])) if math.isfinite(value)]
        if shown and any(mean_of(recorded.psnr) <= DIVERGED_PSNR for recorded in recordings.values()):
            panel.set_ylim(widen(min(shown), max(shown)))
    save_figure(figure, panels, path, "PSNR per frame of the validation rollout", "frame", legend_columns=1)


def mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _describe_mean(values: Sequence[float]) -> str:
    mean = mean_of(values)
    return f"mean {mean:.2f} dB{', diverged' * (mean <= DIVERGED_PSNR)}" if math.isfinite(mean) else "non-finite"


def _draw_frames(panel, values: Sequence[float], label: str, style: str, color: str, width: float) -> None:
    panel.plot(range(1, len(values) + 1), [value if math.isfinite(value) else math.nan for value in values], style,
               color=color, linewidth=width, marker="." if 0 < len(values) <= MAX_MARKED_POINTS else None, label=label)


def _make_run_panels(title: str, runs: dict[str, list[dict]], heights: tuple[float, ...], keys: tuple[str, ...],
                     remarks: dict[str, str] | None = None) -> tuple:
    """A figure and its panels below one legend with the title and, for each run, its name and a remark.

    The legend explains the markers of values that are non-finite or outside the axis, if one of the columns ``keys``
    has any.
    """
    from matplotlib.lines import Line2D
    handles = []
    for index, (name, history) in enumerate(runs.items()):
        color, style = run_style(index)
        remark = (remarks or {}).get(name, "") if history else ", no epoch yet"
        handles.append(Line2D([], [], color=color, linestyle=style, label=legend_text(name) + remark))
    if any(non_finite_epochs(history, *keys) for history in runs.values()):
        handles.append(Line2D([], [], color="black", linestyle="", marker="x", markersize=5, label="non-finite"))
    if any(find_outside(history, key, _limits(runs, key)) for key in keys for history in runs.values()):
        handles.append(Line2D([], [], color="black", linestyle="", marker="^", markersize=5,
                              label="diverged, outside the axis"))
    columns = 2 if max(len(handle.get_label()) for handle in handles) <= 30 else 1
    figure, panels = make_panels(heights, **SIZE, legend_rows=math.ceil(len(handles) / columns))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=9, title=title,
                  title_fontsize=12, alignment="left")
    return figure, panels


def _line_width(index: int, count: int) -> float:
    """The first runs have wider lines, so that they stay visible below others that coincide with them."""
    return 1.2 + 1.6 * (count - 1 - index) / max(1, count - 1)


def _draw_runs(panel, runs: dict[str, list[dict]], key: str, title: str) -> None:
    """Draw a column of all runs. Values that are non-finite or outside the axis are marked at its edge, in a row per
    run."""
    panel.set_title(title, loc="left", fontsize=10)
    span = max((history[-1]["epoch"] for history in runs.values() if history), default=0)
    limits = _limits(runs, key)
    for index, history in enumerate(runs.values()):
        color, style = run_style(index)
        width = _line_width(index, len(runs)) / (2 if span > CROWDED_EPOCHS else 1)
        height = 0.03 + 0.05 * (index % 8)
        draw_column(panel, history, key, color, None, width, style, span)
        mark_non_finite(panel, history, key, color=color, label=None, height=height)
        for epoch, is_above in find_outside(history, key, limits):
            panel.plot([epoch], [1 - height if is_above else height], "^" if is_above else "v", color=color,
                       markersize=5, transform=panel.get_xaxis_transform())
    if limits:
        panel.set_ylim(limits)


def _draw_losses(panel, runs: dict[str, list[dict]], key: str, title: str) -> None:
    set_log_scale(panel, [row for history in runs.values() for row in history], key)
    _draw_runs(panel, runs, key, title)


def _limits(runs: dict[str, list[dict]], key: str) -> tuple[float, float] | None:
    """The axis of a column of all runs; None where it needs no limit."""
    rows = [row for history in runs.values() for row in history]
    return axis_limits(rows, key, is_log=key != "val_psnr") if key in LIMITED else None


def _draw_bars(panel, history: list[dict], row: int, color: str) -> None:
    """The fraction of clips with teacher forcing as bars on the baseline ``row``, which is as long as the run."""
    if not history:
        return
    heights = [0.85 * max(0.0, np.nan_to_num(to_float(entry.get("tf_used")))) for entry in history]
    edges = [entry["epoch"] - 0.5 for entry in history] + [history[-1]["epoch"] + 0.5]
    panel.stairs([row + height for height in heights], edges, baseline=row, fill=True, color=color, linewidth=0)
    panel.plot([edges[0], edges[-1]], [row, row], color=color, linewidth=0.8)
