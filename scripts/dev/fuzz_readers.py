"""Fuzz everything that reads files of others: each damaged file must be read, or refused in one sentence.

    python scripts/dev/fuzz_readers.py --cases 2000 --seed 0

Four readers: of the dataset, of the cache of decoded frames (where damage must neither be refused nor reach the
pixels), of checkpoints (where training continues from an accepted one), and of submissions. Each case damages a valid
file: bytes are flipped, removed or duplicated, also below the checksums of PNG and ZIP, so that the damage reaches the
decoder; values of a checkpoint are replaced by absurd ones. A case fails if anything but BadInput is raised, if the
message does not name the file, has line breaks or is too long, or if it takes more than ten seconds. The same seed
gives the same cases.
"""
import argparse
import collections
import contextlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import Trainer  # noqa: E402
from damage import damage_bytes, damage_pickle, damage_png, other_picture, replace_value  # noqa: E402
from dataloader import read_recording  # noqa: E402
from modules.config.parser import FlagParser, number  # noqa: E402
from modules.data.frame_cache import FrameCache  # noqa: E402
from modules.network.cvae import CVAE  # noqa: E402
from modules.plots import curves, video  # noqa: E402
from modules.training import checkpoint  # noqa: E402
from modules.training.template_checkpoint import PARTS  # noqa: E402
from score_submission import read_submission  # noqa: E402
from utils import BadInput, Interrupted, progress_bar, run_main  # noqa: E402

H, W = 8, 16
TRAIN_FRAMES, VAL_FRAMES = 9, 4
MAX_SECONDS = 10.0
MAX_MESSAGE = 1000  # characters, including long paths


# The dataset and the cache


def make_dataset(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN_FRAMES), ("val", VAL_FRAMES)):
        for folder in (root / split / f"{split}_img", root / split / f"{split}_label"):
            folder.mkdir(parents=True)
            for index in range(count):
                picture = Image.fromarray(rng.integers(0, 256, (H, W, 3), np.uint8))
                if index == 3:
                    picture = picture.quantize(16)
                picture.save(folder / f"{index}.png")


def fuzz_dataset(work: Path, rng: random.Random) -> None:
    root = work / "data"
    if not root.exists():
        make_dataset(root)
    path = root / "train" / rng.choice(["train_img", "train_label"]) / f"{rng.randrange(4)}.png"
    intact, added = path.read_bytes(), None
    try:
        match rng.randrange(8):
            case 0:
                path.write_bytes(damage_bytes(intact, rng))
            case 1 | 2 | 3 | 4:
                path.write_bytes(damage_png(intact, rng))
            case 5:
                path.write_bytes(other_picture(rng))
            case 6:  # stray files
                added = path.parent / rng.choice([".DS_Store", "Thumbs.db", "._1.png", "9.PNG", "frame7.png", "x.png",
                                                  "01.png", "1.png.png", "1.jpg", "\u0663.png", "9" * 100 + ".png"])
                added.write_bytes(rng.choice([b"", intact, intact, rng.randbytes(100)]))
                if rng.random() < 0.5:
                    partner = root / "train" / ("train_label" if "img" in str(added.parent) else "train_img")
                    shutil.copy(added, partner / added.name)
            case 7:
                path.unlink()
                rng.choice([lambda path: None, Path.mkdir, os.mkfifo])(path)
        recording = read_recording(root, "train", H, W, 1)
        assert recording.frames.shape == recording.labels.shape == (len(recording.numbers), 3, H, W)
    finally:
        if added is not None:
            for folder in ("train_img", "train_label"):
                (root / "train" / folder / added.name).unlink(missing_ok=True)
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)  # a pipe would wait for a reader
        path.write_bytes(intact)


