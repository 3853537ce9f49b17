"""What Trainer and Tester share about a run: how it ends, flags, seeds, device, checkpoints, the run folder."""
import contextlib
import csv
import ctypes
import errno
import io
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from modules.training.distributed import DistributedContext


class Interrupted(Exception):
    """A signal has ended the run, and its state is saved. ``number``: the signal's."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


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
        if is_main_process():  # all have stopped at the same place
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
    if not is_main_process():
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


def progress_bar(*args, **kwargs) -> tqdm:
    """A tqdm bar that vanishes when it is done and is redrawn seldom where nobody watches (a log file).

    Of several processes the first shows one.
    """
    return tqdm(*args, leave=False, disable=not is_main_process(), file=_Unfailing(sys.stderr),
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


def is_main_process() -> bool:
    """Whether this process is the one that writes files and speaks to the user."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


# Device and randomness

def pick_device(name: str | None) -> torch.device:
    """The device called "cuda" or "cpu", made ready for use; None takes CUDA where there is one.

    BadInput: CUDA asked for and none there, or fewer GPUs than processes.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: PyTorch sees no CUDA device on this machine; use --device cpu")
    if name == "cuda" and (index := DistributedContext().local_rank) > 0:
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

@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``; what is written there takes its place once it is wholly on the disk.

    A process that dies half way, or a machine that loses power, leaves the file that was there. What such a process
    leaves besides is called ``.NAME.PROCESS.tmp``.

    Raises
    ------
    OSError : the disk refuses; its filename is ``path``, which is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # not every system lets a folder be opened
            _flush(path.parent, os.O_RDONLY)  # else the new name may be lost with the power
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def write_table(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    """Write rows as CSV. Numbers keep every digit; None and what a row lacks become an empty cell."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
