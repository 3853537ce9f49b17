"""python -m pytest tests/plots/test_curves.py"""
import subprocess
import sys

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from plot_helpers import HISTORIES, NAN, figure_of, legend_of, make_history

from modules.plots import curves, style


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
    loss, quality = figure_of(curves.plot_losses, make_history(20)).axes
    assert loss.get_yscale() == "log" and quality.get_yscale() == "linear"
    for label in legend_of(loss):  # the units of the two losses differ
        assert ("sum over a clip" if "train" in label else "mean per frame") in label
    assert any("39.00 dB" in label and "epoch 19" in label for label in legend_of(quality))
    assert "dB" in quality.get_ylabel() and quality.get_xlabel() == "epoch"


def test_validation_is_drawn_only_in_epochs_that_have_it():
    loss, quality = figure_of(curves.plot_losses, make_history(23, validate_every=5)).axes
    line = next(line for line in loss.get_lines() if "validation" in line.get_label())
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


def test_plot_psnr_starts_at_frame_1_and_gives_the_mean():
    lines = {"prediction": torch.tensor([30.0, 25.0, 26.93]), "first frame": [20.0, 18.0]}
    panel, = figure_of(curves.plot_psnr, lines, "PSNR per frame").axes
    for label, name, mean in zip(legend_of(panel), lines, ("27.31 dB", "19.00 dB"), strict=True):
        assert label.startswith(name) and mean in label and "slope" not in label
    assert list(panel.get_lines()[0].get_xdata()) == [1, 2, 3]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("lines", [{}, {"none": []}, {"NaN": [NAN, NAN]}, {"one": [25.0]}], ids=str)
def test_plot_psnr_of_degenerate_rollouts(lines, tmp_path):
    curves.plot_psnr(lines, tmp_path / "psnr.png", "PSNR per frame")
    assert (tmp_path / "psnr.png").stat().st_size > 0


def test_plot_psnr_gives_the_slope_of_a_long_rollout_and_its_brightness():
    falling = torch.linspace(30, 24, 601)
    brightness = {"long": falling / 100, "short": [0.1] * 50}
    above, below = figure_of(curves.plot_psnr, {"long": falling, "short": falling[:50]}, "PSNR", brightness).axes
    long, short = legend_of(above)
    assert "slope -6.0" in long and "slope" not in short  # dB per 600 frames
    lines = [line for line in below.get_lines() if len(line.get_xdata()) > 2]
    assert [len(line.get_xdata()) for line in lines] == [601, 50]
    assert [line.get_color() for line in lines] == [line.get_color() for line in above.get_lines()]


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
