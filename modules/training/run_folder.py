"""The run folder: what a run writes there, and the lock that one process holds."""
import argparse
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
import torch

from utils import BadInput, write_json


def describe_run(args: argparse.Namespace, previous: Path) -> dict:
    """What a reader needs to repeat the run: command, flags, versions, git commit.

    ``previous`` is the run's config.json so far, if any: its calls stay on record under "before".
    """
    before = []
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        earlier = json.loads(previous.read_text(encoding="utf-8"))
        before = [*earlier.pop("before", []), earlier]
    import numpy
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True) if shutil.which("git") else None
    return {"command": shlex.join(sys.argv), "flags": vars(args),
            "versions": {"python": platform.python_version(), "torch": torch.__version__,
                         "numpy": numpy.__version__, "cuda": torch.version.cuda},
            "commit": commit.stdout.strip() or None if commit else None, "before": before}


# What a run writes: whatever else lies in its folder is not ours to delete.
RUN_FILES = ("config.json", "metrics.csv", "timing.csv", "last.ckpt", "best.ckpt", "epoch=*.ckpt",
             "psnr_best.csv", "psnr_epoch=*.csv", "events.out.tfevents.*")
RUN_FIGURES = ("figures/loss.png", "figures/teacher_forcing.png", "figures/psnr_per_frame.png", "figures/val.gif",
               "figures/val_epoch=*.gif")


def check_run_folder(args: argparse.Namespace) -> list[Path]:
    """The files of another run that --overwrite allows to delete from --save_root; none for a new or continued run.

    Raises
    ------
    BadInput : the folder holds a run that is not to be continued or overwritten.
    """
    folder = Path(args.save_root)
    # Another checkpoint of this folder is older than its last epochs: continuing there would delete those.
    continues = (args.ckpt_path and not args.finetune
                 and Path(args.ckpt_path).resolve() == (folder / "last.ckpt").resolve())
    if continues and args.overwrite:
        raise BadInput(f"--overwrite deletes the run in {folder}, --ckpt_path continues it; give one of the two")
    if continues or not any(path for pattern in RUN_FILES for path in folder.glob(pattern)):
        return []
    if args.resume and not args.ckpt_path and (folder / "last.ckpt").exists():
        raise BadInput(f"--save_root {folder}: another run has begun there meanwhile; start again")
    if args.resume and not args.ckpt_path:
        raise BadInput(f"--save_root {folder} holds files of a run, but no last.ckpt to resume; delete them with "
                       "--overwrite, or choose another folder and, with --ckpt_path, another checkpoint")
    if not args.overwrite:
        raise BadInput(f"--save_root {folder} holds a run already; continue it with --resume, delete it with "
                       "--overwrite, or choose another folder")
    old = [path for pattern in RUN_FILES + RUN_FIGURES for path in folder.glob(pattern)]
    if args.ckpt_path and Path(args.ckpt_path).resolve() in [path.resolve() for path in old]:
        raise BadInput(f"--overwrite deletes the run in {folder}, and {args.ckpt_path} with it; choose another "
                       "--save_root")
    return old


@contextlib.contextmanager
def hold_run_folder(folder: Path) -> Iterator[None]:
    """Be the only process that writes to a run folder. The system lets go of it when the process dies, however it dies.

    Raises
    ------
    BadInput : another process, which is named, holds it.
    """
    owner = folder / ".owner.json"
    try:
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        name = "another process"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            first = json.loads(owner.read_text(encoding="utf-8"))
            name = f"process {first['process']} on {first['host']}, since {first['since']}: {first['command']}"
        raise BadInput(f"--save_root {folder} is in use ({name}); wait for that run, end it or choose another "
                       "folder") from error
    try:
        # What a process that died has left; nobody else writes here now.
        for temporary in (*folder.glob(".*.tmp"), *folder.glob("figures/.*.tmp")):
            temporary.unlink(missing_ok=True)
        write_json(owner, {"process": os.getpid(), "host": socket.gethostname(), "command": shlex.join(sys.argv),
                           "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds")})
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process holds a run folder."""
    if not (folder / ".owner.json").exists() or not (folder / ".lock").exists():
        return False
    try:
        # A process that was killed has left its name, but not the lock.
        with filelock.FileLock(folder / ".lock", timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # another user's folder: take its word
        return True
