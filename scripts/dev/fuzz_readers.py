"""Feed damaged files to everything that reads files of others, and see that each is read or refused in one sentence.

    python scripts/dev/fuzz_readers.py --cases 2000 --seed 0

Four readers: the dataset's, that of the frames it keeps decoded (where damage is neither refused nor seen in the
pixels), the checkpoint's (where one is accepted, training goes on from it to the end of its epoch) and the
submission's. Each case begins with a good file and damages it: bytes are flipped, cut, doubled; below
the check sums of PNG and ZIP, too, so that the damage reaches the decoder; values of a checkpoint are exchanged for
absurd ones. A case fails where anything but BadInput is raised, where the sentence does not name the file, has line
breaks or is longer than a screen, or where it takes more than ten seconds. The same seed gives the same cases.
"""
import argparse
import collections
import contextlib
import io
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import Trainer  # noqa: E402
from dataloader import ClipLoader, Clips, Recording, read_recording  # noqa: E402
from modules.config.parser import FlagParser, number  # noqa: E402
from modules.data.frame_cache import FrameCache  # noqa: E402
from modules.network.cvae import CVAE  # noqa: E402
from modules.training import checkpoint  # noqa: E402
from modules.training.metric_log import MetricLog  # noqa: E402
from modules.training.template_checkpoint import PARTS  # noqa: E402
from score_submission import read_submission  # noqa: E402
from utils import BadInput, progress_bar, run_main  # noqa: E402

H, W = 8, 16
SLOWEST = 10.0  # seconds
LONGEST = 1000  # characters of a sentence, long paths included


def damage_bytes(content: bytes, dice: random.Random) -> bytes:
    """Some bytes flipped, cut out, doubled, overwritten, or all of them cut off from a point on."""
    content = bytearray(content)
    for _ in range(dice.choice([1, 1, 2, 5, 20])):
        if not content:
            return dice.randbytes(dice.randrange(50))
        at, count = dice.randrange(len(content)), dice.choice([1, 1, 4, 50])
        match dice.randrange(6):
            case 0:
                content[at] ^= 1 << dice.randrange(8)
            case 1:
                del content[at:at + count]
            case 2:
                content[at:at] = content[at:at + count]
            case 3:
                content[at:at + count] = dice.randbytes(count)
            case 4:
                content[at:at + count] = dice.choice([b"\0", b"\xff", b",", b"\n", b"-", b"9"]) * count
            case 5 if dice.random() < 0.3:
                del content[at:]
    return bytes(content)


# The dataset

def damage_png(content: bytes, dice: random.Random) -> bytes:
    """Damage inside the chunks of a PNG file, with check sums that fit again."""
    chunks, at = [], 8
    while at < len(content):
        length = struct.unpack(">I", content[at:at + 4])[0]
        chunks.append([content[at + 4:at + 8], content[at + 8:at + 8 + length]])
        at += 12 + length
    kind = dice.randrange(5)
    chunk = dice.choice(chunks)
    if kind == 0:
        chunk[1] = damage_bytes(chunk[1], dice)
    elif kind == 1:  # the header: width, height, bits, colour type, interlacing
        values = list(struct.unpack(">IIBBBBB", chunks[0][1]))
        values[dice.randrange(7)] = dice.choice([0, 1, 3, 4, 16, 255, H, W, 50_000, 2**31 - 1])
        chunks[0][1] = struct.pack(">IIBBBBB", *[value % 256 if index > 1 else value
                                                 for index, value in enumerate(values)])
    elif kind == 2:  # the pixels: other data, well compressed
        chunks[-2][1] = zlib.compress(damage_bytes(zlib.decompress(chunks[-2][1]), dice))
    elif kind == 3:
        name = dice.choice([b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"tEXt", b"gAMA", b"acTL", b"fcTL", b"eXIf", b"pHYs"])
        chunks.insert(dice.randrange(len(chunks) + 1), [name, dice.randbytes(dice.choice([0, 1, 3, 26, 300]))])
    else:
        dice.shuffle(chunks)
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
             for name, data in chunks]
    return content[:8] + b"".join(parts)


