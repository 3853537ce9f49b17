"""The synthetic dataset: layout, seeds, invalid flags, failures.

    python -m pytest tests/scripts/test_make_synthetic_dataset.py
"""
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import make_synthetic_dataset as synthetic
import synthetic_scene as scene

TINY = ["--train_frames", "80", "--val_frames", "20", "--test_sequences", "2", "--test_frames", "12"]
SIZE = (32, 64)


def make(folder, *flags):
    assert synthetic.main([str(folder), *TINY, "--num_workers", "0", *map(str, flags)]) == 0
    return folder


def contents(folder):
    """Bytes of every file below a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != synthetic.MARKER}


def numbers(folder):
    return sorted(int(path.stem) for path in folder.iterdir())


def read(path):
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make(tmp_path_factory.mktemp("synthetic") / "data")


def test_layout_and_numbering(dataset):
    assert {path.name for path in dataset.iterdir()} == {"train", "val", "test", "truth", synthetic.MARKER}
    assert len(numbers(dataset / "train/train_img")) == 80
    assert 2 <= np.sum(np.diff(numbers(dataset / "train/train_img")) > 1) <= 4  # cuts
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


def test_the_number_of_workers_does_not_change_the_files(dataset, tmp_path, capsys):
    assert synthetic.main([str(tmp_path / "two"), *TINY, "--num_workers", "2"]) == 0
    assert "dB" in capsys.readouterr().out
    assert contents(tmp_path / "two") == contents(dataset)


def test_another_seed_gives_other_files(dataset, tmp_path):
    one, other = contents(dataset), contents(make(tmp_path / "data", "--seed", 1, "--train_frames", 48))
    assert all(one[name] != other[name] for name in other if name.startswith("truth"))


def test_splits_move_differently():
    args = synthetic.parse([os.devnull + "-absent"])
    tracks = [next(synthetic.chunks_of(shot, 0, SIZE)).body["pelvis"][:16] for shot in synthetic.plan(args)]
    assert all(not np.allclose(a, b, atol=0.01) for i, a in enumerate(tracks) for b in tracks[:i])


def test_people_have_own_looks_and_take_turns(tmp_path):
    args = synthetic.parse([str(tmp_path / "data"), "--people", "3"])
    shots = synthetic.plan(args)
    assert [shot.person for shot in shots if shot.stream[0] == scene.TEST] == [0, 1, 2, 0, 1]
    assert {shot.person for shot in shots if shot.stream[0] == scene.TRAIN} == {0, 1, 2}
    looks, rooms = zip(*(scene.scenery(0, person, SIZE) for person in range(3)), strict=True)
    assert not np.allclose(looks[0].shirt, looks[1].shirt) and not np.allclose(looks[1].shirt, looks[2].shirt)
    assert not np.allclose(rooms[0].picture, rooms[1].picture)


def test_score_of_repeating_the_first_frame(tmp_path):
    for i, value in enumerate((100, 100, 110)):
        Image.new("RGB", (16, 16), (value,) * 3).save(tmp_path / f"{i}.png")
    expected = (100 + 10 * np.log10(255**2 / 100)) / 2  # equal frames are capped at 100 dB
    assert synthetic.repeat_first_psnr(tmp_path) == pytest.approx(expected)


@pytest.mark.parametrize("flags, word", [
    (["--frame_H", "8"], "--frame_H"), (["--frame_W", "0"], "--frame_W"), (["--people", "0"], "--people"),
    (["--train_frames", "20"], "--train_frames"), (["--people", "9"], "--train_frames"),
    (["--val_frames", "-1"], "--val_frames"), (["--test_sequences", "0"], "--test_sequences"),
    (["--test_frames", "1"], "--test_frames"),
    (["--seed", "-1"], "--seed"), (["--num_workers", "-1"], "--num_workers"), (["--seed", "x"], "--seed"),
    (["--nonsense"], "--nonsense"),
])
def test_invalid_flags_are_refused(tmp_path, capsys, flags, word):
    with pytest.raises(SystemExit, match="2"):
        synthetic.main([str(tmp_path / "data"), *TINY, *flags])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and word in error
    assert list(tmp_path.iterdir()) == []


def test_invalid_destinations_are_refused(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for folder, word in (("full", "is not empty"), ("file", "file"), ("file/below", "DESTINATION")):
        try:
            assert synthetic.main([str(tmp_path / folder), *TINY]) == 2
        except SystemExit as stop:
            assert stop.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and word in error and str(tmp_path) in error
    assert contents(tmp_path) == before


def test_overwrite_replaces_its_own_folders_only(dataset, tmp_path):
    (tmp_path / "data/val/val_img").mkdir(parents=True)
    (tmp_path / "data/val/val_img/999.png").write_text("old")
    (tmp_path / "data/mine.txt").write_text("mine")
    (tmp_path / "data" / synthetic.MARKER).write_text("")
    make(tmp_path / "data", "--overwrite")
    assert contents(tmp_path / "data") == contents(dataset) | {"mine.txt": b"mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_dataset_that_was_not_drawn_is_never_replaced(tmp_path, capsys):
    (tmp_path / "data/train/train_img").mkdir(parents=True)
    (tmp_path / "data/train/train_img/0.png").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(SystemExit):
        synthetic.main([str(tmp_path / "data"), *TINY, "--overwrite"])
    assert "is not empty; choose a new folder\n" in capsys.readouterr().err and contents(tmp_path) == before


@pytest.mark.parametrize("step", ["write_dataset", "rename"])
@pytest.mark.parametrize("problem, code", [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 2)])
def test_a_failed_run_changes_nothing(tmp_path, monkeypatch, capsys, step, problem, code):
    folder = tmp_path / "data"
    for split in synthetic.SPLITS:
        (folder / split).mkdir(parents=True)
        (folder / split / "old.png").write_text(split)
    (folder / synthetic.MARKER).write_text("")
    before, rename, calls = contents(tmp_path), Path.rename, []

    def write_dataset(root, args):
        if step == "write_dataset":
            raise problem
        for split in synthetic.SPLITS:
            (root / split).mkdir()

    def failing_rename(self, target):
        calls.append(target)
        if len(calls) == 4:  # two folders have been exchanged
            raise problem
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing_rename)
    monkeypatch.setattr(synthetic, "write_dataset", write_dataset)
    monkeypatch.setattr(synthetic, "repeat_first_psnr", lambda folder: 20.0)
    assert synthetic.main([str(folder), "--overwrite"]) == code
    assert contents(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["data"]
    assert capsys.readouterr().err.startswith("make_synthetic_dataset.py: ")
