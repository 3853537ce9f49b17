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
from utils import write_json

# What a run writes, relative to its folder. Anything else there is the user's and is never deleted.
RUN_FILES = re.compile(r"config\.json|metrics\.csv|timing\.csv|(last|best|epoch=\d+)\.ckpt|psnr_(best|epoch=\d+)\.csv|"
                       r"events\.out\.tfevents\.\d+\..+|figures/(loss|teacher_forcing|(test_)?psnr_per_frame)\.png|"
                       r"figures/(test_val|val|val_epoch=\d+)\.gif")


def find_run(folder: Path) -> list[Path]:
    """The files of the run that ``folder`` holds, figures included; empty where it holds none."""
    files = find_files(folder, RUN_FILES)
    return files if any(path.parent == folder for path in files) else []


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
