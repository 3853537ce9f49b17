"""Training: golden losses, the run folder, validation, continuing, strategies, bad data and checkpoints.

    python -m pytest tests/test_trainer.py
"""
import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch.utils._python_dispatch import TorchDispatchMode

import kill_run
import Tester
import Trainer
from conftest import TINY, contents, read_csv
from modules.plots.background import BackgroundDrawing
from modules.training import checkpoint, run_writer
from modules.training.metric_log import METRICS, TIMING
from training.run_helpers import batches, make_trainer, train

# Recorded on a CPU in float32 from `train(data, run, "--num_epoch", "3", "--lr", "0.01", "--output", "sigmoid")`, by
# --decoder_variance. A change that moves them changes the mathematics; record them again only where that is the aim.
GOLDEN = {"fixed": {"train_loss": [0.249439, 7.841584, 11.72153], "val_loss": [0.08034156, 0.07802545, 0.07644569]},
          "optimal": {"train_loss": [0.0541550, 7.727902, 11.521624],
                      "val_loss": [0.08034221, 0.07802885, 0.07640452]}}
WHOLE = ["--tfr_sde", "1", "--tfr_d_step", "0.3", "--tf_draw", "clip", "--crop_fraction", "0.5", "--match_histogram"]


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory):
    """A run of 4 epochs with all its figures. Never write to it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(data, folder, *WHOLE, "--num_epoch", 4, "--per_save", 3, "--store_visualization")
    return folder


# Learning

def test_the_loss_of_learnable_data_falls(data, tmp_path, no_figures):
    rows = train(data, tmp_path / "run", "--num_epoch", 18, "--lr", 0.01, "--batch_size", 3, "--output", "sigmoid",
                 "--val_every", 100, "--kl_anneal_type", "none", "--kl_anneal_stop", 0, "--per_save", 100)
    losses = [float(row["train_loss"]) for row in rows]
    assert np.mean(losses[-3:]) < 0.6 * losses[0]
    assert float(rows[-1]["val_psnr"]) > 2 + float(rows[0]["val_psnr"])


@pytest.mark.parametrize("variance", ["fixed", "optimal"])
def test_golden_losses(variance, data, tmp_path, no_figures):
    rows = train(data, tmp_path / "run", "--num_epoch", 3, "--lr", 0.01, "--output", "sigmoid",
                 "--decoder_variance", variance)
    for name, expected in GOLDEN[variance].items():
        assert [float(row[name]) for row in rows] == pytest.approx(expected, rel=2e-4), name


def test_the_loss_is_mse_plus_beta_kl_under_the_schedules(whole_run):
    for row in read_csv(whole_run / "metrics.csv"):
        row = {name: float(value) for name, value in row.items()}
        assert row["train_loss"] == pytest.approx(row["train_mse"] + row["beta"] * row["train_kl"], rel=1e-5)
        assert row["beta"] == pytest.approx(row["epoch"] / 10)
        assert row["tfr"] == pytest.approx([1, 0.7, 0.4, 0.1][int(row["epoch"])])
        assert 3 * row["tf_used"] in (0, 1, 2, 3) and (row["tf_used"] == 1 or row["tfr"] < 1)  # of 3 clips


@pytest.mark.parametrize("forced, flags", [
    ([False, False], []), ([True, False], []), ([True, True], []),
    ([0.3, 0.0], ["--replay", 0.5, "--any_first", 0.5, "--ema", 0.9, "--l1", 0.1, "--reference_frame"]),
    ([False, False], ["--decoder_variance", "optimal", "--crop_fraction", 0.5, "--match_histogram"]),
    ([False, False], ["--feed", "first"])], ids=str)
def test_a_step_reads_nothing_back_from_the_device(forced, flags, data):
    """On a GPU each such read would make the host wait. On a CPU it is the same operation."""

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.add(function.name())
            return function(*args, **kwargs or {})

    called = set()
    trainer = make_trainer(data, *flags)
    trainer.model.two_passes = True  # as on a GPU
    batch = next(batches(trainer))
    with Recorder():
        trainer.train_step(batch, torch.tensor(forced), 0.1, 0.01)
    assert "aten::convolution_backward" in called
    assert not called & {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


# The run folder

def test_a_run_folder_holds_everything(whole_run, data):
    names = {re.sub(r"events\.out\.tfevents\..*", "events", name) for name in contents(whole_run)}
    assert names == {".lock", ".run", "config.json", "metrics.csv", "timing.csv", "events", "last.ckpt", "best.ckpt",
                     "epoch=0.ckpt", "epoch=3.ckpt", "psnr_best.csv", "psnr_epoch=0.csv", "psnr_epoch=3.csv",
                     "figures/loss.png", "figures/teacher_forcing.png", "figures/psnr_per_frame.png",
                     "figures/val.gif", "figures/val_epoch=0.gif", "figures/val_epoch=3.gif"}
    config = json.loads((whole_run / "config.json").read_text())
    assert config["flags"]["DR"] == str(data) and config["versions"]["torch"] == torch.__version__
    assert type(config["dataset"].pop("checksum")) is int
    assert config["dataset"] == {"root": str(data), "train_frames": 12, "train_segments": 1, "clips": 3,
                                 "val_frames": 6, "frame_size": [8, 16]}
    for name, columns in (("metrics.csv", METRICS), ("timing.csv", TIMING)):
        assert [(*row, row["epoch"]) for row in read_csv(whole_run / name)] == [(*columns, str(n)) for n in range(4)]
    with Image.open(whole_run / "figures" / "val.gif") as gif:  # equal frames are stored once and shown longer
        assert sum(frame.info["duration"] for frame in ImageSequence.Iterator(gif)) == 6 * 50


def read_events(run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(run))
    events.Reload()
    return events


def test_tensorboard_shows_the_numbers_of_the_table(whole_run):
    events = read_events(whole_run)
    rows, tags = read_csv(whole_run / "metrics.csv"), {name: name.replace("_", "/", 1) for name in METRICS[1:]}
    assert set(events.Tags()["scalars"]) == {*tags.values(), "speed/frames_per_second"}
    for name, tag in tags.items():
        assert [event.step for event in events.Scalars(tag)] == [int(row["epoch"]) for row in rows]
        assert [event.value for event in events.Scalars(tag)] == pytest.approx([float(row[name]) for row in rows])


def test_best_is_the_epoch_with_the_highest_psnr(whole_run):
    rows = [float(row["val_psnr"]) for row in read_csv(whole_run / "metrics.csv")]
    state = checkpoint.read(whole_run / "best.ckpt")
    assert state["epoch"] == 1 + rows.index(max(rows)) and state["best_psnr"] == max(rows)
    per_frame = read_csv(whole_run / "psnr_best.csv")
    assert [row["frame"] for row in per_frame] == ["1", "2", "3", "4", "5"]
    assert {row["epoch"] for row in per_frame} == {str(rows.index(max(rows)))}
    assert np.mean([float(row["psnr"]) for row in per_frame]) == pytest.approx(max(rows))
    assert all(0 < float(row["psnr_repeat_first"]) < 100 for row in per_frame)


def test_the_first_line_names_the_recipe_also_when_the_run_is_resumed(data, tmp_path, no_figures, capsys):
    run = tmp_path / "run"
    for flags in (["--recipe", "best", "--num_epoch", 1, "--num_workers", 0, "--gpu", 4],
                  ["--resume", "--num_epoch", 2]):
        train(data, run, *flags)
        out, err = capsys.readouterr()
        assert out.startswith("recipe best: ") and ("torchrun" in err) == ("--gpu" in flags)
    config = json.loads((run / "config.json").read_text())
    assert config["flags"]["recipe"] == "best" and config["flags"]["replay"] == 0.95
    assert [call["flags"]["num_epoch"] for call in (*config["before"], config)] == [1, 2]


# Validation

def test_validation_where_asked_and_in_the_last_epoch(data, tmp_path, no_figures, monkeypatch):
    drawn = []
    monkeypatch.setattr(BackgroundDrawing, "is_due", lambda self: True)
    monkeypatch.setattr(BackgroundDrawing, "start", lambda self, figures: drawn.append(len(figures.metrics)))
    rows = train(data, tmp_path / "run", "--num_epoch", 4, "--val_every", 3, "--per_save", 2)
    assert [row["val_psnr"] != "" for row in rows] == [True, False, False, True]
    assert {path.name for path in (tmp_path / "run").glob("epoch*")} == {"epoch=0.ckpt", "epoch=2.ckpt", "epoch=3.ckpt"}
    assert drawn == [1, 2, 3]  # the last epoch's are drawn at once
    # Pictures bear the epoch of the validation that they show: in epochs 1 and 2 it is that of epoch 0.
    assert {event.step for event in read_events(tmp_path / "run").Images("val/truth_prediction_pose")} == {0, 3}


def test_validation_is_repeatable_and_starts_from_the_real_first_frame(data):
    trainer = make_trainer(data)
    first = trainer.validate()
    torch.rand(7)  # the global generator has no part in it
    assert torch.equal(trainer.validate().video, first.video)
    trainer.args.val_latent = "mean"
    assert not torch.equal(trainer.validate().video, first.video)
    assert torch.equal(first.video[0], trainer.data.val.frames[0]) and len(first.video) == 6
    assert not torch.equal(first.video[1], trainer.data.val.frames[1])


def test_test_prints_what_the_epoch_had_and_writes_no_checkpoint(whole_run, data, tmp_path, capsys):
    row = read_csv(whole_run / "metrics.csv")[0]
    before = contents(whole_run)
    Trainer.main(["--DR", str(data), "--save_root", str(tmp_path / "test"), "--device", "cpu", "--no-cache",
                  "--ckpt_path", str(whole_run / "epoch=0.ckpt"), "--test"])
    printed = capsys.readouterr().out
    assert f"PSNR {float(row['val_psnr']):.2f} dB" in printed and f"loss {float(row['val_loss']):.6f}" in printed
    assert set(contents(tmp_path / "test")) == {"figures/test_psnr_per_frame.png", "figures/test_val.gif"}
    assert contents(whole_run) == before


# Continuing (exact resuming: training/test_resume.py)

def test_a_longer_run_continues_a_shorter_one(whole_run, data, tmp_path, no_figures):
    """The flags come from the checkpoint, and the result is that of the longer run."""
    run = tmp_path / "run"
    train(data, run, *WHOLE, "--num_epoch", 2, "--per_save", 3)
    Trainer.main(["--DR", str(data), "--save_root", str(run), "--ckpt_path", str(run / "last.ckpt"),
                  "--num_epoch", "4", "--no-cache"])
    kill_run.compare(run, whole_run)


def test_a_complete_run_is_left_as_it_is(whole_run, data, tmp_path, capsys):
    shutil.copytree(whole_run, tmp_path / "run")
    (tmp_path / "run" / ".notes.tmp").write_text("theirs")
    before = contents(tmp_path / "run")
    train(data, tmp_path / "run", "--resume")
    assert "--num_epoch" in capsys.readouterr().out and contents(tmp_path / "run") == before


@pytest.mark.parametrize("lost", ["val.gif", "loss.png", "val_epoch=3.gif"])
def test_a_complete_run_draws_the_figures_that_it_lacks(lost, whole_run, data, tmp_path, monkeypatch):
    """It died after last.ckpt was saved and before the figures were complete: they are missing, or of an older save."""
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    if lost == "loss.png":
        (run / "figures" / lost).write_text("old")
        os.utime(run / "figures" / lost, (0, 0))
    else:
        (run / "figures" / lost).unlink()
    train(data, run, "--resume")
    after = {name: content for name, content in contents(run).items() if "tfevents" not in name}
    assert after == {name: content for name, content in contents(whole_run).items() if "tfevents" not in name}
    monkeypatch.setattr(Trainer.Trainer, "draw", lambda *args: 1 / 0)  # once is enough
    train(data, run, "--resume")


def test_a_run_that_died_while_it_drew_has_all_its_figures_when_it_is_resumed(whole_run, data, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Trainer.Trainer, "draw", lambda *args: 1 / 0)
        patch.setattr(run_writer, "SECONDS", 0)  # epoch 0 has been saved, and is not repeated
        train(data, tmp_path / "run", *WHOLE, "--num_epoch", 4, "--per_save", 3, "--store_visualization")
    train(data, tmp_path / "run", "--resume")
    assert contents(tmp_path / "run" / "figures") == contents(whole_run / "figures")


def test_a_damaged_checkpoint_costs_its_figures_only(whole_run, data, tmp_path, capsys):
    shutil.copytree(whole_run, tmp_path / "run")
    (tmp_path / "run" / "epoch=3.ckpt").write_bytes(b"damaged")
    train(data, tmp_path / "run", "--resume")
    assert "epoch=3.ckpt has no validation figures" in capsys.readouterr().err


def test_resuming_says_where_it_continues_and_what_has_changed(data, tmp_path, no_figures, capsys):
    run = tmp_path / "run"
    train(data, run, "--num_epoch", 1, "--lr", 5e-4, "--lr_schedule", "cosine")
    assert "continuing" not in capsys.readouterr().out
    train(data, run, "--num_epoch", 2, "--lr", 2e-4, "--resume", "--num_workers", 0)
    assert "\ncontinuing from epoch 1; changed: num_epoch 1 -> 2, lr 0.0005 -> 0.0002\n" in capsys.readouterr().out
    train(data, tmp_path / "branch", "--ckpt_path", run / "best.ckpt", "--num_epoch", 3, "--val_latent", "mean")
    assert "changed: num_epoch 2 -> 3, val_latent prior -> mean\n" in capsys.readouterr().out


def test_finetuning_starts_at_zero_and_can_be_resumed(whole_run, data, tmp_path, no_figures, capsys):
    flags = ["--ckpt_path", whole_run / "last.ckpt", "--finetune", "--no-store_visualization"]
    rows = train(data, tmp_path / "whole", *flags, "--num_epoch", 2)
    assert "weights only" in capsys.readouterr().out
    assert [row["tfr"] for row in rows] == ["1.0", "0.7"]  # the schedules of the checkpoint's flags, from epoch 0
    train(data, tmp_path / "parts", *flags, "--num_epoch", 1, "--resume")
    train(data, tmp_path / "parts", *flags, "--num_epoch", 2, "--resume")
    kill_run.compare(tmp_path / "parts", tmp_path / "whole")
    assert checkpoint.read(tmp_path / "parts" / "last.ckpt")["flags"]["match_histogram"] == "previous"


def test_a_run_continued_in_another_folder_has_a_best_checkpoint_of_its_own(data, tmp_path, no_figures):
    train(data, tmp_path / "first", "--num_epoch", 1)
    state = torch.load(tmp_path / "first" / "best.ckpt", weights_only=True)
    torch.save(state | {"best_psnr": 99.0}, tmp_path / "first" / "best.ckpt")  # never to be reached again
    rows = train(data, tmp_path / "second", "--num_epoch", 2, "--ckpt_path", tmp_path / "first" / "best.ckpt")
    assert len(rows) == 2 and checkpoint.read(tmp_path / "second" / "best.ckpt")["best_psnr"] < 99


# Strategies

def test_fast_epochs_use_their_fraction_of_the_frames(data):
    trainer = make_trainer(data, "--fast_train", "--fast_partial", 0.5, "--fast_train_epoch", 2, "--partial", 0.75)
    for trainer.state.epoch, used in enumerate(((6, [0]), (6, [0]), (9, [0, 4]))):
        assert (len(trainer.loader.frames), trainer.loader.starts.tolist()) == used


@pytest.mark.parametrize("replay, any_first", [(1, 0), (0, 1), (1, 1)])
def test_clips_begin_with_the_prediction_of_their_first_frame_or_of_a_random_one(replay, any_first, data):
    """With replay, clips start at 0, 3, 6: frames 3 and 6 are the last predictions of the previous clips."""
    trainer, seen, known, replayed = make_trainer(data, "--replay", replay, "--any_first", any_first), [], {}, 0
    trainer.model.register_forward_hook(lambda model, given, output: seen.append((given[0], output[0].detach())))
    for batch in [batch for _ in range(6) for batch in batches(trainer)]:
        trainer.train_step(batch, torch.zeros(len(batch.frames), dtype=torch.bool), 0.1, 1e-3)
        frames, predictions = seen.pop()
        assert torch.equal(frames[:, 1:], batch.frames[:, 1:])
        index, real = (batch.random_index, batch.random_frame) if any_first else (batch.index[:, 0], batch.frames[:, 0])
        for number, first, original in zip(index.tolist(), frames[:, 0], real, strict=True):
            if replay and number in known:
                torch.testing.assert_close(first, known[number].clamp(0, 1), atol=0.5 / 255 + 1e-6, rtol=0)
                replayed += 1
            else:
                assert torch.equal(first, original)
        known |= dict(zip(batch.index[:, 1:].flatten().tolist(), predictions.flatten(0, 1), strict=True))
    assert (replayed > 6) == bool(replay)


@pytest.mark.parametrize("flags", [
    ["--reference_frame", "--replay", 0.5], ["--feed", "first"],
    ["--any_first", 1, "--tf_draw", "blend", "--tfr", 0.5, "--match_histogram", "first"]], ids=str)
def test_every_strategy_trains_resumes_and_generates(flags, data, tmp_path, no_figures):
    rows = train(data, tmp_path / "run", "--num_epoch", 1, *flags)
    assert rows[0]["val_psnr"] and (rows[0]["tf_used"] == "0.5") == ("blend" in flags)
    assert len(train(data, tmp_path / "run", "--num_epoch", 2, "--resume")) == 2
    Tester.main(["--DR", str(data), "--ckpt_path", str(tmp_path / "run" / "last.ckpt"), "--any_size", "--device", "cpu",
                 "--save_root", str(tmp_path / "results"), "--no-cache", "--no-make_gif"])
    assert (tmp_path / "results" / "submission.csv").is_file()


# What is refused, in one sentence

@pytest.mark.parametrize("flags", [["--partial", 0.2], ["--fast_partial", 0.2, "--fast_train"]], ids=str)
def test_too_small_a_fraction_of_the_frames_is_refused_with_its_flag(flags, data, tmp_path, refused):
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", tmp_path / "run", *flags, untouched=tmp_path)
    assert "2 frames in use" in message and f"{flags[0]} 0.2" in message


@pytest.mark.parametrize("flags, words", [
    ([], "--shifted_copies 1, .*never leaves.*use --shifted_copies 0"),
    (["--partial", 0.01], "--partial 0.01, .*0 frames in use"),
    (["--fast_train", "--fast_partial", 0.5, "--partial", 0.2], "--fast_partial 0.5 .*--partial .0.2.")], ids=str)
def test_shifted_copies_that_cannot_be_made_are_refused(flags, words, data, tmp_path, refused):
    message = refused("Trainer.py", *TINY, "--DR", data, "--save_root", tmp_path / "run", "--shifted_copies", 1, *flags,
                      untouched=tmp_path)
    assert re.search(words, message)


@pytest.mark.parametrize("last", [[], ["--test"]], ids=str)
def test_a_bad_checkpoint_is_refused(last, whole_run, data, tmp_path, refused):
    state = torch.load(whole_run / "last.ckpt", weights_only=True)
    next(weight for weight in state["weights"].values() if weight.dim() == 4).fill_(math.nan)
    torch.save(state, tmp_path / "bad.ckpt")
    for path, flags, words in ((tmp_path / "gone.ckpt", [], "gone.ckpt"), (tmp_path / "bad.ckpt", [], "non-finite"),
                               (whole_run / "last.ckpt", ["--F_dim", 16], "--F_dim 16.* 8")):
        message = refused("Trainer.py", "--DR", data, "--save_root", tmp_path / "run", "--ckpt_path", path,
                          "--num_epoch", 9, "--no-cache", *flags, *last, untouched=tmp_path)
        assert re.search(words, message)