def other_picture(dice: random.Random) -> bytes:
    """A picture of another kind than the readers expect: mode, bits, format, size."""
    buffer = io.BytesIO()
    mode = dice.choice(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "F"])
    size = dice.choice([(1, 1), (W, H), (300, 2), (3, 500)])
    array = np.random.default_rng(dice.randrange(2**32)).integers(0, 256, (size[1], size[0], 4), np.uint8)
    picture = Image.fromarray(array, "RGBA" if mode == "RGBA" else None)
    picture = Image.fromarray(array.view(np.uint16)[..., 0].copy()) if mode == "I;16" else picture.convert(mode)
    kinds = {"PNG": mode != "F", "GIF": True, "BMP": mode in ("1", "L", "P", "RGB"), "TIFF": True,
             "JPEG": mode in ("L", "RGB"), "WEBP": mode in ("RGB", "RGBA"), "EPS": mode in ("L", "RGB")}
    kind = dice.choice([name for name, possible in kinds.items() if possible])
    if kind == "GIF":
        picture = picture.convert("RGB")
    picture.save(buffer, kind)
    return buffer.getvalue()


def make_dataset(root: Path) -> None:
    for folder in ("train_img", "train_label"):
        (root / "train" / folder).mkdir(parents=True)
        for index in range(4):
            pixels = np.random.default_rng(index).integers(0, 256, (H, W, 3), np.uint8)
            picture = Image.fromarray(pixels)
            if index == 3:
                picture = picture.quantize(16)
            picture.save(root / "train" / folder / f"{index}.png")


def fuzz_dataset(work: Path, dice: random.Random) -> None:
    root = work / "data"
    if not root.exists():
        make_dataset(root)
    path = root / "train" / dice.choice(["train_img", "train_label"]) / f"{dice.randrange(4)}.png"
    whole, added = path.read_bytes(), None
    try:
        match dice.randrange(8):
            case 0:
                path.write_bytes(damage_bytes(whole, dice))
            case 1 | 2 | 3 | 4:
                path.write_bytes(damage_png(whole, dice))
            case 5:
                path.write_bytes(other_picture(dice))
            case 6:  # stray files
                added = path.parent / dice.choice([".DS_Store", "Thumbs.db", "._1.png", "9.PNG", "frame7.png", "x.png",
                                                   "01.png", "1.png.png", "1.jpg", "\u0663.png", "9" * 100 + ".png"])
                added.write_bytes(dice.choice([b"", whole, whole, dice.randbytes(100)]))
                if dice.random() < 0.5:
                    partner = root / "train" / ("train_label" if "img" in str(added.parent) else "train_img")
                    shutil.copy(added, partner / added.name)
            case 7:
                path.unlink()
                if dice.random() < 0.5:
                    path.mkdir()
        recording = read_recording(root, "train", H, W, 1)
        assert recording.frames.shape == recording.labels.shape == (len(recording.numbers), 3, H, W)
    finally:
        if added is not None:
            for folder in ("train_img", "train_label"):
                (root / "train" / folder / added.name).unlink(missing_ok=True)
        if path.is_dir():
            path.rmdir()
        path.write_bytes(whole)


# The decoded frames

def fuzz_cache(work: Path, dice: random.Random) -> None:
    root = work / "cached"
    if not root.exists():
        make_dataset(root)
    plain, kept = (read_recording(root, "train", H, W, 1, cache) for cache in (None, FrameCache(root)))
    assert torch.equal(plain.frames, kept.frames) and torch.equal(plain.labels, kept.labels)
    files = sorted((root / ".frame_cache").rglob("*.frames"))
    path = dice.choice(files)
    match dice.randrange(5):
        case 0:
            shutil.copy(files[0], files[1])
        case 1:
            path.unlink()
        case 2:
            path.unlink()
            path.symlink_to(dice.choice(["gone", "/dev/zero", path.name, "."]))
        case _:
            path.write_bytes(damage_bytes(path.read_bytes(), dice))
    for _ in range(2):
        kept = read_recording(root, "train", H, W, 1, FrameCache(root))
        assert torch.equal(plain.frames, kept.frames) and torch.equal(plain.labels, kept.labels)
    assert all(file.is_file() and not file.is_symlink() for file in files)


# The checkpoint

ABSURD = [None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, float("nan"), float("inf"), "", "text", "--overwrite",
          "@/etc/hostname", "a\nb", b"bytes", [], [1, "2"], {}, {"a": 1}, (), torch.tensor(1.0), torch.zeros(0),
          torch.zeros(3, dtype=torch.int64), torch.full((5,), float("nan")), torch.zeros(1).expand(10**6),
          torch.zeros(2, 2).to_sparse(), torch.zeros(3, device="meta"), torch.zeros(2, dtype=torch.complex64),
          torch.zeros(5056, dtype=torch.uint8), torch.Size([3]), torch.float16, torch.device("cpu")]


