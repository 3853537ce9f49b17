"""PNG folders -> uint8 frame store, kept on disk -> clips.

The course's layout, DR being the dataset's root:
    DR/train/train_img/N.png     DR/train/train_label/N.png    frames and their pose images
    DR/val/val_img/N.png         DR/val/val_label/N.png
    DR/test/test_img/K/0.png     DR/test/test_label/K/N.png    for sequence K: its first frame, all its poses
A file's name is a number, with or without a prefix such as "frame". A jump in the numbers is a cut of the recording.
"""
import os
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from modules.data.augmentation import crop, draw_windows
from modules.data.frame_cache import FrameCache
from utils import BadInput, progress_bar

# What Pillow finds odd about a damaged file: the refusal says it better, and filters cannot be changed by threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

FRAME_NAME = re.compile(r"\D*(\d+)\.png", re.IGNORECASE)


@dataclass
class Recording:
    """Frames and pose images of one recording, in the order of their numbers.

    frames, labels : uint8 (N, 3, H, W); numbers : int64 (N,), strictly increasing.
    """
    frames: Tensor
    labels: Tensor
    numbers: Tensor

    def first(self, count: int) -> "Recording":
        return Recording(self.frames[:count], self.labels[:count], self.numbers[:count])

    def to(self, device: torch.device) -> "Recording":
        return Recording(self.frames.to(device), self.labels.to(device), self.numbers)


@dataclass
class GivenSequence:
    """A sequence to generate. first_frame: uint8 (3, H, W); labels: uint8 (T, 3, H, W), the first never used."""
    name: str
    first_frame: Tensor
    labels: Tensor
    numbers: list[int]


