"""Tables and summaries of a sequence's scores."""
import torch
from torch import Tensor

from modules.evaluation.evaluate import Evaluation
from modules.evaluation.metrics import (
    SCORED_FRAMES,
    brightness_error,
    course_score,
    repeat_first,
    slope,
    ssim,
    start_end_slope,
)


def per_frame(evaluation: Evaluation) -> dict[str, Tensor]:
    """All scores of each frame, (T,) each: frame, psnr (dB), ssim, brightness_error, and the same of repeating the
    first frame."""
    video, truth = evaluation.video, evaluation.truth
    table = {"frame": torch.arange(len(video))}
    for suffix, frames, quality in (("", video, evaluation.psnr),
                                    ("_repeat_first", repeat_first(truth), evaluation.psnr_repeat_first)):
        table |= {f"psnr{suffix}": quality, f"ssim{suffix}": ssim(frames, truth, 255),
                  f"brightness_error{suffix}": brightness_error(frames, truth)}
    return table


def summarise(table: dict[str, Tensor]) -> dict[str, float]:
    """Summarise a table from ``per_frame``: means over frames 1..T-1; course_*, start, end and slope over 1..600."""
    means = {name: values[1:].mean().item() for name, values in table.items() if name != "frame"}
    return {"frames": len(table["frame"]) - 1, **means, "course_psnr": course_score(table["psnr"]),
            "course_psnr_repeat_first": course_score(table["psnr_repeat_first"]),
            **start_end_slope(table["psnr"], table["brightness_error"])}


def compare_with_restarted(psnr: Tensor, restarted: Tensor, every: int) -> dict[str, float]:
    """Compare a rollout with one that is restarted from the real frame ``every`` frames.

    Parameters
    ----------
    psnr, restarted : (T,), dB of each frame, frame 0 included.

    Returns
    -------
    course_psnr_restarted, psnr_slope_restarted : of the restarted one, over frames 1..600, dB and dB per 600 frames.
    drift, drift_slope : of the rollout minus the restarted one, over frames every + 1..600 (before, both are the same);
        left out where there is no such frame.
    """
    both = torch.stack([psnr, restarted])[:, 1:1 + SCORED_FRAMES].double()
    difference = both[0, every:] - both[1, every:]
    summary = {"course_psnr_restarted": both[1].mean().item(), "psnr_slope_restarted": slope(both[1])}
    if len(difference):
        summary |= {"drift": difference.mean().item(), "drift_slope": slope(difference)}
    return summary


def mean_summary(summaries: list[dict[str, float]]) -> dict[str, float]:
    """The mean over sequences of each number that all of them have."""
    return {name: sum(summary[name] for summary in summaries) / len(summaries) for name in summaries[0]
            if all(name in summary for summary in summaries)}


def describe(summary: dict[str, float]) -> str:
    """A summary as a line to read."""
    text = (f"PSNR {summary['psnr']:.2f} dB (repeat first frame {summary['psnr_repeat_first']:.2f}), frames 1..600 "
            f"{summary['course_psnr']:.2f} dB, SSIM {summary['ssim']:.4f}, brightness error "
            f"{summary['brightness_error']:+.4f}; start {summary['psnr_start']:.2f} dB, end {summary['psnr_end']:.2f} "
            f"dB, slope {summary['psnr_slope']:+.2f} dB per 600 frames")
    if "drift" in summary:
        text += (f"; restarted from real frames {summary['course_psnr_restarted']:.2f} dB, difference "
                 f"{summary['drift']:+.2f} dB, its slope {summary['drift_slope']:+.2f}")
    return text
