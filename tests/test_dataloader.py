"""The dataloader: order and pairing of frames, refusals, pixels, clips that respect cuts, test sequences, real data.

    python -m pytest tests/test_dataloader.py
"""
import multiprocessing
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Resize

import dataloader
import score_submission
import Tester
import Trainer
from conftest import TINY, TRAIN_FRAMES, H, W, contents, make_video, write_pngs, write_sequence, write_split
from modules.evaluation.metrics import course_score, psnr, repeat_first
from utils import BadInput

CPU = torch.device("cpu")
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "edn_subset"


def one_colour(value: int) -> np.ndarray:
    return np.full((H, W, 3), value, np.uint8)


def recording_of(numbers: list[int]) -> dataloader.Recording:
    """A recording whose frame n is all n and whose pose is all n + 1."""
    values = torch.tensor(numbers, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 5)
    return dataloader.Recording(values.clone(), values + 1, torch.tensor(numbers))


# Names

def test_frames_come_in_numeric_order(tmp_path):
    write_pngs(tmp_path, [one_colour(0)] * 4, [10, 2, 1, 100])
    assert list(dataloader.list_frames(tmp_path)) == [1, 2, 10, 100]


def test_names_may_have_a_prefix_zeros_and_capitals(tmp_path):
    for name in ("frame7.png", "0008.png", "seq_a-0010.PNG", "9.png"):
        Image.fromarray(one_colour(0)).save(tmp_path / name)
    assert {number: path.name for number, path in dataloader.list_frames(tmp_path).items()} == {
        7: "frame7.png", 8: "0008.png", 9: "9.png", 10: "seq_a-0010.PNG"}


def test_stray_files_are_passed_over(tmp_path):
    write_pngs(tmp_path, [one_colour(0)] * 2)
    for name in (".DS_Store", "Thumbs.db", "._1.png", "notes.txt", "3.jpg"):
        (tmp_path / name).write_bytes(b"stray")
    assert list(dataloader.list_frames(tmp_path)) == [0, 1]


@pytest.mark.parametrize("names", [("1.png", "01.png"), ("frame3.png", "3.png"), ("a2.png", "b2.PNG")])
def test_two_files_with_one_number_are_refused(names, tmp_path):
    for name in names:
        Image.fromarray(one_colour(0)).save(tmp_path / name)
    with pytest.raises(BadInput, match="same number . *; remove one") as error:
        dataloader.list_frames(tmp_path)
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize("name", ["cover.png", "1_2.png", "3 copy.png"])
def test_a_png_without_a_clear_number_is_refused(name, tmp_path):
    Image.fromarray(one_colour(0)).save(tmp_path / name)
    with pytest.raises(BadInput, match="not a number") as error:
        dataloader.list_frames(tmp_path)
    assert name in str(error.value)


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no such folder; point --truth"):
        dataloader.list_frames(tmp_path / "gone", "--truth")
    with pytest.raises(BadInput, match="no PNG file"):
        dataloader.list_frames(tmp_path)


# Pairs

