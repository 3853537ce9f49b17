"""Training: golden losses, the run folder, continuing, teacher forcing, fast epochs, recipes, flags, bad input.

    python -m pytest tests/test_trainer.py
"""
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import Tester
import Trainer
from conftest import TINY, TRAIN_FRAMES, contents, make_video, read_csv, write_pngs
from dataloader import Clips
from modules.training.metric_log import METRICS, TIMING
from modules.training.replay import Replay

ROOT = Path(__file__).resolve().parents[1]

# The course's training, beside which the defaults are another.
COURSES = ["--batch_size", "2", "--tfr", "1", "--replay", "0", "--kl_anneal_type", "Cyclical", "--kl_anneal_stop", "1",
           "--lr_schedule", "none", "--warmup", "0", "--ema", "0", "--decoder_variance", "fixed"]
# Recorded on a CPU in float32 from `train(data, run, *COURSES, "--num_epoch", "3", "--lr", "0.01")`, by
# --decoder_variance: a change that moves them changes the mathematics. Record anew only where that is meant.
GOLDEN = {"fixed": {"train_loss": [0.249439, 7.841584, 11.72153], "val_loss": [0.0803928, 0.0780604, 0.0765072]},
          "optimal": {"train_loss": [0.0541550, 7.727902, 11.521624], "val_loss": [0.0803899, 0.0780628, 0.0765123]}}


def train(data: Path, run: Path, *flags) -> list[dict]:
    """A tiny training run. Returns metrics.csv."""
    Trainer.main([*TINY, "--DR", str(data), "--save_root", str(run), *map(str, flags)])
    return read_csv(run / "metrics.csv")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def same_weights(one: Path, other: Path) -> bool:
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