def fuzz_cache(work: Path, rng: random.Random) -> None:
    root = work / "cached"
    if not root.exists():
        make_dataset(root)
    plain, cached = (read_recording(root, "train", H, W, 1, cache) for cache in (None, FrameCache(root)))
    assert torch.equal(plain.frames, cached.frames) and torch.equal(plain.labels, cached.labels)
    files = sorted((root / ".frame_cache").rglob("*.frames"))
    path = rng.choice(files)
    match rng.randrange(6):
        case 0:
            shutil.copy(files[0], files[1])
        case 3:
            rng.choice([path, *path.parents[:3]]).chmod(rng.choice([0o777, 0o707, 0o770]))
        case 1:
            path.unlink()
        case 2:
            path.unlink()
            path.symlink_to(rng.choice(["gone", "/dev/zero", path.name, "."]))
        case _:
            path.write_bytes(damage_bytes(path.read_bytes(), rng))
    for _ in range(2):
        cached = read_recording(root, "train", H, W, 1, FrameCache(root))
        assert torch.equal(plain.frames, cached.frames) and torch.equal(plain.labels, cached.labels)
    assert all(file.is_file() and not file.is_symlink() for file in files)


# The checkpoint


def run_trainer(work: Path, folder: Path, *flags: str | Path) -> None:
    """Train a tiny network in ``folder`` to the end of epoch 1, without figures."""
    with contextlib.ExitStack() as stack:
        for module, names in ((curves, ("plot_losses", "plot_teacher_forcing", "plot_psnr")),
                              (video, ("side_by_side_gif", "side_by_side_mp4"))):
            for name in names:
                stack.enter_context(mock.patch.object(module, name))
        # Given flags override those of a damaged checkpoint, so that sizes and epochs stay small.
        sizes = {"frame_H": H, "frame_W": W, "train_vi_len": 3, "clip_stride": 2, "val_vi_len": VAL_FRAMES,
                 "batch_size": 2, "num_epoch": 2, "num_workers": 1, "partial": 1, "fast_train_epoch": 0}
        words = [f"--{name}={value}" for name, value in sizes.items()]
        Trainer.main(["--DR", str(work / "data"), "--save_root", str(folder), "--device=cpu", "--no-cache",
                      "--no-store_visualization", *words, *map(str, flags)])


def make_checkpoint(work: Path) -> Path:
    """last.ckpt of a run that was interrupted in epoch 1 after the first of its two steps."""
    steps = []

    class InterruptedTrainer(Trainer.Trainer):
        def train_step(self, *args, **kwargs):
            steps.append(self)
            if len(steps) == 3:
                signal.raise_signal(signal.SIGTERM)  # the trainer saves after the step
            return super().train_step(*args, **kwargs)

    with mock.patch.object(Trainer, "Trainer", InterruptedTrainer), contextlib.suppress(Interrupted):
        run_trainer(work, work / "good", "--F_dim=8", "--L_dim=4", "--N_dim=4", "--D_out_dim=8", "--precision=fp32",
                    "--ema=0.9", "--replay=0.5")
    assert len(steps) == 3
    return work / "good" / "last.ckpt"


def make_template_checkpoint() -> dict:
    """A checkpoint of the course's template."""
    names = {own: theirs for theirs, own in PARTS.items()}
    weights = CVAE(8, 4, 4, 8, "linear", True).state_dict()
    return {"state_dict": {".".join([names[name.split(".")[0]], *name.split(".")[1:]]): weight
                           for name, weight in weights.items()},
            "optimizer": {}, "lr": 0.001, "tfr": 0.5, "last_epoch": 3}


def fuzz_checkpoint(work: Path, rng: random.Random) -> None:
    template, path = work / "template.ckpt", work / "damaged.ckpt"
    good = work / "good" / "last.ckpt"
    if not template.exists():
        make_dataset(work / "data")
        make_checkpoint(work)
        torch.save(make_template_checkpoint(), template)
    intact = (good if rng.random() < 0.8 else template).read_bytes()
    match rng.randrange(5):
        case 0:
            path.write_bytes(damage_bytes(intact, rng))
        case 1:
            path.write_bytes(damage_pickle(intact, rng))
        case _:
            state = torch.load(io.BytesIO(intact), weights_only=True)
            for _ in range(rng.choice([1, 1, 1, 2, 4])):
                replace_value(state, rng)
            torch.save(state, path)
    folder = work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    run_trainer(work, folder, "--ckpt_path", path)
    checkpoint.read(folder / "last.ckpt")


