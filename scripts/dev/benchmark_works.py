"""What benchmark.py times: each work as a plain baseline and as the optimised does it.

    work                   baseline                                     optimised
    train_free_running     scripts/dev/baseline.py: every encoder called    Trainer.train_step, guard included
    train_teacher_forced   frame by frame, float32, eager, plain Adam,   (on a GPU several steps a repeat, since the
    train_bptt             the loss read in every step                   host runs ahead of it)
    generate               scripts/dev/baseline.py, all sequences a batch   Tester.generate_all
    data_epoch             one loop that decodes each clip's PNG files   ClipLoader over the frames in memory
    startup_cached         reading the PNG folder                        reading it from the cache on the disk
    submission_csv         csv.writer, a str() for each value            Tester.write_submission

The network works get random pixels; PNG files, of which some are drawn and the rest are copies, are decoded in
data_epoch and startup_cached alone.
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
import Tester
import Trainer
from dataloader import ClipLoader, Clips, GivenSequence, Recording, read_image, read_recording, to_float
from modules.data.frame_cache import FrameCache
from modules.network.cvae import CVAE
from modules.training.checkpoint import NETWORK_FLAGS
from utils import COMPILE_PAYS_FROM, compile_pays, progress_bar

SHARED_FLAGS = ("train_vi_len", "frame_H", "frame_W", "F_dim", "L_dim", "N_dim", "D_out_dim", "batch_size", "precision",
                "seed")
BETA, LEARNING_RATE = 0.001, 0.001  # they change no time; beta is above 0, so that the KL is needed
SAMPLE = 4  # frames of the short roll-out that warms up, is counted and is profiled
PNG_SIZE, PNG_DRAWN = (1024, 512), 8  # pixels; pairs that differ: drawing and encoding more would take minutes


@dataclass
class Work:
    """What is timed. All functions take nothing; what they return is not looked at.

    baseline, optimised : the whole work, once. frames : that it handles.
    sample : a shorter form of both, for warm-up, counting and the profile; the whole where it is None.
    samples : how many samples' arithmetic the whole takes; None where there is none to count.
    calls : times that the whole is done in one repeat.
    compile : called after counting, before warm-up, where the optimised is to be compiled.
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


def make_networks(args: argparse.Namespace, device: torch.device, *flags: str) -> tuple[Trainer.Trainer, CVAE]:
    """A trainer as Trainer.py makes it, and a plain network with the same weights."""
    words = [f"--{name}={getattr(args, name)}" for name in SHARED_FLAGS]
    words += ["--ema=0", "--decoder_variance=fixed"]  # the baseline averages no weights, and its error is the MSE
    # Nothing is read from these folders or written there.
    trainer_args = Trainer.make_parser().parse_args(["--DR", ".", "--save_root", ".", *words, *flags])
    trainer = Trainer.Trainer(trainer_args, device)
    plain = CVAE(**{name: getattr(trainer_args, name) for name in NETWORK_FLAGS}).to(device)
    plain.load_state_dict(trainer.model.state_dict())
    return trainer, plain


def is_compiled(args: argparse.Namespace, device: torch.device, frames: int = COMPILE_PAYS_FROM) -> bool:
    """Whether the optimised would be compiled for work on that many frames; by default a training run that is long."""
    return compile_pays(args.compile, device, frames)


def train(mode: str, args: argparse.Namespace, device: torch.device, _: Path) -> Work:
    """A training step. ``mode`` : of baseline.MODES."""
    trainer, plain = make_networks(args, device, *["--bptt"] * (mode == "bptt"))
    optimizer = torch.optim.Adam(plain.parameters(), lr=LEARNING_RATE)
    noise = torch.Generator(device).manual_seed(args.seed)
    shape = args.batch_size, args.train_vi_len, 3, args.frame_H, args.frame_W
    frames, labels = torch.rand(2, *shape, generator=noise, device=device)
    forced = torch.full((args.batch_size,), mode == "teacher_forced")

    def run_baseline():
        torch.backends.cudnn.benchmark = False  # PyTorch's default; the trainer has switched it on for all
        drawn = torch.randn(shape[0], shape[1] - 1, args.N_dim, *shape[-2:], generator=noise, device=device)
        baseline.train_step(plain, optimizer, frames, labels, drawn, BETA, mode, trainer.args.clip_grad)

    def run_optimised():
        torch.backends.cudnn.benchmark = True
        trainer.train_step(Clips(frames, labels), forced, BETA, LEARNING_RATE)

    compile = partial(trainer.model.compile_steps, args.batch_size) if is_compiled(args, device) else None
    return Work(run_baseline, run_optimised, shape[0] * shape[1], samples=1, compile=compile,
                calls=10 if device.type == "cuda" else 1)


