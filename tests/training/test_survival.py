"""Runs that survive: exact resume, signals, bad numbers, full disks, too little memory, two runs in one folder.

    python -m pytest tests/test_survival.py
"""
import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import interrupt_run
import Trainer
import utils
from conftest import TINY, contents, leave_out_figures, make_dataset, read_csv
from modules.network.cvae import CVAE
from modules.training import checkpoint
from modules.training.signals import StopSignals
from utils import BadInput, Interrupted

ROOT = Path(__file__).resolve().parents[2]
# Three epochs of two steps; every schedule and every generator is in use.
RUN = ["--num_epoch", "3", "--tfr", "0.5", "--tf_draw", "clip", "--lr_schedule", "cosine", "--warmup", "0.5",
       "--kl_anneal_type", "Cyclical", "--kl_anneal_cycle", "2", "--kl_anneal_stop", "1", "--batch_size", "2",
       "--val_every", "2", "--per_save", "2", "--lr", "0.01",
       "--ema", "0.8", "--replay", "0.7", "--feedback_noise", "0.02", "--feedback_jitter", "0.02"]


def train(data: Path, run: Path, *flags) -> list[dict]:
    Trainer.main([*TINY, "--DR", str(data), "--save_root", str(run), *map(str, flags)])
    return read_csv(run / "metrics.csv")


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    """An uninterrupted run. Never write to it."""
    folder = tmp_path_factory.mktemp("survival") / "run"
    with pytest.MonkeyPatch.context() as patch:
        leave_out_figures(patch)
        train(data, folder, *RUN)
    return folder


class AskedAt:
    """Stands for StopSignals: asks for the end when the run looks for the nth time."""

    def __init__(self, look: int):
        self.looks, self.look = 0, look

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def number(self):
        self.looks += 1
        return signal.SIGTERM if self.looks >= self.look else None


# Exact resume

# The run looks before each epoch, after each of its two steps and after each of the five frames of a validation
# (epochs 0 and 2): 3 + 3 * 2 + 2 * 5 times.
LOOKS = 19


@pytest.mark.parametrize("look, where", [
    (2, "in epoch 0 after 2 of 3 clips"), (6, "in the validation of epoch 0"), (9, "before epoch 1"),
    (11, "in the validation of epoch 1"), (19, "in the validation of epoch 2")])
def test_a_run_stopped_anywhere_ends_as_the_uninterrupted_one(look, where, whole_run, data, tmp_path, no_figures,
                                                              monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "StopSignals", lambda: AskedAt(look))
        with pytest.raises(Interrupted) as stop:
            train(data, tmp_path / "run", *RUN)
    assert stop.value.number == signal.SIGTERM
    assert f"SIGTERM: stopped {where}; {tmp_path / 'run' / 'last.ckpt'} holds the state" in str(stop.value)
    train(data, tmp_path / "run", *RUN, "--resume")
    interrupt_run.compare(tmp_path / "run", whole_run)


def test_the_run_looks_where_the_stopping_points_are(whole_run, data, tmp_path, no_figures, monkeypatch):
    asked = AskedAt(10**9)
    monkeypatch.setattr(Trainer, "StopSignals", lambda: asked)
    train(data, tmp_path / "run", *RUN)
    assert asked.looks == LOOKS
    interrupt_run.compare(tmp_path / "run", whole_run)  # the same flags and seed: the same run


def test_a_run_stopped_again_and_again(whole_run, data, tmp_path, no_figures, monkeypatch):
    stops = 0
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "StopSignals", lambda: AskedAt(3))  # two steps at most are done each time
        while True:
            try:
                train(data, tmp_path / "run", *RUN, "--resume")
                break
            except Interrupted:
                stops += 1
                if stops == 5:  # a validation cannot be cut in pieces: from here on with more patience
                    patch.setattr(Trainer, "StopSignals", lambda: AskedAt(7))
            assert stops < 30
    assert stops > 4
    interrupt_run.compare(tmp_path / "run", whole_run)


def test_a_run_killed_as_soon_as_it_was_resumed_loses_nothing(whole_run, data, tmp_path, no_figures, monkeypatch):
    """last.ckpt is written anew before training goes on: that one, too, holds everything."""
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "StopSignals", lambda: AskedAt(9))
        with pytest.raises(Interrupted):
            train(data, tmp_path / "run", *RUN)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer.Trainer, "fit", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(data, tmp_path / "run", *RUN, "--resume")
    train(data, tmp_path / "run", *RUN, "--resume")
    interrupt_run.compare(tmp_path / "run", whole_run)


