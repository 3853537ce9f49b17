"""Generation: the submission, scores against real frames, old results, bad input.

    python -m pytest tests/test_tester.py
"""
import contextlib
import errno
import hashlib
import json
import re

import numpy as np
import pytest
import torch

import Tester
from conftest import H, W, contents, make_video, read_csv
from dataloader import GivenSequence
from modules.config import tester_flags, trainer_flags
from modules.config.result_folder import STAGING
from modules.evaluation.metrics import course_score
from modules.network.cvae import CVAE
from modules.plots import curves
from modules.plots.video import write_gif, write_mp4
from modules.training.checkpoint import save
from utils import BadInput

LENGTHS = {"0": 5, "1": 7, "2": 4, "10": 5}  # of the sequences of the tiny dataset, in the order of the submission
NETWORK = {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8, "output": "sigmoid", "template_activations": False,
           "reference_frame": False, "feed": "previous", "pose_levels": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network with random weights whose videos are livelier than those of an untrained one."""
    torch.manual_seed(0)
    model = CVAE(**NETWORK)
    for parameter in model.parameters():
        parameter.data *= 1.3
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt"
    save(path, {"weights": model.state_dict(), "ema": None, "network": NETWORK, "frame_size": [H, W], "flags": {},
                "epoch": 3})
    return path


def change(checkpoint, path, part, **changes):
    state = torch.load(checkpoint, weights_only=True)
    state[part].update(changes)
    torch.save(state, path)
    return path


def command(data, checkpoint, folder, *flags) -> list[str]:
    return list(map(str, ("--DR", data, "--ckpt_path", checkpoint, "--save_root", folder, "--any_size", "--no-make_gif",
                          "--device", "cpu", "--num_workers", "1", "--no-cache", *flags)))


def generate(data, checkpoint, folder, *flags):
    Tester.main(command(data, checkpoint, folder, *flags))
    return folder


def results(folder) -> dict[str, bytes]:
    """The files of a folder without its lock, which remains."""
    return {name: content for name, content in contents(folder).items() if name != ".lock"}


def read_rows(folder) -> dict[str, np.ndarray]:
    """The rows of each sequence in the submission, without their ids."""
    lines = (folder / "submission.csv").read_text().splitlines()[1:]
    rows = np.array([[int(value) for value in line.split(",")[1:]] for line in lines])
    return dict(zip(LENGTHS, np.split(rows, np.cumsum(list(LENGTHS.values()))[:-1]), strict=True))


def real_rows(name: str) -> np.ndarray:
    return make_video(LENGTHS[name], 10 + int(name))[0].transpose(0, 3, 1, 2).reshape(LENGTHS[name], -1)


@pytest.fixture(scope="module")
def scored(data, checkpoint, tmp_path_factory):
    """All results of all sequences. Never write to it."""
    return generate(data, checkpoint, tmp_path_factory.mktemp("scored") / "result", "--truth", data / "truth",
                    "--restart_every", 3, "--make_gif", "--mp4", "--fps", 10)


# The submission and the videos

def test_results_hold_all_sequences_in_numeric_order_from_their_given_frames(scored):
    videos = read_rows(scored)
    rows = enumerate(np.concatenate(list(videos.values())).tolist())
    lines = [["id", *range(3 * H * W)], *([index, *row] for index, row in rows)]
    text = "".join(",".join(map(str, line)) + "\n" for line in lines)
    assert (scored / "submission.csv").read_bytes() == text.encode()
    each = ("seq{}.csv", "pred_seq{}.gif", "pred_seq{}.mp4", "compare_seq{}.gif", "compare_seq{}.mp4")
    names = {"submission.csv", "summary.json", "psnr.png", *(form.format(name) for name in LENGTHS for form in each)}
    assert set(results(scored)) == names == set(json.loads((scored / "summary.json").read_text())["files"])
    for name, video in videos.items():
        assert video.shape == (LENGTHS[name], 3 * H * W) and video[0].tolist() == real_rows(name)[0].tolist()
        assert len(np.unique(video, axis=0)) == LENGTHS[name]  # it moves


def test_latent_seed_and_histogram_matching_decide_what_is_generated(data, checkpoint, scored, tmp_path):
    trained = change(checkpoint, tmp_path / "c.ckpt", "flags", match_histogram="first")
    again, other_seed, mean, mean_again, matched, as_trained, unmatched = (
        generate(data, path, tmp_path / str(index), *flags).joinpath("submission.csv").read_bytes()
        for index, (path, flags) in enumerate((
            (checkpoint, []), (checkpoint, ["--seed", 1]), (checkpoint, ["--latent", "mean"]),
            (checkpoint, ["--val_latent", "mean", "--seed", 1]), (checkpoint, ["--match_histogram", "first"]),
            (trained, []), (trained, ["--no-match_histogram"]))))
    # Real frames, restarts and pictures have no effect on it.
    assert again == unmatched == (scored / "submission.csv").read_bytes()
    assert mean == mean_again and matched == as_trained and len({again, other_seed, mean, matched}) == 4


def test_only_the_courses_sizes_are_submitted_unless_allowed():
    frames = torch.zeros(630, 3, 32, 64, dtype=torch.uint8)
    for labels, any_size in ((frames, False), (frames[:5], True), (frames[..., 1:], True)):
        Tester.check_submission([GivenSequence("7", frames[0], labels, [])], any_size)
        with pytest.raises(BadInput, match="sequence 7 .*--any_size") if any_size else contextlib.nullcontext():
            Tester.check_submission([GivenSequence("7", frames[0], labels, [])], False)


def test_a_submission_can_be_traced_without_real_frames(data, checkpoint, tmp_path, monkeypatch):
    path = change(checkpoint, tmp_path / "c.ckpt", "flags", num_epoch=32, seed=7)
    monkeypatch.chdir(tmp_path)
    folder = generate(data, "c.ckpt", tmp_path / "r", "--latent", "mean")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["checkpoint"] == str(path)
    assert summary["checkpoint_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (summary["epochs"], summary["num_epoch"], summary["split"]) == (3, 32, "test")
    assert (summary["latent"], summary["seed"], summary["match_histogram"]) == ("mean", 7, "off")
    assert summary["flags"].keys() == tester_flags.make_parser().defaults().keys() - {"ignored"}
    assert summary["flags"]["seed"] == 7 and summary["flags"]["DR"] == str(data)
    assert summary["versions"]["torch"] == torch.__version__ and summary["versions"].keys() == {"python", "torch",
                                                                                                "numpy"}
    assert not {"mean", "sequences"} & summary.keys()
    assert set(summary["files"]) == set(results(folder)) == {"submission.csv", "summary.json"}


def test_slow_and_fast_pictures_are_written(tmp_path):
    """Also of a sequence that never moves, whose frames a GIF stores as one."""
    parser = tester_flags.make_parser()
    for fps in ("1", "50"):
        clip = torch.zeros(630, 3, 4, 4, dtype=torch.uint8)
        fps = parser.parse_args(["--DR", "d", "--ckpt_path", "c", "--save_root", "s", "--fps", fps]).fps
        write_gif(clip, tmp_path / "a.gif", fps)
        write_mp4(clip[:3], tmp_path / "a.mp4", fps)


# Scores

def slow_psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return min(100.0, 10 * np.log10(255**2 / error)) if error else 100.0


def test_scores_are_those_of_the_submitted_pixels(scored):
    summary = json.loads((scored / "summary.json").read_text())
    assert list(summary["sequences"]) == list(LENGTHS) and (summary["epochs"], summary["restart_every"]) == (3, 3)
    for name, rows in read_rows(scored).items():
        truth, table, found = real_rows(name), read_csv(scored / f"seq{name}.csv"), summary["sequences"][name]
        columns = {column: np.array([float(row[column]) for row in table]) for column in table[0]}
        assert columns["frame"].tolist() == list(range(LENGTHS[name])) and found["frames"] == LENGTHS[name] - 1
        for suffix, frames in (("", rows), ("_repeat_first", [truth[0]] * len(truth))):
            psnr = [slow_psnr(frame, real) for frame, real in zip(frames, truth, strict=True)]
            brightness = [(frame.mean() - real.mean()) / 255 for frame, real in zip(frames, truth, strict=True)]
            assert columns[f"psnr{suffix}"] == pytest.approx(psnr, rel=1e-4)
            assert columns[f"brightness_error{suffix}"] == pytest.approx(brightness, abs=1e-5)
            assert found[f"course_psnr{suffix}"] == pytest.approx(course_score(psnr), rel=1e-5)
            for column in (f"psnr{suffix}", f"ssim{suffix}", f"brightness_error{suffix}"):
                assert found[column] == pytest.approx(columns[column][1:].mean(), rel=1e-4, abs=1e-6)
        single, restarted = columns["psnr"][1:], columns["psnr_restarted"][1:]
        assert found["course_psnr_restarted"] == pytest.approx(restarted.mean(), rel=1e-5)
        assert ("drift" in found) == (len(single) > 3)
        assert "drift" not in found or found["drift"] == pytest.approx((single - restarted)[3:].mean(), abs=1e-5)
    for column, value in summary["mean"].items():
        assert value == pytest.approx(np.mean([summary["sequences"][name][column] for name in LENGTHS])), column


@pytest.mark.parametrize("every", [1, 3, 4, 200])
def test_each_part_is_restarted_from_its_real_frame(every):
    """With a generator that adds to the first frame the number of steps and the pose."""
    def flat(values):
        return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, H, W)

    def count_up(parts):
        assert len(parts) <= Tester.RESTARTS_PER_BATCH
        return [torch.cat([part.first_frame[None],
                           (part.first_frame + flat(range(len(part.labels))) + part.labels)[1:]])
                for part in parts]

    poses, real = [[0, 7, 0, 0, 9] * 20, [0] * 9, [0, 3]], [10 + 2 * t for t in range(100)]
    sequences = [GivenSequence("", flat(real)[0], flat(pose), list(range(len(pose)))) for pose in poses]
    found = Tester.restart_from_truth(sequences, [flat(real[:len(pose)]) for pose in poses], every, count_up)
    for pose, video in zip(poses, found, strict=True):
        starts = [(t - 1) // every * every for t in range(1, len(pose))]  # the real frame that t is generated from
        expected = [real[0], *(real[start] + t - start + pose[t] for t, start in enumerate(starts, start=1))]
        assert torch.equal(video, flat([value % 256 for value in expected]))


# Old results and bad input

def test_old_results_are_replaced_only_when_asked_and_other_files_never(data, checkpoint, tmp_path, refused):
    folder = tmp_path / "r"
    folder.mkdir()
    kept = {"r/sequences.csv", "r/pred_seq_notes.txt", "r/seq8.csv", "r/sub/seq1.csv", "seq9.csv"}
    listed = ["submission.csv", "pred_seq77.gif", "../seq9.csv", "sub/seq1.csv", "pred_seq_notes.txt", 3]
    for name in (*kept, "r/submission.csv", "r/pred_seq77.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    (folder / "summary.json").write_text(json.dumps({"files": listed[:-1]}))
    assert "--overwrite" in refused("Tester.py", *command(data, checkpoint, folder), untouched=tmp_path)
    generate(data, checkpoint, folder, "--overwrite")
    assert set(results(tmp_path)) - {"r/.lock"} == {*kept, "r/submission.csv", "r/summary.json"} and read_rows(folder)
    for damaged in ("{", "[]", '{"files": 3}', json.dumps({"files": listed})):
        (folder / "summary.json").write_text(damaged)
        generate(data, checkpoint, folder, "--overwrite")
        assert kept < set(contents(tmp_path))


def test_a_file_that_a_sequence_would_replace_is_an_old_result(data, checkpoint, tmp_path, refused):
    (tmp_path / "seq10.csv").write_text("the user's")
    assert "seq10.csv" in refused("Tester.py", *command(data, checkpoint, tmp_path), untouched=tmp_path)
    (tmp_path / "psnr.png").mkdir()
    flags = command(data, checkpoint, tmp_path, "--overwrite")
    assert "psnr.png is a folder" in refused("Tester.py", *flags, untouched=tmp_path)


@pytest.mark.parametrize("has_old_results", [True, False])
def test_a_full_disk_leaves_the_old_results_and_no_half_ones(has_old_results, data, checkpoint, tmp_path, refused,
                                                             monkeypatch):
    folder = tmp_path / "new" / "r"
    if has_old_results:
        generate(data, checkpoint, folder)

    def fill(*args):
        assert (folder / STAGING / "submission.csv").exists()
        raise OSError(errno.ENOSPC, "No space left on device", "psnr.png")

    monkeypatch.setattr(curves, "plot_psnr", fill)
    message = refused("Tester.py", *command(data, checkpoint, folder, "--overwrite", "--truth", data / "truth"),
                      untouched=folder)
    assert "No space left" in message and not (folder / STAGING).exists()
    assert has_old_results or not folder.parent.exists()


@pytest.mark.parametrize("has_old_results", [True, False])
def test_of_two_calls_for_one_folder_the_second_is_refused(has_old_results, data, checkpoint, tmp_path, monkeypatch):
    folder, begun = tmp_path / "r", []
    if has_old_results:
        generate(data, checkpoint, folder)
    rollout = Tester.generate_all

    def start_another(*args, **kwargs):
        begun.append(None)
        assert len(begun) == 1, "the second call generates, too"
        before = contents(folder)
        with pytest.raises(BadInput, match="in use"):
            generate(data, checkpoint, folder, "--seed", 1, "--overwrite")
        assert contents(folder) == before
        return rollout(*args, **kwargs)

    monkeypatch.setattr(Tester, "generate_all", start_another)
    generate(data, checkpoint, folder, "--overwrite")
    assert begun and json.loads((folder / "summary.json").read_text())["seed"] == 0


@pytest.mark.parametrize("is_link", [True, False])
def test_what_a_killed_call_left_is_deleted(is_link, data, checkpoint, tmp_path):
    folder, others = tmp_path / "r", tmp_path / "others"
    for path in (folder, others, folder / STAGING):
        path.mkdir()
    if is_link:
        (folder / STAGING).rmdir()
        (folder / STAGING).symlink_to(others)
    for path in (folder / STAGING / "pred_seq7.gif", folder / ".psnr.png.0123abcd.tmp", folder / ".owner.json"):
        path.write_text("{")
    generate(data, checkpoint, folder)
    assert set(results(folder)) == {"submission.csv", "summary.json"}
    assert set(contents(others)) == ({"pred_seq7.gif"} if is_link else set())


@pytest.mark.parametrize("part, changes, words", [
    ("weights", {"generator.7.weight": torch.full((3, 1, 1, 1), torch.nan)}, "--ckpt_path .*non-finite"),
    ("weights", {"generator.7.weight": torch.full((3, 1, 1, 1), 1e38)}, "--ckpt_path .*diverged"),
    ("network", {"feed": "first"}, "--restart_every .*--feed first")], ids=["NaN", "diverges", "no feedback"])
def test_an_unusable_checkpoint_is_refused_before_old_results_go(part, changes, words, data, checkpoint, tmp_path,
                                                                 refused):
    path = change(checkpoint, tmp_path / "c.ckpt", "network", output="linear")
    change(path, path, part, **changes)
    (tmp_path / "submission.csv").write_text("old")
    flags = ["--overwrite", "--truth", data / "truth", "--restart_every", 2]
    assert re.search(words, refused("Tester.py", *command(data, path, tmp_path, *flags), untouched=tmp_path))


@pytest.mark.parametrize("flags, words", [
    ("--split val", "--val_vi_len 630"), ("--split val --truth t", "--truth"), ("--truth gone", "gone.*--truth"),
    ("--restart_every 60", "--restart_every.*--truth"), (f"--save_root {__file__}", "--save_root"),
    ("--ckpt_path gone.ckpt", "--ckpt_path gone.ckpt"), ("--fps 0.001", "--fps.*at least 1, at most 50")],
    ids=lambda value: value.split()[0])
def test_impossible_flags_are_refused(flags, words, data, checkpoint, tmp_path, refused):
    message = refused("Tester.py", *command(data, checkpoint, tmp_path / "r", *flags.split()), untouched=tmp_path)
    assert re.search(words, message), message


def test_flags_of_the_course_without_a_meaning_here_are_ignored_with_one_line(capsys):
    given = ["--DR", "d", "--ckpt_path", "c", "--save_root", "s"]
    values = {"test": [], "fast_train": [], "store_visualization": []}
    ignored = [word for flag in tester_flags.COURSE_FLAGS for word in (f"--{flag}", *values.get(flag, ["1"]))]
    args = tester_flags.parse_command_line([*given, *ignored, "--no-fast_train", "--test", "--num_workers", "3"])
    line, = capsys.readouterr().err.splitlines()
    named = re.findall(r"--[\w-]+", line)
    assert sorted(named) == sorted(["--no-fast_train", *(f"--{flag}" for flag in tester_flags.COURSE_FLAGS)])
    assert args == tester_flags.parse_command_line([*given, "--num_workers", "3"]) and not capsys.readouterr().err
    assert set(tester_flags.COURSE_FLAGS) < trainer_flags.make_parser().defaults().keys()
    for unknown in ("--resume", "--tfrr", "--replay"):
        with pytest.raises(BadInput, match=unknown):
            tester_flags.parse_command_line([*given, unknown])


@pytest.mark.parametrize("damaged", ["test/test_img/0/0.png", "test/test_label/1/3.png", "test/test_label/2",
                                     "truth/0/3.png", "truth/1/0.png", "truth/10"])
def test_damaged_and_missing_data_is_refused_with_its_path(damaged, own_data, checkpoint, tmp_path, refused):
    path = own_data / damaged
    path.write_bytes(path.read_bytes()[:60]) if "test" in damaged and path.is_file() else path.rename(own_data / "lost")
    message = refused("Tester.py", *command(own_data, checkpoint, tmp_path / "r", "--truth", own_data / "truth"),
                      untouched=tmp_path)
    assert str(path.parent) in message and path.name in message


def test_results_that_an_older_summary_does_not_list_are_replaced_with_their_sequences(data, checkpoint, tmp_path):
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    for name in ("seq1.csv", "compare_seq1.gif", "seqmine.csv"):
        (folder / name).write_text("old")
    generate(data, checkpoint, folder, "--overwrite")
    assert set(results(folder)) == {"submission.csv", "summary.json", "seqmine.csv"}


def test_a_users_file_in_the_folder_of_unfinished_results_stays(data, checkpoint, tmp_path, refused):
    (tmp_path / STAGING).mkdir()
    (tmp_path / STAGING / "mine.txt").write_text("mine")
    refused("Tester.py", *command(data, checkpoint, tmp_path))
    assert (tmp_path / STAGING / "mine.txt").read_text() == "mine"