def generate(args: argparse.Namespace, device: torch.device, _: Path) -> Work:
    """A roll-out of all sequences."""
    trainer, plain = make_networks(args, device)
    model, plain = trainer.model.eval(), plain.eval()
    torch.backends.cudnn.benchmark = False  # as Tester.py has it
    source = torch.Generator().manual_seed(args.seed)
    pixels = torch.randint(256, (args.sequences, args.frames, 3, args.frame_H, args.frame_W), generator=source,
                           dtype=torch.uint8)

    def run_baseline(length: int):
        progress = partial(progress_bar, desc="baseline", unit="frame")
        baseline.generate(plain, to_float(pixels[:, 0].to(device)), to_float(pixels[:, :length].to(device)),
                           torch.Generator(device).manual_seed(args.seed), progress)

    def run_optimised(length: int):
        given = [GivenSequence(str(k), video[0], video[:length], []) for k, video in enumerate(pixels)]
        Tester.generate_all(model, given, "prior", args.seed, device, args.precision, "off")

    short = min(SAMPLE, args.frames)
    return Work(partial(run_baseline, args.frames), partial(run_optimised, args.frames), args.sequences * args.frames,
                (partial(run_baseline, short), partial(run_optimised, short)), (args.frames - 1) / (short - 1),
                compile=model.compile_steps if is_compiled(args, device, args.sequences * args.frames) else None)


def make_pngs(args: argparse.Namespace, folder: Path) -> Path:
    """A folder in the course's layout with --pairs of training frames and poses, made at the first call."""
    root = folder / "png"
    if root.exists():
        return root
    dice = np.random.default_rng(args.seed)
    for kind in ("img", "label"):
        (root / "train" / f"train_{kind}").mkdir(parents=True)
    for index in progress_bar(range(args.pairs), "PNG files"):
        paths = [root / "train" / f"train_{kind}" / f"{index}.png" for kind in ("img", "label")]
        if index >= PNG_DRAWN:
            for path in paths:
                shutil.copyfile(path.with_stem(str(index % PNG_DRAWN)), path)
            continue
        # Smooth areas with a camera's grain: they compress, and are decoded, about as photographs are.
        smooth = Image.fromarray(dice.integers(0, 256, (16, 32, 3), dtype=np.uint8)).resize(PNG_SIZE)
        grain = np.asarray(smooth) + dice.normal(0, 2, (*PNG_SIZE[::-1], 3))
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(paths[0])
        pose = Image.new("RGB", PNG_SIZE, "white")
        draw = ImageDraw.Draw(pose)
        for colour in dice.integers(0, 256, (18, 3)).tolist():
            draw.line((dice.random(4) * (PNG_SIZE * 2)).tolist(), tuple(colour), width=8)
        pose.save(paths[1])
    return root


def data_epoch(args: argparse.Namespace, device: torch.device, folder: Path) -> Work:
    """All batches of an epoch as float tensors on the device. The course's loader, but without worker processes."""
    root, size = make_pngs(args, folder), (args.frame_H, args.frame_W)
    # What the optimised keeps in memory; how long reading takes is another work.
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

    return Work(run_baseline, run_optimised, len(order) * args.train_vi_len,
                (partial(read_clip, "img", 0), run_optimised))


def startup_cached(args: argparse.Namespace, device: torch.device, folder: Path) -> Work:
    """The training frames and poses from the disk into memory."""
    root = make_pngs(args, folder)

    def read(root: Path, cached: bool) -> Recording:
        cache = FrameCache(root, str(folder / "cache")) if cached else None
        return read_recording(root, "train", args.frame_H, args.frame_W, args.num_workers, cache)

    # The optimised's warm-up fills the cache. The PNG files have just been written: reading one is warm-up enough.
    one = root / "train" / "train_img" / "0.png"
    return Work(partial(read, root, False), partial(read, root, True), args.pairs,
                (partial(read_image, one, args.frame_H, args.frame_W), partial(read, root, True)))


def submission_csv(args: argparse.Namespace, device: torch.device, folder: Path) -> Work:
    """The file that is handed in."""
    dice = torch.Generator().manual_seed(args.seed)
    videos = list(torch.randint(256, (args.sequences, args.frames, 3, args.frame_H, args.frame_W), generator=dice,
                                dtype=torch.uint8))

    def run_baseline(videos: list[Tensor]):
        with open(folder / "baseline.csv", "w", encoding="ascii", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["id", *range(videos[0][0].numel())])
            for row, frame in enumerate(torch.cat(videos).flatten(1).numpy()):
                writer.writerow([str(row), *[str(value) for value in frame.tolist()]])

    def run_optimised(videos: list[Tensor]):
        Tester.write_submission(videos, folder / "submission.csv")

    short = [videos[0][:2]]
    return Work(partial(run_baseline, videos), partial(run_optimised, videos), args.sequences * args.frames,
                (partial(run_baseline, short), partial(run_optimised, short)))


WORKS: dict[str, Callable[[argparse.Namespace, torch.device, Path], Work]] = {
    **{f"train_{mode}": partial(train, mode) for mode in baseline.MODES}, "generate": generate,
    "data_epoch": data_epoch, "startup_cached": startup_cached, "submission_csv": submission_csv}
