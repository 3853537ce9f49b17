"""Every plot, GIF and MP4.

Files are replaced whole (files.py). Matplotlib is imported by the first plot, so that training starts without it,
and is used through its figure objects: nothing is shared with a notebook's pyplot.

`history` is a list of dicts, one per epoch, with the keys epoch, train_loss, train_mse, train_kl, beta, tfr,
tf_used, lr, val_loss, val_psnr. val_loss and val_psnr are None in epochs without validation; any may be NaN.
"""
import math
from collections.abc import Iterator
from pathlib import Path

from utils import atomic_write

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


# Plots

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
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:])


def best(history: list[dict], key: str) -> tuple[int, float] | None:
    """Epoch and value of a column's largest finite number."""
    points = [point for point in zip(*_points(history, key), strict=True) if math.isfinite(point[1])]
    return max(points, key=lambda point: point[1]) if points else None