def test_another_seed_is_another_run(whole_run, data, tmp_path, no_figures):
    row, = train(data, tmp_path / "run", *RUN, "--seed", 1, "--num_epoch", 1)
    assert row["train_mse"] != read_csv(whole_run / "metrics.csv")[0]["train_mse"]


def test_a_save_within_an_epoch_changes_nothing_and_can_be_gone_on_from(whole_run, data, tmp_path, no_figures,
                                                                        monkeypatch):
    """What a run leaves that is killed: the latest of the saves that --save_every_minutes makes."""
    saved, save = [], Trainer.Trainer.save

    def keep(self, path, *args, **kwargs):
        save(self, path, *args, **kwargs)
        if path.name == "last.ckpt":
            saved.append(path.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(Trainer.Trainer, "save", keep)
        train(data, tmp_path / "run", *RUN, "--save_every_minutes", 1e-9)
    interrupt_run.compare(tmp_path / "run", whole_run)
    assert len(saved) == 1 + 3 * 2 + 3  # at the start, after each step, after each epoch
    for index, content in enumerate(saved):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "last.ckpt").write_bytes(content)
        # Evaluation statistics that fit the weights: such a file can be tested as it is.
        state = checkpoint.read(tmp_path / str(index) / "last.ckpt")
        if index > 0:
            assert state["model"]["label_encoder.2.running_mean"].abs().max() > 0.05
    train(data, tmp_path / "7", *RUN, "--resume")
    assert (tmp_path / "7" / "metrics.csv").read_bytes() == (whole_run / "metrics.csv").read_bytes()
    one, other = (torch.load(folder / "last.ckpt")["model"] for folder in (tmp_path / "7", whole_run))
    assert interrupt_run.same(one, other)


def test_an_epoch_whose_clips_have_changed_starts_again(data, tmp_path, no_figures, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "StopSignals", lambda: AskedAt(2))
        with pytest.raises(Interrupted):
            train(data, tmp_path / "run", *RUN)
    rows = train(data, tmp_path / "run", *RUN, "--replay", 0, "--clip_stride", 2, "--resume")
    assert len(rows) == 3 and "epoch 0 starts again: it had 3 clips and now has 5" in capsys.readouterr().out


def test_an_epoch_goes_on_with_another_batch_size(data, tmp_path, no_figures, monkeypatch):
    seen, step = [], Trainer.Trainer.train_step
    monkeypatch.setattr(Trainer.Trainer, "train_step",
                        lambda self, batch, *args: seen.append(batch.frames) or step(self, batch, *args))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "StopSignals", lambda: AskedAt(2))
        with pytest.raises(Interrupted):
            train(data, tmp_path / "run", *RUN, "--num_epoch", 1, "--replay", 0, "--clip_stride", 2)
    train(data, tmp_path / "run", "--num_epoch", 1, "--batch_size", 1, "--resume")
    assert [len(batch) for batch in seen] == [2, 1, 1, 1]
    clips = torch.cat(seen).flatten(1)
    assert len(clips.unique(dim=0)) == 5  # every clip once


def test_deterministic_mode_gives_the_same_run_on_a_cpu(whole_run, data, tmp_path, no_figures):
    try:
        train(data, tmp_path / "run", *RUN, "--deterministic")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    interrupt_run.compare(tmp_path / "run", whole_run)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_deterministic_mode_gives_the_same_run_on_cuda(data, tmp_path):
    for name in ("a", "b"):
        subprocess.run([sys.executable, "Trainer.py", *TINY, "--device", "cuda", *RUN, "--deterministic",
                        "--DR", str(data), "--save_root", str(tmp_path / name)], cwd=ROOT, check=True)
    interrupt_run.compare(tmp_path / "a", tmp_path / "b")


# Signals and kills: real processes

