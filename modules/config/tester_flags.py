"""The flags of Tester.py."""
import argparse

from modules.config import trainer_flags
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
from utils import logger

# Flags of the course's Tester.py that concern training, or that the checkpoint holds.
COURSE_FLAGS = ("test", "batch_size", "lr", "optim", "gpu", "num_epoch", "per_save", "store_visualization", "partial",
                "train_vi_len", "frame_H", "frame_W", "F_dim", "L_dim", "N_dim", "D_out_dim", "tfr", "tfr_sde",
                "tfr_d_step", "fast_train", "fast_partial", "fast_train_epoch", "kl_anneal_type", "kl_anneal_cycle",
                "kl_anneal_ratio")


class IgnoredFlag(argparse.Action):
    """A flag that has no effect. The names of those given are collected."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), option_string])


def parse_command_line(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line. Flags of the course that mean nothing here are ignored with one line on stderr.

    Raises
    ------
    BadInput : an unknown flag, an invalid value, or a missing flag.
    """
    args = make_parser().parse_args(argv)
    if args.ignored:
        logger.warning("ignored: %s (they concern training; the network and its sizes are the checkpoint's)",
                       ", ".join(dict.fromkeys(args.ignored)))
    del args.ignored
    return args


def fill_from_training(args: argparse.Namespace, flags: dict) -> None:
    """Take the flags that are not given from those of the checkpoint. bf16 is used where the processor supports it.

    Raises
    ------
    ValueError : the checkpoint's flags are damaged.
    """
    trainer_parser = trainer_flags.make_parser()
    for flag in ("seed", "precision", "match_histogram"):
        if getattr(args, flag) is None:
            value = flags.get(flag, trainer_parser.get_default(flag))
            trainer_parser.check_value(flag, value)
            setattr(args, flag, "auto" if value == "bf16" else value)
    trainer_parser.check_value("threads", flags.get("threads"))


def make_parser() -> FlagParser:
    parser = FlagParser(prog="Tester.py", description="Generate videos from first frames and poses, and score them.",
                        epilog="@FILE reads flags from a file. Flags of the course's Tester.py that concern training "
                               "are ignored.")
    group = parser.add_argument_group("what to generate")
    group.add_argument("--DR", required=True, help="root folder of the dataset")
    group.add_argument("--ckpt_path", required=True, help="checkpoint of Trainer.py or of the course's template")
    group.add_argument("--split", choices=["test", "val"], default="test",
                       help="the test sequences, or the validation sequence with its scores")
    group.add_argument("--truth", help="folder with the test sequences' real frames K/N.png, for scores only")
    group.add_argument("--restart_every", type=number(int, 0, 10**6), default=0,
                       help="with real frames: also generate from the real frame every so many frames, and compare; "
                            "distinguishes drift from a sequence that becomes harder; never submitted (0: off)")
    add_latent_flag(group)
    group.add_argument("--seed", type=number(int, 0, 2**28), help="seed of z; None: that of the training")
    add_histogram_flag(group, None)
    group.add_argument("--val_vi_len", type=number(int, 2, 10**6), default=630,
                       help="length of the validation sequence, frames")
    group = parser.add_argument_group("what to write")
    group.add_argument("--save_root", required=True, type=folder_name, help="folder for the results")
    group.add_argument("--overwrite", action="store_true",
                       help="replace the results that --save_root holds; other files there stay")
    group.add_argument("--any_size", action="store_true",
                       help="write submission.csv also for other frame sizes and lengths than the course's")
    group.add_argument("--make_gif", action=SWITCH, default=True,
                       help="write pred_seqK.gif for each sequence (comparisons with real frames are always drawn)")
    group.add_argument("--mp4", action="store_true", help="also write pred_seqK.mp4")
    group.add_argument("--fps", type=number(float, 1, 50), default=20.0,
                       help="frames per second of every GIF and MP4, 1 to 50")
    group = parser.add_argument_group("machine")
    add_precision_flag(group, None)
    add_machine_flags(group)
    for action in trainer_flags.make_parser()._actions:
        if action.dest in COURSE_FLAGS:
            parser.add_argument(*action.option_strings, dest="ignored", action=IgnoredFlag, nargs=action.nargs,
                                default=[], help=argparse.SUPPRESS)
    return parser
