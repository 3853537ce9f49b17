"""What a run says about itself: its first line, where it continues, flags without effect.

    python -m pytest tests/config/test_summary.py
"""
import re
from types import SimpleNamespace

import pytest
import torch

from modules.config.build import make_schedules
from modules.config.summary import announce, announce_start, describe_training, flags_without_effect
from modules.config.trainer_flags import merge_flags, parse_command_line

PLACES = ["--DR", "data", "--save_root", "run", "--precision", "fp32"]


def parse(*flags):
    given = parse_command_line([*PLACES, *map(str, flags)])
    return merge_flags(given), given.all


@pytest.mark.parametrize("flags, words", [
    ([], ["the course's protocol", "16 frames", "MSE + beta KL", "0 to 1 in cycles of 10", "ratio 1", "fp32",
          "differs from the course: --lr_schedule none"]),
    (["--lr_schedule", "multistep"], ["the course's protocol", "as the course in every flag"]),
    (["--recipe", "best_small"], ["recipe best_small", "2 frames", "log MSE", "beta 0.001", "95%", "--replay 0.95",
                                  "--F_dim 32"]),
    (["--tfr", 0, "--bptt"], ["own flags", "feedback: the prediction", "--tfr 0.0", "--bptt on"]),
    (["--feed", "first"], ["predicted from the first", "--feed first"]),
    (["--kl_anneal_type", "monotonic", "--l1", 0.5], ["0.5 L1", "beta 0 to 1,", "--kl_anneal_type Monotonic"]),
    (["--match_histogram"], ["matched to the previous"])], ids=str)
def test_the_first_line_says_what_is_trained_and_what_differs(flags, words):
    line = describe_training(parse(*flags)[0])
    assert "\n" not in line
    assert not [word for word in words if word not in line.replace(";", ",")]


def test_reporting_and_the_machine_are_no_difference():
    line = describe_training(parse("--val_every", 5, "--seed", 3, "--num_workers", 1, "--latent", "mean")[0])
    assert line.endswith("differs from the course: --lr_schedule none")


@pytest.mark.parametrize("flags, idle", [
    ([], ""), (["--recipe", "best"], ""), (["--tfr", 0.5], ""), (["--tfr", 0], ""),
    (["--train_vi_len", 2, "--tfr", 0.5], "--tfr ("), (["--recipe", "best", "--bptt"], "--bptt ("),
    (["--train_vi_len", 2, "--match_histogram"], "--match_histogram ("),
    (["--tfr", 0, "--tf_draw", "clip"], "--tf_draw ("),
    (["--kl_anneal_type", "None", "--kl_anneal_cycle", 5], "--kl_anneal_cycle ("),
    (["--kl_anneal_type", "Monotonic", "--kl_anneal_stop", 0.5], "--kl_anneal_stop ("),
    (["--lr_milestones", 3], "--lr_milestones ("), (["--fast_partial", 0.5], "--fast_partial ("),
    (["--tfr_d_step", 0, "--bptt"], "--bptt ("), (["--feed", "first", "--tfr", 0.5], "--tfr (")], ids=str)
def test_given_flags_without_effect_get_one_line(flags, idle, capsys):
    args, given = parse(*flags)
    note = flags_without_effect(args, given)
    assert (idle in note) if idle else note == ""
    announce(args, given)
    assert capsys.readouterr().err.count("\n") == bool(idle)


class Loader(list):
    """Of batches."""
    starts = (0, 2, 4)


def start_of(capsys, *flags, saved=(), epoch=0, progress=None, batches=1000, fast=None, recording=7, shift=None):
    """What a run prints when it starts with ``flags``, from a checkpoint of a run with the flags ``saved``, if any."""
    args, _ = parse(*flags)
    state = None if saved == () else {"flags": vars(parse(*saved)[0]), "network": {}, "recording": 7}
    run = SimpleNamespace(epoch=epoch, progress=progress, recording=recording, model=torch.nn.Linear(2, 3))
    data = SimpleNamespace(loader=Loader(range(batches)), person_shift=shift,
                           fast_loader=None if fast is None else Loader(range(fast)))
    announce_start(args, run, state, make_schedules(args)[2], data, "1 x cpu, run folder run")
    first, rest = capsys.readouterr().out.split("\n", 1)
    assert first == "3 clips, 9 parameters, 1 x cpu, run folder run"
    return rest


