"""The flags of Trainer.py. Their defaults are the course's protocol.

A new flag goes into one of the groups below. List it in CALL_FLAGS if a resumed run must not take it from its
checkpoint, in summary.NOT_COMPARED if it does not change what is trained, and in checkpoint.NETWORK_FLAGS (and
template_checkpoint) if it shapes the network.
"""
import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from modules.config import recipes
from modules.config.build import make_model, make_schedules
from modules.config.parser import (
    SWITCH,
    FlagParser,
    add_histogram_flag,
    add_latent_flag,
    add_machine_flags,
    add_precision_flag,
    folder_name,
    number,
)
from modules.network.cvae import FEEDS, MAX_POSE_LEVELS
from modules.objective import DECODER_VARIANCES
from modules.schedulers import KLAnnealing, LearningRate
from modules.training.checkpoint import MAX_CHANNELS, MAX_FRAME, NETWORK_FLAGS, read
from modules.training.run_folder import find_epochs
from utils import BadInput

# These belong to one call of the program, not to the run: a resumed run does not take them from its checkpoint.
CALL_FLAGS = ("DR", "save_root", "ckpt_path", "resume", "finetune", "overwrite", "test", "device", "gpu", "num_workers",
              "compile", "cache", "cache_dir")


def make_parser() -> FlagParser:
    parser = FlagParser(prog="Trainer.py", description="Train the conditional VAE on pose-conditioned clips. The "
                        "defaults are the course's protocol; a recipe is a set of differences.",
                        epilog="@FILE reads flags from a file.")
    _add_data_flags(parser.add_argument_group("data"))
    _add_network_flags(parser.add_argument_group("network (fixed by a checkpoint)"))
    _add_rollout_flags(parser.add_argument_group("rollout: which frame is fed to the next step"))
    _add_objective_flags(parser.add_argument_group("objective: error + beta * KL, summed over a clip's frames"))
    _add_optimisation_flags(parser.add_argument_group("optimisation"))
    _add_run_flags(parser.add_argument_group("run"))
    return parser


def _add_data_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--DR", required=True, help="root folder of the dataset")
    group.add_argument("--frame_H", type=number(int, 4, MAX_FRAME), default=32, help="height of the frames, pixels")
    group.add_argument("--frame_W", type=number(int, 4, MAX_FRAME), default=64, help="width of the frames, pixels")
    group.add_argument("--train_vi_len", type=number(int, 2, 10**6), default=16,
                       help="length of a training clip, frames")
    group.add_argument("--val_vi_len", type=number(int, 2, 10**6), default=630,
                       help="length of the validation sequence, frames")
    group.add_argument("--clip_stride", type=number(int, 0, 10**6), default=0,
                       help="frames between the starts of training clips; 0: the clip's length, or one less with "
                            "--replay")
    group.add_argument("--partial", type=number(float, 0, 1, above=True), default=1.0,
                       help="fraction of the training frames in use, the first in number order")
    group.add_argument("--fast_train", action=SWITCH, default=False,
                       help="use --fast_partial instead of --partial in the first --fast_train_epoch epochs")
    group.add_argument("--fast_partial", type=number(float, 0, 1, above=True), default=0.4,
                       help="fraction of the training frames in the fast epochs")
    group.add_argument("--fast_train_epoch", type=number(int, 0), default=5, help="number of fast epochs")
    group.add_argument("--crop_fraction", type=number(float, 0, 1), default=0.0,
                       help="fraction of the training clips that are randomly cropped (one window per clip, at least "
                            "half of each side, resized back)")
    group.add_argument("--shifted_copies", type=number(int, 0, 100), default=0,
                       help="add this many copies of the training frames in which the person and its pose are moved "
                            "sideways, each stretch of 96 frames by its own offset, in front of the recording's "
                            "background; the camera must stand still (figures/shifted_copies.png shows what is found "
                            "and the largest offsets). Fast epochs use none")