WHOLE = [*COURSES, "--tfr_sde", "1", "--tfr_d_step", "0.3", "--tf_draw", "clip", "--crop_fraction", "0.5",
         "--match_histogram"]


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    """A run of 4 epochs with all its figures. Never write to it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(data, folder, *WHOLE, "--num_epoch", 4, "--per_save", 3, "--store_visualization")
    return folder


# Learning

def test_the_loss_of_learnable_data_falls(data, tmp_path, no_figures):
    rows = train(data, tmp_path / "run", *COURSES, "--num_epoch", 18, "--lr", 0.01, "--batch_size", 3,
                 "--val_every", 100, "--kl_anneal_type", "none", "--kl_anneal_stop", 0, "--per_save", 100)
    losses = [float(row["train_loss"]) for row in rows]
    assert np.mean(losses[-3:]) < 0.6 * losses[0]
    assert float(rows[-1]["val_psnr"]) > 2 + float(rows[0]["val_psnr"])


@pytest.mark.parametrize("variance", ["fixed", "optimal"])
def test_golden_losses(variance, data, tmp_path, no_figures):
    rows = train(data, tmp_path / "run", *COURSES, "--decoder_variance", variance, "--num_epoch", 3, "--lr", 0.01)
    for name, expected in GOLDEN[variance].items():
        assert [float(row[name]) for row in rows] == pytest.approx(expected, rel=2e-4), name


def test_the_loss_is_mse_plus_beta_kl(whole_run):
    for row in read_csv(whole_run / "metrics.csv"):
        row = {name: float(value) for name, value in row.items()}
        assert row["train_loss"] == pytest.approx(row["train_mse"] + row["beta"] * row["train_kl"], rel=1e-5)
        assert row["beta"] == pytest.approx(row["epoch"] / 10)
        assert row["tfr"] == pytest.approx([1, 0.7, 0.4, 0.1][int(row["epoch"])])


@pytest.mark.parametrize("forced, flags", [
    ([False, False], []), ([True, False], []), ([True, True], []),
    ([0.3, 0.0], ["--replay", 0.5, "--any_first", 0.5, "--ema", 0.9, "--feedback_noise", 0.1, "--feedback_jitter", 0.1,
                  "--l1", 0.1, "--free_bits", 1, "--reference_frame", "--decoder_variance", "fixed"]),
    ([False, False], ["--feed", "first"])], ids=str)
def test_a_step_reads_nothing_back_from_the_device(forced, flags):
    """On a GPU each such read would make the host wait. On a CPU it is the same operation."""

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.add(function.name())
            return function(*args, **kwargs or {})

    called = set()
    args = Trainer.make_parser().parse_args([*TINY, "--DR", "-", "--save_root", "-", *map(str, flags)])
    trainer = Trainer.Trainer(args, torch.device("cpu"))
    trainer.model.two_passes = True
    frames, labels = torch.rand(2, 2, 4, 3, args.frame_H, args.frame_W)
    if args.replay:
        trainer.replay = Replay(torch.zeros(9, *frames.shape[2:], dtype=torch.uint8), torch.ones(9, dtype=torch.bool))
    clips = Clips(frames, labels, torch.tensor([[0, 1, 2, 3], [3, 4, 5, 6]]), torch.ones(2, dtype=torch.bool),
                  frames[:, 0], torch.tensor([7, 8]))
    with Recorder():
        trainer.train_step(clips, torch.tensor(forced), 0.1, 0.01)
    assert "aten::convolution_backward" in called
    assert not called & {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


# The run folder

def test_a_run_folder_holds_everything(whole_run, data):
    names = {re.sub(r"events\.out\.tfevents\..*", "events", name) for name in contents(whole_run)}
    assert names == {".lock", "config.json", "metrics.csv", "timing.csv", "events", "last.ckpt", "best.ckpt",
                     "epoch=0.ckpt", "epoch=3.ckpt", "psnr_best.csv", "psnr_epoch=0.csv", "psnr_epoch=3.csv",
                     "figures/loss.png", "figures/teacher_forcing.png",
                     "figures/psnr_per_frame.png",
                     "figures/val.gif", "figures/val_epoch=0.gif", "figures/val_epoch=3.gif"}
    config = json.loads((whole_run / "config.json").read_text())
    assert set(config) == {"command", "flags", "versions", "commit", "before"}
    assert config["flags"]["DR"] == str(data) and config["flags"]["F_dim"] == 8
    assert config["versions"]["torch"] == torch.__version__
    for name, columns in (("metrics.csv", METRICS), ("timing.csv", TIMING)):
        rows = read_csv(whole_run / name)
        assert tuple(rows[0]) == columns and [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert same_weights(whole_run / "last.ckpt", whole_run / "epoch=3.ckpt")
    assert not same_weights(whole_run / "last.ckpt", whole_run / "epoch=0.ckpt")


def test_tensorboard_shows_the_numbers_of_the_table(whole_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(whole_run))
    events.Reload()
    shown = set(events.Tags()["scalars"])
    for name in METRICS[1:]:
        tag = name.replace("_", "/", 1)
        shown.remove(tag)
        expected = [(int(row["epoch"]), float(row[name])) for row in read_csv(whole_run / "metrics.csv")]
        assert [event.step for event in events.Scalars(tag)] == [epoch for epoch, _ in expected]
        assert [event.value for event in events.Scalars(tag)] == pytest.approx([value for _, value in expected])
    assert shown == {"speed/frames_per_second"}


def test_the_gif_has_every_frame_of_the_validation(whole_run):
    with Image.open(whole_run / "figures" / "val.gif") as picture:
        assert picture.n_frames == 6


def test_best_is_the_epoch_with_the_highest_psnr(whole_run):
    rows = [float(row["val_psnr"]) for row in read_csv(whole_run / "metrics.csv")]
    state = torch.load(whole_run / "best.ckpt", weights_only=True)
    assert state["epoch"] == 1 + rows.index(max(rows)) and state["best_psnr"] == max(rows)
    per_frame = read_csv(whole_run / "psnr_best.csv")
    assert [row["frame"] for row in per_frame] == ["1", "2", "3", "4", "5"]
    assert {row["epoch"] for row in per_frame} == {str(rows.index(max(rows)))}
    assert sum(float(row["psnr"]) for row in per_frame) / 5 == pytest.approx(max(rows))


def test_validation_only_where_asked_and_in_the_last_epoch(data, tmp_path, no_figures):
    rows = train(data, tmp_path / "run", "--num_epoch", 4, "--val_every", 2, "--per_save", 2)
    assert [row["val_psnr"] != "" for row in rows] == [True, False, True, True]
    saved = {path.name for path in (tmp_path / "run").glob("epoch*")}
    assert saved == {"epoch=0.ckpt", "epoch=2.ckpt", "epoch=3.ckpt"}


def test_validation_with_drawn_z_is_repeatable(data, tmp_path):
    args = Trainer.make_parser().parse_args([*TINY, "--DR", str(data), "--save_root", str(tmp_path / "run")])
    trainer = Trainer.Trainer(args, torch.device("cpu"))
    trainer.load_data()
    first = trainer.validate(0)
    torch.rand(7)  # the global generator has no part in it
    assert torch.equal(trainer.validate(0)["prediction"], first["prediction"])
    args.val_latent = "mean"
    assert not torch.equal(trainer.validate(0)["prediction"], first["prediction"])
    assert torch.equal(first["prediction"][0], trainer.val_frames[0]) and len(first["psnr_per_frame"]) == 5
    assert not trainer.model.training or trainer.model.label_encoder.training


def test_test_prints_what_the_epoch_had_and_writes_no_checkpoint(whole_run, data, tmp_path, capsys):
    row = read_csv(whole_run / "metrics.csv")[0]
    before = contents(whole_run)
    capsys.readouterr()
    train_flags = ["--DR", str(data), "--save_root", str(tmp_path / "test"), "--device", "cpu", "--no-cache"]
    Trainer.main([*train_flags, "--ckpt_path", str(whole_run / "epoch=0.ckpt"), "--test"])
    printed = capsys.readouterr().out
    assert f"PSNR {float(row['val_psnr']):.3f} dB" in printed and f"loss {float(row['val_loss']):.6f}" in printed
    assert set(contents(tmp_path / "test")) == {"figures/test_psnr_per_frame.png", "figures/test_val.gif"}
    assert contents(whole_run) == before


# Continuing

def test_a_continued_run_equals_the_uninterrupted_one(whole_run, data, tmp_path, no_figures):
    run = tmp_path / "run"
    train(data, run, *WHOLE, "--num_epoch", 2)
    assert len(read_csv(run / "metrics.csv")) == 2
    Trainer.main(["--DR", str(data), "--save_root", str(run), "--ckpt_path", str(run / "last.ckpt"),
                  "--num_epoch", "4", "--no-cache"])
    assert (run / "metrics.csv").read_bytes() == (whole_run / "metrics.csv").read_bytes()
    assert same_weights(run / "last.ckpt", whole_run / "last.ckpt")
    optimizers = [torch.load(folder / "last.ckpt", weights_only=True)["optimizer"] for folder in (run, whole_run)]
    for one, other in zip(*(state["state"].values() for state in optimizers), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


def parse(*flags) -> tuple:
    return Trainer.parse_flags(["--DR", "d", "--save_root", "r", *map(str, flags)])


def test_flags_given_win_over_those_of_the_checkpoint(whole_run):
    args, state = parse("--ckpt_path", whole_run / "last.ckpt", "--lr", 0.5, "--tf_draw", "epoch")
    assert state["epoch"] == 4
    assert args.lr == 0.5 and args.tf_draw == "epoch"  # also where the given value is the default
    assert args.tfr_d_step == 0.3 and args.F_dim == 8 and args.train_vi_len == 4  # the checkpoint's
    assert args.DR == "d" and args.save_root == "r" and args.device is None and args.num_workers == 4  # the call's


@pytest.mark.parametrize("flags, expected", [
    (["--weight_decay", 0.25], {"weight_decay": 0.25}),
    (["--optim", "AdamW"], {"weight_decay": 0.01, "decoupled_weight_decay": True})], ids=str)
def test_optimiser_flags_given_win_over_those_of_the_checkpoint(flags, expected, whole_run, data):
    args, state = parse("--ckpt_path", whole_run / "last.ckpt", *flags)
    trainer = Trainer.Trainer(args, torch.device("cpu"))
    trainer.restore(state, whole_run / "last.ckpt")
    group, = trainer.optimizer.param_groups
    assert {name: group[name] for name in expected} == expected


def test_finetuning_takes_weights_and_flags_and_nothing_else(whole_run, data, tmp_path, no_figures, capsys):
    args, state = parse("--ckpt_path", whole_run / "last.ckpt", "--finetune", "--num_epoch", 2)
    assert args.tfr_d_step == 0.3 and args.num_epoch == 2
    trainer = Trainer.make_trainer(args, state)
    fresh = Trainer.make_trainer(args, None)
    assert all(torch.equal(value, state["model"][name]) for name, value in trainer.model.state_dict().items())
    assert trainer.epoch == 0 and trainer.metrics == [] and not trainer.optimizer.state_dict()["state"]
    for purpose, generator in trainer.generators.items():
        assert torch.equal(generator.get_state(), fresh.generators[purpose].get_state())

    run = tmp_path / "run"
    rows = train(data, run, "--ckpt_path", whole_run / "last.ckpt", "--finetune", "--num_epoch", 2,
                 "--no-store_visualization")
    assert [row["tfr"] for row in rows] == ["1.0", "0.7"]  # the schedules have begun anew
    assert "start anew" in capsys.readouterr().out
    # Going on with that run is an ordinary continuation.
    assert len(train(data, run, "--resume", "--num_epoch", 3)) == 3
    assert torch.load(run / "last.ckpt", weights_only=True)["flags"]["match_histogram"] == "previous"


def test_the_same_finetuning_with_resume_goes_on(whole_run, data, tmp_path, no_figures):
    flags = ["--ckpt_path", whole_run / "last.ckpt", "--finetune", "--no-store_visualization"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    rows = train(data, whole, *flags, "--num_epoch", 2)
    train(data, parts, *flags, "--num_epoch", 1, "--resume")
    assert train(data, parts, *flags, "--num_epoch", 2, "--resume") == rows
    assert same_weights(whole / "last.ckpt", parts / "last.ckpt")


def test_overwriting_never_deletes_the_given_weights(whole_run, data, refused):
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", whole_run, "--ckpt_path",
                      whole_run / "best.ckpt", "--finetune", "--overwrite", untouched=whole_run)
    assert "best.ckpt with it" in message


def test_finetuning_never_replaces_the_run_that_it_starts_from_unasked(whole_run, data, tmp_path, refused):
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", whole_run, "--ckpt_path",
                      whole_run / "last.ckpt", "--finetune", untouched=whole_run)
    assert "holds a run already" in message


def test_a_checkpoint_from_another_kind_of_device_continues(whole_run, data, tmp_path, no_figures):
    state = torch.load(whole_run / "last.ckpt", weights_only=True)
    state["device"] = "cuda"
    for purpose in ("latent", "disturbance"):
        state["generators"][purpose] = torch.zeros(16, dtype=torch.uint8)  # as CUDA's generators have it
    torch.save(state, tmp_path / "gpu.ckpt")
    assert len(train(data, tmp_path / "run", "--ckpt_path", tmp_path / "gpu.ckpt", "--num_epoch", 5,
                     "--no-store_visualization")) == 5


def test_a_checkpoint_from_before_a_flag_goes_on_without_it(whole_run, tmp_path):
    state = torch.load(whole_run / "last.ckpt", weights_only=True)
    for flag in ("ema", "replay", "decoder_variance"):
        del state["flags"][flag]
    torch.save(state, tmp_path / "old.ckpt")
    args, _ = parse("--ckpt_path", tmp_path / "old.ckpt")
    assert (args.ema, args.replay, args.decoder_variance) == (0, 0, "fixed")


def test_a_checkpoint_from_before_there_was_augmentation_continues(whole_run, data, tmp_path, no_figures):
    state = torch.load(whole_run / "last.ckpt", weights_only=True)
    for part in ("latest", "averaged_steps", "replay"):
        del state[part]
    for purpose in ("augmentation", "disturbance", "first", "reference"):
        del state["generators"][purpose]
    for flag in ("crop_fraction", "match_histogram", "ema", "replay", "feedback_noise", "grow_vi_len"):
        del state["flags"][flag]
    torch.save(state, tmp_path / "old.ckpt")
    assert len(train(data, tmp_path / "run", "--ckpt_path", tmp_path / "old.ckpt", "--num_epoch", 5,
                     "--no-store_visualization")) == 5


def test_resume_without_a_checkpoint_starts_anew(data, tmp_path, no_figures):
    assert len(train(data, tmp_path / "run", "--num_epoch", 1, "--resume")) == 1
    assert len(train(data, tmp_path / "run", "--num_epoch", 2, "--resume")) == 2


def test_overwrite_deletes_the_run_and_nothing_else(data, tmp_path, no_figures):
    run = tmp_path / "run"
    train(data, run, "--num_epoch", 2, "--per_save", 1)
    theirs = ["notes.txt", "result/submission.csv", "figures/for the paper.png", "pretrained.ckpt"]
    for name in theirs:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("theirs")
    train(data, run, "--num_epoch", 1, "--overwrite")
    left = set(contents(run))
    assert "epoch=1.ckpt" not in left and len(list(run.glob("events*"))) == 1
    assert len(read_csv(run / "metrics.csv")) == 1
    assert left >= set(theirs[:2])
    assert left >= set(theirs), "deleted what no run writes"


# Teacher forcing and fast epochs

@pytest.mark.parametrize("draw", ["epoch", "batch", "clip"])
def test_teacher_forcing_is_drawn_for_what_the_flag_says(draw, data, tmp_path, no_figures, monkeypatch):
    drawn = []

    def spy(self, batch, forced, *args):
        drawn[-1].append(forced.tolist())
        return torch.eye(6)[4] * 2

    train_epoch = Trainer.Trainer.train_one_epoch
    monkeypatch.setattr(Trainer.Trainer, "train_step", spy)
    monkeypatch.setattr(Trainer.Trainer, "train_one_epoch", lambda self: drawn.append([]) or train_epoch(self))
    rows = train(data, tmp_path / "run", *COURSES, "--num_epoch", 10, "--tfr", 0.5, "--tfr_sde", 99, "--tf_draw", draw,
                 "--clip_stride", 2, "--val_every", 99, "--per_save", 99)
    for row, epoch in zip(rows, drawn, strict=True):
        assert [len(batch) for batch in epoch] == [2, 2, 1]
        assert float(row["tf_used"]) == pytest.approx(np.mean(sum(epoch, [])))
    whole_epochs = all(len(set(sum(epoch, []))) == 1 for epoch in drawn)
    whole_batches = all(len(set(batch)) == 1 for epoch in drawn for batch in epoch)
    assert (whole_epochs, whole_batches) == {"epoch": (True, True), "batch": (False, True),
                                             "clip": (False, False)}[draw]
    assert len({value for epoch in drawn for batch in epoch for value in batch}) == 2


@pytest.mark.parametrize("ratio", [0, 1])
@pytest.mark.parametrize("draw", ["epoch", "clip"])
def test_certain_ratios_are_certain(ratio, draw, data, tmp_path, no_figures, monkeypatch):
    monkeypatch.setattr(Trainer.Trainer, "train_step", lambda *args: torch.eye(6)[4] * 2)
    rows = train(data, tmp_path / "run", "--num_epoch", 3, "--tfr", ratio, "--tf_draw", draw, "--val_every", 99)
    assert [float(row["tf_used"]) for row in rows] == [ratio] * 3


def test_fast_epochs_use_their_share(data, tmp_path, no_figures, monkeypatch):
    seen, batches = [], Trainer.ClipLoader.batches
    monkeypatch.setattr(Trainer.Trainer, "train_step", lambda *args: torch.eye(6)[4] * 2)
    monkeypatch.setattr(Trainer.ClipLoader, "batches",
                        lambda self, *args: seen.append((len(self.frames), len(self.starts))) or batches(self, *args))
    flags = ["--num_epoch", 3, "--fast_train", "--fast_partial", 0.5, "--fast_train_epoch", 2, "--val_every", 99]
    train(data, tmp_path / "a", *flags)
    assert seen == [(6, 1), (6, 1), (TRAIN_FRAMES, 3)]
    seen.clear()
    train(data, tmp_path / "b", *flags, "--no-fast_train", "--partial", 0.75)
    assert seen == [(9, 2)] * 3


# Strategies

@pytest.fixture
def steps(monkeypatch) -> list[tuple]:
    """For each step of a training the batch, the frames that the network was given, and its predictions."""
    seen, forward, step = [], Trainer.CVAE.forward, Trainer.Trainer.train_step

    def watch(self, frames, *args, **kwargs):
        outputs = forward(self, frames, *args, **kwargs)
        seen[-1] += frames.detach().clone(), outputs[0].detach().clone()
        return outputs

    monkeypatch.setattr(Trainer.CVAE, "forward", watch)
    monkeypatch.setattr(Trainer.Trainer, "train_step",
                        lambda self, batch, *args: seen.append((batch,)) or step(self, batch, *args))
    return seen


def test_a_replayed_clip_begins_with_what_the_clip_before_it_ended_with(data, tmp_path, no_figures, steps):
    """The clips of 4 frames begin at 0, 3, 6: the frames 3 and 6 are predicted last by the clips before."""
    train(data, tmp_path / "run", "--num_epoch", 3, "--replay", 1, "--tfr", 0, "--batch_size", 1, "--val_every", 9)
    ended, replayed = {}, 0
    for batch, frames, predictions in steps:
        assert torch.equal(frames[:, 1:], batch.frames[:, 1:])
        start, end = batch.index[0, [0, -1]].tolist()
        if start in ended:
            torch.testing.assert_close(frames[0, 0], ended[start], atol=0.5 / 255 + 1e-6, rtol=0)
            assert not torch.allclose(frames[0, 0], batch.frames[0, 0])
            replayed += 1
        else:
            assert torch.equal(frames[0, 0], batch.frames[0, 0])
        ended[end] = predictions[0, -1]
    assert replayed >= 4  # of nine: those of the first epoch may be too early, and the recording's first never is


@pytest.mark.parametrize("replay", [0, 1])
def test_a_clip_may_begin_with_any_frame_or_what_was_predicted_for_it(replay, data, tmp_path, no_figures, steps):
    train(data, tmp_path / "run", "--num_epoch", 6, "--any_first", 1, "--replay", replay, "--tfr", 0, "--val_every", 9)
    known, replayed, own = {}, 0, 0
    for batch, frames, predictions in steps:
        assert torch.equal(frames[:, 1:], batch.frames[:, 1:])
        for first, real, at, start in zip(frames[:, 0], batch.reference, batch.reference_index.tolist(),
                                          batch.index[:, 0].tolist(), strict=True):
            own += at == start
            if replay and at in known:
                torch.testing.assert_close(first, known[at], atol=0.5 / 255 + 1e-6, rtol=0)
                replayed += 1
            else:
                assert torch.equal(first, real)
        known |= dict(zip(batch.index[:, 1:].flatten().tolist(), predictions.flatten(0, 1), strict=True))
    assert own < len(steps) and (replayed >= 6) == bool(replay)


def test_what_was_kept_of_other_frames_is_not_replayed(data, own_data, tmp_path, no_figures):
    flags = ["--num_epoch", 1, "--replay", 1, "--val_every", 9]
    train(data, tmp_path / "run", *flags)
    assert torch.load(tmp_path / "run" / "last.ckpt")["replay"]["is_known"].any()
    args = ["--ckpt_path", tmp_path / "run" / "last.ckpt", "--save_root", tmp_path / "other", "--num_epoch", 2]
    for more, kept in ((["--DR", data], True), (["--DR", data, "--frame_W", 8], False)):
        trainer = Trainer.make_trainer(*parse(*args, "--no-cache", *more))
        trainer.load_data()
        assert bool(trainer.replay.is_known.any()) == kept
        assert trainer.replay.predictions.shape == trainer.loaders[False, 0].frames.shape
    write_pngs(own_data / "train" / "train_img", make_video(1, seed=9)[0], [TRAIN_FRAMES - 1])
    trainer = Trainer.make_trainer(*parse(*args, "--no-cache", "--DR", own_data))
    trainer.load_data()
    assert not trainer.replay.is_known.any()


def test_lengths_that_no_epoch_reaches_need_no_data(data, tmp_path, no_figures):
    assert len(train(data, tmp_path / "a", "--num_epoch", 1, "--grow_vi_len", 1, 2, 3, "--val_every", 9)) == 1
    assert len(train(data, tmp_path / "b", "--num_epoch", 3, "--grow_vi_len", 2, "--fast_train", "--fast_partial", 0.5,
                     "--fast_train_epoch", 1, "--val_every", 9)) == 3


def test_clips_double_in_length_at_the_epochs_given(data, tmp_path, no_figures, monkeypatch):
    seen, step = [], Trainer.Trainer.train_step

    def watch(self, batch, *args):
        seen.append((self.epoch, tuple(batch.frames.shape[:2])))
        return step(self, batch, *args)

    monkeypatch.setattr(Trainer.Trainer, "train_step", watch)
    rows = train(data, tmp_path / "run", "--num_epoch", 3, "--train_vi_len", 3, "--grow_vi_len", 1, 2, "--replay", 0,
                 "--batch_size", 3, "--val_every", 9)
    assert len(rows) == 3
    assert seen == [(0, (3, 3)), (0, (1, 3)), (1, (1, 6)), (1, (1, 6)), (2, (1, 12))]


def test_disturbances_and_blends_reach_the_fed_back_frames(data, tmp_path, no_figures):
    flags = ["--num_epoch", 1, "--tfr", 0.5, "--tfr_sde", 9, "--val_every", 9, "--replay", 0]
    losses = [train(data, tmp_path / str(index), *flags, *more)[0]["train_mse"] for index, more in enumerate([
        ["--tf_draw", "clip", "--tfr", 0], ["--tf_draw", "clip", "--tfr", 0, "--feedback_noise", 0.3],
        ["--tf_draw", "clip", "--tfr", 0, "--feedback_jitter", 0.3], ["--tf_draw", "blend"], ["--tfr", 1],
        ["--tfr", 1, "--feedback_noise", 0.3]])]
    assert len(set(losses[:5])) == 5 and losses[5] == losses[4]  # where nothing is fed back, nothing is disturbed


def test_recalled_predictions_are_disturbed_and_real_first_frames_are_not(data, tmp_path, no_figures):
    flags = ["--num_epoch", 2, "--train_vi_len", 2, "--batch_size", 4, "--val_every", 9]
    losses = [[row["train_mse"] for row in train(data, tmp_path / f"{replay} {noise}", *flags, "--replay", replay,
                                                 "--feedback_noise", noise)] for replay in (1, 0) for noise in (0, 0.3)]
    assert losses[0] != losses[1] and losses[2] == losses[3]


@pytest.mark.parametrize("flags, words", [
    (["--replay", 0.5, "--clip_stride", 4], "--clip_stride 4: .*give --clip_stride 0"),
    (["--replay", 0.5, "--clip_stride", 3, "--grow_vi_len", 2], "the stride grows"),
    (["--grow_vi_len", 1, 2, 3], "no 16 frames in a row .*--grow_vi_len"),
    (["--feed", "first", "--replay", 0.5], "--feed first"),
    (["--feed", "first", "--replay", 0, "--any_first", 1], "--feed first"),
    (["--feed", "first", "--replay", 0, "--bptt"], "--feed first"),
    (["--feed", "first", "--replay", 0, "--reference_frame"], "--feed first")])
def test_strategies_that_do_not_go_together_are_refused(flags, words, data, tmp_path, refused):
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", tmp_path / "run", *flags, untouched=tmp_path)
    assert re.search(words, message)


@pytest.mark.parametrize("flags", [["--reference_frame", "--replay", 0.5], ["--feed", "first", "--replay", 0]])
def test_what_goes_beyond_the_rules_trains_goes_on_and_generates(flags, data, tmp_path, no_figures):
    rows = train(data, tmp_path / "run", "--num_epoch", 1, *flags)
    assert len(train(data, tmp_path / "run", "--num_epoch", 2, "--resume")) == 2 and rows[0]["val_psnr"]
    Tester.main(["--DR", str(data), "--ckpt_path", str(tmp_path / "run" / "last.ckpt"), "--any_size", "--device", "cpu",
                 "--save_root", str(tmp_path / "results"), "--no-cache", "--no-make_gif"])
    assert (tmp_path / "results" / "submission.csv").is_file()


# Flags

COURSE = """--DR d --save_root r --batch_size 2 --lr 0.001 --device cpu --optim Adam --gpu 1 --num_workers 4
--num_epoch 70 --per_save 3 --partial 1.0 --train_vi_len 16 --val_vi_len 630 --frame_H 32 --frame_W 64
--F_dim 128 --L_dim 32 --N_dim 12 --D_out_dim 192 --tfr 1.0 --tfr_sde 10 --tfr_d_step 0.1 --fast_train
--fast_partial 0.4 --fast_train_epoch 5
--kl_anneal_type Cyclical --kl_anneal_cycle 10 --kl_anneal_ratio 1 --store_visualization"""


def test_a_command_line_of_the_course_runs_unchanged():
    args, state = Trainer.parse_flags(COURSE.split())
    assert state is None and args.fast_train and args.store_visualization
    args = Trainer.make_parser().parse_args([*COURSE.split(), "--ckpt_path", "c", "--test"])
    assert args.ckpt_path == "c" and args.test
    for kind in ("Cyclical", "Monotonic", "None", "cyclical"):
        assert parse("--kl_anneal_type", kind)[0].kl_anneal_type == kind.capitalize()


def test_defaults_are_the_courses_but_for_how_it_is_trained():
    given = vars(Trainer.parse_flags(COURSE.split())[0])
    defaults = vars(parse()[0])
    switches = {"fast_train", "store_visualization", "device"}
    training = {"num_epoch", "batch_size", "train_vi_len", "tfr", "kl_anneal_type"}
    assert {flag for flag in given if given[flag] != defaults[flag]} == switches | training
    assert defaults["clip_grad"] == 1.0 and defaults["device"] is None
    assert not any(defaults[flag] for flag in ("fast_train", "store_visualization", "test", "resume", "overwrite"))


def test_the_defaults_are_the_replay_recipe_at_the_courses_size():
    """But for what belongs to its smaller network, how a short run is validated, and a schedule that starts from 0."""
    recipe, defaults = vars(parse(f"@{ROOT / 'scripts' / 'recipes' / 'replay.args'}")[0]), vars(parse()[0])
    assert {flag for flag in recipe if (recipe[flag] or None) != (defaults[flag] or None)} == {
        "F_dim", "L_dim", "N_dim", "D_out_dim", "lr", "val_every", "val_latent", "tfr_sde", "tfr_d_step",
        "kl_anneal_stop"} and recipe["kl_anneal_stop"] == Trainer.CONSTANT_BETA["optimal"]


@pytest.mark.parametrize("flags, is_told", [
    (["--tfr", 0.5], True), (["--bptt"], True), ([], False), (["--tfr", 1, "--train_vi_len", 3], False),
    (["--match_histogram"], True), (["--feedback_noise", 0.1, "--replay", 0], True), (["--feedback_noise", 0.1], False),
    (["--tfr", 1, "--grow_vi_len", 4], False)], ids=str)
def test_flags_without_effect_on_single_steps_are_told(flags, is_told, data, tmp_path, no_figures, capsys):
    train(data, tmp_path / "run", "--train_vi_len", 2, *flags, "--num_epoch", 1)
    assert ("no effect in training on clips of 2 frames" in capsys.readouterr().err) == is_told


@pytest.mark.parametrize("kind, variance, epoch, beta", [
    ("Cyclical", "optimal", 9, 0.9), ("Monotonic", "optimal", 99, 1.0), ("None", "optimal", 9, 0.001),
    ("None", "fixed", 9, 0.0001)])
def test_without_a_stop_a_cycle_goes_to_1_and_a_constant_is_light(kind, variance, epoch, beta):
    flags = parse(*TINY, "--kl_anneal_type", kind, "--decoder_variance", variance)[0]
    trainer = Trainer.Trainer(flags, torch.device("cpu"))
    assert trainer.kl_annealing(epoch) == pytest.approx(beta)


RECIPES = sorted((ROOT / "scripts" / "recipes").glob("*.args"))
NOT_IN_A_RECIPE = {"help", "DR", "save_root", "ckpt_path", "resume", "finetune", "overwrite", "test", "device", "gpu",
                   "num_workers", "store_visualization", "per_save", "save_every_minutes", "deterministic", "cache",
                   "cache_dir", "compile"}


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_parses_and_names_every_training_flag(recipe):
    """A default that changes later must not change what a recipe does."""
    parse(f"@{recipe}")
    words = [word for line in recipe.read_text().splitlines()
             for word in Trainer.make_parser().convert_arg_line_to_args(line)]
    named = {word.split("=")[0] for word in words if word.startswith("--")}
    for action in Trainer.make_parser()._actions:
        if action.dest not in NOT_IN_A_RECIPE:
            assert named & set(action.option_strings), f"{action.option_strings[0]} is not in the recipe"
        else:
            assert not named & set(action.option_strings), f"{action.option_strings[0]} belongs to no recipe"


def test_more_gpus_than_it_uses_are_told_and_accepted(capsys):
    assert parse("--gpu", 4)[1] is None
    assert "--gpu 4" in capsys.readouterr().err
    parse("--gpu", 1)
    assert capsys.readouterr().err == ""


def test_flags_from_a_file_and_after_it(tmp_path):
    (tmp_path / "a.args").write_text("# tiny\n--lr 0.5  # large\n--bptt\n--lr_milestones 3 4\n")
    args, _ = parse(f"@{tmp_path / 'a.args'}", "--lr", 0.25)
    assert args.lr == 0.25 and args.bptt and args.lr_milestones == [3, 4]


@pytest.mark.parametrize("flags, words", [
    (["--frame_H", "-8"], "--frame_H"), (["--train_vi_len", "1"], "--train_vi_len"),
    (["--val_vi_len", "1"], "--val_vi_len.*at least 2"),
    (["--tfr", "1.5"], "--tfr.*at most 1"), (["--tfr", "-0.1"], "--tfr"), (["--tfr_d_step", "2"], "--tfr_d_step"),
    (["--partial", "0"], "--partial.*above 0"), (["--fast_partial", "1.2"], "--fast_partial"),
    (["--kl_anneal_cycle", "0"], "--kl_anneal_cycle"),
    (["--kl_anneal_type", "Cyclical", "--kl_anneal_cycle", "1"], "--kl_anneal_cycle 1: cyclical .* at least 2"),
    (["--kl_anneal_start", "2"], "--kl_anneal_start"), (["--kl_anneal_ratio", "0"], "--kl_anneal_ratio"),
    (["--F_dim", "12"], "--F_dim 12: .* multiple of 8"), (["--N_dim", "6"], "--N_dim 6: .* multiple of 4"),
    (["--L_dim", "3"], "--L_dim 3: .* multiple of 2"), (["--D_out_dim", "-8"], "--D_out_dim"),
    (["--batch_size", "0"], "--batch_size"), (["--num_epoch", "0"], "--num_epoch"),
    (["--num_epoch", "2.5"], "whole number"),
    (["--lr", "0"], "--lr.*above 0"), (["--lr", "nan"], "--lr"), (["--lr", "-1"], "--lr"), (["--lr", "inf"], "--lr"),
    (["--warmup", "99", "--num_epoch", "3"], "--warmup"), (["--optim", "SGD"], "--optim.*Adam"),
    (["--output", "tanh"], "--output"), (["--kl_anneal_type", "linear"], "--kl_anneal_type"),
    (["--lr_schedule", "step"], "--lr_schedule"), (["--tf_draw", "frame"], "--tf_draw"),
    (["--device", "tpu"], "--device"),
    (["--gpu", "0"], "--gpu"), (["--nonsense"], "--nonsense"), (["--test"], "--test .*--ckpt_path"),
    (["--resume", "--overwrite"], "--resume and --overwrite"), (["--num_workers", "-1"], "--num_workers"),
    (["--crop_fraction", "1.1"], "--crop_fraction.*at most 1"), (["--match_histogram", "last"], "--match_histogram"),
    (["--bptt", "--match_histogram"], "--bptt and --match_histogram"),
    (["--finetune"], "--finetune .*--ckpt_path"),
    (["--finetune", "--test", "--ckpt_path", "x"], "--finetune and --test"),
    (["--no-match_histogram", "first"], "takes no value"),
    (["--seed", "-1"], "--seed")], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_impossible_flags_are_refused(flags, words, data, tmp_path, refused):
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", tmp_path / "run", *flags, untouched=tmp_path)
    assert re.search(words, message), message
    assert not (tmp_path / "run").exists()


def test_cuda_without_cuda_is_refused(data, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", tmp_path / "run", "--device", "cuda")
    assert "--device cuda" in message and "--device cpu" in message


def test_the_program_itself_ends_with_2_and_one_line(tmp_path):
    command = [sys.executable, "Trainer.py", "--DR", str(tmp_path / "gone"), "--save_root", str(tmp_path / "run")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch(r"Trainer.py: error: .*gone.*: there is no such folder; .*--DR.*\n", result.stderr)


# Bad data

def damage_missing(root):
    (root / "train" / "train_img").rename(root / "elsewhere")
    return "train_img", "no such folder"


def damage_empty(root):
    for path in (root / "val" / "val_label").iterdir():
        path.unlink()
    return "val_label", "no PNG"


def damage_pose(root):
    (root / "train" / "train_label" / "5.png").unlink()
    return "5.png", "pose is missing"


def damage_frame(root):
    (root / "val" / "val_img" / "5.png").unlink()
    return "5.png", "frame is missing"


def damage_text(root):
    (root / "train" / "train_img" / "5.png").write_text("no image")
    return "5.png", "not a PNG image"


def damage_truncate(root):
    path = root / "train" / "train_label" / "5.png"
    path.write_bytes(path.read_bytes()[:60])
    return "5.png", "damaged or cut off"


def damage_numbering(root):
    for folder in ("train_img", "train_label"):
        for number in (2, 5, 8):
            (root / "train" / folder / f"{number}.png").unlink()
    return "--train_vi_len", "4 frames in a row"


def damage_validation(root):
    for folder in ("val_img", "val_label"):
        (root / "val" / folder / "5.png").unlink()
    return "--val_vi_len 6", "5 frames, fewer"


def damage_jump(root):
    for folder in ("val_img", "val_label"):
        (root / "val" / folder / "3.png").rename(root / "val" / folder / "30.png")
    return "val", "jumps from 2 to 4"


DAMAGES = [damage_missing, damage_empty, damage_pose, damage_frame, damage_text, damage_truncate, damage_numbering,
           damage_validation, damage_jump]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_bad_data_is_refused(damage, own_data, tmp_path, refused):
    place, words = damage(own_data)
    message = refused("Trainer.py", *TINY, "--DR", own_data, "--save_root", tmp_path / "run")
    assert place in message and words in message and ";" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags, flag", [(["--partial", 0.2], "--partial"),
                                         (["--fast_train", "--fast_partial", 0.2], "--fast_partial")], ids=str)
def test_too_small_a_share_of_the_frames_is_refused_with_its_flag(flags, flag, data, tmp_path, refused):
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", tmp_path / "run", *flags, untouched=tmp_path)
    assert "2 frames in use" in message and f"larger {flag} " in message


# Bad checkpoints

@pytest.mark.parametrize("kind", ["missing", "random", "truncated", "something else", "keys", "dimension"])
def test_a_bad_checkpoint_is_refused(kind, whole_run, data, tmp_path, refused):
    path, flags, words = tmp_path / "bad.ckpt", [], "bad.ckpt"
    whole = (whole_run / "last.ckpt").read_bytes()
    state = torch.load(whole_run / "last.ckpt", weights_only=True)
    if kind == "random":
        path.write_bytes(np.random.default_rng(0).bytes(1000))
    elif kind == "truncated":
        path.write_bytes(whole[:len(whole) // 2])
    elif kind == "something else":
        torch.save({"state_dict": state["model"]}, path)
    elif kind == "keys":
        state["model"].popitem()
        torch.save(state, path)
        words = "another network"
    elif kind == "dimension":
        path.write_bytes(whole)
        flags, words = ["--F_dim", 16], "--F_dim 16: the checkpoint .* has 8"
    for last in ([], ["--test"]):
        message = refused("Trainer.py", "--DR", data, "--save_root", tmp_path / "run", "--ckpt_path", path,
                          "--num_epoch", 9, *flags, *last, untouched=tmp_path)
        assert re.search(words, message), message


def test_a_training_state_of_the_wrong_shape_is_refused(whole_run, data, tmp_path, refused):
    for change in ({"optimizer": {}}, {"generators": {}}, {"optimizer": None}):
        torch.save(torch.load(whole_run / "last.ckpt", weights_only=True) | change, tmp_path / "bad.ckpt")
        message = refused("Trainer.py", "--DR", data, "--save_root", tmp_path / "run", "--num_epoch", 9,
                          "--ckpt_path", tmp_path / "bad.ckpt")
        assert "training state is damaged" in message


def test_a_run_that_has_reached_its_end_says_so(whole_run, data, tmp_path, refused):
    message = refused("Trainer.py", "--DR", data, "--save_root", tmp_path / "run",
                      "--ckpt_path", whole_run / "last.ckpt", untouched=tmp_path)
    assert "--num_epoch 4" in message and "trained 4 epochs already" in message


# A folder that holds something already

def test_another_run_is_never_overwritten_unasked(whole_run, data, tmp_path, refused):
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", whole_run, untouched=whole_run)
    assert "--resume" in message and "--overwrite" in message and str(whole_run) in message
    other = tmp_path / "other.ckpt"
    other.write_bytes((whole_run / "last.ckpt").read_bytes())
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", whole_run, "--ckpt_path", other,
                      "--num_epoch", 9, untouched=whole_run)
    assert "holds a run already" in message


def test_resume_with_a_checkpoint_of_another_folder_keeps_the_run(whole_run, data, tmp_path, refused):
    """--resume continues the run that lies in --save_root; a checkpoint from elsewhere would replace it."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "metrics.csv", "last.ckpt"):
        (run / name).write_bytes((whole_run / name).read_bytes())
    refused("Trainer.py", "--DR", data, "--save_root", run, "--resume", "--ckpt_path", whole_run / "epoch=0.ckpt",
            "--num_epoch", 2, untouched=run)


