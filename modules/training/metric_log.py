"""metrics.csv, timing.csv and TensorBoard events of a run."""
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from utils import write_table

METRICS = ("epoch", "train_loss", "train_mse", "train_kl", "beta", "tfr", "tf_used", "lr", "skipped", "val_loss",
           "val_psnr")
TIMING = ("epoch", "train_seconds", "val_seconds", "frames_per_second")


class MetricLog:
    """metrics.csv, timing.csv and TensorBoard events of a run.

    The rows live in the checkpoint and the CSV files are written from them, so that whatever happens between
    two epochs, a resumed run neither doubles nor loses a row.
    """

    def __init__(self, folder: Path, metrics: list[dict], timing: list[dict]):
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only a training run pays for it
        self.folder, self.metrics, self.timing = folder, metrics, timing
        # Its thread would show a stack trace where the disk refuses; the next call raises the same error.
        threading.excepthook = _quiet_about_disks
        # Events of epochs that the checkpoint does not know were written by a process that died: hide them.
        self.board = SummaryWriter(str(folder), purge_step=len(metrics))

    def add(self, metrics: dict, timing: dict) -> None:
        """Append one epoch's rows and show them in TensorBoard."""
        self.metrics.append(metrics)
        self.timing.append(timing)
        with self._named_errors():
            for name in METRICS[1:]:
                if metrics[name] is not None:
                    self.board.add_scalar(name.replace("_", "/", 1), metrics[name], metrics["epoch"])
            self.board.add_scalar("speed/frames_per_second", timing["frames_per_second"], metrics["epoch"])

    def add_picture(self, picture: torch.Tensor, epoch: int) -> None:
        """Show a picture (3, H, W), uint8, in TensorBoard."""
        with self._named_errors():
            self.board.add_image("val/truth_prediction_pose", picture, epoch)

    def write(self) -> None:
        write_table(self.folder / "metrics.csv", METRICS, self.metrics)
        write_table(self.folder / "timing.csv", TIMING, self.timing)
        with self._named_errors():
            self.board.flush()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """What its thread has failed of, TensorBoard raises in the next call, and without the file's name."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder / "events.out.tfevents")) from error


def _quiet_about_disks(args: threading.ExceptHookArgs) -> None:
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)
