"""The folder of a run: one run at a time, leftovers, a full disk; and too little memory.

    python -m pytest tests/training/test_run_folder.py
"""
import re
import shutil

import pytest
import torch

import Trainer
import utils
from conftest import TINY, contents, read_csv
from modules.config.advice import MEMORY_ADVICE
from modules.config.trainer_flags import make_parser
from modules.training.run_folder import find_undrawn
from training.run_helpers import RUN, train, train_undisturbed


@pytest.fixture
def run(data, tmp_path):
    """A run of one epoch."""
    return train_undisturbed(data, tmp_path / "run", "--num_epoch", 1)


@pytest.mark.parametrize("flags", [[], ["--resume"]], ids=str)
def test_of_two_runs_that_begin_at_once_the_later_one_is_refused(flags, data, tmp_path, refused, no_figures,
                                                                 monkeypatch):
    """Both find the folder free; the other one is complete before this one has read its data."""
    run, load = tmp_path / "run", Trainer.load_data

    def load_later(*args):
        monkeypatch.setattr(Trainer, "load_data", load)
        train(data, run, *RUN, "--num_epoch", 1)
        shutil.copyfile(run / "last.ckpt", tmp_path / "others.ckpt")
        return load(*args)

    monkeypatch.setattr(Trainer, "load_data", load_later)
    refused("Trainer.py", *TINY, "--DR", data, "--save_root", run, *RUN, *flags)
    assert (run / "last.ckpt").read_bytes() == (tmp_path / "others.ckpt").read_bytes()


def test_leftovers_of_a_killed_process_are_deleted_and_nothing_else(run, data, no_figures):
    (run / "figures").mkdir()
    kept = "notes.tmp", ".hidden", ".notes.0123abcd.tmp", ".last.ckpt.77.tmp", "figures/.notes.gif.0123abcd.tmp"
    for name in (".last.ckpt.0123abcd.tmp", "figures/.val.gif.0123abcd.tmp", *kept):
        (run / name).write_text("half")
    train(data, run, *RUN, "--num_epoch", 2, "--resume")
    assert all((run / name).exists() for name in kept)
    left = {path.relative_to(run).as_posix() for path in run.rglob(".*.tmp")}
    assert left == {name for name in kept if name.endswith(".tmp") and name != "notes.tmp"}
    assert not (run / ".owner.json").exists()


def test_a_full_disk_leaves_the_latest_checkpoint(run, data, no_figures, refused):
    """A real limit of the system: no file may grow beyond half a checkpoint."""
    resource = pytest.importorskip("resource")
    whole, (soft, hard) = (run / "last.ckpt").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, hard))
    try:
        message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", run, *RUN, "--num_epoch", 2, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "last.ckpt" in message and "File too large" in message and "--resume" in message
    assert (run / "last.ckpt").read_bytes() == whole and len(read_csv(run / "metrics.csv")) == 1
    assert len(train(data, run, *RUN, "--num_epoch", 2, "--resume")) == 2


def test_a_disk_that_is_full_when_a_run_is_replaced_leaves_the_old_run(run, data, no_figures, refused):
    resource = pytest.importorskip("resource")
    for name in ("epoch=7.ckpt", "notes.txt"):
        (run / name).write_text("x")
    before, (soft, hard) = contents(run), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["last.ckpt"]) // 2, hard))
    try:
        refused("Trainer.py", *TINY, "--DR", data, "--save_root", run, *RUN, "--overwrite", untouched=run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    train(data, run, *RUN, "--num_epoch", 1, "--overwrite")
    assert contents(run).keys() >= {"epoch=0.ckpt", "notes.txt"} and not (run / "epoch=7.ckpt").exists()
    assert len(list(run.glob("events*"))) == 1


def test_too_little_memory_is_one_sentence_with_flags_that_exist(capsys):
    assert utils.run_main("Trainer.py", lambda: torch.empty(2**60), MEMORY_ADVICE) == 2
    message = capsys.readouterr().err
    flags = set(re.findall(r"--(?:no-)?(\w+)", message))
    assert message.count("\n") == 1 and {"batch_size", "bptt", "F_dim"} <= flags <= make_parser().defaults().keys()


def test_a_run_that_goes_on_only_draws_a_gif_that_it_would_not_draw_again(tmp_path):
    for name in ("epoch=0.ckpt", "epoch=3.ckpt"):
        (tmp_path / name).touch()
    latest = tmp_path / "epoch=3.ckpt"
    assert find_undrawn(tmp_path, keep_gifs=False) == find_undrawn(tmp_path, keep_gifs=True) == latest
    assert find_undrawn(tmp_path, keep_gifs=False, is_complete=False) is None
    assert find_undrawn(tmp_path, keep_gifs=True, is_complete=False) == latest
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "val_epoch=3.gif").touch()
    assert find_undrawn(tmp_path, keep_gifs=True, is_complete=False) is None