def test_a_save_root_that_is_a_file_is_refused(whole_run, data, tmp_path, refused):
    (tmp_path / "run").write_text("a file")
    for flags in ([], ["--test", "--ckpt_path", whole_run / "last.ckpt"]):
        message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", tmp_path / "run", *flags,
                          untouched=tmp_path)
        assert f"--save_root {tmp_path / 'run'} cannot be written" in message


# Numbers that are lost (more in test_survival.py)

def test_weights_lost_in_the_last_step_of_an_epoch_are_never_saved(data, tmp_path, refused, monkeypatch):
    """The loss of the epoch is still finite then."""
    step = Trainer.Trainer.train_step

    def lose(self, batch, *args):
        sums = step(self, batch, *args)
        if self.epoch == 1 and len(batch.frames) == 1:  # the last, smaller batch
            next(self.model.parameters()).data.fill_(math.nan)
        return sums

    monkeypatch.setattr(Trainer.Trainer, "train_step", lose)
    refused("Trainer.py", *TINY, *COURSES, "--DR", data, "--save_root", tmp_path / "run", "--num_epoch", 2)
    for path in (tmp_path / "run").glob("*.ckpt"):
        assert all(weight.isfinite().all() for weight in weights(path).values()), path.name


def test_a_checkpoint_with_lost_weights_is_refused(whole_run, data, tmp_path, refused):
    state = torch.load(whole_run / "last.ckpt", weights_only=True)
    next(weight for weight in state["model"].values() if weight.dim() == 4).fill_(math.nan)
    torch.save(state, tmp_path / "nan.ckpt")
    message = refused("Trainer.py", "--DR", data, "--save_root", tmp_path / "run", "--ckpt_path", tmp_path / "nan.ckpt",
                      "--test")
    assert "NaN" in message



