"""Plots that compare runs. `runs` maps a run's name to its history, which may be empty.

A run has the same colour and line style in every panel.
"""
import math
from pathlib import Path

import numpy as np

from modules.plots.style import (
    BLUE,
    GREEN,
    GREY,
    MAX_MARKED_POINTS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    best,
    draw_column,
    make_panels,
    mark_best,
    mark_non_finite,
    non_finite_epochs,
    save_figure,
    set_log_scale,
    to_float,
)

RUN_COLOURS, RUN_STYLES = [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY], ["-", "--", ":", "-."]
SIZE = {"width": 5.5, "dpi": 175}  # as many pixels as the plots of one run, with text that is legible on a phone
CROWDED_EPOCHS = 300  # lines of longer runs are thinner, so that noisy curves do not become solid areas
MAX_NAME_LENGTH = 40  # longer names are shortened in a legend
MAX_LINEAR_RATIO = 20  # KL weights further apart need a log scale: the smaller would be a flat line


def run_style(index: int) -> tuple[str, str]:
    """Colour and line style of run number ``index``; 28 of them differ."""
    return RUN_COLOURS[index % len(RUN_COLOURS)], RUN_STYLES[index // len(RUN_COLOURS) % len(RUN_STYLES)]


def compare_losses(runs: dict[str, list[dict]], path: str | Path) -> None:
    """Training loss, its MSE and KL terms, and validation loss of several runs, each in a panel with a log scale.

    Raises
    ------
    OSError : the file cannot be written.
    """
    titles = {"train_loss": "training loss: objective, sum over a clip's frames",
              "train_mse": "training MSE, sum over a clip's frames",
              "train_kl": "training KL divergence, sum over a clip's frames",
              "val_loss": "validation loss: MSE, mean per frame, free running"}
    figure, panels = _make_run_panels("Losses", runs, (2,) * 4, tuple(titles))
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        _draw_losses(panel, runs, key, title)
    save_figure(figure, panels, path)


def compare_schedules(runs: dict[str, list[dict]], path: str | Path) -> None:
    """KL weight and teacher-forcing ratio of several runs against their losses.

    The epochs that used teacher forcing are bars, a row per run in the order of the legend: the shading that the
    plot of one run has would overlap.

    Raises
    ------
    OSError : the file cannot be written.
    """
    heights = (1.4, 1.4, 0.3 + 0.2 * len(runs), 2, 2)
    figure, panels = _make_run_panels("KL weight and teacher forcing against loss", runs, heights,
                                      ("train_loss", "val_loss"))
    weight, ratio, used, train, val = panels
    _draw_runs(weight, runs, "beta", "KL weight β")
    maxima = [top[1] for history in runs.values() if (top := best(history, "beta")) and top[1] > 0]
    if maxima and max(maxima) > MAX_LINEAR_RATIO * min(maxima):
        weight.set_yscale("log", nonpositive="clip")  # a weight of 0 lies below the panel
    else:
        weight.set_ylim(bottom=min(0.0, weight.get_ylim()[0]))
    _draw_runs(ratio, runs, "tfr", "teacher-forcing ratio")
    ratio.set_ylim(-0.05, 1.05)
    used.set_title("epochs that used teacher forcing (height: fraction of the clips)", loc="left", fontsize=10)
    for index, history in enumerate(runs.values()):
        _draw_bars(used, history, len(runs) - 1 - index, run_style(index)[0])
    used.set(yticks=[], ylim=(-0.1, len(runs)))
    _draw_losses(train, runs, "train_loss", "training loss, sum over a clip's frames")
    _draw_losses(val, runs, "val_loss", "validation loss, mean per frame, free running")
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


def compare_psnr_per_frame(moments: dict[str, dict[str, tuple[int, list[float]] | None]], path: str | Path) -> None:
    """PSNR per frame of the validation rollouts of several runs, a panel for each moment of training.

    Parameters
    ----------
    moments : panel title -> run's name -> (epoch, PSNR in dB of the frames 1, 2, ...), or None where a run has not
        recorded them. Each moment lists all runs in the same order.

    Raises
    ------
    OSError : the file cannot be written.
    """
    figure, panels = make_panels((2.6,) * len(moments), **SIZE, legend_rows=sum(map(len, moments.values())))
    for panel, (title, recordings) in zip(panels, moments.items(), strict=True):
        for index, (name, recorded) in enumerate(recordings.items()):
            color, style = run_style(index)
            epoch, values = recorded or (0, [])
            remark = f", epoch {epoch}, mean {np.mean(values):.2f} dB" if values else ", not recorded"
            panel.plot(range(1, len(values) + 1), [value if math.isfinite(value) else math.nan for value in values],
                       style, color=color, linewidth=_line_width(index, len(recordings)),
                       marker="." if 0 < len(values) <= MAX_MARKED_POINTS else None, label=_legend_text(name) + remark)
        panel.set_ylabel(f"PSNR (dB), {title}")
    save_figure(figure, panels, path, "PSNR per frame of the validation rollout", "frame", legend_columns=1)


def _make_run_panels(title: str, runs: dict[str, list[dict]], heights: tuple[float, ...], keys: tuple[str, ...],
                     remarks: dict[str, str] | None = None) -> tuple:
    """A figure and its panels below one legend with the title and, for each run, its name and a remark.

    The legend explains the marker of non-finite values if one of the columns ``keys`` has any.
    """
    from matplotlib.lines import Line2D
    handles = []
    for index, (name, history) in enumerate(runs.items()):
        color, style = run_style(index)
        remark = (remarks or {}).get(name, "") if history else ", no epoch yet"
        handles.append(Line2D([], [], color=color, linestyle=style, label=_legend_text(name) + remark))
    if any(non_finite_epochs(history, *keys) for history in runs.values()):
        handles.append(Line2D([], [], color="black", linestyle="", marker="x", markersize=5, label="non-finite"))
    columns = 2 if max(len(handle.get_label()) for handle in handles) <= 30 else 1
    figure, panels = make_panels(heights, **SIZE, legend_rows=math.ceil(len(handles) / columns))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=9, title=title,
                  title_fontsize=12, alignment="left")
    return figure, panels


