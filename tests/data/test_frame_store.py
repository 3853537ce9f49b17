"""Stored stacks of frames: what comes back, what is refused, what is deleted. The places are dataloader.py's.

    python -m pytest tests/test_frame_store.py
"""
import os
import pickle
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from modules.data import frame_store

SOURCE = bytes(range(32))
SHAPE = (5, 3, 2, 4)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


@pytest.fixture
def path(tmp_path, images) -> Path:
    path = tmp_path / "train_img" / "2x4.frames"
    frame_store.write(path, SOURCE, images)
    return path


def test_what_is_stored_comes_back_as_a_map_of_the_file(path, images):
    stored = frame_store.read(path, SOURCE, SHAPE)
    assert isinstance(stored, np.memmap) and np.array_equal(stored, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = torch.from_numpy(stored)
    before = path.read_bytes()
    tensor[0] = 0  # a copy of that page, for this process alone
    assert path.read_bytes() == before and np.array_equal(frame_store.read(path, SOURCE, SHAPE), images)


def test_a_map_keeps_its_pixels_when_the_file_is_replaced_or_deleted(path, images):
    stored = frame_store.read(path, SOURCE, SHAPE)
    frame_store.write(path, SOURCE, 255 - images)
    assert np.array_equal(stored, images)
    path.unlink()
    assert np.array_equal(stored, images)


def test_another_source_or_shape_is_none(path):
    for source, shape in ((SOURCE[::-1], SHAPE), (SOURCE, (4, 3, 2, 4)), (SOURCE, (10**9, 3, 10**5, 10**5))):
        assert frame_store.read(path, source, shape) is None
    assert frame_store.read(path.with_name("gone"), SOURCE, SHAPE) is None
    assert frame_store.read(path / "below", SOURCE, SHAPE) is None


def test_a_flipped_bit_in_any_byte_and_any_other_length_is_noticed(path):
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert frame_store.read(path, SOURCE, SHAPE) is None
    for length in range(0, len(whole), 9):
        path.write_bytes(whole[:length])
        assert frame_store.read(path, SOURCE, SHAPE) is None
    path.write_bytes(whole + b"\0")
    assert frame_store.read(path, SOURCE, SHAPE) is None
    path.write_bytes(whole)
    assert frame_store.read(path, SOURCE, SHAPE) is not None


def test_what_is_no_file_is_none(path, tmp_path, images):
    path.unlink()
    path.mkdir()
    assert frame_store.read(path, SOURCE, SHAPE) is None
    with pytest.raises(OSError):
        frame_store.write(path, SOURCE, images)
    assert path.is_dir() and [child.name for child in path.parent.iterdir()] == [path.name]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert frame_store.read(tmp_path / "pipe", SOURCE, SHAPE) is None


def test_a_file_that_may_not_be_read_is_none(path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # root may read everything
    assert frame_store.read(path, SOURCE, SHAPE) is None


def test_nothing_in_a_file_is_executed(path, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    length = path.stat().st_size
    for content in (pickle.dumps(Evil()), SOURCE + pickle.dumps(Evil()), b"\x93NUMPY\x01\x00" + pickle.dumps(Evil())):
        path.write_bytes(content.ljust(length, b"\0"))
        assert frame_store.read(path, SOURCE, SHAPE) is None
    assert not (tmp_path / "executed").exists()


def test_the_source_tells_files_sizes_and_decoders_apart(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        path.write_bytes(b"abc")
    sources = [frame_store.describe(paths, 2, 4)]

    def changed(*args):
        sources.append(frame_store.describe(*(args or (paths, 2, 4))))
        return sources.count(sources[-1]) == 1

    assert not changed()  # nothing was
    assert changed(paths, 4, 2) and changed(paths[:2], 2, 4) and changed(paths[::-1], 2, 4)
    os.utime(paths[1], ns=(0, paths[1].stat().st_mtime_ns + 1))
    assert changed()
    paths[1].write_bytes(b"abcd")
    os.utime(paths[1], ns=(0, 0))
    assert changed()
    paths[2] = paths[2].rename(tmp_path / "7.png")
    assert changed()
    monkeypatch.setattr(frame_store, "VERSION", frame_store.VERSION + 1)
    assert changed()
    monkeypatch.setattr(frame_store.PIL, "__version__", "0")
    assert changed()
    with pytest.raises(FileNotFoundError):
        frame_store.describe([tmp_path / "gone.png"], 2, 4)


def test_a_folder_keeps_the_frame_sizes_that_were_used_last(tmp_path, images):
    for age in range(frame_store.SIZES):
        path = tmp_path / f"{age}x{age}.frames"
        frame_store.write(path, SOURCE, images)
        os.utime(path, (10**9 - age, 10**9 - age))
    frame_store.read(tmp_path / "3x3.frames", SOURCE, SHAPE)  # the oldest, but in use again
    frame_store.write(tmp_path / "9x9.frames", SOURCE, images)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}x{n}.frames" for n in (0, 1, 3, 9)]


def test_what_nobody_has_used_for_long_and_what_the_dead_have_left_is_deleted(tmp_path):
    ages = {"a/1x1.frames": 31, "a/2x2.frames": 29, "b/c/.3x3.frames.77.tmp": 2, "b/c/.4x4.frames.77.tmp": 0.5,
            "b/notes.txt": 1000, "b/5x5.frames": 0}
    for name, days in ages.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, 2 * (time.time() - days * 24 * 3600,))
    frame_store.delete_unused(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"a/2x2.frames", "b/c/.4x4.frames.77.tmp", "b/notes.txt", "b/5x5.frames"}
