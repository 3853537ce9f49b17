"""Score a submission.csv against the real frames, as the course does.

    python scripts/score_submission.py submission.csv truth.csv
    python scripts/score_submission.py submission.csv TRUTH        # TRUTH/K/N.png: sequence K, frame N
    python scripts/score_submission.py submission.csv TRUTH --json score.json

A submission has the header id,0,1,...,6143 and one row per frame: its id, counted from 0 across all sequences, and the
flattened frame (3, 32, 64) as whole numbers 0..255. The score of a sequence is the mean of the PSNR (range 255) of its
frames 1..600; frame 0 is given. The first three sequences make the public score, the others the private score. The
score of repeating the first frame, which any model has to beat, is printed next to each.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder
import utils  # noqa: E402, F401  first: it says which packages are missing

# isort: split
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402
from torch import Tensor  # noqa: E402

from dataloader import list_frames, natural_order, read_image  # noqa: E402
from modules.config.parser import FlagParser, number  # noqa: E402
from modules.evaluation.metrics import SCORED_FRAMES, course_score, psnr, repeat_first  # noqa: E402
from utils import BadInput, run_main, write_json  # noqa: E402

PUBLIC_SEQUENCES = 3
SHORTEST_ROW, LONGEST_CELL = 1 << 16, 64  # bytes; they bound how much of a line is read, whatever the file is


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = FlagParser(prog="score_submission.py", description="Score a submission as the course does.")
    add = parser.add_argument
    add("submission", type=Path, help="CSV file to score")
    add("truth", type=Path, help="the real frames: a CSV file of the same form or a folder with K/N.png")
    add("--length", type=number(int, 2), default=630, help="frames of a sequence, including frame 0")
    add("--frame_H", type=number(int, 1), default=32, help="height of a frame in pixels")
    add("--frame_W", type=number(int, 1), default=64, help="width of a frame in pixels")
    add("--json", type=Path, metavar="FILE", help="also write the scores to FILE")
    return parser.parse_args(argv)


def read_submission(path: str | Path, height: int, width: int) -> Tensor:
    """The frames of a submission.

    Parameters
    ----------
    path : CSV file with the header id,0,1,...,3*height*width-1 and rows of whole numbers; ids count from 0.

    Returns
    -------
    Tensor (N, 3, height, width)
        uint8, N at least 1.

    Raises
    ------
    BadInput : the file is missing or not of this form; the message names the line and the column.
    """
    path, columns = Path(path), 3 * height * width
    limit = max(SHORTEST_ROW, LONGEST_CELL * (columns + 1))
    frames = []
    try:
        with open(path, "rb") as file:
            _check_header(path, file.readline(limit), height, width)
            for line in iter(lambda: file.readline(limit), b""):
                if not line.strip() and not file.read(1 << 20).strip():
                    break  # empty lines at the end are harmless
                frames.append(_read_row(path, line, len(frames), columns))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the name") from error
    if not frames:
        raise BadInput(f"{path}: no rows below the header; write one row per frame")
    return torch.from_numpy(np.stack(frames)).view(-1, 3, height, width)


def _check_header(path: Path, line: bytes, height: int, width: int) -> None:
    if not line:
        raise BadInput(f"{path}: the file is empty; write the submission again")
    try:
        names = line.decode("utf-8-sig").rstrip("\r\n").split(",")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: byte {error.start + 1} is not UTF-8; give a CSV file in UTF-8") from error
    columns = 3 * height * width
    if names[0] == "id" and len(names) - 1 != columns:
        raise BadInput(f"{path}: the header has {len(names) - 1} pixel columns, but --frame_H {height} --frame_W "
                       f"{width} require {columns}; give the frame size of the file")
    for column, name in enumerate(names):
        wanted = str(column - 1) if column else "id"
        if name != wanted:
            raise BadInput(f'{path}: column {column + 1} of line 1 is {_quote(name)} instead of "{wanted}"; the header '
                           f"of a submission is id,0,1,...,{columns - 1}")


def _read_row(path: Path, line: bytes, index: int, columns: int) -> np.ndarray:
    """The pixels of row ``index`` as uint8 (columns,). BadInput: the row is invalid; names line and column."""
    where = f"{path}: line {index + 2}"
    complete = line.endswith(b"\n")
    name, _, rest = line.rstrip(b"\r\n").partition(b",")
    count = rest.count(b",") + 1 if rest else 0
    if count != columns:
        if not complete and count < columns:
            raise BadInput(f"{where} is truncated after {count} of {columns} pixels; write the file again")
        raise BadInput(f"{where} has {count} pixels instead of {columns}; write the file again")
    if name != b"%d" % index:
        raise BadInput(f"{where} has the id {_quote(name)} instead of {index}; ids are 0, 1, 2, ... in order")
    pixels = _parse_pixels(rest, columns)
    if pixels is not None:
        return pixels
    for column, cell in enumerate(rest.split(b",")):
        text = cell.strip()
        if not (text.isdigit() and len(text) <= 3 and int(text) <= 255):
            raise BadInput(f"{where}, column {column} holds {_quote(cell)}; write a whole number 0..255")
    return np.array([int(cell) for cell in rest.split(b",")], np.uint8)  # numbers surrounded by blanks


def _parse_pixels(text: bytes, columns: int) -> np.ndarray | None:
    """Comma-separated numbers of one to three digits as uint8; None if any cell is something else.

    Vectorised over the cells, of which a submission has 19 million.
    """
    characters = np.frombuffer(text, np.uint8)
    ends = np.append(np.flatnonzero(characters == ord(",")), len(characters))
    digits = np.diff(ends, prepend=-1) - 1  # number of digits of each cell
    # Three places of padding, so that looking back from a short first cell stays in bounds.
    values = np.concatenate([np.zeros(3, np.int16), characters.astype(np.int16) - ord("0")])
    if digits.min() < 1 or digits.max() > 3:
        return None
    ones, tens, hundreds = values[ends + 2], values[ends + 1], values[ends]
    pixels = ones + 10 * tens * (digits > 1) + 100 * hundreds * (digits > 2)
    is_digit = (characters >= ord("0")) & (characters <= ord("9"))
    if is_digit.sum() != len(characters) - (columns - 1) or pixels.max() > 255:
        return None
    return pixels.astype(np.uint8)


def _quote(text: str | bytes) -> str:
    """A cell's text, short and printable."""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    shown = "".join(char if char.isprintable() else "?" for char in text)
    return f'"{shown[:20]}..."' if len(shown) > 20 else f'"{shown}"'


