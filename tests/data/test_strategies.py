"""Corrections of what the network is given: histograms against scikit-image, crops against Pillow's resizing of a box.

    python -m pytest tests/test_strategies.py
"""
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.exposure import match_histograms

from modules.data.augmentation import SMALLEST_CROP, crop, draw_windows
from modules.data.histogram import match_histogram
from modules.training.replay import Replay

DICE = torch.Generator().manual_seed(0)
SOURCES = {"continuous": lambda *shape: torch.rand(*shape, generator=DICE),
           "8 bits": lambda *shape: torch.randint(256, shape, generator=DICE) / 255,
           "few values": lambda *shape: torch.randint(5, shape, generator=DICE) / 7,
           "beyond the range": lambda *shape: torch.randn(*shape, generator=DICE),
           "one value": lambda *shape: torch.full(shape, 0.3)}


# Histograms

@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("reference", SOURCES)
def test_histograms_are_matched_as_scikit_image_does(kind, reference):
    frames, references = SOURCES[kind](3, 3, 7, 12), SOURCES[reference](3, 3, 7, 12)
    expected = [match_histograms(frame.double().numpy(), target.double().numpy(), channel_axis=0)
                for frame, target in zip(frames, references, strict=True)]
    torch.testing.assert_close(match_histogram(frames, references).double(), torch.tensor(np.stack(expected)))


def test_a_frame_without_equal_values_gets_exactly_those_of_its_reference_in_its_own_order():
    frames, references = torch.rand(2, 2, 3, 8, 16, generator=DICE)
    matched = match_histogram(frames, references).flatten(2)
    assert torch.equal(matched.sort().values, references.flatten(2).sort().values)
    assert torch.equal(matched.argsort(), frames.flatten(2).argsort())
    assert torch.equal(match_histogram(references, references), references)


def test_a_brightness_that_has_drifted_comes_back():
    """What it is for: a darkened picture with less contrast is given its brightness and contrast again."""
    picture = torch.rand(1, 3, 32, 64, generator=DICE)
    torch.testing.assert_close(match_histogram(0.6 * picture + 0.05, picture), picture)


def test_no_gradient_passes_and_a_bfloat16_frame_comes_back_in_the_references_type():
    frames = torch.rand(1, 3, 4, 4, requires_grad=True)
    assert not match_histogram(frames, torch.rand(1, 3, 4, 4)).requires_grad
    assert match_histogram(frames.bfloat16(), torch.rand(1, 3, 4, 4)).dtype == torch.float32


def test_one_frame_for_each_reference():
    with pytest.raises(ValueError, match="frame by frame"):
        match_histogram(torch.rand(2, 3, 4, 4), torch.rand(1, 3, 4, 4))


# Crops

@pytest.mark.parametrize("size", [(32, 64), (9, 7)], ids=str)
def test_a_crop_is_pillows_resized_box_but_for_its_rim(size):
    """At its rim Pillow repeats the box's last pixels, and a crop still knows what lies beside them."""
    height, width = size
    clips = torch.rand(4, 2, 3, height, width, generator=DICE)
    windows = draw_windows(4, 1.0, DICE)
    shown = crop(clips, windows)
    for clip, result, (left, top, side) in zip(clips, shown, windows.double().tolist(), strict=True):
        box = (left * width, top * height, (left + side) * width, (top + side) * height)
        for frame, picture in zip(clip.flatten(0, 1), result.flatten(0, 1), strict=True):
            expected = Image.fromarray(frame.numpy()).resize((width, height), Image.Resampling.BILINEAR, box=box)
            difference = (picture - torch.from_numpy(np.array(expected))).abs()
            assert difference[2:-2, 2:-2].max() < 2e-4


def test_all_frames_of_a_clip_share_a_window_and_the_whole_picture_stays_as_it_is():
    clips = torch.rand(2, 1, 3, 8, 16, generator=DICE).expand(2, 4, 3, 8, 16)
    cropped, whole = crop(clips, torch.tensor([[0.2, 0.1, 0.7], [0.0, 0.0, 1.0]]))
    assert torch.equal(cropped, cropped[:1].expand_as(cropped)) and not torch.equal(cropped, clips[0])
    assert torch.equal(whole, clips[1])


def test_windows_lie_inside_the_picture_and_their_share_is_the_fraction():
    windows = draw_windows(4000, 0.3, torch.Generator().manual_seed(1))
    left, top, side = windows.unbind(dim=1)
    cropped = side < 1
    assert 0.27 < cropped.float().mean() < 0.33
    assert (windows[~cropped] == torch.tensor([0.0, 0.0, 1.0])).all()
    assert side.min() >= SMALLEST_CROP and left.min() >= 0 and top.min() >= 0
    assert (left + side).max() <= 1 + 1e-6 and (top + side).max() <= 1 + 1e-6
    assert (draw_windows(500, 0.0, DICE)[:, 2] == 1).all() and (draw_windows(500, 1.0, DICE)[:, 2] < 1).all()


# Replay

def test_what_was_remembered_last_is_recalled_where_it_is_chosen_and_known():
    real = torch.rand(10, 3, 4, 5)
    replay = Replay(torch.zeros(10, 3, 4, 5, dtype=torch.uint8), torch.zeros(10, dtype=torch.bool))
    everything, chosen = torch.arange(10), torch.ones(10, dtype=torch.bool)
    assert torch.equal(replay.recall(everything, real, chosen), real)  # nothing is known
    predictions = torch.rand(2, 3, 3, 4, 5) * 1.4 - 0.2  # a linear output may leave the range
    predictions[1, 2, 0, 0, 0] = torch.nan
    index = torch.tensor([[1, 2, 3], [5, 6, 7]])
    replay.remember(index, torch.rand(2, 3, 3, 4, 5), torch.ones(2, 1, dtype=torch.bool))
    old = replay.recall(everything, real, chosen)
    replay.remember(index, predictions, torch.tensor([[True], [False]]))
    recalled = replay.recall(everything, real, chosen)
    torch.testing.assert_close(recalled[1:4], predictions[0].clamp(0, 1), atol=0.5 / 255 + 1e-6, rtol=0)
    assert torch.equal(recalled[5:8], old[5:8])  # what was not good is not kept
    assert torch.equal(recalled[[0, 4, 8, 9]], real[[0, 4, 8, 9]])
    disturbed = replay.recall(everything, real, chosen, torch.full_like(real, 0.25))
    torch.testing.assert_close(disturbed - recalled, 0.25 * replay.is_known[:, None, None, None].expand_as(real))
    chosen[2] = False
    assert torch.equal(replay.recall(everything, real, chosen)[2], real[2])