def _add_network_flags(group: argparse._ArgumentGroup) -> None:
    channels = number(int, 1, MAX_CHANNELS)
    group.add_argument("--F_dim", type=channels, default=128, help="frame feature channels, a multiple of 8")
    group.add_argument("--L_dim", type=channels, default=32, help="pose feature channels, a multiple of 2")
    group.add_argument("--N_dim", type=channels, default=12, help="latent map channels, a multiple of 4")
    group.add_argument("--D_out_dim", type=channels, default=192, help="fused feature channels, a multiple of 8")
    group.add_argument("--pose_levels", type=number(int, 0, MAX_POSE_LEVELS), default=0,
                       help="levels of a U-Net in the label encoder, each at half the resolution of the one before, "
                            "which see the pose as a whole; 0: none, the course's network")
    group.add_argument("--output", choices=["sigmoid", "linear"], default="linear",
                       help="the generator's last activation; linear, the course's, is unbounded")
    group.add_argument("--reference_frame", action=SWITCH, default=False,
                       help="give the decoder the features of the sequence's first frame at every step, in addition to "
                            "those of the previous frame (in training a random frame of the same recording takes its "
                            "place; beyond the course's rules)")
    group.add_argument("--template_activations", action=SWITCH, default=False,
                       help="no activation at the two places where the course's template writes LeakyReLU(True), which "
                            "is slope 1.0; set by itself with a checkpoint of the template")
    group.add_argument("--feed", choices=FEEDS, default="previous",
                       help="what each frame is predicted from: the previous frame, or always the first one, so that "
                            "nothing is fed back (in training a random frame of the same recording takes its place; "
                            "beyond the course's rules)")


def _add_rollout_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--tfr", type=number(float, 0, 1), default=1.0,
                       help="initial teacher-forcing ratio: probability of feeding the real frame")
    group.add_argument("--tfr_sde", type=number(int, 0), default=10,
                       help="epoch at which the ratio starts to decay (0 counts as 1)")
    group.add_argument("--tfr_d_step", type=number(float, 0, 1), default=0.1, help="decay of the ratio per epoch")
    group.add_argument("--tf_draw", choices=["epoch", "batch", "clip", "blend"], default="epoch",
                       help="what teacher forcing is drawn for: each epoch, batch or clip; blend: not drawn, each fed "
                            "frame is a blend of the real one, weighted by the ratio, and the prediction")
    group.add_argument("--bptt", action=SWITCH, default=False,
                       help="backpropagate through the fed-back prediction (slower, more memory)")
    add_histogram_flag(group, "off")
    group.add_argument("--replay", type=number(float, 0, 1), default=0.0,
                       help="fraction of the training clips that begin with the model's own latest prediction of their "
                            "first frame instead of the real one, so that short clips teach long rollouts")
    group.add_argument("--any_first", type=number(float, 0, 1), default=0.0,
                       help="fraction of the training clips that begin with a random frame of the same uncut recording "
                            "(with --replay, the prediction of it) instead of their own first frame, so that the "
                            "person is drawn from the pose and only the background is carried on")


def _add_objective_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--decoder_variance", choices=DECODER_VARIANCES, default="fixed",
                       help="fixed: one variance for all frames, so that the error is the MSE (the course's); optimal: "
                            "the most likely variance of each frame, so that it is the logarithm of the frame's MSE, "
                            "which is what the mean PSNR scores")
    group.add_argument("--l1", type=number(float, 0), default=0.0, help="weight of an additional mean absolute error")
    group.add_argument("--kl_anneal_type", type=str.capitalize, default="Cyclical",
                       choices=[kind.capitalize() for kind in KLAnnealing.KINDS],
                       help="how beta moves over the epochs; any letter case")
    group.add_argument("--kl_anneal_cycle", type=number(int, 1), default=10,
                       help="Cyclical: length of a cycle in epochs (not the number of cycles, as the course's "
                            "template reads it); Monotonic: divisor of the running sum")
    group.add_argument("--kl_anneal_ratio", type=number(float, 0, above=True), default=1.0,
                       help="slope of beta; Cyclical with 2 reaches the full weight half way through the cycle")
    group.add_argument("--kl_anneal_start", type=number(float, 0), default=0.0, help="Cyclical: lowest beta")
    group.add_argument("--kl_anneal_stop", type=number(float, 0), default=1.0,
                       help="Cyclical: highest beta; None: the constant beta; Monotonic always ends at 1")
    group.add_argument("--kl_reduction", choices=["sum", "mean"], default="sum",
                       help="KL summed over the latent map (the course's) or its mean")


