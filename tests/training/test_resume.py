"""A run that is stopped or killed anywhere and resumed equals the uninterrupted one, bit for bit.

    python -m pytest tests/training/test_resume.py
"""
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kill_run
import Trainer
from conftest import TINY, read_csv, write_walk
from modules.training import checkpoint, run_writer
from training.run_helpers import RUN, train, train_undisturbed, train_until
from utils import BadInput

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    """An uninterrupted run. Never write to it."""
    return train_undisturbed(data, tmp_path_factory.mktemp("resume") / "run")


# The run looks for a signal before each epoch, after each of its two steps, and after each of the five frames of a
# validation (epochs 0 and 2): 3 + 3 * 2 + 2 * 5 times.
@pytest.mark.parametrize("look, place", [
    (6, "after the last step of epoch 0"), (9, "before epoch 1"), (10, "in epoch 1 after 2 of 3 clips"),
    (19, "after the last step of epoch 2")])
def test_a_run_that_was_stopped_ends_as_the_uninterrupted_one(look, place, whole_run, data, tmp_path, no_figures):
    message = train_until(look, data, tmp_path / "run", *RUN)
    assert "SIGTERM" in message and place in message and str(tmp_path / "run" / "last.ckpt") in message
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Trainer.Trainer, "fit", lambda self: 1 / 0)  # a run that dies when it was just resumed
        train(data, tmp_path / "run", *RUN, "--resume")
    train(data, tmp_path / "run", *RUN, "--resume")
    kill_run.compare(tmp_path / "run", whole_run)


def test_a_run_can_be_stopped_again_and_again(whole_run, data, tmp_path, no_figures):
    for look in (3, 7, 3):  # 7: a validation cannot be divided
        train_until(look, data, tmp_path / "run", *RUN, "--resume")
    train(data, tmp_path / "run", *RUN, "--resume")
    kill_run.compare(tmp_path / "run", whole_run)


def test_a_run_with_shifted_copies_can_be_stopped(own_data, tmp_path, no_figures, monkeypatch):
    """The copies depend on the seed only."""
    data, flags, drawn = own_data, [*RUN, "--shifted_copies", 1, "--val_every", 3], []
    monkeypatch.setattr(Trainer, "draw_shifts", lambda person_shift, path: drawn.append(path))
    write_walk(data)
    train(data, tmp_path / "whole", *flags)
    assert drawn == [tmp_path / "whole" / "figures" / "shifted_copies.png"]
    is_known = checkpoint.read(tmp_path / "whole" / "last.ckpt")["replay"]["is_known"]
    assert len(is_known) == 48 and is_known[24:].sum() > 10  # also of the copy
    train_until(10, data, tmp_path / "run", *flags)  # within epoch 1
    train(data, tmp_path / "run", *flags, "--resume")
    kill_run.compare(tmp_path / "run", tmp_path / "whole")


def test_saves_within_an_epoch_change_nothing_and_fit_their_weights(whole_run, data, tmp_path, no_figures, monkeypatch):
    saved, save = [], checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda path, state: saved.append(state) or save(path, state))
    train(data, tmp_path / "run", *RUN, "--save_every_minutes", 1e-9)
    kill_run.compare(tmp_path / "run", whole_run)
    within = [state for state in saved if state["progress"] is not None]
    assert {(state["epoch"], state["progress"]["clips"]) for state in within} >= {(0, 2), (1, 2), (2, 2)}
    for state in within:  # BatchNorm's statistics are those of the weights, so that such a file can be evaluated
        assert state["ema"]["label_encoder.2.running_mean"].abs().max() > 0.05


def test_a_kill_at_a_random_moment_loses_nothing(whole_run, data, tmp_path, no_figures):
    """A real process. scripts/dev/kill_run.py does it more often."""
    flags = ["--DR", str(data), *TINY, *RUN, "--save_every_minutes", "1e-9"]
    kill_run.interrupt(flags, tmp_path / "run", "KILL", random.uniform(0, 0.1), torch.get_num_threads())
    train(data, tmp_path / "run", "--resume")
    kill_run.compare(tmp_path / "run", whole_run)


@pytest.mark.parametrize("seconds, saved", [(30, 0), (0, 2)])
def test_a_run_whose_epochs_take_seconds_is_saved_by_the_clock(seconds, saved, whole_run, data, tmp_path, no_figures,
                                                               monkeypatch):
    """It dies in its third epoch without a signal. The tables and best.ckpt are never ahead of last.ckpt."""
    run, train_one_epoch = tmp_path / "run", Trainer.Trainer.train_one_epoch
    monkeypatch.setattr(run_writer, "SECONDS", seconds)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Trainer.Trainer, "train_one_epoch",
                      lambda self: train_one_epoch(self) if self.state.epoch < 2 else 1 / 0)
        train(data, run, *RUN)
    assert checkpoint.read(run / "last.ckpt")["epoch"] == len(read_csv(run / "metrics.csv")) == saved
    assert (run / "best.ckpt").exists() == (run / "psnr_best.csv").exists() == (saved > 0)
    assert (run / "epoch=0.ckpt").exists()  # as often as --per_save says
    train(data, run, "--resume")
    kill_run.compare(run, whole_run)


def test_an_epoch_whose_clips_have_changed_starts_again(data, tmp_path, no_figures, capsys):
    train_until(2, data, tmp_path / "run", *RUN)
    assert len(train(data, tmp_path / "run", *RUN, "--replay", 0, "--clip_stride", 2, "--resume")) == 3
    assert "starts again" in capsys.readouterr().err


def test_an_epoch_continues_with_another_batch_size(data, tmp_path, no_figures, monkeypatch):
    seen, step = [], Trainer.Trainer.train_step
    monkeypatch.setattr(Trainer.Trainer, "train_step",
                        lambda self, batch, *args: seen.append(batch.index[:, 0]) or step(self, batch, *args))
    train_until(2, data, tmp_path / "run", *RUN, "--num_epoch", 1, "--replay", 0, "--clip_stride", 2)
    train(data, tmp_path / "run", "--num_epoch", 1, "--batch_size", 1, "--resume")
    assert [len(starts) for starts in seen] == [2, 1, 1, 1]
    assert sorted(torch.cat(seen).tolist()) == [0, 2, 4, 6, 8]  # every clip once


def test_a_complete_run_cannot_be_continued_elsewhere(whole_run, data, tmp_path):
    with pytest.raises(BadInput, match="--num_epoch 3"):  # it would be a run without an epoch
        train(data, tmp_path / "other", "--ckpt_path", whole_run / "last.ckpt")


def test_deterministic_mode_gives_the_same_run(whole_run, data, tmp_path, no_figures):
    try:
        train(data, tmp_path / "run", *RUN, "--deterministic")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    kill_run.compare(tmp_path / "run", whole_run)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_deterministic_mode_gives_the_same_run_on_cuda(data, tmp_path):
    for name in ("a", "b"):
        subprocess.run([sys.executable, "Trainer.py", *TINY, "--device", "cuda", *RUN, "--deterministic", "--DR",
                        str(data), "--save_root", str(tmp_path / name)], cwd=ROOT, check=True)
    kill_run.compare(tmp_path / "a", tmp_path / "b")
