"""The figures of a training run."""
import shutil
from pathlib import Path

import torch
from torch import Tensor

from modules.evaluation.evaluate import Evaluation
from modules.plots import curves, video
from utils import atomic_write


def draw_metrics(metrics: list[dict], folder: Path, frames_per_clip: int) -> None:
    """Draw loss.png and teacher_forcing.png from the rows of metrics.csv.

    Parameters
    ----------
    frames_per_clip : predicted frames of a training clip, over which its losses in ``metrics`` are summed.
    """
    history = [row | {key: row[key] / frames_per_clip for key in ("train_loss", "train_mse", "train_kl")}
               for row in metrics]
    curves.plot_losses(history, folder / "loss.png")
    curves.plot_teacher_forcing(history, folder / "teacher_forcing.png")


def draw_validation(evaluation: Evaluation, labels: Tensor, when: str, folder: Path, prefix: str = "") -> None:
    """Draw psnr_per_frame.png and val.gif, their names after ``prefix``. ``labels``: uint8 (T, 3, H, W)."""
    rollout = curves.Rollout(evaluation.psnr[1:], evaluation.psnr_repeat_first[1:])
    curves.plot_psnr({"prediction": rollout}, folder / f"{prefix}psnr_per_frame.png", f"Validation, {when}")
    video.side_by_side_gif(evaluation.truth, evaluation.video, labels, folder / f"{prefix}val.gif")


def keep_gif(folder: Path, epoch: int) -> None:
    """Keep val.gif of this epoch as val_epoch=N.gif."""
    with atomic_write(folder / f"val_epoch={epoch}.gif") as temporary:
        shutil.copyfile(folder / "val.gif", temporary)


def sample_picture(evaluation: Evaluation, labels: Tensor) -> Tensor:
    """Four frames of a validation in rows of truth, prediction and pose: uint8 (3, H', W')."""
    from torchvision.utils import make_grid  # takes seconds to import
    last = len(labels) - 1
    shown = torch.arange(last // 4, last + 1, max(last // 4, 1))[:4]
    rows = torch.stack([evaluation.truth[shown], evaluation.video[shown], labels[shown]], dim=1)
    return make_grid(rows.flatten(0, 1), nrow=3, pad_value=128)
