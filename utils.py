"""What Trainer and Tester share about a run: how it ends, flags, seeds, device, checkpoints, the run folder."""
import argparse
import contextlib
import csv
import ctypes
import datetime
import errno
import io
import json
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import filelock
import torch
from tqdm import tqdm

from modules import checkpoint
from modules.files import replacing
from modules.interrupts import Interrupted
from modules.processes import Processes, is_first

METRICS = ("epoch", "train_loss", "train_mse", "train_kl", "beta", "tfr", "tf_used", "lr", "skipped", "val_loss",
           "val_psnr")
TIMING = ("epoch", "train_seconds", "val_seconds", "frames_per_second")


class BadInput(Exception):
    """What the user gave cannot be used. The message is one sentence: what is wrong, where, and the mend."""


DISK_REFUSES = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO")}


def run_main(program: str, main: Callable[[], None], memory_advice: str = "give smaller sizes") -> int:
    """Run ``main`` and turn what ends it into a sentence on stderr. ``memory_advice``: which flags need less memory.

    Returns
    -------
    The exit code: 0; 2 for bad input, a disk that refuses or too little memory; 128 + the number of a signal.
    """
    try:
        code = _run(program, main, memory_advice)
    except BrokenPipeError:  # `program | head`: what was to be saved is saved
        code = 128 + getattr(signal, "SIGPIPE", 13)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        sys.stdout = None  # else the interpreter would try again, complain and end with a code of its own
    return code


def _run(program: str, main: Callable[[], None], memory_advice: str) -> int:
    try:
        main()
    except BrokenPipeError:
        raise
    except BadInput as error:
        return _fail(program, str(error))
    except OSError as error:
        file, reason = error.filename or "a file", error.strerror or error
        if error.errno in DISK_REFUSES:
            return _fail(program, f"{file} cannot be written ({reason}); all files that were complete still are: make "
                                  "room, then start again (a training run with --resume)")
        return _fail(program, f"{file} cannot be read or written ({reason}); check that it is there and that it is "
                              "yours")
    except (MemoryError, RuntimeError) as error:
        if os.environ.get("WORLD_SIZE", "1") != "1" and re.search("gloo|NCCL|by peer", str(error)):
            reason = " ".join(str(error).split())[:200]
            return _fail(program, f"another process of this run has ended or cannot be reached ({reason}); go on with "
                                  "--resume")
        if not is_out_of_memory(error):
            raise
        return _fail(program, f"out of memory; {memory_advice}")
    except Interrupted as error:
        if is_first():  # all have stopped at the same place
            tell(f"{program}: {error}")
        return 128 + error.number
    except KeyboardInterrupt:
        tell(f"{program}: interrupted")
        return 128 + signal.SIGINT
    return 0


def _fail(program: str, message: str) -> int:
    tell(f"{program}: error: {message}")
    return 2


def tell(message: str) -> None:
    """Print a line on stderr."""
    if not is_first():
        # Mostly the first process has failed alike and says so; then torchrun ends this one while it waits.
        time.sleep(2)
        message = f"process {os.environ['RANK']}: {message}"
    with contextlib.suppress(OSError, ValueError):  # nobody may be left to be told
        print(message, file=sys.stderr, flush=True)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's, CUDA's, or the CPU's, for which PyTorch has no class of its own."""
    signs = r"can't allocate memory|not enough memory|out of memory|bad_alloc|ALLOC_FAILED"
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search(signs, str(error)) is not None


@contextlib.contextmanager
def as_bad_input(*errors: type[Exception]) -> Iterator[None]:
    """Turn the errors of modules/, which know nothing of users, into BadInput with the same sentence."""
    try:
        yield
    except errors as error:
        raise BadInput(str(error)) from error


# Flags

