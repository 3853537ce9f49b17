"""Generate videos from first frames and poses: the submission, the GIFs and, where the truth is known, the scores.

    python Tester.py --DR DATASET --ckpt_path RUN/best.ckpt --save_root RESULT               the test sequences
    python Tester.py --DR DATASET --ckpt_path RUN/best.ckpt --save_root RESULT --truth DIR   scored against DIR/K/N.png
    python Tester.py --DR DATASET --ckpt_path RUN/best.ckpt --save_root RESULT --split val   the validation sequence

RESULT/ then holds submission.csv (test), pred_seqK.gif and, with a truth, seqK.csv, compare_seqK.gif, psnr.png and
summary.json. Sizes of network and frames come from the checkpoint.
"""
import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dataloader import GivenSequence, list_frames, read_images, read_test_sequences, read_validation, to_float
from modules.config.parser import ChoiceOrOff, FlagParser, folder_name, number
from modules.data.frame_cache import FrameCache
from modules.data.histogram import HISTOGRAM_REFERENCES
from modules.evaluation.metrics import (
    SCORED_FRAMES,
    brightness_error,
    course_score,
    drift,
    psnr,
    repeat_first,
    slope,
    ssim,
    to_uint8,
)
from modules.evaluation.submission import write_submission
from modules.network.cvae import CVAE
from modules.plots import curves, video
from modules.training.checkpoint import load_checkpoint
from utils import (
    BadInput,
    as_bad_input,
    check_writable,
    compile_pays,
    pick_device,
    pick_precision,
    progress_bar,
    run_main,
    write_json,
    write_table,
)

COURSE_FRAME, COURSE_LENGTH = (32, 64), 630  # what the course's submission has room for
PIECES_AT_ONCE = 64  # of sequences begun anew, rolled out in one batch: bounds memory
SCORES = ("frame", "psnr", "ssim", "brightness_error",
          "psnr_repeat_first", "ssim_repeat_first", "brightness_error_repeat_first")


def load_model(state: dict, device: torch.device, match_histogram: str | None = None) -> CVAE:
    """The network of a checkpoint on ``device``, with its weights, in evaluation mode.

    match_histogram : as the flag has it; None: as it was trained.
    """
    model = CVAE(**state["network"], match_histogram=match_histogram or state["flags"].get("match_histogram", "off"))
    model.load_state_dict(state["model"])
    return model.to(device, memory_format=torch.channels_last).eval()


def generate_all(model: CVAE, sequences: list[GivenSequence], latent: str, seed: int, device: torch.device,
                 precision: str = "fp32", compile: str = "off") -> list[Tensor]:
    """Roll out all sequences in one batch.

    Parameters
    ----------
    precision, compile : as the flags have them.

    Returns
    -------
    uint8 (T, 3, H, W) for each sequence, the given first frame included, each of its own length.
    """
    longest = max(len(sequence.labels) for sequence in sequences)
    # A shorter sequence goes on with its last pose; what it generates there is cut off again.
    index = [torch.arange(longest).clamp(max=len(sequence.labels) - 1) for sequence in sequences]
    labels = torch.stack([s.labels[i] for s, i in zip(sequences, index, strict=True)])
    first = torch.stack([sequence.first_frame for sequence in sequences])
    noise = torch.Generator(device).manual_seed(seed)
    progress = partial(progress_bar, desc=f"{len(sequences)} sequence(s)", unit="frame")
    if compile_pays(compile, device, labels.shape[0] * longest):
        model.compile_steps()
    with torch.autocast(device.type, torch.bfloat16, enabled=pick_precision(precision, device) == "bf16"):
        videos = model.generate(to_float(first.to(device)), to_float(labels.to(device)), latent, noise, progress)
    if not videos.isfinite().all():
        raise BadInput("--ckpt_path: this checkpoint generates NaN or infinite pixels; give an earlier one")
    videos = to_uint8(videos).cpu()
    return [video[:len(sequence.labels)] for video, sequence in zip(videos, sequences, strict=True)]


