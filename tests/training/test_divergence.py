"""Non-finite steps are skipped, weights that are not finite are never saved, and a run that diverges ends with advice.

    python -m pytest tests/training/test_divergence.py
"""
import copy
import itertools
import math
import re
import shutil

import pytest
import torch

import Trainer
from conftest import TINY, read_csv
from kill_run import same
from modules.config.advice import advise_after_divergence
from modules.config.trainer_flags import merge_flags, parse_command_line
from modules.training import checkpoint, run_writer
from training.run_helpers import RUN, batches, make_trainer, train, train_undisturbed, train_until
from utils import BadInput


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    """A run that does not diverge. Never write to it."""
    return train_undisturbed(data, tmp_path_factory.mktemp("divergence") / "run")


def spoiled(batch):
    """The batch with frames that make the loss NaN."""
    return batch._replace(frames=batch.frames * math.inf)


def spoil(patch: pytest.MonkeyPatch, steps) -> None:
    """Spoil the batches of these steps of a run, counted from 0."""
    count, step = itertools.count(), Trainer.Trainer.train_step
    patch.setattr(Trainer.Trainer, "train_step", lambda self, batch, *args: step(
        self, spoiled(batch) if next(count) in steps else batch, *args))


@pytest.mark.parametrize("variance", ["fixed", "optimal"])
def test_a_non_finite_step_changes_nothing_and_is_counted(variance, data):
    """Weights, running statistics, average, replay. Of the optimiser see test_non_finite.py."""
    trainer = make_trainer(data, *RUN, "--decoder_variance", variance, "--any_first", 0.5)
    batch, states = next(batches(trainer)), []
    for is_finite in (None, False, True, False):
        if is_finite is not None:
            given = batch if is_finite else spoiled(batch)
            sums = trainer.train_step(given, torch.tensor([True, False]), 0.1, 0.01).numbers()
            assert all(map(math.isfinite, sums.values()))
            assert is_finite or sums == dict.fromkeys(sums, 0) | {"skipped": 1}
        state = trainer.state.state_dict(trainer.data.pose_sample, with_replay=True)
        states.append(copy.deepcopy({part: state[part] for part in ("weights", "ema", "ema_steps", "replay")}))
    assert same(states[0], states[1]) and same(states[2], states[3])
    assert not any(same(states[1][part], states[2][part]) for part in states[1])


def test_skipped_steps_are_reported_and_left_out_of_the_means(data, tmp_path, no_figures, capsys):
    train_until(2, data, tmp_path / "one step", *RUN)
    step = checkpoint.read(tmp_path / "one step" / "last.ckpt")["progress"]["sums"]
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, {1})
        row, = train(data, tmp_path / "run", *RUN, "--num_epoch", 1)
    assert row["skipped"] == "1" and "1 non-finite" in capsys.readouterr().out
    for name in ("loss", "mse", "kl"):
        assert float(row[f"train_{name}"]) == step[name] / 2, name  # of the first step's two clips


def test_many_consecutive_non_finite_steps_end_the_run_with_advice(data, tmp_path, refused, no_figures, monkeypatch):
    spoil(monkeypatch, range(1, 10**6))
    monkeypatch.setattr(Trainer, "CHECK_EVERY", 4)
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", tmp_path / "run", *RUN, "--num_epoch", 9,
                      "--replay", 0, "--clip_stride", 1, "--batch_size", 1, "--val_every", 9, "--lr", 0.001,
                      "--precision", "bf16", "--clip_grad", 0)  # 9 steps an epoch
    assert re.search(r"12 steps in a row, up to clip 4 of epoch 1\b.* loss nan\b", message), message
    for words in ("last.ckpt", "--resume", "--precision fp32", "--clip_grad 1", "--lr than 0.001"):
        assert words in message
    assert checkpoint.read(tmp_path / "run" / "last.ckpt")["epoch"] == 0


@pytest.mark.parametrize("flags, advice", [
    (["--weight_decay", 1e308], "--weight_decay than 1e\\+308$"),
    (["--weight_decay", 0.01, "--lr", 1e30], "--lr than 1e\\+30"), ([], "--lr than 0.001")], ids=str)
def test_the_advice_names_the_flag_that_is_the_cause(flags, advice):
    args = merge_flags(parse_command_line(["--DR", "data", "--save_root", "run", *map(str, flags)]))
    said = advise_after_divergence(args)
    assert re.search(advice, said) and "last.ckpt" in said and ("--lr" in said) != ("--weight_decay" in said)


def test_an_epoch_without_a_finite_step_ends_the_run(data, tmp_path, refused, no_figures, monkeypatch):
    for name, seconds, saved in (("short", 30, 0), ("long", 0, 1)):
        monkeypatch.setattr(run_writer, "SECONDS", seconds)
        spoil(monkeypatch, {2, 3})
        run = tmp_path / name
        message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", run, *RUN)
        assert "2 steps in a row" in message and checkpoint.read(run / "last.ckpt")["epoch"] == saved
        assert (run / "best.ckpt").exists() == ("start from best.ckpt" in message) == (saved > 0)


def test_last_ckpt_is_not_replaced_while_steps_are_skipped(whole_run, data, tmp_path, no_figures):
    """The weights may be the cause. Continuing from before them comes to the same end."""
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, {1})
        message = train_until(3, data, tmp_path / "run", *RUN, "--save_every_minutes", 1e-9)
    assert "before the latest steps" in message
    assert checkpoint.read(tmp_path / "run" / "last.ckpt")["progress"]["clips"] == 2  # after step 0
    assert train(data, tmp_path / "run", *RUN, "--resume") == read_csv(whole_run / "metrics.csv")


def test_a_diverged_validation_costs_its_epoch_the_score_only(whole_run, data, tmp_path, no_figures, monkeypatch,
                                                              capsys):
    evaluate, errors = Trainer.evaluate, [ValueError("the rollout diverged")]

    def diverge_at_first(*args):
        if errors:
            raise errors.pop()
        return evaluate(*args)

    monkeypatch.setattr(Trainer, "evaluate", diverge_at_first)
    rows = train(data, tmp_path / "run", *RUN)
    assert "epoch 0 has no score" in capsys.readouterr().err
    assert rows[0]["val_psnr"] == rows[0]["val_loss"] == ""
    assert rows[1:] == read_csv(whole_run / "metrics.csv")[1:]
    assert checkpoint.read(tmp_path / "run" / "best.ckpt")["epoch"] == 3
    assert not (tmp_path / "run" / "psnr_epoch=0.csv").exists()


def test_a_run_that_diverges_leaves_a_checkpoint_to_continue_from(whole_run, data, tmp_path, no_figures):
    """Nothing is patched here: a learning rate that ruins the weights in one step."""
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    with pytest.raises(BadInput, match="--lr"):
        train(data, run, "--resume", "--num_epoch", 9, "--lr", 1e30, "--lr_schedule", "none", "--per_save", 1)
    for path in run.glob("*.ckpt"):
        checkpoint.read(path)  # all finite
    assert checkpoint.read(run / "last.ckpt")["epoch"] == 3
    rows = train(data, run, "--resume", "--num_epoch", 4, "--lr", 1e-3)
    assert float(rows[-1]["train_loss"]) < 1000


def test_non_finite_weights_are_never_saved(data, tmp_path):
    """They may be lost in the last step of an epoch, whose loss is still finite."""
    trainer = make_trainer(data, *RUN)
    next(trainer.model.parameters()).data[0] = math.nan
    with pytest.raises(BadInput, match="non-finite weights"):
        trainer.save()
    assert not list(tmp_path.iterdir())