def _add_optimisation_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--num_epoch", type=number(int, 1, 10**9), default=70, help="length of the run, epochs")
    group.add_argument("--batch_size", type=number(int, 1, 10**6), default=2, help="clips per step, over all processes")
    group.add_argument("--optim", choices=["Adam", "AdamW"], default="Adam", help="optimiser")
    group.add_argument("--weight_decay", type=number(float, 0), help="None: 0 for Adam, 0.01 for AdamW")
    group.add_argument("--lr", type=number(float, 0, above=True), default=0.001, help="learning rate")
    group.add_argument("--lr_schedule", choices=LearningRate.KINDS, default="none",
                       help="none: constant; cosine: to 0 at the end; multistep: times --lr_gamma at --lr_milestones "
                            "(the course's, which leaves a hundredth of the rate from epoch 5 on)")
    group.add_argument("--lr_milestones", type=number(int, 0), nargs="*", default=[2, 5],
                       help="epochs at which multistep drops the rate")
    group.add_argument("--lr_gamma", type=number(float, 0, above=True), default=0.1, help="factor of such a drop")
    group.add_argument("--warmup", type=number(float, 0), default=0.0,
                       help="epochs, fractions allowed, of linear growth of the rate at the start")
    group.add_argument("--ema", type=number(float, 0, 0.9999999), default=0.0,
                       help="decay of the exponential moving average of the weights that is evaluated and saved; 0: no "
                            "average")
    group.add_argument("--clip_grad", type=number(float, 0), default=1.0,
                       help="largest norm of the gradient; 0: no clipping")
    add_precision_flag(group, "auto")
    group.add_argument("--seed", type=number(int, 0, 2**28), default=0, help="seed of every random choice")


def _add_run_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--recipe", type=recipes.check_name,
                       help=f"a set of flags ({', '.join(recipes.names())}); flags given here win")
    group.add_argument("--save_root", required=True, type=folder_name,
                       help="run folder; a new run refuses one that holds a run")
    group.add_argument("--ckpt_path", help="checkpoint to continue from in a new folder (flags given here win over its "
                                           "own), or one of the course's template to start from")
    group.add_argument("--resume", action="store_true",
                       help="continue from --save_root/last.ckpt; start a new run where there is none")
    group.add_argument("--finetune", action="store_true",
                       help="take only weights and flags from --ckpt_path: epochs, schedules, optimiser and curves "
                            "start at zero")
    group.add_argument("--overwrite", action="store_true", help="replace the run that --save_root holds")
    group.add_argument("--test", action="store_true", help="evaluate --ckpt_path on the validation sequence only")
    group.add_argument("--save_every_minutes", type=number(float, 0), default=10.0,
                       help="minutes between saves of last.ckpt within a long epoch, 0: none; the end of an epoch "
                            "saves it, too, unless the last save was less than 30 seconds ago")
    group.add_argument("--per_save", type=number(int, 1), default=3,
                       help="epochs between epoch=N.ckpt files; figures are drawn at the end of an epoch, every two "
                            "minutes, and at the end of the run")
    group.add_argument("--val_every", type=number(int, 1), default=1, help="epochs between validations")
    add_latent_flag(group)
    group.add_argument("--store_visualization", action=SWITCH, default=False,
                       help="keep a validation GIF at each save: figures/val_epoch=N.gif")
    group.add_argument("--gpu", type=number(int, 1), default=1,
                       help="number of GPUs, as in the course; several are started with torchrun --nproc_per_node")
    group.add_argument("--deterministic", action=SWITCH, default=False,
                       help="also on CUDA use only algorithms that give the same bits in each run (slower); on a CPU "
                            "all do")
    add_machine_flags(group)


@dataclass(frozen=True)
class GivenFlags:
    """The flags that a call gives: by the recipe that it names, and on its command line, which wins."""
    recipe: dict
    command_line: dict

    @property
    def all(self) -> dict:
        return self.recipe | self.command_line


def parse_command_line(argv: list[str] | None) -> GivenFlags:
    """Read the command line and the recipe that it names.

    Raises
    ------
    BadInput : an unknown flag, an invalid value, or a missing flag.
    """
    parser = make_parser()
    given = parser.parse_given(argv)
    if given.get("recipe") is None:
        return GivenFlags({}, given)
    required = [f"--{flag}={given[flag]}" for flag in ("DR", "save_root")]  # which a recipe never holds
    return GivenFlags(parser.parse_given([*recipes.read(given["recipe"]), *required]), given)


