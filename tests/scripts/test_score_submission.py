"""The score of a submission: equal to a slow computation, and a reader that accepts nothing else.

    python -m pytest tests/scripts/test_score_submission.py
"""
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import score_submission
from utils import run_main

H, W, LENGTH = 2, 3, 4
FLAGS = ["--length", str(LENGTH), "--frame_H", str(H), "--frame_W", str(W)]


def make_frames(sequences: int, seed: int = 0, height: int = H, width: int = W, length: int = LENGTH):
    """Pixels (sequences, length, 3, height, width)."""
    return np.random.default_rng(seed).integers(0, 256, (sequences, length, 3, height, width))


def write_csv(path: Path, frames: np.ndarray) -> Path:
    rows = frames.reshape(-1, np.prod(frames.shape[-3:]))
    lines = [",".join(["id", *map(str, range(rows.shape[1]))])]
    lines += [",".join(map(str, [index, *row.tolist()])) for index, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_folder(root: Path, frames: np.ndarray, prefix: str = "") -> Path:
    for k, sequence in enumerate(frames):
        (root / str(k)).mkdir(parents=True)
        for n, frame in enumerate(sequence):
            picture = Image.fromarray(frame.transpose(1, 2, 0).astype(np.uint8))
            picture.save(root / str(k) / f"{prefix}{n}.png")
    return root


def slow_score(prediction: np.ndarray, truth: np.ndarray) -> float:
    """One sequence (T, 3, H, W), pixel by pixel, as the course defines it."""
    values = []
    for t in range(1, min(len(truth), 601)):
        total = 0
        for real, guess in zip(truth[t].flatten().tolist(), prediction[t].flatten().tolist(), strict=True):
            total += (real - guess) ** 2
        values.append(10 * math.log10(255**2 / (total / truth[t].size)) if total else 100.0)
    return sum(values) / len(values)


@pytest.fixture
def files(tmp_path):
    """A submission and a truth of two sequences."""
    submission, truth = make_frames(2), make_frames(2, seed=1)
    return write_csv(tmp_path / "submission.csv", submission), write_csv(tmp_path / "truth.csv", truth)


def scores(tmp_path: Path, *arguments) -> dict:
    out = tmp_path / "score.json"
    score_submission.main([*map(str, arguments), *FLAGS, "--json", str(out)])
    return json.loads(out.read_text())


def refusal(capsys, *arguments) -> str:
    """The message of a call that is refused: one line on stderr."""
    assert run_main("score_submission.py", lambda: score_submission.main([*map(str, arguments)])) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("score_submission.py: error: ")
    return captured.err


# Scores

def test_golden_score_by_hand(tmp_path, capsys):
    (tmp_path / "truth.csv").write_text("id,0,1,2\n0,0,0,0\n1,10,10,10\n2,20,20,20\n")
    (tmp_path / "submission.csv").write_text("id,0,1,2\n0,255,255,255\n1,10,10,10\n2,20,21,20\n")
    arguments = [str(tmp_path / "submission.csv"), str(tmp_path / "truth.csv")]
    flags = ["--length", "3", "--frame_H", "1", "--frame_W", "1"]
    score_submission.main([*arguments, *flags])
    # Frame 0 is not scored, frame 1 is exact: 100 dB; frame 2: 10 log10(255^2 / (1/3)) = 52.9020 dB.
    # Repeating the first frame has errors of 10 and 20: 28.1308 and 22.1102 dB.
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["0", "2", "76.4510", "25.1205"], ["public", "76.4510", "25.1205"],
                    ["overall", "76.4510", "25.1205"]]


def test_score_equals_a_slow_double_loop(tmp_path):
    prediction, truth = make_frames(5), make_frames(5, 1)
    truth[1, 2] = prediction[1, 2]
    result = scores(tmp_path, write_csv(tmp_path / "p.csv", prediction), write_csv(tmp_path / "t.csv", truth))
    expected = [slow_score(p, t) for p, t in zip(prediction, truth, strict=True)]
    repeated = [slow_score(np.repeat(t[:1], LENGTH, axis=0), t) for t in truth]
    assert [row["psnr"] for row in result["sequences"]] == pytest.approx(expected, abs=1e-4)
    assert [row["repeat_first"] for row in result["sequences"]] == pytest.approx(repeated, abs=1e-4)
    assert [row["split"] for row in result["sequences"]] == ["public"] * 3 + ["private"] * 2
    for key, values in (("psnr", expected), ("repeat_first", repeated)):
        means = {"public": np.mean(values[:3]), "private": np.mean(values[3:]), "overall": np.mean(values)}
        assert result[key] == pytest.approx(means, abs=1e-4)


def test_frames_after_600_are_not_scored(tmp_path):
    truth = make_frames(1, 1, height=1, width=1, length=630)
    prediction = make_frames(1, 2, height=1, width=1, length=630)
    files = [str(write_csv(tmp_path / "p.csv", prediction)), str(write_csv(tmp_path / "t.csv", truth))]
    out = tmp_path / "score.json"
    score_submission.main([*files, "--frame_H", "1", "--frame_W", "1", "--json", str(out)])
    row = json.loads(out.read_text())["sequences"][0]
    assert row["frames_scored"] == 600
    assert row["psnr"] == pytest.approx(slow_score(prediction[0], truth[0]), abs=1e-4)


