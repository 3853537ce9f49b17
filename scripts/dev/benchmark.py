"""Time the optimised implementation against a plain baseline, the course's loop, in one run with the same threads.

    python scripts/dev/benchmark.py                                          all cases, in the course's sizes
    python scripts/dev/benchmark.py --only train_free_running generate       some of them
    python scripts/dev/benchmark.py --json speed.json --profile traces       also as JSON, and a trace of each case

The cases are described in scripts/dev/benchmark_cases.py. Warm-up (including compilation) is not timed, and files are
in the system's cache. A time is the median of the repeats; ratio is baseline / optimised; frames/s and TFLOP/s are
those of the optimised side. The arithmetic is counted on the side that needs less of it, so that encoding a frame twice
earns no credit. The peak is the best of several large matrix products in the optimised side's precision.
"""
import argparse
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from any folder

from benchmark_cases import CASES, PNG_SIZE, SHARED_FLAGS, Case  # noqa: E402
from modules.config.parser import FlagParser, number  # noqa: E402
from modules.config.trainer_flags import make_parser  # noqa: E402
from utils import BadInput, pick_device, pick_precision, progress_bar, run_main, write_json  # noqa: E402

SIDES = ("baseline", "optimised")
PEAK_SIZE = {"cpu": 2048, "cuda": 8192}  # rows of the matrices, enough for each device to reach its peak


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = FlagParser(prog="benchmark.py", description="Time the optimised implementation against a baseline.")
    group = parser.add_argument_group("what to time")
    group.add_argument("--only", nargs="+", action="extend", choices=list(CASES), metavar="CASE",
                       help=f"only these of {', '.join(CASES)}")
    group.add_argument("--repeats", type=number(int, 1), default=3, help="repeats of each case")
    group.add_argument("--seconds", type=number(float, 0), default=60.0,
                       help="no further repeat of a case once one side has taken that many seconds")
    group.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    group.add_argument("--profile", type=Path, metavar="DIR",
                       help="also write DIR/CASE.json, a Chrome trace of the optimised side, and print its most "
                            "expensive operators")
    group = parser.add_argument_group("as in Trainer.py")
    for action in make_parser()._actions:
        if action.dest in SHARED_FLAGS:
            group.add_argument(action.option_strings[0], type=action.type, choices=action.choices, help=action.help,
                               default=action.default)
    group = parser.add_argument_group("amount of work")
    group.add_argument("--sequences", type=number(int, 1), default=5, help="sequences of generate and submission_csv")
    group.add_argument("--frames", type=number(int, 2), default=630, help="frames of such a sequence")
    group.add_argument("--pairs", type=number(int, 2), default=400,
                       help=f"PNG files of frames, and as many of poses, each {PNG_SIZE[0]} x {PNG_SIZE[1]}")
    group = parser.add_argument_group("machine")
    group.add_argument("--device", choices=["cuda", "cpu"], help="None: cuda where there is one, else cpu")
    group.add_argument("--threads", type=number(int, 1, 1024), help="threads of both sides; None: PyTorch's choice")
    group.add_argument("--num_workers", type=number(int, 0, 1024), default=4,
                       help="threads that decode images in startup_cached, on both sides; 0: one")
    group.add_argument("--compile", choices=["auto", "on", "off"], default="auto",
                       help="compile the optimised side with torch.compile; auto: on a GPU")
    args = parser.parse_args(argv)
    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):
        raise BadInput(f"--json {args.json} cannot be written; give a file in an existing folder")
    if args.pairs < args.train_vi_len:
        raise BadInput(f"--pairs {args.pairs}: too few for a clip of --train_vi_len {args.train_vi_len}; give more "
                       "pairs or shorter clips")
    return args


# Timing

def seconds_of(run: Callable, device: torch.device, calls: int = 1) -> float:
    """Mean wall-clock seconds of ``calls`` calls, including the device's case."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(calls):
        run()
    wait()
    return (time.perf_counter() - began) / calls


def warm_up(run: Callable, device: torch.device) -> None:
    for _ in range(3 if device.type == "cuda" else 1):  # a CUDA graph is recorded in the second call
        run()


def measure(name: str, case: Case, args: argparse.Namespace, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each side's repeats. The sides alternate, so that other load on the machine affects both."""
    for run in case.sample:
        warm_up(run, device)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in progress_bar(range(args.repeats), name, unit="repeat"):
        for side in SIDES:
            seconds[side].append(seconds_of(getattr(case, side), device, case.calls))
        if max(sum(spent) * case.calls for spent in seconds.values()) >= args.seconds:
            break
    return seconds


def count_flops(case: Case) -> float | None:
    """Floating-point operations of a case, counted on the side that needs fewer; None where there are none."""
    if case.samples is None:
        return None
    counts = []
    for run in case.sample:
        counter = FlopCounterMode(display=False,
                                  custom_mapping={torch.ops.aten.convolution_backward: convolution_backward_flops})
        with counter:
            run()
        counts.append(counter.get_total_flops())
    return min(counts) * case.samples


