"""What the tests of training runs share: a tiny run that uses every part of the state, and a way to stop it."""
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import Trainer
from conftest import TINY, leave_out_figures, read_csv
from dataloader import Clips, load_data
from modules.config.trainer_flags import merge_flags, parse_command_line
from utils import Interrupted

# Three epochs of two steps, 3 clips in each.
RUN = ["--num_epoch", "3", "--tfr", "0.5", "--tf_draw", "clip", "--lr", "0.01", "--lr_schedule", "cosine",
       "--warmup", "0.5", "--kl_anneal_cycle", "2", "--output", "sigmoid", "--val_every", "2", "--per_save", "2",
       "--ema", "0.8", "--replay", "0.7"]
LONG = [*TINY, "--num_epoch", "100000", "--per_save", "100000", "--val_every", "100000", "--save_every_minutes", "0"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # two would wait for each other on a busy machine


def train(data: Path, run: Path, *flags) -> list[dict[str, str]]:
    """A tiny training run. Returns metrics.csv."""
    Trainer.main([*TINY, "--DR", str(data), "--save_root", str(run), *map(str, flags)])
    return read_csv(run / "metrics.csv")


def make_trainer(data: Path, *flags) -> Trainer.Trainer:
    args = merge_flags(parse_command_line([*TINY, "--DR", str(data), "--save_root", "unused", *map(str, flags)]))
    return Trainer.Trainer(args, load_data(args, torch.device("cpu")), torch.device("cpu"))


def batches(trainer: Trainer.Trainer) -> Iterator[Clips]:
    """An epoch of batches, in the order of the recording."""
    loader, generators = trainer.loader, trainer.generators
    return loader.batches(torch.arange(len(loader.starts)), slice, generators["crop"], generators["random_frame"])


class StopAt(contextlib.nullcontext):
    """Stands for StopSignals: SIGTERM arrives just before the run looks for the nth time."""

    def __init__(self, look: int):
        super().__init__()
        self.looks_left = look

    @property
    def number(self) -> int | None:
        self.looks_left -= 1
        return signal.SIGTERM if self.looks_left <= 0 else None


def train_until(look: int, data: Path, run: Path, *flags) -> str:
    """Train without figures until the run looks for a signal for the nth time. Returns its message."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted) as stop:
        leave_out_figures(patch)
        patch.setattr(Trainer, "StopSignals", lambda: StopAt(look))
        train(data, run, *flags)
    assert stop.value.number == signal.SIGTERM
    return str(stop.value)


def train_undisturbed(data: Path, run: Path, *flags) -> Path:
    """A run without figures, for a fixture. Returns its folder."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_figures(patch)
        train(data, run, *RUN, *flags)
    return run
