"""The parts of check_gpu.py: ``check_gpu_parts.py PART OUT`` runs one of them in this process.

On a CPU, or with --small, the networks are tiny and the data few. A part that needs a GPU then says that it was not
run, or checks what a CPU has instead: gloo for NCCL, and no waiting for the device.
"""
import argparse
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that it runs from any folder

import utils  # noqa: E402, F401  first: it says in a sentence which packages are missing

# isort: split
import torch  # noqa: E402

import benchmark  # noqa: E402
import check_gpu_speed as speed  # noqa: E402
import check_gpu_training as training  # noqa: E402
import kill_run  # noqa: E402
import Trainer  # noqa: E402
from check_gpu_report import SAME_QUALITY, SAME_SCORE, TINY, NotRun, Report  # noqa: E402
from modules.config.advice import MEMORY_ADVICE  # noqa: E402
from utils import BadInput, pick_device, run_main  # noqa: E402

# The machine and the tests

def machine(report: Report) -> str:
    """Versions and what a compiler needs. The message is the line for the table's head."""
    driver = ""
    if report.device.type == "cuda" and shutil.which("nvidia-smi"):
        driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"],
                                capture_output=True, text=True).stdout.strip()
    found = importlib.util.find_spec("triton") is not None
    report.figures |= {
        "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda, "driver": driver,
        "cudnn": torch.backends.cudnn.version() if report.device.type == "cuda" else None,
        "triton": __import__("triton").__version__ if found else None,
        "compiler": shutil.which(os.environ.get("CC", "gcc")),
        "python_header": Path(sysconfig.get_path("include"), "Python.h").exists(), "commit": commit()}
    text = benchmark.describe_machine(report.device)
    if report.device.type == "cuda":
        text += f", CUDA {torch.version.cuda}, driver {driver or 'unknown'}, {torch.cuda.device_count()} GPU(s)"
    missing = [name for name, has in (("gcc", report.figures["compiler"]), ("Triton", found),
                                      ("Python.h", report.figures["python_header"])) if not has]
    text += f", commit {report.figures['commit']}"
    return text + (f"; torch.compile lacks {', '.join(missing)}" if missing else "")


def commit() -> str:
    """The commit that is checked out; "unknown" for a copy without git."""
    if not shutil.which("git"):
        return "unknown"
    # Not git describe alone: a folder without .git may lie within another repository.
    top = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--show-toplevel"], capture_output=True, text=True)
    if top.returncode or Path(top.stdout.strip()) != ROOT:
        return "unknown"
    return subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True,
                          text=True).stdout.strip()


def tests(report: Report) -> str:
    if importlib.util.find_spec("pytest") is None:
        raise BadInput("pytest is not installed; run scripts/setup.sh requirements-dev.txt")
    words = ["tests/network/test_layers.py"] if report.small else []
    if not report.small and importlib.util.find_spec("xdist"):
        words = ["-n", "auto", "--dist", "loadscope"]
    output = report.run("-m", "pytest", *words, cwd=ROOT, env={"OMP_NUM_THREADS": "1"})
    return output.strip().splitlines()[-1].strip("= ")


# Programs

def resume(report: Report) -> str:
    """kill_run.py, on the device. On a GPU with deterministic algorithms: others never give the same bits."""
    folder = report.new_folder("resume")
    times, epochs, wait = (1, 4, 0.2) if report.small else (4, 20, 2)
    flags = [*kill_run.TINY, *report.data_flags(), "--val_vi_len", "12", "--train_vi_len", "4", "--num_epoch",
             str(epochs), *["--deterministic"] * (report.device.type == "cuda")]
    output = report.run(ROOT / "scripts/dev/kill_run.py", "--times", times, "--signals", "INT", "KILL", "TERM", "TWICE",
                        "--wait", 0, wait, "--threads", 1 if report.small else 2, "--work", folder, "--", *flags)
    return output.strip().splitlines()[-1].partition(";")[0]


def devices(report: Report) -> str:
    if report.device.type == "cpu":
        raise NotRun("no GPU")
    run = train_checkpoint(report)
    scores = [score(report, run, f"on_{device}", "--device", device, "--compile", "off") for device in ("cpu", "cuda")]
    return compare(report, "CPU", "GPU", *scores, SAME_SCORE)


def tester(report: Report) -> str:
    run = train_checkpoint(report)
    scores = [score(report, run, f"compile_{choice}", "--device", report.device.type, "--compile", choice)
              for choice in ("off", "on")]
    return compare(report, "eager", "compiled", *scores, SAME_QUALITY)


def train_checkpoint(report: Report) -> Path:
    """A checkpoint to be scored, trained unless an earlier part has done so."""
    run = report.work / "trained"
    report.run(ROOT / "Trainer.py", *report.training_flags(), "--save_root", run, "--compile", "off", "--resume")
    return run / "last.ckpt"


