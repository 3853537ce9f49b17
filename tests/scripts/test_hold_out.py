"""Held-out stretches: which file goes where, and that the result is a dataset for both programs.

    python -m pytest tests/scripts/test_hold_out.py
"""
import pytest
import torch

import hold_out
from conftest import TRAIN_FRAMES, H, W, contents
from dataloader import list_frames, read_test_sequences, segments
from utils import BadInput


def test_each_frame_is_trained_on_or_held_out(data, tmp_path):
    held = tmp_path / "new" / "held"
    hold_out.main([str(data), str(held), "2-4", "7-8"])
    old, new = contents(data), contents(held)
    stretches = {2: 0, 3: 0, 4: 0, 7: 1, 8: 1}
    expected = {name: content for name, content in old.items() if name.startswith("val/")}
    for number in range(TRAIN_FRAMES):
        frame, pose = (old[f"train/train_{kind}/{number}.png"] for kind in ("img", "label"))
        if number in stretches:
            expected[f"truth/{stretches[number]}/{number}.png"] = frame
            expected[f"test/test_label/{stretches[number]}/{number}.png"] = pose
        else:
            expected[f"train/train_img/{number}.png"] = frame
            expected[f"train/train_label/{number}.png"] = pose
    expected |= {"test/test_img/0/2.png": expected["truth/0/2.png"], "test/test_img/1/7.png": expected["truth/1/7.png"]}
    assert new == expected
    assert [sequence.numbers for sequence in read_test_sequences(held, H, W, 1)] == [[2, 3, 4], [7, 8]]


def test_what_is_left_is_cut_where_a_stretch_was(data, tmp_path):
    hold_out.main([str(data), str(tmp_path / "held"), "2-4"])
    numbers = torch.tensor(list(list_frames(tmp_path / "held" / "train" / "train_img")))
    assert segments(numbers).tolist()[:2] == [0, 2]


@pytest.mark.parametrize("stretches, message", [
    (["2:4"], "FIRST-LAST"), (["4-2"], "FIRST-LAST"), (["3-3"], "FIRST-LAST"), (["2-4", "4-6"], "overlap"),
    ([f"2-{TRAIN_FRAMES}"], f"no frame {TRAIN_FRAMES}"), ([f"0-{TRAIN_FRAMES - 1}"], "nothing is left"),
])
def test_what_cannot_be_held_out_is_refused_and_nothing_written(data, tmp_path, stretches, message):
    with pytest.raises(BadInput, match=message):
        hold_out.main([str(data), str(tmp_path / "held"), *stretches])
    assert not list(tmp_path.iterdir())


def test_a_missing_dataset_is_named(tmp_path):
    with pytest.raises(BadInput, match="no such folder; point DATASET"):
        hold_out.main([str(tmp_path / "data"), str(tmp_path / "held"), "2-4"])


def test_a_folder_with_files_is_not_touched(data, tmp_path):
    (tmp_path / "mine.txt").write_text("the user's")
    with pytest.raises(BadInput, match="not empty"):
        hold_out.main([str(data), str(tmp_path), "2-4"])
    assert contents(tmp_path) == {"mine.txt": b"the user's"}


def test_a_copy_that_fails_leaves_nothing(data, tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hold_out.shutil, "copyfile", refuse)
    with pytest.raises(OSError, match="No space"):
        hold_out.main([str(data), str(tmp_path / "held"), "2-4"])
    assert not list(tmp_path.iterdir())