class FlagParser(argparse.ArgumentParser):
    """An ArgumentParser that also reads flags from ``@file`` (shell-like lines, # starts a comment).

    Its complaint is BadInput, one sentence, without the usage above it.
    """

    def __init__(self, **kwargs):
        super().__init__(fromfile_prefix_chars="@", allow_abbrev=False,
                         formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return shlex.split(arg_line, comments=True)

    def parse_known_args(self, *args, **kwargs):
        try:
            return super().parse_known_args(*args, **kwargs)
        except ValueError as error:  # an @file with an open quotation, or one that is no text
            self.error(f"the flags cannot be read from the @file ({error})")

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see --help")


class ChoiceOrOff(argparse.Action):
    """A flag with a choice, ``const`` where it is given alone; its other name, --no-FLAG, chooses "off"."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs):
        super().__init__(option_strings, dest, nargs="?", **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        is_off = option_string.startswith("--no-")
        if is_off and values != self.const:
            parser.error(f"{option_string} takes no value")
        setattr(namespace, self.dest, "off" if is_off else values)


def number(kind: type, least: float, most: float = float("inf"), above: bool = False) -> Callable[[str], float]:
    """An argparse type: an int or float within least..most (``above``: least itself is out)."""
    bounds = f"{'above' if above else 'at least'} {least}" + ("" if most == float("inf") else f", at most {most}")

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            word = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {word}") from None
        if not (value > least if above else value >= least) or not value <= most or abs(value) == float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must be {bounds}")
        return value

    return parse


def folder_name(text: str) -> str:
    """An argparse type: a folder's name, which an unset shell variable leaves empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of the folder is empty")
    return text


def progress_bar(*args, **kwargs) -> tqdm:
    """A tqdm bar that vanishes when it is done and is redrawn seldom where nobody watches (a log file).

    Of several processes the first shows one.
    """
    return tqdm(*args, leave=False, disable=not is_first(), file=_Unfailing(sys.stderr),
                mininterval=0.5 if sys.stderr.isatty() else 30, **kwargs)


class _Unfailing:
    """A stream that goes on where its terminal was closed: a bar is no reason to end a run."""

    def __init__(self, stream: io.TextIOBase):
        self.stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


# Device and randomness

def pick_device(name: str | None) -> torch.device:
    """The device called "cuda" or "cpu", made ready for use; None takes CUDA where there is one.

    BadInput: CUDA asked for and none there, or fewer GPUs than processes.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: PyTorch sees no CUDA device on this machine; use --device cpu")
    if name == "cuda" and (index := Processes().local_rank) > 0:
        if index >= torch.cuda.device_count():
            raise BadInput(f"--nproc_per_node: this machine has {torch.cuda.device_count()} GPU(s); start one process "
                           "for each, or give --device cpu")
        torch.cuda.set_device(index)
        return torch.device(name, index)
    if name == "cpu":
        prepare_cpu()
    return torch.device(name)


def prepare_cpu() -> None:
    """Two settings for training on a CPU. Comes before the first convolution.

    oneDNN keeps the code that it has generated for 1024 operations, and generates it anew for any others. Forward and
    backward passes in the sizes of a full batch, the last one and a roll-out need more: where they took turns, a step
    of the default network took 4.2 s instead of 2.9 s on two cores.

    The C library is asked to keep the memory that PyTorch frees. Each step frees gigabytes and asks for them again, and
    the system clears every page that it hands out: a teacher-forced step took 3.3 s, and takes 2.4 s with its pages
    kept. It is the GNU C library that can be asked; others do as they do.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_max, 0)


def pick_precision(name: str, device: torch.device) -> str:
    """"fp32" or "bf16"; "auto" becomes bf16 where the device computes in it, rather than emulates it."""
    if name != "auto":
        return name
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = any("bf16" in feature and has for feature, has in torch.cpu.get_capabilities().items())
    return "bf16" if has_bf16 else "fp32"


# Frames, in training or a roll-out, from which torch.compile on a GPU should gain more than the minutes it takes. On
# two CPU cores no gain was measured that would pay for any.
COMPILE_PAYS_FROM = 1_000_000


def compile_pays(choice: str, device: torch.device, frames: int) -> bool:
    """Whether to use torch.compile for work on that many frames. BadInput: "on", and there is no compiler to do it."""
    needed = os.environ.get("CXX", "g++") if device.type == "cpu" else os.environ.get("CC", "gcc")
    if choice == "on" and not shutil.which(needed):
        raise BadInput(f"--compile on: torch.compile needs the compiler {needed}, which is not there; install it, or "
                       "leave the flag out")
    return choice == "on" or (choice == "auto" and device.type == "cuda" and frames >= COMPILE_PAYS_FROM
                              and shutil.which(needed) is not None)


