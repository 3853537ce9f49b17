"""What the tests share: a tiny dataset in the course's layout, a tiny network, and calls of the two programs.

The pixels come from a fixed numpy seed and are stored in the very size that the network sees, so that no library's
resizing has a part in them.
"""
import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import Tester
import Trainer
from modules.plots import curves, video
from utils import run_main

H, W = 8, 16
TRAIN_FRAMES, VAL_FRAMES = 12, 6
NETWORK = ["--F_dim", "8", "--L_dim", "4", "--N_dim", "4", "--D_out_dim", "8"]
TINY = [*NETWORK, "--frame_H", str(H), "--frame_W", str(W), "--train_vi_len", "4", "--val_vi_len", str(VAL_FRAMES),
        "--num_workers", "1", "--device", "cpu", "--precision", "fp32", "--threads", "1",
        "--no-cache"]
PROGRAMS = {"Trainer.py": Trainer.main, "Tester.py": Tester.main}


def make_video(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright bar that wanders over a noisy background, and its poses: uint8 (count, H, W, 3) each."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(20, 90, (1, H, W, 3)), count, axis=0)
    labels = np.zeros_like(frames)
    place = int(rng.integers(W))
    for frame, label in zip(frames, labels, strict=True):
        place = (place + int(rng.integers(-1, 3))) % W
        frame[:, place] = (250, 200, 30)
        label[:, place] = 255
    return frames.astype(np.uint8), labels.astype(np.uint8)


def write_pngs(folder: Path, images: np.ndarray, numbers=None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in zip(range(len(images)) if numbers is None else numbers, images, strict=True):
        Image.fromarray(image).save(folder / f"{number}.png")


def write_split(root: Path, split: str, count: int, seed: int, numbers=None) -> None:
    """root/train or root/val with ``count`` frames and poses."""
    frames, labels = make_video(count, seed)
    write_pngs(root / split / f"{split}_img", frames, numbers)
    write_pngs(root / split / f"{split}_label", labels, numbers)


def write_walk(root: Path) -> None:
    """Replace root/train by two recordings of a bar that crosses the picture and comes back, without its edges."""
    frames, labels = make_video(24, 0)
    frames[:], labels[:] = np.median(frames, axis=0), 0
    for number, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        place = 2 + min(number, 23 - number)
        frame[:, place], label[:, place] = (250, 200, 30), 255
    for images, name in ((frames, "train_img"), (labels, "train_label")):
        shutil.rmtree(root / "train" / name)
        write_pngs(root / "train" / name, images, [*range(12), *range(20, 32)])


def write_sequence(root: Path, name: str, count: int, seed: int) -> None:
    """Test sequence ``name``: its first frame, its poses, and the real frames under root/truth."""
    frames, labels = make_video(count, seed)
    write_pngs(root / "test" / "test_img" / name, frames[:1])
    write_pngs(root / "test" / "test_label" / name, labels)
    write_pngs(root / "truth" / name, frames)


def make_dataset(root: Path) -> Path:
    write_split(root, "train", TRAIN_FRAMES, seed=0)
    write_split(root, "val", VAL_FRAMES, seed=1)
    for name, count in (("10", 5), ("0", 5), ("2", 4), ("1", 7)):
        write_sequence(root, name, count, seed=10 + int(name))
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Iterator[Path]:
    """The tiny dataset. Shared by all tests: never write to it, and let no program keep its cache there."""
    root = make_dataset(tmp_path_factory.mktemp("data") / "data")
    before = contents(root)
    yield root
    assert contents(root) == before


@pytest.fixture
def own_data(tmp_path) -> Path:
    """A tiny dataset that the test may change."""
    return make_dataset(tmp_path / "own_data")


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Call a program with flags that it refuses, and hand back the sentence: ``refused("Trainer.py", *flags)``.

    It must end with code 2 and print exactly one line on stderr; no file below ``untouched`` may change.
    """

    def call(program: str, *flags, untouched: Path | None = None) -> str:
        before = contents(untouched) if untouched and untouched.exists() else {}
        capsys.readouterr()
        code = run_main(program, lambda: PROGRAMS[program]([str(flag) for flag in flags]))
        # A progress bar ends by wiping its line with carriage returns: what follows the last of them stays.
        lines = [line.rpartition("\r")[2] for line in capsys.readouterr().err.split("\n")]
        lines = [line for line in lines if not line.endswith("frame/s]")]  # a finished rollout's bar
        assert code == 2, lines
        assert len(lines) == 2 and lines[1] == "", lines
        assert lines[0].startswith(f"{program}: error: "), lines
        assert (contents(untouched) if untouched and untouched.exists() else {}) == before
        return lines[0]

    return call


def leave_out_figures(patch: pytest.MonkeyPatch) -> None:
    for module, names in ((Trainer, ("draw_shifts",)), (curves, ("plot_losses", "plot_teacher_forcing", "plot_psnr")),
                          (video, ("side_by_side_gif", "side_by_side_mp4", "write_gif"))):
        for name in names:
            patch.setattr(module, name, lambda *args, **kwargs: None)


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """Leave out the plots and GIFs, which take longer than the tiny trainings."""
    leave_out_figures(monkeypatch)
