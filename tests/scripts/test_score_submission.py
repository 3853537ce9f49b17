"""python -m pytest tests/test_score_submission.py"""
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import score_submission
from utils import BadInput

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
    """One sequence (T, 3, H, W), pixel by pixel, as the course describes it."""
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
    assert score_submission.main([*map(str, arguments), *FLAGS, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def refusal(capsys, *arguments) -> str:
    """The one sentence on stderr of a run that is refused."""
    assert score_submission.main([*map(str, arguments)]) == 2
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
    assert score_submission.main([*arguments, *flags]) == 0
    # Frame 0 is not scored, frame 1 is exact: 100 dB; frame 2: 10 log10(255^2 / (1/3)) = 52.9020 dB.
    # The first frame in its place: errors of 10 and 20, 28.1308 and 22.1102 dB.
    assert capsys.readouterr().out.splitlines() == [
        "sequence    frames   PSNR (dB)   repeat first frame (dB)",
        "0                2     76.4510                   25.1205",
        "public                 76.4510                   25.1205",
        "overall                76.4510                   25.1205",
    ]


def test_score_equals_a_slow_double_loop(tmp_path):
    prediction, truth = make_frames(5), make_frames(5, 1)
    truth[1, 2] = prediction[1, 2]
    result = scores(tmp_path, write_csv(tmp_path / "p.csv", prediction), write_csv(tmp_path / "t.csv", truth))
    expected = [slow_score(p, t) for p, t in zip(prediction, truth, strict=True)]
    baseline = [slow_score(np.repeat(t[:1], LENGTH, axis=0), t) for t in truth]
    assert [row["psnr"] for row in result["sequences"]] == pytest.approx(expected, abs=1e-4)
    assert [row["repeat_first"] for row in result["sequences"]] == pytest.approx(baseline, abs=1e-4)
    assert [row["split"] for row in result["sequences"]] == ["public"] * 3 + ["private"] * 2
    for key, values in (("psnr", expected), ("repeat_first", baseline)):
        means = {"public": np.mean(values[:3]), "private": np.mean(values[3:]), "overall": np.mean(values)}
        assert result[key] == pytest.approx(means, abs=1e-4)


def test_frames_after_600_are_not_scored(tmp_path):
    truth = make_frames(1, 1, height=1, width=1, length=630)
    prediction = make_frames(1, 2, height=1, width=1, length=630)
    files = [str(write_csv(tmp_path / "p.csv", prediction)), str(write_csv(tmp_path / "t.csv", truth))]
    out = tmp_path / "score.json"
    assert score_submission.main([*files, "--frame_H", "1", "--frame_W", "1", "--json", str(out)]) == 0
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


def test_frames_of_a_folder_are_in_numeric_order(tmp_path, monkeypatch):
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
def test_reader_takes_harmless_differences(change, tmp_path):
    text = "id,0,1,2\n" + "0,1,20,255\n1,0,7,99\n"
    path = tmp_path / "submission.csv"
    assert change(text) != text
    path.write_bytes(change(text).encode())
    assert score_submission.read_submission(path, 1, 1).flatten().tolist() == [1, 20, 255, 0, 7, 99]


def test_a_full_submission_is_read_in_seconds(tmp_path):
    row = ",".join(map(str, np.random.default_rng(0).integers(0, 256, 6144)))
    path = tmp_path / "submission.csv"
    with open(path, "w") as file:
        file.write(",".join(["id", *map(str, range(6144))]) + "\n")
        file.writelines(f"{index},{row}\n" for index in range(3150))
    begin = time.perf_counter()
    assert score_submission.read_submission(path, 32, 64).shape == (3150, 3, 32, 64)
    assert time.perf_counter() - begin < 5


def test_reader_raises_bad_input(tmp_path):
    with pytest.raises(BadInput, match="missing.csv"):
        score_submission.read_submission(tmp_path / "missing.csv", H, W)


GOOD = "id,0,1,2\n0,1,2,3\n1,4,5,6\n"
REFUSED = {
    "empty": (b"", "file is empty"),
    "only a header": (b"id,0,1,2\n", "no row below the header"),
    "no header": (b"0,1,2,3\n1,4,5,6\n", 'column 1 of line 1 is "0" where the header needs "id"'),
    "wrong header": (b"id,0,2,1\n0,1,2,3\n", 'column 3 of line 1 is "2" where the header needs "1"'),
    "semicolons": (b"id;0;1;2\n0;1;2;3\n", 'column 1 of line 1 is "id;0;1;2"'),
    "another frame size": (b"id,0,1,2,3\n0,1,2,3,4\n", "4 pixel columns, but --frame_H 1 --frame_W 1"),
    "missing pixel": (b"id,0,1,2\n0,1,2\n1,4,5,6\n", "line 2 has 2 pixels where a frame has 3"),
    "pixel too many": (b"id,0,1,2\n0,1,2,3\n1,4,5,6,7\n", "line 3 has 4 pixels where a frame has 3"),
    "cut off": (b"id,0,1,2\n0,1,2,3\n1,4,5", "line 3 is cut off after 2 of 3 pixels"),
    "cut off in the id": (b"id,0,1,2\n0,1,2,3\n1", "line 3 is cut off after 0 of 3 pixels"),
    "fraction": (b"id,0,1,2\n0,1,2.5,3\n", 'line 2, column 1 holds "2.5"'),
    "NaN": (b"id,0,1,2\n0,1,2,3\n1,4,5,nan\n", 'line 3, column 2 holds "nan"'),
    "no value": (b"id,0,1,2\n0,,2,3\n", 'line 2, column 0 holds ""'),
    "negative": (b"id,0,1,2\n0,-1,2,3\n", 'line 2, column 0 holds "-1"'),
    "too bright": (b"id,0,1,2\n0,1,256,3\n", 'line 2, column 1 holds "256"'),
    "huge": (b"id,0,1,2\n0,1,2," + b"9" * 30 + b"\n", 'column 2 holds "99999999999999999999..."'),
    "wrong id": (b"id,0,1,2\n0,1,2,3\n2,4,5,6\n", 'line 3 has the id "2" where 1 is due'),
    "shuffled": (b"id,0,1,2\n1,4,5,6\n0,1,2,3\n", 'line 2 has the id "1" where 0 is due'),
    "ids from 1": (b"id,0,1,2\n1,1,2,3\n2,4,5,6\n", "ids count 0, 1, 2, ..."),
    "no number as id": (b"id,0,1,2\n0,1,2,3\none,4,5,6\n", 'line 3 has the id "one"'),
    "empty line": (b"id,0,1,2\n0,1,2,3\n\n1,4,5,6\n", "line 3 has 0 pixels"),
    "missing row": (b"id,0,1,2\n0,1,2,3\n1,4,5,6\n2,7,8,9\n", "the last lacks 1;"),
    "binary junk": (bytes(range(255, 0, -1)) * 40, "no UTF-8"),
    "binary junk in a row": (b"id,0,1,2\n0,1,\xff\x00,3\n", "line 2, column 1 holds"),
    "UTF-16": (GOOD.encode("utf-16"), "no UTF-8"),
    "zeros": (b"\0" * 100_000, "column 1 of line 1"),
}


@pytest.mark.parametrize("content, sentence", REFUSED.values(), ids=REFUSED)
def test_bad_files_are_refused_with_one_sentence(content, sentence, tmp_path, capsys):
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text(GOOD)
    bad.write_bytes(content)
    flags = ["--length", "2", "--frame_H", "1", "--frame_W", "1"]
    for files in ((bad, good), (good, bad)):
        error = refusal(capsys, *files, *flags)
        assert sentence in error and str(bad) in error


# Everything else that can be wrong

def test_missing_files_are_refused(files, tmp_path, capsys):
    for arguments in ((tmp_path / "no.csv", files[1]), (files[0], tmp_path / "no.csv")):
        assert "no.csv: this file cannot be read (No such file" in refusal(capsys, *arguments, *FLAGS)
    assert "Is a directory" in refusal(capsys, tmp_path, files[1], *FLAGS)


def test_different_numbers_of_sequences_are_refused(files, tmp_path, capsys):
    longer = write_csv(tmp_path / "longer.csv", make_frames(3))
    folder = write_folder(tmp_path / "truth", make_frames(1))
    assert "submission.csv has 2 sequences" in refusal(capsys, files[0], longer, *FLAGS)
    assert "longer.csv has 3 sequences" in refusal(capsys, longer, files[1], *FLAGS)
    assert "submission.csv has 2 sequences" in refusal(capsys, files[0], folder, *FLAGS)


def test_a_length_that_does_not_divide_the_rows_is_refused(files, capsys):
    error = refusal(capsys, *files, "--length", 3, *FLAGS[2:])
    assert "submission.csv: 8 rows are no whole number of sequences of --length 3" in error


@pytest.mark.parametrize("flags, sentence", [
    (["--length", "1"], "--length"), (["--length", "x"], "--length"), (["--frame_H", "0"], "--frame_H"),
    (["--frame_W", "-3"], "--frame_W"), (["--nonsense"], "--nonsense"),
])
def test_bad_flags_are_refused_with_one_sentence(flags, sentence, files, capsys):
    assert sentence in refusal(capsys, *files, *flags)


def test_missing_arguments_are_refused_with_one_sentence(capsys):
    assert "required: submission, truth" in refusal(capsys)


def test_an_impossible_json_file_is_refused_before_the_work(files, tmp_path, capsys):
    for out in (tmp_path / "no" / "score.json", tmp_path, Path(".")):
        assert f"--json {out} cannot be written" in refusal(capsys, *files, *FLAGS, "--json", out)


def copy_frame(folder: Path) -> None:
    (folder / "4.png").write_bytes((folder / "3.png").read_bytes())


def renumber_frame(folder: Path) -> None:
    (folder / "3.png").rename(folder / "9.png")


def cut_frame(folder: Path) -> None:
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:50])