def split_sequences(path: Path, frames: Tensor, length: int) -> list[Tensor]:
    """(N, 3, H, W) -> sequences of (length, 3, H, W). BadInput: N is not a multiple of ``length``."""
    missing = -len(frames) % length
    if missing:
        raise BadInput(f"{path}: {len(frames)} rows are not a multiple of --length {length}, the last sequence lacks "
                       f"{missing}; add the missing rows or give another --length")
    return list(frames.split(length))


def read_truth(path: Path, length: int, height: int, width: int) -> list[Tensor]:
    """The real sequences, uint8 (length, 3, H, W) each, from a CSV file or a folder K/N.png in numeric order.

    Raises
    ------
    BadInput : it is missing, a sequence has another length, or an image has another size or cannot be read.
    OSError : a folder cannot be read.
    """
    if not path.is_dir():
        return split_sequences(path, read_submission(path, height, width), length)
    names = [child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")]
    if not names:
        raise BadInput(f"{path}: holds no folder of a sequence; the frames belong in {path}/0/0.png, ...")
    return [_read_folder(path / name, length, height, width) for name in sorted(names, key=natural_order)]


def _read_folder(folder: Path, length: int, height: int, width: int) -> Tensor:
    named = list_frames(folder, "TRUTH")
    if len(named) != length:
        raise BadInput(f"{folder}: holds {len(named)} frames, but --length is {length}; add or remove frames, or give "
                       "another --length")
    first = min(named)
    missing = next((frame for frame in range(first, first + length) if frame not in named), None)
    if missing is not None:
        raise BadInput(f"{folder}: frame {missing} is missing; add {missing}.png")
    paths = list(named.values())
    frames = np.empty((length, height, width, 3), np.uint8)
    for index, path in enumerate(paths):
        frames[index] = read_image(path, height, width)
        # read_image resizes other sizes, which would falsify the score.
        with Image.open(path) as image:
            real_width, real_height = ImageOps.exif_transpose(image).size
        if (real_width, real_height) != (width, height):
            raise BadInput(f"{path}: the image is {real_height}x{real_width}, but --frame_H {height} --frame_W {width} "
                           "are given; give frames of the submission's size")
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()


def score(submission: list[Tensor], truth: list[Tensor]) -> dict:
    """Scores of uint8 sequences (T, 3, H, W) in dB: per sequence, and the public, private and overall mean.

    "private" is None if there are no private sequences. "repeat_first" holds the scores of repeating the first frame.
    """
    rows = []
    for index, (frames, real) in enumerate(zip(submission, truth, strict=True)):
        rows.append({"sequence": index, "split": "public" if index < PUBLIC_SEQUENCES else "private",
                     "frames_scored": min(len(real) - 1, SCORED_FRAMES),
                     "psnr": course_score(psnr(frames, real, 255)),
                     "repeat_first": course_score(psnr(repeat_first(real), real, 255))})
    result = {"sequences": rows}
    for key in ("psnr", "repeat_first"):
        parts = {"public": [row[key] for row in rows if row["split"] == "public"],
                 "private": [row[key] for row in rows if row["split"] == "private"],
                 "overall": [row[key] for row in rows]}
        result[key] = {name: sum(values) / len(values) if values else None for name, values in parts.items()}
    return result


def print_table(result: dict) -> None:
    print(f"{'sequence':<10}{'frames':>8}{'PSNR (dB)':>12}{'repeat first frame (dB)':>26}")
    for row in result["sequences"]:
        print(f"{row['sequence']:<10}{row['frames_scored']:>8}{row['psnr']:>12.4f}{row['repeat_first']:>26.4f}")
    for name, value in result["psnr"].items():
        if value is not None:
            print(f"{name:<18}{value:>12.4f}{result['repeat_first'][name]:>26.4f}")


def check_output(output: Path, submission: Path, truth: Path) -> None:
    """BadInput: ``output`` cannot be written, or it is one of the files to be read, also under another name."""
    if output.is_dir() or not output.parent.is_dir():
        raise BadInput(f"--json {output} cannot be written; give a file in an existing folder")
    inputs = [submission, truth, *truth.glob("*/*")]
    if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
        raise BadInput(f"--json {output} is a file of the submission or the truth; give another file")


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(argv)
    if args.json:
        check_output(args.json, args.submission, args.truth)
    size = (args.frame_H, args.frame_W)
    submission = split_sequences(args.submission, read_submission(args.submission, *size), args.length)
    try:
        truth = read_truth(args.truth, args.length, *size)
    except OSError as error:
        raise BadInput(f"{args.truth}: cannot be read ({error}); check its permissions") from error
    if len(submission) != len(truth):
        raise BadInput(f"{args.submission} has {len(submission)} sequences, but {args.truth} has {len(truth)}; give "
                       "the truth of the same sequences")
    result = score(submission, truth)
    print_table(result)
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    sys.exit(run_main("score_submission.py", main))
