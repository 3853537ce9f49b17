"""The flags of Trainer.py: the course's protocol by default, recipes, flags of a checkpoint.

    python -m pytest tests/config/test_trainer_flags.py
"""
import json

import numpy as np
import pytest

import Trainer
from conftest import write_pngs
from modules.config import build, recipes
from modules.config.trainer_flags import CALL_FLAGS, make_parser, merge_flags, parse_command_line, read_settings
from modules.training.checkpoint import NETWORK_FLAGS
from utils import BadInput

PLACES = ["--DR", "data", "--save_root", "run"]
# The course's own defaults, with the one documented exception: its MultiStep schedule is --lr_schedule multistep.
PROTOCOL = {"train_vi_len": 16, "val_vi_len": 630, "batch_size": 2, "num_epoch": 70, "per_save": 3, "partial": 1.0,
            "frame_H": 32, "frame_W": 64, "F_dim": 128, "L_dim": 32, "N_dim": 12, "D_out_dim": 192,
            "optim": "Adam", "lr": 0.001, "lr_schedule": "none", "lr_milestones": [2, 5], "lr_gamma": 0.1,
            "warmup": 0.0, "weight_decay": None,
            "tfr": 1.0, "tfr_sde": 10, "tfr_d_step": 0.1, "tf_draw": "epoch",
            "kl_anneal_type": "Cyclical", "kl_anneal_cycle": 10, "kl_anneal_ratio": 1.0, "kl_anneal_start": 0.0,
            "kl_anneal_stop": 1.0, "kl_reduction": "sum", "decoder_variance": "fixed", "l1": 0.0,
            "output": "linear", "ema": 0.0, "replay": 0.0, "any_first": 0.0, "crop_fraction": 0.0, "clip_stride": 0,
            "shifted_copies": 0, "bptt": False, "match_histogram": "off", "reference_frame": False, "feed": "previous",
            "template_activations": False, "pose_levels": 0, "fast_train": False, "fast_partial": 0.4,
            "fast_train_epoch": 5, "clip_grad": 1.0, "val_every": 1, "val_latent": "prior"}


def settings(*flags):
    return merge_flags(parse_command_line([*PLACES, *map(str, flags)]))


# As the course hands it out and as the report has it, --DR and --save_root apart.
COURSE_LINE = ("--tfr 1.0 --tfr_sde 10 --tfr_d_step 0.1 --kl_anneal_type Cyclical --kl_anneal_cycle 10 "
               "--kl_anneal_ratio 1 --batch_size 2 --lr 0.001 --num_epoch 70 --train_vi_len 16 --fast_train "
               "--fast_partial 0.4 --fast_train_epoch 5 --gpu 1 --num_workers 4 --per_save 3")
REPORT_LINE = ("--num_epoch 2000 --tfr 0.8 --tfr_sde 8 --tfr_d_step 0.1 --kl_anneal_type Cyclical "
               "--kl_anneal_cycle 100")
REPORT = {"num_epoch": 2000, "tfr": 0.8, "tfr_sde": 8, "kl_anneal_cycle": 100}


@pytest.mark.parametrize("flags, differences", [
    ([], {}),
    (COURSE_LINE.split(), {"fast_train": True}),
    (REPORT_LINE.split(), REPORT),
    (["--recipe", "report"], REPORT),
    (["--recipe", "best_public"], {"tfr": 0.0, "bptt": True, "lr": 0.0001, "lr_schedule": "cosine", "batch_size": 4,
                                   "kl_anneal_type": "None"}),
    (["--kl_anneal_type", "monotonic"], {"kl_anneal_type": "Monotonic"}),
], ids=["no flag", "course", "report", "recipe report", "recipe best_public", "letter case"])
def test_a_command_line_trains_what_the_course_trains_but_for_what_it_says(flags, differences):
    args = vars(settings(*flags))
    assert {flag: args[flag] for flag in PROTOCOL} == PROTOCOL | differences


@pytest.fixture(scope="module")
def course_data(tmp_path_factory):
    """A dataset with the course's sizes: blank frames, 630 of them for validation."""
    root = tmp_path_factory.mktemp("course")
    blank = np.zeros((64, 32, 64, 3), np.uint8)
    for split, count in (("train", 40), ("val", 630)):
        for kind in ("img", "label"):
            write_pngs(root / split / f"{split}_{kind}", np.resize(blank, (count, 32, 64, 3)))
    return root