def restart_from_truth(sequences: list[GivenSequence], truths: list[Tensor], every: int,
                       generate: Callable[[list[GivenSequence]], list[Tensor]]) -> list[Tensor]:
    """The sequences again, but begun anew from the real frame ``every`` frames: what no error of long ago has reached.

    Only for the question how much of a falling PSNR is the roll-out's doing, and how much the sequence's own.

    Parameters
    ----------
    truths : uint8 (T, 3, H, W), of each sequence.
    generate : as ``generate_all``, given its other arguments; called with PIECES_AT_ONCE pieces at most.

    Returns
    -------
    uint8 (T, 3, H, W) for each sequence: the real frame 0, then predictions of at most ``every`` steps.
    """
    pieces = [GivenSequence(sequence.name, truth[begin], sequence.labels[begin:begin + every + 1],
                            sequence.numbers[begin:begin + every + 1])
              for sequence, truth in zip(sequences, truths, strict=True)
              for begin in range(0, max(len(truth) - 1, 1), every)]
    videos = [video for begin in range(0, len(pieces), PIECES_AT_ONCE)
              for video in generate(pieces[begin:begin + PIECES_AT_ONCE])]
    predictions = torch.cat([video[1:] for video in videos]).split([len(truth) - 1 for truth in truths])
    return [torch.cat([truth[:1], part]) for truth, part in zip(truths, predictions, strict=True)]


def check_submission(sequences: list[GivenSequence], any_size: bool) -> None:
    """BadInput: the course's submission has no room for these sequences, and ``any_size`` does not allow it."""
    for sequence in sequences:
        length, size = len(sequence.labels), tuple(sequence.labels.shape[-2:])
        if not any_size and (length != COURSE_LENGTH or size != COURSE_FRAME):
            raise BadInput(f"test sequence {sequence.name} has {length} frames of {size[0]}x{size[1]}, the course's "
                           f"submission {COURSE_LENGTH} of {COURSE_FRAME[0]}x{COURSE_FRAME[1]}; give --any_size to "
                           "write it all the same")


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


