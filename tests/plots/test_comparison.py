"""python -m pytest tests/plots/test_comparison.py"""
import math

import pytest
from plot_helpers import HISTORIES, NAN, figure_of, legend_of, make_history

from modules.plots import comparison
from modules.plots.comparison import Recording

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
    moments = {"best epoch": {"a": Recording(7, [30.0, 20.0, math.inf]), "b": None, "c": Recording(0, [NAN])},
               "epoch 3": {"a": None, "b": None, "c": Recording(3, [21.0])}}
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


@pytest.mark.parametrize("beta, named", [(0.4, False), (1e-5, True)])
def test_kl_weights_have_a_linear_scale_and_their_size_is_named_where_one_looks_like_zero(beta, named):
    runs = {"a": make_history(5), "b": [row | {"beta": beta} for row in make_history(5)]}
    figure = figure_of(comparison.compare_schedules, runs)
    assert figure.axes[0].get_yscale() == "linear" and -0.1 < figure.axes[0].get_ylim()[0] <= 0
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == (["a, β up to 0.5", "b, β up to 1e-05"] if named else ["a", "b"])


def diverge(history: list[dict], error: float) -> list[dict]:
    """The history with an error that explodes in its last two epochs."""
    spoiled = {"train_loss": error, "train_mse": error, "train_kl": error, "val_loss": 0.4, "val_psnr": 4.0}
    return [*history[:-2], *(row | spoiled for row in history[-2:])]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("error", [1e4, 3e38, -3e38])
def test_a_run_that_diverged_does_not_squeeze_the_others(error, tmp_path):
    healthy = {"a": make_history(30), "b": make_history(9)}
    runs = healthy | {"diverged": diverge(make_history(9), error)}
    for plot in PLOTS:
        plot(runs, tmp_path / "plot.png")
        expected, panels = (figure_of(plot, which).axes for which in (healthy, runs))
        for panel, alone in zip(panels, expected, strict=True):
            if error > 0 and panel.get_title(loc="left").startswith(("training", "validation", "mean over")):
                (low, high), (low_alone, high_alone) = panel.get_ylim(), alone.get_ylim()
                if panel.get_yscale() == "log":
                    low, high, low_alone, high_alone = map(math.log, (low, high, low_alone, high_alone))
                assert high - low < 1.1 * (high_alone - low_alone) + 0.1
                edge = [line for line in panel.get_lines() if line.get_marker() in "^v"]
                assert [int(line.get_xdata()[0]) for line in edge] == [7, 8]


def test_runs_that_have_not_diverged_are_shown_whole():
    """KL as a sum and as a mean over the latent map are four orders of magnitude apart."""
    runs = {"mean": make_history(9), "sum": [row | {"train_kl": 24576.0} for row in make_history(9)]}
    panel = figure_of(comparison.compare_losses, runs).axes[2]
    assert panel.get_ylim()[0] < 0.2 and panel.get_ylim()[1] > 24576


def test_a_run_alone_that_has_diverged_from_the_start_is_drawn():
    history = [row | {"train_mse": 10.0 ** row["epoch"] * 2, "val_loss": 0.3} for row in make_history(5)]
    low, high = figure_of(comparison.compare_losses, {"a": history}).axes[1].get_ylim()
    assert low < 2 and high > 2e4


def test_repeating_the_first_frame_is_grey_and_drawn_once_for_each_validation_sequence():
    first, second = [20.0, 19.0], [30.0, 29.0]
    moments = {"best epoch": {"a": Recording(1, [21.0, 20.0], first), "b": Recording(2, [22.0, 21.0], first)},
               "epoch 3": {"a": Recording(3, [21.0, 20.0], first), "b": Recording(3, [22.0, 21.0], second)}}
    panels = figure_of(comparison.compare_psnr_per_frame, moments).axes
    greys = [[list(line.get_ydata()) for line in panel.get_lines() if line.get_color() == comparison.GREY]
             for panel in panels]
    assert greys == [[first], [first, second]]
    assert legend_of(panels[0])[-1] == "repeat the first frame, mean 19.50 dB"
    assert [label.partition(",")[0] for label in legend_of(panels[1])[-2:]] == [
        "repeat the first frame of a", "repeat the first frame of b"]
    assert comparison.GREY not in {comparison.run_style(index)[0] for index in range(100)}


def test_a_rollout_that_diverged_lies_below_the_axis_of_the_others():
    moments = {"best epoch": {"a": Recording(1, [21.0, 20.0]), "b": Recording(2, [3.0, 2.0])}}
    panel, = figure_of(comparison.compare_psnr_per_frame, moments).axes
    assert 19 < panel.get_ylim()[0] < 20 and legend_of(panel)[1].endswith("mean 2.50 dB, diverged")


def test_best_ignores_non_finite_values():
    assert comparison.best(HISTORIES["NaN"], "val_psnr") == (11, 31.0)
    assert comparison.best(HISTORIES["only NaN"], "val_psnr") is None
    assert comparison.best(HISTORIES["no validation"], "val_psnr") is None
