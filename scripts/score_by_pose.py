"""Split scores of Tester.py by where the person is: entirely in the picture, close to the camera, or leaving it.

    python scripts/score_by_pose.py RESULT... --DR DATASET

RESULT is a --save_root of Tester.py with scores (--truth, or --split val). The groups depend on the pose image only, so
they are the same for all results of a dataset:

    leaving   the pose touches the left or right edge of the picture, or there is none
    close     it is taller than --close of the picture's height
    whole     all other frames
"""
import argparse
import csv
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder
import utils  # noqa: E402, F401  first: it says which packages are missing

# isort: split
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from dataloader import read_test_sequences, read_validation  # noqa: E402
from modules.config.parser import FlagParser, number  # noqa: E402
from modules.data.frame_cache import FrameCache  # noqa: E402
from modules.evaluation.metrics import MIN_SLOPE_FRAMES, SCORED_FRAMES, slope  # noqa: E402
from run_reader import read_bytes  # noqa: E402
from utils import BadInput, run_main  # noqa: E402

GROUPS = ("all", "whole", "close", "leaving")
BACKGROUND = 250  # pose images are white; downscaling makes thin lines paler
NUM_WORKERS = 4  # threads that decode images


def group_poses(labels: Tensor, close: float) -> dict[str, Tensor]:
    """The frames of each of GROUPS.

    Parameters
    ----------
    labels : uint8 (T, 3, H, W), white where there is no pose.
    close : fraction of the height above which a pose counts as close.

    Returns
    -------
    bool (T,) per group; each frame is in "all" and in one of the others.
    """
    drawn = (labels < BACKGROUND).any(dim=1)  # (T, H, W)
    rows, columns = drawn.any(dim=2), drawn.any(dim=1)
    height = rows.shape[1]
    place = torch.arange(height)
    lowest = torch.where(rows, place, -1).amax(dim=1)
    highest = torch.where(rows, place, height).amin(dim=1)
    leaving = columns[:, 0] | columns[:, -1] | ~drawn.flatten(1).any(dim=1)
    is_close = ~leaving & (lowest - highest + 1 > close * height)
    return {"all": torch.ones_like(leaving), "whole": ~leaving & ~is_close, "close": is_close, "leaving": leaving}


def read_result(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """The split of a result and, per sequence, PSNR and brightness error, (2, T) by name.

    Raises
    ------
    BadInput : it is not a result of Tester.py with scores.
    """
    try:
        summary = json.loads(read_bytes(folder / "summary.json"))
        split, scores = summary["split"], {}
        for name in summary["sequences"]:
            rows = list(csv.DictReader(read_bytes(folder / f"seq{name}.csv").decode().splitlines()))
            scores[name] = torch.tensor([[float(row[column]) for row in rows]
                                                  for column in ("psnr", "brightness_error")], dtype=torch.float64)
        if split not in ("test", "val") or not scores or (split == "val" and set(scores) != {"val"}):
            raise ValueError("split and sequences do not belong together")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{folder}: no valid scores of Tester.py ({error}); run it with --truth or --split "
                       "val") from error
    return split, scores


def group_scores(scores: dict[str, Tensor], labels: dict[str, Tensor], close: float) -> dict[str, Tensor]:
    """PSNR and brightness error, (2, N), of each group's frames over all sequences, without the given first frames.

    Parameters
    ----------
    scores : (2, T) by sequence. labels : uint8 (T, 3, H, W) by sequence. close : as in ``group_poses``.

    Raises
    ------
    ValueError : a sequence without labels of its length.
    """
    groups: dict[str, list[Tensor]] = {group: [] for group in GROUPS}
    for name, values in scores.items():
        if name not in labels or len(labels[name]) != values.shape[1]:
            raise ValueError(f"sequence {name} does not match")
        for group, frames in group_poses(labels[name], close).items():
            groups[group].append(values[:, 1:][:, frames[1:]])
    return {group: torch.cat(parts, dim=1) for group, parts in groups.items()}


def make_parser() -> FlagParser:
    parser = FlagParser(prog="score_by_pose.py", description="Scores by where the person is.")
    parser.add_argument("results", nargs="+", metavar="RESULT", help="a --save_root of Tester.py with scores")
    parser.add_argument("--DR", required=True, help="root folder of the dataset")
    parser.add_argument("--close", type=number(float, 0, 1), default=0.8,
                        help="fraction of the picture's height above which a pose is close")
    parser.add_argument("--frame_H", type=number(int, 4), default=32, help="height of the frames, pixels")
    parser.add_argument("--frame_W", type=number(int, 4), default=64, help="width of the frames, pixels")
    parser.add_argument("--cache", action=argparse.BooleanOptionalAction, default=True,
                        help="use the cache of decoded frames")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    root = Path(args.DR)
    reading = args.frame_H, args.frame_W, NUM_WORKERS, FrameCache(root) if args.cache else None
    labels: dict[str, dict[str, Tensor]] = {}
    width = max(len(result) for result in args.results)
    print(f"{'result':{width}}  group    frames   PSNR, dB  brightness error   slope, dB per 600 frames")
    for result in args.results:
        split, scores = read_result(Path(result))
        if split == "val":
            labels[split] = {"val": read_validation(root, scores["val"].shape[1], *reading).labels}
        elif split not in labels:
            labels[split] = {sequence.name: sequence.labels for sequence in read_test_sequences(root, *reading)}
        try:
            groups = group_scores(scores, labels[split], args.close)
        except ValueError as error:
            raise BadInput(f"{result}: its {error} --DR {root}; give the dataset it was made from") from error
        slopes = [slope(values[0, 1:1 + SCORED_FRAMES]) for values in scores.values()
                  if values.shape[1] > MIN_SLOPE_FRAMES]
        for group, values in groups.items():
            count = values.shape[1]
            psnr, brightness = values.mean(dim=1).tolist()
            means = f"{psnr:9.2f}  {brightness:+16.4f}" if count else f"{'-':>9}  {'-':>16}"
            has_slope = group == "all" and len(slopes) == len(scores)
            drift = f"   {sum(slopes) / len(slopes):+24.2f}" if has_slope else ""
            print(f"{result:{width}}  {group:7} {count:7}  {means}{drift}")


if __name__ == "__main__":
    sys.exit(run_main("score_by_pose.py", main))
