"""Generate videos from first frames and poses: the submission, GIFs and, where the real frames are known, scores.

    python Tester.py --DR DATASET --ckpt_path RUN/best.ckpt --save_root RESULT               the test sequences
    python Tester.py --DR DATASET --ckpt_path RUN/best.ckpt --save_root RESULT --truth DIR   scored against DIR/K/N.png
    python Tester.py --DR DATASET --ckpt_path RUN/best.ckpt --save_root RESULT --split val   the validation sequence

RESULT/ then holds summary.json, submission.csv (test), pred_seqK.gif and, with real frames, seqK.csv, compare_seqK.mp4,
compare_seqK.gif and psnr.png. The sizes of network and frames come from the checkpoint.
"""
import argparse
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import utils  # noqa: F401  first: it says which packages are missing

# isort: split
import numpy
import torch
from torch import Tensor

from dataloader import FrameCache, GivenSequence, list_frames, read_images, read_test_sequences, read_validation
from modules.config.build import choose_rollout_threads
from modules.config.result_folder import SUMMARY, check_results, replace_results
from modules.config.tester_flags import fill_from_training, parse_command_line
from modules.evaluation import scores
from modules.evaluation.evaluate import rollout, score
from modules.evaluation.submission import write_submission
from modules.network.cvae import CVAE
from modules.plots import curves, video
from modules.training import checkpoint
from modules.training.origin import describe_epochs, find_best, planned_epochs, read_with_digest
from utils import (
    BadInput,
    as_bad_input,
    compile_pays,
    pick_device,
    pick_precision,
    progress_bar,
    run_main,
    write_json,
    write_table,
)

COURSE_FRAME, COURSE_LENGTH = (32, 64), 630  # what the course's submission has room for
RESTARTS_PER_BATCH = 64  # restarted parts that are rolled out together: bounds memory
MEMORY_ADVICE = "use --device cpu, fewer test sequences at a time, or a smaller --val_vi_len"


def main(argv: list[str] | None = None) -> None:
    args = parse_command_line(argv)
    check_flags(args)
    with replace_results(Path(args.save_root), args.overwrite) as (folder, old):
        write_results(args, folder, old)
    print(f"results are in {args.save_root}")


def check_flags(args: argparse.Namespace) -> None:
    """BadInput: flags that exclude each other."""
    if args.truth and args.split == "val":
        raise BadInput("--truth is for the test sequences; the validation sequence has its own real frames: leave "
                       "--truth out")
    if args.restart_every and not args.truth and args.split != "val":
        raise BadInput(f"--restart_every {args.restart_every} needs real frames; give them with --truth, or use "
                       "--split val")


def write_results(args: argparse.Namespace, folder: Path, old: set[str]) -> None:
    """Generate, score and write everything that the flags name to ``folder``. ``old``: results to be replaced, to which
    those of the same sequences are added."""
    device, path = pick_device(args.device, args.threads), Path(args.ckpt_path)
    with as_bad_input(f"--ckpt_path {path}"):
        state, digest = read_with_digest(path)
        fill_from_training(args, state["flags"])
        model = checkpoint.load_model(state, device, args.match_histogram)
    announce(path, state)
    if args.restart_every and model.feed == "first":
        raise BadInput(f"--restart_every {args.restart_every}: this checkpoint feeds nothing back (--feed first) and "
                       "cannot drift; leave the flag out")
    sequences, truths = read_data(args, state["frame_size"])
    old |= check_results(Path(args.save_root), args.overwrite, [sequence.name for sequence in sequences])
    if args.split == "test":
        check_submission(sequences, args.any_size)
    args.precision = pick_precision(args.precision, device)
    if device.type == "cpu":
        choose_rollout_threads(args, state["flags"].get("threads"), model, len(sequences), state["frame_size"])
    if compile_pays(args.compile, device, sum(len(sequence.labels) for sequence in sequences)):
        model.compile_steps()
    generate = partial(generate_all, latent=args.val_latent, seed=args.seed, precision=args.precision)
    with as_bad_input(f"--ckpt_path {path}"):
        videos = generate(model, sequences)
    write_videos(folder, args, sequences, videos)
    summary = {"checkpoint": str(path.absolute()), "checkpoint_sha256": digest, "epochs": state["epoch"],
               "num_epoch": planned_epochs(state), "split": args.split, "latent": args.val_latent, "seed": args.seed,
               "match_histogram": model.match_histogram, "flags": vars(args),
               "versions": {"python": platform.python_version(), "torch": torch.__version__,
                            "numpy": numpy.__version__}}
    if truths is not None:
        restarted = None
        if args.restart_every:
            summary["restart_every"] = args.restart_every
            # A model of its own: the other may be compiled for its batch.
            again = checkpoint.load_model(state, device, args.match_histogram)
            restarted = restart_from_truth(sequences, truths, args.restart_every, partial(generate, again))
        summary |= write_scores(folder, sequences, videos, truths, args.fps, args.restart_every, restarted)
    # The list tells the next call with --overwrite which files of the folder are results.
    summary["files"] = sorted([SUMMARY, *(result.name for result in folder.iterdir())])
    write_json(folder / SUMMARY, summary)


