"""Files that are replaced whole or not at all.

    python -m pytest tests/test_files.py
"""
import os

import pytest

from conftest import contents
from utils import atomic_write


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert contents(tmp_path) == {"file": b"old"}
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == path.parent
    assert contents(tmp_path) == {"file": b"new"}


def test_a_folder_is_made_where_it_is_missing(tmp_path):
    with atomic_write(tmp_path / "new" / "below" / "file") as temporary:
        temporary.write_text("")
    assert contents(tmp_path) == {"new/below/file": b""}


def test_the_name_changes_hands_only_after_file_and_folder_are_on_the_disk(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
                        or fsync(descriptor))
    monkeypatch.setattr(os, "replace", lambda *names: done.append("rename") or replace(*names))
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("new")
    if os.path.exists("/proc/self/fd"):
        assert done == [str(temporary.resolve()), "rename", str(tmp_path.resolve())]


def test_a_disk_that_refuses_is_named_with_the_file_and_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    path.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error, atomic_write(path) as temporary:
        temporary.write_text("new")
    assert (error.value.errno, error.value.filename) == (28, str(path))
    assert contents(tmp_path) == {"last.ckpt": b"old"}