LONG = [*TINY, "--num_epoch", "100000", "--per_save", "100000", "--val_every", "100000", "--save_every_minutes", "0"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # two would wait for each other on a busy machine


def wait_for(process: subprocess.Popen, log: Path, words: str) -> None:
    limit = time.monotonic() + 60
    while words not in log.read_text():
        assert process.poll() is None and time.monotonic() < limit, log.read_text()
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_signal_ends_the_run_after_a_step_with_its_exit_code(name, data, tmp_path):
    process = interrupt_run.start(["--DR", str(data), *LONG], tmp_path / "run", 1)
    log = tmp_path / "run.log"
    wait_for(process, log, "epoch 2/")
    process.send_signal(interrupt_run.SIGNALS[name])
    assert process.wait(60) == {"INT": 130, "TERM": 143}[name]
    last_line = log.read_text().splitlines()[-1]
    assert f"SIG{name}: stopped " in last_line and str(tmp_path / "run" / "last.ckpt") in last_line
    assert interrupt_run.inspect(tmp_path / "run").epoch >= 2
    assert not (tmp_path / "run" / ".owner.json").exists()


SLOW = """
import hashlib, sys
sys.path[:0] = {path!r}
from modules.training.signals import StopSignals
with StopSignals() as interrupts:
    print("ready", flush=True)
    # One operation without end that, as PyTorch's do, lets other threads run: no handler of Python's runs within it.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_second_signal_ends_the_process_at_once_whatever_it_is_doing(name, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLOW.format(path=[str(ROOT)])], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True,
                               preexec_fn=interrupt_run.heed_signals)
    assert process.stdout.readline() == "ready\n"
    number = interrupt_run.SIGNALS[name]
    process.send_signal(number)
    assert f"SIG{name}: finishing the step" in process.stderr.readline() + process.stderr.readline()
    process.send_signal(number)  # at once: one and the same wish, passed on twice
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(StopSignals.ONE_REQUEST + 0.2)
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    process.stdout.close(), process.stderr.close()


def test_signals_are_noted_and_handlers_put_back():
    before = {name: signal.getsignal(getattr(signal, name)) for name in StopSignals.NAMES}
    with StopSignals() as interrupts:
        assert interrupts.number is None
        os.kill(os.getpid(), signal.SIGTERM)
        limit = time.monotonic() + 10
        while interrupts.number is None and time.monotonic() < limit:
            time.sleep(0.01)
    assert interrupts.number == signal.SIGTERM
    assert {name: signal.getsignal(getattr(signal, name)) for name in StopSignals.NAMES} == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_is_to_be_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_kills_at_random_moments_lose_nothing(data, tmp_path, capsys):
    flags = ["--DR", str(data), *TINY, *RUN, "--num_epoch", "4", "--save_every_minutes", "1e-9", "--per_save", "100"]
    interrupt_run.main(["--times", "2", "--wait", "0", "0.3", "--work", str(tmp_path / "work"), "--", *flags])
    out = capsys.readouterr().out
    assert "2/2: KILL" in out and "equals the one that was not, bit for bit" in out


def test_the_kill_script_notices_what_is_lost(whole_run, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("last.ckpt", "best.ckpt", "metrics.csv"):
        (run / name).write_bytes((whole_run / name).read_bytes())
    assert interrupt_run.inspect(run) == interrupt_run.Found(3, 0, 3, 0)
    interrupt_run.compare(run, whole_run)
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    for content in (lines + lines[-1:], lines[:2], lines[:-1] + [lines[-1][:9]], lines[:1] + lines[2:]):
        (run / "metrics.csv").write_text("".join(content))
        with pytest.raises(interrupt_run.Lost):
            interrupt_run.inspect(run)
            interrupt_run.compare(run, whole_run)
    (run / "metrics.csv").write_text("".join(lines))
    state = torch.load(run / "last.ckpt")
    state["optimizer"]["state"][0]["exp_avg"][0] += 1e-3
    torch.save(state, run / "last.ckpt")
    with pytest.raises(interrupt_run.Lost, match="optimizer differs"):
        interrupt_run.compare(run, whole_run)
    (run / "last.ckpt").write_bytes((whole_run / "last.ckpt").read_bytes()[:-100])
    with pytest.raises(interrupt_run.Lost, match="broken"):
        interrupt_run.inspect(run)


def test_what_a_killed_process_left_is_cleared_away_and_nothing_else(whole_run, data, tmp_path, no_figures):
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    (run / "last.ckpt").write_bytes((whole_run / "last.ckpt").read_bytes())
    for name in (".last.ckpt.77.tmp", "figures/.val.gif.77.tmp", "notes.tmp", ".hidden"):
        (run / name).write_text("half")
    train(data, run, *RUN, "--num_epoch", 4, "--resume")
    assert (run / "notes.tmp").exists() and (run / ".hidden").exists()
    assert not list(run.rglob(".*.tmp"))


# Numbers that go bad

def spoil(monkeypatch, bad_steps, part: str = "loss") -> list[int]:
    """Make the loss infinite, or all gradients NaN, in the given steps, counted from 0. Returns the steps seen."""
    seen, clip_loss, clip_norm = [], Trainer.clip_loss, torch.nn.utils.clip_grad_norm_

    def loss(*args):
        seen.append(len(seen))
        result, mse, kl = clip_loss(*args)
        return (result * math.inf if part == "loss" and seen[-1] in bad_steps else result), mse, kl

    def norm(parameters, *args):
        parameters = list(parameters)
        if part == "gradient" and seen[-1] in bad_steps:
            parameters[3].grad.view(-1)[0] = math.nan
        return clip_norm(parameters, *args)

    monkeypatch.setattr(Trainer, "clip_loss", loss)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", norm)
    return seen


@pytest.mark.parametrize("part, clip_grad", [("loss", 1), ("gradient", 0)])
def test_a_bad_step_changes_nothing_and_is_counted(part, clip_grad, data, tmp_path, no_figures, monkeypatch, capsys):
    """Weights, moments, BatchNorm's running statistics: all as before the step, also where it is the very first."""
    states, step = [], Trainer.Trainer.train_step

    def watch(self, *args):
        before = copy_of(self)
        sums = step(self, *args)
        states.append((before, copy_of(self), sums))
        return sums

    def copy_of(trainer):
        state = {"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()["state"]}
        return torch.utils._pytree.tree_map(lambda value: value.clone(), state)

    with monkeypatch.context() as patch:
        spoil(patch, {0, 3}, part)
        patch.setattr(Trainer.Trainer, "train_step", watch)
        rows = train(data, tmp_path / "run", *RUN, "--clip_grad", clip_grad, "--val_every", 9)
    for index, (before, after, sums) in enumerate(states):
        same = interrupt_run.same(before["model"], after["model"])
        assert same == (index in {0, 3})
        if index == 3:
            assert interrupt_run.same(before["optimizer"], after["optimizer"])
        assert sums.tolist()[4:] == ([0, 1] if index in {0, 3} else [len(sums) and [2, 1][index % 2], 0])
    for moment in states[0][1]["optimizer"].values():
        assert moment["step"] == 0 and not moment["exp_avg"].any() and not moment["exp_avg_sq"].any()
    assert [row["skipped"] for row in rows] == ["1", "1", "0"]
    assert all(math.isfinite(float(row["train_loss"])) for row in rows)
    assert "1 steps skipped for bad numbers" in capsys.readouterr().out


def test_an_epoch_with_a_skipped_step_means_over_the_others(data, tmp_path, no_figures, monkeypatch):
    losses, step = [], Trainer.Trainer.train_step
    with monkeypatch.context() as patch:
        spoil(patch, {0})
        patch.setattr(Trainer.Trainer, "train_step",
                      lambda self, *args: losses.append(step(self, *args)) or losses[-1])
        row, = train(data, tmp_path / "run", *RUN, "--num_epoch", 1)
    assert float(row["train_loss"]) == pytest.approx(losses[1][0].item())  # of a batch of one clip


def test_a_roll_out_without_bounds_costs_its_epoch_the_score_alone(whole_run, data, tmp_path, monkeypatch, capsys):
    validate = Trainer.Trainer.validate

    def explode(self, epoch):
        result = validate(self, epoch)
        return result | {"loss": math.inf, "psnr": math.nan} if epoch == 0 else result

    leave_out_figures(monkeypatch)
    monkeypatch.setattr(Trainer.Trainer, "validate", explode)
    rows = train(data, tmp_path / "run", *RUN)
    assert "epoch 0: over the validation sequence" in capsys.readouterr().err
    assert rows[0]["val_psnr"] == rows[0]["val_loss"] == ""
    assert rows[1:] == read_csv(whole_run / "metrics.csv")[1:]
    assert torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)["epoch"] == 3
    assert not (tmp_path / "run" / "psnr_epoch=0.csv").exists()


def test_many_bad_steps_in_a_row_end_the_run_with_what_was_seen(data, tmp_path, refused, no_figures, monkeypatch):
    spoil(monkeypatch, range(1, 10**6))
    monkeypatch.setattr(Trainer, "LOOK_EVERY", 4)
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", tmp_path / "run", *RUN, "--num_epoch", 9,
                      "--replay", 0, "--clip_stride", 1, "--batch_size", 1, "--val_every", 9, "--lr", 0.001,
                      "--precision", "bf16", "--clip_grad", 0)  # 9 steps an epoch
    assert re.search(r"the latest 12 steps, up to step 4 of epoch 1, were skipped for bad numbers; the first of them "
                     r"had loss inf, MSE 0\.\d+, KL [\d.e+-]+ and gradient norm (inf|nan), learning rate [\d.e-]+, "
                     r"beta [\d.]+;", message), message
    for words in ("last.ckpt", "--resume", "--precision fp32", "--clip_grad 1", "a smaller --lr than 0.001"):
        assert words in message
    state = checkpoint.read(tmp_path / "run" / "last.ckpt")
    assert state["epoch"] == 0 and state["progress"] is None  # no save while steps are skipped


