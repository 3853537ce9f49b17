"""Draws the figures of a run in a process of its own, so that training does not wait for them."""
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from modules.plots.run_figures import RunFigures
from utils import logger, run_main

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120  # between two drawings


class BackgroundDrawing:
    """At most one process that draws. A context manager: at its end, that process has ended.

    Where the block ends with an error, figures are not waited for, unless one is to be kept: the next process of the
    run draws the others again.
    """

    def __init__(self):
        self.process: subprocess.Popen | None = None
        self.began_at = time.monotonic()
        self._errors, self._is_kept = None, False

    def __enter__(self) -> "BackgroundDrawing":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if self.process is not None and kind is not None and not self._is_kept:
            self.process.terminate()
            self.process.wait()
            self.process = None
        self.wait()

    def is_due(self) -> bool:
        """Whether the latest drawing, or the start of the run, is long enough ago."""
        return time.monotonic() - self.began_at >= SECONDS

    def start(self, figures: RunFigures) -> None:
        """Begin to draw, after the end of the previous drawing. An error there costs its figures and a warning."""
        self.wait()
        self.began_at = time.monotonic()
        self._errors, self._is_kept = tempfile.TemporaryFile(), figures.keeps_gif
        with tempfile.TemporaryFile() as given:
            pickle.dump(figures, given)
            given.seek(0)
            # In a session of its own, Ctrl-C does not reach it.
            self.process = subprocess.Popen([sys.executable, "-m", __name__], cwd=ROOT, stdin=given,
                                            stdout=subprocess.DEVNULL, stderr=self._errors, start_new_session=True)

    def wait(self) -> None:
        """Wait until nothing is being drawn."""
        if self.process is None:
            return
        if self.process.wait() != 0:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").split("\n")
            logger.warning("figures could not be drawn (%s); training continues", next(filter(None, lines[::-1]), ""))
        self._errors.close()
        self.process = None


def main() -> None:
    """Draw the figures that stdin holds."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through atomic_write, which deletes the unfinished file
    if hasattr(os, "nice"):
        os.nice(10)  # training comes first
    torch.set_num_threads(1)
    pickle.load(sys.stdin.buffer).draw()


if __name__ == "__main__":
    sys.exit(run_main("figures", main))
