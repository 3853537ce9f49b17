"""The first line of a run, and the warning about flags without effect.

    python -m pytest tests/config/test_summary.py
"""
import pytest

from modules.config.summary import announce, describe_training, flags_without_effect
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
