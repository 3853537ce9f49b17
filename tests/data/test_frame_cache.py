"""Cache of decoded frames: when it is used, where it is kept, and what damage it survives.

    pytest tests/data/test_frame_cache.py
"""
import multiprocessing
import os
import pickle
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from modules.data import frame_cache
from modules.data.frame_cache import HEADER, SIZES, UNUSED_DAYS, FrameCache

H, W = 2, 4
COUNT = 5


class Miss(Exception):
    """The cache holds no valid file."""


def miss() -> np.ndarray:
    raise Miss


def list_images(root: Path) -> list[Path]:
    return sorted((root / "images").glob("*.png"))


def pixels(count: int = COUNT, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, H, W), np.uint8)


def store(root: Path, images: np.ndarray, folder: Path | None = None) -> None:
    """Let the cache decode ``images``."""
    FrameCache(root, folder).read(list_images(root), H, W, lambda: images)


def load(root: Path, folder: Path | None = None) -> np.ndarray:
    """The cached images. Raises Miss if there are none."""
    return FrameCache(root, folder).read(list_images(root), H, W, miss)


def is_cached(root: Path, folder: Path | None = None) -> bool:
    try:
        load(root, folder)
    except Miss:
        return False
    return True


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A folder of images, which nothing here decodes, and a user's cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    folder = tmp_path / "data" / "images"
    folder.mkdir(parents=True)
    for number in range(COUNT):
        (folder / f"{number}.png").write_bytes(bytes([number] * 9))
        os.utime(folder / f"{number}.png", (0, number))  # as if copied one after the other
    return tmp_path / "data"


# What is returned

@pytest.mark.parametrize("place", [None, "elsewhere"])
def test_the_second_start_reads_the_same_pixels_without_decoding(place, root, tmp_path):
    folder = place and tmp_path / place
    store(root, pixels(), folder)
    assert np.array_equal(load(root, folder), pixels())
    assert files(folder or root / ".frame_cache")
    assert (root / ".frame_cache").exists() == (folder is None)


def overwrite(file: Path) -> None:
    with open(file, "r+b") as stream:
        stream.seek(HEADER)
        stream.write(bytes(50))


@pytest.mark.parametrize("change", [overwrite, lambda file: os.truncate(file, 0), Path.unlink],
                         ids=["overwritten", "truncated", "deleted"])
def test_nothing_that_happens_to_a_file_reaches_images_that_were_read(change, root):
    """A map of the file would show what was overwritten, and end the process when it was truncated."""
    store(root, pixels())
    cached = load(root)
    change(*files(root / ".frame_cache"))
    assert np.array_equal(cached, pixels()) and not is_cached(root)


def test_changed_images_do_not_change_the_file(root):
    store(root, pixels())
    file, = files(root / ".frame_cache")
    before = file.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.from_numpy(load(root))[0] = 0
    assert file.read_bytes() == before and np.array_equal(load(root), pixels())


def test_a_file_is_replaced_rather_than_rewritten(root, tmp_path):
    store(root, pixels())
    file, = files(root / ".frame_cache")
    os.link(file, tmp_path / "old")
    before = file.read_bytes()
    change_content(root / "images")
    store(root, pixels(seed=1))
    assert (tmp_path / "old").read_bytes() == before != file.read_bytes()


def test_errors_of_decoding_leave_no_cache(root):
    assert not is_cached(root)
    (root / "images" / "3.png").unlink()
    (root / "images" / "3.png").symlink_to("missing")
    assert not is_cached(root) and not (root / ".frame_cache").exists()


def test_each_frame_size_has_its_own_file(root):
    store(root, pixels())
    FrameCache(root).read(list_images(root), W, H, lambda: np.zeros((COUNT, 3, W, H), np.uint8))
    assert np.array_equal(load(root), pixels())
    assert not FrameCache(root).read(list_images(root), W, H, miss).any()


# What makes it outdated

def change_content(folder: Path) -> None:
    (folder / "3.png").write_bytes(b"longer than before")


def change_time(folder: Path) -> None:
    os.utime(folder / "3.png", ns=(0, (folder / "3.png").stat().st_mtime_ns + 1))


