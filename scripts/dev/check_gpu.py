"""Check everything that needs a GPU, part by part.

    scripts/dev/check_gpu.sh OUT                                   all parts: 20 to 25 minutes on one GPU
    scripts/dev/check_gpu.sh OUT --parts machine speed_eager       some of them
    scripts/dev/check_gpu.sh OUT --device cpu                      in a reduced form, without a GPU

Each part is a process of its own (check_gpu_parts.py) with at most ten minutes. OUT/PART.log is its output and
OUT/PART.json its result: whether it passed (null: it was not run), what it found, its seconds and figures. A part that
fails does not stop the others. OUT/summary.md, a table of all parts in OUT, is written again after each part, so that
an interrupted check keeps what it has, and parts may be run in several calls. Datasets and runs are in OUT/work, or in
OUT/work_small in the reduced form. The exit code is 1 if a part has failed.
"""
import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = Path(__file__).with_name("check_gpu_parts.py")
PARTS = {
    "machine": "versions, driver, compiler",
    "tests": "the test suite",
    "strategies": "every strategy and recipe trains three steps without waiting for the device",
    "speed_eager": "speed of training steps in fp32 and bf16",
    "memory": "running out of memory ends in one sentence",
    "one_process": "a process group of one process (NCCL) trains as a process without one",
    "too_many": "torchrun with more processes than GPUs ends in one sentence",
    "devices": "a checkpoint scores the same on the CPU and on the GPU",
    "resume": "an interrupted run equals an undisturbed one, bit for bit",
    "tester": "Tester.py scores the same with and without torch.compile",
    "training": "compiled training: no recompilation after the first epoch, the quality of eager training",
    "speed_compiled": "speed of compiled training steps",
    "benchmark": "scripts/dev/benchmark.py",
}
LIMIT = 600  # seconds of a part
GRACE = 35  # seconds in which a part that is stopped may stop its own processes: torchrun takes 30
OUTCOMES = {True: "passed", False: "**failed**", None: "not run"}


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("check_gpu.sh", description="Check everything that needs a GPU.",
                                     epilog="The parts: " + "; ".join(f"{name}: {text}" for name, text in
                                                                      PARTS.items()))
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for logs, results and the summary")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART",
                        help="only these")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda where there is one, else cpu")
    parser.add_argument("--small", action="store_true", help="the reduced form also on a GPU; on a CPU it is always so")
    return parser.parse_args(argv)


def stop_group(process: subprocess.Popen, grace: float) -> None:
    """End what is left of a process and its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left
        os.killpg(process.pid, signal.SIGTERM)
        end = time.monotonic() + grace
        while time.monotonic() < end:
            process.poll()  # otherwise it would stay in the group when it has ended
            time.sleep(0.1)
            os.killpg(process.pid, 0)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_part(name: str, out: Path, flags: list[str]) -> dict:
    """Run a part as a process of its own. Returns its result, which is also written to OUT/PART.json."""
    log, result = out / f"{name}.log", out / f"{name}.json"
    result.unlink(missing_ok=True)
    began, code = time.monotonic(), None
    with open(log, "wb") as file:
        process = subprocess.Popen([sys.executable, str(PROGRAM), name, str(out), *flags], stdin=subprocess.DEVNULL,
                                   stdout=file, stderr=file, start_new_session=True)
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            stop_group(process, GRACE if code is None else 0)
    report = {"passed": False, "message": ""} | read_result(result)
    if code is None:
        report |= {"passed": False, "message": f"stopped after {LIMIT} s, see {log.name}"}
    elif code != 0:
        report |= {"passed": False, "message": report["message"] or last_line(log) or f"ended with code {code}"}
    elif not report["message"]:
        report["message"] = "wrote no result"
    report = {"part": name, **report, "seconds": round(time.monotonic() - began, 1)}
    write(result, json.dumps(report, indent=2) + "\n")
    return report


def last_line(log: Path) -> str:
    """What a failed part has printed last: a sentence, or the exception of a traceback."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].rpartition("\r")[2].strip() if lines else ""


def read_result(path: Path) -> dict:
    """A part's result; {} where there is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def summarise(out: Path) -> str:
    """The results of all parts in OUT as Markdown."""
    results = {name: result for name in PARTS if (result := read_result(out / f"{name}.json"))}
    lines = ["# GPU check", "", cell(results.get("machine", {}).get("message") or "(the part `machine` was not run)"),
             "", "| part | what it checks | result | time, s | found |", "|---|---|---|---:|---|"]
    for name, result in results.items():
        cells = [name, PARTS[name], OUTCOMES.get(result.get("passed"), "?"), f"{result.get('seconds', 0):.0f}",
                 "" if name == "machine" else cell(result.get("message", ""))]
        lines.append(f"| {' | '.join(cells)} |")
    for name, result in results.items():
        if result.get("table"):
            lines += ["", f"## {name}", "", *result["table"]]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return " ".join(str(text).replace("|", "/").split())


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if a part has failed; 2 for an unusable OUT; 130 after Ctrl-C."""
    args = parse_flags(argv)
    flags = [*(["--device", args.device] if args.device else []), *["--small"] * args.small]
    failed = []
    try:
        out = args.out.resolve()
        out.mkdir(parents=True, exist_ok=True)
        for name in args.parts:
            print(f"{name}: {PARTS[name]} ...", flush=True)
            report = run_part(name, out, flags)
            write(out / "summary.md", summarise(out))
            failed += [name] * (report["passed"] is False)
            print(f"{name}: {OUTCOMES[report['passed']]}, {report['seconds']:.0f} s: {report['message']}", flush=True)
    except OSError as error:
        print(f"check_gpu.sh: error: {error.filename or args.out} cannot be written ({error.strerror}); choose another "
              "OUT", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"check_gpu.sh: interrupted; {args.out}/summary.md holds the parts that are complete", file=sys.stderr)
        return 130
    print(f"{args.out}/summary.md: " + (f"failed: {', '.join(failed)}" if failed else "no part failed"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