def make_deterministic() -> None:
    """Allow only algorithms that give the same bits in each run. Comes before the first use of CUDA."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a help in debugging that costs time
    torch.backends.cudnn.benchmark = False


def make_generators(seed: int, device: torch.device) -> dict[str, torch.Generator]:
    """One seeded generator for each purpose, so that a change in one never shifts the others.

    ``latent`` and ``disturbance`` live on the device, where the noise is used; the others on the CPU.
    """
    places = {"order": "cpu", "teacher_forcing": "cpu", "latent": device}
    generators = {purpose: torch.Generator(place).manual_seed(seed * len(places) + index)
                  for index, (purpose, place) in enumerate(places.items())}
    # Far from the others', which stay what they were: a CPU generator takes the lower 32 bits of a seed.
    later = {"augmentation": ("cpu", 2**31), "disturbance": (device, 2**31 + 1), "first": ("cpu", 2**31 + 2),
             "reference": ("cpu", 3 * 2**30)}
    return generators | {purpose: torch.Generator(place).manual_seed(base + seed * len(places))
                         for purpose, (place, base) in later.items()}


# Files

def check_writable(folder: Path, flag: str = "--save_root") -> None:
    """BadInput: ``folder`` cannot be written or created. It is not created yet: more may be refused.

    ``flag`` is the flag that named the folder, for the message.
    """
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = "is no folder" if not nearest.is_dir() else "is write-protected"
        raise BadInput(f"{flag} {folder} cannot be written ({nearest} {reason}); choose another folder")


def write_json(path: Path, content: dict) -> None:
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def write_table(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    """Write rows as CSV. Numbers keep every digit; None and what a row lacks become an empty cell."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# Checkpoints

def load_checkpoint(path: Path) -> dict:
    """``modules.checkpoint.read`` for a file that the user has named. BadInput: it cannot be used."""
    try:
        return checkpoint.read(path)
    except ValueError as error:
        raise BadInput(f"--ckpt_path {path}: {error}") from error


# The run folder

def describe_run(args: argparse.Namespace, previous: Path) -> dict:
    """What a reader needs to repeat the run: command, flags, versions, git commit.

    ``previous`` is the run's config.json so far, if any: its calls stay on record under "before".
    """
    before = []
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        earlier = json.loads(previous.read_text(encoding="utf-8"))
        before = [*earlier.pop("before", []), earlier]
    import numpy
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True) if shutil.which("git") else None
    return {"command": shlex.join(sys.argv), "flags": vars(args),
            "versions": {"python": platform.python_version(), "torch": torch.__version__,
                         "numpy": numpy.__version__, "cuda": torch.version.cuda},
            "commit": commit.stdout.strip() or None if commit else None, "before": before}


# What a run writes: whatever else lies in its folder is not ours to delete.
RUN_FILES = ("config.json", "metrics.csv", "timing.csv", "last.ckpt", "best.ckpt", "epoch=*.ckpt",
             "psnr_best.csv", "psnr_epoch=*.csv", "events.out.tfevents.*")
RUN_FIGURES = ("figures/loss.png", "figures/teacher_forcing.png", "figures/psnr_per_frame.png", "figures/val.gif",
               "figures/val_epoch=*.gif")