@pytest.mark.parametrize("line, differences", [("", {}), (COURSE_LINE, {"fast_train": True}), (REPORT_LINE, REPORT)],
                         ids=["no flag", "course", "report"])
def test_config_json_of_a_run_holds_the_protocol(line, differences, course_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Trainer.Trainer, "fit", lambda self: None)  # the run's files are written, nothing is trained
    monkeypatch.setattr(build, "pick_training", lambda model, height, width, precision, threads: ("fp32", 1))
    Trainer.main(["--DR", str(course_data), "--save_root", str(tmp_path / "run"), *line.split()])
    flags = json.loads((tmp_path / "run" / "config.json").read_text())["flags"]
    assert {flag: flags[flag] for flag in PROTOCOL} == PROTOCOL | differences
    assert flags["precision"] in ("fp32", "bf16")
    assert ("the course's protocol" in capsys.readouterr().out.split("\n")[0]) == (not differences)


def test_the_protocol_names_every_flag_that_changes_the_training():
    rest = {"recipe", "precision", "threads", "seed", "save_every_minutes", "store_visualization", "deterministic"}
    assert set(make_parser().defaults()) == set(PROTOCOL) | set(CALL_FLAGS) | rest


def test_best_small_is_best_with_a_small_network():
    best, small = vars(settings("--recipe", "best")), vars(settings("--recipe", "best_small"))
    changed = {flag for flag in best if best[flag] != small[flag]}
    assert changed == {"recipe", "F_dim", "L_dim", "N_dim", "D_out_dim", "lr", "shifted_copies", "num_epoch"}
    assert best["replay"] == 0.95 and best["decoder_variance"] == "optimal" and best["F_dim"] == 128


