"""python -m pytest tests/plots/test_curves.py"""
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from plot_helpers import HISTORIES, NAN, figure_of, legend_of, make_history

from modules.plots import curves, style
from modules.plots.run_figures import RunFigures


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("plot", [curves.plot_losses, curves.plot_teacher_forcing])
@pytest.mark.parametrize("name", HISTORIES)
def test_any_history_is_rendered(plot, name, tmp_path):
    plot(HISTORIES[name], tmp_path / "figures" / "plot.png")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["plot.png"]
    with Image.open(tmp_path / "figures" / "plot.png") as picture:
        assert picture.width > 800 and picture.height > 500
        shown = {f"#{red:02X}{green:02X}{blue:02X}" for _, (red, green, blue) in
                 picture.convert("RGB").getcolors(picture.width * picture.height)}
    if name in ("full", "NaN"):
        assert {style.BLUE, style.VERMILION} <= shown


def test_plot_losses_scales_and_labels():
    error, objective, quality = figure_of(curves.plot_losses, make_history(20)).axes
    assert [panel.get_yscale() for panel in (error, objective, quality)] == ["log", "log", "linear"]
    assert error.get_ylabel() == "MSE per frame" and len(legend_of(error)) == 2
    assert any("39.00 dB" in label and "epoch 19" in label for label in legend_of(quality))
    assert "dB" in quality.get_ylabel() and quality.get_xlabel() == "epoch"


@pytest.mark.parametrize("name, place", [("loss.png", 0), ("teacher_forcing.png", 3)])
def test_training_and_validation_error_share_an_axis_per_frame(name, place, tmp_path, monkeypatch):
    """metrics.csv has the sum over a clip's frames in training and the mean per frame in validation."""
    figures = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: figures.update({Path(file).name: figure}))
    monkeypatch.setattr(style, "atomic_write", contextlib.nullcontext)  # hands on the path
    rows = [row | {"train_mse": 0.6, "train_loss": 0.9, "val_loss": 0.05} for row in make_history(3)]
    RunFigures(tmp_path, rows, frames_per_clip=15, labels=torch.zeros(0), validation=None).draw()
    panel = figures[name].axes[place]
    assert [line.get_ydata()[0] for line in panel.get_lines()] == pytest.approx([0.04, 0.05])
    assert rows[0]["train_mse"] == 0.6  # the rows are those of metrics.csv


def test_an_exploded_epoch_is_marked_outside_the_axis():
    history = make_history(9)
    exploded = [dict(row) for row in history]
    exploded[5] |= {"train_mse": 1e9, "train_loss": 1e9, "val_loss": 0.4, "val_psnr": 4.0}
    calm, squeezed = (figure_of(curves.plot_losses, rows).axes for rows in (history, exploded))
    for before, after in zip(calm, squeezed, strict=True):
        assert after.get_ylim() == pytest.approx(before.get_ylim(), rel=0.3)
        marks = [line for line in after.get_lines() if line.get_marker() in ("^", "v")]
        assert marks and all(list(line.get_xdata()) == [5] for line in marks)
        assert sum("outside the axis" in label for label in legend_of(after)) == 1


def test_a_run_that_has_only_diverged_is_shown():
    history = [row | {"train_mse": 1e9 * 2**row["epoch"], "train_loss": 1e9} for row in make_history(4)]
    low, high = figure_of(curves.plot_losses, history).axes[0].get_ylim()
    assert low < 1e9 and high > 8e9


def test_validation_is_drawn_only_in_epochs_that_have_it():
    error = figure_of(curves.plot_losses, make_history(23, validate_every=5)).axes[0]
    line = next(line for line in error.get_lines() if "validation" in line.get_label())
    assert list(line.get_xdata()) == [0, 5, 10, 15, 20]


def test_non_finite_epochs_are_marked():
    for panel in figure_of(curves.plot_losses, HISTORIES["NaN"]).axes:
        line = next(line for line in panel.get_lines() if line.get_marker() == "x")
        assert list(line.get_xdata()) == [3, 4, 8]
        assert line.get_label() in legend_of(panel)


def test_epochs_with_teacher_forcing_are_shaded():
    history = [row | {"tf_used": float(row["epoch"] in (0, 1, 2, 5, 9))} for row in make_history(12)]
    panels = figure_of(curves.plot_teacher_forcing, history).axes
    for panel in panels:
        spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in panel.patches]
        assert spans == [(-0.5, 2.5), (4.5, 5.5), (8.5, 9.5)]
    assert sum("used teacher forcing" in label for label in legend_of(panels[0])) == 1


def rollout(psnr, **others) -> curves.Rollout:
    return curves.Rollout(psnr, [value - 10 for value in psnr], **others)