def exchange_two(folder: Path) -> None:
    (folder / "3.png").rename(folder / "x")
    (folder / "4.png").rename(folder / "3.png")
    (folder / "x").rename(folder / "4.png")


def rename(folder: Path) -> None:
    (folder / "4.png").rename(folder / "5.png")


@pytest.mark.parametrize("change", [change_content, change_time, exchange_two, rename])
def test_changed_images_are_decoded_again(change, root):
    store(root, pixels())
    change(root / "images")
    assert not is_cached(root)
    store(root, pixels(seed=1))
    assert np.array_equal(load(root), pixels(seed=1))


def test_added_removed_and_reordered_images_are_decoded_again(root):
    store(root, pixels())
    paths = list_images(root)
    for other in (paths[:-1], paths[::-1], [*paths, paths[0]]):
        with pytest.raises(Miss):
            FrameCache(root).read(other, H, W, miss)


@pytest.mark.parametrize("module, name", [(frame_cache, "VERSION"), (frame_cache.PIL, "__version__")])
def test_another_decoder_decodes_again(module, name, root, monkeypatch):
    store(root, pixels())
    monkeypatch.setattr(module, name, "another")
    assert not is_cached(root)


# Damage

def test_any_flipped_bit_and_any_other_length_is_detected(root):
    store(root, pixels())
    file, = files(root / ".frame_cache")
    whole = file.read_bytes()
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        file.write_bytes(flipped)
        assert not is_cached(root)
    for length in [*range(0, len(whole), 9), len(whole) + 1]:
        file.write_bytes(whole[:length].ljust(length, b"\0"))
        assert not is_cached(root)
    store(root, pixels())
    assert file.read_bytes() == whole and is_cached(root)


def test_a_file_is_never_executed(root, tmp_path):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    store(root, pixels())
    file, = files(root / ".frame_cache")
    whole = file.read_bytes()
    for start in (b"", whole[:32], whole[:HEADER], b"\x93NUMPY\x01\x00"):
        file.write_bytes((start + pickle.dumps(Malicious())).ljust(len(whole), b"\0"))
        assert not is_cached(root)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", os.mkdir)], ids=["folder", "pipe"])
def test_what_is_not_a_file_is_ignored(make, root):
    store(root, pixels())
    file, = files(root / ".frame_cache")
    file.unlink()
    make(file)
    assert not is_cached(root)


# Places

def test_an_unwritable_dataset_is_cached_in_the_users_folder(root, tmp_path, capsys):
    (root / ".frame_cache").write_bytes(b"")  # root ignores write protection, but not a file in the way
    store(root, pixels())
    assert np.array_equal(load(root), pixels())
    other = shutil.copytree(root, tmp_path / "elsewhere" / root.name)  # same name, same images
    store(other, pixels(seed=1))
    assert np.array_equal(load(root), pixels()) and np.array_equal(load(other), pixels(seed=1))
    assert len(files(tmp_path / "user" / "pose-video-prediction")) == 2
    assert capsys.readouterr().err == ""


def test_a_warning_is_printed_once_if_no_place_is_writable(root, tmp_path, capsys):
    for path in (root / ".frame_cache", tmp_path / "user"):
        path.write_bytes(b"")
    cache = FrameCache(root)
    for _ in range(2):
        assert np.array_equal(cache.read(list_images(root), H, W, pixels), pixels())
    line, = capsys.readouterr().err.splitlines()
    assert str(root) in line and str(tmp_path / "user") in line


