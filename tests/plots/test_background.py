"""Figures that are drawn in a process of their own.

    python -m pytest tests/plots/test_background.py
"""
import signal
from pathlib import Path

import pytest
import torch
from plot_helpers import make_history

from modules.evaluation.evaluate import score
from modules.plots.background import BackgroundDrawing
from modules.plots.run_figures import RunFigures

NAMES = {"loss.png", "teacher_forcing.png", "psnr_per_frame.png", "val.gif", "val_epoch=2.gif"}


def figures_in(folder: Path, keeps_gif: bool = True) -> RunFigures:
    generator = torch.Generator().manual_seed(0)
    video, truth, labels = torch.randint(256, (3, 4, 3, 8, 16), dtype=torch.uint8, generator=generator)
    return RunFigures(folder, make_history(3), 15, labels, (2, score(video, truth)), keeps_gif)


def test_the_figures_are_those_drawn_at_once_and_a_gif_to_be_kept_is_waited_for(tmp_path):
    with pytest.raises(ZeroDivisionError), BackgroundDrawing() as drawing:
        drawing.start(figures_in(tmp_path / "beside"))
        figures_in(tmp_path / "at once").draw()
        raise ZeroDivisionError
    beside, at_once = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
                       for name in ("beside", "at once"))
    assert beside == at_once and set(beside) == NAMES


def test_a_run_that_ends_with_an_error_waits_for_no_other_figure(tmp_path):
    with pytest.raises(ZeroDivisionError), BackgroundDrawing() as drawing:
        drawing.start(figures_in(tmp_path / "figures", keeps_gif=False))
        process = drawing.process
        raise ZeroDivisionError
    assert process.returncode in (1, -signal.SIGTERM) and not list(tmp_path.rglob("*.tmp"))


def test_figures_that_cannot_be_drawn_cost_a_warning(tmp_path, capsys):
    (tmp_path / "figures").write_text("a file")
    with BackgroundDrawing() as drawing:
        drawing.start(figures_in(tmp_path / "figures"))
    said = capsys.readouterr().err
    assert "figures could not be drawn" in said and str(tmp_path / "figures") in said and "Traceback" not in said


def test_drawing_is_due_by_the_clock(monkeypatch):
    drawing = BackgroundDrawing()
    assert not drawing.is_due()
    drawing.began_at -= 121
    assert drawing.is_due()
