"""Shared by all programs: errors and exit codes, logging, files, device, precision, seeds."""
import contextlib
import csv
import ctypes
import errno
import importlib.util
import io
import json
import logging
import os
import re
import secrets
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

# Programs import this module first, before what may be missing.

PACKAGES = ("torch", "torchvision", "numpy", "tqdm", "matplotlib", "imageio", "av", "PIL", "torchmetrics",
            "tensorboard", "filelock", "markdown_it")
if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
    print(f"{os.path.basename(sys.argv[0])}: error: not installed: {', '.join(missing)}; run scripts/setup.sh, then "
          "`source .venv/bin/activate`, or use .venv/bin/python", file=sys.stderr)
    raise SystemExit(2)

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

# Errors and exit codes


class BadInput(Exception):
    """The user's input cannot be used. The message is one sentence: what is wrong, where, and what to do."""


class Interrupted(Exception):
    """A signal ended the run after its state was saved. ``number`` is the signal's."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


DISK_ERRORS = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO")}


def run_main(program: str, main: Callable[[], None], memory_advice: str = "use smaller sizes") -> int:
    """Run ``main`` and report what ends it as one sentence on stderr.

    Parameters
    ----------
    program : name that starts each line on stderr.
    memory_advice : which flags reduce memory use.

    Returns
    -------
    The exit code: 0; 2 for bad input, a disk error or lack of memory; 128 + the signal's number.
    """
    _handler.setFormatter(logging.Formatter(f"{program}: %(message)s"))
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before the start, as in `2>&-`
            setattr(sys, name, open(os.devnull, "w"))
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # any file name can be printed, in any locale
    try:
        code = _run(main, memory_advice)
    except BrokenPipeError:  # `program | head`: everything that had to be saved is saved
        code = 128 + getattr(signal, "SIGPIPE", 13)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        sys.stdout = None  # otherwise the interpreter tries again, complains and exits with a code of its own
    return code


def _run(main: Callable[[], None], memory_advice: str) -> int:
    try:
        main()
    except BrokenPipeError:
        raise
    except BadInput as error:
        return _fail(str(error))
    except OSError as error:
        file, reason = error.filename or "a file", error.strerror or error
        if error.errno in DISK_ERRORS:
            return _fail(f"{file} cannot be written ({reason}); complete files are intact: free some space, then start "
                         "again (a training run with --resume)")
        return _fail(f"{file} cannot be read or written ({reason}); check that it exists and its permissions")
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return _fail(f"out of memory; {memory_advice}")
        if _rank_or_single().world_size > 1 and re.search("gloo|NCCL|by peer", str(error)):
            reason = " ".join(str(error).split())[:200]
            return _fail(f"another process of this run has ended or is unreachable ({reason}); continue with --resume")
        raise
    except Interrupted as error:
        logger.warning("%s", error)
        return 128 + error.number
    except KeyboardInterrupt:
        logger.warning("interrupted")
        return 128 + signal.SIGINT
    return 0


def _fail(message: str) -> int:
    if not is_main_rank():
        # Usually the main rank fails for the same reason and reports it; torchrun then ends this process meanwhile.
        time.sleep(2)
        message = f"(rank {_rank_or_single().rank}) {message}"
    logger.error("error: %s", message)
    return 2


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's, CUDA's, or the CPU's, for which PyTorch has no exception class."""
    signs = (r"can't allocate memory|not enough memory|out of memory|bad_alloc|ALLOC_FAILED|"
             r"could not create a (primitive|memory)")  # of oneDNN
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search(signs, str(error)) is not None


@contextlib.contextmanager
def as_bad_input(about: str = "") -> Iterator[None]:
    """Turn a ValueError of modules/, which knows no flags, into BadInput. ``about``: the flags it concerns."""
    try:
        yield
    except ValueError as error:
        raise BadInput(f"{about}: {error}" if about else str(error)) from error


# Processes and output


class Rank(NamedTuple):
    """Place of this process among those of the run. A process that runs alone is rank 0 of 1."""
    rank: int
    local_rank: int
    world_size: int


def read_rank(environment: Mapping[str, str] | None = None) -> Rank:
    """The rank from the variables that torchrun sets. The only place that reads them.

    Raises
    ------
    ValueError : they are not numbers.
    """
    environment = os.environ if environment is None else environment
    try:
        rank, local_rank, world_size = (int(environment.get(name, default)) for name, default in (
            ("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")))
    except ValueError as error:
        raise ValueError(f"RANK, LOCAL_RANK or WORLD_SIZE is not a number ({error}); start several processes "
                         "with torchrun, or unset them") from error
    if world_size == 1:  # a cluster may set a rank for a process that works alone
        return Rank(0, 0, 1)
    return Rank(rank, local_rank, world_size)


def is_main_rank() -> bool:
    """Whether this process writes files and prints messages."""
    return _rank_or_single().rank == 0


def _rank_or_single() -> Rank:
    """The rank; that of a process alone where the variables are invalid, which is reported where a run begins."""
    try:
        return read_rank()
    except ValueError:
        return Rank(0, 0, 1)


