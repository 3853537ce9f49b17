"""Make a synthetic dataset: video of a person moving in a room, with a pose image for every frame.

A substitute for a real recording, in the course's layout:

    DESTINATION/train/train_img/N.png    train/train_label/N.png    N jumps at each cut of the recording
    DESTINATION/val/val_img/N.png        val/val_label/N.png        one sequence
    DESTINATION/test/test_img/K/0.png    test/test_label/K/N.png    first frame and poses of sequence K
    DESTINATION/truth/K/N.png                                       all frames of sequence K, for scoring

    python scripts/make_synthetic_dataset.py data                   # about 20 seconds on two cores
    python scripts/make_synthetic_dataset.py data4 --people 4 --seed 7

The person, the room and the drawing are in synthetic_scene.py. The files depend on the flags only, not on the number
of processes.
"""
import argparse
import functools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

try:
    import numpy as np
    from PIL import Image
    from tqdm import tqdm

    import synthetic_scene as scene
except ModuleNotFoundError as error:
    print(f"make_synthetic_dataset.py: error: not installed: {error.name}; run scripts/setup.sh, then "
          "`source .venv/bin/activate`, or use .venv/bin/python", file=sys.stderr)
    raise SystemExit(2) from None

# This script does not import PyTorch or the product, so that worker processes start in a fraction of a second.

CHUNK = 60  # frames that a worker draws per task
SHORTEST_SHOT = 16  # frames between two cuts
MARKER = ".synthetic"  # a file that marks the folders whose contents --overwrite may replace
SPLITS = ("train", "val", "test", "truth")


class Shot(NamedTuple):
    """Frames without a cut."""
    person: int
    stream: tuple[int, int]  # the random stream: split (scene.TRAIN, VAL or TEST) and index within it
    numbers: range  # frame numbers
    frames: str  # folder of the frames
    poses: str  # folder of the pose images
    body: dict[str, np.ndarray] | None = None  # points of the body in each frame