def make_checkpoint(path: Path) -> None:
    """A checkpoint as it is within an epoch."""
    args = Trainer.make_parser().parse_args(
        ["--DR", "d", "--save_root", str(path.parent), "--F_dim", "8", "--L_dim", "4", "--N_dim", "4", "--D_out_dim",
         "8", "--frame_H", str(H), "--frame_W", str(W), "--device", "cpu"])
    trainer = Trainer.Trainer(args, torch.device("cpu"))
    trainer.progress = trainer._begin_epoch(3, 0.5)
    frames = torch.rand(1, 3, 3, H, W)
    trainer.progress.sums += trainer.train_step(Clips(frames, frames), torch.zeros(1, dtype=torch.bool), 1.0, 1e-3)
    trainer.progress.clips = 1
    trainer.metrics = [dict.fromkeys(Trainer.METRICS, 0.5) | {"epoch": 0}]
    trainer.timing = [dict.fromkeys(Trainer.TIMING, 0.5) | {"epoch": 0}]
    trainer.epoch = 1
    trainer.estimate_statistics = lambda: None  # it would need the training poses
    trainer.save(path)


def make_course_checkpoint() -> dict:
    names = {own: theirs for theirs, own in PARTS.items()}
    weights = CVAE(8, 4, 4, 8, "linear", True).state_dict()
    return {"state_dict": {".".join([names[name.split(".")[0]], *name.split(".")[1:]]): weight
                           for name, weight in weights.items()},
            "optimizer": {}, "lr": 0.001, "tfr": 0.5, "last_epoch": 3}


def exchange(state: dict, dice: random.Random) -> None:
    """One value, anywhere in the tree, exchanged, removed, renamed or added."""
    here = state
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return
        key = dice.choice(keys)
        if not isinstance(here[key], dict | list) or dice.random() < 0.3:
            break
        here = here[key]
    match dice.randrange(6):
        case 0 if isinstance(here, dict):
            del here[key]
        case 1 if isinstance(here, dict):
            here[dice.choice([3, "new", None, "a\n" * 99, ("a",)])] = here.pop(key)
        case 2 if isinstance(here[key], torch.Tensor) and here[key].layout == torch.strided and not here[key].is_meta:
            tensor = here[key]
            here[key] = dice.choice([lambda: tensor.double(), lambda: tensor[..., :1], lambda: tensor.flatten(),
                                     lambda: tensor.float() * float("nan"), lambda: -tensor.float(),
                                     lambda: tensor.to_sparse(), lambda: tensor[None]])()
        case _:
            here[key] = dice.choice(ABSURD)


