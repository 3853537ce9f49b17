"""What a run says about itself: what it trains, where it continues, and which flags do nothing."""
import argparse

from modules.config.advice import advise_on_length, advise_on_rate
from modules.config.trainer_flags import CALL_FLAGS, make_parser
from modules.schedulers import LearningRate
from modules.training.state import TrainingState
from utils import logger

# Flags that do not count as a difference from the course: reporting, saving, and the settings of one repetition.
NOT_COMPARED = ("recipe", "save_every_minutes", "per_save", "val_every", "val_latent", "val_vi_len",
                "store_visualization", "deterministic", "seed", "precision", "threads")


def announce(args: argparse.Namespace, given: dict) -> None:
    """Print what a run trains, and which of the ``given`` flags have no effect."""
    print(describe_training(args), flush=True)
    if note := flags_without_effect(args, given):
        logger.warning(note)


def announce_start(args: argparse.Namespace, state: TrainingState, saved: dict | None, learning_rate: LearningRate,
                   data: object, place: str) -> None:
    """Print what a run trains on and where it continues, and what to change where it would learn little.

    Parameters
    ----------
    saved : the checkpoint that it continues, from ``checkpoint.read``; None for a new run.
    data : the run's ``Data``. place : its devices and folder.
    """
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    print(f"{len(data.loader.starts)} clips, {parameters:,} parameters, {place}", flush=True)
    lines = [advise_on_length(args, len(data.loader), len(data.fast_loader or ()))]
    if data.person_shift is not None:
        lines.insert(0, f"--shifted_copies: {data.person_shift}; figures/shifted_copies.png shows it")
    if saved is not None:
        lines.insert(0, describe_continuation(args, saved, state))
        if args.num_epoch > saved["flags"].get("num_epoch", args.num_epoch):
            lines.append(advise_on_rate(args, learning_rate, state.epoch))
    print(*filter(None, lines), sep="\n", end="\n" if any(lines) else "", flush=True)


def describe_training(args: argparse.Namespace) -> str:
    """The first line of a run: recipe, clips, loss, what is fed back, precision, and what differs from the course.

    ``args.precision`` is fp32 or bf16.
    """
    differences = _differences(args)
    is_protocol = set(differences) <= {"--lr_schedule none"}  # the documented exception
    name = f"recipe {args.recipe}" if args.recipe else "the course's protocol" if is_protocol else "own flags"
    differences = f"differs from the course: {', '.join(differences)}" if differences else "as the course in every flag"
    threads = f", {args.threads} CPU thread{'s' * (args.threads > 1)}" if args.threads else ""
    return (f"{name}: clips of {args.train_vi_len} frames, batch {args.batch_size}; loss {_loss(args)}; feedback: "
            f"{_feedback(args)}; {args.precision}{threads}; {differences}")


def _loss(args: argparse.Namespace) -> str:
    error = {"fixed": "MSE", "optimal": "log MSE of each frame"}[args.decoder_variance]
    error += f" + {args.l1:g} L1" if args.l1 else ""
    span = f"{args.kl_anneal_start:g} to {args.kl_anneal_stop:g}"
    beta = {"Cyclical": f"{span} in cycles of {args.kl_anneal_cycle} epochs", "Monotonic": "0 to 1",
            "None": f"{args.kl_anneal_stop:g}"}[args.kl_anneal_type]
    return f"{error} + beta KL, beta {beta}"


def _feedback(args: argparse.Namespace) -> str:
    if args.feed == "first":
        return "none, each frame is predicted from the first"
    if args.train_vi_len == 2:
        parts = ["none within a clip"]
    elif args.tfr == 0:
        parts = ["the prediction"]
    else:
        decay = f" falling by {args.tfr_d_step:g} per epoch from epoch {args.tfr_sde}" if args.tfr_d_step else ""
        unit = {"epoch": "per epoch", "batch": "per batch", "clip": "per clip", "blend": "as a blend"}[args.tf_draw]
        parts = [f"the real frame at ratio {args.tfr:g}{decay} ({unit}), else the prediction"]
    if args.replay:
        parts.append(f"{args.replay:.0%} of the clips begin with a prediction (replay)")
    if args.any_first:
        parts.append(f"{args.any_first:.0%} of the clips begin with a random frame")
    if args.match_histogram != "off":
        parts.append(f"histogram matched to the {args.match_histogram} frame")
    return ", ".join(parts)


def _differences(args: argparse.Namespace) -> list[str]:
    """The flags that train something other than the course does."""
    defaults = make_parser().defaults() | {"lr_schedule": "multistep"}
    return [f"--{flag} {format_value(getattr(args, flag))}" for flag, default in defaults.items()
            if flag not in (*CALL_FLAGS, *NOT_COMPARED) and getattr(args, flag) != default]


def describe_continuation(args: argparse.Namespace, saved: dict, state: TrainingState) -> str:
    """Where a run continues, and what of the run this call changes. ``saved``: its checkpoint."""
    flags = saved["flags"] | saved["network"]
    progress = state.progress
    within = "" if progress is None else f" after {progress.clips} of {len(progress.order)} clips"
    changes = [f"{flag} {format_value(flags[flag])} -> {format_value(value)}" for flag, value in vars(args).items()
               if flag not in CALL_FLAGS and flag in flags and flags[flag] != value]
    changes += ["the training frames"] * (saved["recording"] not in (None, state.recording))
    return f"continuing from epoch {state.epoch}{within}" + (f"; changed: {', '.join(changes)}" if changes else "")


def format_value(value: object) -> str:
    """A flag's value as on a command line."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def flags_without_effect(args: argparse.Namespace, given: dict) -> str:
    """One line about the given flags that change nothing in this run, or "" where each has an effect."""
    single = args.train_vi_len == 2
    forcing = ("tfr", "tfr_sde", "tfr_d_step", "tf_draw")
    table = (
        (args.feed == "first", forcing, "nothing is fed back with --feed first"),
        (single, (*forcing, "bptt", "match_histogram"), "clips of 2 frames feed nothing back; try "
                                                        "--train_vi_len 16"),
        (args.tfr == 0, forcing[1:], "--tfr is 0"),
        (args.tfr == 1 and args.tfr_d_step == 0, ("tfr_sde", "tf_draw", "bptt", "match_histogram"),
         "every frame fed is a real one"),
        (args.kl_anneal_type == "None", ("kl_anneal_cycle", "kl_anneal_ratio", "kl_anneal_start"),
         "--kl_anneal_type is None"),
        (args.kl_anneal_type == "Monotonic", ("kl_anneal_start", "kl_anneal_stop"), "Monotonic goes from 0 to 1"),
        (args.lr_schedule != "multistep", ("lr_milestones", "lr_gamma"), "--lr_schedule is not multistep"),
        (not args.fast_train, ("fast_partial", "fast_train_epoch"), "--fast_train is off"),
    )
    switched_off = (0, False, "off")  # a flag that is off may be without effect
    notes, seen = [], set()
    for applies, flags, reason in table:
        if not applies:
            continue
        idle = [flag for flag in flags if flag in given and flag not in seen
                and (flag in forcing[1:] or getattr(args, flag) not in switched_off)]
        seen.update(idle)
        if idle:
            notes.append(f"{', '.join(f'--{flag}' for flag in idle)} ({reason})")
    return f"no effect in training: {'; '.join(notes)}" if notes else ""
