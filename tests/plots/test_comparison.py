"""python -m pytest tests/plots/test_comparison.py"""
import math

import pytest
from plot_helpers import HISTORIES, NAN, figure_of, legend_of, make_history

from modules.plots import comparison

PLOTS = [comparison.compare_losses, comparison.compare_schedules, comparison.compare_quality]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("plot", PLOTS)
def test_any_set_of_histories_is_rendered(plot, tmp_path):
    names = ["_a$b$", "c^{_" * 30, "\\frac", "d" * 200]  # nothing in a name may be read as mathematics
    plot(HISTORIES | {name: make_history(2) for name in names}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.filterwarnings("error")
def test_runs_without_epochs_are_rendered(tmp_path):
    comparison.compare_schedules({"empty": []}, tmp_path / "plot.png")


@pytest.mark.filterwarnings("error")
def test_psnr_per_frame_of_runs_that_did_not_record_it(tmp_path):
    moments = {"best epoch": {"a": (7, [30.0, 20.0, math.inf]), "b": None, "c": (0, [NAN])},
               "epoch 3": {"a": None, "b": None, "c": (3, [21.0])}}
    comparison.compare_psnr_per_frame(moments, tmp_path / "plot.png")
    first, second = figure_of(comparison.compare_psnr_per_frame, moments).axes
    assert "not recorded" in legend_of(first)[1]
    assert "epoch 3" in legend_of(second)[2] and "21.00 dB" in legend_of(second)[2]
    assert list(first.get_lines()[0].get_xdata()) == [1, 2, 3]
    assert [line.get_color() for line in first.get_lines()] == [line.get_color() for line in second.get_lines()]


def test_twenty_runs_are_distinguishable():
    panels = figure_of(comparison.compare_losses, {f"run {index}": make_history(3) for index in range(20)}).axes
    looks = [[(line.get_color(), line.get_linestyle()) for line in panel.get_lines()] for panel in panels]
    assert len(set(looks[0])) == 20
    assert looks == [looks[0]] * 4


def test_compare_losses_has_a_log_panel_for_each_loss():
    panels = figure_of(comparison.compare_losses, {"a": make_history(9), "b": make_history(30)}).axes
    assert [panel.get_yscale() for panel in panels] == ["log"] * 4
    for panel, words in zip(panels, ("training loss", "MSE", "KL", "validation loss"), strict=True):
        assert words in panel.get_title(loc="left")
    assert [list(line.get_xdata()) for line in panels[3].get_lines()] == [list(range(9)), list(range(30))]


def test_compare_quality_circles_the_best_epoch_of_each_run():
    runs = {"a": make_history(9), "NaN": HISTORIES["NaN"], "never validated": HISTORIES["no validation"]}
    figure = figure_of(comparison.compare_quality, runs)
    circles = [line for line in figure.axes[0].get_lines() if line.get_markerfacecolor() == "white"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in circles] == [(8, 28.0), (11, 31.0)]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "28.00 dB" in labels[0] and "31.00 dB" in labels[1] and "not validated" in labels[2]


def test_epochs_with_teacher_forcing_are_a_row_of_bars_per_run():
    half = [row | {"tf_used": 0.5 if row["epoch"] in (2, 3) else 0.0} for row in make_history(6)]
    panels = figure_of(comparison.compare_schedules, {"a": make_history(4), "half": half, "empty": []}).axes
    bars = [patch.get_data() for patch in panels[2].patches]
    assert list(bars[0].values - bars[0].baseline) == pytest.approx([0.85, 0, 0, 0.85])
    assert list(bars[1].values - bars[1].baseline) == pytest.approx([0, 0, 0.425, 0.425, 0, 0])
    assert [bar.baseline for bar in bars] == [2, 1]  # rows in the order of the legend
    assert list(bars[0].edges) == [-0.5, 0.5, 1.5, 2.5, 3.5]


@pytest.mark.parametrize("beta, scale", [(0.4, "linear"), (1e-5, "log")])
def test_kl_weights_far_apart_have_a_log_scale(beta, scale):
    runs = {"a": make_history(5), "b": [row | {"beta": beta} for row in make_history(5)]}
    assert figure_of(comparison.compare_schedules, runs).axes[0].get_yscale() == scale


def test_best_ignores_non_finite_values():
    assert comparison.best(HISTORIES["NaN"], "val_psnr") == (11, 31.0)
    assert comparison.best(HISTORIES["only NaN"], "val_psnr") is None
    assert comparison.best(HISTORIES["no validation"], "val_psnr") is None
