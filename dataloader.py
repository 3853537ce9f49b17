"""The dataset on disk -> uint8 frames -> training clips.

The course's layout, with DR the root of the dataset:
    DR/train/train_img/N.png     DR/train/train_label/N.png    frames and their pose images
    DR/val/val_img/N.png         DR/val/val_label/N.png
    DR/test/test_img/K/0.png     DR/test/test_label/K/N.png    for sequence K: its first frame and all poses
A file name is a number, optionally after a prefix such as "frame". A jump in the numbers is a cut in the recording; the
frames between two cuts are a segment.
"""
import argparse
import os
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modules.data import image_file
from modules.data.augmentation import crop, draw_windows, to_float
from modules.data.frame_cache import FrameCache
from modules.data.person_shift import PersonShift, add_shifted_copies
from modules.data.recording import Recording, clip_starts, describe_frames, segments
from utils import BadInput, as_bad_input, check_writable, progress_bar

FRAME_NAME = re.compile(r"(?P<prefix>\D*)(?P<number>\d+)\.png", re.IGNORECASE)
OTHER_IMAGE = re.compile(r".*\.(jpe?g|bmp|gif|tiff?|webp)", re.IGNORECASE)
SPLITS = ("train", "val", "test")


@dataclass
class GivenSequence:
    """A sequence to generate. first_frame: uint8 (3, H, W); labels: uint8 (T, 3, H, W), labels[0] is never used."""
    name: str
    first_frame: Tensor
    labels: Tensor
    numbers: list[int]

    def __repr__(self) -> str:
        return f"GivenSequence({self.name!r}, {describe_frames(self.labels)})"


def list_frames(folder: Path, flag: str = "--DR") -> dict[int, Path]:
    """The PNG files of a folder by number, in numeric order. Hidden files are ignored, and those that are no images.

    ``flag`` is the flag that named the folder, for the error message.

    Raises
    ------
    BadInput : no such folder, no PNG file in it, an image of another type, a PNG file without a number or with a
        negative one, or two with the same number.
    """
    _check_folder(folder, flag)
    frames: dict[int, Path] = {}
    for name in sorted(os.listdir(folder)):
        path, match = folder / name, FRAME_NAME.fullmatch(name)
        if not name.startswith(".") and OTHER_IMAGE.fullmatch(name):
            raise BadInput(f"{path}: only PNG images are read from this folder; convert it to PNG or remove it")
        if name.startswith(".") or not name.lower().endswith(".png"):
            continue
        if not match:
            raise BadInput(f"{path}: the name is not a number with an optional prefix; rename or remove the file")
        if re.search(r"(^|[\W_])-$", match["prefix"]):  # in "frame-3.png", the "-" is no sign
            raise BadInput(f"{path}: the number is negative; number the frames from 0")
        number = int(match["number"])
        if number >= 2**63:
            raise BadInput(f"{path}: the number is too large; rename the file")
        if number in frames:
            raise BadInput(f"{path}: {frames[number].name} has the same number {number}; remove one of them")
        frames[number] = path
    if not frames:
        raise BadInput(f"{folder}: no PNG file in this folder; put the frames N.png there")
    return dict(sorted(frames.items()))


def _check_folder(folder: Path, flag: str = "--DR") -> None:
    if not folder.is_dir():
        layout = "a dataset in the layout that the README shows" if flag == "--DR" else "a folder that holds it"
        raise BadInput(f"{folder}: no such folder; point {flag} at {layout}")


def _check_level(root: Path) -> None:
    """BadInput if ``root`` is not a dataset, but a folder in it is, or one of the two that it is in."""
    def is_dataset(folder: Path) -> bool:
        return any(os.path.isdir(folder / split / f"{split}_img") for split in SPLITS)

    if not is_dataset(root):
        outside = [Path(os.path.normpath(root / up)) for up in ("..", "../..")]
        for folder in [*(sorted(root.iterdir()) if root.is_dir() else []), *outside]:
            if is_dataset(folder):
                raise BadInput(f"--DR {root} is not the root of a dataset; did you mean --DR {folder}?")


def read_image(path: Path, height: int, width: int) -> np.ndarray:
    """Same as :func:`modules.data.image_file.read`, but raises BadInput."""
    with as_bad_input():
        return image_file.read(path, height, width)