def damage_pickle(content: bytes, dice: random.Random) -> bytes:
    """Damage inside the parts of a checkpoint's ZIP file, most often its pickle, with check sums that fit again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(buffer, "w") as damaged:
        names = whole.namelist()
        pickle = next(name for name in names if name.endswith("data.pkl"))
        chosen = pickle if dice.random() < 0.8 else dice.choice(names)
        for name in names:
            part = whole.read(name)
            damaged.writestr(name, damage_bytes(part, dice) if name == chosen else part)
    return buffer.getvalue()


def fuzz_checkpoint(work: Path, dice: random.Random) -> None:
    good, path = work / "good.ckpt", work / "checkpoint" / "damaged.ckpt"
    if not good.exists():
        path.parent.mkdir()
        make_checkpoint(good)
        torch.save(make_course_checkpoint(), work / "course.ckpt")
    whole = (good if dice.random() < 0.8 else work / "course.ckpt").read_bytes()
    match dice.randrange(5):
        case 0:
            path.write_bytes(damage_bytes(whole, dice))
        case 1:
            path.write_bytes(damage_pickle(whole, dice))
        case _:
            state = torch.load(io.BytesIO(whole), weights_only=True)
            for _ in range(dice.choice([1, 1, 1, 2, 4])):
                exchange(state, dice)
            torch.save(state, path)
    args, state = Trainer.parse_flags(["--DR", "d", "--save_root", str(work / "run"), "--ckpt_path", str(path)])
    assert not args.overwrite and not args.resume and args.DR == "d"
    trainer = Trainer.make_trainer(args, state)
    go_on(trainer, work / "again")
    assert all(weight.isfinite().all() for weight in trainer.model.state_dict().values())


def go_on(trainer: Trainer.Trainer, folder: Path) -> None:
    """What an accepted checkpoint leads to: the rest of an epoch, its tables, the next checkpoint."""
    frames = torch.randint(0, 256, (9, 3, H, W), dtype=torch.uint8)
    clips = ClipLoader(Recording(frames, frames, torch.arange(9)), 3, 3, 2)
    trainer.loaders = {(False, 0): clips, (True, 0): clips}
    trainer.folder = folder
    trainer.args.num_epoch = max(trainer.args.num_epoch, trainer.epoch + 1)
    trainer.args.save_every_minutes = 0
    scores = {"loss": 0.1, "psnr": 10.0, "psnr_per_frame": torch.full((8,), 10.0)}
    trainer.validate = lambda epoch: {"epoch": epoch} | scores
    trainer.draw = lambda *args: None
    log = MetricLog.__new__(MetricLog)  # without TensorBoard, which takes its time
    log.folder, log.metrics, log.timing, log.board = folder, trainer.metrics, trainer.timing, MagicMock()
    trainer.train_one_epoch()
    trainer.finish_epoch(log)
    checkpoint.read(folder / "last.ckpt")


# The submission

def fuzz_submission(work: Path, dice: random.Random) -> None:
    path = work / "submission.csv"
    values = np.random.default_rng(dice.randrange(2**32)).integers(0, 256, (dice.choice([1, 2, 6]), 3 * H * W))
    lines = ["id," + ",".join(map(str, range(3 * H * W)))]
    lines += [f"{index}," + ",".join(map(str, row)) for index, row in enumerate(values)]
    content = (dice.choice(["\n", "\r\n"]).join(lines) + dice.choice(["", "\n", "\n\n"])).encode()
    if dice.random() < 0.9:
        content = damage_bytes(content, dice)
    if dice.random() < 0.1:
        content = b"\xef\xbb\xbf" + content
    path.write_bytes(content)
    frames = read_submission(path, H, W)
    assert frames.dtype == torch.uint8 and frames.shape[1:] == (3, H, W)


READERS: dict[str, Callable[[Path, random.Random], None]] = {
    "dataset": fuzz_dataset, "cache": fuzz_cache, "checkpoint": fuzz_checkpoint, "submission": fuzz_submission}


def run_case(reader: str, work: Path, seed: int) -> str:
    """One case: "read", "refused", or what went wrong."""
    began = time.perf_counter()
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
            READERS[reader](work, random.Random(f"{reader} {seed}"))
        outcome = "read"
    except BadInput as error:
        message, outcome = str(error), "refused"
        # Flags of a checkpoint are refused as flags are: by their name.
        if (str(work) not in message and "--" not in message) or "\n" in message or len(message) > LONGEST:
            return f"a bad sentence: {message!r}"
    except Exception:
        return traceback.format_exc(limit=-3)
    seconds = time.perf_counter() - began
    return outcome if seconds < SLOWEST else f"took {seconds:.1f} s"


def fuzz(reader: str, cases: int, first: int, show_progress: bool = False) -> dict[str, list[int]]:
    """Run the cases ``first``, ``first`` + 1, ... Returns their seeds by outcome."""
    outcomes = collections.defaultdict(list)
    work = Path(tempfile.mkdtemp(prefix="fuzz_readers_"))
    try:
        seeds = range(first, first + cases)
        for seed in progress_bar(seeds, reader, unit="case") if show_progress else seeds:
            outcomes[run_case(reader, work, seed)].append(seed)
    finally:
        shutil.rmtree(work)
    return outcomes


def main(argv: list[str] | None = None) -> None:
    parser = FlagParser(prog="fuzz_readers.py", description="Feed damaged files to the readers.")
    parser.add_argument("--cases", type=number(int, 1), default=2000, help="damaged files for each reader")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="number of the first case")
    parser.add_argument("--readers", nargs="+", choices=list(READERS), default=list(READERS), help="which readers")
    args: argparse.Namespace = parser.parse_args(argv)
    failures = 0
    for reader in args.readers:
        began = time.perf_counter()
        outcomes = fuzz(reader, args.cases, args.seed, show_progress=True)
        read, refused = len(outcomes.pop("read", [])), len(outcomes.pop("refused", []))
        wrong = sum(map(len, outcomes.values()))
        failures += wrong
        print(f"{reader:<12}{args.cases} cases: {read} read, {refused} refused in a sentence, {wrong} wrong "
              f"({time.perf_counter() - began:.0f} s)", flush=True)
        for outcome, seeds in outcomes.items():
            print(f"    {len(seeds)} cases, first --seed {seeds[0]} --cases 1 --readers {reader}: {outcome}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    if failures:
        raise BadInput(f"{failures} cases went wrong, see above; mend the reader")


if __name__ == "__main__":
    sys.exit(run_main("fuzz_readers.py", main))
