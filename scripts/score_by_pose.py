"""Scores of Tester.py's results apart for frames where the person is wholly in the picture, close, or leaving it.

    python scripts/score_by_pose.py RESULT... --DR DATASET

RESULT is a folder that Tester.py has written with a truth (--truth, or --split val). Frames are told apart by their
pose image alone, so that all results of a dataset have the same groups:

    leaving   the pose touches the left or the right edge of the picture, or there is none
    close     it is higher than --close of the picture
    whole     all others
"""
import argparse
import csv
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloader import read_test_sequences, read_validation  # noqa: E402
from modules.config.parser import FlagParser, number  # noqa: E402
from modules.data.frame_cache import FrameCache  # noqa: E402
from modules.evaluation.metrics import drift  # noqa: E402
from utils import BadInput, run_main  # noqa: E402

GROUPS = ("all", "whole", "close", "leaving")
BACKGROUND = 250  # pose images are white; their thin lines are paler where they were made smaller


def group_poses(labels: Tensor, close: float) -> dict[str, Tensor]:
    """Which frames belong to which of GROUPS.

    Parameters
    ----------
    labels : uint8 (T, 3, H, W), white where there is no pose.
    close : share of the height above which a pose counts as close.

    Returns
    -------
    bool (T,) for each group; each frame is in "all" and in one of the others.
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


def read_result(folder: Path) -> tuple[str, dict[str, dict[str, Tensor]]]:
    """The split of a result and, for each of its sequences, PSNR and brightness error (T,) by name.

    Raises
    ------
    BadInput : it is no result of Tester.py with scores.
    """
    try:
        split = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["split"]
        scores = {}
        for path in sorted(folder.glob("seq*.csv")):
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            scores[path.stem[3:]] = {column: torch.tensor([float(row[column]) for row in rows], dtype=torch.float64)
                                     for column in ("psnr", "brightness_error")}
        if split not in ("test", "val") or not scores or (split == "val" and set(scores) != {"val"}):
            raise ValueError("summary.json and seq*.csv do not belong together")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder}: there are no scores of Tester.py, or damaged ones ({error}); run it with --truth or "
                       "--split val") from error
    return split, scores


def make_parser() -> FlagParser:
    parser = FlagParser(prog="score_by_pose.py", description="Scores by where the person is.")
    parser.add_argument("results", nargs="+", metavar="RESULT", help="folder that Tester.py has written, with scores")
    parser.add_argument("--DR", required=True, help="root folder of the dataset")
    parser.add_argument("--close", type=number(float, 0, 1), default=0.8,
                        help="share of the picture's height above which a pose is close")
    parser.add_argument("--frame_H", type=number(int, 4), default=32, help="height of the frames, pixels")
    parser.add_argument("--frame_W", type=number(int, 4), default=64, help="width of the frames, pixels")
    parser.add_argument("--cache", action=argparse.BooleanOptionalAction, default=True,
                        help="use the decoded frames that the other programs keep")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    root = Path(args.DR)
    how = args.frame_H, args.frame_W, 4, FrameCache(root) if args.cache else None
    labels: dict[str, dict[str, Tensor]] = {}
    width = max(len(result) for result in args.results)
    print(f"{'result':{width}}  group    frames   PSNR, dB  brightness error   slope, dB per 600 frames")
    for result in args.results:
        split, scores = read_result(Path(result))
        if split == "val":
            labels[split] = {"val": read_validation(root, len(scores["val"]["psnr"]), *how).labels}
        elif split not in labels:
            labels[split] = {sequence.name: sequence.labels for sequence in read_test_sequences(root, *how)}
        groups: dict[str, list[Tensor]] = {group: [] for group in GROUPS}
        slopes = []
        for name, score in scores.items():
            poses = labels[split].get(name)
            if poses is None or len(poses) != len(score["psnr"]):
                raise BadInput(f"{result}: its sequence {name} is not that of --DR {root}; give the dataset that it "
                               "was made from")
            both = torch.stack([score["psnr"], score["brightness_error"]])
            for group, frames in group_poses(poses, args.close).items():
                groups[group].append(both[:, 1:][:, frames[1:]])  # the given frame is in no score
            slopes.append(drift(score["psnr"], score["brightness_error"])["psnr_slope"])
        for group in GROUPS:
            values = torch.cat(groups[group], dim=1)
            count = values.shape[1]
            quality, brightness = values.mean(dim=1).tolist()
            measured = f"{quality:9.2f}  {brightness:+16.4f}" if count else f"{'-':>9}  {'-':>16}"
            slope = f"   {sum(slopes) / len(slopes):+24.2f}" if group == "all" else ""
            print(f"{result:{width}}  {group:7} {count:7}  {measured}{slope}")


if __name__ == "__main__":
    sys.exit(run_main("score_by_pose.py", main))
