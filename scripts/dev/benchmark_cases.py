"""The cases of benchmark.py: work done by a plain baseline and by the optimised implementation.

    case                   baseline                                      optimised
    train_free_running     scripts/dev/baseline.py: each encoder called  Trainer.train_step, including its guard
    train_teacher_forced   frame by frame, float32, eager, plain Adam,   (on a GPU several steps per repeat, because
    train_bptt             the loss read in every step                   the host runs ahead of it)
    generate               scripts/dev/baseline.py, sequences batched    modules.evaluation.evaluate.rollout
    data_epoch             a loop that decodes each clip's PNG files     ClipLoader over the frames in memory
    startup_cached         reading the PNG folder                        reading the cache of decoded frames
    submission_csv         csv.writer, a str() per value                 modules.evaluation.submission.write_submission

The network cases run on random pixels. Only data_epoch and startup_cached decode PNG files, of which a few are drawn
and the others are copies.
"""
import argparse
import csv
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import baseline
import Trainer
from dataloader import ClipLoader, Clips, Recording, read_image, read_recording, to_float
from modules.config.trainer_flags import make_parser
from modules.data.frame_cache import FrameCache
from modules.evaluation.evaluate import rollout
from modules.evaluation.submission import write_submission
from modules.network.cvae import CVAE
from modules.training.checkpoint import NETWORK_FLAGS
from utils import COMPILE_PAYS_FROM, compile_pays, progress_bar

SHARED_FLAGS = ("train_vi_len", "frame_H", "frame_W", "F_dim", "L_dim", "N_dim", "D_out_dim", "batch_size", "precision",
                "seed")
BETA, LEARNING_RATE = 0.001, 0.001  # they do not affect the time, but beta > 0 makes the KL necessary
SAMPLE_LENGTH = 4  # frames of the short rollout for warm-up, counting and profiling
PNG_SIZE, PNG_DRAWN = (1024, 512), 8  # pixels; distinct pairs: drawing and encoding more would take minutes


@dataclass
class Case:
    """Work to be timed. All functions take no argument; their results are ignored.

    baseline, optimised : all of the work. frames : how many frames that is.
    sample : a shorter version of both for warm-up, counting and profiling; None: all of the work.
    samples : how many samples have the arithmetic of the whole; None where there is none to count.
    calls : calls per repeat.
    compile : called between counting and warm-up where the optimised side is to be compiled.
    """
    baseline: Callable
    optimised: Callable
    frames: int
    sample: tuple[Callable, Callable] | None = None
    samples: float | None = None
    calls: int = 1
    compile: Callable[[], None] | None = None

    def __post_init__(self):
        self.sample = self.sample or (self.baseline, self.optimised)


# Training and generation


def make_trainer(args: argparse.Namespace, device: torch.device, folder: Path, *flags: str) -> Trainer.Trainer:
    """A trainer as Trainer.py makes it, on a dataset that is just large enough for a clip and is not used."""
    root = folder / "clip"
    if not root.exists():
        for split, count in (("train", args.train_vi_len), ("val", 2)):
            for kind in ("img", "label"):
                write_pngs(root / split / f"{split}_{kind}", np.zeros((count, args.frame_H, args.frame_W, 3), np.uint8))
    words = [f"--{name}={getattr(args, name)}" for name in SHARED_FLAGS]
    trainer_args = make_parser().parse_args(["--DR", str(root), "--save_root", str(folder / "run"), "--val_vi_len=2",
                                             "--no-cache", *words, *flags])
    return Trainer.Trainer(trainer_args, Trainer.load_data(trainer_args, device), device)


def copy_network(trainer: Trainer.Trainer, device: torch.device) -> CVAE:
    """A network with the trainer's weights, in PyTorch's default memory layout."""
    plain = CVAE(**{name: getattr(trainer.args, name) for name in NETWORK_FLAGS}).to(device)
    plain.load_state_dict(trainer.model.state_dict())
    return plain