def test_best_gpu_is_best_with_a_larger_batch_and_no_fewer_updates():
    best, gpu = settings("--recipe", "best"), settings("--recipe", "best_gpu")
    changed = {flag for flag in vars(best) if vars(best)[flag] != vars(gpu)[flag]}
    assert changed == {"recipe", "batch_size", "lr", "warmup", "num_epoch", "val_every", "per_save"}
    assert 1.3 < (gpu.num_epoch / gpu.batch_size) / (best.num_epoch / best.batch_size) < 1.4
    assert gpu.lr == 2 * best.lr


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_holds_differences_only_and_the_command_line_wins(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # found from any working directory
    given = parse_command_line([*PLACES, "--recipe", name, "--num_epoch", "3"])
    defaults = make_parser().defaults()
    assert not set(given.recipe) - {"DR", "save_root"} & set(CALL_FLAGS)
    same = [flag for flag, value in given.recipe.items() if value == defaults[flag]]
    assert not same
    args = merge_flags(given)
    assert args.num_epoch == 3 and args.recipe == name


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(BadInput, match="best_small"):
        settings("--recipe", "bset")


def test_flags_from_a_file_and_the_later_one_wins(tmp_path):
    (tmp_path / "my.args").write_text("--lr 0.5  # a comment\n--tfr 0\n\n--lr_milestones 3 4\n")
    args = settings(f"@{tmp_path / 'my.args'}", "--lr", "0.25")
    assert (args.lr, args.tfr, args.lr_milestones) == (0.25, 0.0, [3, 4])


# A checkpoint's flags

def state_with(**flags) -> dict:
    args = vars(settings())
    return {"flags": args | flags, "network": {flag: (args | flags)[flag] for flag in NETWORK_FLAGS}}


def test_flags_given_win_over_those_of_the_checkpoint_also_with_their_default():
    given = parse_command_line([*PLACES, "--lr", "0.001", "--no-bptt"])
    args = merge_flags(given, state_with(lr=0.5, bptt=True, tfr=0.25, DR="elsewhere", device="cuda"), "c.ckpt")
    assert (args.lr, args.bptt, args.tfr) == (0.001, False, 0.25)
    assert (args.DR, args.device, args.ckpt_path) == ("data", None, "c.ckpt")  # of the call, not of the run


def test_the_recipe_of_a_run_named_again_does_not_undo_its_flags():
    state = state_with(recipe="report", tfr=0.5, kl_anneal_cycle=100)
    report, public = (parse_command_line([*PLACES, "--recipe", name]) for name in ("report", "best_public"))
    assert merge_flags(report, state, "c.ckpt", is_resumed=True).tfr == 0.5
    assert merge_flags(report, state, "c.ckpt", is_resumed=False).tfr == 0.8  # a new run from the weights of that one
    other = merge_flags(public, state, "c.ckpt", is_resumed=True)
    assert other.tfr == 0.0 and other.recipe == "best_public" and other.kl_anneal_cycle == 100


@pytest.mark.parametrize("flags", [{"lr": "fast"}, {"lr": -1.0}, {"lr": float("nan")}, {"batch_size": 2.5},
                                   {"bptt": 1}, {"tf_draw": "never"}, {"lr_milestones": [1, -2]}, {"lr_milestones": 5},
                                   {"num_epoch": True},
                                   {"match_histogram": None}, {"recipe": 3}], ids=str)
def test_a_checkpoint_with_impossible_flags_is_refused(flags):
    with pytest.raises(ValueError, match=next(iter(flags))):
        merge_flags(parse_command_line(PLACES), state_with(**flags), "c.ckpt")


def test_the_network_is_the_checkpoints_whatever_its_flags_say():
    state = state_with(F_dim=64)
    del state["flags"]["F_dim"]
    state["flags"]["L_dim"] = 16
    args = merge_flags(parse_command_line(PLACES), state, "c.ckpt")
    assert (args.F_dim, args.L_dim) == (64, 32)


def test_flags_that_this_version_does_not_know_are_ignored():
    assert merge_flags(parse_command_line(PLACES), state_with(tfr=0.5, of_the_future=[1]), "c.ckpt").tfr == 0.5


def test_another_network_than_the_checkpoints_is_refused():
    with pytest.raises(BadInput, match="--F_dim 64.*128"):
        merge_flags(parse_command_line([*PLACES, "--F_dim", "64"]), state_with(), "c.ckpt")


def test_a_damaged_checkpoint_names_the_others_in_its_folder(tmp_path):
    for name in ("last.ckpt", "epoch=3.ckpt", "epoch=12.ckpt"):
        (tmp_path / name).write_text("damaged")
    for name, words in (("last.ckpt", "epoch=12.ckpt,"), ("epoch=12.ckpt", None)):
        with pytest.raises(BadInput) as error:
            read_settings(parse_command_line(PLACES), tmp_path / name)
        assert (words is None) == ("also holds" not in str(error.value)) and (words or "damaged") in str(error.value)
    (tmp_path / "best.ckpt").write_text("x")
    with pytest.raises(BadInput, match="last.ckpt: .*damaged.* holds best.ckpt and epoch=12.ckpt, .*--ckpt_path"):
        read_settings(parse_command_line(PLACES), tmp_path / "last.ckpt", is_resumed=True)


@pytest.mark.parametrize("flags, words", [
    (["--F_dim", 12], "F_dim"), (["--kl_anneal_cycle", 1], "--kl_anneal_cycle"), (["--warmup", 99], "--warmup"),
    (["--kl_anneal_start", 2], "--kl_anneal_start"), (["--lr", 0], "--lr"), (["--tfr", 1.5], "--tfr"),
    (["--replay", 0.5, "--clip_stride", 16], "--clip_stride"), (["--feed", "first", "--replay", 0.5], "--replay"),
    (["--bptt", "--match_histogram"], "--match_histogram"), (["--nothing", 1], "--nothing"),
    (["--pose_levels", 5, "--frame_H", 24], "--pose_levels 5.*at most 4"), (["--pose_levels", 9], "--pose_levels"),
    (["--latent", "posterior"], "posterior")], ids=str)
def test_impossible_settings_are_refused_with_the_flag(flags, words):
    with pytest.raises(BadInput, match=words):
        settings(*flags)


def test_impossible_settings_cost_no_memory():
    with pytest.raises(BadInput, match="F_dim"):
        settings("--F_dim", 8191)
    assert settings("--F_dim", 8192).F_dim == 8192  # 6 GB of weights if it were built


def test_replay_needs_clips_that_overlap_by_one_frame():
    assert settings("--replay", 0.5, "--clip_stride", 15).clip_stride == 15
    with pytest.raises(BadInput, match="--clip_stride 14"):
        settings("--replay", 0.5, "--clip_stride", 14)
