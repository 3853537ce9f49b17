"""The synthetic dataset: layout, seeds, agreement of frames and poses, motion, difficulty, refusals.

    python -m pytest tests/test_make_synthetic_dataset.py
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import make_synthetic_dataset as synthetic
import synthetic_scene as scene

SCRIPT = synthetic.__file__
TINY = ["--train_frames", "80", "--val_frames", "20", "--test_sequences", "2", "--test_frames", "12"]
SIZE = (32, 64)


def make(folder, *flags):
    assert synthetic.main([str(folder), *TINY, "--num_workers", "0", *map(str, flags)]) == 0
    return folder


def contents(folder):
    """Bytes of every file below a folder, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def numbers(folder):
    return sorted(int(path.stem) for path in folder.iterdir())


def read(path):
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make(tmp_path_factory.mktemp("synthetic") / "data")


@pytest.fixture(scope="module")
def performance():
    """A whole default test sequence of seed 0: the bodies, and their look and room."""
    shot = synthetic.Shot(0, (scene.TEST, 0), range(630), "", "")
    chunks = list(synthetic.chunks_of(shot, 0, SIZE))
    body = {name: np.concatenate([chunk.body[name] for chunk in chunks]) for name in chunks[0].body}
    return body, *scene.scenery(0, 0, SIZE)


def draw(performance, t):
    body, look, room = performance
    body = {name: places[t] for name, places in body.items()}
    return scene.draw_frame(body, look, room, Quiet()), scene.draw_pose(body, SIZE)


class Quiet:
    """A sensor without grain."""

    def normal(self, mean, deviation, shape):
        return np.zeros(shape)


def empty_room(performance):
    body, look, room = performance
    nowhere = {name: places[0] + [0, 0, 1e3] for name, places in body.items()}  # too far to fill a pixel
    return scene.draw_frame(nowhere, look, room, Quiet())


def test_layout_and_numbering(dataset):
    assert {path.name for path in dataset.iterdir()} == {"train", "val", "test", "truth"}
    assert len(numbers(dataset / "train/train_img")) == 80
    assert numbers(dataset / "train/train_img") == numbers(dataset / "train/train_label")
    assert numbers(dataset / "val/val_img") == numbers(dataset / "val/val_label") == list(range(20))
    for k in "01":
        assert numbers(dataset / "test/test_img" / k) == [0]
        assert numbers(dataset / "test/test_label" / k) == numbers(dataset / "truth" / k) == list(range(12))
        assert np.array_equal(read(dataset / f"test/test_img/{k}/0.png"), read(dataset / f"truth/{k}/0.png"))
    for path in contents(dataset):
        assert read(dataset / path).shape == (32, 64, 3) and read(dataset / path).dtype == np.uint8


@pytest.mark.parametrize("seed", range(8))
def test_training_is_cut_two_to_four_times(seed):
    args = synthetic.parse([os.devnull + "-absent", "--seed", str(seed)])
    train = [shot.numbers for shot in synthetic.plan(args) if shot.stream[0] == scene.TRAIN]
    assert 3 <= len(train) <= 5 and sum(map(len, train)) == 3000
    assert all(len(shot) >= synthetic.SHORTEST_SHOT for shot in train)
    assert all(later.start > earlier.stop for earlier, later in zip(train, train[1:], strict=False))


def test_cuts_reach_the_files(dataset):
    gaps = np.diff(numbers(dataset / "train/train_img"))
    assert 2 <= np.sum(gaps > 1) <= 4


