"""What the parts of check_gpu.py share: their result, their dataset and runs, programs whose output goes to the log."""
import contextlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from utils import BadInput, logger, write_json

ROOT = Path(__file__).resolve().parents[2]
# The reduced form: a tiny network on tiny frames.
TINY = ["--F_dim", "8", "--L_dim", "4", "--N_dim", "4", "--D_out_dim", "8", "--frame_H", "16", "--frame_W", "16"]
SAME_SCORE, SAME_QUALITY = 0.05, 0.3  # dB: between devices, between compiled and eager


class NotRun(Exception):
    """A part cannot be run on this machine. The message says what it lacks."""


@dataclass
class Report:
    """A part's result, saved as OUT/PART.json, and what it works with.

    figures : numbers for later use. table : lines of a Markdown table for the summary.
    small : whether to use the reduced form.
    """
    name: str
    out: Path
    device: torch.device
    small: bool
    figures: dict = field(default_factory=dict)
    table: list[str] = field(default_factory=list)
    message: str = ""
    passed: bool | None = False

    def save(self) -> None:
        write_json(self.out / f"{self.name}.json", {
            "part": self.name, "passed": self.passed, "message": self.message, "device": self.device.type,
            "small": self.small, "figures": self.figures, "table": self.table})

    @property
    def work(self) -> Path:
        """Folder of the datasets and runs."""
        return self.out / ("work_small" if self.small else "work")

    def new_folder(self, name: str) -> Path:
        """OUT/work/NAME without what an earlier call has left; it is not created."""
        shutil.rmtree(self.work / name, ignore_errors=True)
        return self.work / name

    @property
    def val_frames(self) -> int:
        return 12 if self.small else 120

    def dataset(self) -> Path:
        """The synthetic dataset of all parts, drawn in the first call."""
        root = self.work / "data"
        if not root.exists():
            size = 16 if self.small else 32
            self.run(ROOT / "scripts/make_synthetic_dataset.py", root, "--frame_H", size, "--frame_W", size * (
                1 if self.small else 2), "--train_frames", 96 if self.small else 600, "--val_frames",
                self.val_frames, "--test_sequences", 1, "--test_frames", 2, "--num_workers", 0 if self.small else 8)
        return root

    def data_flags(self) -> list[str]:
        """Dataset and device, as flags of Trainer.py."""
        # On a CPU, --precision auto decides by timing: two runs that must be equal may differ.
        precision = ["--precision", "fp32"] if self.device.type == "cpu" else []
        return ["--DR", str(self.dataset()), "--val_vi_len", str(self.val_frames), "--device", self.device.type,
                *precision, "--num_workers", "1", "--no-cache"]

    def training_flags(self) -> list[str]:
        """A short training, as flags of Trainer.py: a small network that continues its own rollouts."""
        size = [*TINY, "--batch_size", "32", "--num_epoch", "2"] if self.small else ["--num_epoch", "8"]
        return ["--recipe", "demo", *size, "--val_every", "1", "--per_save", "100", *self.data_flags()]

    def run(self, *command: object, code: int = 0, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
        """Run Python with these arguments. Its output goes to the log at once, and is returned.

        Raises
        ------
        BadInput : it ended with another code.
        """
        words = [sys.executable, *map(str, command)]
        print("$", *words, flush=True)
        lines = []
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, encoding="utf-8", errors="replace", cwd=cwd,
                              env=os.environ | {"PYTHONUNBUFFERED": "1"} | (env or {})) as process:
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line.rpartition("\r")[2])
        if process.returncode != code:
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            raise BadInput(f"{' '.join(words[1:3])} ended with code {process.returncode} instead of {code}: "
                           f"{last[:300]}")
        return "".join(lines)


@contextlib.contextmanager
def compilation_errors() -> Iterator[list[str]]:
    """Collects the warnings with which a failing compilation falls back to eager mode."""
    errors = []
    handler = logging.Handler()
    handler.emit = lambda record: errors.append(record.getMessage()) if "torch.compile" in record.getMessage() else None
    logger.addHandler(handler)
    try:
        yield errors
    finally:
        logger.removeHandler(handler)