def test_frames_and_poses_are_paired_by_number_and_never_by_position(tmp_path):
    """The names sort in another order than the numbers, and differently for frames and poses."""
    for number in (9, 10, 2, 101):
        for folder, name, value in (("train_img", f"{number}.png", number), ("train_label", f"p{number:05}.png", 100)):
            (tmp_path / "train" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(one_colour(number + value)).save(tmp_path / "train" / folder / name)
    recording = dataloader.read_recording(tmp_path, "train", H, W, 3)
    assert recording.numbers.tolist() == [2, 9, 10, 101]
    assert recording.frames[:, 0, 0, 0].tolist() == [4, 18, 20, 202]
    assert recording.labels[:, 0, 0, 0].tolist() == [102, 109, 110, 201]
    assert recording.frames.dtype == torch.uint8 and recording.frames.shape == (4, 3, H, W)


@pytest.mark.parametrize("lost, word, named", [("train_label", "pose", "train_img"),
                                               ("train_img", "frame", "train_label")])
def test_a_frame_without_its_pose_and_the_reverse_are_refused(lost, word, named, tmp_path):
    write_split(tmp_path, "train", 5, seed=0)
    (tmp_path / "train" / lost / "3.png").unlink()
    with pytest.raises(BadInput, match=f"its {word} is missing .*; add it or remove the") as error:
        dataloader.read_recording(tmp_path, "train", H, W, 1)
    assert str(tmp_path / "train" / named / "3.png") in str(error.value)
    assert str(tmp_path / "train" / lost) in str(error.value)


def test_equal_counts_with_different_numbers_are_refused(tmp_path):
    write_pngs(tmp_path / "train" / "train_img", [one_colour(0)] * 3, [0, 1, 2])
    write_pngs(tmp_path / "train" / "train_label", [one_colour(0)] * 3, [1, 2, 3])
    with pytest.raises(BadInput, match="0.png: its pose is missing"):
        dataloader.read_recording(tmp_path, "train", H, W, 1)


# Pixels

@pytest.mark.parametrize("mode", ["RGB", "P", "L", "1", "LA", "RGBA"])
@pytest.mark.parametrize("size", [(8, 16), (32, 64), (5, 9), (37, 21), (7, 40), (1, 1)], ids=str)
def test_pixels_are_those_of_torchvisions_resize(mode, size, tmp_path):
    dice = np.random.default_rng(size[0])
    image = Image.fromarray(dice.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
    assert image.mode == mode
    image.save(tmp_path / "0.png")
    expected = np.asarray(Resize((H, W))(Image.open(tmp_path / "0.png").convert("RGB")))
    assert np.array_equal(dataloader.read_image(tmp_path / "0.png", H, W), expected)


def test_sixteen_bits_become_their_upper_eight(tmp_path):
    """Pillow's own conversion would make all that is brighter than 255 of 65,535 white."""
    grey = np.random.default_rng(0).integers(0, 2**16, (H, W), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "0.png")
    assert Image.open(tmp_path / "0.png").mode == "I;16"
    expected = np.repeat((grey // 256).astype(np.uint8)[..., None], 3, axis=2)
    assert np.array_equal(dataloader.read_image(tmp_path / "0.png", H, W), expected)


def write_rgb16(path: Path, pixels: np.ndarray) -> None:
    """A PNG file with 16 bits for each of three channels, which Pillow reads but does not write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)),
              (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks))


def test_sixteen_bits_of_colour_become_their_upper_eight(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2**16, (H, W, 3), dtype=np.uint16)
    write_rgb16(tmp_path / "0.png", pixels)
    assert np.array_equal(dataloader.read_image(tmp_path / "0.png", H, W), pixels // 256)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_are_refused(mode, tmp_path):
    image = Image.new(mode, (W, H), 0)
    if mode in ("RGBA", "LA"):
        image.putalpha(255)
        image.save(tmp_path / "opaque.png")
        assert not dataloader.read_image(tmp_path / "opaque.png", H, W).any()
        image.putpixel((3, 3), (*[0] * (len(mode) - 1), 254))
        image.save(tmp_path / "0.png")
    else:  # a colour that stands for nothing
        image.save(tmp_path / "0.png", transparency=0 if mode == "P" else (0, 0, 0))
    with pytest.raises(BadInput, match="0.png: it has transparent pixels, .*; save it without transparency"):
        dataloader.read_image(tmp_path / "0.png", H, W)


def test_height_comes_first(tmp_path):
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(tmp_path / "0.png")
    assert dataloader.read_image(tmp_path / "0.png", 6, 20).shape == (6, 20, 3)


def test_what_is_no_whole_image_is_refused(tmp_path):
    path = tmp_path / "4.png"
    with pytest.raises(BadInput, match="cannot be read .No such file or directory.; add it"):
        dataloader.read_image(path, H, W)
    Image.fromarray(make_video(1, 0)[0][0]).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 24, 7):  # the last bytes are checksums and the end mark, without any pixel
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match="4.png: .*; replace or remove "):
            dataloader.read_image(path, H, W)
    path.write_text("this is text")
    with pytest.raises(BadInput, match="not a PNG image"):
        dataloader.read_image(path, H, W)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_claims_an_absurd_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for size in ((8, 16), (40, 40)):  # a warning of Pillow, and an error
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "0.png")
        with pytest.raises(BadInput, match="more than 100 pixels; replace"):
            dataloader.read_image(tmp_path / "0.png", H, W)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [50_000, 10_000])
def test_a_small_file_that_claims_2500_million_pixels_is_refused_at_once(side, tmp_path):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
                                     + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + struct.pack(">I", 9) + b"IDAT")
    with pytest.raises(BadInput, match="0.png: it claims more than"):
        dataloader.read_image(tmp_path / "0.png", H, W)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "EPS"])
def test_another_format_named_png_is_refused(kind, tmp_path):
    """A GIF may hold many frames; an EPS file is a program."""
    Image.fromarray(make_video(1, 0)[0][0]).save(tmp_path / "0.png", kind)
    with pytest.raises(BadInput, match="0.png: this is not a PNG image, whatever its name says"):
        dataloader.read_image(tmp_path / "0.png", H, W)


def test_a_jpeg_named_png_is_read(tmp_path):
    image = Image.fromarray(make_video(1, 0)[0][0])
    image.save(tmp_path / "0.png", "JPEG")
    assert np.array_equal(dataloader.read_image(tmp_path / "0.png", H, W), np.asarray(Image.open(tmp_path / "0.png")))


def test_stray_files_do_no_harm(own_data):
    before = dataloader.read_recording(own_data, "train", H, W, 1)
    for folder in ("train/train_img", "train/train_label", "test/test_img", "test/test_label", "test/test_img/0"):
        for name in (".DS_Store", "Thumbs.db", "._1.png", "desktop.ini", "notes.txt", ".1.png.swp"):
            (own_data / folder / name).write_bytes(b"stray")
        (own_data / folder / ".ipynb_checkpoints").mkdir()
    after = dataloader.read_recording(own_data, "train", H, W, 1)
    assert torch.equal(before.frames, after.frames) and torch.equal(before.labels, after.labels)
    assert [sequence.name for sequence in dataloader.read_test_sequences(own_data, H, W, 1)] == ["0", "1", "2", "10"]


def test_a_folder_named_like_a_frame_is_refused(own_data):
    (own_data / "train" / "train_img" / "5.png").unlink()
    (own_data / "train" / "train_img" / "5.png").mkdir()
    with pytest.raises(BadInput, match="5.png: .*; replace or remove"):
        dataloader.read_recording(own_data, "train", H, W, 1)


def test_each_png_is_decoded_once_in_a_training(data, tmp_path, monkeypatch, no_figures):
    decoded, before_training = [], []
    read, train = dataloader.read_image, Trainer.Trainer.train_one_epoch
    monkeypatch.setattr(dataloader, "read_image", lambda path, *size: decoded.append(path) or read(path, *size))
    monkeypatch.setattr(Trainer.Trainer, "train_one_epoch",
                        lambda trainer: before_training.append(len(decoded)) or train(trainer))
    Trainer.main([*TINY, "--DR", str(data), "--save_root", str(tmp_path / "run"), "--num_epoch", "3"])
    assert sorted(decoded) == sorted(path for split in ("train", "val") for path in (data / split).rglob("*.png"))
    assert before_training == [len(decoded)] * 3


# The cache

@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """The files that were decoded, as they come."""
    files, read = [], dataloader.read_image
    monkeypatch.setattr(dataloader, "read_image", lambda path, *size: files.append(path) or read(path, *size))
    return files


def cached(root: Path, folder: Path | None = None, size=(H, W)) -> dataloader.Recording:
    return dataloader.read_recording(root, "train", *size, 1, dataloader.FrameCache(root, folder))


def assert_same(one: dataloader.Recording, other: dataloader.Recording) -> None:
    for part in ("frames", "labels", "numbers"):
        assert torch.equal(getattr(one, part), getattr(other, part)), part


@pytest.mark.parametrize("folder", [None, "cache"])
def test_the_second_start_decodes_nothing_and_has_the_same_pixels(folder, own_data, tmp_path, decoded):
    folder = folder and tmp_path / folder
    plain = dataloader.read_recording(own_data, "train", 5, 9, 1)
    before = contents(own_data)
    first = cached(own_data, folder, (5, 9))
    assert len(decoded) == 4 * TRAIN_FRAMES and (contents(own_data) == before) == (folder is not None)
    second = cached(own_data, folder, (5, 9))
    assert len(decoded) == 4 * TRAIN_FRAMES
    for recording in (first, second):
        assert_same(recording, plain)
    assert second.frames.is_contiguous() and second.frames.dtype == torch.uint8


def test_the_programs_decode_only_the_given_first_frames_again(own_data, tmp_path, decoded, no_figures):
    def start(name: str) -> tuple[list[Path], bytes, bytes]:
        decoded.clear()
        run, result = tmp_path / name / "run", tmp_path / name / "result"
        flags = ["--DR", str(own_data), "--device", "cpu", "--cache"]
        Trainer.main([*TINY, *flags, "--save_root", str(run), "--num_epoch", "1"])
        Tester.main([*flags, "--ckpt_path", str(run / "last.ckpt"), "--save_root", str(result), "--any_size",
                     "--truth", str(own_data / "truth")])
        return sorted(decoded), (run / "metrics.csv").read_bytes(), (result / "seq0.csv").read_bytes()

    before = contents(own_data)
    files, *results = start("first")
    assert files == sorted(own_data.rglob("*.png"))
    assert start("second") == (sorted((own_data / "test" / "test_img").rglob("*.png")), *results)
    added = contents(own_data).keys() - before.keys()
    assert all(".frame_cache/" in name for name in added) and len(added) == 4 + 2 * 4
    assert before.items() <= contents(own_data).items()


def change_content(folder: Path) -> None:
    Image.fromarray(one_colour(77)).save(folder / "3.png")


def change_content_of_the_same_length(folder: Path) -> None:
    length = (folder / "3.png").stat().st_size
    shutil.copy(folder / "4.png", folder / "3.png")
    with open(folder / "3.png", "ab") as file:
        file.write(bytes(max(length - file.tell(), 0)))
    os.truncate(folder / "3.png", length)  # what lies behind the end mark has no meaning


def exchange_two(folder: Path) -> None:
    (folder / "3.png").rename(folder / "x")
    (folder / "4.png").rename(folder / "3.png")
    (folder / "x").rename(folder / "4.png")


CHANGES = [change_content, change_content_of_the_same_length, exchange_two,
           lambda folder: [shutil.copy(folder / "3.png", folder / "99.png")],
           lambda folder: (folder / "11.png").unlink(),
           lambda folder: (folder / "11.png").rename(folder / "12.png")]


@pytest.mark.parametrize("change", CHANGES, ids=["content", "same length", "exchanged", "added", "removed", "renamed"])
def test_a_cache_of_other_files_is_never_used(change, own_data, decoded):
    cached(own_data)
    for folder in ("train_img", "train_label"):
        change(own_data / "train" / folder)
    plain = dataloader.read_recording(own_data, "train", H, W, 1)
    assert_same(cached(own_data), plain)
    before = len(decoded)
    assert_same(cached(own_data), plain)
    assert len(decoded) == before


def test_each_frame_size_has_its_own_cache(own_data, decoded):
    for size in ((H, W), (W, H), (H, W), (W, H)):
        assert cached(own_data, size=size).frames.shape[-2:] == size
    assert len(decoded) == 2 * 2 * TRAIN_FRAMES


def stores(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.frames"))


DAMAGES = {"cut": lambda path: os.truncate(path, 900), "empty": lambda path: os.truncate(path, 0),
           "garbage": lambda path: path.write_bytes(bytes(range(256)) * 50),
           "a bit of the pixels": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x55"),
           "another folder's": lambda path: shutil.copy(stores(path.parents[1])[0], stores(path.parents[1])[1])}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_anew(damage, own_data, decoded, capfd):
    plain = cached(own_data)
    plain = dataloader.Recording(plain.frames.clone(), plain.labels.clone(), plain.numbers)
    whole = [path.read_bytes() for path in stores(own_data)]
    assert len(whole) == 2
    for path in stores(own_data):
        DAMAGES[damage](path)
    assert_same(cached(own_data), plain)
    assert [path.read_bytes() for path in stores(own_data)] == whole and "kept" not in capfd.readouterr().err
    before = len(decoded)
    assert_same(cached(own_data), plain)
    assert len(decoded) == before


def test_refused_images_leave_no_cache(own_data):
    (own_data / "train" / "train_img" / "3.png").write_bytes(b"this is text")
    for _ in range(2):
        with pytest.raises(BadInput, match="3.png: this is not a PNG image"):
            cached(own_data)
    (own_data / "train" / "train_img" / "3.png").unlink()
    (own_data / "train" / "train_img" / "3.png").symlink_to("gone")
    with pytest.raises(BadInput, match="3.png: it cannot be read"):
        cached(own_data)
    assert not stores(own_data)


def test_data_that_cannot_be_written_have_their_cache_in_the_users(own_data, tmp_path, decoded, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    (own_data / ".frame_cache").write_bytes(b"")  # write protection does not hold for root; a file in the way does
    plain = cached(own_data)
    assert_same(cached(own_data), plain)
    assert len(decoded) == 2 * TRAIN_FRAMES and len(stores(tmp_path / "user" / "pose-video-prediction")) == 2
    other = shutil.copytree(own_data, tmp_path / "elsewhere" / own_data.name, copy_function=shutil.copy)
    change_content(other / "train" / "train_img")
    assert not torch.equal(cached(other).frames, plain.frames)
    assert len(stores(tmp_path / "user")) == 4 and "kept" not in capfd.readouterr().err


def test_where_nothing_can_be_written_one_line_says_so(own_data, tmp_path, decoded, monkeypatch, capfd):
    for path in (own_data / ".frame_cache", tmp_path / "user"):
        path.write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    plain = dataloader.read_recording(own_data, "train", H, W, 1)
    for _ in range(2):
        capfd.readouterr()
        assert_same(cached(own_data), plain)
        line, = (line for line in capfd.readouterr().err.split("\n") if "kept" in line)
        assert all(words in line for words in (str(own_data), str(tmp_path / "user"), "--cache_dir"))


def test_a_full_disk_costs_the_cache_and_not_the_run(own_data, tmp_path, decoded, capfd):
    """A real limit of the system: no file may grow beyond some hundred bytes."""
    resource = pytest.importorskip("resource")
    plain = dataloader.read_recording(own_data, "train", H, W, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        recording = cached(own_data, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_same(recording, plain)
    assert contents(tmp_path / "cache") == {}
    assert capfd.readouterr().err.count("cannot be kept") == 1


def test_a_cache_dir_that_cannot_be_written_is_refused(own_data, tmp_path, refused, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        message = refused("Trainer.py", *TINY, "--DR", own_data, "--save_root", tmp_path / "run", "--cache",
                          "--cache_dir", folder, untouched=tmp_path)
        assert f"--cache_dir {folder} cannot be written ({tmp_path / 'file'} is no folder)" in message


def test_a_cache_that_only_others_may_write_is_read(own_data, tmp_path, decoded, monkeypatch):
    plain = cached(own_data, tmp_path / "cache")
    monkeypatch.setattr(os, "access", lambda *args: False)
    monkeypatch.setattr(os, "utime", lambda *args: (_ for _ in ()).throw(PermissionError(1, "not yours")))
    assert_same(cached(own_data, tmp_path / "cache"), plain)
    assert len(decoded) == 2 * TRAIN_FRAMES


def test_the_cache_moves_with_the_data(own_data, tmp_path, decoded):
    plain = cached(own_data)
    assert_same(cached(own_data.rename(tmp_path / "moved")), plain)
    assert len(decoded) == 2 * TRAIN_FRAMES


def start_again_and_again(root: Path, plain: dataloader.Recording) -> None:
    for index in range(20):
        assert_same(cached(root), plain)
        if index % 2:
            for path in stores(root):
                path.unlink(missing_ok=True)


def test_several_processes_may_start_at_once(own_data):
    plain = dataloader.read_recording(own_data, "train", H, W, 1)
    processes = [multiprocessing.get_context("fork").Process(target=start_again_and_again, args=(own_data, plain))
                 for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert_same(cached(own_data), plain)
    assert set(path.suffix for path in (own_data / ".frame_cache").rglob("*") if path.is_file()) == {".frames"}


def test_the_readers_pass_over_the_cache(own_data):
    before = dataloader.read_test_sequences(own_data, H, W, 1)
    cached(own_data)
    for folder in ("train/train_img", "test/test_img", "test/test_label", "test/test_img/0", "truth"):
        shutil.copytree(own_data / ".frame_cache", own_data / folder / ".frame_cache")
    after = dataloader.read_test_sequences(own_data, H, W, 1)
    assert [sequence.name for sequence in before] == [sequence.name for sequence in after]
    assert list(dataloader.list_frames(own_data / "train" / "train_img")) == list(range(TRAIN_FRAMES))
    for name in ("1", "2"):  # of other lengths
        shutil.rmtree(own_data / "truth" / name)
    assert len(score_submission.read_truth(own_data / "truth", 5, H, W)) == 2


# Clips

def slow_clip_starts(numbers: list[int], length: int, stride: int) -> list[int]:
    """Walk over the frames one by one; a counter since the last jump tells where a clip may start."""
    starts, since_jump = [], 0
    for i in range(len(numbers)):
        since_jump = since_jump + 1 if i and numbers[i] == numbers[i - 1] + 1 else 0
        whole = i + length <= len(numbers)
        for j in range(i + 1, min(i + length, len(numbers))):
            if numbers[j] != numbers[i] + j - i:
                whole = False
        if whole and since_jump % stride == 0:
            starts.append(i)
    return starts


def test_clip_starts_equal_a_slow_double_loop():
    dice = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        count, jumpy = int(dice.integers(1, 60)), dice.choice([0.0, 0.05, 0.3, 1.0])
        steps = np.where(dice.random(count) < jumpy, dice.integers(1, 6, count), 1)
        numbers = torch.from_numpy(int(dice.integers(5)) + steps.cumsum())
        length, stride = int(dice.integers(1, 12)), int(dice.integers(1, 14))
        starts = dataloader.clip_starts(numbers, length, stride)
        assert starts.dtype == torch.int64
        assert starts.tolist() == slow_clip_starts(numbers.tolist(), length, stride)
        for start in starts.tolist():
            assert numbers[start + length - 1] - numbers[start] == length - 1  # no jump inside
        found += len(starts)
    assert found > 1000


def test_every_clip_comes_once_an_epoch_and_the_last_batch_may_be_smaller():
    loader = dataloader.ClipLoader(recording_of([*range(10), *range(20, 29)]), 3, 2, 4)
    assert len(loader.starts) == 8 and len(loader) == 2
    loader = dataloader.ClipLoader(recording_of([*range(10), *range(20, 29)]), 3, 2, 3)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    batches = [clips.frames for clips in loader.batches(order)]
    assert [len(batch) for batch in batches] == [3, 3, 2] and len(loader) == 3
    first = (torch.cat(batches)[:, 0, 0, 0, 0] * 255).round().int().tolist()
    expected = [0, 2, 4, 6, 20, 22, 24, 26]
    assert sorted(first) == expected
    assert first == [expected[clip] for clip in order]


def test_batches_are_the_stored_pixels_divided_by_255():
    dice = torch.Generator().manual_seed(0)
    frames, labels = (torch.randint(256, (9, 3, 4, 5), dtype=torch.uint8, generator=dice) for _ in range(2))
    loader = dataloader.ClipLoader(dataloader.Recording(frames, labels, torch.arange(9)), 3, 3, 2)
    batches = list(loader.batches(torch.tensor([2, 0, 1])))
    assert [tuple(batch.frames.shape) for batch in batches] == [(2, 3, 3, 4, 5), (1, 3, 3, 4, 5)]
    for part, stored in enumerate((frames, labels)):
        got = torch.cat([batch[part] for batch in batches])
        assert got.dtype == torch.float32
        assert torch.equal(got, torch.stack([stored[6:9], stored[0:3], stored[3:6]]).float() / 255)


def test_crops_show_frames_and_poses_through_the_same_window_and_are_drawn_for_the_whole_batch():
    dice = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (24, 3, 8, 16), dtype=torch.uint8, generator=dice)
    recording = dataloader.Recording(frames, frames, torch.arange(24))
    plain, loader = (dataloader.ClipLoader(recording, 3, 3, 8, crop_fraction=fraction) for fraction in (0.0, 0.5))
    order = torch.arange(8)
    (whole, *_), = plain.batches(order)
    (shown, poses, index, is_whole, *_), = loader.batches(order, generator=torch.Generator().manual_seed(3))
    assert torch.equal(shown, poses)
    untouched = (shown == whole).flatten(1).all(dim=1)
    assert 0 < untouched.sum() < 8 and torch.equal(untouched, is_whole)
    assert torch.equal(index, torch.arange(24).view(8, 3))
    # What one of several processes sees is its share of that.
    (part, *_), = loader.batches(order, lambda count: slice(2, 5), torch.Generator().manual_seed(3))
    assert torch.equal(part, shown[2:5])


def test_references_come_from_anywhere_in_the_recording_and_are_seen_through_the_clips_window():
    frames = torch.arange(24, dtype=torch.uint8).view(24, 1, 1, 1).expand(24, 3, 8, 16) * 10
    loader = dataloader.ClipLoader(dataloader.Recording(frames, frames, torch.arange(24)), 3, 3, 8, with_reference=True)
    order, seen = torch.arange(8), set()
    for seed in range(20):
        clips, = loader.batches(order, reference_generator=torch.Generator().manual_seed(seed))
        part, = loader.batches(order, lambda count: slice(2, 5), None, torch.Generator().manual_seed(seed))
        assert torch.equal(part.reference, clips.reference[2:5])
        assert torch.equal(clips.reference, frames[clips.reference_index] / 255)
        seen |= set((clips.reference[:, 0, 0, 0] * 25.5).round().int().tolist())
    assert seen == set(range(24))
    # Beyond a jump in the numbers may be another room.
    numbers = torch.cat([torch.arange(6), torch.arange(10, 28)])
    loader = dataloader.ClipLoader(dataloader.Recording(frames, frames, numbers), 3, 3, 8, with_reference=True)
    seen = set()
    for seed in range(20):
        clips, = loader.batches(order, reference_generator=torch.Generator().manual_seed(seed))
        seen |= set(zip((clips.index[:, 0] < 6).tolist(), clips.reference_index.tolist(), strict=True))
    assert seen == {(place < 6, place) for place in range(24)}
    noise = torch.randint(256, (1, 3, 8, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    noise = noise.expand(24, 3, 8, 16)  # all frames are one: the reference is what each frame of its clip is
    loader = dataloader.ClipLoader(dataloader.Recording(noise, noise, torch.arange(24)), 3, 3, 8, crop_fraction=0.5,
                                   with_reference=True)
    clips, = loader.batches(order, slice, torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
    assert torch.equal(clips.reference, clips.frames[:, 0]) and not clips.is_whole.all()


def test_a_recording_too_short_for_a_clip_is_refused():
    with pytest.raises(BadInput, match="no 4 frames in a row .*--train_vi_len"):
        dataloader.ClipLoader(recording_of([0, 1, 2, 5, 6, 7, 9]), 4, 1, 2)


# Validation

def test_validation_is_the_first_frames(tmp_path):
    write_split(tmp_path, "val", 8, seed=0, numbers=[5, 6, 7, 8, 20, 21, 22, 23])
    recording = dataloader.read_validation(tmp_path, 4, H, W, 1)
    assert recording.numbers.tolist() == [5, 6, 7, 8]
    assert torch.equal(recording.frames, torch.from_numpy(make_video(8, 0)[0][:4]).permute(0, 3, 1, 2))
    with pytest.raises(BadInput, match="jumps from 8 to 20.* --val_vi_len 4"):
        dataloader.read_validation(tmp_path, 5, H, W, 1)
    with pytest.raises(BadInput, match="8 frames, fewer than --val_vi_len 9.* --val_vi_len 8"):
        dataloader.read_validation(tmp_path, 9, H, W, 1)


# Test sequences

def test_sequences_come_in_numeric_order_with_their_first_frames(tmp_path):
    for name in ("10", "2", "0", "1"):
        write_sequence(tmp_path, name, 5, seed=int(name))
    (tmp_path / "test" / "test_img" / ".DS_Store").write_bytes(b"")
    sequences = dataloader.read_test_sequences(tmp_path, H, W, 2)
    assert [sequence.name for sequence in sequences] == ["0", "1", "2", "10"]
    for sequence in sequences:
        frames, labels = make_video(5, int(sequence.name))
        assert torch.equal(sequence.first_frame, torch.from_numpy(frames[0]).permute(2, 0, 1))
        assert torch.equal(sequence.labels[1:], torch.from_numpy(labels[1:]).permute(0, 3, 1, 2))
        assert sequence.numbers == [0, 1, 2, 3, 4]


def test_the_first_frame_is_the_lowest_number_and_its_pose_may_be_missing(tmp_path):
    frames, labels = make_video(4, 3)
    write_pngs(tmp_path / "test" / "test_img" / "0", frames[:2], [10, 9])
    write_pngs(tmp_path / "test" / "test_label" / "0", labels[1:], [10, 11, 12])
    sequence, = dataloader.read_test_sequences(tmp_path, H, W, 1)
    assert torch.equal(sequence.first_frame, torch.from_numpy(frames[1]).permute(2, 0, 1))
    assert sequence.numbers == [9, 10, 11, 12] and sequence.labels.shape == (4, 3, H, W)
    assert torch.equal(sequence.labels[1:], torch.from_numpy(labels[1:]).permute(0, 3, 1, 2))


@pytest.mark.parametrize("gap", ["1", "2"])
def test_a_gap_in_the_poses_is_refused(gap, tmp_path):
    write_sequence(tmp_path, "0", 5, seed=0)
    (tmp_path / "test" / "test_label" / "0" / f"{gap}.png").unlink()
    with pytest.raises(BadInput, match=f"the pose of frame {gap} is missing; add {gap}.png"):
        dataloader.read_test_sequences(tmp_path, H, W, 1)


def test_a_sequence_without_poses_or_first_frame_is_refused(tmp_path):
    write_sequence(tmp_path, "0", 3, seed=0)
    (tmp_path / "test" / "test_img" / "1").mkdir()
    with pytest.raises(BadInput, match="test_label.1: this folder is missing"):
        dataloader.read_test_sequences(tmp_path, H, W, 1)
    (tmp_path / "test" / "test_label" / "1").mkdir()
    with pytest.raises(BadInput, match="test_img.1: there is no PNG"):
        dataloader.read_test_sequences(tmp_path, H, W, 1)


# The real data, for those who have them

@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if not (REAL / "unpack.py").exists():
        pytest.skip("the real subset is not beside this checkout (../shared/data/edn_subset)")
    root = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, REAL / "unpack.py", root], check=True, capture_output=True)
    return root


def test_the_real_recording_reads_back_and_no_clip_runs_across_its_cuts(real):
    recording = dataloader.read_recording(real, "train", 32, 64, 2)
    assert recording.frames.shape == recording.labels.shape == (2830, 3, 32, 64)
    assert recording.numbers.tolist() == [*range(19), *range(22, 1003), *range(2030, 3860)]
    stored = np.load(REAL / "train.npz")
    for images, name in ((recording.frames, "frames"), (recording.labels, "labels")):
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), stored[name])
    starts = dataloader.clip_starts(recording.numbers, 16, 1)
    assert len(starts) == (19 - 15) + (981 - 15) + (1830 - 15)
    assert (recording.numbers[starts + 15] - recording.numbers[starts] == 15).all()


def test_repeating_the_first_real_frame_scores_what_the_data_say(real):
    """Over frames 1..600, as the course scores; over all of 1..629 it is 35.4 and 20.7 dB."""
    val = dataloader.read_validation(real, 630, 32, 64, 2).frames
    truth = dataloader.list_frames(real / "truth" / "0")
    test = dataloader.read_images(list(truth.values()), 32, 64, 2, "truth")
    assert len(test) == 630
    for frames, expected in ((val, 35.8), (test, 21.0)):
        assert course_score(psnr(repeat_first(frames), frames, 255)) == pytest.approx(expected, abs=0.1)