def score(report: Report, checkpoint: Path, name: str, *flags: str) -> float:
    """Validation PSNR of the checkpoint by Tester.py, dB."""
    folder = report.new_folder(name)
    output = report.run(ROOT / "Tester.py", "--DR", report.dataset(), "--ckpt_path", checkpoint, "--save_root",
                        folder, "--split", "val", "--val_vi_len", report.val_frames, "--latent", "mean", "--precision",
                        "fp32", "--no-make_gif", *flags)
    if "torch.compile failed" in output:
        raise BadInput(f"Tester.py fell back to eager mode, see {report.name}.log")
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))["mean"]["psnr"]


def compare(report: Report, name: str, other: str, score: float, other_score: float, tolerance: float) -> str:
    report.figures |= {name: score, other: other_score}
    message = f"{score:.3f} dB {name}, {other_score:.3f} dB {other} ({other_score - score:+.3f})"
    if not abs(score - other_score) <= tolerance:
        raise BadInput(f"{message}; wanted: at most {tolerance} dB apart")
    return message


def memory(report: Report) -> str:
    """Trainer.py in a process that may use a gigabyte."""
    # The reduced form has few frames, which must be large for a single tensor to exceed the gigabyte.
    height, width = (512, 512) if report.small else (128, 256)
    flags = [*report.data_flags(), "--save_root", report.new_folder("memory"), "--batch_size", 1024, "--train_vi_len",
             2, "--frame_H", height, "--frame_W", width]
    output = report.run(Path(__file__), "train_in_little_memory", report.out, *flags, code=2)
    return one_sentence(output, "out of memory")


def train_in_little_memory(flags: list[str]) -> int:
    """Trainer.py with a gigabyte of the device's memory. Returns its exit code."""
    limit = 2**30
    if "cuda" in flags:
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    else:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + limit, resource.RLIM_INFINITY))
    return run_main("Trainer.py", lambda: Trainer.main(flags), MEMORY_ADVICE)


def too_many(report: Report) -> str:
    if report.device.type == "cpu":
        raise NotRun("no GPU")
    count = torch.cuda.device_count()
    output = report.run("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count + 1}",
                        ROOT / "Trainer.py", *report.training_flags(), "--save_root", report.new_folder("too_many"),
                        code=1)
    return one_sentence(output, f"this machine has {count} GPU")


def one_sentence(output: str, words: str) -> str:
    """The line of Trainer.py that says it. BadInput: there is none, or a stack trace through Trainer.py."""
    lines = [line for line in output.splitlines() if "Trainer.py: error: " in line and words in line]
    if not lines or re.search(r'File ".*Trainer\.py", line', output):
        raise BadInput(f"the program did not end with one sentence that says {words!r}, but with: "
                       f"{' '.join(output.split())[-200:]}")
    return lines[0].strip()


def run_benchmark(report: Report) -> str:
    rows = report.work / "benchmark.json"
    rows.parent.mkdir(exist_ok=True)
    flags = ["--device", report.device.type, "--json", rows]
    if report.small:
        flags += [*TINY, "--batch_size", 1, "--train_vi_len", 2, "--pairs", 4, "--frames", 6, "--sequences", 2,
                  "--repeats", 1, "--num_workers", 1]
    output = report.run(ROOT / "scripts/dev/benchmark.py", *flags)
    report.table = [line for line in output.splitlines() if line.startswith("|")]
    report.figures["rows"] = json.loads(rows.read_text(encoding="utf-8"))
    return ", ".join(f"{row['case']} {row['ratio']:.3g} x" for row in report.figures["rows"])


FUNCTIONS: dict[str, Callable[[Report], str]] = {
    "machine": machine, "tests": tests, "strategies": training.strategies, "speed_eager": speed.eager, "memory": memory,
    "one_process": training.one_process, "too_many": too_many, "devices": devices, "resume": resume, "tester": tester,
    "training": training.compiled_and_eager, "speed_compiled": speed.compiled, "benchmark": run_benchmark}


def run(name: str, out: Path, device: torch.device, small: bool) -> None:
    """Run a part and write OUT/PART.json. BadInput: it has failed."""
    report = Report(name, out, device, small or device.type == "cpu")
    try:
        report.message = FUNCTIONS[name](report)
        report.passed = True
    except NotRun as reason:
        report.message, report.passed = str(reason), None
    except BadInput as error:
        report.message = str(error)
        raise
    finally:
        report.save()


def main() -> int:
    if sys.argv[1] == "train_in_little_memory":  # for the part memory
        return train_in_little_memory(sys.argv[3:])
    parser = argparse.ArgumentParser("check_gpu_parts.py")
    parser.add_argument("part", choices=list(FUNCTIONS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    return run_main(f"check_gpu.sh: {args.part}",
                    lambda: run(args.part, args.out, pick_device(args.device), args.small))


if __name__ == "__main__":
    sys.exit(main())
