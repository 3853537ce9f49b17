"""Plots that compare runs."""
import math
from pathlib import Path

import numpy as np

from modules.plots.style import (
    COMPARED_DPI,
    COMPARED_WIDTH,
    CROWDED,
    FAR_APART,
    LONGEST_NAME,
    MARKED_POINTS,
    RUN_COLOURS,
    RUN_STYLES,
    _curve,
    _finish,
    _log_scale,
    _lost,
    _mark_best,
    _mark_lost,
    _number,
    _panels,
    best,
)

# Plots that compare runs: `runs` is run's name -> history, which may be empty. A run has one colour everywhere.

def run_style(index: int) -> tuple[str, str]:
    """Colour and line style of run number ``index``; 28 of them differ."""
    return RUN_COLOURS[index % len(RUN_COLOURS)], RUN_STYLES[index // len(RUN_COLOURS) % len(RUN_STYLES)]


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
