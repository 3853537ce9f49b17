"""How fast training steps are, on random pixels, with the data path of a real run: parts of check_gpu.py."""
import gc
import math
import statistics
from collections.abc import Iterator
from functools import partial

import torch

import Trainer
from benchmark import count_flops, seconds_of
from benchmark_cases import BETA, LEARNING_RATE, Case
from check_gpu_report import TINY, Report, compilation_errors
from dataloader import ClipLoader, Clips, Data, Recording, clip_starts, to_float
from modules.config.trainer_flags import merge_flags, parse_command_line
from utils import BadInput, is_out_of_memory, pick_precision

EPOCH = 23_410  # frames of the course's training set
# Clips x frames: pairs of frames as in the recipe best, and the course's clips, free running.
SHAPES = [(16, 2), (64, 2), (256, 2), (2, 16)]
SMALL_SHAPES = [(2, 2), (2, 3)]
COLUMNS = ("clips x frames", "arithmetic", "ms per step", "TFLOP/s", "frames/s", "memory, GiB",
           f"s per epoch of {EPOCH:,} frames")


def eager(report: Report) -> str:
    return measure_all(report, ["fp32"] if report.small else ["fp32", "bf16"], is_compiled=False)


def compiled(report: Report) -> str:
    """In the precision of --precision auto. On a CPU only Dynamo is run, without generating code."""
    with compilation_errors() as errors:
        message = measure_all(report, [pick_precision("auto", report.device)], is_compiled=True)
    if errors:
        raise BadInput(errors[0])
    return message


def measure_all(report: Report, precisions: list[str], is_compiled: bool) -> str:
    """A row for each shape and precision; a shape that does not fit into the memory is a row without numbers."""
    report.table = [f"| {' | '.join(COLUMNS)} |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    rows = report.figures["rows"] = []
    for shape in SMALL_SHAPES if report.small else SHAPES:
        for precision in precisions:
            row = {"clips": shape[0], "frames": shape[1], "precision": precision, "compiled": is_compiled}
            try:
                row |= measure(report, *shape, precision, is_compiled)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                row["error"] = "out of memory"
            rows.append(row)
            report.table.append(describe(row))
            print(report.table[-1], flush=True)
            report.save()
    return f"{sum('error' not in row for row in rows)} of {len(rows)} rows"


def describe(row: dict) -> str:
    """A row of the table."""
    cells = [f"{row['clips']} x {row['frames']}",
             f"{'compiled' if row['compiled'] else 'eager'} {row['precision']}"]
    if "error" in row:
        cells += [row["error"]] + [""] * (len(COLUMNS) - 3)
    else:
        cells += [f"{row['ms']:.2f}", f"{row['tflops']:.3g}", f"{row['frames_per_second']:,.0f}",
                  f"{row['memory_gib']:.2f}" if row["memory_gib"] else "", f"{row['epoch_seconds']:.2f}"]
    return f"| {' | '.join(cells)} |"


def measure(report: Report, clips: int, length: int, precision: str, is_compiled: bool) -> dict:
    """Time the training step of a shape, a median over repeats after a warm-up."""
    device, is_cuda = report.device, report.device.type == "cuda"
    gc.collect()  # the trainer of the shape before, whose memory would be counted
    trainer = make_trainer(report, clips, length, precision)
    trainer.model.train()
    batches = endless(trainer)
    forced = torch.zeros(clips, dtype=torch.bool)

    def step() -> None:
        trainer.train_step(next(batches), forced, BETA, LEARNING_RATE)

    def step_with(two_passes: bool) -> None:
        trainer.model.two_passes = two_passes
        step()

    flops = count_flops(Case(partial(step_with, False), partial(step_with, True), clips * length, samples=1))
    trainer.model.two_passes = None
    if is_compiled:
        torch._dynamo.reset()  # each shape is compiled for the first time
        trainer.model.compile_steps(clips, **({} if is_cuda else {"backend": "eager"}))
    calls, repeats = (20, 5) if is_cuda and not report.small else (1, 1)
    for _ in range(2):  # compiled code may be tuned in its second call
        seconds_of(step, device, calls if is_cuda else 1)
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(seconds_of(step, device, calls) for _ in range(repeats))
    stride = length - (trainer.args.replay > 0)
    steps = math.ceil(len(clip_starts(torch.arange(EPOCH), length, stride)) / clips)
    return {"ms": seconds * 1e3, "tflops": flops / seconds / 1e12, "frames_per_second": clips * length / seconds,
            "epoch_seconds": steps * seconds, "steps_per_epoch": steps, "gflop_per_step": flops / 1e9,
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if is_cuda else None}


def make_trainer(report: Report, clips: int, length: int, precision: str) -> Trainer.Trainer:
    """A trainer on as many frames of random pixels as an epoch has."""
    strategy = ["--recipe", "best"] if length == 2 else ["--tfr", "0"]
    args = merge_flags(parse_command_line([
        *strategy, "--batch_size", str(clips), "--train_vi_len", str(length), "--precision", precision, "--DR", "-",
        "--save_root", str(report.work / "unused"), *(TINY if report.small else [])]))
    count = 4 * clips * length if report.small else EPOCH
    pixels = torch.randint(256, (count, 3, args.frame_H, args.frame_W), dtype=torch.uint8, device=report.device)
    recording = Recording(pixels, pixels.flip(0), torch.arange(count))
    loader = ClipLoader(recording, length, length - (args.replay > 0), clips)
    return Trainer.Trainer(args, Data(loader=loader, fast_loader=None, val=recording.head(2),
                                      pose_sample=to_float(recording.labels[:2]), frames=recording.frames, checksum=0,
                                      replay_checksum=0),
                           report.device)


def endless(trainer: Trainer.Trainer) -> Iterator[Clips]:
    """The full batches of shuffled epochs."""
    loader = trainer.loader
    while True:
        count = len(loader.starts) // loader.batch_size * loader.batch_size
        yield from loader.batches(torch.randperm(len(loader.starts))[:count])
