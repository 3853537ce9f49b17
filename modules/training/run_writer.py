"""Writes the checkpoints and tables of a run, as often as the clock says."""
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from modules.training import checkpoint
from modules.training.metric_log import MetricLog, write_psnr

# Where an epoch takes seconds, flushing its files to the disk would take as long as the epoch: last.ckpt alone, with
# the predictions of replay, has as many bytes as the training frames.
SECONDS = 30


class RunWriter:
    """The files of a run that hold numbers.

    metrics.csv, timing.csv, best.ckpt and last.ckpt are written together, last.ckpt at the end: whatever the others may
    be ahead of it, where a process dies in between, is repeated by the run that is resumed from it.

    Parameters
    ----------
    folder : of the run.
    state_dict : returns what a checkpoint holds at the moment; its argument: with the predictions of replay.
    minutes : between two saves within an epoch; 0: none there.
    """

    def __init__(self, folder: Path, state_dict: Callable[[bool], dict], minutes: float):
        self.folder, self.state_dict, self.minutes = folder, state_dict, minutes
        self.log: MetricLog | None = None  # from the start of training
        self.saved_at = time.monotonic()
        self._best: Callable[[], None] | None = None  # writes the files of the best epoch, while they are not written

    def is_due(self, at_end: bool = False) -> bool:
        """Whether it is time for ``write``. ``at_end``: of an epoch."""
        passed = time.monotonic() - self.saved_at
        return 0 < 60 * self.minutes < passed or (at_end and passed >= SECONDS)

    def write(self, with_last: bool = True) -> None:
        """Write the tables, the best epoch and last.ckpt."""
        if self._best is not None:
            self._best()
            self._best = None
        if self.log is not None:
            self.log.write()
        if with_last:
            checkpoint.save(self.folder / "last.ckpt", self.state_dict(True))
        self.saved_at = time.monotonic()

    def finish_epoch(self, epoch: int, scores: tuple[Tensor, Tensor] | None, is_best: bool, is_save: bool) -> None:
        """Write epoch=N.ckpt and psnr_epoch=N.csv where ``is_save``, and let the next ``write`` write best.ckpt and
        psnr_best.csv as of now where ``is_best``. ``scores``: PSNR as ``write_psnr`` takes it; None: not validated."""
        if is_best or is_save:
            content = checkpoint.serialize(self.state_dict(False))
        if is_best:
            self._best = partial(self._write, "best", epoch, content, scores)
        if is_save:
            self._write(f"epoch={epoch}", epoch, content, scores)

    def _write(self, name: str, epoch: int, content: memoryview, scores: tuple[Tensor, Tensor] | None) -> None:
        checkpoint.write(self.folder / f"{name}.ckpt", content)
        if scores is not None:
            write_psnr(self.folder / f"psnr_{name}.csv", epoch, *scores)
