"""Histories to plot, and a way to look at a figure without rendering it."""
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from matplotlib.figure import Figure

NAN = math.nan


def make_history(epochs: int, validate_every: int = 1, non_finite: tuple[int, ...] = ()) -> list[dict]:
    history = []
    for epoch in range(epochs):
        mse = math.exp(-epoch / 10)
        row = {"epoch": epoch, "train_loss": mse + 0.1, "train_mse": mse, "train_kl": 0.2, "beta": 0.5,
               "tfr": 1 - epoch / epochs, "tf_used": float(epoch % 3 == 0), "lr": 1e-3, "val_loss": None,
               "val_psnr": None}
        if epoch % validate_every == 0:
            row |= {"val_loss": mse / 10, "val_psnr": 20.0 + epoch}
        if epoch in non_finite:
            row |= {"train_loss": NAN, "train_mse": NAN, "val_loss": NAN, "val_psnr": NAN}
        history.append(row)
    return history


HISTORIES = {
    "full": make_history(60),
    "one epoch": make_history(1),
    "NaN": make_history(12, non_finite=(3, 4, 8)),
    "only NaN": make_history(3, non_finite=(0, 1, 2)),
    "no validation": [row | {"val_loss": None, "val_psnr": None} for row in make_history(8)],
    "zero and infinite": [row | {"train_loss": math.inf, "val_loss": 0.0} for row in make_history(4)],
    "empty": [],
}


def figure_of(plot: Callable, content: dict | list, *args) -> Figure:
    """The figure that ``plot(content, path, *args)`` saves."""
    figures = []

    def save(figure, file, **kwargs):
        figures.append(figure)
        Path(file).touch()

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Figure, "savefig", save):
        plot(content, Path(folder) / "plot.png", *args)
    return figures[0]


def legend_of(panel) -> list[str]:
    return [text.get_text() for text in panel.get_legend().get_texts()]
