"""metrics.csv, timing.csv, psnr_*.csv and TensorBoard events of a run."""
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
    """The tables of a run and the same numbers for TensorBoard.

    The rows live in the checkpoint and the CSV files are written from them, so that a resumed run neither repeats nor
    loses a row, wherever it was interrupted.
    """

    def __init__(self, folder: Path, metrics: list[dict], timing: list[dict]):
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only a training run pays for it
        self.folder, self.metrics, self.timing = folder, metrics, timing
        # Its thread would print a traceback on a disk error; the next call raises the same error.
        threading.excepthook = _ignore_disk_errors
        # Events of epochs that the checkpoint does not know were written by a process that died: hide them.
        self.board = SummaryWriter(str(folder), purge_step=len(metrics))
        self.write()

    def add(self, metrics: dict, train_seconds: float, val_seconds: float, frames: int) -> None:
        """Append an epoch's row of metrics.csv and, of its times and the frames trained on, that of timing.csv. Both
        also go to TensorBoard."""
        timing = {"epoch": metrics["epoch"], "train_seconds": round(train_seconds, 3),
                  "val_seconds": round(val_seconds, 3),
                  "frames_per_second": round(frames / max(train_seconds, 1e-3), 1)}
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
            self.board.flush()  # the last picture of a run comes after its last ``write``

    def write(self) -> None:
        write_table(self.folder / "metrics.csv", METRICS, self.metrics)
        write_table(self.folder / "timing.csv", TIMING, self.timing)
        with self._named_errors():
            self.board.flush()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """TensorBoard raises its thread's error in the next call, without the file's name."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder / "events.out.tfevents")) from error


def write_psnr(path: Path, epoch: int, psnr: torch.Tensor, psnr_repeat_first: torch.Tensor) -> None:
    """Write the PSNR of each frame of a validation rollout, and that of repeating its first frame, to compare runs
    frame by frame. Both (T,), dB; frame 0 is left out."""
    columns = "epoch", "frame", "psnr", "psnr_repeat_first"
    rows = zip([epoch] * len(psnr), range(len(psnr)), psnr.tolist(), psnr_repeat_first.tolist(), strict=True)
    write_table(path, columns, [dict(zip(columns, row, strict=True)) for row in rows][1:])


def _ignore_disk_errors(args: threading.ExceptHookArgs) -> None:
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def describe_epoch(row: dict, num_epoch: int, frames_per_clip: int, evaluation: object | None) -> str:
    """An epoch's row of metrics.csv as a line to read, with means per predicted frame.

    Parameters
    ----------
    frames_per_clip : predicted frames of a clip, over which the losses in ``row`` are summed.
    evaluation : of the validation, or None.
    """
    loss, mse, kl = (row[name] / frames_per_clip for name in ("train_loss", "train_mse", "train_kl"))
    val = "" if evaluation is None else f"  val {evaluation}  val loss {row['val_loss']:.5f}"
    skipped = f"  {row['skipped']} non-finite steps skipped" if row["skipped"] else ""
    return (f"epoch {row['epoch']}/{num_epoch - 1}{val}  loss {loss:.4f}  MSE {mse:.5f}  KL {kl:.4g}  "
            f"beta {row['beta']:.3g}  teacher forcing {row['tfr']:.2f} (used "
            f"{row['tf_used']:.0%})  lr {row['lr']:.2e}{skipped}")