def score(video: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Scores per frame of a sequence, as SCORES names them, each (T,).

    Both are uint8 (T, 3, H, W): the pixels that are submitted are the pixels that are scored.
    """
    prediction, target = to_float(video), to_float(truth)
    scores = {"frame": torch.arange(len(video))}
    for suffix, frames in (("", prediction), ("_repeat_first", repeat_first(target))):
        scores |= {f"psnr{suffix}": psnr(frames, target), f"ssim{suffix}": ssim(frames, target),
                   f"brightness_error{suffix}": brightness_error(frames, target)}
    return scores


def summarise(scores: dict[str, Tensor]) -> dict[str, float]:
    """Means of a sequence's scores over its predicted frames 1..T-1; course_* and the drift over frames 1..600."""
    means = {name: scores[name][1:].mean().item() for name in SCORES[1:]}
    return {"frames": len(scores["frame"]) - 1, **means, "course_psnr": course_score(scores["psnr"]),
            "course_psnr_repeat_first": course_score(scores["psnr_repeat_first"]),
            **drift(scores["psnr"], scores["brightness_error"])}


def beside_restarted(psnr_per_frame: Tensor, restarted: Tensor, every: int) -> dict[str, float]:
    """A roll-out beside what was begun anew ``every`` frames, from the dB of each frame, (T,), frame 0 included.

    Returns
    -------
    course_psnr_restarted, psnr_slope_restarted : of what was begun anew, over frames 1..600, dB and dB per 600 frames.
    drift, drift_slope : of the roll-out minus that, over frames every + 1..600 (before, both are the same roll-out);
        left out where there is no such frame.
    """
    both = torch.stack([psnr_per_frame, restarted])[:, 1:1 + SCORED_FRAMES].double()
    beside = both[0, every:] - both[1, every:]
    summary = {"course_psnr_restarted": both[1].mean().item(), "psnr_slope_restarted": slope(both[1])}
    if len(beside):
        summary |= {"drift": beside.mean().item(), "drift_slope": slope(beside)}
    return summary


def write_scores(folder: Path, sequences: list[GivenSequence], videos: list[Tensor], truths: list[Tensor],
                 fps: float, settings: dict, restarted: list[Tensor] | None = None) -> None:
    """Write the scores and their pictures, and print the summary.

    restarted : what ``restart_from_truth`` gives, to be compared with.
    """
    summaries, lines, anew, brightness, baselines = {}, {}, {}, {}, []
    for index, (sequence, clip, truth) in enumerate(zip(sequences, videos, truths, strict=True)):
        scores = score(clip, truth)
        if restarted is not None:
            scores["psnr_restarted"] = psnr(to_float(restarted[index]), to_float(truth))
            anew[f"{sequence.name}, begun anew"] = scores["psnr_restarted"][1:]
        rows = zip(*(values.tolist() for values in scores.values()), strict=True)
        write_table(folder / f"seq{sequence.name}.csv", tuple(scores),
                    [dict(zip(scores, row, strict=True)) for row in rows])
        video.side_by_side_gif(truth, clip, sequence.labels, folder / f"compare_seq{sequence.name}.gif", fps)
        summary = summaries[sequence.name] = summarise(scores)
        if restarted is not None:
            summary |= beside_restarted(scores["psnr"], scores["psnr_restarted"], settings["restart_every"])
        lines[f"sequence {sequence.name}"] = scores["psnr"][1:]
        brightness[f"sequence {sequence.name}"] = scores["brightness_error"][1:]
        baselines.append(scores["psnr_repeat_first"][1:])
        print(f"sequence {sequence.name}: PSNR {summary['psnr']:.2f} dB (repeat the first frame "
              f"{summary['psnr_repeat_first']:.2f}), frames 1..600 {summary['course_psnr']:.2f} dB, SSIM "
              f"{summary['ssim']:.4f}, brightness error {summary['brightness_error']:+.4f}; {describe_drift(summary)}")
    # One curve for all: each frame's mean over the sequences that are long enough.
    baseline = torch.nn.utils.rnn.pad_sequence(baselines, padding_value=torch.nan).nanmean(dim=1)
    lines["repeat the first frame"] = baseline
    curves.plot_psnr(lines | anew, folder / "psnr.png", "PSNR per frame, free-running", brightness)
    mean = {name: sum(s[name] for s in summaries.values()) / len(summaries) for name in summaries[sequences[0].name]
            if all(name in s for s in summaries.values())}
    write_json(folder / "summary.json", {**settings, "mean": mean, "sequences": summaries})
    print(f"mean of {len(summaries)} sequence(s): PSNR {mean['psnr']:.2f} dB, repeat the first frame "
          f"{mean['psnr_repeat_first']:.2f} dB, gain {mean['psnr'] - mean['psnr_repeat_first']:+.2f} dB, SSIM "
          f"{mean['ssim']:.4f}; {describe_drift(mean)}")


def describe_drift(summary: dict[str, float]) -> str:
    return (f"start {summary['psnr_start']:.2f} dB, end {summary['psnr_end']:.2f} dB, slope "
            f"{summary['psnr_slope']:+.2f} dB per 600 frames, brightness error at the end "
            f"{summary['brightness_error_end']:+.4f}"
            + (f"; begun anew from real frames {summary['course_psnr_restarted']:.2f} dB, slope "
               f"{summary['psnr_slope_restarted']:+.2f}, the roll-out {summary['drift']:+.2f} dB beside that, slope "
               f"{summary['drift_slope']:+.2f}" if "drift" in summary else ""))


def make_parser() -> FlagParser:
    parser = FlagParser(prog="Tester.py", description="Generate videos from first frames and poses, and score them.")
    group = parser.add_argument_group("what to generate")
    group.add_argument("--DR", required=True, help="root folder of the dataset")
    group.add_argument("--ckpt_path", required=True, help="checkpoint that Trainer.py or the course's template wrote")
    group.add_argument("--split", choices=["test", "val"], default="test",
                       help="the test sequences, or the validation sequence with its scores")
    group.add_argument("--truth", help="folder with the test sequences' real frames K/N.png, for scores only")
    group.add_argument("--restart_every", type=number(int, 0, 10**6), default=0,
                       help="where the truth is known, roll out once more, begun anew from the real frame every so "
                            "many frames, and score that, too: how much of a slope is the roll-out's, and how much "
                            "the sequence's own; nothing of it is submitted (0: not)")
    group.add_argument("--latent", choices=["prior", "mean"], default="prior",
                       help="z of each frame: drawn from N(0, I), or its mean 0")
    group.add_argument("--seed", type=number(int, 0, 2**31), default=0, help="seed of z")
    group.add_argument("--match_histogram", "--no-match_histogram", action=ChoiceOrOff, const="previous",
                       choices=HISTOGRAM_REFERENCES,
                       help="give each fed-back prediction the histogram of the frame that was fed in before it "
                            "(previous, also without a word) or of the first frame; None: as in training")
    group.add_argument("--val_vi_len", type=number(int, 2, 10**6), default=630,
                       help="length of the validation sequence, frames")
    group = parser.add_argument_group("what to write")
    group.add_argument("--save_root", required=True, type=folder_name, help="folder for the results")
    group.add_argument("--overwrite", action="store_true",
                       help="replace all results that --save_root holds, of either split")
    group.add_argument("--any_size", action="store_true",
                       help="write submission.csv for other frame sizes and lengths than the course's, too")
    group.add_argument("--make_gif", action=argparse.BooleanOptionalAction, default=True,
                       help="write pred_seqK.gif for each sequence (comparisons with a truth are always drawn)")
    group.add_argument("--mp4", action="store_true", help="write pred_seqK.mp4, too")
    group.add_argument("--fps", type=number(float, 0, 50, above=True), default=20.0,
                       help="frames a second of every GIF and MP4")
    group = parser.add_argument_group("machine")
    group.add_argument("--device", choices=["cuda", "cpu"], help="None: cuda where there is one, else cpu")
    group.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto",
                       help="arithmetic of the network; auto: bf16 (autocast) where the processor computes in it, else "
                            "fp32")
    group.add_argument("--compile", choices=["auto", "on", "off"], default="auto",
                       help="compile the steps with torch.compile; auto: on a GPU, for roll-outs long enough to gain "
                            "more than it takes")
    group.add_argument("--num_workers", type=number(int, 0, 1024), default=4,
                       help="threads that decode images; 0: one")
    group.add_argument("--cache", action=argparse.BooleanOptionalAction, default=True,
                       help="keep the decoded frames on disk, so that only the first start decodes them")
    group.add_argument("--cache_dir", type=folder_name,
                       help="where they are kept; None: in .frame_cache in --DR and --truth or, where that cannot be "
                            "written, in the user's cache folder")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.truth and args.split == "val":
        raise BadInput("--truth is for the test sequences; the validation sequence has its own: leave --truth out")
    if args.restart_every and not args.truth and args.split != "val":
        raise BadInput(f"--restart_every {args.restart_every} begins anew from real frames; give them with --truth, or "
                       "--split val")
    device, root, folder = pick_device(args.device), Path(args.DR), Path(args.save_root)
    old_results = check_result_folder(folder, args.overwrite)
    state = load_checkpoint(Path(args.ckpt_path))
    if "recognised" in state:
        print(f"{args.ckpt_path}: {state['recognised']}; frames of {' x '.join(map(str, state['frame_size']))}")
    if args.restart_every and state["network"].get("feed") == "first":
        raise BadInput(f"--restart_every {args.restart_every}: this checkpoint feeds nothing back (--feed first), so "
                       "there is no drift to look for; leave it out")
    how = *state["frame_size"], args.num_workers
    cache = FrameCache(root, args.cache_dir) if args.cache else None
    truth_cache = FrameCache(Path(args.truth), args.cache_dir) if args.cache and args.truth else None
    with as_bad_input(ValueError):
        model = load_model(state, device, args.match_histogram)
    truths = None
    if args.split == "val":
        val = read_validation(root, args.val_vi_len, *how, cache)
        sequences = [GivenSequence("val", val.frames[0], val.labels, val.numbers.tolist())]
        truths = [val.frames]
    else:
        sequences = read_test_sequences(root, *how, cache)
        check_submission(sequences, args.any_size)
        if args.truth:
            truths = read_truth(Path(args.truth), sequences, *how, truth_cache)

    generate = partial(generate_all, latent=args.latent, seed=args.seed, device=device, precision=args.precision)
    videos = generate(model, sequences, compile=args.compile)
    folder.mkdir(parents=True, exist_ok=True)
    for path in old_results:  # all of them: a mixture of two checkpoints' results would mislead
        path.unlink()
    if args.split == "test":
        write_submission(videos, folder / "submission.csv")
    for sequence, clip in zip(sequences, videos, strict=True):
        if args.make_gif:
            video.write_gif(clip, folder / f"pred_seq{sequence.name}.gif", args.fps)
        if args.mp4:
            video.write_mp4(clip, folder / f"pred_seq{sequence.name}.mp4", args.fps)
    if truths is not None:
        settings = {"checkpoint": args.ckpt_path, "epochs": state.get("epoch"), "split": args.split,
                    "latent": args.latent, "seed": args.seed, "match_histogram": model.match_histogram}
        restarted = None
        if args.restart_every:
            settings["restart_every"] = args.restart_every
            # A model of its own: the other may be compiled for its batch.
            again = load_model(state, device, args.match_histogram)
            restarted = restart_from_truth(sequences, truths, args.restart_every, partial(generate, again))
        write_scores(folder, sequences, videos, truths, args.fps, settings, restarted)
    print(f"results are in {folder}")


def check_result_folder(folder: Path, overwrite: bool) -> list[Path]:
    """The old results that are to be replaced. BadInput: ``overwrite`` is off, or the folder cannot be written."""
    check_writable(folder)
    patterns = ("submission.csv", "summary.json", "psnr.png", "seq*.csv", "pred_seq*", "compare_seq*.gif")
    results = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    if results and not overwrite:
        raise BadInput(f"--save_root {folder} holds results already ({results[0].name}); give --overwrite to replace "
                       "them, or another folder")
    return results


if __name__ == "__main__":
    sys.exit(run_main("Tester.py", main, "--device cpu where a GPU is too small, fewer test sequences at a time or a "
                                         "smaller --val_vi_len need less"))