def test_last_ckpt_is_not_replaced_while_steps_are_skipped(whole_run, data, tmp_path, no_figures, monkeypatch):
    """The weights may be what makes them bad. Going on from before them comes to the same end."""
    with monkeypatch.context() as patch:
        spoil(patch, {1})
        patch.setattr(Trainer, "StopSignals", lambda: AskedAt(3))  # after step 1, the bad one
        with pytest.raises(Interrupted):
            train(data, tmp_path / "run", *RUN, "--save_every_minutes", 1e-9)
    assert checkpoint.read(tmp_path / "run" / "last.ckpt")["progress"]["clips"] == 2  # after step 0
    train(data, tmp_path / "run", *RUN, "--resume")
    one, other = (checkpoint.read(folder / "last.ckpt")["model"] for folder in (tmp_path / "run", whole_run))
    assert interrupt_run.same(one, other)


@pytest.mark.parametrize("lr", [1, 1e30])
def test_a_run_that_diverges_keeps_checkpoints_that_can_be_gone_on_from(lr, data, tmp_path, no_figures):
    """Nothing is patched here: a learning rate that ruins the weights in a step."""
    run = tmp_path / "run"
    train(data, run, *RUN, "--num_epoch", 1, "--lr_schedule", "none", "--warmup", 0)
    with pytest.raises(BadInput, match="a smaller --lr than .*, with best.ckpt as --ckpt_path"):
        train(data, run, "--resume", "--num_epoch", 9, "--lr", lr, "--val_every", 1, "--per_save", 1)
    for path in run.glob("*.ckpt"):
        checkpoint.read(path)  # all finite
    if lr > 1:
        assert checkpoint.read(run / "last.ckpt")["epoch"] == 1
    rows = train(data, run, "--ckpt_path", run / "last.ckpt", "--num_epoch", 3, "--lr", 1e-3) if lr > 1 else []
    assert all(float(row["train_loss"]) < 1000 for row in rows)