class _StderrHandler(logging.Handler):
    """Writes to the current sys.stderr. A closed terminal is no reason to end a run."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # RuntimeError: within a write, by a signal
            print(self.format(record), file=sys.stderr, flush=True)


logger = logging.getLogger("pose_video_prediction")
logger.propagate = False
logger.addFilter(lambda record: is_main_rank() or record.levelno >= logging.ERROR)
_handler = _StderrHandler()
logger.addHandler(_handler)


def progress_bar(*args, **kwargs) -> tqdm:
    """A tqdm bar that vanishes when done, on the main rank only, redrawn seldom where stderr is a file."""
    return tqdm(*args, leave=False, disable=not is_main_rank(), file=_ErrorIgnoringStream(sys.stderr),
                mininterval=0.5 if sys.stderr.isatty() else 30, **kwargs)


class _ErrorIgnoringStream:
    """A stream that ignores errors: a progress bar is no reason to end a run."""

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


# Files


TEMPORARY_NAME = re.compile(r"(.*/)?\.(?P<name>[^/]+)\.[0-9a-f]{8}\.tmp")  # of atomic_write, for the file NAME


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path next to ``path``, which replaces ``path`` once it is completely on the disk.

    A process that dies or a machine that loses power leaves the previous file. The temporary file is empty and new: a
    link that somebody has placed there is not followed. Its name is random and matches TEMPORARY_NAME.

    Raises
    ------
    OSError : the disk refuses; its filename is ``path``, which is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less what the umask withholds
        yield temporary
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # not every system can open a folder
            _flush(path.parent, os.O_RDONLY)  # otherwise the new name may be lost with the power
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
    """BadInput if ``folder``, named by ``flag``, can be neither written nor created. It is not created."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        if nearest.is_symlink():
            raise BadInput(f"{flag} {folder}: {nearest} is a link to {os.readlink(nearest)}, which does not exist; "
                           "choose another folder")
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = "is not a folder" if not nearest.is_dir() else "is write-protected"
        raise BadInput(f"{flag} {folder} cannot be written ({nearest} {reason}); choose another folder")


def write_json(path: Path, content: dict) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def write_table(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    """Write rows as CSV. Numbers keep every digit; None and missing values become an empty cell."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# Device and precision


def pick_device(name: str | None, threads: int | None = None) -> torch.device:
    """The device "cuda" or "cpu", ready for use; None is CUDA where available.

    Parameters
    ----------
    threads : CPU threads that compute; None: one per core.

    Raises
    ------
    BadInput : CUDA was requested and is not available, or there are fewer GPUs than processes.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        prepare_cpu()
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput("--device cuda: PyTorch finds no CUDA device on this machine; use --device cpu")
    index = read_rank().local_rank
    if index == 0:
        return torch.device("cuda")
    if index >= torch.cuda.device_count():
        raise BadInput(f"--nproc_per_node: this machine has {torch.cuda.device_count()} GPU(s); start one process per "
                       "GPU, or use --device cpu")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def prepare_cpu() -> None:
    """Two settings that speed up training on a CPU. To be called before the first convolution.

    oneDNN keeps the code it has generated for 1024 operations. Forward and backward passes in the sizes of a full
    batch, the last batch and a rollout need more, and alternating between them regenerated code: a step of the default
    network took 4.2 s instead of 2.9 s on two cores.

    The C library is asked to keep the memory that PyTorch frees. Each step frees and requests gigabytes, and the system
    clears every page it hands out: a teacher-forced step took 3.3 s, and 2.4 s with its pages kept. Only the GNU C
    library offers this.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_max, 0)


def pick_precision(name: str, device: torch.device) -> str:
    """"fp32" or "bf16"; "auto" is bf16 where the device computes in it natively."""
    if name != "auto":
        return name
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # PyTorch 2.8 and older cannot be asked: then fp32.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        has_bf16 = any("bf16" in feature and has for feature, has in capabilities.items())
    return "bf16" if has_bf16 else "fp32"


# Frames, in training or a rollout, from which torch.compile on a GPU should save more than the minutes it takes. On
# two CPU cores it was not measured to pay off.
COMPILE_PAYS_FROM = 1_000_000


def compile_pays(choice: str, device: torch.device, frames: int) -> bool:
    """Whether to use torch.compile for work on that many frames. What it needs and does not find is reported, and with
    "on" it is BadInput."""
    if choice == "off" or (choice == "auto" and (device.type == "cpu" or frames < COMPILE_PAYS_FROM)):
        return False
    compiler = os.environ.get("CXX", "g++") if device.type == "cpu" else os.environ.get("CC", "gcc")
    missing = [f"the compiler {compiler}"] * (shutil.which(compiler) is None)
    if not Path(sysconfig.get_path("include"), "Python.h").exists():  # of the launchers of compiled kernels
        missing.append("Python.h (on Debian and Ubuntu: apt install python3-dev)")
    if not missing:
        return True
    message = f"torch.compile needs {' and '.join(missing)}, not found here"
    if choice == "on":
        raise BadInput(f"--compile on: {message}; install it or leave the flag out")
    logger.warning("%s: continuing without it, slower", message)
    return False


# Seeds


def make_deterministic() -> None:
    """Allow only algorithms that give the same bits in each run. To be called before the first use of CUDA."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    torch.backends.cudnn.benchmark = False


def make_generators(seed: int, device: torch.device) -> dict[str, torch.Generator]:
    """One seeded generator per purpose, so that a change in one never shifts the others.

    ``latent`` lives on the device, where its noise is used; the others on the CPU.
    """
    # A CPU generator uses the lower 32 bits of a seed: there the seeds of all purposes and runs differ.
    seeds = {"order": 3 * seed, "teacher_forcing": 3 * seed + 1, "latent": 3 * seed + 2,
             "crop": 2**31 + 3 * seed, "first_frame": 2**31 + 3 * seed + 2, "random_frame": 3 * 2**30 + 3 * seed}
    return {purpose: torch.Generator(device if purpose == "latent" else "cpu").manual_seed(number)
            for purpose, number in seeds.items()}