def convolution_backward_flops(gradient: list[int], inputs: list[int], weight: list[int], *others, **_) -> int:
    """Each of the two gradients, where needed, takes as much as the forward pass.

    PyTorch's own formula ignores groups: it counts a depthwise convolution's weight gradient as a dense one's.
    """
    needed = others[-1][:2]  # gradient of the inputs, of the weight
    return sum(needed) * 2 * prod(gradient) * prod(weight[1:])


def measure_peak(precision: str, device: torch.device) -> float:
    """FLOP/s of a large matrix product, the best of several."""
    # float32 convolutions may use TF32, so the peak may, too.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    size = PEAK_SIZE[device.type]
    matrix = torch.rand(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    warm_up(partial(torch.mm, matrix, matrix), device)
    return 2 * size**3 / min(seconds_of(partial(torch.mm, matrix, matrix), device) for _ in range(5))


def profile(name: str, case: Case, device: torch.device, folder: Path) -> str:
    """Write folder/NAME.json. Returns a table of the ten most expensive operators of the optimised side."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        seconds_of(case.sample[1], device)
    profiler.export_chrome_trace(str(folder / f"{name}.json"))
    order = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=50)


# The report

def describe_machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else (
        getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name") or platform.processor() or platform.machine())
    return (f"{name}, {torch.get_num_threads()} threads on {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"PyTorch {torch.__version__}")


def print_row(row: dict) -> None:
    def digits(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    cells = [digits(row[name]) for name in ("baseline_s", "optimised_s", "ratio", "frames_per_second", "tflops")]
    fraction = "" if row["fraction_of_peak"] is None else f"{row['fraction_of_peak']:.0%}"
    print(f"| {row['case']} | {' | '.join(cells)} | {fraction} |", flush=True)


def loading_fraction(rows: dict[str, dict], args: argparse.Namespace, device: torch.device, folder: Path) -> str:
    """The fraction of the optimised side's epoch that is spent on loading data, as a sentence."""
    steps = -(-(args.pairs // args.train_vi_len) // args.batch_size)
    timed = next((rows[name] for name in CASES if name in rows and name.startswith("train_")), None)
    if timed is None:
        case = CASES["train_free_running"](args, device, folder)
        warm_up(case.optimised, device)
        step = seconds_of(case.optimised, device, case.calls)
    else:
        step = timed["optimised_s"]
    data = rows["data_epoch"]["optimised_s"]
    return (f"Loading data takes {data / (data + steps * step):.2%} of the optimised epoch over {args.pairs} pairs: "
            f"{data:.3g} s, compared with {steps} training steps of {step:.3g} s.")


def run_case(name: str, args: argparse.Namespace, device: torch.device, folder: Path,
             peak: float | None) -> tuple[Case, dict]:
    """Time a case. Returns it and its row of the report, without the machine. ``peak``: FLOP/s."""
    case = CASES[name](args, device, folder)
    flops = count_flops(case)
    if case.compile:
        case.compile()
    seconds = measure(name, case, args, device)
    slow, fast = (statistics.median(seconds[side]) for side in SIDES)
    return case, {"case": name, "baseline_s": slow, "optimised_s": fast, "ratio": slow / fast,
                  "frames_per_second": case.frames / fast, "tflops": None if flops is None else flops / fast / 1e12,
                  "fraction_of_peak": None if flops is None else flops / fast / peak,
                  "repeats": len(seconds["optimised"]), "compiled": case.compile is not None}


def run(argv: list[str] | None) -> None:
    args = parse_flags(argv)
    device = pick_device(args.device)
    args.precision = pick_precision(args.precision, device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.profile:
        args.profile.mkdir(parents=True, exist_ok=True)
    names = [name for name in CASES if not args.only or name in args.only]
    machine, rows, profiles, peak = describe_machine(device), {}, {}, None
    print(f"{machine}: `python scripts/dev/benchmark.py {shlex.join(sys.argv[1:] if argv is None else argv)}`".strip())
    if any(name == "generate" or name.startswith("train_") for name in names):
        peaks = {precision: measure_peak(precision, device) for precision in dict.fromkeys(["fp32", args.precision])}
        peak = peaks[args.precision]
        print("Measured peak: " + ", ".join(f"{value / 1e9:.0f} GFLOP/s in {p}" for p, value in peaks.items()))
    print("\n| case | baseline, s | optimised, s | ratio | frames/s | TFLOP/s | of the peak |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in names:
            case, row = run_case(name, args, device, folder, peak)
            rows[name] = row | {"device": device.type, "machine": machine, "threads": torch.get_num_threads(),
                                "precision": args.precision, "batch_size": args.batch_size,
                                "torch": torch.__version__}
            print_row(row)
            if args.profile:
                profiles[name] = profile(name, case, device, args.profile)
        if "data_epoch" in rows:
            print("\n" + loading_fraction(rows, args, device, folder))
    for name, table in profiles.items():
        print(f"\n{name}, optimised:\n{table}")
    if args.json:
        write_json(args.json, list(rows.values()))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one sentence on stderr."""
    return run_main("benchmark.py", lambda: run(argv), "use smaller sizes, such as --batch_size or --sequences")


if __name__ == "__main__":
    sys.exit(main())
