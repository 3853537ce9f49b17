"""The run folder: which files a run writes there, its description, and the lock that one process holds."""
import contextlib
import datetime
import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock
import numpy
import torch

from utils import BadInput, write_json

# What a new run replaces. Anything else in the folder is the user's and is never deleted.
RUN_FILES = ("config.json", "metrics.csv", "timing.csv", "last.ckpt", "best.ckpt", "epoch=*.ckpt",
             "psnr_best.csv", "psnr_epoch=*.csv", "events.out.tfevents.*")
FIGURES = ("figures/loss.png", "figures/teacher_forcing.png", "figures/psnr_per_frame.png", "figures/val.gif",
           "figures/val_epoch=*.gif", "figures/test_psnr_per_frame.png", "figures/test_val.gif")


def find_run(folder: Path) -> list[Path]:
    """The files of the run that ``folder`` holds, figures included; empty where it holds none."""
    if not any(path for pattern in RUN_FILES for path in folder.glob(pattern)):
        return []
    return [path for pattern in RUN_FILES + FIGURES for path in folder.glob(pattern)]


def write_config(path: Path, flags: dict) -> None:
    """Write config.json, what a reader needs to repeat the run: command, flags, versions, git commit.

    What an earlier call wrote there, of a run that is resumed, moves to "before".
    """
    before = []
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        earlier = json.loads(path.read_text(encoding="utf-8"))
        before = [*earlier.pop("before", []), earlier]
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True) if shutil.which("git") else None
    write_json(path, {"command": shlex.join(sys.argv), "flags": flags,
                      "versions": {"python": platform.python_version(), "torch": torch.__version__,
                                   "numpy": numpy.__version__, "cuda": torch.version.cuda},
                      "commit": commit.stdout.strip() or None if commit else None, "before": before})


@contextlib.contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Be the only process that writes to a run folder. The system releases the lock when the process ends, in any way.

    Raises
    ------
    BadInput : another process holds it; the message names that process.
    """
    owner = folder / ".owner.json"
    try:
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        name = "another process"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            holder = json.loads(owner.read_text(encoding="utf-8"))
            name = f"process {holder['process']} on {holder['host']}, since {holder['since']}: {holder['command']}"
        raise BadInput(f"{folder} is in use ({name}); wait for that run, end it or choose another folder") from error
    try:
        # Left by a process that died; nobody else writes here now.
        for temporary in (*folder.glob(".*.tmp"), *folder.glob("figures/.*.tmp")):
            temporary.unlink(missing_ok=True)
        write_json(owner, {"process": os.getpid(), "host": socket.gethostname(), "command": shlex.join(sys.argv),
                           "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds")})
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process is writing to a run folder."""
    if not (folder / ".owner.json").exists() or not (folder / ".lock").exists():
        return False
    try:
        # A process that was killed has left its name, but not the lock.
        with filelock.FileLock(folder / ".lock", timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # another user's folder: trust the name
        return True
