"""Scores by where the person is: the groups, their means, invalid results.

    python -m pytest tests/scripts/test_score_by_pose.py
"""
import json

import pytest
import torch

import score_by_pose
from conftest import H, W, write_sequence
from score_by_pose import group_poses
from utils import BadInput, write_table


def poses(*boxes) -> torch.Tensor:
    """White pictures of 10 x 20 with one black box (top, left, bottom, right) each; None for no pose."""
    labels = torch.full((len(boxes), 3, 10, 20), 255, dtype=torch.uint8)
    for label, box in zip(labels, boxes, strict=True):
        if box is not None:
            label[:, box[0]:box[2], box[1]:box[3]] = 0
    return labels


def test_each_frame_is_in_one_group():
    labels = poses((3, 5, 8, 7), (0, 5, 10, 7), (2, 5, 10, 7), (0, 0, 10, 4), (3, 18, 8, 20), None)
    groups = group_poses(labels, 0.8)
    assert {name: frames.nonzero().flatten().tolist() for name, frames in groups.items()} == {
        "all": [0, 1, 2, 3, 4, 5], "whole": [0, 2], "close": [1], "leaving": [3, 4, 5]}
    pale = poses((0, 5, 10, 7))
    pale[pale == 0] = 245  # a thin line in a downscaled picture
    assert group_poses(pale, 0.8)["close"].item()


def make_result(root, psnr):
    """Scores of one sequence, and its dataset."""
    folder = root / "result"
    folder.mkdir()
    write_sequence(root / "data", "0", len(psnr), seed=1)
    (folder / "summary.json").write_text(json.dumps({"split": "test", "sequences": {"0": {}}}))
    rows = [{"frame": frame, "psnr": value, "brightness_error": value / 100} for frame, value in enumerate(psnr)]
    write_table(folder / "seq0.csv", ("frame", "psnr", "brightness_error"), rows)
    return folder


@pytest.fixture
def result(tmp_path):
    return make_result(tmp_path, (100.0, 30.0, 20.0, 10.0))


def call(result, *flags):
    score_by_pose.main([str(result), "--DR", str(result.parent / "data"), "--frame_H", str(H), "--frame_W", str(W),
                        "--no-cache", *flags])


def test_means_exclude_the_given_frame(result, capsys):
    (result / "sequences.csv").write_text("the user's")
    call(result)
    rows = {line.split()[1]: line.split()[2:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows["all"] == ["3", "20.00", "+0.2000"]  # no slope of so few frames
    assert sum(int(rows[group][0]) for group in ("whole", "close", "leaving")) == 3
    assert rows["whole"] == ["0", "-", "-"]  # the dataset's poses have a black background: no person is whole


def test_a_long_sequence_has_a_slope(tmp_path, capsys):
    call(make_result(tmp_path, [100.0, *(40.2 - frame / 100 for frame in range(1, 121))]))
    assert capsys.readouterr().out.splitlines()[1].split()[2:] == ["120", "39.59", "+0.3960", "-6.00"]


@pytest.mark.parametrize("damage, words", [
    (lambda folder: (folder / "summary.json").unlink(), "summary.json"),
    (lambda folder: (folder / "summary.json").write_text("{"), "no valid scores"),
    (lambda folder: (folder / "seq0.csv").unlink(), "no valid scores.*seq0.csv"),
    (lambda folder: (folder / "summary.json").write_text('{"split": "val", "sequences": {"0": {}}}'),
     "do not belong together"),
    (lambda folder: (folder / "summary.json").write_text('{"split": "val"}'), "no valid scores"),
    (lambda folder: (folder.parent / "data/test/test_label/0/2.png").unlink(), "pose of frame 2"),
    (lambda folder: (folder.parent / "data/test/test_label/0/3.png").unlink(), "sequence 0 .*--DR"),
    (lambda folder: (folder / "seq0.csv").write_text("frame,psnr\n0,1\n"), "no valid scores")])
def test_an_invalid_result_is_refused(damage, words, result):
    damage(result)
    with pytest.raises(BadInput, match=words):
        call(result)


@pytest.mark.parametrize("name", ["summary.json", "seq0.csv"])
def test_an_endless_file_is_refused(name, result):
    (result / name).unlink()
    (result / name).symlink_to("/dev/zero")
    with pytest.raises(BadInput, match="no valid scores"):
        call(result)