def test_an_epoch_without_a_good_step_ends_the_run(data, tmp_path, refused, no_figures, monkeypatch):
    spoil(monkeypatch, {2, 3})
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", tmp_path / "run", *RUN)
    assert "the latest 2 steps, up to step 2 of epoch 1" in message
    assert checkpoint.read(tmp_path / "run" / "last.ckpt")["epoch"] == 1


def test_a_real_overflow_is_survived(data, tmp_path, no_figures):
    """Weights that make mu overflow in bf16 and fp32 alike: nothing is patched here."""
    train(data, tmp_path / "run", *RUN, "--num_epoch", 1)
    state = torch.load(tmp_path / "run" / "last.ckpt")
    for weight in (*state["model"].values(), *state["latest"].values()):
        if weight.dim() == 4:
            weight *= 1e6
    torch.save(state, tmp_path / "run" / "last.ckpt")
    with pytest.raises(BadInput, match="skipped for bad numbers; .*--lr"):
        train(data, tmp_path / "run", *RUN, "--num_epoch", 2, "--resume")
    assert interrupt_run.same(torch.load(tmp_path / "run" / "last.ckpt")["model"], state["model"])


def test_looking_for_bad_numbers_asks_the_device_seldom(data, tmp_path, no_figures, monkeypatch):
    """The host reads a value of the device once in LOOK_EVERY steps and at the epoch's end, not in each step."""
    reads, check = [], Trainer.Trainer.check_steps
    monkeypatch.setattr(Trainer.Trainer, "check_steps", lambda self: reads.append(self.progress.clips) or check(self))
    monkeypatch.setattr(Trainer, "LOOK_EVERY", 4)
    train(data, tmp_path / "run", *RUN, "--num_epoch", 1, "--replay", 0, "--clip_stride", 1, "--batch_size", 1)
    assert reads == [4, 8, 9]


# Disk and memory

