"""What the plots of one run and of several runs share: colours, panels, curves and saving.

A `history` is a list of dicts, one per epoch, with the keys epoch, train_loss, train_mse, train_kl, beta, tfr, tf_used,
lr, val_loss and val_psnr. Losses are means per predicted frame. val_loss and val_psnr are None in epochs without
validation; any value may be NaN.

Matplotlib is imported by the first plot, so that training starts without it, and used through its figure objects: no
state is shared with pyplot.
"""
import math
import sys
from collections.abc import Collection
from pathlib import Path

from utils import atomic_write

# Okabe-Ito palette: distinguishable with colour vision deficiency and in greyscale.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, GREY = "#56B4E9", "#E69F00", "#666666"
MAX_MARKED_POINTS = 40  # curves with more points have no markers: they would merge into a thick line
MAX_NAME_LENGTH = 40  # longer names are shortened in a legend
# Errors per frame above which an epoch counts as diverged. Training sees unbounded predictions, which may begin outside
# the range of pixels. Validation scores pixels: no constant grey picture has an error above 0.25 (6 dB).
DIVERGED = {"train_mse": 100.0, "val_loss": 0.25}


def make_panels(heights: tuple[float, ...], width: float = 8, dpi: int = 120, legend_rows: int = 0) -> tuple:
    """A figure and its panels, one per relative height, stacked with a shared x axis. ``width`` is in inches."""
    from matplotlib.figure import Figure
    size = (width, 1.2 + 1.15 * sum(heights) + 0.18 * legend_rows)
    figure = Figure(figsize=size, dpi=dpi, layout="constrained")
    return figure, list(figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0])