DAMAGES = {
    "frame missing": (lambda folder: (folder / "3.png").unlink(), "it holds 3 frames where --length is 4"),
    "frame too many": (copy_frame, "it holds 5 frames where --length is 4"),
    "a gap": (renumber_frame, "frame 3 is missing"),
    "no image": (lambda folder: (folder / "2.png").write_bytes(b"no image"), "2.png"),
    "image cut off": (cut_frame, "2.png"),
    "another size": (lambda folder: Image.new("RGB", (3, 3)).save(folder / "2.png"), "the image is 3x3"),
    "no frame": (lambda folder: [path.unlink() for path in folder.iterdir()], "no PNG"),
}


@pytest.mark.parametrize("damage, sentence", DAMAGES.values(), ids=DAMAGES)
def test_bad_folders_are_refused(damage, sentence, files, tmp_path, capsys):
    truth = write_folder(tmp_path / "truth", make_frames(2))
    damage(truth / "1")
    error = refusal(capsys, files[0], truth, *FLAGS)
    assert sentence in error and str(truth / "1") in error


def test_a_folder_without_sequences_is_refused(files, tmp_path, capsys):
    (tmp_path / "truth").mkdir()
    assert "no folder of a sequence" in refusal(capsys, files[0], tmp_path / "truth", *FLAGS)


def test_the_script_runs_from_any_folder_and_tells_its_exit_code(tmp_path):
    script = Path(score_submission.__file__).resolve()
    command = [sys.executable, script, "no.csv", "no.csv"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("score_submission.py: error: no.csv") and run.stderr.count("\n") == 1