# The submission


def fuzz_submission(work: Path, rng: random.Random) -> None:
    path = work / "submission.csv"
    values = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (rng.choice([1, 2, 6]), 3 * H * W))
    lines = ["id," + ",".join(map(str, range(3 * H * W)))]
    lines += [f"{index}," + ",".join(map(str, row)) for index, row in enumerate(values)]
    content = (rng.choice(["\n", "\r\n"]).join(lines) + rng.choice(["", "\n", "\n\n"])).encode()
    if rng.random() < 0.9:
        content = damage_bytes(content, rng)
    if rng.random() < 0.1:
        content = b"\xef\xbb\xbf" + content
    path.write_bytes(content)
    frames = read_submission(path, H, W)
    assert frames.dtype == torch.uint8 and frames.shape[1:] == (3, H, W)


READERS: dict[str, Callable[[Path, random.Random], None]] = {
    "dataset": fuzz_dataset, "cache": fuzz_cache, "checkpoint": fuzz_checkpoint, "submission": fuzz_submission}


def run_case(reader: str, work: Path, seed: int) -> str:
    """Run one case. Returns "read", "refused", or what went wrong."""
    start = time.perf_counter()
    try:
        with quiet():
            READERS[reader](work, random.Random(f"{reader} {seed}"))
        outcome = "read"
    except BadInput as error:
        message, outcome = str(error), "refused"
        # Invalid flags in a checkpoint are refused like given ones: by their name.
        if (str(work) not in message and "--" not in message) or "\n" in message or len(message) > MAX_MESSAGE:
            return f"a bad message: {message!r}"
    except Exception:
        return traceback.format_exc(limit=-3)
    seconds = time.perf_counter() - start
    return outcome if seconds < MAX_SECONDS else f"took {seconds:.1f} s"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()) as stream, contextlib.redirect_stdout(stream):
        yield


def fuzz(reader: str, cases: int, first: int, show_progress: bool = False) -> dict[str, list[int]]:
    """Run the cases ``first``, ``first`` + 1, ... Returns their seeds by outcome."""
    outcomes = collections.defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="fuzz_readers_") as work:
        seeds = range(first, first + cases)
        for seed in progress_bar(seeds, reader, unit="case") if show_progress else seeds:
            outcomes[run_case(reader, Path(work), seed)].append(seed)
    return outcomes


def main(argv: list[str] | None = None) -> None:
    parser = FlagParser(prog="fuzz_readers.py", description="Fuzz the readers with damaged files.")
    parser.add_argument("--cases", type=number(int, 1), default=2000, help="damaged files per reader")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="number of the first case")
    parser.add_argument("--readers", nargs="+", choices=list(READERS), default=list(READERS), help="which readers")
    args: argparse.Namespace = parser.parse_args(argv)
    failures = 0
    for reader in args.readers:
        start = time.perf_counter()
        outcomes = fuzz(reader, args.cases, args.seed, show_progress=True)
        read, refused = len(outcomes.pop("read", [])), len(outcomes.pop("refused", []))
        failed = sum(map(len, outcomes.values()))
        failures += failed
        print(f"{reader:<12}{args.cases} cases: {read} read, {refused} refused in a sentence, {failed} failed "
              f"({time.perf_counter() - start:.0f} s)", flush=True)
        for outcome, seeds in outcomes.items():
            print(f"    {len(seeds)} cases, first --seed {seeds[0]} --cases 1 --readers {reader}: {outcome}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    if failures:
        raise BadInput(f"{failures} cases failed (see above)")


if __name__ == "__main__":
    sys.exit(run_main("fuzz_readers.py", main))