def to_float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def column(history: list[dict], key: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one column. Epochs without a value are left out; NaN is kept."""
    rows = [row for row in history if row.get(key) is not None]
    return [row["epoch"] for row in rows], [float(row[key]) for row in rows]


def best(history: list[dict], key: str) -> tuple[int, float] | None:
    """Epoch and value of a column's largest finite number, or None."""
    points = [point for point in zip(*column(history, key), strict=True) if math.isfinite(point[1])]
    return max(points, key=lambda point: point[1]) if points else None


def non_finite_epochs(history: list[dict], *keys: str) -> list[int]:
    """The epochs in which one of the columns is NaN or infinite."""
    return sorted({epoch for key in keys for epoch, value in zip(*column(history, key), strict=True)
                   if not math.isfinite(value)})


def has_diverged(row: dict) -> bool:
    """Whether an epoch's errors are non-finite or larger than those of any picture."""
    return any(not to_float(row[key]) <= limit for key, limit in {"train_loss": sys.float_info.max, **DIVERGED}.items()
               if row.get(key) is not None)


def axis_limits(history: list[dict], *keys: str, is_log: bool = True) -> tuple[float, float] | None:
    """The range of the columns in the epochs that have not diverged: the others would squeeze the axis.

    None where all values lie within it, or all epochs have diverged.
    """
    points = [(value, has_diverged(row)) for row in history for key in keys
              if math.isfinite(value := to_float(row.get(key))) and (value > 0 or not is_log)]
    shown = [value for value, is_diverged in points if not is_diverged]
    if not shown or all(min(shown) <= value <= max(shown) for value, _ in points):
        return None
    if is_log:
        low, high = widen(math.log(min(shown)), math.log(max(shown)))
        return math.exp(low), math.exp(high)
    return widen(min(shown), max(shown))


def widen(low: float, high: float) -> tuple[float, float]:
    """A range with a margin on both sides."""
    margin = max(0.05 * (high - low), 0.05)
    return low - margin, high + margin


def find_outside(history: list[dict], key: str, limits: tuple[float, float] | None) -> list[tuple[int, bool]]:
    """The epochs whose finite value lies outside the axis, and whether it lies above."""
    return [(epoch, value > limits[1]) for epoch, value in zip(*column(history, key), strict=True)
            if limits and math.isfinite(value) and not limits[0] <= value <= limits[1]]


def limit_axis(panel, history: list[dict], **colors: str) -> None:
    """Limit the y axis to the epochs that have not diverged, and mark the others at its edge.

    Parameters
    ----------
    colors : of each column that the panel shows, by its key.
    """
    limits = axis_limits(history, *colors, is_log=panel.get_yscale() == "log")
    if limits is None:
        return
    label = "diverged, outside the axis"
    for index, (key, color) in enumerate(colors.items()):
        height = 0.04 + 0.05 * index
        for is_above in (True, False):
            outside = [epoch for epoch, above in find_outside(history, key, limits) if above == is_above]
            if outside:
                panel.plot(outside, [1 - height if is_above else height] * len(outside), "^" if is_above else "v",
                           color=color, markersize=5, transform=panel.get_xaxis_transform(), label=label)
                label = None  # one legend entry
    panel.set_ylim(limits)


def legend_text(name: str) -> str:
    """A name for a legend: shortened, and escaped where matplotlib gives a character a meaning."""
    if len(name) > MAX_NAME_LENGTH:
        half = MAX_NAME_LENGTH // 2
        name = f"{name[:half]}…{name[-half:]}"
    name = "".join(character if character.isprintable() else "?" for character in name)
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def draw_column(panel, history: list[dict], key: str, color: str, label: str | None, width: float = 1.5,
                style: str = "-", span: int = 0) -> None:
    """Draw a column over the epochs. Non-finite values break the line. ``span``: epochs that the panel shows."""
    epochs, values = column(history, key)
    if not any(map(math.isfinite, values)):
        return
    values = [value if math.isfinite(value) else math.nan for value in values]
    covered = max(1, epochs[-1] - epochs[0])
    marker = "o" if (len(epochs) - 1) * max(1, span / covered) < MAX_MARKED_POINTS else None
    panel.plot(epochs, values, style, color=color, linewidth=width, marker=marker, markersize=1.5 + width, label=label)


def mark_non_finite(panel, history: list[dict], *keys: str, color: str = "black", label: str | None = "non-finite",
                    height: float = 0.03) -> None:
    """Mark epochs with non-finite values at the bottom of the panel, so that divergence is visible."""
    epochs = non_finite_epochs(history, *keys)
    if epochs:
        panel.plot(epochs, [height] * len(epochs), "x", color=color, markersize=5,
                   transform=panel.get_xaxis_transform(), label=label)


def mark_best(panel, history: list[dict], key: str, color: str = GREEN, in_legend: bool = True) -> None:
    """Circle the largest value of a PSNR column."""
    top = best(history, key)
    if top:
        label = f"best: {top[1]:.2f} dB in epoch {top[0]}" if in_legend else None
        panel.plot([top[0]], [top[1]], "o", color=color, markersize=7, markerfacecolor="white",
                   markeredgewidth=1.5, label=label)


def set_log_scale(panel, history: list[dict], *keys: str) -> None:
    """Log scale, unless no value is positive: an empty log axis has no ticks."""
    if any(0 < value < math.inf for key in keys for value in column(history, key)[1]):
        panel.set_yscale("log", nonpositive="mask")


def fit_columns(labels: Collection[str]) -> int:
    """How many columns of the legend fit above a panel of the default width."""
    return 2 if max(map(len, labels), default=0) <= 46 else 1


def save_figure(figure, panels: list, path: str | Path, title: str = "", x_label: str = "epoch",
                legend_columns: int | None = None) -> None:
    """Add the grid, a legend above each panel and integer ticks on the x axis, then write the file.

    Raises
    ------
    OSError : the file cannot be written.
    """
    from matplotlib.ticker import MaxNLocator
    for panel in panels:
        panel.grid(True, which="major", color="#DDDDDD", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        if all(line.get_marker() == "x" for line in panel.get_lines()):
            panel.text(0.5, 0.5, "no value", color=GREY, ha="center", va="center", transform=panel.transAxes)
            panel.set_yticks([])
        labels = panel.get_legend_handles_labels()[1]
        if labels:
            panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=legend_columns or fit_columns(labels),
                         frameon=False, fontsize=9, borderaxespad=0.2, handlelength=1.7, columnspacing=1.5)
    panels[-1].set_xlabel(x_label)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    left, right = panels[-1].get_xlim()
    if right - left < 1:  # at most one epoch
        middle = round((left + right) / 2)
        panels[-1].set_xlim(middle - 0.6, middle + 0.6)
    if title:
        figure.suptitle(title, fontsize=12)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:])
