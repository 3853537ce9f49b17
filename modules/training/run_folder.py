"""The run folder: which files a run writes there, and its description."""
import contextlib
import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import torch

from modules.training.output_folder import find_files
from utils import atomic_write, write_json

MARKER, MARKER_TEXT = ".run", "The folder of a training run, whose files Trainer.py replaces.\n"
# What a run writes, relative to its folder. Anything else there is the user's and is never deleted.
RUN_FILES = re.compile(r"\.run|config\.json|(metrics|timing|psnr_best|psnr_epoch=\d+)\.csv|(last|best|epoch=\d+)\.ckpt|"
                       r"events\.out\.tfevents\.\d+\..+|figures/(loss|teacher_forcing|shifted_copies|(test_)?psnr_per_frame)\.png|"
                       r"figures/(test_val|val|val_epoch=\d+)\.gif")


def is_marked(folder: Path) -> bool:
    """Whether a run has claimed ``folder``, so that files with the names of a run are that run's."""
    path = folder / MARKER
    has_size = path.is_file() and path.stat().st_size == len(MARKER_TEXT)
    return has_size and path.read_text("ascii", "replace") == MARKER_TEXT


def mark(folder: Path) -> None:
    """Claim ``folder`` for a run. To be called before any other file of the run is written."""
    if not is_marked(folder):
        with atomic_write(folder / MARKER) as temporary:
            temporary.write_text(MARKER_TEXT, encoding="ascii")


def find_run(folder: Path) -> list[Path]:
    """The files in ``folder`` that a new run would replace, figures included. Those of a run where ``is_marked``,
    otherwise somebody's with the same names."""
    files = find_files(folder, RUN_FILES)
    if is_marked(folder):
        return [path for path in files if path.name != MARKER]
    return [path for path in files if not path.name.startswith("test_")]  # validating a checkpoint claims no folder


def find_epochs(folder: Path) -> list[tuple[int, Path]]:
    """The files epoch=N.ckpt with their N, in that order."""
    paths = find_files(folder, re.compile(r"epoch=\d+\.ckpt"))
    return sorted((int(path.stem.partition("=")[2]), path) for path in paths)


def find_later(folder: Path, epoch: int) -> list[Path]:
    """The files that a run has written for single epochs from ``epoch`` on."""
    files = find_files(folder, re.compile(r"(psnr_)?epoch=\d+\.(ckpt|csv)|figures/val_epoch=\d+\.gif"))
    return [path for path in files if int(re.search(r"=(\d+)", path.name)[1]) >= epoch]


def find_undrawn(folder: Path, keep_gifs: bool, is_complete: bool = True) -> Path | None:
    """The latest epoch=N.ckpt, if a process died before it drew the figures of that epoch; else None.

    They are drawn after last.ckpt is saved, so that an error while drawing costs no epoch.

    Parameters
    ----------
    keep_gifs : whether val_epoch=N.gif is one of them.
    is_complete : whether the run has ended. Otherwise the other figures will be drawn again.
    """
    saved = find_epochs(folder)
    if not saved:
        return None
    epoch, path = saved[-1]
    names = ["loss.png", "teacher_forcing.png", "psnr_per_frame.png", "val.gif"] if is_complete else []
    names += [f"val_epoch={epoch}.gif"] if keep_gifs else []
    figures = [folder / "figures" / name for name in names]
    time = path.stat().st_mtime_ns
    is_drawn = all(figure.is_file() and figure.stat().st_mtime_ns >= time for figure in figures)
    return None if is_drawn else path


def write_config(path: Path, flags: dict, dataset: dict) -> None:
    """Write config.json, what a reader needs to repeat the run: command, flags, dataset, versions, git commit.

    What an earlier call wrote there, of a run that is resumed, moves to "before".
    """
    before = []
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        earlier = json.loads(path.read_text(encoding="utf-8"))
        before = [*earlier.pop("before", []), earlier]
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True) if shutil.which("git") else None
    write_json(path, {"command": shlex.join(sys.argv), "flags": flags, "dataset": dataset,
                      "versions": {"python": platform.python_version(), "torch": torch.__version__,
                                   "numpy": numpy.__version__, "cuda": torch.version.cuda},
                      "commit": commit.stdout.strip() or None if commit else None, "before": before})
