"""Kill a training run again and again, and check that nothing is lost.

    python scripts/dev/kill_run.py --times 50 --signals KILL
    python scripts/dev/kill_run.py --times 6 --signals INT TERM KILL --wait 60 200 -- --recipe best_small --DR DATASET

Two runs with the same flags: one that is left alone, and one that gets a signal at a random moment, is inspected,
resumed with --resume, and so on. After each signal last.ckpt must load, metrics.csv must hold each finished epoch once,
and no saved progress may be lost. In the end both runs must hold the same weights, optimiser state, random generators
and metrics.csv, bit for bit. The flags of Trainer.py follow --; the default is a tiny network on a tiny synthetic
dataset that saves after every step, so that many signals arrive while a file is being written.

Signals: KILL (the effect of a power cut or an out-of-memory killer on the process), INT (Ctrl-C), TERM, HUP, and TWICE,
a Ctrl-C and another one a second later.
"""
import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from modules.config.parser import FlagParser, number  # noqa: E402
from modules.training import checkpoint  # noqa: E402
from modules.training.metric_log import METRICS  # noqa: E402
from utils import BadInput, run_main  # noqa: E402

SIGNALS = {"KILL": signal.SIGKILL, "INT": signal.SIGINT, "TERM": signal.SIGTERM, "HUP": signal.SIGHUP,
           "TWICE": signal.SIGINT}
# Every part of the state is in use: random teacher forcing, replay, an average of the weights.
TINY = ["--F_dim", "8", "--L_dim", "4", "--N_dim", "4", "--D_out_dim", "8", "--train_vi_len", "4", "--val_vi_len", "12",
        "--batch_size", "2", "--num_epoch", "120", "--val_every", "3", "--per_save", "10",
        "--save_every_minutes", "0.00001", "--tf_draw", "clip", "--tfr", "0.5", "--tfr_d_step", "0",
        "--lr_schedule", "cosine", "--decoder_variance", "optimal", "--output", "sigmoid", "--kl_anneal_stop", "0.001",
        "--replay", "0.7", "--ema", "0.8", "--device", "cpu", "--precision", "fp32"]
TINY_DATA = ["--train_frames", "72", "--val_frames", "12", "--test_sequences", "1", "--test_frames", "2"]
ENDS_AFTER = 600  # seconds within which a run must end after a signal


class Lost(Exception):
    """The run has lost something. The message says what."""


@dataclass
class Found:
    """The content of a run folder after a signal."""
    epoch: int
    clips: int  # of the current epoch
    rows: int  # of metrics.csv
    unfinished: int  # files whose writing was interrupted

    def __str__(self) -> str:
        return (f"epoch {self.epoch}, {self.clips} clips into it, {self.rows} rows"
                + (f", {self.unfinished} unfinished file" if self.unfinished else ""))