def test_a_full_disk_ends_the_run_with_a_sentence_and_the_last_good_checkpoint(data, tmp_path, no_figures, refused):
    """A real limit of the system: no file may grow beyond half a checkpoint."""
    resource = pytest.importorskip("resource")
    run = tmp_path / "run"
    train(data, run, *RUN, "--num_epoch", 1)
    whole, (soft, hard) = (run / "last.ckpt").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, hard))
    try:
        message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", run, *RUN, "--num_epoch", 2, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "last.ckpt cannot be written (File too large); all files that were complete still are" in message
    assert (run / "last.ckpt").read_bytes() == whole and len(read_csv(run / "metrics.csv")) == 1
    train(data, run, *RUN, "--num_epoch", 2, "--resume")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_in_the_middle_of_a_run(error, data, tmp_path, no_figures, refused, monkeypatch):
    save = checkpoint.save

    def refuse(path, state):
        if state["epoch"] == 2:
            raise OSError(error, os.strerror(error), str(path))
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", refuse)
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", tmp_path / "run", *RUN)
    assert f"last.ckpt cannot be written ({os.strerror(error)})" in message and "--resume" in message
    monkeypatch.undo()
    assert interrupt_run.inspect(tmp_path / "run").epoch == 1


def test_too_little_memory_is_a_sentence_with_the_flags_that_need_less(capsys):
    def no_class():
        torch.empty(2**60)  # PyTorch has no class for this one

    def cuda():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def python():
        bytearray(2**62)

    for need in (no_class, cuda, python):
        assert utils.run_main("Trainer.py", need, Trainer.MEMORY_ADVICE) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("Trainer.py: error: out of memory; ")
        for flag in ("--batch_size", "--train_vi_len", "--no-bptt", "--precision bf16", "--F_dim", "--partial"):
            assert flag in error
    with pytest.raises(RuntimeError):  # a bug stays a bug
        utils.run_main("Trainer.py", lambda: torch.zeros(2) @ torch.zeros(3))


# Two runs, one folder

def test_a_second_run_in_the_same_folder_is_refused_and_names_the_first(data, tmp_path, refused, no_figures):
    run = tmp_path / "run"
    process = interrupt_run.start(["--DR", str(data), *LONG], run, 1)
    try:
        wait_for(process, tmp_path / "run.log", "epoch 1/")
        for flags in (["--resume"], ["--overwrite"]):
            message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", run, *flags)
            assert f"in use (process {process.pid} on " in message and "Trainer.py --DR" in message
        assert process.poll() is None
    finally:
        process.kill()  # it has no time to give the folder back
        process.wait()
    assert json.loads((run / ".owner.json").read_text())["process"] == process.pid
    epoch = interrupt_run.inspect(run).epoch
    rows = train(data, run, "--resume", "--num_epoch", epoch + 1)
    assert len(rows) == epoch + 1 and not (run / ".owner.json").exists()


def test_of_two_runs_that_begin_at_once_one_is_refused(data, tmp_path, refused, no_figures, monkeypatch):
    """Both find the folder free; the other is done before this one has read its data."""
    run, load = tmp_path / "run", Trainer.Trainer.load_data

    def meanwhile(self):
        monkeypatch.setattr(Trainer.Trainer, "load_data", load)
        train(data, run, *RUN, "--num_epoch", 1)
        load(self)

    monkeypatch.setattr(Trainer.Trainer, "load_data", meanwhile)
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", run, *RUN)
    assert "holds a run already" in message and len(read_csv(run / "metrics.csv")) == 1


def test_a_run_is_continued_from_what_lies_there_once_the_folder_is_held(data, tmp_path, no_figures, monkeypatch):
    """Another process ends its epoch and the run between this one's start and its hold of the folder."""
    run, hold = tmp_path / "run", Trainer.hold_run_folder
    train(data, run, *RUN, "--num_epoch", 1)

    def meanwhile(folder):
        monkeypatch.setattr(Trainer, "hold_run_folder", hold)
        train(data, run, *RUN, "--num_epoch", 2, "--resume")
        return hold(folder)

    monkeypatch.setattr(Trainer, "hold_run_folder", meanwhile)
    trained = []
    epoch = Trainer.Trainer.train_one_epoch
    monkeypatch.setattr(Trainer.Trainer, "train_one_epoch", lambda self: trained.append(self.epoch) or epoch(self))
    assert len(train(data, run, *RUN, "--resume")) == 3
    assert trained == [1, 2]