def test_a_full_disk_costs_the_cache_but_not_the_run(root, tmp_path, capsys):
    """Uses a real limit of the system: no file may exceed 100 bytes."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        images = FrameCache(root, tmp_path / "cache").read(list_images(root), H, W, pixels)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert np.array_equal(images, pixels()) and files(tmp_path / "cache") == []
    assert str(tmp_path / "cache") in capsys.readouterr().err


def test_a_cache_that_cannot_be_marked_as_used_is_read(root, monkeypatch):
    def refuse(*args):
        raise PermissionError(1, "Operation not permitted")

    store(root, pixels())
    monkeypatch.setattr(os, "utime", refuse)
    assert np.array_equal(load(root), pixels())


def test_the_cache_moves_with_the_dataset(root, tmp_path):
    store(root, pixels())
    assert np.array_equal(load(root.rename(tmp_path / "moved")), pixels())


def start_repeatedly(root: Path) -> None:
    for index in range(20):
        assert np.array_equal(FrameCache(root).read(list_images(root), H, W, pixels), pixels())
        if index % 2:
            for path in (root / ".frame_cache").rglob("*.frames"):
                path.unlink(missing_ok=True)


def test_several_processes_can_start_at_once(root):
    processes = [multiprocessing.get_context("fork").Process(target=start_repeatedly, args=(root,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert all(path.suffix == ".frames" for path in files(root / ".frame_cache"))


# Other users

STRANGER = 4321


def pretend_owner(path: Path, user: int, monkeypatch) -> None:
    """Let the system say that ``path`` (if it is a link: the link itself) belongs to ``user``."""
    inode = os.lstat(path).st_ino

    def call(real: Callable, *args, **kwargs) -> os.stat_result:
        status = real(*args, **kwargs)
        return os.stat_result((*status[:4], user, *status[5:10])) if status.st_ino == inode else status

    for name in ("stat", "lstat", "fstat"):
        monkeypatch.setattr(os, name, partial(call, getattr(os, name)))


def modes(folder: Path) -> set[str]:
    return {f"{path.stat().st_mode & 0o777:o}" for path in (folder, *folder.rglob("*"))}


@pytest.fixture
def public_root(monkeypatch) -> Iterator[Path]:
    """Images that every user can read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        if not all(parent.stat().st_mode & 0o001 for parent in Path(folder).resolve().parents):
            pytest.skip("every folder for temporary files is private")
        monkeypatch.setenv("XDG_CACHE_HOME", f"{folder}/user")
        images = Path(folder, "data", "images")
        images.mkdir(parents=True)
        for number in range(COUNT):
            (images / f"{number}.png").write_bytes(b"")
        for path in (images.parent, images, *images.iterdir()):
            path.chmod(0o644 if path.suffix else 0o755)
        yield images.parent


posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")


@posix
@pytest.mark.parametrize("umask, expected", [(0, {"755", "644"}), (0o022, {"755", "644"}), (0o077, {"700", "600"})])
def test_a_cache_is_readable_as_the_images_are_but_writable_for_its_owner_only(umask, expected, public_root):
    before = os.umask(umask)
    try:
        store(public_root, pixels())
    finally:
        os.umask(before)
    assert modes(public_root / ".frame_cache") == expected and is_cached(public_root)


@posix
@pytest.mark.parametrize("private, mode", [("data", 0o750), ("data/images", 0o700), ("data/images/3.png", 0o640)])
@pytest.mark.parametrize("folder", [None, "elsewhere"])
def test_a_cache_of_private_images_is_private_before_it_holds_pixels(folder, private, mode, public_root, monkeypatch):
    def header(*args) -> bytes:
        written.extend(modes(place))
        return make_header(*args)

    written, make_header = [], frame_cache._header
    monkeypatch.setattr(frame_cache, "_header", header)
    folder = folder and public_root.parent / folder
    (public_root.parent / private).chmod(mode)
    place, = FrameCache(public_root, folder).places[0][:1]
    store(public_root, pixels(), folder)
    assert set(written) == modes(place) == {"700", "600"}
    assert is_cached(public_root, folder)


@posix
def test_a_public_cache_of_images_that_became_private_is_replaced(public_root, capsys):
    store(public_root, pixels())
    (public_root / "images").chmod(0o700)
    assert not is_cached(public_root)
    assert "can be read by users who cannot read the images" in capsys.readouterr().err
    store(public_root, pixels())
    assert modes(public_root / ".frame_cache") == {"700", "600"} and is_cached(public_root)


@posix
@pytest.mark.parametrize("name, mode", [("", 0o777), ("images", 0o775), (f"images/{H}x{W}.frames", 0o646)])
def test_a_cache_that_others_can_write_is_not_used_but_replaced(name, mode, root, capsys):
    store(root, pixels(seed=1))
    (root / ".frame_cache" / name).chmod(mode)
    store(root, pixels())
    line, = capsys.readouterr().err.splitlines()
    assert f"{root / '.frame_cache' / name} can be changed by other users" in line
    assert np.array_equal(load(root), pixels()) and modes(root / ".frame_cache") == {"700", "600"}


