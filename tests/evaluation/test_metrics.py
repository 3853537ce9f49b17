"""python -m pytest tests/test_metrics.py"""
import math

import numpy as np
import pytest
import torch

from modules.evaluation.metrics import (
    PSNR_CAP,
    SCORED_FRAMES,
    brightness_error,
    course_score,
    drift,
    psnr,
    repeat_first,
    slope,
    ssim,
    to_uint8,
)


def pair(*shape: int, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=generator)
    return (target + noise * torch.randn(shape, generator=generator)).clamp(0, 1), target


# PSNR

@pytest.mark.parametrize("offset", [0.5, 0.1, 0.01])
def test_psnr_of_a_constant_error_has_a_closed_form(offset):
    target = torch.zeros(4, 3, 5, 7)
    torch.testing.assert_close(psnr(target + offset, target), torch.full((4,), -20 * math.log10(offset)))


def test_psnr_equals_torchmetrics_frame_by_frame():
    from torchmetrics.functional.image import peak_signal_noise_ratio
    prediction, target = pair(2, 5, 3, 8, 12)
    values = psnr(prediction, target)
    assert values.shape == (2, 5)
    for batch in range(2):
        for t in range(5):
            expected = peak_signal_noise_ratio(prediction[batch, t], target[batch, t], data_range=1.0)
            assert values[batch, t].item() == pytest.approx(expected.item(), abs=1e-4)


def test_psnr_of_a_batch_is_not_the_mean_of_the_psnrs():
    from torchmetrics.functional.image import peak_signal_noise_ratio
    target = torch.zeros(2, 3, 4, 4)
    prediction = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.001)])  # 20 dB and 60 dB
    assert psnr(prediction, target).mean().item() == pytest.approx(40, abs=1e-4)
    assert peak_signal_noise_ratio(prediction, target, data_range=1.0).item() < 24


def test_psnr_of_equal_frames_is_the_cap_and_nothing_exceeds_it():
    target = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    assert psnr(target, target).tolist() == [PSNR_CAP, PSNR_CAP] == [100.0, 100.0]
    assert psnr(target + 1e-9, target).tolist() == [PSNR_CAP, PSNR_CAP]
    assert psnr(target + 1e-4, target).max() < PSNR_CAP


def test_psnr_of_uint8_frames_does_not_wrap_around():
    dark = torch.full((1, 3, 4, 4), 3, dtype=torch.uint8)
    bright = torch.full((1, 3, 4, 4), 5, dtype=torch.uint8)
    expected = 20 * math.log10(255 / 2)
    assert psnr(dark, bright, data_range=255).item() == pytest.approx(expected, abs=1e-4)
    assert psnr(bright, dark, data_range=255).item() == pytest.approx(expected, abs=1e-4)


def test_psnr_does_not_depend_on_the_scale():
    prediction, target = pair(3, 3, 8, 8)
    torch.testing.assert_close(psnr(prediction, target), psnr(prediction * 255, target * 255, data_range=255))


def test_psnr_of_a_frame_with_nan_is_nan_and_only_that():
    prediction, target = pair(3, 3, 4, 4)
    prediction[1, 0, 0, 0] = math.nan
    assert psnr(prediction, target).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("function", [psnr, ssim, brightness_error])
def test_frames_that_do_not_match_are_refused(function):
    frames = torch.zeros(2, 3, 12, 12)
    with pytest.raises(ValueError, match=r"\(2, 3, 12, 12\), but the target has \(1, 3, 12, 12\)"):
        function(frames, frames[:1])
    with pytest.raises(ValueError, match="Frames have shape"):
        function(torch.zeros(2, 1, 12, 12), torch.zeros(2, 1, 12, 12))


@pytest.mark.parametrize("function", [psnr, ssim])
def test_a_range_that_cannot_be_is_refused(function):
    pixels = torch.zeros(1, 3, 12, 12, dtype=torch.uint8)
    with pytest.raises(ValueError, match="data_range=255"):
        function(pixels, pixels)
    with pytest.raises(ValueError, match="positive"):
        function(pixels.float(), pixels.float(), data_range=0)


# SSIM

def test_ssim_of_equal_frames_is_one_and_falls_with_noise():
    little, target = pair(2, 3, 3, 16, 16, noise=0.05)
    much, _ = pair(2, 3, 3, 16, 16, noise=0.3)
    torch.testing.assert_close(ssim(target, target), torch.ones(2, 3))
    assert (ssim(much, target) < ssim(little, target)).all() and (ssim(little, target) < 1).all()


def test_ssim_equals_torchmetrics_frame_by_frame(monkeypatch):
    from torchmetrics.functional.image import structural_similarity_index_measure
    monkeypatch.setattr("modules.evaluation.metrics.SSIM_CHUNK_PIXELS", 4 * 14 * 18)  # chunks of 4, and a rest of 3
    prediction, target = pair(7, 3, 14, 18)
    expected = [structural_similarity_index_measure(prediction[t : t + 1], target[t : t + 1], data_range=1.0)
                for t in range(7)]
    torch.testing.assert_close(ssim(prediction, target), torch.stack(expected))