def test_of_two_that_resume_a_run_that_is_not_there_yet_one_is_refused(data, tmp_path, refused, no_figures,
                                                                       monkeypatch):
    run, load = tmp_path / "run", Trainer.Trainer.load_data

    def meanwhile(self):
        monkeypatch.setattr(Trainer.Trainer, "load_data", load)
        train(data, run, *RUN, "--num_epoch", 1, "--resume")
        load(self)

    monkeypatch.setattr(Trainer.Trainer, "load_data", meanwhile)
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", run, *RUN, "--resume")
    assert "another run has begun there meanwhile; start again" in message


def test_resume_of_a_run_that_is_complete_is_no_error(whole_run, data, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.ckpt").write_bytes((whole_run / "last.ckpt").read_bytes())
    Trainer.main([*TINY, "--DR", str(data), "--save_root", str(run), *RUN, "--resume"])
    assert "has its 3 epochs already; a larger --num_epoch" in capsys.readouterr().out


def test_a_reader_of_the_output_that_has_gone_costs_no_epoch(data, tmp_path):
    """As in `python Trainer.py ... | head -1`."""
    log = tmp_path / "log"
    with open(log, "w") as errors:
        process = subprocess.Popen([sys.executable, "Trainer.py", "--DR", str(data), "--save_root",
                                    str(tmp_path / "run"), *LONG], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors,
                                   env=ONE_THREAD)
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE
    assert "Traceback" not in log.read_text() and "Exception ignored" not in log.read_text()
    found = interrupt_run.inspect(tmp_path / "run")
    assert found.epoch == found.rows == 1


def test_a_terminal_that_is_closed_ends_the_run_as_a_signal_does(data, tmp_path):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "Trainer.py", "--DR", str(data), "--save_root", str(tmp_path / "run"),
                                *LONG], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
                               env=ONE_THREAD, preexec_fn=lambda: take_terminal(theirs))
    os.close(theirs)
    seen = b""
    while b"epoch 1/" not in seen:
        seen += os.read(ours, 1000)
    os.close(ours)  # the terminal is gone: SIGHUP, and nothing can be written to it any more
    assert process.wait(60) == 129
    assert interrupt_run.inspect(tmp_path / "run").epoch >= 1


def take_terminal(descriptor: int) -> None:
    import fcntl
    import termios
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
    interrupt_run.heed_signals()


def test_signals_are_heeded_where_stderr_is_closed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLOW.format(path=[str(ROOT)])], stdout=subprocess.PIPE,
                               text=True, preexec_fn=lambda: (interrupt_run.heed_signals(), os.close(2)))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(StopSignals.ONE_REQUEST + 0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    process.stdout.close()


def test_resume_without_last_ckpt_leaves_the_rest_of_a_run_alone(whole_run, data, tmp_path, refused):
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.ckpt").write_bytes((whole_run / "best.ckpt").read_bytes())
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", run, "--resume", untouched=run)
    assert "no last.ckpt to resume" in message and "--overwrite" in message


# A checkpoint that is no friend

def change(state: dict, place: list, value) -> dict:
    here = state
    for key in place[:-1]:
        here = here[key]
    here[place[-1]] = value
    return state


@pytest.mark.parametrize("place, value", [
    (["epoch"], -1), (["epoch"], 1.0), (["epoch"], 2), (["epoch"], None), (["best_psnr"], math.nan), (["best_psnr"], 1),
    (["metrics"], []), (["metrics"], None), (["metrics", 0], {}), (["metrics", 0, "epoch"], 5),
    (["metrics", 0, "lr"], "0.1"), (["metrics", 0, "lr"], 10**400), (["metrics", 0, "train_loss"], None),
    (["metrics", 0, "new"], 1), (["timing", 0, "train_seconds"], None), (["optimizer"], []),
    (["optimizer", "state"], None), (["optimizer", "state", 0], None), (["optimizer", "state", 7], {}),
    (["optimizer", "state", 0, "exp_avg"], torch.zeros(1)), (["optimizer", "state", 0, "step"], 3),
    (["optimizer", "state", 0, "exp_avg_sq"], "the right shape, but NaN"), (["optimizer", "state", "a"], {}),
    (["generators"], None), (["generators", "order"], torch.zeros(5056, dtype=torch.uint8)),
    (["generators", "order"], torch.zeros(3)), (["generators", "latent"], None),
    (["progress", "sums"], torch.ones(1, dtype=torch.float64).expand(6) * math.nan),
    (["progress", "sums"], torch.zeros(6, dtype=torch.float64).requires_grad_()),
    (["progress", "sums"], torch.full((6,), 1e300, dtype=torch.float64)),
    (["timing", 0, "skipped"], 1), (["device"], None),
    (["latest"], 3), (["latest", "x"], torch.zeros(1)), (["averaged_steps"], -1.0),
    (["averaged_steps"], torch.zeros(2)), (["replay"], 3), (["replay", "is_known"], torch.zeros(3)),
    (["replay", "predictions"], torch.zeros(3, 3, 8, 16)), (["replay"], {}),
    (["progress"], 3), (["progress"], {}),
    (["progress", "order"], torch.tensor([0, 0, 1])), (["progress", "order"], torch.tensor([[0, 1, 2]])),
    (["progress", "order"], torch.tensor([0.0, 1, 2])), (["progress", "clips"], 4), (["progress", "clips"], -1),
    (["progress", "sums"], torch.zeros(6)), (["progress", "forced"], torch.zeros(1)),
    (["progress", "lr"], math.inf), (["progress", "seconds"], "1"), (["progress", "forced_clips"], 1.5)], ids=str)
def test_a_damaged_training_state_is_refused_before_anything_is_changed(place, value, data, tmp_path_factory, tmp_path,
                                                                        refused, no_figures, monkeypatch):
    stopped = tmp_path_factory.getbasetemp() / "stopped_in_epoch_1"
    if not stopped.exists():
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "StopSignals", lambda: AskedAt(10))
            with pytest.raises(Interrupted, match="in epoch 1 after 2 of 3 clips"):
                train(data, stopped, *RUN)
    state = torch.load(stopped / "last.ckpt")
    if isinstance(value, str) and "NaN" in value:
        value = torch.full_like(state["optimizer"]["state"][0]["exp_avg_sq"], math.nan)
    torch.save(change(state, place, value), tmp_path / "bad.ckpt")
    message = refused("Trainer.py", "--DR", data, "--save_root", tmp_path / "run", "--num_epoch", 9,
                      "--ckpt_path", tmp_path / "bad.ckpt", untouched=tmp_path)
    if place == ["epoch"]:
        assert "its epoch is no number" in message or "training state is damaged" in message
    else:
        assert "training state is damaged" in message and place[0] in message


