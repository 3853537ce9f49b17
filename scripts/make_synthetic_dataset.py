"""Make a synthetic dataset: video of a person who moves in a room, with a pose image for every frame.

It stands in for a real recording wherever none is at hand. The folders are those of the course:

    DESTINATION/train/train_img/N.png    train/train_label/N.png    N jumps where the recording was cut
    DESTINATION/val/val_img/N.png        val/val_label/N.png        one sequence
    DESTINATION/test/test_img/K/0.png    test/test_label/K/N.png    first frame and poses of sequence K
    DESTINATION/truth/K/N.png                                       the frames of sequence K, to score with

    python scripts/make_synthetic_dataset.py data                   # about 20 seconds on two cores
    python scripts/make_synthetic_dataset.py data4 --people 4 --seed 7

The person, the room and how they are drawn stand in synthetic_scene.py. The files depend on the flags alone, never
on the number of processes.
"""

import argparse
import functools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

import synthetic_scene as scene

CHUNK = 60  # frames that a worker draws per task
SHORTEST_SHOT = 16  # frames between two cuts
SPLITS = ("train", "val", "test", "truth")


class BadInput(Exception):
    """A wrong flag or folder; the message is one sentence for the user."""


class Shot(NamedTuple):
    """Frames recorded in one go: who, the random stream, frame numbers, folders to fill, and bodies."""

    person: int
    stream: tuple
    numbers: range
    frames: str
    poses: str
    body: dict | None = None