def test_ssim_of_flat_frames_has_a_closed_form():
    dark, bright = (torch.full((1, 3, 16, 16), value, dtype=torch.float64) for value in (0.2, 0.6))
    c1 = 0.01**2
    expected = (2 * 0.2 * 0.6 + c1) / (0.2**2 + 0.6**2 + c1)
    assert ssim(dark, bright).item() == pytest.approx(expected, abs=1e-9)
    assert ssim(255 * dark, 255 * bright, data_range=255).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("height, width", [(4, 4), (3, 9), (5, 64), (10, 10), (11, 11)])
def test_ssim_shrinks_its_window_for_small_frames(height, width):
    prediction, target = pair(2, 3, height, width)
    assert ((ssim(prediction, target) < 1) & (ssim(prediction, target) > 0)).all()
    torch.testing.assert_close(ssim(target, target), torch.ones(2))


def test_ssim_refuses_frames_without_a_neighbourhood():
    with pytest.raises(ValueError, match="at least 3x3"):
        ssim(torch.zeros(1, 3, 2, 9), torch.zeros(1, 3, 2, 9))


# The rest

def test_brightness_error_has_sign_and_scale():
    target = torch.full((2, 2, 3, 4, 4), 0.5)
    prediction = target.clone()
    prediction[0, 1] = 0.2
    prediction[1, 0] = 0.9
    torch.testing.assert_close(brightness_error(prediction, target), torch.tensor([[0.0, -0.3], [0.4, 0.0]]))
    black, white = (torch.full((1, 3, 4, 4), value, dtype=torch.uint8) for value in (0, 255))
    assert brightness_error(black, white).item() == -1
    assert brightness_error(white, black.float()).item() == 1


def test_repeat_first_repeats_frame_0_of_each_clip():
    frames = pair(2, 4, 3, 5, 6)[0]
    repeated = repeat_first(frames)
    assert repeated.shape == frames.shape
    for t in range(4):
        assert torch.equal(repeated[:, t], frames[:, 0])
    with pytest.raises(ValueError, match="A clip has shape"):
        repeat_first(frames[:, :0])


def test_course_score_leaves_out_frame_0_and_what_follows_frame_600():
    values = torch.full((630,), 10.0)
    values[0], values[1], values[600], values[601:] = 1e6, 20.0, 40.0, 1e6
    assert SCORED_FRAMES == 600
    assert course_score(values) == pytest.approx((598 * 10 + 20 + 40) / 600)


def test_slope_is_numpys_line_over_600_frames():
    values = torch.rand(629, generator=torch.Generator().manual_seed(0)) - torch.linspace(0, 3, 629)
    assert slope(values) == pytest.approx(600 * np.polyfit(np.arange(629), values.double().numpy(), 1)[0])
    assert slope([30.0, 29.0]) == pytest.approx(-600) and slope([30.0]) == 0 and slope([5.0] * 9) == pytest.approx(0)


def test_drift_is_that_of_the_scored_frames():
    frame = torch.arange(630.0)
    psnr_per_frame, brightness = 40 - frame / 100, frame / 1000
    psnr_per_frame[0] = 100  # the given frame
    psnr_per_frame[601:], brightness[601:] = 0, 9  # not scored
    expected = {"psnr_start": 40 - 0.305, "psnr_end": 40 - 5.705, "psnr_slope": -6.0, "brightness_error_end": 0.5705}
    assert drift(psnr_per_frame, brightness) == pytest.approx(expected, rel=1e-4)
    short = drift(torch.tensor([100.0, 20.0, 22.0]), torch.tensor([0.0, 0.1, 0.3]))
    assert short == pytest.approx({"psnr_start": 21, "psnr_end": 21, "psnr_slope": 1200, "brightness_error_end": 0.2})


def test_course_score_of_a_short_sequence():
    assert course_score([99.0, 1.0, 2.0, 6.0]) == 3.0
    with pytest.raises(ValueError, match="needs a vector"):
        course_score([30.0])
    with pytest.raises(ValueError, match="needs a vector"):
        course_score(torch.zeros(2, 5))


def test_to_uint8_rounds_and_clips():
    values = torch.tensor([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 127.6 / 255, 254.4 / 255, 1.0, 1.5, math.inf])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 128, 254, 255, 255, 255]
    assert to_uint8(values).dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_uint8_gives_back_every_pixel_value(dtype):
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(pixels.to(dtype) / 255), pixels)
    assert torch.equal(to_uint8(pixels), pixels)


def test_to_uint8_in_half_precision_is_computed_in_float32():
    values = torch.linspace(0, 1, 1000).bfloat16()
    assert torch.equal(to_uint8(values), to_uint8(values.float()))


def test_to_uint8_refuses_nan_and_integers():
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.tensor([0.5, math.nan]))
    with pytest.raises(ValueError, match="torch.int64"):
        to_uint8(torch.tensor([0, 255]))