@pytest.mark.parametrize("name", ["", "images"])
def test_a_folder_that_another_user_placed_is_not_used(name, root, tmp_path, monkeypatch, capsys):
    shared = tmp_path / "shared"
    store(root, pixels(seed=1), shared)
    place = FrameCache(root, shared).places[0][0]
    before = [path.read_bytes() for path in files(shared)]
    pretend_owner(place / name, STRANGER, monkeypatch)
    cache = FrameCache(root, shared)
    for _ in range(2):
        assert np.array_equal(cache.read(list_images(root), H, W, pixels), pixels())
    assert [path.read_bytes() for path in files(shared)] == before
    unused, unwritable = capsys.readouterr().err.splitlines()
    assert f"{place / name} belongs to another user" in unused and "belongs to another user" in unwritable


def test_a_file_that_another_user_placed_is_replaced(root, tmp_path, monkeypatch, capsys):
    store(root, pixels(seed=1), tmp_path)
    file, = files(FrameCache(root, tmp_path).places[0][0])
    pretend_owner(file, STRANGER, monkeypatch)
    store(root, pixels(), tmp_path)
    assert f"{file} belongs to another user" in capsys.readouterr().err
    assert np.array_equal(load(root, tmp_path), pixels())


def test_a_link_that_another_user_placed_is_not_followed(root, tmp_path, monkeypatch, capsys):
    place, target = FrameCache(root, tmp_path / "shared").places[0][0], tmp_path / "target"
    target.mkdir(0o755)
    place.parent.mkdir()
    place.symlink_to(target)
    pretend_owner(place, STRANGER, monkeypatch)
    store(root, pixels(), tmp_path / "shared")
    assert list(target.iterdir()) == [] and modes(target) == {"755"}
    assert "belongs to another user" in capsys.readouterr().err


def test_the_owner_of_the_images_is_trusted_with_their_cache(root, monkeypatch, capsys):
    store(root, pixels())
    for path in (root / "images", *(root / ".frame_cache").rglob("*")):
        pretend_owner(path, STRANGER, monkeypatch)
    assert np.array_equal(load(root), pixels()) and capsys.readouterr().err == ""


def test_an_untrusted_cache_is_not_mentioned_where_another_is_used(root, tmp_path, monkeypatch, capsys):
    store(root, pixels(seed=1))
    pretend_owner(root / ".frame_cache", STRANGER, monkeypatch)
    store(root, pixels())
    assert files(tmp_path / "user") and "belongs to another user" in capsys.readouterr().err
    assert np.array_equal(load(root), pixels()) and capsys.readouterr().err == ""


# Old files

def test_each_folder_keeps_the_frame_sizes_used_last(root):
    def read(size: int) -> None:
        FrameCache(root).read(list_images(root), size, size, lambda: np.zeros((COUNT, 3, size, size), np.uint8))

    def age(size: int, seconds: int) -> None:
        os.utime(root / ".frame_cache" / "images" / f"{size}x{size}.frames", 2 * (time.time() - seconds,))

    for size in range(1, SIZES + 1):
        read(size)
        age(size, 100 - size)
    read(1)  # the oldest is in use again
    read(9)
    kept = [1, *range(3, SIZES + 1), 9]
    assert [path.name for path in files(root / ".frame_cache")] == [f"{size}x{size}.frames" for size in kept]


def test_files_unused_for_long_are_deleted(root):
    caches = root / ".frame_cache"
    ages = {"a/1x1.frames": UNUSED_DAYS + 1, "a/2x2.frames": UNUSED_DAYS - 1, "b/c/.3x3.frames.77.tmp": UNUSED_DAYS + 1,
            "b/c/.4x4.frames.77.tmp": 1, "b/notes.txt": 1000, "b/notes.frames": 1000}
    for name, days in ages.items():
        (caches / name).parent.mkdir(parents=True, exist_ok=True)
        (caches / name).write_bytes(b"")
        os.utime(caches / name, 2 * (time.time() - days * 24 * 3600,))
    store(root, pixels())
    assert {str(path.relative_to(caches)) for path in files(caches)} == {
        "a/2x2.frames", "b/c/.4x4.frames.77.tmp", "b/notes.txt", "b/notes.frames", f"images/{H}x{W}.frames"}