@pytest.mark.parametrize("saved, flags, line", [
    (["--lr", 5e-4], ["--lr", 2e-4, "--num_workers", 0], "; changed: lr 0.0005 -> 0.0002"),
    (["--bptt"], ["--lr_milestones", 3, 4], "; changed: bptt on -> off, lr_milestones 2 5 -> 3 4"),
    (["--tfr", 0.8], ["--recipe", "report"], "; changed: tfr_sde 10 -> 8, kl_anneal_cycle 10 -> 100, "
                                             "num_epoch 70 -> 2000, recipe None -> report"),
    (["--save_root", "elsewhere"], ["--device", "cpu"], "")], ids=str)
def test_a_run_says_where_it_continues_and_which_of_its_flags_have_changed(saved, flags, line, capsys):
    assert start_of(capsys, *flags, saved=saved, epoch=14) == f"continuing from epoch 14{line}\n"
    assert start_of(capsys, *flags) == ""  # a new run


def test_a_run_says_that_it_continues_on_other_frames(capsys):
    assert start_of(capsys, saved=[], epoch=2, recording=8) == "continuing from epoch 2; changed: the training frames\n"


def test_a_run_says_how_well_the_person_was_found(capsys):
    assert start_of(capsys, shift="nearly") == "--shifted_copies: nearly; figures/shifted_copies.png shows it\n"


def test_a_run_that_continues_within_an_epoch_says_so(capsys):
    progress = SimpleNamespace(clips=4, order=torch.arange(9))
    assert start_of(capsys, saved=[], epoch=2, progress=progress) == "continuing from epoch 2 after 4 of 9 clips\n"


@pytest.mark.parametrize("saved, flags, epoch, is_low", [
    ("--lr_schedule cosine --num_epoch 20", "--lr_schedule cosine --num_epoch 22", 20, True),
    ("--lr_schedule cosine --num_epoch 20", "--lr_schedule cosine --num_epoch 22", 19, True),
    ("--lr_schedule cosine --num_epoch 20", "--lr_schedule cosine --num_epoch 40", 20, False),  # it is stretched
    ("--lr_schedule cosine --num_epoch 20", "--lr_schedule cosine --num_epoch 20", 19, False),  # as it was planned
    ("--lr_schedule cosine --num_epoch 20", "--num_epoch 22", 20, False),
    ("--lr_schedule multistep --num_epoch 8", "--lr_schedule multistep --num_epoch 16", 8, True),
    ("--lr_schedule multistep --num_epoch 2", "--lr_schedule multistep --num_epoch 4", 2, False)], ids=str)
def test_epochs_that_would_be_trained_at_next_to_no_rate_get_a_line(saved, flags, epoch, is_low, capsys):
    printed = start_of(capsys, *flags.split(), saved=saved.split(), epoch=epoch)
    assert printed.count("\n") == 1 + is_low
    assert all((word in printed) == is_low for word in ("--lr_schedule none", "--finetune", "% of --lr 0.001"))


@pytest.mark.parametrize("flags, batches, fast, line", [
    ("--num_epoch 10", 30, None, ""), ("--num_epoch 70", 1, None, "70 updates.*--num_epoch 760 makes 760"),
    ("--num_epoch 10", 29, None, "290 updates.*--num_epoch 27 makes 783"),
    ("--num_epoch 10 --fast_train", 29, 10, "195 updates.*--num_epoch 30 makes 775"),
    ("--num_epoch 3 --fast_train", 100, 2, "6 updates.*--num_epoch 13 makes 810")], ids=str)
def test_a_run_of_few_updates_says_how_many_epochs_it_needs(flags, batches, fast, line, capsys):
    printed = start_of(capsys, *flags.split(), batches=batches, fast=fast)
    assert re.search(line, printed) if line else printed == ""
    assert printed.count("\n") == bool(line)