def test_plot_psnr_starts_at_frame_1_and_gives_the_means():
    panel, = figure_of(curves.plot_psnr, {"prediction": rollout(torch.tensor([30.0, 25.0, 26.93]))}, "PSNR").axes
    assert legend_of(panel) == ["prediction: mean 27.31 dB", "repeat the first frame: mean 17.31 dB"]
    assert list(panel.get_lines()[0].get_xdata()) == [1, 2, 3]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rollouts", [{}, {"none": rollout([])}, {"NaN": rollout([NAN, NAN])}, {"one": rollout([25.0])},
                                      {"none": rollout([], brightness_error=[]), "one": rollout([25.0])}], ids=str)
def test_plot_psnr_of_degenerate_rollouts(rollouts, tmp_path):
    curves.plot_psnr(rollouts, tmp_path / "psnr.png", "PSNR per frame")
    assert (tmp_path / "psnr.png").stat().st_size > 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 3])
def test_names_of_sequences_are_not_mathematics(count, tmp_path):
    """matplotlib reads text between dollars as mathematics, and leaves out the label of a name that starts with _."""
    names = ["a$^{$", "_x$b$", "n" * 300][:count]
    rollouts = {name: rollout([25.0, 24.0], brightness_error=[0.0, 0.1]) for name in names}
    curves.plot_psnr(rollouts, tmp_path / "psnr.png", "PSNR per frame")
    above, below = figure_of(curves.plot_psnr, rollouts, "PSNR per frame").axes
    assert len(legend_of(above)) == len(legend_of(below)) == count + 1


def test_plot_psnr_gives_the_slope_of_a_long_rollout_only():
    falling = torch.linspace(30, 24, 601)
    panel, = figure_of(curves.plot_psnr, {"long": rollout(falling), "short": rollout(falling[:50])}, "PSNR").axes
    long, short, _ = legend_of(panel)
    assert "slope -6.0" in long and "slope" not in short  # dB per 600 frames


def test_brightness_errors_have_their_range():
    rollouts = {"a": rollout([25.0] * 3, brightness_error=[-0.25, 0.0, 0.75]), "b": rollout([25.0])}
    above, below = figure_of(curves.plot_psnr, rollouts, "PSNR").axes
    assert legend_of(below)[0] == "a: mean +0.167 (-0.250..+0.750)" and len(legend_of(below)) == 2
    assert below.get_lines()[0].get_color() == above.get_lines()[0].get_color()


@pytest.mark.parametrize("frames", [10, 200], ids=["as they are", "smoothed"])
def test_a_sequence_has_one_colour_and_its_restarted_curve_is_dashed(frames):
    rollouts = {f"sequence {index}": rollout(torch.linspace(30, 20, frames) + index,
                                             restarted=torch.linspace(30, 25, frames)) for index in range(12)}
    panel, = figure_of(curves.plot_psnr, rollouts, "PSNR").axes
    lines = [line for line in panel.get_lines() if line.get_alpha() is None and len(line.get_xdata())]
    solid, dashed = ([line.get_color() for line in lines[:-1] if line.get_linestyle() == kind] for kind in ("-", "--"))
    assert len(set(solid)) == 12 and dashed == solid
    assert lines[-1].get_color() == style.GREY and style.GREY not in solid
    assert "restarted 27.50 dB" in legend_of(panel)[0]


def test_repeating_the_first_frame_is_one_grey_curve_the_mean_over_the_sequences():
    rollouts = {"a": curves.Rollout([30.0] * 3, [20.0, 18.0, 16.0]), "b": curves.Rollout([30.0], [10.0])}
    panel, = figure_of(curves.plot_psnr, rollouts, "PSNR").axes
    grey, = [line for line in panel.get_lines() if line.get_color() == style.GREY]
    assert list(grey.get_ydata()) == [15.0, 18.0, 16.0]


def test_a_failed_write_keeps_the_previous_plot(monkeypatch, tmp_path):
    path = tmp_path / "plot.png"
    path.write_bytes(b"previous plot")

    def fail(figure, file, format):
        file.write_bytes(b"half a plot")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError):
        curves.plot_losses(make_history(3), path)
    assert path.read_bytes() == b"previous plot"
    assert [child.name for child in tmp_path.iterdir()] == ["plot.png"]


def test_plots_load_without_their_slow_libraries():
    code = ("import sys, modules.plots.curves, modules.plots.comparison, modules.plots.video; "
            "assert not {'matplotlib', 'av', 'torchvision', 'torchmetrics'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_high_scores_of_repeating_the_first_frame_do_not_squeeze_the_curves():
    psnr, baseline = torch.full((50,), 30.0), torch.tensor([60.0, *[20.0] * 49])
    panel, = figure_of(curves.plot_psnr, {"a": curves.Rollout(psnr, baseline)}, "PSNR").axes
    assert panel.get_ylim()[1] == 32
    panel, = figure_of(curves.plot_psnr, {"a": curves.Rollout(psnr, baseline.clamp(max=31))}, "PSNR").axes
    assert 31 < panel.get_ylim()[1] < 32
