"""Interrupt a training run again and again, and show that nothing is lost.

    python scripts/dev/interrupt_run.py --times 50 --signals KILL
    python scripts/dev/interrupt_run.py --times 6 --signals INT TERM KILL --wait 60 200 -- @FILE.args --DR DATASET

Two runs with the same flags: a twin that nobody disturbs, and one that gets a signal at a random moment, is looked at,
continued with --resume, and so on. After each signal last.ckpt must load, metrics.csv must hold every finished epoch
once, and no progress may be lost that was there before. In the end both runs must hold the same weights, optimiser
state, random generators and metrics.csv, bit for bit. The flags of Trainer.py stand after --; without them it is a tiny
network on a tiny synthetic dataset that saves after every step, so that many signals fall into the writing of a file.

Signals: KILL (what a power cut or an out-of-memory killer is to the process), INT (Ctrl-C), TERM, HUP, and TWICE, a
Ctrl-C and another one a second later.
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
TINY = ["--F_dim", "8", "--L_dim", "4", "--N_dim", "4", "--D_out_dim", "8", "--train_vi_len", "4", "--val_vi_len", "12",
        "--num_epoch", "120", "--val_every", "3", "--per_save", "10", "--save_every_minutes", "0.00001",
        "--tf_draw", "clip", "--tfr", "0.5", "--lr_schedule", "cosine", "--device", "cpu",
        "--replay", "0.7", "--ema", "0.8", "--batch_size", "2"]
TINY_DATA = ["--train_frames", "72", "--val_frames", "12", "--test_sequences", "1", "--test_frames", "2"]


class Lost(Exception):
    """The run has lost something. The message says what."""


@dataclass
class Found:
    """What lies in a run folder after a signal."""
    epoch: int
    clips: int  # of the epoch under way
    rows: int  # of metrics.csv
    unfinished: int  # files whose writing was cut off

    def __str__(self) -> str:
        return (f"epoch {self.epoch}, {self.clips} clips into it, {self.rows} rows"
                + (f", {self.unfinished} unfinished file" if self.unfinished else ""))


def inspect(folder: Path) -> Found:
    """Load last.ckpt and metrics.csv. Lost: one is missing, damaged, or they contradict each other."""
    try:
        state = checkpoint.read(folder / "last.ckpt")
    except ValueError as error:
        raise Lost(f"last.ckpt: {error}") from error
    rows = []
    if (folder / "metrics.csv").exists():  # it comes after the first last.ckpt
        with open(folder / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        if tuple(row) != METRICS or row["epoch"] != str(index):
            raise Lost(f"metrics.csv: row {index} is {row}")
        for value in row.values():
            float(value or 0)
    epoch, progress = state["epoch"], state["progress"]
    if len(rows) not in (epoch, epoch + 1) and not (epoch == 0 and not rows):
        raise Lost(f"metrics.csv has {len(rows)} rows, last.ckpt is in epoch {epoch}")
    return Found(epoch, progress["clips"] if progress else 0, len(rows), len(list(folder.rglob(".*.tmp"))))


def start(flags: list[str], folder: Path, threads: int) -> subprocess.Popen:
    """A training process that continues the run in ``folder``, or begins it. What it says goes to FOLDER.log."""
    command = [sys.executable, str(ROOT / "Trainer.py"), *flags, "--save_root", str(folder), "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    with open(f"{folder}.log", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT, preexec_fn=heed_signals)


def heed_signals() -> None:
    """A shell that starts this script in the background, or nohup, lets it ignore signals: not so the run."""
    for name in ("INT", "HUP"):
        signal.signal(SIGNALS[name], signal.SIG_DFL)


def interrupt(flags: list[str], folder: Path, name: str, wait: float, threads: int) -> Found:
    """Start or continue a run, send it a signal ``wait`` seconds after it has begun to train, and look at its folder.

    Raises
    ------
    Lost : the run had ended before, did not end as the signal asks for, or left a damaged folder.
    """
    log = Path(f"{folder}.log")
    said = log.stat().st_size if log.exists() else 0
    process = start(flags, folder, threads)
    try:
        while process.poll() is None and b"run folder" not in log.read_bytes()[said:]:  # said before the first step
            time.sleep(0.02)
        time.sleep(wait)
        process.send_signal(SIGNALS[name])
        if name == "TWICE":
            time.sleep(1)
            process.send_signal(SIGNALS[name])
        process.wait(timeout=600)
    except subprocess.TimeoutExpired as error:
        raise Lost(f"it was still there 600 s after {name}, see {log}") from error
    finally:
        process.kill()
    expected = {"KILL": -signal.SIGKILL}.get(name, 128 + SIGNALS[name])
    if process.returncode != expected:
        raise Lost(f"it ended with {process.returncode} where {expected} is due (see {log}); if it came to its end "
                   "before the signal, give more epochs or a shorter --wait")
    if b"Traceback" in log.read_bytes():
        raise Lost(f"it ended with a stack trace, see {log}")
    return inspect(folder)


def finish(process: subprocess.Popen, folder: Path) -> None:
    """Wait for a run's own end. Lost: it failed."""
    process.wait()
    if process.returncode != 0:
        raise Lost(f"the run in {folder} ended with {process.returncode}, see {folder}.log")