def announce(path: Path, state: dict) -> None:
    """Print what the checkpoint is, and which one is better."""
    note = f"; {state['template_note']}" if "template_note" in state else ""
    print(f"{path}: checkpoint {describe_epochs(state)}, frames of {' x '.join(map(str, state['frame_size']))}{note}")
    if better := find_best(path, state):
        print(f"its folder holds another best checkpoint: {better[0]}, {describe_epochs(better[1])}")


def read_data(args: argparse.Namespace, frame_size: list[int]) -> tuple[list[GivenSequence], list[Tensor] | None]:
    """The sequences to generate and, where they are known, their real frames, uint8 (T, 3, H, W) each."""
    root, how = Path(args.DR), (*frame_size, args.num_workers)
    cache = FrameCache(root, args.cache_dir) if args.cache else None
    if args.split == "val":
        val = read_validation(root, args.val_vi_len, *how, cache)
        return [GivenSequence("val", val.frames[0], val.labels, val.numbers.tolist())], [val.frames]
    sequences = read_test_sequences(root, *how, cache)
    if not args.truth:
        return sequences, None
    truth = Path(args.truth)
    return sequences, read_truth(truth, sequences, *how, FrameCache(truth, args.cache_dir) if args.cache else None)


def read_truth(folder: Path, sequences: list[GivenSequence], height: int, width: int, num_workers: int,
               cache: FrameCache | None = None) -> list[Tensor]:
    """The real frames of the sequences, uint8 (T, 3, H, W) each, from folder/K/N.png. BadInput: one is missing."""
    truths = []
    for sequence in sequences:
        frames = list_frames(folder / sequence.name, "--truth")
        for frame in sequence.numbers:
            if frame not in frames:
                raise BadInput(f"{folder / sequence.name}: the real frame {frame} is missing; add {frame}.png")
        paths = [frames[frame] for frame in sequence.numbers]
        truths.append(read_images(paths, height, width, num_workers, f"truth {sequence.name}", cache))
    return truths


def check_submission(sequences: list[GivenSequence], any_size: bool) -> None:
    """BadInput: the course's submission has no room for these sequences, and ``any_size`` does not allow it."""
    for sequence in sequences:
        length, size = len(sequence.labels), tuple(sequence.labels.shape[-2:])
        if not any_size and (length != COURSE_LENGTH or size != COURSE_FRAME):
            raise BadInput(f"test sequence {sequence.name} has {length} frames of {size[0]}x{size[1]}, the course's "
                           f"submission {COURSE_LENGTH} of {COURSE_FRAME[0]}x{COURSE_FRAME[1]}; add "
                           "--any_size to write it anyway")


def generate_all(model: CVAE, sequences: list[GivenSequence], latent: str = "prior", seed: int = 0,
                 precision: str = "auto") -> list[Tensor]:
    """Roll out all sequences in one batch, under a progress bar: ``evaluate.rollout``."""
    device = next(model.parameters()).device
    return rollout(model, torch.stack([sequence.first_frame for sequence in sequences]),
                   [sequence.labels for sequence in sequences], latent, seed, pick_precision(precision, device),
                   partial(progress_bar, desc=f"{len(sequences)} sequence(s)", unit="frame"))


