"""The figures of a training run."""
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modules.data.person_shift import PersonShift
from modules.evaluation.evaluate import Evaluation
from modules.plots import curves, video
from utils import atomic_write


@dataclass
class RunFigures:
    """The figures/ folder of a run, and what its figures show.

    Parameters
    ----------
    folder : of the figures.
    metrics : rows of metrics.csv.
    frames_per_clip : predicted frames of a training clip, over which the losses in ``metrics`` are summed.
    labels : uint8 (T, 3, H, W), of the validation sequence.
    validation : the latest, with its epoch; None: there is none.
    keeps_gif : keep val.gif of this epoch as val_epoch=N.gif.
    """
    folder: Path
    metrics: list[dict]
    frames_per_clip: int
    labels: Tensor
    validation: tuple[int, Evaluation] | None
    keeps_gif: bool = False

    def draw(self) -> None:
        """Draw loss.png, teacher_forcing.png and, of the validation, psnr_per_frame.png and val.gif."""
        history = [row | {key: row[key] / self.frames_per_clip for key in ("train_loss", "train_mse", "train_kl")}
                   for row in self.metrics]
        curves.plot_losses(history, self.folder / "loss.png")
        curves.plot_teacher_forcing(history, self.folder / "teacher_forcing.png")
        if self.validation is None:
            return
        epoch, evaluation = self.validation
        draw_validation(evaluation, self.labels, f"epoch {epoch}", self.folder)
        if self.keeps_gif:
            with atomic_write(self.folder / f"val_epoch={epoch}.gif") as temporary:
                shutil.copyfile(self.folder / "val.gif", temporary)


def draw_validation(evaluation: Evaluation, labels: Tensor, when: str, folder: Path, prefix: str = "") -> None:
    """Draw psnr_per_frame.png and val.gif, their names after ``prefix``. ``labels``: uint8 (T, 3, H, W)."""
    rollout = curves.Rollout(evaluation.psnr[1:], evaluation.psnr_repeat_first[1:])
    curves.plot_psnr({"prediction": rollout}, folder / f"{prefix}psnr_per_frame.png", f"Validation, {when}")
    video.side_by_side_gif(evaluation.truth, evaluation.video, labels, folder / f"{prefix}val.gif")


def draw_shifts(person_shift: PersonShift, path: Path, rows: int = 6) -> None:
    """Draw how the person of a recording is found and shifted, for frames at equal distances."""
    from matplotlib.figure import Figure
    index = torch.linspace(0, len(person_shift.frames) - 1, rows + 2).long()[1:-1]
    stretch = person_shift.stretch[index]
    lowest, highest = person_shift.lowest[stretch], person_shift.highest[stretch]
    is_right = torch.arange(rows) % 2 == 0
    offset = torch.where(is_right & (highest > 0), highest, torch.where(lowest < 0, lowest, highest))
    moved, moved_poses = person_shift.apply(index, offset)
    columns = {"frame": person_shift.frames[index], "pose": person_shift.labels[index],
               "person": person_shift.matte[index, None].expand(-1, 3, -1, -1), "shifted": moved,
               "its pose": moved_poses}
    height, width = moved.shape[-2:]
    figure = Figure(figsize=(10, 0.3 + 2 * rows * height / width), dpi=120, layout="constrained")
    for row, panels in enumerate(figure.subplots(rows, len(columns), squeeze=False)):
        for panel, (name, images) in zip(panels, columns.items(), strict=True):
            panel.imshow(images[row].permute(1, 2, 0).numpy(), interpolation="nearest")
            panel.set_axis_off()
            if row == 0:
                panel.set_title(name, fontsize=10)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def sample_picture(evaluation: Evaluation, labels: Tensor) -> Tensor:
    """Four frames of a validation in rows of truth, prediction and pose: uint8 (3, H', W')."""
    from torchvision.utils import make_grid  # takes seconds to import
    last = len(labels) - 1
    shown = torch.arange(last // 4, last + 1, max(last // 4, 1))[:4]
    rows = torch.stack([evaluation.truth[shown], evaluation.video[shown], labels[shown]], dim=1)
    return make_grid(rows.flatten(0, 1), nrow=3, pad_value=128)
