"""Generation: the submission's format, sequences of any length, scores, pictures, refusals.

    python -m pytest tests/test_tester.py
"""
import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

import Tester
from conftest import NETWORK, VAL_FRAMES, H, W, contents, make_video, read_csv, write_pngs, write_sequence
from modules.evaluation.metrics import course_score
from modules.network.cvae import CVAE
from modules.training.checkpoint import NETWORK_FLAGS, save

LENGTHS = {"0": 5, "1": 7, "2": 4, "10": 5}  # of the sequences of the tiny dataset
FLAGS = ["--any_size", "--no-make_gif", "--device", "cpu", "--num_workers", "1", "--no-cache"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network with random weights and livelier outputs than those of the first step."""
    torch.manual_seed(0)
    network = {**{flag[2:]: int(size) for flag, size in zip(NETWORK[::2], NETWORK[1::2], strict=True)},
               "output": "sigmoid", "template_activations": False, "reference_frame": False, "feed": "previous"}
    assert set(network) == set(NETWORK_FLAGS)
    model = CVAE(**network)
    for parameter in model.parameters():
        parameter.data *= 1.3
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt"
    save(path, {"model": model.state_dict(), "network": network, "frame_size": [H, W], "flags": {}, "epoch": 3})
    return path


def generate(data, checkpoint, folder, *flags):
    Tester.main(["--DR", str(data), "--ckpt_path", str(checkpoint), "--save_root", str(folder), *FLAGS,
                 *map(str, flags)])
    return folder


def read_submission(folder) -> np.ndarray:
    """The rows without their ids."""
    lines = (folder / "submission.csv").read_text().splitlines()
    return np.array([[int(value) for value in line.split(",")[1:]] for line in lines[1:]])


def split(rows: np.ndarray, lengths) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(list(lengths))[:-1])


@pytest.fixture(scope="module")
def scored(data, checkpoint, tmp_path_factory):
    """Results of all sequences, scored, with GIFs and MP4s. Never write to it."""
    folder = tmp_path_factory.mktemp("scored") / "result"
    return generate(data, checkpoint, folder, "--truth", data / "truth", "--make_gif", "--mp4", "--fps", 10)


# The submission

def test_the_submission_has_the_courses_format(scored):
    text = (scored / "submission.csv").read_bytes().decode("ascii")
    assert text.endswith("\n") and "\r" not in text
    header, *rows = text[:-1].split("\n")
    assert header == ",".join(["id", *map(str, range(3 * H * W))])
    assert len(rows) == sum(LENGTHS.values())
    for index, row in enumerate(rows):
        first, *values = row.split(",")
        assert first == str(index) and len(values) == 3 * H * W
        assert all(re.fullmatch(r"0|[1-9]\d{0,2}", value) and int(value) <= 255 for value in values)


def test_each_sequence_begins_with_its_given_frame_in_numeric_order(scored):
    for (name, length), rows in zip(LENGTHS.items(), split(read_submission(scored), LENGTHS.values()), strict=True):
        frames, _ = make_video(length, 10 + int(name))
        assert rows[0].tolist() == frames[0].transpose(2, 0, 1).flatten().tolist()
        assert len({tuple(row) for row in rows.tolist()}) == length  # frames that move, not one repeated


def test_the_writer_equals_a_slow_obvious_one(tmp_path):
    dice = np.random.default_rng(0)
    videos = [dice.integers(0, 256, (length, 3, 2, 3), dtype=np.uint8) for length in (3, 2)]
    lines, row = ["id"], 0
    for index in range(18):
        lines[0] += "," + str(index)
    for video in videos:
        for frame in video:
            line = str(row)
            for channel in range(3):
                for y in range(2):
                    for x in range(3):
                        line += "," + str(int(frame[channel, y, x]))
            lines.append(line)
            row += 1
    Tester.write_submission([torch.from_numpy(video) for video in videos], tmp_path / "submission.csv")
    assert (tmp_path / "submission.csv").read_text() == "\n".join(lines) + "\n"


def test_sequences_of_different_lengths_come_out_as_each_alone(data, checkpoint, tmp_path):
    together = split(read_submission(generate(data, checkpoint, tmp_path / "all", "--latent", "mean")),
                     LENGTHS.values())
    for (name, length), rows in zip(LENGTHS.items(), together, strict=True):
        write_sequence(tmp_path / name, name, length, seed=10 + int(name))
        alone = read_submission(generate(tmp_path / name, checkpoint, tmp_path / name / "r", "--latent", "mean"))
        assert alone.shape == rows.shape and np.abs(alone - rows).max() <= 1  # one: float sums of another order
        assert (alone != rows).mean() < 0.01


def test_drawn_z_depends_on_the_seed_alone(data, checkpoint, scored, tmp_path):
    same = read_submission(generate(data, checkpoint, tmp_path / "same"))
    other = read_submission(generate(data, checkpoint, tmp_path / "other", "--seed", 1))
    assert np.array_equal(same, read_submission(scored)) and not np.array_equal(same, other)


def test_other_sizes_than_the_courses_are_refused(data, checkpoint, tmp_path, refused):
    message = refused("Tester.py", "--DR", data, "--ckpt_path", checkpoint, "--save_root", tmp_path / "r",
                      "--device", "cpu", "--no-cache")
    assert "sequence 0 has 5 frames of 8x16" in message and "630 of 32x64" in message and "--any_size" in message
    assert not (tmp_path / "r").exists()


# Scores

def slow_psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return min(100.0, 10 * np.log10(255**2 / error)) if error else 100.0


def test_scores_are_those_of_the_submitted_pixels(scored):
    summary = json.loads((scored / "summary.json").read_text())
    assert list(summary["sequences"]) == list(LENGTHS) and summary["split"] == "test" and summary["epochs"] == 3
    means = []
    for (name, length), rows in zip(LENGTHS.items(), split(read_submission(scored), LENGTHS.values()), strict=True):
        truth = make_video(length, 10 + int(name))[0].transpose(0, 3, 1, 2).reshape(length, -1)
        expected = [slow_psnr(row, real) for row, real in zip(rows, truth, strict=True)]
        repeat = [slow_psnr(truth[0], real) for real in truth]
        dark = [(row.mean() - real.mean()) / 255 for row, real in zip(rows, truth, strict=True)]
        table = read_csv(scored / f"seq{name}.csv")
        assert tuple(table[0]) == Tester.SCORES and [int(row["frame"]) for row in table] == list(range(length))
        for column, values in (("psnr", expected), ("psnr_repeat_first", repeat), ("brightness_error", dark),
                               ("brightness_error_repeat_first", [(truth[0].mean() - r.mean()) / 255 for r in truth])):
            assert [float(row[column]) for row in table] == pytest.approx(values, rel=1e-4, abs=1e-5), column
        entry = summary["sequences"][name]
        assert entry["frames"] == length - 1
        assert entry["psnr"] == pytest.approx(np.mean(expected[1:]), rel=1e-5)
        assert entry["psnr_repeat_first"] == pytest.approx(np.mean(repeat[1:]), rel=1e-5)
        assert entry["course_psnr"] == pytest.approx(course_score(expected), rel=1e-5)
        assert entry["ssim"] == pytest.approx(np.mean([float(row["ssim"]) for row in table[1:]]), rel=1e-5)
        assert entry["psnr_end"] == pytest.approx(entry["psnr"], rel=1e-5)  # shorter than the window of the drift
        assert entry["brightness_error_end"] == pytest.approx(np.mean(dark[1:]), rel=1e-4, abs=1e-5)
        means.append(entry["psnr"])
    assert summary["mean"]["psnr"] == pytest.approx(np.mean(means))
    assert expected[0] == 100.0 and max(expected[1:]) < 40  # the given frame is perfect, and in no mean


def test_the_truth_never_reaches_the_submission(data, checkpoint, scored, tmp_path):
    for name, length in LENGTHS.items():
        write_pngs(tmp_path / "truth" / name, np.full((length, H, W, 3), 200, np.uint8))
    other = generate(data, checkpoint, tmp_path / "r", "--truth", tmp_path / "truth")
    assert (other / "submission.csv").read_bytes() == (scored / "submission.csv").read_bytes()
    assert (other / "seq0.csv").read_bytes() != (scored / "seq0.csv").read_bytes()


def test_the_validation_sequence_is_scored_against_its_own_frames(data, checkpoint, tmp_path):
    folder = generate(data, checkpoint, tmp_path / "r", "--split", "val", "--val_vi_len", VAL_FRAMES)
    assert set(contents(folder)) == {"seqval.csv", "compare_seqval.gif", "psnr.png", "summary.json"}
    truth = make_video(VAL_FRAMES, 1)[0]
    repeat = [float(row["psnr_repeat_first"]) for row in read_csv(folder / "seqval.csv")]
    assert repeat == pytest.approx([slow_psnr(truth[0], frame) for frame in truth], rel=1e-5)


@pytest.mark.parametrize("every", [1, 3, 4, 100])
def test_begun_anew_each_piece_goes_on_from_the_real_frame(every, monkeypatch):
    """With a generator whose every frame is one brighter than the one before, and has its pose's darkness beside it."""

    monkeypatch.setattr(Tester, "PIECES_AT_ONCE", 2)

    def count_up(pieces):
        assert len(pieces) <= 2 and all(len(piece.labels) == len(piece.numbers) for piece in pieces)
        return [torch.stack([piece.first_frame, *(piece.first_frame + t + pose
                                                  for t, pose in enumerate(piece.labels[1:], start=1))])
                for piece in pieces]

    def still(values):
        return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, H, W)

    poses = {"0": [0, 7, 0, 0, 9], "1": [0] * 9, "2": [0, 3]}
    sequences = [Tester.GivenSequence(name, still([1])[0], still(values), list(range(len(values))))
                 for name, values in poses.items()]
    truths = [still([10 * (t + 1) for t in range(len(values))]) for values in poses.values()]
    found = Tester.restart_from_truth(sequences, truths, every, count_up)
    for values, video in zip(poses.values(), found, strict=True):
        begun = [(t - 1) // every * every for t in range(1, len(values))]  # the real frame that t goes back to
        expected = [10, *(10 * (b + 1) + t - b + values[t] for t, b in enumerate(begun, start=1))]
        assert torch.equal(video, still(expected))


def test_what_a_roll_out_loses_is_told_apart_from_the_sequence_and_from_its_beginning():
    frames = torch.arange(700, dtype=torch.float64)
    restarted = 40 - frames / 100  # the sequence's own: -6 dB per 600 frames
    single = restarted - 1.0 * (frames > 60)  # loses 1 dB once, and then no more
    found = Tester.beside_restarted(single, restarted, 60)
    assert found["psnr_slope_restarted"] == pytest.approx(-6)
    assert found["drift"] == pytest.approx(-1) and found["drift_slope"] == pytest.approx(0, abs=1e-9)
    single[61:] -= frames[61:] / 300
    assert Tester.beside_restarted(single, restarted, 60)["drift_slope"] == pytest.approx(-2)
    single[601:] = 0  # beyond what the course scores
    assert Tester.beside_restarted(single, restarted, 60)["drift_slope"] == pytest.approx(-2)
    assert "drift" not in Tester.beside_restarted(single, restarted, 600)


def test_where_nothing_is_fed_back_there_is_nothing_to_begin_anew(data, checkpoint, tmp_path, refused):
    state = torch.load(checkpoint, weights_only=True)
    state["network"]["feed"] = "first"
    torch.save(state, tmp_path / "first.ckpt")
    message = refused("Tester.py", "--DR", data, "--ckpt_path", tmp_path / "first.ckpt", "--save_root", tmp_path / "r",
                      *FLAGS, "--truth", data / "truth", "--restart_every", 2)
    assert "--feed first" in message and not (tmp_path / "r").exists()


def test_what_was_begun_anew_is_scored_beside_the_roll_out(data, checkpoint, scored, tmp_path):
    folder = generate(data, checkpoint, tmp_path / "anew", "--truth", data / "truth", "--restart_every", 3)
    assert (folder / "submission.csv").read_bytes() == (scored / "submission.csv").read_bytes()
    results = json.loads((folder / "summary.json").read_text())
    assert results["restart_every"] == 3
    for name in LENGTHS:
        rows = read_csv(folder / f"seq{name}.csv")
        single, restarted = (np.array([float(row[score]) for row in rows[1:]]) for score in ("psnr", "psnr_restarted"))
        summary = results["sequences"][name]
        assert summary["course_psnr_restarted"] == pytest.approx(restarted.mean(), rel=1e-5)
        assert summary["psnr_slope_restarted"] == pytest.approx(Tester.slope(torch.tensor(restarted)), abs=1e-2)
        beside = (single - restarted)[3:]  # before, both are the same roll-out
        assert ("drift" in summary) == (len(beside) > 0)  # sequence 2 is too short
        assert not len(beside) or summary["drift"] == pytest.approx(beside.mean(), abs=1e-5)
    assert "drift" not in json.loads((scored / "summary.json").read_text())["mean"]


@pytest.mark.parametrize("lost", ["0/3.png", "1/0.png", "10"])
def test_a_truth_that_lacks_a_frame_is_refused(lost, own_data, checkpoint, tmp_path, refused):
    (own_data / "truth" / lost).rename(tmp_path / "elsewhere")
    message = refused("Tester.py", "--DR", own_data, "--ckpt_path", checkpoint, "--save_root", tmp_path / "r", *FLAGS,
                      "--truth", own_data / "truth")
    number = re.search(r"(\d+)\.png", lost)
    assert f"real frame {number[1]} is missing; add {number[0]}" in message if number else "--truth" in message
    assert not (tmp_path / "r").exists()


# Pictures

def test_the_result_holds_what_was_asked_for(scored):
    per_sequence = [f"{kind}{name}.{ending}" for name in LENGTHS for kind, ending in
                    (("seq", "csv"), ("pred_seq", "gif"), ("pred_seq", "mp4"), ("compare_seq", "gif"))]
    assert set(contents(scored)) == {"submission.csv", "summary.json", "psnr.png", *per_sequence}


def test_a_gif_begins_with_the_first_frame_once(scored):
    frames, _ = make_video(7, 11)
    with Image.open(scored / "pred_seq1.gif") as gif:
        assert gif.n_frames == 7 and gif.info["duration"] == 100
        shown = []
        for index in range(7):
            gif.seek(index)
            shown.append(np.asarray(gif.convert("RGB").resize((W, H), Image.Resampling.NEAREST)))
    assert slow_psnr(shown[0], frames[0]) > 30 > slow_psnr(shown[1], frames[0])
    generated = split(read_submission(scored), LENGTHS.values())[1].reshape(7, 3, H, W).transpose(0, 2, 3, 1)
    assert all(slow_psnr(one, other) > 25 for one, other in zip(shown, generated, strict=True))


def test_an_mp4_holds_every_frame(scored):
    import av
    with av.open(str(scored / "pred_seq2.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == LENGTHS["2"]


def test_no_picture_where_none_is_wanted(data, checkpoint, tmp_path):
    assert set(contents(generate(data, checkpoint, tmp_path / "r"))) == {"submission.csv"}


# Results that are there already

def test_results_are_replaced_only_when_told(data, checkpoint, tmp_path, refused):
    folder = tmp_path / "r"
    folder.mkdir()
    for name in ("submission.csv", "pred_seq77.gif", "notes.txt", "sequel.txt"):
        (folder / name).write_text("old")
    flags = ["--DR", data, "--ckpt_path", checkpoint, "--save_root", folder, *FLAGS]
    message = refused("Tester.py", *flags, untouched=folder)
    assert "holds results already" in message and "--overwrite" in message and str(folder) in message
    generate(data, checkpoint, folder, "--overwrite")
    assert set(contents(folder)) == {"submission.csv", "notes.txt", "sequel.txt"}
    assert len(read_submission(folder)) == sum(LENGTHS.values())


def test_weights_that_are_lost_are_refused_before_old_results_go(data, checkpoint, tmp_path, refused):
    state = torch.load(checkpoint, weights_only=True)
    next(weight for weight in state["model"].values() if weight.dim() == 4).fill_(float("nan"))
    torch.save(state, tmp_path / "nan.ckpt")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "submission.csv").write_text("old")
    message = refused("Tester.py", "--DR", data, "--ckpt_path", tmp_path / "nan.ckpt", "--save_root", tmp_path / "r",
                      *FLAGS, "--overwrite", untouched=tmp_path / "r")
    assert "NaN" in message


def test_histograms_are_matched_as_in_training_unless_told(data, checkpoint, tmp_path, refused):
    trained = tmp_path / "trained.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"flags": {"match_histogram": "first"}}, trained)
    rows = {name: read_submission(generate(data, path, tmp_path / name, "--latent", "mean", *flags))
            for name, path, flags in (("as trained", trained, []), ("plain", checkpoint, []),
                                      ("first", checkpoint, ["--match_histogram", "first"]),
                                      ("off", trained, ["--no-match_histogram"]))}
    assert np.array_equal(rows["as trained"], rows["first"]) and np.array_equal(rows["off"], rows["plain"])
    assert not np.array_equal(rows["first"], rows["plain"])
    torch.save(state | {"flags": {"match_histogram": "nonsense"}}, trained)
    assert "nonsense" in refused("Tester.py", "--DR", data, "--ckpt_path", trained, "--save_root", tmp_path / "r",
                                 *FLAGS, untouched=tmp_path)


# Bad input

@pytest.mark.parametrize("flags, words", [
    (["--split", "train"], "--split"), (["--match_histogram", "last"], "--match_histogram"),
    (["--latent", "posterior"], "--latent"), (["--seed", "-1"], "--seed"),
    (["--val_vi_len", "1"], "--val_vi_len"), (["--fps", "0"], "--fps"), (["--fps", "nan"], "--fps"),
    (["--make_gif", "--fps", "60"], "fps|frames per second"),
    (["--split", "val"], "6 frames, fewer than --val_vi_len 630"),
    (["--split", "val", "--truth", "t"], "--truth is for the test"),
    (["--restart_every", "60"], "--restart_every 60.*--truth"), (["--restart_every", "-1"], "--restart_every"),
    (["--truth", "gone"], "gone.*no such folder.*--truth"),
    (["--device", "tpu"], "--device"), (["--num_workers", "-1"], "--num_workers"), (["--nonsense"], "--nonsense")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_impossible_flags_are_refused(flags, words, data, checkpoint, tmp_path, refused):
    message = refused("Tester.py", "--DR", data, "--ckpt_path", checkpoint, "--save_root", tmp_path / "r", *FLAGS,
                      *flags, untouched=tmp_path)
    assert re.search(words, message), message
    assert not (tmp_path / "r").exists()


def test_cuda_without_cuda_is_refused(data, checkpoint, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused("Tester.py", "--DR", data, "--ckpt_path", checkpoint, "--save_root", tmp_path / "r",
                      "--device", "cuda")
    assert "--device cuda" in message and "--device cpu" in message


@pytest.mark.parametrize("kind", ["missing", "random", "truncated", "something else", "hostile", "keys", "sizes"])
def test_a_bad_checkpoint_is_refused(kind, data, checkpoint, tmp_path, refused):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    path, words = tmp_path / "bad.ckpt", "bad.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    if kind == "random":
        path.write_bytes(np.random.default_rng(0).bytes(1000))
    elif kind == "truncated":
        path.write_bytes(checkpoint.read_bytes()[:5000])
    elif kind == "something else":
        torch.save(torch.zeros(3), path)
    elif kind == "hostile":
        torch.save(state | {"flags": Hostile()}, path)
    elif kind == "keys":
        state["model"].popitem()
        torch.save(state, path)
        words = "another network"
    elif kind == "sizes":
        torch.save(state | {"network": state["network"] | {"F_dim": 16}}, path)
        words = "another network"
    message = refused("Tester.py", "--DR", data, "--ckpt_path", path, "--save_root", tmp_path / "r", *FLAGS,
                      untouched=tmp_path)
    assert "--ckpt_path" in message and words in message
    assert not (tmp_path / "executed").exists() and not (tmp_path / "r").exists()


@pytest.mark.parametrize("damage, words", [
    ("test/test_img", "no such folder"), ("test/test_label/2", "this folder is missing"),
    ("test/test_label/1/3.png", "the pose of frame 3 is missing; add 3.png"),
    ("test/test_img/0/0.png", "no PNG file")])
def test_bad_data_is_refused(damage, words, own_data, checkpoint, tmp_path, refused):
    (own_data / damage).rename(tmp_path / "elsewhere")
    message = refused("Tester.py", "--DR", own_data, "--ckpt_path", checkpoint, "--save_root", tmp_path / "r", *FLAGS)
    assert words in message and "/".join(damage.split("/")[:2]) in message
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["test_img/0/0.png", "test_label/1/3.png"])
def test_a_damaged_picture_is_refused(name, own_data, checkpoint, tmp_path, refused):
    path = own_data / "test" / name
    for content, words in ((path.read_bytes()[:60], "damaged or cut off"), (b"text", "not a PNG image")):
        path.write_bytes(content)
        message = refused("Tester.py", "--DR", own_data, "--ckpt_path", checkpoint, "--save_root", tmp_path / "r",
                          *FLAGS)
        assert words in message and name in message and not (tmp_path / "r").exists()


def test_a_save_root_that_is_a_file_is_refused(data, checkpoint, tmp_path, refused):
    (tmp_path / "r").write_text("a file")
    message = refused("Tester.py", "--DR", data, "--ckpt_path", checkpoint, "--save_root", tmp_path / "r", *FLAGS,
                      untouched=tmp_path)
    assert f"--save_root {tmp_path / 'r'} cannot be written" in message