def train_step(trainer: Trainer.Trainer, frames: Tensor, labels: Tensor, forced: Tensor) -> None:
    """The optimised training step. frames, labels : (B, T, 3, H, W) in [0, 1]. forced : bool (B,)."""
    trainer.train_step(Clips(frames, labels), forced, BETA, LEARNING_RATE)


def train(mode: str, args: argparse.Namespace, device: torch.device, folder: Path) -> Case:
    """A training step. ``mode`` : of baseline.MODES."""
    trainer = make_trainer(args, device, folder, *["--bptt"] * (mode == "bptt"))
    plain = copy_network(trainer, device)
    optimizer = torch.optim.Adam(plain.parameters(), lr=LEARNING_RATE)
    noise = torch.Generator(device).manual_seed(args.seed)
    shape = args.batch_size, args.train_vi_len, 3, args.frame_H, args.frame_W
    frames, labels = torch.rand(2, *shape, generator=noise, device=device)
    forced = torch.full((args.batch_size,), mode == "teacher_forced")

    def run_baseline():
        torch.backends.cudnn.benchmark = False  # PyTorch's default, which the trainer changes globally
        drawn = torch.randn(shape[0], shape[1] - 1, args.N_dim, *shape[-2:], generator=noise, device=device)
        baseline.train_step(plain, optimizer, frames, labels, drawn, BETA, mode, trainer.args.clip_grad)

    def run_optimised():
        torch.backends.cudnn.benchmark = True
        train_step(trainer, frames, labels, forced)

    compile = None
    if compile_pays(args.compile, device, COMPILE_PAYS_FROM):  # as for a long run
        compile = partial(trainer.model.compile_steps, args.batch_size)
    return Case(run_baseline, run_optimised, shape[0] * shape[1], samples=1, compile=compile,
                calls=10 if device.type == "cuda" else 1)


def generate(args: argparse.Namespace, device: torch.device, folder: Path) -> Case:
    """A rollout of all sequences."""
    trainer = make_trainer(args, device, folder)
    model, plain = trainer.model.eval(), copy_network(trainer, device).eval()
    torch.backends.cudnn.benchmark = False  # as in Tester.py
    source = torch.Generator().manual_seed(args.seed)
    pixels = torch.randint(256, (args.sequences, args.frames, 3, args.frame_H, args.frame_W), generator=source,
                           dtype=torch.uint8)

    def progress(steps):
        return progress_bar(steps, "rollout", unit="frame")

    def run_baseline(length: int):
        baseline.generate(plain, to_float(pixels[:, 0].to(device)), to_float(pixels[:, :length].to(device)),
                          torch.Generator(device).manual_seed(args.seed), progress)

    def run_optimised(length: int):
        rollout(model, pixels[:, 0], list(pixels[:, :length]), "prior", args.seed, args.precision, progress)

    short = min(SAMPLE_LENGTH, args.frames)
    is_compiled = compile_pays(args.compile, device, args.sequences * args.frames)
    return Case(partial(run_baseline, args.frames), partial(run_optimised, args.frames), args.sequences * args.frames,
                (partial(run_baseline, short), partial(run_optimised, short)), (args.frames - 1) / (short - 1),
                compile=model.compile_steps if is_compiled else None)


# Data


def write_pngs(folder: Path, images: np.ndarray) -> None:
    """Write uint8 (N, H, W, 3) as folder/N.png."""
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index}.png")


def make_pngs(args: argparse.Namespace, folder: Path) -> Path:
    """A dataset with --pairs training frames and poses of PNG_SIZE, made in the first call."""
    root = folder / "png"
    if root.exists():
        return root
    rng = np.random.default_rng(args.seed)
    folders = [root / "train" / f"train_{kind}" for kind in ("img", "label")]
    # Smooth areas with sensor noise: they compress and decode about as photographs do.
    smooth = [np.asarray(Image.fromarray(rng.integers(0, 256, (16, 32, 3), dtype=np.uint8)).resize(PNG_SIZE))
              for _ in range(min(PNG_DRAWN, args.pairs))]
    frames = [(image + rng.normal(0, 2, image.shape)).clip(0, 255).astype(np.uint8) for image in smooth]
    poses = [Image.new("RGB", PNG_SIZE, "white") for _ in frames]
    for pose in poses:
        for colour in rng.integers(0, 256, (18, 3)).tolist():
            ImageDraw.Draw(pose).line((rng.random(4) * (PNG_SIZE * 2)).tolist(), tuple(colour), width=8)
    write_pngs(folders[0], np.stack(frames))
    write_pngs(folders[1], np.stack([np.asarray(pose) for pose in poses]))
    for index in progress_bar(range(PNG_DRAWN, args.pairs), "PNG files"):
        for kind in folders:
            shutil.copyfile(kind / f"{index % PNG_DRAWN}.png", kind / f"{index}.png")
    return root