def merge_flags(given: GivenFlags, state: dict | None = None, ckpt_path: str | None = None,
                is_resumed: bool = False) -> argparse.Namespace:
    """All flags of a run: the defaults, then those of the checkpoint ``state`` that it starts from, then those given.

    A recipe that is named again when its run is resumed changes nothing: the checkpoint has all of its flags, as they
    were then.

    Raises
    ------
    BadInput : flags that exclude each other, or another network than the checkpoint's.
    ValueError : the checkpoint's flags are damaged.
    """
    parser = make_parser()
    if state is None:
        values = parser.defaults() | given.all
    else:
        saved = {flag: value for flag, value in (state["flags"] | state["network"]).items()
                 if flag in parser.defaults() and flag not in CALL_FLAGS}
        for flag, value in saved.items():
            parser.check_value(flag, value)
        is_known = is_resumed and given.command_line.get("recipe") == saved.get("recipe")
        values = parser.defaults() | saved | (given.command_line if is_known else given.all)
    args = argparse.Namespace(**values)
    args.ckpt_path = ckpt_path
    check_strategies(args)
    with torch.device("meta"):  # impossible sizes and schedules are refused before any image is decoded
        make_model(args), make_schedules(args)
    for flag in NETWORK_FLAGS if state is not None else ():
        if getattr(args, flag) != state["network"][flag]:
            raise BadInput(f"--{flag} {getattr(args, flag)}: the checkpoint {ckpt_path} has {state['network'][flag]}, "
                           "and a network cannot change; leave the flag out")
    return args


def check_strategies(args: argparse.Namespace) -> None:
    """BadInput: strategies that exclude each other."""
    if args.replay and args.clip_stride not in (0, args.train_vi_len - 1):
        raise BadInput(f"--replay {args.replay:g} and --clip_stride {args.clip_stride}: each clip must begin with the "
                       "last frame of the previous clip; use --clip_stride 0 or --replay 0")
    if args.shifted_copies and args.fast_train and args.fast_partial > args.partial:
        raise BadInput(f"--fast_partial {args.fast_partial:g} with --shifted_copies {args.shifted_copies}: use at most "
                       f"that of --partial ({args.partial:g})")
    if 2**args.pose_levels > min(args.frame_H, args.frame_W):
        most = min(args.frame_H, args.frame_W).bit_length() - 1
        raise BadInput(f"--pose_levels {args.pose_levels}: each level halves the frames, which have "
                       f"{args.frame_H} x {args.frame_W} pixels; use at most {most}")
    if args.bptt and args.match_histogram != "off":
        raise BadInput("--bptt and --match_histogram: histogram matching has no gradient; use --no-bptt or "
                       "--no-match_histogram")
    if args.feed == "first":
        excluded = [f"--{flag}" for flag in ("replay", "any_first", "bptt", "reference_frame") if getattr(args, flag)]
        excluded += ["--match_histogram"] * (args.match_histogram != "off")
        if excluded:
            raise BadInput(f"--feed first and {', '.join(excluded)}: with --feed first nothing is fed back; leave "
                           "either out")


def read_settings(given: GivenFlags, path: Path | None,
                  is_resumed: bool = False) -> tuple[argparse.Namespace, dict | None]:
    """All flags of a run, and the checkpoint at ``path`` that it starts from, if any.

    Raises
    ------
    BadInput : the checkpoint is not usable, or the flags exclude each other or it.
    """
    if path is None:
        return merge_flags(given), None
    with checkpoint_errors(path):
        state = read(path)
        return merge_flags(given, state, str(path), is_resumed), state


@contextlib.contextmanager
def checkpoint_errors(path: Path) -> Iterator[None]:
    """Turn a ValueError about the checkpoint at ``path`` into BadInput, which names others in its folder."""
    try:
        yield
    except ValueError as error:
        others = [path.with_name("best.ckpt"), *[saved for _, saved in find_epochs(path.parent)[-1:]]]
        names = " and ".join(other.name for other in others if other.is_file() and other.name != path.name)
        ways_out = f"; its folder also holds {names}, for --ckpt_path with another --save_root" if names else ""
        raise BadInput(f"{path}: {error}{ways_out}") from error
