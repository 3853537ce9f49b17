"""Summaries of scores, and how they read.

    python -m pytest tests/evaluation/test_scores.py
"""
import pytest
import torch

from modules.evaluation import scores
from modules.evaluation.evaluate import score

LONG_ONLY = {"psnr_start", "psnr_end", "psnr_slope", "brightness_error_end"}


def summarise(frames: int, every: int = 0) -> dict[str, float]:
    """The summary of a random sequence with so many predicted frames."""
    video, truth = torch.randint(0, 256, (2, frames + 1, 3, 4, 4), dtype=torch.uint8,
                                 generator=torch.Generator().manual_seed(0))
    table = scores.per_frame(score(video, truth))
    summary = scores.summarise(table)
    if every:
        summary |= scores.compare_with_restarted(table["psnr"], table["psnr"] + 1, every)
    return summary


@pytest.mark.parametrize("frames, scored", [(59, "frames 1..59 "), (119, "frames 1..119 "), (120, "frames 1..120 "),
                                            (629, "frames 1..600 ")])
def test_start_end_and_slope_are_those_of_long_sequences(frames, scored):
    summary = summarise(frames)
    text = scores.describe(summary)
    assert scored in text and text.count("frames 1..") == 1
    assert LONG_ONLY & summary.keys() == (LONG_ONLY if frames >= 120 else set())
    for word in ("start", "end ", "slope"):
        assert (word in text) == (frames >= 120)


@pytest.mark.parametrize("frames, slopes", [(60, set()), (119, set()), (179, {"psnr_slope_restarted"}),
                                            (180, {"psnr_slope_restarted", "drift_slope"})])
def test_drift_has_a_slope_where_it_is_known_long_enough(frames, slopes):
    summary = summarise(frames, every=60)
    text = scores.describe(summary, 60)
    assert {"psnr_slope_restarted", "drift_slope"} & summary.keys() == slopes
    restarted = f"; restarted every 60 frames: {summary['course_psnr_restarted']:.2f} dB, difference -1.00 dB"
    assert (restarted in text) == (frames > 60)
    end = ", its slope +0.00" if "drift_slope" in slopes else "difference -1.00 dB (from frame 61 on)"
    assert text.endswith(end) or frames == 60


def test_a_mean_has_what_all_sequences_have():
    short, long = summarise(59), summarise(130)
    mean = scores.mean_summary([short, long])
    assert mean.keys() == short.keys() - {"frames"}
    assert mean["psnr"] == pytest.approx((short["psnr"] + long["psnr"]) / 2)
    assert "frames 1.." not in scores.describe(mean)
    assert scores.mean_summary([long, long]) == pytest.approx(long) and "1..130" in scores.describe(long)