def inspect(folder: Path) -> Found:
    """Load last.ckpt and metrics.csv. Lost: one is missing or damaged, or they contradict each other."""
    try:
        state = checkpoint.read(folder / "last.ckpt")
    except ValueError as error:
        raise Lost(f"last.ckpt: {error}") from error
    rows = []
    if (folder / "metrics.csv").exists():  # it is written after the first last.ckpt
        with open(folder / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        if tuple(row) != METRICS or row["epoch"] != str(index):
            raise Lost(f"metrics.csv: row {index} is {row}")
        for value in row.values():
            float(value or 0)
    epoch, progress = state["epoch"], state["progress"]
    if len(rows) < epoch:  # it is written before last.ckpt
        raise Lost(f"metrics.csv has {len(rows)} rows, but last.ckpt is in epoch {epoch}")
    return Found(epoch, progress["clips"] if progress else 0, len(rows), len(list(folder.rglob(".*.tmp"))))


def start(flags: list[str], folder: Path, threads: int) -> subprocess.Popen:
    """A training process that starts or resumes the run in ``folder``. Its output goes to FOLDER.log."""
    command = [sys.executable, str(ROOT / "Trainer.py"), *flags, "--save_root", str(folder), "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    with open(f"{folder}.log", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT, preexec_fn=reset_signals)


def reset_signals() -> None:
    """Undo that a shell with this script in the background, or nohup, makes it and its children ignore signals."""
    for name in ("INT", "HUP"):
        signal.signal(SIGNALS[name], signal.SIG_DFL)


def interrupt(flags: list[str], folder: Path, name: str, wait: float, threads: int) -> Found:
    """Start or resume a run, send it a signal ``wait`` seconds after training has started, and inspect its folder.

    Raises
    ------
    Lost : the run ended before the signal or not as the signal requires, or left a damaged folder.
    """
    log = Path(f"{folder}.log")
    size = log.stat().st_size if log.exists() else 0
    process = start(flags, folder, threads)
    try:
        while process.poll() is None and b"run folder" not in log.read_bytes()[size:]:  # printed before the first step
            time.sleep(0.02)
        time.sleep(wait)
        process.send_signal(SIGNALS[name])
        if name == "TWICE":
            time.sleep(1)
            process.send_signal(SIGNALS[name])
        process.wait(timeout=ENDS_AFTER)
    except subprocess.TimeoutExpired as error:
        raise Lost(f"it was still running {ENDS_AFTER} s after {name}, see {log}") from error
    finally:
        process.kill()
    saved, ended_at_once = 128 + SIGNALS[name], -SIGNALS[name]
    expected = {"KILL": (ended_at_once,), "TWICE": (saved, ended_at_once)}.get(name, (saved,))
    if process.returncode not in expected:
        raise Lost(f"its exit code was {process.returncode} instead of {expected[0]} (see {log}); if it was done "
                   "before the signal, give more epochs or a shorter --wait")
    if b"Traceback" in log.read_bytes():
        raise Lost(f"it ended with a stack trace, see {log}")
    return inspect(folder)


def finish(process: subprocess.Popen, folder: Path) -> None:
    """Wait for a run to end by itself. Lost: it failed."""
    process.wait()
    if process.returncode != 0:
        raise Lost(f"the run in {folder} ended with {process.returncode}, see {folder}.log")


def compare(folder: Path, other: Path) -> None:
    """Lost: last.ckpt, best.ckpt or metrics.csv of the two runs differ in anything but flags and times."""
    for name in ("last.ckpt", "best.ckpt"):
        states = [checkpoint.read(path / name) for path in (folder, other)]
        for part in (states[0].keys() | states[1].keys()) - {"flags", "timing"}:
            if not same(*(state.get(part) for state in states)):
                raise Lost(f"{name}: {part} differs from that of the undisturbed run")
    if (folder / "metrics.csv").read_bytes() != (other / "metrics.csv").read_bytes():
        raise Lost("metrics.csv differs from that of the undisturbed run")


def same(one: object, other: object) -> bool:
    """Equality of nested dicts, lists and tensors."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def interrupt_often(flags: list[str], run: Path, args: argparse.Namespace) -> None:
    """Interrupt the run --times times, with a line of output for each, and then let it finish."""
    rng = random.Random(args.seed)
    reached, unfinished, within = (0, 0), 0, 0
    for index in range(args.times):
        name, wait = args.signals[index % len(args.signals)], rng.uniform(*args.wait)
        found = interrupt(flags, run, name, wait, args.threads)
        print(f"{index + 1}/{args.times}: {name} after {wait:.2f} s: {found}", flush=True)
        if (found.epoch, found.clips) < reached:
            raise Lost(f"it had reached epoch {reached[0]}, {reached[1]} clips, and is now at {found}")
        reached = found.epoch, found.clips
        unfinished, within = unfinished + found.unfinished, within + (found.clips > 0)
    print(f"{args.times} signals: each time last.ckpt loaded, metrics.csv was complete and the run continued; {within} "
          f"times the checkpoint was within an epoch, {unfinished} times a file was being written")
    finish(start(flags, run, args.threads), run)


def parse_flags(argv: list[str] | None) -> tuple[argparse.Namespace, list[str] | None]:
    """The script's own flags and those of Trainer.py, which follow --; None without them."""
    argv = sys.argv[1:] if argv is None else argv
    argv, flags = (argv[:argv.index("--")], argv[argv.index("--") + 1:]) if "--" in argv else (argv, None)
    parser = FlagParser(prog="kill_run.py", description="Kill a training run again and again.",
                        epilog="The flags of Trainer.py, without --save_root, follow --.")
    parser.add_argument("--times", type=number(int, 1), default=50, help="number of signals")
    parser.add_argument("--signals", nargs="+", choices=list(SIGNALS), default=["KILL"], help="sent in turn")
    parser.add_argument("--wait", nargs=2, type=number(float, 0), default=[0.0, 4.0], metavar=("LEAST", "MOST"),
                        help="seconds from the first step to the signal, drawn uniformly")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="seed of these draws")
    parser.add_argument("--threads", type=number(int, 1), default=1, help="threads of each of the two runs")
    parser.add_argument("--work", type=Path, help="empty or new folder for the runs; None: a temporary one")
    return parser.parse_args(argv), flags


def main(argv: list[str] | None = None) -> None:
    args, flags = parse_flags(argv)
    work = args.work or Path(tempfile.mkdtemp(prefix="kill_run_"))
    if work.exists() and any(work.iterdir()):
        raise BadInput(f"--work {work} is not empty; give another folder")
    work.mkdir(parents=True, exist_ok=True)
    if flags is None:
        subprocess.run([sys.executable, str(ROOT / "scripts" / "make_synthetic_dataset.py"), str(work / "data"),
                        *TINY_DATA], check=True)
        flags = ["--DR", str(work / "data"), *TINY]
    run, undisturbed = work / "run", work / "undisturbed"
    process = start(flags, undisturbed, args.threads)
    try:
        interrupt_often(flags, run, args)
        finish(process, undisturbed)
        compare(run, undisturbed)
    except Lost as error:
        raise BadInput(f"{error} (the runs are in {work})") from error
    finally:
        process.kill()
    print(f"the run that got {args.times} signals equals the undisturbed one, bit for bit: weights, optimiser, random "
          f"generators, metrics.csv; both are in {work}")


if __name__ == "__main__":
    sys.exit(run_main("kill_run.py", main))