def list_frames(folder: Path, flag: str = "--DR") -> dict[int, Path]:
    """The PNG files of a folder by their number, in numeric order. Hidden files and other file types are passed over.

    ``flag`` is the flag that led to the folder, for the message.

    Raises
    ------
    BadInput : no such folder, no PNG in it, a PNG without a number, or two with the same number.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: there is no such folder; point {flag} at data in the layout that the README shows")
    frames: dict[int, Path] = {}
    for name in sorted(os.listdir(folder)):
        if name.startswith(".") or not name.lower().endswith(".png"):
            continue
        path, match = folder / name, FRAME_NAME.fullmatch(name)
        if not match:
            raise BadInput(f"{path}: the name is not a number with or without a prefix; rename or remove the file")
        frame = int(match[1])
        if frame >= 2**63:
            raise BadInput(f"{path}: its number is too large; rename the file")
        if frame in frames:
            raise BadInput(f"{path}: {frames[frame].name} has the same number {frame}; remove one of the two")
        frames[frame] = path
    if not frames:
        raise BadInput(f"{folder}: there is no PNG file in this folder; put the frames N.png there")
    return dict(sorted(frames.items()))


def read_image(path: Path, height: int, width: int) -> np.ndarray:
    """One PNG (or JPEG) file as uint8 (height, width, 3), resized as torchvision's Resize does it on a PIL image.

    Palettes and grey become RGB; 16 bits a channel become 8, the upper ones.

    Raises
    ------
    BadInput : the file is missing, no such image, cut off, transparent anywhere, or claims an absurd size.
    """
    try:
        # Not by the name, and no other formats: Pillow would even hand some files to programs that run them.
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError  # Pillow itself only warns until twice as many
            image = _to_rgb(image)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    except Image.DecompressionBombError as error:
        raise BadInput(f"{path}: it claims more than {Image.MAX_IMAGE_PIXELS:,} pixels; replace the file") from error
    except (FileNotFoundError, PermissionError) as error:
        raise BadInput(f"{path}: it cannot be read ({error.strerror}); add it or mend its permissions") from error
    except UnidentifiedImageError as error:
        raise BadInput(f"{path}: this is not a PNG image, whatever its name says; replace or remove it") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make the decoder raise whatever it meets
        raise BadInput(f"{path}: the image is damaged or cut off ({' '.join(str(error).split())[:80]}); replace or "
                       "remove the file") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        raise BadInput("it has transparent pixels, and what is to be seen through them is unknown; save it without "
                       "transparency")
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow's conversion would cut off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def read_images(paths: list[Path], height: int, width: int, num_workers: int, desc: str,
                cache: FrameCache | None = None) -> Tensor:
    """Image files of one folder as uint8 (N, 3, height, width): from the cache, or decoded (and kept there).

    Raises
    ------
    BadInput : a file cannot be read, or --cache_dir cannot be written; the message names it.
    """
    def decode() -> np.ndarray:
        return decode_images(paths, height, width, num_workers, desc)

    return torch.from_numpy(decode() if cache is None else cache.read(paths, height, width, decode))


def decode_images(paths: list[Path], height: int, width: int, num_workers: int, desc: str) -> np.ndarray:
    """Image files as uint8 (N, 3, height, width), decoded in parallel under a progress bar.

    Raises
    ------
    BadInput : a file cannot be read; the message names it.
    """
    images = np.empty((len(paths), 3, height, width), np.uint8)

    def read(index: int) -> None:
        images[index] = read_image(paths[index], height, width).transpose(2, 0, 1)

    # Threads are enough: Pillow lets go of the interpreter while it decodes and resizes.
    pool = ThreadPoolExecutor(max(num_workers, 1))
    try:
        for _ in progress_bar(pool.map(read, range(len(paths))), desc, len(paths), unit="image"):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def read_recording(root: Path, split: str, height: int, width: int, num_workers: int,
                   cache: FrameCache | None = None) -> Recording:
    """The recording root/SPLIT/SPLIT_img with its poses in SPLIT_label ("train" or "val"), paired by number.

    Raises
    ------
    BadInput : a folder is missing or empty, a frame lacks its pose or the reverse, or a file cannot be read.
    """
    frames = list_frames(root / split / f"{split}_img")
    labels = list_frames(root / split / f"{split}_label")
    for frame in sorted(frames.keys() ^ labels.keys()):
        if frame in frames:
            raise BadInput(f"{frames[frame]}: its pose is missing in {root / split / f'{split}_label'}; add it or "
                           "remove the frame")
        raise BadInput(f"{labels[frame]}: its frame is missing in {root / split / f'{split}_img'}; add it or remove "
                       "the pose")
    return Recording(read_images(list(frames.values()), height, width, num_workers, f"{split} frames", cache),
                     read_images(list(labels.values()), height, width, num_workers, f"{split} poses", cache),
                     torch.tensor(list(frames)))


def read_validation(root: Path, length: int, height: int, width: int, num_workers: int,
                    cache: FrameCache | None = None) -> Recording:
    """The first ``length`` frames of root/val. BadInput: too few of them, or a jump in their numbering."""
    recording = read_recording(root, "val", height, width, num_workers, cache)
    if len(recording.numbers) < length:
        raise BadInput(f"{root / 'val'} has {len(recording.numbers)} frames, fewer than --val_vi_len {length}; give "
                       f"more frames or --val_vi_len {len(recording.numbers)}")
    recording = recording.first(length)
    jumps = (recording.numbers.diff() != 1).nonzero().flatten()
    if len(jumps):
        at = int(jumps[0])
        raise BadInput(f"{root / 'val'}: the numbering jumps from {int(recording.numbers[at])} to "
                       f"{int(recording.numbers[at + 1])}, so these frames are no single video; add the missing frames "
                       f"or give --val_vi_len {at + 1}")
    return recording


def read_test_sequences(root: Path, height: int, width: int, num_workers: int,
                        cache: FrameCache | None = None) -> list[GivenSequence]:
    """The test sequences in the numeric order of their folders.

    The lowest number in test_img/K is the given first frame; the poses of all frames after it must follow without
    a gap. The pose of the first frame itself may be missing, nothing uses it.

    Raises
    ------
    BadInput : a folder is missing or empty, a first frame or a pose is missing, or a file cannot be read.
    """
    images, poses = root / "test" / "test_img", root / "test" / "test_label"
    for folder in (images, poses):
        if not folder.is_dir():
            raise BadInput(f"{folder}: there is no such folder; point --DR at a dataset in the layout that the README "
                           "shows")
    names = {folder: {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
             for folder in (images, poses)}
    for name in sorted(names[images] ^ names[poses]):
        here, there = (images, poses) if name in names[images] else (poses, images)
        raise BadInput(f"{there / name}: this folder is missing, but {here / name} is there; add or remove one")
    if not names[images]:
        raise BadInput(f"{images}: there is no sequence in this folder; put each into a folder K/")

    sequences = []
    for name in sorted(names[images], key=natural_order):
        first, path = next(iter(list_frames(images / name).items()))
        labels = {frame: label for frame, label in list_frames(poses / name).items() if frame >= first}
        labels.setdefault(first, labels.get(first + 1, path))
        for frame in range(first, max(*labels, first + 1) + 1):
            if frame not in labels:
                raise BadInput(f"{poses / name}: the pose of frame {frame} is missing; add {frame}.png")
        numbers = sorted(labels)
        frame = read_images([path], height, width, 1, f"test {name}")[0]
        stack = read_images([labels[n] for n in numbers], height, width, num_workers, f"test {name} poses", cache)
        sequences.append(GivenSequence(name, frame, stack, numbers))
    return sequences


def natural_order(name: str) -> list:
    """Sort key that orders by the numbers in a name: 2 before 10."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name)]


def stretches(numbers: Tensor) -> Tensor:
    """Where the stretches begin that no jump in the numbers cuts, and the last one's end: (stretches + 1,) int64."""
    cuts = (numbers.diff() != 1).nonzero().flatten() + 1
    return torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), len(numbers))])


