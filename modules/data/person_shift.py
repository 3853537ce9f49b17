"""Shift augmentation: the person of a recording by a still camera, moved sideways in front of its background."""
import math

import torch
from torch import Tensor
from torch.nn import functional

from modules.data.augmentation import to_float
from modules.data.recording import Recording, segments
from utils import progress_bar

STRETCH = 96  # consecutive frames that are shifted alike: few clips see the person jump
LARGEST = 3 / 16  # of the width of a frame
# Sizes in frame heights, differences of pixels in [0, 1].
REACH = 1 / 4  # of the body around the limbs of the pose image
CLEAR = 3 / 16  # distance to the nearest limb from which a pixel shows the background
FAINT, DISTINCT = 10 / 255, 24 / 255  # difference from the background where the matte begins, and of the body
CHUNK = 256  # frames at once


class PersonShift:
    """Finds the person in each frame of a recording, and moves it and its pose image sideways.

    The background is the median of each pixel over the frames in which no limb is near. The person is what differs from
    it in and around the limbs, with a soft edge (the matte). A shifted frame shows the person before the background, on
    which its shadow moves with it. Each stretch of 96 frames has one offset; a person who touches an edge of the frame
    is only moved further out past that edge: the rest of the body is not seen.

    Parameters
    ----------
    frames, labels : uint8 (N, 3, H, W), of a recording, on the CPU.
    bounds : (segments + 1,) int64, from ``segments``.

    Raises
    ------
    ValueError : the pose images are empty, the background is not seen, or more than the person changes.
    """

    def __init__(self, frames: Tensor, labels: Tensor, bounds: Tensor):
        self.frames, self.labels = frames, labels
        count, _, height, width = frames.shape
        self.height, self.largest = height, round(LARGEST * width)
        sample = labels[::max(count // CHUNK, 1)].float()
        self.blank = sample.transpose(0, 1).flatten(1).median(dim=1).values / 255  # (3,), beside the limbs
        limbs = _chunks(lambda part: (to_float(part) - self.blank[:, None, None]).abs().amax(dim=1) > DISTINCT, labels)
        if not limbs.any():
            raise ValueError("the pose images show no limb")
        self.background = self._find_background(limbs)
        parts = [self._find_person(begin, limbs) for begin in range(0, count, CHUNK)]
        self.matte = torch.cat(parts)  # uint8 (N, H, W), 255 on the person
        position = torch.arange(count)
        segment = torch.searchsorted(bounds, position, right=True) - 1
        starts = (position - bounds[segment]) % STRETCH == 0
        self.stretch = starts.cumsum(0) - 1  # (N,)
        self._check(limbs)
        self.lowest, self.highest = self._find_limits(limbs)
        if torch.equal(self.lowest, self.highest):
            raise ValueError(f"the person touches both sides of the picture in each stretch of {STRETCH} frames, and "
                             "cannot be moved")

    def __str__(self) -> str:
        movable = (self.lowest != self.highest)[self.stretch].float().mean()
        return (f"the person is found at {self.found:.1%} of the limbs' pixels, covers {self.covered:.1%} of the "
                f"picture and can be moved in {movable:.1%} of the frames")

    def _find_background(self, limbs: Tensor) -> Tensor:
        """(3, H, W) in [0, 1]."""
        height = limbs.shape[1]
        is_near = _chunks(lambda part: dilate(part, math.ceil(CLEAR * height)), limbs)
        seen = (~is_near).sum(dim=0)  # (H, W), frames
        unseen = (seen < 3).float().mean().item()
        if unseen > 0.02:
            raise ValueError(f"the person never leaves {unseen:.0%} of the picture, whose background is never seen")
        rows = []
        for row in range(height):  # a row of all frames at once
            pixels = self.frames[:, :, row].float()  # (N, 3, W)
            hidden = is_near[:, None, row] & (seen[row] >= 3)
            rows.append(pixels.masked_fill(hidden, math.nan).nanmedian(dim=0).values)
        return torch.stack(rows, dim=1) / 255

    def _find_person(self, begin: int, limbs: Tensor) -> Tensor:
        limbs = limbs[begin:begin + CHUNK]
        difference = (to_float(self.frames[begin:begin + CHUNK]) - self.background).abs().amax(dim=1)
        body = dilate(limbs, 1).float()
        steps = math.ceil(REACH * self.height)
        for step in range(steps):  # to neighbours that differ, as a flood; weaker where that is far from every limb
            level = min(1.0, 2 * (1 - step / steps))
            body = torch.where(difference > DISTINCT, torch.maximum(body, grow(body).clamp(max=level)), body)
        soft = ((difference - FAINT) / (DISTINCT - FAINT)).clamp(0, 1)
        return (grow(body) * soft * 255).round().to(torch.uint8)

    def _check(self, limbs: Tensor) -> None:
        self.covered = (self.matte > 127).float().mean().item()  # fraction of the pixels
        self.found = (self.matte[limbs] > 127).float().mean().item()  # fraction of the limbs' pixels
        changed = _chunks(lambda part, matte: ((to_float(part) - self.background).abs().amax(dim=1) > 2 * DISTINCT)
                          & (matte == 0), self.frames, self.matte)
        shares = torch.zeros(int(self.stretch[-1]) + 1, dtype=torch.float64)
        shares = shares.index_add(0, self.stretch, changed.flatten(1).double().mean(dim=1)) / self.stretch.bincount()
        if shares.max() > 0.2:
            begin = int((self.stretch == shares.argmax()).long().argmax())
            raise ValueError(f"{shares.max():.0%} of the picture besides the person differs from the background after "
                             f"the first {begin} frames: the camera moves, or the scene or its light changes")
        if self.found < 0.6:
            raise ValueError(f"only {self.found:.0%} of the limbs' pixels differ from the background: the person "
                             "hardly moves, or looks like it")

    def _find_limits(self, limbs: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and highest offset of each stretch, (S,) each."""
        touches = (self.matte > 127) | limbs  # (N, H, W)
        none = torch.zeros(int(self.stretch[-1]) + 1, dtype=torch.int64)
        left, right = (none.index_add(0, self.stretch, touches[:, :, column].any(dim=1).long()) > 0
                       for column in (0, -1))
        return torch.where(right, none, -self.largest), torch.where(left, none, self.largest)

    def draw_offsets(self, copies: int, seed: int) -> Tensor:
        """An offset in pixels to the right for each frame of each copy: (copies, N) int64, equal for the frames of a
        stretch, uniform between its limits."""
        generator = torch.Generator().manual_seed(3 * 2**30 + 3 * seed + 1)  # as in utils.make_generators
        place = torch.rand(copies, len(self.lowest), generator=generator)
        return (self.lowest + (place * (self.highest - self.lowest + 1)).long())[:, self.stretch]

    def apply(self, index: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The frames ``index`` (B,) and their pose images, shifted by ``offsets`` (B,) pixels to the right.

        Returns
        -------
        uint8 (B, 3, H, W) each. Those with offset 0 are equal to the recording's bit for bit.
        """
        frames, labels = to_float(self.frames[index]), to_float(self.labels[index])
        poses = shift(labels, offsets, self.blank[:, None, None])
        return tuple((images * 255).round().to(torch.uint8)
                     for images in (self._shift_frames(frames, self.matte[index], offsets), poses))

    def _shift_frames(self, frames: Tensor, matte: Tensor, offsets: Tensor) -> Tensor:
        moved = shift(to_float(matte)[:, None], offsets)
        # The person's shadow and its reflections on walls and floor are too soft for a matte. They move as what they
        # make of the background: a factor at each pixel.
        background = self.background.clamp(min=DISTINCT)
        light = shift(frames / background, offsets, None)
        return (moved * shift(frames, offsets) + (1 - moved) * background * light).clamp(0, 1)


def add_shifted_copies(recording: Recording, copies: int, seed: int) -> tuple[Recording, PersonShift]:
    """A recording, on the CPU, followed by copies of it in which the person is shifted.

    The offsets of a copy are fixed. With replay, each clip of a copy then continues from the predictions of the same
    copy. Where one stretch of a copy ends and the next begins, the person jumps: no cut is made there, so that rollouts
    can be longer than a stretch.

    Raises
    ------
    ValueError : the person cannot be told from the background, or cannot be moved.
    """
    person_shift = PersonShift(recording.frames, recording.labels, segments(recording.numbers))
    count = len(recording.frames)
    frames, labels = (images.new_empty((copies + 1) * count, *images.shape[1:])
                      for images in (recording.frames, recording.labels))
    frames[:count], labels[:count] = recording.frames, recording.labels
    parts = [(number, part) for number in range(copies) for part in torch.arange(count).split(32)]
    offsets = person_shift.draw_offsets(copies, seed)
    for number, part in progress_bar(parts, "shifting the person", unit="part"):
        place = (number + 1) * count + part
        frames[place], labels[place] = person_shift.apply(part, offsets[number, part])
    period = recording.numbers[-1] - recording.numbers[0] + 2  # leaves a jump in the numbers between two copies
    numbers = recording.numbers + period * torch.arange(copies + 1)[:, None]
    return Recording(frames, labels, numbers.flatten()), person_shift


def shift(images: Tensor, offsets: Tensor, fill: Tensor | float | None = 0.0) -> Tensor:
    """Move images (N, C, H, W) by ``offsets`` (N,) whole pixels to the right. ``fill`` enters at the edge; None: the
    pixels at the edge."""
    width = images.shape[-1]
    source = torch.arange(width) - offsets[:, None]  # (N, W)
    moved = images.gather(3, source.clamp(0, width - 1)[:, None, None].expand(images.shape))
    if fill is None:
        return moved
    return torch.where(((source >= 0) & (source < width))[:, None, None], moved, fill)


def dilate(mask: Tensor, radius: int) -> Tensor:
    """A mask (N, H, W) grown by ``radius`` pixels to all sides, bool."""
    return functional.max_pool2d(mask[:, None].float(), 2 * radius + 1, 1, radius)[:, 0] > 0


def grow(images: Tensor) -> Tensor:
    """The maximum over each pixel and its eight neighbours, of images (..., H, W)."""
    return functional.max_pool2d(images, 3, 1, 1)


def _chunks(function, *tensors: Tensor) -> Tensor:
    """``function`` of some frames at a time: all at once would need gigabytes."""
    return torch.cat([function(*parts) for parts in zip(*(tensor.split(CHUNK) for tensor in tensors), strict=True)])