def check_run_folder(args: argparse.Namespace) -> list[Path]:
    """The files of another run that --overwrite allows to delete from --save_root; none for a new or continued run.

    Raises
    ------
    BadInput : the folder holds a run that is not to be continued or overwritten.
    """
    folder = Path(args.save_root)
    # Another checkpoint of this folder is older than its last epochs: continuing there would delete those.
    continues = (args.ckpt_path and not args.finetune
                 and Path(args.ckpt_path).resolve() == (folder / "last.ckpt").resolve())
    if continues and args.overwrite:
        raise BadInput(f"--overwrite deletes the run in {folder}, --ckpt_path continues it; give one of the two")
    if continues or not any(path for pattern in RUN_FILES for path in folder.glob(pattern)):
        return []
    if args.resume and not args.ckpt_path and (folder / "last.ckpt").exists():
        raise BadInput(f"--save_root {folder}: another run has begun there meanwhile; start again")
    if args.resume and not args.ckpt_path:
        raise BadInput(f"--save_root {folder} holds files of a run, but no last.ckpt to resume; delete them with "
                       "--overwrite, or choose another folder and, with --ckpt_path, another checkpoint")
    if not args.overwrite:
        raise BadInput(f"--save_root {folder} holds a run already; continue it with --resume, delete it with "
                       "--overwrite, or choose another folder")
    old = [path for pattern in RUN_FILES + RUN_FIGURES for path in folder.glob(pattern)]
    if args.ckpt_path and Path(args.ckpt_path).resolve() in [path.resolve() for path in old]:
        raise BadInput(f"--overwrite deletes the run in {folder}, and {args.ckpt_path} with it; choose another "
                       "--save_root")
    return old


@contextlib.contextmanager
def hold_run_folder(folder: Path) -> Iterator[None]:
    """Be the only process that writes to a run folder. The system lets go of it when the process dies, however it dies.

    Raises
    ------
    BadInput : another process, which is named, holds it.
    """
    owner = folder / ".owner.json"
    try:
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        name = "another process"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            first = json.loads(owner.read_text(encoding="utf-8"))
            name = f"process {first['process']} on {first['host']}, since {first['since']}: {first['command']}"
        raise BadInput(f"--save_root {folder} is in use ({name}); wait for that run, end it or choose another "
                       "folder") from error
    try:
        # What a process that died has left; nobody else writes here now.
        for temporary in (*folder.glob(".*.tmp"), *folder.glob("figures/.*.tmp")):
            temporary.unlink(missing_ok=True)
        write_json(owner, {"process": os.getpid(), "host": socket.gethostname(), "command": shlex.join(sys.argv),
                           "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds")})
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process holds a run folder."""
    if not (folder / ".owner.json").exists() or not (folder / ".lock").exists():
        return False
    try:
        # A process that was killed has left its name, but not the lock.
        with filelock.FileLock(folder / ".lock", timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # another user's folder: take its word
        return True


class MetricLog:
    """metrics.csv, timing.csv and TensorBoard events of a run.

    The rows live in the checkpoint and the CSV files are written from them, so that whatever happens between
    two epochs, a resumed run neither doubles nor loses a row.
    """

    def __init__(self, folder: Path, metrics: list[dict], timing: list[dict]):
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only a training run pays for it
        self.folder, self.metrics, self.timing = folder, metrics, timing
        # Its thread would show a stack trace where the disk refuses; the next call raises the same error.
        threading.excepthook = _quiet_about_disks
        # Events of epochs that the checkpoint does not know were written by a process that died: hide them.
        self.board = SummaryWriter(str(folder), purge_step=len(metrics))

    def add(self, metrics: dict, timing: dict) -> None:
        """Append one epoch's rows and show them in TensorBoard."""
        self.metrics.append(metrics)
        self.timing.append(timing)
        with self._named_errors():
            for name in METRICS[1:]:
                if metrics[name] is not None:
                    self.board.add_scalar(name.replace("_", "/", 1), metrics[name], metrics["epoch"])
            self.board.add_scalar("speed/frames_per_second", timing["frames_per_second"], metrics["epoch"])

    def add_picture(self, picture: torch.Tensor, epoch: int) -> None:
        """Show a picture (3, H, W), uint8, in TensorBoard."""
        with self._named_errors():
            self.board.add_image("val/truth_prediction_pose", picture, epoch)

    def write(self) -> None:
        write_table(self.folder / "metrics.csv", METRICS, self.metrics)
        write_table(self.folder / "timing.csv", TIMING, self.timing)
        with self._named_errors():
            self.board.flush()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """What its thread has failed of, TensorBoard raises in the next call, and without the file's name."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder / "events.out.tfevents")) from error


def _quiet_about_disks(args: threading.ExceptHookArgs) -> None:
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)
