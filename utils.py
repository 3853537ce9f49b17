"""What Trainer and Tester share about a run: bad input, flags, checkpoint files, seeds, device, the metric log."""
import argparse
import contextlib
import csv
import io
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import torch
from tqdm import tqdm

CHECKPOINT_FORMAT = 1
NETWORK_FLAGS = ("F_dim", "L_dim", "N_dim", "D_out_dim", "output")
METRICS = ("epoch", "train_loss", "train_mse", "train_kl", "beta", "tfr", "tf_used", "lr", "val_loss", "val_psnr")
TIMING = ("epoch", "train_seconds", "val_seconds", "frames_per_second")


class BadInput(Exception):
    """What the user gave cannot be used. The message is one sentence: what is wrong, where, and the mend."""


def run_main(program: str, main: Callable[[], None]) -> int:
    """Run ``main`` and turn bad input into a sentence on stderr. Returns the exit code: 0, 2 or 130 (Ctrl-C)."""
    try:
        main()
    except BadInput as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{program}: error: {error.filename or 'a file'} cannot be read or written ({error.strerror}); check "
              "that it is there, that it is yours and that the disk has room", file=sys.stderr)
        return 2
    except (MemoryError, torch.OutOfMemoryError):
        print(f"{program}: error: out of memory; give smaller sizes, clips or batches", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    return 0


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
    """A tqdm bar that vanishes when it is done and is redrawn seldom where nobody watches (a log file)."""
    return tqdm(*args, leave=False, mininterval=0.5 if sys.stderr.isatty() else 30, **kwargs)


# Device and randomness

def pick_device(name: str | None) -> torch.device:
    """The device called "cuda" or "cpu"; None takes CUDA where there is one. BadInput: CUDA asked for, none there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: PyTorch sees no CUDA device on this machine; use --device cpu")
    return torch.device(name)


def make_generators(seed: int, device: torch.device) -> dict[str, torch.Generator]:
    """One seeded generator for each purpose, so that a change in one never shifts the others.

    ``latent`` lives on the device, where the noise is used; the others on the CPU.
    """
    places = {"order": "cpu", "teacher_forcing": "cpu", "latent": device}
    return {purpose: torch.Generator(place).manual_seed(seed * len(places) + index)
            for index, (purpose, place) in enumerate(places.items())}


# Files

@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb", **kwargs) -> Iterator[io.IOBase]:
    """Open a temporary file beside ``path`` that takes its place once it is wholly on the disk.

    A process that dies half way leaves the file that was there. BadInput where the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}); free some space or choose another "
                       "--save_root") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """BadInput: ``folder`` cannot be written or created. It is not created yet: more may be refused."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = "is no folder" if not nearest.is_dir() else "is write-protected"
        raise BadInput(f"--save_root {folder} cannot be written ({nearest} {reason}); choose another folder")


def write_json(path: Path, content: dict) -> None:
    with replacing(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def write_table(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    """Write rows as CSV. Numbers keep every digit; None becomes an empty cell."""
    with replacing(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def save_checkpoint(path: Path, state: dict) -> None:
    with replacing(path) as file:
        torch.save({"format": CHECKPOINT_FORMAT, **state}, file)


def load_checkpoint(path: Path) -> dict:
    """A checkpoint of this product on the CPU. Nothing in the file is executed (weights_only).

    Holds at least ``model`` (state_dict), ``network`` (NETWORK_FLAGS), ``frame_size`` (H, W) and ``flags``.

    Raises
    ------
    BadInput : no such file, a broken one, or one that is no checkpoint of this product.
    """
    if not path.is_file():
        raise BadInput(f"--ckpt_path {path}: there is no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it finds odd in a broken file; the error below says it better
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise whatever it meets
        raise BadInput(f"--ckpt_path {path}: this file is broken or no checkpoint; give a .ckpt file that "
                       "Trainer.py wrote") from error
    parts = {"format": int, "model": dict, "network": dict, "frame_size": (list, tuple), "flags": dict}
    if not isinstance(state, dict) or not all(isinstance(state.get(key), kind) for key, kind in parts.items()):
        raise BadInput(f"--ckpt_path {path}: this is no checkpoint of Trainer.py; give one of its .ckpt files")
    if len(state["frame_size"]) != 2 or not all(isinstance(side, int) and side >= 4 for side in state["frame_size"]):
        raise BadInput(f"--ckpt_path {path}: its frame size {state['frame_size']} is none; give another checkpoint")
    if state["format"] != CHECKPOINT_FORMAT or set(state["network"]) != set(NETWORK_FLAGS):
        raise BadInput(f"--ckpt_path {path}: it was written by another version of Trainer.py; use that version")
    return state


def load_weights(model: torch.nn.Module, state: dict, path: Path) -> None:
    """Put a checkpoint's weights into a model, after checking names, shapes, types and values.

    Raises
    ------
    BadInput : they are of another network, or not all of them are finite. The model is then as it was.
    """
    expected, given = model.state_dict(), state["model"]
    for name in expected.keys() | given.keys():
        fits = (name in expected and isinstance(given.get(name), torch.Tensor)
                and given[name].shape == expected[name].shape and given[name].dtype == expected[name].dtype)
        if not fits:
            raise BadInput(f"--ckpt_path {path}: it is from another network ({name} does not fit); give a checkpoint "
                           "of this network")
    if not all(tensor.isfinite().all() for tensor in given.values()):
        raise BadInput(f"--ckpt_path {path}: its weights hold NaN or infinite values; give an earlier one")
    model.load_state_dict(given)


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


class MetricLog:
    """metrics.csv, timing.csv and TensorBoard events of a run.

    The rows live in the checkpoint and the CSV files are written from them, so that whatever happens between
    two epochs, a resumed run neither doubles nor loses a row.
    """

    def __init__(self, folder: Path, metrics: list[dict], timing: list[dict]):
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only a training run pays for it
        self.folder, self.metrics, self.timing = folder, metrics, timing
        # Events of epochs that the checkpoint does not know were written by a process that died: hide them.
        self.board = SummaryWriter(str(folder), purge_step=len(metrics))

    def add(self, metrics: dict, timing: dict) -> None:
        """Append one epoch's rows and show them in TensorBoard."""
        self.metrics.append(metrics)
        self.timing.append(timing)
        for name in METRICS[1:]:
            if metrics[name] is not None:
                self.board.add_scalar(name.replace("_", "/", 1), metrics[name], metrics["epoch"])
        self.board.add_scalar("speed/frames_per_second", timing["frames_per_second"], metrics["epoch"])

    def add_picture(self, picture: torch.Tensor, epoch: int) -> None:
        """Show a picture (3, H, W), uint8, in TensorBoard."""
        self.board.add_image("val/truth_prediction_pose", picture, epoch)

    def write(self) -> None:
        write_table(self.folder / "metrics.csv", METRICS, self.metrics)
        write_table(self.folder / "timing.csv", TIMING, self.timing)
        self.board.flush()
