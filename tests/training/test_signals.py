"""Signals: the first one stops the run between two steps, the second one ends it at once.

    python -m pytest tests/training/test_signals.py
"""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kill_run
from modules.training.signals import StopSignals
from training.run_helpers import LONG, ONE_THREAD, train

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def test_the_first_signal_is_noted_and_the_handlers_are_put_back(capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as with nohup
    try:
        given = list(map(signal.getsignal, NUMBERS))
        with StopSignals() as signals:
            assert signals.number is None
            signal.raise_signal(signal.SIGTERM)
            assert signals.number == signal.SIGTERM and "SIGTERM" in capsys.readouterr().err
            # From now on another signal ends the process, unless it was to be ignored from the start.
            assert list(map(signal.getsignal, NUMBERS)) == [signal.SIG_DFL, signal.SIG_DFL, signal.SIG_IGN]
        assert list(map(signal.getsignal, NUMBERS)) == given
    finally:
        signal.signal(signal.SIGHUP, before)


def test_under_torchrun_later_signals_are_ignored(monkeypatch):
    """It passes on what the terminal has sent to every process already."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with StopSignals() as signals:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
    assert signals.number == signal.SIGINT


# Real processes

SLOW = """
import hashlib, sys, time
sys.path.insert(0, {root!r})
from modules.training.signals import StopSignals
from utils import progress_bar, run_main
def main():
    with StopSignals() as signals:
        print("ready", flush=True)
        for _ in progress_bar(iter(lambda: signals.number, 0)):  # short steps
            time.sleep(0.01)
            if signals.number:
                print("noted", flush=True)
                # An endless step, in which no handler of Python's runs.
                hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
run_main("P.py", main)
"""


@pytest.mark.parametrize("number, has_stderr", [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_second_signal_ends_the_process_inside_any_operation(number, has_stderr):
    """Also where stderr is closed."""
    with subprocess.Popen([sys.executable, "-c", SLOW.format(root=str(ROOT))], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True,
                          preexec_fn=lambda: (kill_run.reset_signals(), has_stderr or os.close(2))) as process:
        try:
            for word in ("ready", "noted"):
                assert process.stdout.readline() == f"{word}\n"
                process.send_signal(number)
            assert process.wait(20) == -number
            assert (signal.Signals(number).name in process.stderr.read()) == has_stderr
        finally:
            process.kill()


def test_ctrl_c_stops_a_run_which_was_its_folders_only_one(data, tmp_path, refused, no_figures):
    run, log = tmp_path / "run", tmp_path / "run.log"
    process, limit = kill_run.start(["--DR", str(data), *LONG], run, 1), time.monotonic() + 60
    try:
        while "epoch 2/" not in log.read_text():
            assert process.poll() is None and time.monotonic() < limit, log.read_text()
            time.sleep(0.02)
        for flags in (["--resume"], ["--overwrite"]):
            message = refused("Trainer.py", *LONG, "--DR", data, "--save_root", run, *flags)
            assert f"process {process.pid} " in message
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
    last_line = log.read_text().splitlines()[-1]
    assert "SIGINT" in last_line and str(run / "last.ckpt") in last_line and "Traceback" not in log.read_text()
    epoch = kill_run.inspect(run).epoch
    assert epoch >= 2 and len(train(data, run, "--resume", "--num_epoch", epoch + 1)) == epoch + 1


def test_a_reader_of_the_output_that_is_gone_costs_no_epoch(data, tmp_path):
    """As in `python Trainer.py ... | head -1`."""
    log = tmp_path / "log"
    with open(log, "w") as errors:
        process = subprocess.Popen([sys.executable, "Trainer.py", "--DR", str(data), "--save_root",
                                    str(tmp_path / "run"), *LONG], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors,
                                   env=ONE_THREAD)
    while b"run folder" not in process.stdout.readline():
        pass
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE
    assert "Traceback" not in log.read_text() and "Exception ignored" not in log.read_text()
    found = kill_run.inspect(tmp_path / "run")
    assert found.epoch == found.rows == 1


def test_a_closed_terminal_stops_the_run_as_a_signal_does(data, tmp_path):
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "Trainer.py", "--DR", str(data), "--save_root", str(tmp_path / "run"), *LONG], cwd=ROOT,
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=ONE_THREAD,
        preexec_fn=lambda: (kill_run.reset_signals(), fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)))
    os.close(theirs)
    seen = b""
    while b"epoch 1/" not in seen:
        seen += os.read(ours, 1000)
    os.close(ours)  # SIGHUP, and from now on nothing can be written to the terminal
    assert process.wait(60) == 128 + signal.SIGHUP
    assert kill_run.inspect(tmp_path / "run").epoch >= 1
