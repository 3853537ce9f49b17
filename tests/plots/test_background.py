"""Figures that are drawn in a process of their own.

    python -m pytest tests/plots/test_background.py
"""
import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from plot_helpers import make_history

from modules.evaluation.evaluate import score
from modules.plots import background
from modules.plots.background import BackgroundDrawing
from modules.plots.run_figures import RunFigures
from training.run_helpers import train, train_until

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
        assert os.getsid(process.pid) != os.getsid(0)  # Ctrl-C does not reach it
        while not (tmp_path / "figures").exists():
            time.sleep(0.01)
        raise ZeroDivisionError
    assert process.returncode in (0, 1) and not list(tmp_path.rglob("*.tmp"))


def test_no_figure_is_drawn_once_the_training_has_been_killed(tmp_path, monkeypatch, capsys):
    """Another process may have replaced the run."""
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as if this process, the parent, had been another
    with BackgroundDrawing() as drawing:
        drawing.start(figures_in(tmp_path / "figures"))
    assert "exit code 1" in capsys.readouterr().err and not list(tmp_path.rglob("*.gif"))


# With a stand-in for the process that draws

@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    """Writes begin and end to a file, half a second apart. The file."""
    file = tmp_path / "log"
    code = f"""import time
for word in ("begin", "end"):
    print(word, file=open({str(file)!r}, "a"), flush=True)
    time.sleep(0.3)"""
    monkeypatch.setattr(background, "COMMAND", [sys.executable, "-c", code])
    return file


def test_one_drawing_begins_when_the_other_has_ended(tmp_path, stand_in):
    with BackgroundDrawing() as drawing:
        drawing.start(figures_in(tmp_path))
        drawing.start(figures_in(tmp_path))
    assert stand_in.read_text().split() == ["begin", "end"] * 2


@pytest.mark.parametrize("code, reason", [("raise SystemExit(3)", "exit code 3"), ("raise OSError('why')", "why")])
def test_the_warning_names_the_reason(code, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(background, "COMMAND", [sys.executable, "-c", code])
    with BackgroundDrawing() as drawing:
        drawing.start(figures_in(tmp_path))
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tempfile.TemporaryFile", "subprocess.Popen"])
def test_a_drawing_that_cannot_begin_costs_a_warning(name, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(name, refuse)
    with BackgroundDrawing() as drawing:
        drawing.start(figures_in(tmp_path))
    assert "figures could not be drawn (No space left on device)" in capsys.readouterr().err


def test_drawing_is_due_by_the_clock(tmp_path, stand_in):
    with BackgroundDrawing() as drawing:
        assert not drawing.is_due()
        drawing.began_at -= 121
        assert drawing.is_due()
        drawing.start(figures_in(tmp_path))
        assert not drawing.is_due()


def test_a_stopped_run_leaves_no_drawing_behind(data, tmp_path, stand_in, monkeypatch):
    """--save_root is relative, but not to the folder in which the process runs."""
    monkeypatch.setattr(background, "SECONDS", 0)
    started, start = [], BackgroundDrawing.start
    monkeypatch.setattr(BackgroundDrawing, "start", lambda self, figures: (
        start(self, figures), started.append((figures.folder, self.process))))
    monkeypatch.chdir(tmp_path)
    train_until(10, data, Path("run"), "--num_epoch", 9, "--val_every", 9)
    (folder, process), = started
    assert folder == tmp_path / "run" / "figures" and process.returncode == -signal.SIGTERM


def test_the_last_checkpoint_is_newer_than_every_earlier_figure(data, tmp_path, stand_in, no_figures, monkeypatch):
    """Figures that are older than it would be missed when the process dies before the last ones."""
    monkeypatch.setattr(background, "SECONDS", 0)
    train(data, tmp_path / "run", "--num_epoch", 2)
    assert stand_in.read_text().split() == ["begin", "end"]
    assert stand_in.stat().st_mtime_ns < (tmp_path / "run" / "epoch=1.ckpt").stat().st_mtime_ns