@pytest.mark.parametrize("name", ["best.ckpt", "epoch=4.ckpt", "metrics.csv"])
def test_a_folder_with_any_file_of_a_run_is_not_taken_for_free(name, data, tmp_path, refused):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("precious")
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", tmp_path / "run", "--num_epoch", 1,
                      untouched=tmp_path / "run")
    assert "holds a run already" in message


def test_a_run_continued_elsewhere_has_a_best_checkpoint_of_its_own(data, tmp_path, no_figures):
    train(data, tmp_path / "first", "--num_epoch", 1)
    state = torch.load(tmp_path / "first" / "best.ckpt", weights_only=True)
    torch.save(state | {"best_psnr": 99.0}, tmp_path / "first" / "best.ckpt")  # never to be reached again
    train(data, tmp_path / "second", "--num_epoch", 2, "--ckpt_path", tmp_path / "first" / "best.ckpt")
    assert torch.load(tmp_path / "second" / "best.ckpt", weights_only=True)["best_psnr"] < 99
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["before"] == []
    train(data, tmp_path / "second", "--num_epoch", 3, "--resume")
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert [call["flags"]["num_epoch"] for call in (*config["before"], config)] == [2, 3]


def test_pictures_bear_the_epoch_that_they_show(data, tmp_path, no_figures, monkeypatch):
    titles = []
    for run in ("run", "all"):
        (tmp_path / run / "figures").mkdir(parents=True)
    monkeypatch.setattr(Trainer.curves, "plot_psnr", lambda curves, path, title: titles.append(title))
    monkeypatch.setattr(Trainer.video, "side_by_side_gif", lambda *args: args[-1].touch())
    train(data, tmp_path / "run", "--num_epoch", 4, "--val_every", 3, "--per_save", 2)
    assert titles == ["Validation, epoch 0", "Validation, epoch 0", "Validation, epoch 3"]
    train(data, tmp_path / "all", "--num_epoch", 4, "--val_every", 3, "--per_save", 2, "--store_visualization")
    assert {path.name for path in (tmp_path / "all" / "figures").glob("val_*")} == {
        "val_epoch=0.gif", "val_epoch=2.gif", "val_epoch=3.gif"}


@pytest.mark.parametrize("flag, value", [
    ("--train_vi_len", 10**30), ("--clip_stride", 10**30), ("--batch_size", 10**30), ("--frame_H", 10**9),
    ("--F_dim", 80000000), ("--num_workers", -1), ("--save_root", "")])
def test_absurd_sizes_are_refused(flag, value, data, tmp_path, refused):
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", tmp_path / "run", flag, value)
    assert flag in message


def test_flags_of_a_checkpoint_are_checked_like_given_ones(whole_run, data, tmp_path, refused):
    state = torch.load(whole_run / "last.ckpt", weights_only=True)
    state["flags"]["batch_size"] = 0
    torch.save(state, tmp_path / "odd.ckpt")
    message = refused("Trainer.py", "--DR", data, "--save_root", tmp_path / "run", "--ckpt_path", tmp_path / "odd.ckpt",
                      "--num_epoch", 99)
    assert "--batch_size" in message


def test_no_thread_but_this_one(data, tmp_path, no_figures):
    train(data, tmp_path / "run", "--num_epoch", 1, "--num_workers", 0)
    assert (tmp_path / "run" / "last.ckpt").exists()