@pytest.mark.parametrize("prefix", ["", "frame"])
def test_a_folder_of_images_gives_the_same_score(prefix, tmp_path):
    truth = make_frames(11, 1)  # more than ten, so that 10 must come after 9
    submission = write_csv(tmp_path / "submission.csv", make_frames(11))
    from_csv = scores(tmp_path, submission, write_csv(tmp_path / "truth.csv", truth))
    from_folder = scores(tmp_path, submission, write_folder(tmp_path / "truth", truth, prefix))
    assert from_folder == from_csv


def test_frames_of_a_folder_are_in_numeric_order(tmp_path):
    frames = make_frames(1, length=12)
    truth = write_folder(tmp_path / "truth", frames)
    assert np.array_equal(score_submission.read_truth(truth, 12, H, W)[0].numpy(), frames[0])


# The reader

def test_reader_returns_every_pixel_value(tmp_path):
    frames = (np.arange(2 * 3 * 16 * 16) % 256).reshape(2, 3, 16, 16)
    read = score_submission.read_submission(write_csv(tmp_path / "all.csv", frames), 16, 16)
    assert read.shape == (2, 3, 16, 16) and str(read.dtype) == "torch.uint8"
    assert np.array_equal(read.numpy(), frames)


HARMLESS = {
    "Windows line ends": lambda text: text.replace("\n", "\r\n"),
    "byte order mark": lambda text: "\ufeff" + text,
    "no last line end": lambda text: text.rstrip("\n"),
    "empty lines at the end": lambda text: text + "\n\n",
    "blanks": lambda text: text[:20] + text[20:].replace(",", ", "),
    "zeros in front": lambda text: text.replace(",7,", ",007,"),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_reader_accepts_harmless_differences(change, tmp_path):
    text = "id,0,1,2\n" + "0,1,20,255\n1,0,7,99\n"
    path = tmp_path / "submission.csv"
    assert change(text) != text
    path.write_bytes(change(text).encode())
    assert score_submission.read_submission(path, 1, 1).flatten().tolist() == [1, 20, 255, 0, 7, 99]


GOOD = "id,0,1,2\n0,1,2,3\n1,4,5,6\n"
REFUSED = {
    "empty": (b"", "empty"),
    "only a header": (b"id,0,1,2\n", "no rows"),
    "no header": (b"0,1,2,3\n1,4,5,6\n", 'column 1 of line 1 is "0"'),
    "wrong header": (b"id,0,2,1\n0,1,2,3\n", 'column 3 of line 1 is "2"'),
    "semicolons": (b"id;0;1;2\n0;1;2;3\n", 'column 1 of line 1 is "id;0;1;2"'),
    "another frame size": (b"id,0,1,2,3\n0,1,2,3,4\n", "4 pixel columns"),
    "missing pixel": (b"id,0,1,2\n0,1,2\n1,4,5,6\n", "line 2 has 2 pixels"),
    "excess pixel": (b"id,0,1,2\n0,1,2,3\n1,4,5,6,7\n", "line 3 has 4 pixels"),
    "truncated": (b"id,0,1,2\n0,1,2,3\n1,4,5", "line 3 is truncated after 2 of 3 pixels"),
    "truncated in the id": (b"id,0,1,2\n0,1,2,3\n1", "line 3 is truncated after 0 of 3 pixels"),
    "fraction": (b"id,0,1,2\n0,1,2.5,3\n", 'line 2, column 1 holds "2.5"'),
    "NaN": (b"id,0,1,2\n0,1,2,3\n1,4,5,nan\n", 'line 3, column 2 holds "nan"'),
    "no value": (b"id,0,1,2\n0,,2,3\n", 'line 2, column 0 holds ""'),
    "negative": (b"id,0,1,2\n0,-1,2,3\n", 'line 2, column 0 holds "-1"'),
    "too bright": (b"id,0,1,2\n0,1,256,3\n", 'line 2, column 1 holds "256"'),
    "huge": (b"id,0,1,2\n0,1,2," + b"9" * 30 + b"\n", 'column 2 holds "99999999999999999999..."'),
    "wrong id": (b"id,0,1,2\n0,1,2,3\n2,4,5,6\n", 'line 3 has the id "2"'),
    "shuffled": (b"id,0,1,2\n1,4,5,6\n0,1,2,3\n", 'line 2 has the id "1"'),
    "ids from 1": (b"id,0,1,2\n1,1,2,3\n2,4,5,6\n", 'line 2 has the id "1"'),
    "text as id": (b"id,0,1,2\n0,1,2,3\none,4,5,6\n", 'line 3 has the id "one"'),
    "empty line": (b"id,0,1,2\n0,1,2,3\n\n1,4,5,6\n", "line 3 has 0 pixels"),
    "missing row": (b"id,0,1,2\n0,1,2,3\n1,4,5,6\n2,7,8,9\n", "lacks 1"),
    "binary junk": (bytes(range(255, 0, -1)) * 40, "UTF-8"),
    "binary junk in a row": (b"id,0,1,2\n0,1,\xff\x00,3\n", "line 2, column 1 holds"),
    "UTF-16": (GOOD.encode("utf-16"), "UTF-8"),
    "zeros": (b"\0" * 100_000, "column 1 of line 1"),
}


@pytest.mark.parametrize("content, message", REFUSED.values(), ids=REFUSED)
def test_invalid_files_are_refused(content, message, tmp_path, capsys):
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text(GOOD)
    bad.write_bytes(content)
    flags = ["--length", "2", "--frame_H", "1", "--frame_W", "1"]
    for files in ((bad, good), (good, bad)):
        error = refusal(capsys, *files, *flags)
        assert message in error and str(bad) in error


# Other invalid input

def test_missing_files_are_refused(files, tmp_path, capsys):
    for arguments in ((tmp_path / "no.csv", files[1]), (files[0], tmp_path / "no.csv")):
        assert "no.csv" in refusal(capsys, *arguments, *FLAGS)
    assert "Is a directory" in refusal(capsys, tmp_path, files[1], *FLAGS)


def test_different_numbers_of_sequences_are_refused(files, tmp_path, capsys):
    longer = write_csv(tmp_path / "longer.csv", make_frames(3))
    folder = write_folder(tmp_path / "truth", make_frames(1))
    assert "submission.csv has 2 sequences" in refusal(capsys, files[0], longer, *FLAGS)
    assert "longer.csv has 3 sequences" in refusal(capsys, longer, files[1], *FLAGS)
    assert "submission.csv has 2 sequences" in refusal(capsys, files[0], folder, *FLAGS)


def test_a_length_that_does_not_divide_the_rows_is_refused(files, capsys):
    error = refusal(capsys, *files, "--length", 3, *FLAGS[2:])
    assert "submission.csv: 8 rows" in error and "--length 3" in error


@pytest.mark.parametrize("flags, word", [
    (["--length", "1"], "--length"), (["--length", "x"], "--length"), (["--frame_H", "0"], "--frame_H"),
    (["--frame_W", "-3"], "--frame_W"), (["--nonsense"], "--nonsense"),
])
def test_invalid_flags_are_refused(flags, word, files, capsys):
    assert word in refusal(capsys, *files, *flags)


def test_missing_arguments_are_refused(capsys):
    assert "submission, truth" in refusal(capsys)


def test_an_invalid_json_file_is_refused(files, tmp_path, capsys):
    for out in (tmp_path / "no" / "score.json", tmp_path, Path(".")):
        assert f"--json {out}" in refusal(capsys, *files, *FLAGS, "--json", out)


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
@pytest.mark.parametrize("target", ["submission.csv", "truth.csv", "truth/1/2.png"])
def test_scores_are_not_written_over_the_frames(target, link, files, tmp_path, capsys):
    truth = write_folder(tmp_path / "truth", make_frames(2, 1)) if "/" in target else files[1]
    before, out = (tmp_path / target).read_bytes(), tmp_path / target
    if link:
        out = tmp_path / "score.json"
        getattr(out, link)(tmp_path / target)
    assert f"--json {out}" in refusal(capsys, files[0], truth, *FLAGS, "--json", out)
    assert (tmp_path / target).read_bytes() == before


def copy_frame(folder: Path) -> None:
    (folder / "4.png").write_bytes((folder / "3.png").read_bytes())


def renumber_frame(folder: Path) -> None:
    (folder / "3.png").rename(folder / "9.png")


def truncate_frame(folder: Path) -> None:
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:50])


DAMAGES = {
    "frame missing": (lambda folder: (folder / "3.png").unlink(), "3 frames"),
    "excess frame": (copy_frame, "5 frames"),
    "a gap": (renumber_frame, "frame 3 is missing"),
    "not an image": (lambda folder: (folder / "2.png").write_bytes(b"no image"), "2.png"),
    "truncated image": (truncate_frame, "2.png"),
    "another size": (lambda folder: Image.new("RGB", (3, 3)).save(folder / "2.png"), "3x3"),
    "no frame": (lambda folder: [path.unlink() for path in folder.iterdir()], "no PNG"),
}


@pytest.mark.parametrize("damage, message", DAMAGES.values(), ids=DAMAGES)
def test_invalid_folders_are_refused(damage, message, files, tmp_path, capsys):
    truth = write_folder(tmp_path / "truth", make_frames(2))
    damage(truth / "1")
    error = refusal(capsys, files[0], truth, *FLAGS)
    assert message in error and str(truth / "1") in error


def test_a_folder_without_sequences_is_refused(files, tmp_path, capsys):
    (tmp_path / "truth").mkdir()
    assert str(tmp_path / "truth") in refusal(capsys, files[0], tmp_path / "truth", *FLAGS)