def restart_from_truth(sequences: list[GivenSequence], truths: list[Tensor], every: int,
                       generate: Callable[[list[GivenSequence]], list[Tensor]]) -> list[Tensor]:
    """Generate the sequences in parts of ``every`` frames, each from its real first frame, so that no earlier error
    reaches it.

    Only to tell how much of a falling PSNR is due to the rollout, and how much to the sequence itself.

    Parameters
    ----------
    truths : uint8 (T, 3, H, W), of each sequence.
    generate : rolls out at most RESTARTS_PER_BATCH sequences.

    Returns
    -------
    uint8 (T, 3, H, W) for each sequence: the real frame 0, then predictions of at most ``every`` steps.
    """
    parts = [GivenSequence(sequence.name, truth[begin], sequence.labels[begin:begin + every + 1],
                              sequence.numbers[begin:begin + every + 1])
                for sequence, truth in zip(sequences, truths, strict=True)
                for begin in range(0, max(len(truth) - 1, 1), every)]
    videos = [clip for begin in range(0, len(parts), RESTARTS_PER_BATCH)
              for clip in generate(parts[begin:begin + RESTARTS_PER_BATCH])]
    predictions = torch.cat([clip[1:] for clip in videos]).split([len(truth) - 1 for truth in truths])
    return [torch.cat([truth[:1], part]) for truth, part in zip(truths, predictions, strict=True)]


def write_videos(folder: Path, args: argparse.Namespace, sequences: list[GivenSequence], videos: list[Tensor]) -> None:
    """Write the submission and the generated videos."""
    if args.split == "test":
        write_submission(videos, folder / "submission.csv")
    for sequence, clip in zip(sequences, videos, strict=True):
        if args.make_gif:
            video.write_gif(clip, folder / f"pred_seq{sequence.name}.gif", args.fps)
        if args.mp4:
            video.write_mp4(clip, folder / f"pred_seq{sequence.name}.mp4", args.fps)


def write_scores(folder: Path, sequences: list[GivenSequence], videos: list[Tensor], truths: list[Tensor],
                 fps: float, restart_every: int = 0, restarted: list[Tensor] | None = None) -> dict[str, dict]:
    """Write the scores and their pictures, print the summaries, and return them: "mean", and by name "sequences".

    ``restarted``: from ``restart_from_truth``.
    """
    summaries, tables = {}, {}
    for index, (sequence, clip, truth) in enumerate(zip(sequences, videos, truths, strict=True)):
        name = sequence.name
        table = tables[name] = scores.per_frame(score(clip, truth))
        summary = summaries[name] = scores.summarise(table)
        if restarted is not None:
            table["psnr_restarted"] = score(restarted[index], truth).psnr
            summary |= scores.compare_with_restarted(table["psnr"], table["psnr_restarted"], restart_every)
        rows = zip(*(values.tolist() for values in table.values()), strict=True)
        write_table(folder / f"seq{name}.csv", tuple(table), [dict(zip(table, row, strict=True)) for row in rows])
        video.side_by_side_gif(truth, clip, sequence.labels, folder / f"compare_seq{name}.gif", fps)
        video.side_by_side_mp4(truth, clip, sequence.labels, folder / f"compare_seq{name}.mp4", fps)
        print(f"sequence {name}: {scores.describe(summary, restart_every)}")
    rollouts = {f"sequence {name}": curves.Rollout(
        *(table[column][1:] if column in table else None
          for column in ("psnr", "psnr_repeat_first", "psnr_restarted", "brightness_error")))
        for name, table in tables.items()}
    curves.plot_psnr(rollouts, folder / "psnr.png", "PSNR per frame, free-running")
    mean = scores.mean_summary(list(summaries.values()))
    print(f"mean of {len(summaries)} sequence(s): {scores.describe(mean, restart_every)}; gain over repeating the "
          f"first frame {mean['psnr'] - mean['psnr_repeat_first']:+.2f} dB")
    return {"mean": mean, "sequences": summaries}


if __name__ == "__main__":
    sys.exit(run_main("Tester.py", main, MEMORY_ADVICE))