def plan(args):
    """The shots of the whole dataset; people are dealt to them in turn."""
    rng = scene.stream(args.seed, scene.CUTS)
    count = max(min(int(rng.integers(3, 6)), args.train_frames // SHORTEST_SHOT), args.people)
    spare = args.train_frames - count * SHORTEST_SHOT
    lengths = SHORTEST_SHOT + np.diff([0, *np.sort(rng.integers(0, spare + 1, count - 1)), spare])
    starts = np.cumsum([0, *(lengths + rng.integers(5, 200, count))])  # numbers are skipped at every cut
    train = [Shot(i % args.people, (scene.TRAIN, i), range(a, a + n), "train/train_img", "train/train_label")
             for i, (a, n) in enumerate(zip(starts[:-1].tolist(), lengths.tolist(), strict=True))]
    test = [Shot(i % args.people, (scene.TEST, i), range(args.test_frames), f"truth/{i}", f"test/test_label/{i}")
            for i in range(args.test_sequences)]
    return [*train, Shot(0, (scene.VAL, 0), range(args.val_frames), "val/val_img", "val/val_label"), *test]


def chunks_of(shot, seed, size):
    """Choreograph a shot and cut it into pieces of at most CHUNK frames, a worker's task each."""
    rng = scene.stream(seed, *shot.stream)
    track = scene.Choreography(rng, size[1] / size[0]).perform(len(shot.numbers))
    body = scene.skeleton(track, scene.make_look(seed, shot.person).height, rng)
    for i in range(0, len(track), CHUNK):
        part = {name: places[i:i + CHUNK] for name, places in body.items()}
        yield shot._replace(numbers=shot.numbers[i:i + CHUNK], body=part)


def render(shot, root, seed, size):
    """Draw and write the frames and pose images of a piece of a shot; return how many."""
    look, room = scene.scenery(seed, shot.person, size)
    for i, number in enumerate(shot.numbers):
        body = {name: places[i] for name, places in shot.body.items()}
        grain = scene.stream(seed, scene.GRAIN, *shot.stream, number)
        frame = Image.fromarray(scene.draw_frame(body, look, room, grain))
        frame.save(root / shot.frames / f"{number}.png", compress_level=1)
        if shot.stream[0] == scene.TEST and number == 0:
            frame.save(root / f"test/test_img/{shot.stream[1]}" / "0.png", compress_level=1)
        Image.fromarray(scene.draw_pose(body, size)).save(root / shot.poses / f"{number}.png", compress_level=1)
    return len(shot.numbers)


def write_dataset(root, args):
    """Draw every shot into the empty folder `root`."""
    size, shots = (args.frame_H, args.frame_W), plan(args)
    first = [f"test/test_img/{i}" for i in range(args.test_sequences)]
    for folder in {*first, *(folder for shot in shots for folder in (shot.frames, shot.poses))}:
        (root / folder).mkdir(parents=True)
    chunks = [chunk for shot in shots for chunk in chunks_of(shot, args.seed, size)]
    job = functools.partial(render, root=root, seed=args.seed, size=size)
    workers = min(args.num_workers, len(chunks))
    with tqdm(total=sum(len(shot.numbers) for shot in shots), unit="frame", desc="drawing") as bar:
        if workers <= 1:
            for count in map(job, chunks):
                bar.update(count)
            return
        # Spawned, so that every system does the same; Ctrl-C is left to the parent, which then stops them.
        context = multiprocessing.get_context("spawn")
        with context.Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            for count in pool.imap_unordered(job, chunks):
                bar.update(count)


def repeat_first_psnr(folder):
    """Mean over frames 1.. of the PSNR in dB, at most 100 each, of frame 0 shown instead."""
    count = len(os.listdir(folder))
    frames = np.stack([np.asarray(Image.open(folder / f"{i}.png"), np.float64) for i in range(count)])
    error = np.mean((frames[1:] - frames[0]) ** 2, axis=(1, 2, 3))
    return float(np.mean(np.minimum(10 * np.log10(255**2 / np.maximum(error, 1e-10)), 100)))


def publish(made, destination, spare):
    """Move the finished dataset into place; on any failure put back what stood there, kept in `spare`."""
    if not destination.exists():
        made.rename(destination)
        return
    undo = []
    try:
        for split in SPLITS:
            for source, target in ((destination / split, spare / split), (made / split, destination / split)):
                if source.exists():
                    undo.append((target, source))
                    source.rename(target)
    except BaseException:
        for target, source in reversed(undo):
            if target.exists() and not source.exists():
                target.rename(source)
        raise


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadInput(f"{message}; see --help")


def parse(argv):
    """Flags that can work, or BadInput."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("destination", type=Path, metavar="DESTINATION", help="folder to make; new or empty")
    add = functools.partial(parser.add_argument, type=int)
    # what is drawn
    add("--seed", default=0, help="seed of looks, room and motion; the same seed gives the same files")
    add("--people", default=1, help="people with own looks and room tint, dealt to the shots in turn")
    add("--frame_H", default=32, help="height of a frame, pixels")
    add("--frame_W", default=64, help="width of a frame, pixels")
    # how much
    add("--train_frames", default=3000, help="training frames, in 3 to 5 shots (more with more people)")
    add("--val_frames", default=630, help="frames of the validation sequence")
    add("--test_sequences", default=5, help="number of test sequences")
    add("--test_frames", default=630, help="frames of a test sequence, the given first one included")
    # how
    add("--num_workers", default=os.cpu_count() or 1, help="processes that draw; 0 or 1: none but this one")
    parser.add_argument("--overwrite", action="store_true", help="replace its train, val, test, truth")
    args = parser.parse_args(argv)
    lowest = {"seed": 0, "people": 1, "frame_H": 16, "frame_W": 16, "val_frames": 2, "test_sequences": 1,
              "test_frames": 2, "num_workers": 0, "train_frames": SHORTEST_SHOT * max(3, args.people)}
    for flag, low in lowest.items():
        if getattr(args, flag) < low:
            raise BadInput(f"--{flag} is {getattr(args, flag)}; give {low} or more")
    args.destination = folder = args.destination.resolve()
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file; name a new folder as DESTINATION")
    if folder.exists() and any(folder.iterdir()) and not args.overwrite:
        raise BadInput(f"{folder} is not empty; name a new folder, or give --overwrite to replace "
                       "its train, val, test and truth folders")
    if folder.exists() and not os.access(folder, os.W_OK):
        raise BadInput(f"{folder} is write-protected; name a DESTINATION that you may write to")
    return args


def main(argv=None):
    """Make the dataset; return the exit code."""
    workspace = folder = None
    try:
        args = parse(argv)
        folder = args.destination
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that an interrupted run leaves nothing half-written under the destination's name.
        workspace = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        for part in ("made", "spare"):
            (workspace / part).mkdir()
        write_dataset(workspace / "made", args)
        scores = [repeat_first_psnr(workspace / f"made/truth/{i}") for i in range(args.test_sequences)]
        publish(workspace / "made", folder, workspace / "spare")
    except BadInput as problem:
        print(f"make_synthetic_dataset: {problem}.", file=sys.stderr)
        return 2
    except OSError as problem:
        print(f"make_synthetic_dataset: cannot write {problem.filename or folder} ({problem.strerror}); "
              "name a DESTINATION that can be written to.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("make_synthetic_dataset: interrupted; DESTINATION is as it was.", file=sys.stderr)
        return 130
    finally:
        if workspace:
            shutil.rmtree(workspace, ignore_errors=True)
    print(f"{folder}: {args.train_frames} train, {args.val_frames} val and {args.test_sequences} x "
          f"{args.test_frames} test frames; repeating the first frame scores "
          f"{', '.join(f'{score:.2f}' for score in scores)} dB PSNR")
    return 0


if __name__ == "__main__":
    sys.exit(main())