def read_images(paths: list[Path], height: int, width: int, num_workers: int, desc: str,
                cache: FrameCache | None = None) -> Tensor:
    """The image files of one folder as uint8 (N, 3, height, width), from the cache or decoded and then cached.

    Raises
    ------
    BadInput : a file cannot be read, or --cache_dir cannot be written; the message names it.
    """
    def decode() -> np.ndarray:
        if cache is not None and cache.folder is not None:
            check_writable(cache.folder, "--cache_dir")
        return decode_images(paths, height, width, num_workers, desc)

    return torch.from_numpy(decode() if cache is None else cache.read(paths, height, width, decode))


def decode_images(paths: list[Path], height: int, width: int, num_workers: int, desc: str) -> np.ndarray:
    """Decode image files in parallel into uint8 (N, 3, height, width), with a progress bar.

    Raises
    ------
    BadInput : a file cannot be read; the message names it.
    """
    images = np.empty((len(paths), 3, height, width), np.uint8)

    def read(index: int) -> None:
        images[index] = read_image(paths[index], height, width).transpose(2, 0, 1)

    # Threads suffice: Pillow releases the interpreter lock while it decodes and resizes.
    pool = ThreadPoolExecutor(max(num_workers, 1))
    try:
        for _ in progress_bar(pool.map(read, range(len(paths))), desc, len(paths), unit="image"):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def read_recording(root: Path, split: str, height: int, width: int, num_workers: int,
                   cache: FrameCache | None = None) -> Recording:
    """Read root/SPLIT/SPLIT_img and the poses in SPLIT_label, paired by number. ``split``: "train" or "val".

    Raises
    ------
    BadInput : a folder is missing or empty, a frame has no pose or vice versa, or a file cannot be read.
    """
    _check_level(root)
    folders = root / split / f"{split}_img", root / split / f"{split}_label"
    frames, labels = map(list_frames, folders)
    for number in sorted(frames.keys() ^ labels.keys()):
        if number in frames:
            raise BadInput(f"{frames[number]}: its pose is missing in {folders[1]}; add it or remove the frame")
        raise BadInput(f"{labels[number]}: its frame is missing in {folders[0]}; add it or remove the pose")
    return Recording(read_images(list(frames.values()), height, width, num_workers, f"{split} frames", cache),
                     read_images(list(labels.values()), height, width, num_workers, f"{split} poses", cache),
                     torch.tensor(list(frames)))


def read_validation(root: Path, length: int, height: int, width: int, num_workers: int,
                    cache: FrameCache | None = None) -> Recording:
    """Read the first ``length`` frames of root/val.

    Raises
    ------
    BadInput : there are fewer frames, their numbers jump, or see :func:`read_recording`.
    """
    recording = read_recording(root, "val", height, width, num_workers, cache)
    count = len(recording.numbers)
    if count < length:
        raise BadInput(f"{root / 'val'} has {count} frames, fewer than --val_vi_len {length}; add frames or use "
                       f"--val_vi_len {count}")
    recording = recording.head(length)
    end = int(segments(recording.numbers)[1])
    if end < length:
        raise BadInput(f"{root / 'val'}: the numbers jump from {int(recording.numbers[end - 1])} to "
                       f"{int(recording.numbers[end])}, so these frames are not one video; add the missing frames or "
                       f"use --val_vi_len {end}")
    return recording


def read_test_sequences(root: Path, height: int, width: int, num_workers: int,
                        cache: FrameCache | None = None) -> list[GivenSequence]:
    """Read the test sequences, in the numeric order of their folders.

    The lowest number in test_img/K is the given first frame. The poses of all later frames must follow without a gap;
    that of the first frame is not needed.

    Raises
    ------
    BadInput : a folder is missing or empty, a first frame or a pose is missing, or a file cannot be read.
    """
    _check_level(root)
    images, poses = root / "test" / "test_img", root / "test" / "test_label"
    names = {}
    for folder in (images, poses):
        _check_folder(folder)
        names[folder] = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    for name in sorted(names[images] ^ names[poses]):
        present, missing = (images, poses) if name in names[images] else (poses, images)
        raise BadInput(f"{missing / name}: this folder is missing, but {present / name} exists; add or remove one")
    if not names[images]:
        raise BadInput(f"{images}: no sequence in this folder; put each into a folder K/")

    sequences = []
    for name in sorted(names[images], key=natural_order):
        first, path = next(iter(list_frames(images / name).items()))
        labels = {number: label for number, label in list_frames(poses / name).items() if number >= first}
        labels.setdefault(first, labels.get(first + 1, path))
        for number in range(first, max(*labels, first + 1) + 1):
            if number not in labels:
                raise BadInput(f"{poses / name}: the pose of frame {number} is missing; add {number}.png")
        numbers = sorted(labels)
        frame = read_images([path], height, width, 1, f"test {name}")[0]
        stack = read_images([labels[n] for n in numbers], height, width, num_workers, f"test {name} poses", cache)
        sequences.append(GivenSequence(name, frame, stack, numbers))
    return sequences


