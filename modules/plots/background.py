"""Draws the figures of a run in a process of its own, so that training does not wait for them."""
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from modules.plots.run_figures import RunFigures
from utils import logger, run_main

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120  # between two drawings
COMMAND = [sys.executable, "-m", __name__]


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
        if self.process is None or kind is None or self._is_kept:
            self.wait()
        else:
            self.process.terminate()
            self._end()

    def is_due(self) -> bool:
        """Whether the latest drawing, or the start of the run, is long enough ago."""
        return time.monotonic() - self.began_at >= SECONDS

    def start(self, figures: RunFigures) -> None:
        """Begin to draw, after the end of the previous drawing. An error there costs its figures and a warning."""
        self.wait()
        self.began_at, self._is_kept = time.monotonic(), figures.keeps_gif
        try:
            self._errors = tempfile.TemporaryFile()
            with tempfile.TemporaryFile() as given:
                pickle.dump(figures, given)
                given.seek(0)
                # In a session of its own, Ctrl-C does not reach it.
                self.process = subprocess.Popen([*COMMAND, str(os.getpid())], cwd=ROOT, stdin=given,
                                                stdout=subprocess.DEVNULL, stderr=self._errors, start_new_session=True)
        except OSError as error:
            _warn(error.strerror)

    def wait(self) -> None:
        """Wait until nothing is being drawn."""
        if self.process is not None and (reason := self._end()) is not None:
            _warn(reason)

    def _end(self) -> str | None:
        """Wait for the process. Returns what went wrong there, if anything."""
        code, self.process = self.process.wait(), None
        with self._errors as errors:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").split("\n")
        return None if code == 0 else next(filter(None, lines[::-1]), f"exit code {code}")


def _warn(reason: str) -> None:
    logger.warning("figures could not be drawn (%s); training continues", reason)


def main() -> None:
    """Draw the figures that stdin holds, for the process with the given number."""
    # By an exception, so that atomic_write deletes the unfinished file.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(10)  # training comes first
    torch.set_num_threads(1)
    pickle.load(sys.stdin.buffer).draw()


def _end_with(parent: int) -> None:
    """Stop drawing when the training process has been killed: another one may continue or replace the run."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(run_main("figures", main))