def clip_starts(numbers: Tensor, length: int, stride: int) -> Tensor:
    """Positions at which clips start, ``stride`` frames apart, such that no clip runs across a jump in the numbers.

    Parameters
    ----------
    numbers : (N,) int, strictly increasing.
    length : frames of a clip. stride : frames between clip starts, counted anew after each jump.

    Returns
    -------
    (clips,) int64, each in 0..N - length.
    """
    bounds = stretches(numbers).tolist()
    return torch.cat([torch.arange(begin, max(end - length + 1, begin), stride)
                      for begin, end in zip(bounds[:-1], bounds[1:], strict=True)])


class Clips(NamedTuple):
    """A batch of training clips, or a process's share of one."""
    frames: Tensor  # float (B, T, 3, H, W) in [0, 1]
    labels: Tensor  # the same, the pose images
    index: Tensor | None = None  # int64 (B, T), which frames of the recording they are
    is_whole: Tensor | None = None  # bool (B,), whether a clip is shown as it is, not a window of it
    reference: Tensor | None = None  # (B, 3, H, W) in [0, 1], another frame, seen through the clip's window
    reference_index: Tensor | None = None  # int64 (B,), which one


class ClipLoader:
    """Batches of training clips out of a recording, on the device where it lives as uint8.

    Parameters
    ----------
    length, stride : frames of a clip, frames between clip starts.
    batch_size : clips a batch; the last batch of an epoch may be smaller.
    share_flag, length_flag : the flags that chose the share of the frames and the length, for the message.
    crop_fraction : share of the clips that are shown as a random crop, the same for all frames and poses of a clip.
    with_reference : draw another frame for each clip, from anywhere in the stretch of the recording that the clip is
        of: beyond a jump in the numbers may be another room.

    Raises
    ------
    BadInput : no stretch of the recording is long enough for a clip.
    """

    def __init__(self, recording: Recording, length: int, stride: int, batch_size: int,
                 share_flag: str = "--partial", crop_fraction: float = 0.0, with_reference: bool = False,
                 length_flag: str = "--train_vi_len"):
        self.starts = clip_starts(recording.numbers, length, stride).to(recording.frames.device)
        if not len(self.starts):
            raise BadInput(f"the training data has no {length} frames in a row ({len(recording.numbers)} frames in "
                           f"use); give more frames, a larger {share_flag} or a smaller {length_flag}")
        self.frames, self.labels = recording.frames, recording.labels
        bounds = stretches(recording.numbers).to(self.starts.device)
        stretch = torch.searchsorted(bounds, self.starts, right=True)
        self.stretch_begin, self.stretch_length = bounds[stretch - 1], bounds.diff()[stretch - 1]
        self.window = torch.arange(length, device=self.frames.device)
        self.batch_size, self.crop_fraction, self.with_reference = batch_size, crop_fraction, with_reference

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.starts) // self.batch_size)

    def batches(self, order: Tensor, share: Callable[[int], slice] = slice,
                generator: torch.Generator | None = None,
                reference_generator: torch.Generator | None = None) -> Iterator[Clips]:
        """The batches of an epoch's clips.

        Parameters
        ----------
        order : a permutation of the clips, or what is left of one, perhaps nothing.
        share : which of the B clips of a batch are wanted; all, unless several processes share them.
        generator, reference_generator : sources of crops and of references, on the CPU; drawn from where there are
            any, and for the whole batch.
        """
        order = order.to(self.frames.device)  # once: a copy in each batch would make the host wait for the device
        for begin in range(0, len(order), self.batch_size):
            clips = order[begin:begin + self.batch_size]
            wanted = share(len(clips))
            index = self.starts[clips[wanted]].unsqueeze(1) + self.window  # (B, T)
            frames, labels = to_float(self.frames[index]), to_float(self.labels[index])
            is_whole = torch.ones(len(index), dtype=torch.bool, device=frames.device)
            reference = other = None
            if self.with_reference:
                place = torch.rand(len(clips), generator=reference_generator, dtype=torch.float64)[wanted]
                place = place.to(frames.device, non_blocking=True)
                other = self.stretch_begin[clips[wanted]] + (place * self.stretch_length[clips[wanted]]).long()
                reference = to_float(self.frames[other])
            if self.crop_fraction > 0:
                windows = draw_windows(len(clips), self.crop_fraction, generator)[wanted]
                windows = windows.to(frames.device, non_blocking=True)
                frames, labels, is_whole = crop(frames, windows), crop(labels, windows), windows[:, 2] == 1
                if reference is not None:
                    reference = crop(reference[:, None], windows)[:, 0]
            yield Clips(frames, labels, index, is_whole, reference, other)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float in [0, 1]."""
    return images.float() / 255