def natural_order(name: str) -> tuple[list, str]:
    """Sort key that orders names by the numbers in them, then as text: 2 before 10, 01 before 1."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name)], name


class Clips(NamedTuple):
    """A batch of training clips, or the shard of one that a process trains on."""
    frames: Tensor  # float (B, T, 3, H, W) in [0, 1]
    labels: Tensor  # likewise, the pose images
    index: Tensor | None = None  # int64 (B, T), positions of the frames in the recording
    is_whole: Tensor | None = None  # bool (B,), whether a clip is uncropped
    random_frame: Tensor | None = None  # float (B, 3, H, W), another frame of the segment, cropped as the clip is
    random_index: Tensor | None = None  # int64 (B,), its position in the recording


class ClipLoader:
    """Batches of training clips from a recording, on the device that holds the recording as uint8.

    Parameters
    ----------
    length, stride : frames per clip, frames between clip starts.
    batch_size : clips per batch; the last batch of an epoch may be smaller.
    crop_fraction : fraction of the clips that are cropped at random, all frames and poses of a clip alike.
    with_random_frame : whether to draw another frame for each clip from its segment: other segments may show
        another scene.

    Raises
    ------
    ValueError : no segment of the recording is long enough for a clip.
    """

    def __init__(self, recording: Recording, length: int, stride: int, batch_size: int, crop_fraction: float = 0.0,
                 with_random_frame: bool = False):
        self.starts = clip_starts(recording.numbers, length, stride).to(recording.frames.device)
        if not len(self.starts):
            raise ValueError(f"no {length} consecutive frames in the training data ({len(recording.numbers)} frames in "
                             "use); use more frames or shorter clips")
        self.frames, self.labels = recording.frames, recording.labels
        bounds = segments(recording.numbers).to(self.starts.device)
        segment = torch.searchsorted(bounds, self.starts, right=True) - 1
        self.segment_begin, self.segment_length = bounds[segment], bounds.diff()[segment]
        self.window = torch.arange(length, device=self.frames.device)
        self.batch_size, self.crop_fraction, self.with_random_frame = batch_size, crop_fraction, with_random_frame

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.starts) // self.batch_size)

    def batches(self, order: Tensor, shard: Callable[[int], slice] = slice,
                crop_generator: torch.Generator | None = None,
                frame_generator: torch.Generator | None = None) -> Iterator[Clips]:
        """Iterate over the batches of an epoch.

        Parameters
        ----------
        order : a permutation of the clips, or the rest of one, which may be empty.
        shard : maps the number of clips in a batch to those to return; all by default.
        crop_generator, frame_generator : CPU generators of the crops and the random frames. Both are drawn for the
            whole batch, so that the result does not depend on the number of processes.
        """
        order = order.to(self.frames.device)  # once: a copy per batch would make the host wait for the device
        for begin in range(0, len(order), self.batch_size):
            clips = order[begin:begin + self.batch_size]
            count, part = len(clips), shard(len(clips))
            clips = clips[part]
            index = self.starts[clips].unsqueeze(1) + self.window  # (B, T)
            frames, labels = to_float(self.frames[index]), to_float(self.labels[index])
            is_whole = torch.ones(len(index), dtype=torch.bool, device=frames.device)
            random_frame = random_index = None
            if self.with_random_frame:
                position = torch.rand(count, generator=frame_generator, dtype=torch.float64)[part]
                position = position.to(frames.device, non_blocking=True)
                random_index = self.segment_begin[clips] + (position * self.segment_length[clips]).long()
                random_frame = to_float(self.frames[random_index])
            if self.crop_fraction > 0:
                windows = draw_windows(count, self.crop_fraction, crop_generator)[part]
                windows = windows.to(frames.device, non_blocking=True)
                frames, labels, is_whole = crop(frames, windows), crop(labels, windows), windows[:, 2] == 1
                if random_frame is not None:
                    random_frame = crop(random_frame[:, None], windows)[:, 0]
            yield Clips(frames, labels, index, is_whole, random_frame, random_index)


POSES_FOR_STATISTICS = 512  # a million values per channel: more would not change the third digit


@dataclass
class Data:
    """The dataset of a training run, on its device."""
    loader: ClipLoader
    fast_loader: ClipLoader | None  # of the fast epochs, where there are any
    val: Recording  # uint8
    pose_sample: Tensor  # float (P, 3, H, W), some of the training poses, for BatchNorm's statistics
    frames: Tensor  # uint8 (N, 3, H, W), all training frames
    checksum: int  # of the training recording
    replay_checksum: int  # of the recording and of the flags that determine its shifted copies
    person_shift: PersonShift | None = None  # the source of the shifted copies

    def __repr__(self) -> str:
        return f"Data(training on {len(self.loader.starts)} clips of {describe_frames(self.frames)}, val={self.val})"

    def facts(self) -> dict:
        """What config.json says about the dataset."""
        return {"train_frames": len(self.loader.frames), "train_segments": len(self.loader.segment_begin.unique()),
                "clips": len(self.loader.starts), "val_frames": len(self.val.frames),
                "frame_size": list(self.frames.shape[-2:]), "checksum": self.checksum}


def load_validation(args: argparse.Namespace, device: torch.device) -> Recording:
    """The validation sequence that the flags name, on the device. BadInput as ``read_validation``."""
    root = Path(args.DR)
    cache = FrameCache(root, args.cache_dir) if args.cache else None
    return read_validation(root, args.val_vi_len, args.frame_H, args.frame_W, args.num_workers, cache).to(device)


def load_data(args: argparse.Namespace, device: torch.device) -> Data:
    """The validation sequence and the training recording that the flags of Trainer.py name, on the device.

    Raises
    ------
    BadInput : the dataset is missing, incomplete, damaged or too short, or --cache_dir cannot be written; the message
        names the file or folder.
    """
    val, root = load_validation(args, device), Path(args.DR)
    cache = FrameCache(root, args.cache_dir) if args.cache else None
    train = read_recording(root, "train", args.frame_H, args.frame_W, args.num_workers, cache)
    checksum, person_shift = train.checksum(), None
    replay_checksum = checksum
    used, used_fast = (int(fraction * len(train.numbers) + 1e-9)  # 0.29 * 100 is 28.999... in floats
                       for fraction in (args.partial, args.fast_partial))
    if args.shifted_copies and used:  # no frame at all is refused below
        settings = repr((args.shifted_copies, args.seed, args.partial))
        replay_checksum = zlib.crc32(settings.encode(), checksum)
        try:
            train, person_shift = add_shifted_copies(train.head(used), args.shifted_copies, args.seed)
        except ValueError as error:
            raise BadInput(f"--shifted_copies {args.shifted_copies}, --DR {root}, --partial {args.partial:g}: {error}; "
                           "use --shifted_copies 0, or other frames") from error
        used = len(train.numbers)
    train = train.to(device)
    # With replay a clip begins with the frame that the previous clip predicts last.
    stride = args.clip_stride or args.train_vi_len - (args.replay > 0)
    with_random_frame = args.reference_frame or args.feed == "first" or args.any_first > 0

    def make_loader(frames: int, flag: str) -> ClipLoader:
        with as_bad_input(f"--DR {root}, --{flag} {getattr(args, flag):g}, --train_vi_len {args.train_vi_len}"):
            return ClipLoader(train.head(frames), args.train_vi_len, stride, args.batch_size, args.crop_fraction,
                              with_random_frame)

    loader = make_loader(used, "partial")
    fast_loader = make_loader(used_fast, "fast_partial") if args.fast_train else None
    pose_sample = to_float(loader.labels[::max(len(loader.labels) // POSES_FOR_STATISTICS, 1)])
    return Data(loader, fast_loader, val, pose_sample, train.frames, checksum, replay_checksum, person_shift)