def compare(folder: Path, twin: Path) -> None:
    """Lost: the two runs do not hold the same weights, training state, best weights and metrics, bit for bit."""
    for name in ("last.ckpt", "best.ckpt"):
        one, other = checkpoint.read(folder / name), checkpoint.read(twin / name)
        for part in ("model", "optimizer", "generators", "metrics", "epoch", "best_psnr"):
            if not same(one[part], other[part]):
                raise Lost(f"{name}: {part} differs from that of the run that nobody disturbed")
    if (folder / "metrics.csv").read_bytes() != (twin / "metrics.csv").read_bytes():
        raise Lost("metrics.csv differs from that of the run that nobody disturbed")


def same(one: object, other: object) -> bool:
    """Equality of nested dicts, lists and tensors."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    argv, flags = (argv[:argv.index("--")], argv[argv.index("--") + 1:]) if "--" in argv else (argv, None)
    parser = FlagParser(prog="interrupt_run.py", description="Interrupt a training run again and again.",
                        epilog="The flags of Trainer.py, without --save_root, stand after --.")
    parser.add_argument("--times", type=number(int, 1), default=50, help="interruptions")
    parser.add_argument("--signals", nargs="+", choices=list(SIGNALS), default=["KILL"], help="sent in turn")
    parser.add_argument("--wait", nargs=2, type=number(float, 0), default=[0.0, 4.0], metavar=("LEAST", "MOST"),
                        help="seconds from the first step to the signal, drawn evenly")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="seed of those moments")
    parser.add_argument("--threads", type=number(int, 1), default=1, help="threads of each of the two runs")
    parser.add_argument("--work", type=Path, help="empty or new folder for the runs; None: a temporary one")
    args = parser.parse_args(argv)

    work = args.work or Path(tempfile.mkdtemp(prefix="interrupt_run_"))
    if work.exists() and any(work.iterdir()):
        raise BadInput(f"--work {work} is not empty; give another folder")
    work.mkdir(parents=True, exist_ok=True)
    if flags is None:
        subprocess.run([sys.executable, str(ROOT / "scripts" / "make_synthetic_dataset.py"), str(work / "data"),
                        *TINY_DATA], check=True)
        flags = ["--DR", str(work / "data"), *TINY]
    run, twin = work / "run", work / "twin"
    undisturbed = start(flags, twin, args.threads)
    try:
        interrupt_often(flags, run, args)
        finish(undisturbed, twin)
        compare(run, twin)
    except Lost as error:
        raise BadInput(f"{error} (the runs are in {work})") from error
    finally:
        undisturbed.kill()
    print(f"the run that was interrupted {args.times} times equals the one that was not, bit for bit: weights, "
          f"optimiser, random generators, metrics.csv; both are in {work}")


def interrupt_often(flags: list[str], run: Path, args: argparse.Namespace) -> None:
    """The interruptions, a line for each, and then the run to its end."""
    dice = random.Random(args.seed)
    reached, unfinished, within = (0, 0), 0, 0
    for index in range(args.times):
        name, wait = args.signals[index % len(args.signals)], dice.uniform(*args.wait)
        found = interrupt(flags, run, name, wait, args.threads)
        print(f"{index + 1}/{args.times}: {name} after {wait:.2f} s: {found}", flush=True)
        if (found.epoch, found.clips) < reached:
            raise Lost(f"it was at epoch {reached[0]}, {reached[1]} clips, and is at {found}")
        reached = found.epoch, found.clips
        unfinished, within = unfinished + found.unfinished, within + (found.clips > 0)
    print(f"{args.times} interruptions: each time last.ckpt loaded, metrics.csv was whole and the run went on; "
          f"{within} times the checkpoint was within an epoch, {unfinished} times a file was being written")
    finish(start(flags, run, args.threads), run)


if __name__ == "__main__":
    sys.exit(run_main("interrupt_run.py", main))
