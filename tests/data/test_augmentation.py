"""Random crops, compared with Pillow's resize of a box.

    pytest tests/data/test_augmentation.py
"""
import numpy as np
import pytest
import torch
from PIL import Image

from modules.data.augmentation import SMALLEST_CROP, crop, draw_windows


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(32, 64), (9, 7)], ids=str)
def test_crop_equals_pillows_resize_of_a_box_except_at_the_border(size):
    """At the border Pillow repeats the last pixels of the box, whereas a crop also sees those outside."""
    height, width = size
    clips = torch.rand(4, 2, 3, height, width, generator=generator())
    windows = draw_windows(4, 1.0, generator())
    for clip, cropped, (left, top, side) in zip(clips, crop(clips, windows), windows.double().tolist(), strict=True):
        box = (left * width, top * height, (left + side) * width, (top + side) * height)
        for channel, result in zip(clip.flatten(0, 1), cropped.flatten(0, 1), strict=True):
            expected = Image.fromarray(channel.numpy()).resize((width, height), Image.Resampling.BILINEAR, box=box)
            difference = (result - torch.from_numpy(np.array(expected))).abs()
            assert difference[2:-2, 2:-2].max() < 2e-4


def test_frames_of_a_clip_share_a_window_and_uncropped_clips_are_unchanged():
    clips = torch.rand(2, 1, 3, 8, 16, generator=generator()).expand(2, 4, 3, 8, 16)
    cropped, whole = crop(clips, torch.tensor([[0.2, 0.1, 0.7], [0.0, 0.0, 1.0]]))
    assert torch.equal(cropped, cropped[:1].expand_as(cropped)) and not torch.equal(cropped, clips[0])
    assert torch.equal(whole, clips[1])


def test_empty_shard_gives_no_clips():
    assert crop(torch.rand(0, 4, 3, 8, 16), torch.rand(0, 3)).shape == (0, 4, 3, 8, 16)


def test_windows_lie_inside_the_frame_for_the_given_fraction_of_the_clips():
    windows = draw_windows(4000, 0.3, generator(1))
    left, top, side = windows.unbind(dim=1)
    cropped = side < 1
    assert 0.27 < cropped.float().mean() < 0.33
    assert (windows[~cropped] == torch.tensor([0.0, 0.0, 1.0])).all()
    assert side.min() >= SMALLEST_CROP and left.min() >= 0 and top.min() >= 0
    assert (left + side).max() <= 1 + 1e-6 and (top + side).max() <= 1 + 1e-6
    assert (draw_windows(500, 0.0, generator())[:, 2] == 1).all()
    assert (draw_windows(500, 1.0, generator())[:, 2] < 1).all()
