"""Hold out stretches of a recording, to choose between models on poses that they have not been trained on.

    python scripts/hold_out.py DATASET HELD 3464-3859 1570-1709
    python Trainer.py --DR HELD --save_root RUN
    python Tester.py --DR HELD --truth HELD/truth --any_size --ckpt_path RUN/best.ckpt --save_root RESULT

A validation sequence in which the person does little does not tell models apart, and neighbouring frames of a recording
are too alike to be held out one by one. HELD is a copy of DATASET whose training recording lacks these stretches, given
by the numbers of their first and last frames. They are its test sequences 0, 1, ..., with their real frames in
HELD/truth.
"""
import re
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder
import utils  # noqa: E402, F401  first: it says which packages are missing

# isort: split
from dataloader import list_frames  # noqa: E402
from modules.config.parser import FlagParser  # noqa: E402
from utils import BadInput, progress_bar, run_main  # noqa: E402


def read_stretch(text: str) -> range:
    """FIRST-LAST as the range of its numbers. BadInput: it is none of at least two frames."""
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise BadInput(f"{text!r} is no stretch; write FIRST-LAST, the numbers of its first and last frames, such as "
                       "3464-3859")
    return range(int(match[1]), int(match[2]) + 1)


def plan(root: Path, stretches: list[range]) -> list[tuple[Path, str]]:
    """The files to copy, and their places in the new dataset.

    Raises
    ------
    BadInput : a frame or pose is missing, stretches overlap, or none is left for training.
    """
    copies: list[tuple[Path, str]] = []
    for kind in ("img", "label"):
        found = list_frames(root / "train" / f"train_{kind}", "DATASET")
        for index, stretch in enumerate(stretches):
            folder = f"truth/{index}" if kind == "img" else f"test/test_label/{index}"
            for number in stretch:
                if number not in found:
                    raise BadInput(f"{stretch[0]}-{stretch[-1]}: {root / 'train' / f'train_{kind}'} has no frame "
                                   f"{number}, or another stretch holds it; choose stretches without cuts or overlaps")
                path = found.pop(number)
                copies.append((path, f"{folder}/{number}.png"))
                if kind == "img" and number == stretch[0]:
                    copies.append((path, f"test/test_img/{index}/{number}.png"))
        if not found:
            raise BadInput("nothing is left for training; hold out less")
        copies += [(path, f"train/train_{kind}/{number}.png") for number, path in found.items()]
        copies += [(path, f"val/val_{kind}/{number}.png")
                   for number, path in list_frames(root / "val" / f"val_{kind}", "DATASET").items()]
    return copies


def main(argv: list[str] | None = None) -> None:
    parser = FlagParser(prog="hold_out.py", description="Hold out stretches of a recording as test sequences.")
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="root folder of a dataset")
    parser.add_argument("destination", type=Path, metavar="HELD", help="folder to make; new or empty")
    parser.add_argument("stretches", nargs="+", metavar="FIRST-LAST", help="numbers of the first and last frame")
    args = parser.parse_args(argv)
    folder = args.destination.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BadInput(f"{args.destination} exists and is not empty; choose a new folder")
    copies = plan(args.dataset, [read_stretch(text) for text in args.stretches])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hold_out_", dir=folder.parent) as workspace:
        made = Path(workspace) / folder.name
        for source, place in progress_bar(copies, "copying", unit="file"):
            (made / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, made / place)
        if folder.exists():
            folder.rmdir()
        made.rename(folder)  # all or nothing
    print(f"{args.destination}: {sum('/train_img/' in place for _, place in copies)} frames to train on, "
          f"{', '.join(args.stretches)} held out as test sequences")


if __name__ == "__main__":
    sys.exit(run_main("hold_out.py", main))
