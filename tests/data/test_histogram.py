"""Histogram matching, compared with scikit-image.

    pytest tests/data/test_histogram.py
"""
import numpy as np
import pytest
import torch
from skimage.exposure import match_histograms

from modules.data.histogram import match_histogram

GENERATOR = torch.Generator().manual_seed(0)
SOURCES = {"continuous": lambda *shape: torch.rand(*shape, generator=GENERATOR),
           "8 bits": lambda *shape: torch.randint(256, shape, generator=GENERATOR) / 255,
           "few values": lambda *shape: torch.randint(5, shape, generator=GENERATOR) / 7,
           "out of range": lambda *shape: torch.randn(*shape, generator=GENERATOR),
           "constant": lambda *shape: torch.full(shape, 0.3)}


@pytest.mark.parametrize("frame_kind", SOURCES)
@pytest.mark.parametrize("target_kind", SOURCES)
def test_matches_scikit_image(frame_kind, target_kind):
    frames, targets = SOURCES[frame_kind](3, 3, 7, 12), SOURCES[target_kind](3, 3, 7, 12)
    expected = [match_histograms(frame.double().numpy(), target.double().numpy(), channel_axis=0)
                for frame, target in zip(frames, targets, strict=True)]
    torch.testing.assert_close(match_histogram(frames, targets).double(), torch.tensor(np.stack(expected)))


def test_distinct_values_become_exactly_those_of_the_target_in_their_own_order():
    frames, targets = torch.rand(2, 2, 3, 8, 16, generator=GENERATOR)
    matched = match_histogram(frames, targets).flatten(2)
    assert torch.equal(matched.sort().values, targets.flatten(2).sort().values)
    assert torch.equal(matched.argsort(), frames.flatten(2).argsort())
    assert torch.equal(match_histogram(targets, targets), targets)


def test_drift_of_brightness_and_contrast_is_undone():
    frame = torch.rand(1, 3, 32, 64, generator=GENERATOR)
    torch.testing.assert_close(match_histogram(0.6 * frame + 0.05, frame), frame)


def test_result_has_no_gradient_and_the_dtype_of_the_targets():
    frames = torch.rand(1, 3, 4, 4, requires_grad=True)
    matched = match_histogram(frames.bfloat16(), torch.rand(1, 3, 4, 4))
    assert not matched.requires_grad and matched.dtype == torch.float32


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        match_histogram(torch.rand(2, 3, 4, 4), torch.rand(1, 3, 4, 4))