def data_epoch(args: argparse.Namespace, device: torch.device, folder: Path) -> Case:
    """All batches of an epoch as float tensors on the device. The baseline has no worker processes."""
    root, size = make_pngs(args, folder), (args.frame_H, args.frame_W)
    # The frames in memory; reading them is another case.
    pixels = torch.zeros(args.pairs, 3, *size, dtype=torch.uint8)
    recording = Recording(pixels, pixels.clone(), torch.arange(args.pairs)).to(device)
    loader = ClipLoader(recording, args.train_vi_len, args.train_vi_len, args.batch_size)
    order = torch.randperm(len(loader.starts), generator=torch.Generator().manual_seed(args.seed))

    def read_clip(kind: str, start: int) -> Tensor:  # (T, 3, H, W)
        paths = [root / "train" / f"train_{kind}" / f"{n}.png" for n in range(start, start + args.train_vi_len)]
        return torch.stack([to_float(torch.tensor(read_image(path, *size)).permute(2, 0, 1)) for path in paths])

    def run_baseline():
        for clips in loader.starts.cpu()[order].split(args.batch_size):
            for kind in ("img", "label"):
                torch.stack([read_clip(kind, int(start)) for start in clips]).to(device)

    def run_optimised():
        for _ in loader.batches(order):
            pass

    return Case(run_baseline, run_optimised, len(order) * args.train_vi_len,
                (partial(read_clip, "img", 0), run_optimised))


def startup_cached(args: argparse.Namespace, device: torch.device, folder: Path) -> Case:
    """Reading the training frames and poses from the disk into memory."""
    root = make_pngs(args, folder)

    def read(root: Path, cached: bool) -> Recording:
        cache = FrameCache(root, str(folder / "cache")) if cached else None
        return read_recording(root, "train", args.frame_H, args.frame_W, args.num_workers, cache)

    # The optimised side's warm-up fills the cache. The PNG files were just written, so reading one warms up enough.
    one = root / "train" / "train_img" / "0.png"
    return Case(partial(read, root, False), partial(read, root, True), args.pairs,
                (partial(read_image, one, args.frame_H, args.frame_W), partial(read, root, True)))


def submission_csv(args: argparse.Namespace, device: torch.device, folder: Path) -> Case:
    """Writing the submission."""
    source = torch.Generator().manual_seed(args.seed)
    videos = list(torch.randint(256, (args.sequences, args.frames, 3, args.frame_H, args.frame_W), generator=source,
                                dtype=torch.uint8))

    def run_baseline(videos: list[Tensor]):
        with open(folder / "baseline.csv", "w", encoding="ascii", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["id", *range(videos[0][0].numel())])
            for row, frame in enumerate(torch.cat(videos).flatten(1).numpy()):
                writer.writerow([str(row), *[str(value) for value in frame.tolist()]])

    def run_optimised(videos: list[Tensor]):
        write_submission(videos, folder / "submission.csv")

    short = [videos[0][:2]]
    return Case(partial(run_baseline, videos), partial(run_optimised, videos), args.sequences * args.frames,
                (partial(run_baseline, short), partial(run_optimised, short)))


CASES: dict[str, Callable[[argparse.Namespace, torch.device, Path], Case]] = {
    **{f"train_{mode}": partial(train, mode) for mode in baseline.MODES}, "generate": generate,
    "data_epoch": data_epoch, "startup_cached": startup_cached, "submission_csv": submission_csv}