def _line_width(index: int, count: int) -> float:
    """The first runs have wider lines, so that they stay visible below others that coincide with them."""
    return 1.2 + 1.6 * (count - 1 - index) / max(1, count - 1)


def _legend_text(name: str) -> str:
    """A run's name for a legend: shortened, and escaped where matplotlib gives a character a meaning."""
    if len(name) > MAX_NAME_LENGTH:
        half = MAX_NAME_LENGTH // 2
        name = f"{name[:half]}…{name[-half:]}"
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _draw_runs(panel, runs: dict[str, list[dict]], key: str, title: str) -> None:
    """Draw a column of all runs. Non-finite values are marked at the bottom, in a row per run."""
    panel.set_title(title, loc="left", fontsize=10)
    span = max((history[-1]["epoch"] for history in runs.values() if history), default=0)
    for index, history in enumerate(runs.values()):
        color, style = run_style(index)
        width = _line_width(index, len(runs)) / (2 if span > CROWDED_EPOCHS else 1)
        draw_column(panel, history, key, color, None, width, style, span)
        mark_non_finite(panel, history, key, color=color, label=None, height=0.03 + 0.05 * (index % 8))


def _draw_losses(panel, runs: dict[str, list[dict]], key: str, title: str) -> None:
    _draw_runs(panel, runs, key, title)
    set_log_scale(panel, [row for history in runs.values() for row in history], key)


def _draw_bars(panel, history: list[dict], row: int, color: str) -> None:
    """The fraction of clips with teacher forcing as bars on the baseline ``row``, which is as long as the run."""
    if not history:
        return
    heights = [0.85 * max(0.0, np.nan_to_num(to_float(entry.get("tf_used")))) for entry in history]
    edges = [entry["epoch"] - 0.5 for entry in history] + [history[-1]["epoch"] + 0.5]
    panel.stairs([row + height for height in heights], edges, baseline=row, fill=True, color=color, linewidth=0)
    panel.plot([edges[0], edges[-1]], [row, row], color=color, linewidth=0.8)