@pytest.mark.parametrize("flags", [
    {"optim": "Adam --overwrite"}, {"optim": "--overwrite"}, {"lr_schedule": "@/etc/passwd"}, {"lr_milestones": [-1]},
    {"overwrite": True, "DR": "elsewhere", "save_root": "elsewhere"}], ids=str)
def test_flags_in_a_checkpoint_are_never_more_than_values(flags, whole_run, tmp_path, monkeypatch):
    state = torch.load(whole_run / "last.ckpt")
    state["flags"] |= flags
    torch.save(state, tmp_path / "odd.ckpt")
    try:
        args, _ = Trainer.parse_flags(["--DR", "d", "--save_root", "r", "--ckpt_path", str(tmp_path / "odd.ckpt")])
    except BadInput as error:
        assert next(iter(flags)) in str(error) and "root:" not in str(error)
    else:
        assert not args.overwrite and args.DR == "d" and args.save_root == "r"


def test_moments_from_another_memory_layout_give_the_same_step(whole_run, data, tmp_path):
    """The fused step walks through weights, gradients and moments in the order of memory."""
    trainers = []
    for contiguous in (False, True):
        state = torch.load(whole_run / "last.ckpt")
        if contiguous:
            for moment in state["optimizer"]["state"].values():
                moment.update({name: value.contiguous() for name, value in moment.items()})
        torch.save(state, tmp_path / "a.ckpt")
        args, state = Trainer.parse_flags(["--DR", str(data), "--save_root", "r", "--device", "cpu",
                                           "--ckpt_path", str(tmp_path / "a.ckpt")])
        trainers.append(Trainer.make_trainer(args, state))
    for trainer in trainers:
        torch.manual_seed(0)
        for parameter in trainer.model.parameters():
            parameter.grad = torch.randn(parameter.shape).to(memory_format=torch.preserve_format)
            parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
        trainer.optimizer.step()
    assert interrupt_run.same(trainers[0].model.state_dict(), trainers[1].model.state_dict())
    assert isinstance(trainers[0].model, CVAE)


def test_own_data_is_not_written_to_without_a_cache(tmp_path, no_figures):
    own = make_dataset(tmp_path / "data")
    before = contents(own)
    train(own, tmp_path / "run", *RUN, "--num_epoch", 1, "--no-cache")
    assert contents(own) == before
