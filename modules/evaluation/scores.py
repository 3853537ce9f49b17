"""Tables and summaries of a sequence's scores."""
import torch
from torch import Tensor

from modules.evaluation.evaluate import Evaluation
from modules.evaluation.metrics import (
    MIN_SLOPE_FRAMES,
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
    """Summarise a table from ``per_frame``: means over frames 1..T-1; course_* over 1..600, and start, end and slope of
    these where there are at least MIN_SLOPE_FRAMES."""
    frames = len(table["frame"]) - 1
    means = {name: values[1:].mean().item() for name, values in table.items() if name != "frame"}
    summary = {"frames": frames, **means, "course_psnr": course_score(table["psnr"]),
               "course_psnr_repeat_first": course_score(table["psnr_repeat_first"])}
    if frames >= MIN_SLOPE_FRAMES:
        summary |= start_end_slope(table["psnr"], table["brightness_error"])
    return summary


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

    A slope over fewer than MIN_SLOPE_FRAMES is left out.
    """
    both = torch.stack([psnr, restarted])[:, 1:1 + SCORED_FRAMES].double()
    difference = both[0, every:] - both[1, every:]
    summary = {"course_psnr_restarted": both[1].mean().item()}
    if both.shape[1] >= MIN_SLOPE_FRAMES:
        summary["psnr_slope_restarted"] = slope(both[1])
    if len(difference):
        summary["drift"] = difference.mean().item()
    if len(difference) >= MIN_SLOPE_FRAMES:
        summary["drift_slope"] = slope(difference)
    return summary


def mean_summary(summaries: list[dict[str, float]]) -> dict[str, float]:
    """The mean over sequences of each number that all of them have; "frames" only where it is the same for all."""
    first, *others = summaries
    return {name: value if name == "frames" else sum(summary[name] for summary in summaries) / len(summaries)
            for name, value in first.items()
            if all(name in other and (name != "frames" or other[name] == value) for other in others)}


def describe(summary: dict[str, float], restart_every: int = 0) -> str:
    """A summary as a line to read. ``restart_every``: as in ``compare_with_restarted``; 0: nothing was compared."""
    scored = f"frames 1..{min(summary['frames'], SCORED_FRAMES)}" if "frames" in summary else "scored frames"
    text = (f"PSNR {summary['psnr']:.2f} dB (repeat first frame {summary['psnr_repeat_first']:.2f}), {scored} "
            f"{summary['course_psnr']:.2f} dB, SSIM {summary['ssim']:.4f}, brightness error "
            f"{summary['brightness_error']:+.4f}")
    if "psnr_start" in summary:
        text += (f"; start {summary['psnr_start']:.2f} dB, end {summary['psnr_end']:.2f} dB, slope "
                 f"{summary['psnr_slope']:+.2f} dB per 600 frames")
    if "drift" in summary:
        text += (f"; restarted every {restart_every} frames: {summary['course_psnr_restarted']:.2f} dB, difference "
                 f"{summary['drift']:+.2f} dB (from frame {restart_every + 1} on)")
    if "drift_slope" in summary:
        text += f", its slope {summary['drift_slope']:+.2f}"
    return text