def test_same_seed_same_bytes_with_any_number_of_workers(dataset, tmp_path):
    command = [sys.executable, SCRIPT, tmp_path / "two", *TINY, "--num_workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and "dB" in done.stdout
    assert contents(tmp_path / "two") == contents(dataset)


def test_other_seed_other_files(dataset, tmp_path):
    one, other = contents(dataset), contents(make(tmp_path / "data", "--seed", 1))
    assert all(one[name] != other[name] for name in other if name.startswith("truth"))


def test_splits_move_differently():
    args = synthetic.parse([os.devnull + "-absent"])
    tracks = [next(synthetic.chunks_of(shot, 0, SIZE)).body["pelvis"][:16] for shot in synthetic.plan(args)]
    assert all(not np.allclose(a, b, atol=0.01) for i, a in enumerate(tracks) for b in tracks[:i])


def test_people_have_own_looks_and_are_dealt_in_turn(tmp_path):
    args = synthetic.parse([str(tmp_path / "data"), "--people", "3"])
    shots = synthetic.plan(args)
    assert [shot.person for shot in shots if shot.stream[0] == scene.TEST] == [0, 1, 2, 0, 1]
    assert {shot.person for shot in shots if shot.stream[0] == scene.TRAIN} == {0, 1, 2}
    looks, rooms = zip(*(scene.scenery(0, person, SIZE) for person in range(3)), strict=True)
    assert not np.allclose(looks[0].shirt, looks[1].shirt) and not np.allclose(looks[1].shirt, looks[2].shirt)
    assert not np.allclose(rooms[0].picture, rooms[1].picture)


def test_pose_is_blank_exactly_when_the_person_is_out(performance):
    room, seen = empty_room(performance).astype(int), {True: 0, False: 0}
    for t in range(0, 630, 6):
        frame, pose = draw(performance, t)
        changed = np.mean(np.abs(frame - room).max(-1) > 12)
        blank = bool((pose == 255).all())
        seen[blank] += 1
        assert changed < 0.01 if blank else changed > 0.001, t
    assert seen[True] >= 3 and seen[False] >= 80  # both happen


def test_pose_lies_on_the_person(performance):
    room = empty_room(performance).astype(int)
    for t in range(0, 630, 45):
        frame, pose = draw(performance, t)
        drawn, changed = (pose < 128).any(-1), np.abs(frame - room).max(-1) > 12
        assert drawn.sum() < 10 or changed[drawn].mean() > 0.7, t


def test_left_and_right_have_their_own_colours_and_sides():
    left = {colour for a, b, colour in scene.BONES if "l_" in a + b}
    right = {colour for a, b, colour in scene.BONES if "r_" in a + b}
    assert len(left) == len(right) == 7 and not left & right
    still = np.array([[0.0, 2.5, yaw, *scene.REST.values()] for yaw in (0.0, np.pi)]).repeat(2, 0)
    body = scene.skeleton(still[[0, 0]], 1.72, np.random.default_rng(0))
    away = scene.skeleton(still[[2, 2]], 1.72, np.random.default_rng(0))
    for turned, sign in ((body, 1), (away, -1)):  # facing us, the left hand is at the picture's right
        pose = scene.draw_pose({name: places[0] for name, places in turned.items()}, SIZE).astype(int)
        blue = (pose[..., 2] > 180) & (pose[..., 0] < 120)
        red = (pose[..., 0] > 160) & (pose[..., 2] < 80)
        assert blue.any() and red.any()
        assert sign * (np.nonzero(blue)[1].mean() - np.nonzero(red)[1].mean()) > 1


def test_bones_keep_their_length_and_feet_stay_on_the_floor(performance):
    body = performance[0]
    for bone in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle")):
        for side in "lr":
            a, b = (body[f"{side}_{joint}"] for joint in bone)
            assert np.ptp(np.linalg.norm(a - b, axis=1)) < 1e-9
    ankles = np.stack([body["l_ankle"][:, 1], body["r_ankle"][:, 1]])
    assert np.ptp(ankles.min(0)) < 1e-9 and 0 < ankles.min() < 0.12


def test_motion_is_smooth_but_goes_far(performance):
    body = performance[0]
    joints = np.stack([places for name, places in body.items()])
    assert np.linalg.norm(np.diff(joints, axis=1), axis=-1).max() < 0.3  # metres a frame: fast hands, no jump
    frames = [draw(performance, t)[0].astype(float) for t in range(40, 130, 3) for t in (t, t + 1)]
    next_frame = np.mean([np.mean((a - b) ** 2) for a, b in zip(frames[::2], frames[1::2], strict=True)])
    far_frame = np.mean([np.mean((a - b) ** 2) for a, b in zip(frames[:20], frames[-20:], strict=True)])
    assert 0 < 4 * next_frame < far_frame


@pytest.mark.parametrize("seed", range(3))
def test_every_motion_occurs(seed):
    track = scene.Choreography(scene.stream(seed, scene.TRAIN, 0), 2.0).perform(1800)
    p = dict(zip(scene.COLUMNS, track.T, strict=True))
    assert p["z"].min() < 1.7 < 2.3 < p["z"].max()  # near and far
    assert np.ptp(p["yaw"]) > np.pi and p["crouch"].max() > 0.9
    assert p["l_abd"].max() > 2 and p["r_abd"].max() > 2 and max(p["l_wave"].max(), p["r_wave"].max()) > 0.5
    out = np.abs(p["x"]) > scene.half_width(p["z"], 2.0) + 0.3
    assert out.any() and not out[0] and np.any(np.diff(out.astype(int)) == -1)  # left, and came back
    assert np.any(p["x"] < -0.5) and np.any(p["x"] > 0.5)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("sequence", [0, 3])
def test_repeating_the_first_frame_is_no_solution(seed, sequence):
    shot = synthetic.Shot(0, (scene.TEST, sequence), range(630), "", "")
    bodies = [{name: places[i] for name, places in chunk.body.items()}
              for chunk in synthetic.chunks_of(shot, seed, SIZE) for i in range(0, len(chunk.numbers), 15)]
    look, room = scene.scenery(seed, 0, SIZE)
    frames = [scene.draw_frame(body, look, room, Quiet()) for body in bodies]
    error = [np.mean((frame.astype(float) - frames[0]) ** 2) for frame in frames[1:]]
    assert 17 < np.mean(10 * np.log10(255**2 / np.array(error))) < 23


def test_score_of_repeating_the_first_frame(tmp_path):
    for i, value in enumerate((100, 100, 110)):
        Image.new("RGB", (16, 16), (value,) * 3).save(tmp_path / f"{i}.png")
    expected = (100 + 10 * np.log10(255**2 / 100)) / 2  # equal pictures are capped at 100 dB
    assert synthetic.repeat_first_psnr(tmp_path) == pytest.approx(expected)


def test_other_sizes_show_the_same_scene(performance):
    body, look, _ = performance
    body = {name: places[0] for name, places in body.items()}
    small = draw(performance, 0)[0].astype(float)
    large = scene.draw_frame(body, look, scene.scenery(0, 0, (64, 128))[1], Quiet()).astype(float)
    shrunk = large.reshape(32, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 3


@pytest.mark.parametrize("flags, word", [
    (["--frame_H", "8"], "--frame_H"), (["--frame_W", "0"], "--frame_W"), (["--people", "0"], "--people"),
    (["--train_frames", "20"], "--train_frames"), (["--people", "9"], "--train_frames"),
    (["--val_frames", "-1"], "--val_frames"), (["--test_sequences", "0"], "--test_sequences"),
    (["--test_frames", "1"], "--test_frames"),
    (["--seed", "-1"], "--seed"), (["--num_workers", "-1"], "--num_workers"), (["--seed", "x"], "--seed"),
    (["--nonsense"], "--nonsense"),
])
def test_bad_flags_are_refused(tmp_path, capsys, flags, word):
    assert synthetic.main([str(tmp_path / "data"), *TINY, *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and word in error
    assert list(tmp_path.iterdir()) == []


def test_bad_destinations_are_refused(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for folder, word in (("full", "--overwrite"), ("file", "file"), ("file/below", "DESTINATION")):
        assert synthetic.main([str(tmp_path / folder), *TINY]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and word in error and str(tmp_path) in error
    assert contents(tmp_path) == before


def test_overwrite_replaces_its_own_folders_only(dataset, tmp_path):
    (tmp_path / "data/val/val_img").mkdir(parents=True)
    (tmp_path / "data/val/val_img/999.png").write_text("old")
    (tmp_path / "data/mine.txt").write_text("mine")
    make(tmp_path / "data", "--overwrite")
    assert contents(tmp_path / "data") == contents(dataset) | {"mine.txt": b"mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("step", ["write_dataset", "rename"])
@pytest.mark.parametrize("problem, code", [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 2)])
def test_a_failed_run_changes_nothing(tmp_path, monkeypatch, capsys, step, problem, code):
    folder = tmp_path / "data"
    for split in synthetic.SPLITS:
        (folder / split).mkdir(parents=True)
        (folder / split / "old.png").write_text(split)
    before, rename, calls = contents(tmp_path), Path.rename, []

    def failing(self, target):
        calls.append(target)
        if len(calls) == 4:  # two folders into the swap
            raise problem
        return rename(self, target)

    def stop(*_):
        raise problem

    if step == "rename":
        monkeypatch.setattr(Path, "rename", failing)
    else:
        monkeypatch.setattr(synthetic, "write_dataset", stop)
    assert synthetic.main([str(folder), *TINY, "--num_workers", "0", "--overwrite"]) == code
    assert contents(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["data"]
    assert capsys.readouterr().err.splitlines()[-1].startswith("make_synthetic_dataset: ")