def plan(args: argparse.Namespace) -> list[Shot]:
    """The shots of the whole dataset. People take turns."""
    rng = scene.stream(args.seed, scene.CUTS)
    count = max(min(int(rng.integers(3, 6)), args.train_frames // SHORTEST_SHOT), args.people)
    spare = args.train_frames - count * SHORTEST_SHOT
    lengths = SHORTEST_SHOT + np.diff([0, *np.sort(rng.integers(0, spare + 1, count - 1)), spare])
    starts = np.cumsum([0, *(lengths + rng.integers(5, 200, count))])  # the numbers jump at every cut
    train = [Shot(i % args.people, (scene.TRAIN, i), range(a, a + n), "train/train_img", "train/train_label")
             for i, (a, n) in enumerate(zip(starts[:-1].tolist(), lengths.tolist(), strict=True))]
    test = [Shot(i % args.people, (scene.TEST, i), range(args.test_frames), f"truth/{i}", f"test/test_label/{i}")
            for i in range(args.test_sequences)]
    return [*train, Shot(0, (scene.VAL, 0), range(args.val_frames), "val/val_img", "val/val_label"), *test]


def chunks_of(shot: Shot, seed: int, size: tuple[int, int]) -> Iterator[Shot]:
    """Choreograph a shot and split it into parts of at most CHUNK frames, one per task. ``size``: (height, width)."""
    rng = scene.stream(seed, *shot.stream)
    track = scene.Choreography(rng, size[1] / size[0]).perform(len(shot.numbers))
    body = scene.skeleton(track, scene.make_look(seed, shot.person).height, rng)
    for i in range(0, len(track), CHUNK):
        part = {name: points[i:i + CHUNK] for name, points in body.items()}
        yield shot._replace(numbers=shot.numbers[i:i + CHUNK], body=part)


def render(shot: Shot, root: Path, seed: int, size: tuple[int, int]) -> int:
    """Draw and write the frames and pose images of a part of a shot. Returns their number."""
    look, room = scene.scenery(seed, shot.person, size)
    for i, number in enumerate(shot.numbers):
        body = {name: points[i] for name, points in shot.body.items()}
        grain = scene.stream(seed, scene.GRAIN, *shot.stream, number)
        frame = Image.fromarray(scene.draw_frame(body, look, room, grain))
        frame.save(root / shot.frames / f"{number}.png", compress_level=1)
        if shot.stream[0] == scene.TEST and number == 0:
            frame.save(root / f"test/test_img/{shot.stream[1]}" / "0.png", compress_level=1)
        Image.fromarray(scene.draw_pose(body, size)).save(root / shot.poses / f"{number}.png", compress_level=1)
    return len(shot.numbers)


def write_dataset(root: Path, args: argparse.Namespace) -> None:
    """Draw every shot into the empty folder ``root``."""
    size, shots = (args.frame_H, args.frame_W), plan(args)
    first = [f"test/test_img/{i}" for i in range(args.test_sequences)]
    for folder in {*first, *(folder for shot in shots for folder in (shot.frames, shot.poses))}:
        (root / folder).mkdir(parents=True)
    chunks = [chunk for shot in shots for chunk in chunks_of(shot, args.seed, size)]
    task = functools.partial(render, root=root, seed=args.seed, size=size)
    workers = min(args.num_workers, len(chunks))
    with tqdm(total=sum(len(shot.numbers) for shot in shots), unit="frame", desc="drawing") as bar:
        if workers <= 1:
            for count in map(task, chunks):
                bar.update(count)
            return
        # Spawned on every system alike. Workers ignore Ctrl-C: the parent process handles it and stops them.
        context = multiprocessing.get_context("spawn")
        with context.Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            for count in pool.imap_unordered(task, chunks):
                bar.update(count)


def repeat_first_psnr(folder: Path) -> float:
    """PSNR of repeating frame 0: mean over frames 1, 2, ... in dB, at most 100 per frame."""
    count = len(os.listdir(folder))
    frames = np.stack([np.asarray(Image.open(folder / f"{i}.png"), np.float64) for i in range(count)])
    error = np.mean((frames[1:] - frames[0]) ** 2, axis=(1, 2, 3))
    return float(np.mean(np.minimum(10 * np.log10(255**2 / np.maximum(error, 1e-10)), 100)))


def publish(made: Path, destination: Path, backup: Path) -> None:
    """Move the finished dataset into place. On failure, restore the previous one, which is kept in ``backup``."""
    if not destination.exists():
        made.rename(destination)
        return
    undo = []
    try:
        for split in (*SPLITS, MARKER):
            for source, target in ((destination / split, backup / split), (made / split, destination / split)):
                if source.exists():
                    undo.append((target, source))
                    source.rename(target)
    except BaseException:
        for target, source in reversed(undo):
            if target.exists() and not source.exists():
                target.rename(source)
        raise


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse and check the flags; exits with code 2 where one is invalid."""
    parser = Parser("make_synthetic_dataset.py", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("destination", type=Path, metavar="DESTINATION", help="folder to make; new or empty")
    add = functools.partial(parser.add_argument, type=int)
    # what is drawn
    add("--seed", default=0, help="seed of looks, room and motion; the same seed gives the same files")
    add("--people", default=1, help="number of people, each with an own look and room tint; they take turns")
    add("--frame_H", default=32, help="height of a frame, pixels")
    add("--frame_W", default=64, help="width of a frame, pixels")
    # how much
    add("--train_frames", default=3000, help="training frames, in 3 to 5 shots (more with more people)")
    add("--val_frames", default=630, help="frames of the validation sequence")
    add("--test_sequences", default=5, help="number of test sequences")
    add("--test_frames", default=630, help="frames of a test sequence, including the given first one")
    # how
    add("--num_workers", default=os.cpu_count() or 1, help="processes that draw; 0 or 1: only this one")
    parser.add_argument("--overwrite", action="store_true", help="replace its train, val, test and truth folders")
    args = parser.parse_args(argv)
    lowest = {"seed": 0, "people": 1, "frame_H": 16, "frame_W": 16, "val_frames": 2, "test_sequences": 1,
              "test_frames": 2, "num_workers": 0, "train_frames": SHORTEST_SHOT * max(3, args.people)}
    for flag, low in lowest.items():
        if getattr(args, flag) < low:
            parser.error(f"--{flag} is {getattr(args, flag)}; it must be at least {low}")
    args.destination = folder = args.destination.resolve()
    if folder.exists() and not folder.is_dir():
        parser.error(f"{folder} is a file; choose a new folder as DESTINATION")
    is_own = (folder / MARKER).is_file()
    if folder.exists() and any(folder.iterdir()) and not (args.overwrite and is_own):
        way_out = ", or replace its train, val, test and truth folders with --overwrite" if is_own else ""
        parser.error(f"{folder} is not empty; choose a new folder{way_out}")
    if folder.exists() and not os.access(folder, os.W_OK):
        parser.error(f"{folder} is write-protected; choose another DESTINATION")
    return args


def main(argv: list[str] | None = None) -> int:
    """Make the dataset. Returns the exit code."""
    args = parse(argv)
    folder, workspace = args.destination, None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A sibling folder, so that an interrupted run leaves nothing incomplete in DESTINATION.
        workspace = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        for part in ("made", "backup"):
            (workspace / part).mkdir()
        write_dataset(workspace / "made", args)
        (workspace / "made" / MARKER).write_text("drawn by make_synthetic_dataset.py\n")
        scores = [repeat_first_psnr(workspace / f"made/truth/{i}") for i in range(args.test_sequences)]
        publish(workspace / "made", folder, workspace / "backup")
    except OSError as error:
        print(f"make_synthetic_dataset.py: error: cannot write {error.filename or folder} ({error.strerror}); choose "
              "another DESTINATION", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("make_synthetic_dataset.py: interrupted; DESTINATION is unchanged", file=sys.stderr)
        return 130
    finally:
        if workspace:
            shutil.rmtree(workspace, ignore_errors=True)
    print(f"{folder}: {args.train_frames} train, {args.val_frames} val and {args.test_sequences} x "
          f"{args.test_frames} test frames; PSNR of repeating the first frame: "
          f"{', '.join(f'{score:.2f}' for score in scores)} dB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
