"""PSNR, SSIM, brightness, the course's score and drift, checked against closed forms.

    python -m pytest tests/evaluation/test_metrics.py
"""
import math

import numpy as np
import pytest
import torch

from modules.evaluation.metrics import brightness_error, course_score, psnr, slope, ssim, start_end_slope, to_uint8


def test_psnr_of_each_frame_has_a_closed_form_and_is_capped():
    target = torch.zeros(2, 2, 3, 5, 7, dtype=torch.float64)
    offsets = torch.tensor([[0.5, 0.1], [0.001, 1e-9]], dtype=torch.float64)
    prediction = target + offsets[..., None, None, None]
    expected = (-20 * offsets.log10()).clamp(max=100)  # of equal frames too, so that means stay finite
    torch.testing.assert_close(psnr(prediction, target), expected)
    torch.testing.assert_close(psnr(255 * prediction, target, data_range=255), expected)
    assert psnr(target, target).tolist() == [[100.0, 100.0], [100.0, 100.0]]
    three, five = (torch.full((3, 5, 7), value, dtype=torch.uint8) for value in (3, 5))  # 3 - 5 must not be 254
    assert psnr(three, five, 255).item() == psnr(five, three, 255).item() == pytest.approx(20 * math.log10(255 / 2))
    prediction[1, 0, 0, 2, 3] = math.nan
    assert psnr(prediction, target).isnan().tolist() == [[False, False], [True, False]]


def test_frames_that_do_not_match_each_other_or_their_range_are_rejected():
    frames, pixels = torch.zeros(2, 3, 12, 12), torch.zeros(1, 3, 12, 12, dtype=torch.uint8)
    for function in (psnr, ssim, brightness_error):
        for prediction, target in ((frames, frames[:1]), (frames[:, :1], frames[:, :1]), (frames[:0], frames[:0])):
            with pytest.raises(ValueError, match="shape"):
                function(prediction, target)
    for function, images, data_range in ((psnr, pixels, 1.0), (ssim, pixels, 1.0), (psnr, frames, 0.0)):
        with pytest.raises(ValueError, match="data_range"):
            function(images, images, data_range)


def test_ssim_of_flat_frames_has_a_closed_form():
    dark, bright = (torch.full((1, 3, 16, 16), value, dtype=torch.float64) for value in (0.2, 0.6))
    expected = (2 * 0.2 * 0.6 + 0.01**2) / (0.2**2 + 0.6**2 + 0.01**2)
    assert ssim(dark, bright).item() == pytest.approx(expected, abs=1e-9)
    assert ssim(255 * dark, 255 * bright, data_range=255).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("height, width", [(3, 9), (4, 4), (5, 64), (10, 10), (32, 64)])
def test_ssim_is_that_of_each_frame_and_falls_with_noise(height, width):
    torch.manual_seed(0)
    target, noise = torch.rand(2, 3, 3, 3, height, width)  # 9 frames: of the largest size, more than one chunk
    little, much = (ssim(target.lerp(noise, weight), target) for weight in (0.1, 0.9))
    assert (much < little).all() and (little < 1).all()
    torch.testing.assert_close(ssim(target, target), torch.ones(3, 3))
    torch.testing.assert_close(little[2, 2], ssim(target[2, 2].lerp(noise[2, 2], 0.1), target[2, 2]))


def test_brightness_error_has_sign_and_scale():
    target = torch.full((2, 2, 3, 4, 4), 0.5)
    prediction = target.clone()
    prediction[0, 1], prediction[1, 0] = 0.2, 0.9
    torch.testing.assert_close(brightness_error(prediction, target), torch.tensor([[0.0, -0.3], [0.4, 0.0]]))
    assert brightness_error(*torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)).item() == -1


def test_course_score_is_the_mean_of_frames_1_to_600():
    values = torch.full((630,), 10.0)
    values[0], values[1], values[600], values[601:] = 1e6, 20.0, 40.0, 1e6
    assert course_score(values) == pytest.approx((598 * 10 + 20 + 40) / 600)
    assert course_score([99.0, 1.0, 2.0, 6.0]) == 3.0
    for invalid in ([30.0], torch.zeros(2, 5)):
        with pytest.raises(ValueError, match="vector"):
            course_score(invalid)


def test_drift_is_that_of_the_scored_frames():
    frame = torch.arange(630.0)
    quality, brightness = 40 - frame / 100, frame / 1000
    quality[0], quality[601:], brightness[601:] = 100, 0, 9  # not scored
    assert start_end_slope(quality, brightness) == pytest.approx(
        {"psnr_start": 39.695, "psnr_end": 34.295, "psnr_slope": -6, "brightness_error_end": 0.5705}, rel=1e-4)
    assert start_end_slope(torch.tensor([100.0, 20.0, 22.0]), torch.tensor([0.0, 0.1, 0.3])) == pytest.approx(
        {"psnr_start": 21, "psnr_end": 21, "psnr_slope": 1200, "brightness_error_end": 0.2})
    values = torch.rand(629, dtype=torch.float64)
    assert slope([30.0]) == 0 and slope(values) == pytest.approx(600 * np.polyfit(np.arange(629), values, 1)[0])


def test_to_uint8_rounds_and_clips():
    values = torch.tensor([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 127.6 / 255, 254.4 / 255, 1.0, 1.5, math.inf])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 128, 254, 255, 255, 255]
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(pixels.float() / 255), pixels) and torch.equal(to_uint8(pixels), pixels)
    half = torch.linspace(0, 1, 1000).bfloat16()
    assert torch.equal(to_uint8(half), to_uint8(half.float()))
    for invalid, word in (([0.5, math.nan], "NaN"), ([0, 255], "int64")):
        with pytest.raises(ValueError, match=word):
            to_uint8(torch.tensor(invalid))
