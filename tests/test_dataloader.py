"""The dataloader: order and pairing of frames, refused input, pixels, clips within segments, test sequences.

    pytest tests/test_dataloader.py
"""
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataloader
import Trainer
from conftest import (
    TINY,
    TRAIN_FRAMES,
    H,
    W,
    contents,
    make_video,
    write_pngs,
    write_sequence,
    write_split,
    write_walk,
)
from dataloader import ClipLoader, GivenSequence, Recording, load_data
from modules.config.trainer_flags import make_parser
from modules.data.frame_cache import FrameCache
from modules.evaluation.evaluate import score
from modules.evaluation.metrics import course_score, psnr, repeat_first
from utils import BadInput

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "edn_subset"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_colour(value: int) -> np.ndarray:
    return np.full((H, W, 3), value, np.uint8)


def to_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).movedim(-1, -3)


def recording_of(numbers: list[int]) -> Recording:
    """A recording whose frame n has the value n everywhere and whose pose n + 1."""
    values = torch.tensor(numbers, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 5)
    return Recording(values.clone(), values + 1, torch.tensor(numbers))


def assert_same(one: Recording, other: Recording) -> None:
    assert all(torch.equal(getattr(one, part), getattr(other, part)) for part in ("frames", "labels", "numbers"))


# File names

def test_names_can_have_a_prefix_zeros_and_capitals(tmp_path):
    for name in ("frame7.png", "0008.png", "seq_a-0010.PNG", "9.png"):
        Image.fromarray(one_colour(0)).save(tmp_path / name)
    assert {number: path.name for number, path in dataloader.list_frames(tmp_path).items()} == {
        7: "frame7.png", 8: "0008.png", 9: "9.png", 10: "seq_a-0010.PNG"}


@pytest.mark.parametrize("names", [("1.png", "01.png"), ("frame3.png", "3.png"), ("a2.png", "b2.PNG")])
def test_two_files_with_the_same_number_are_refused(names, tmp_path):
    for name in names:
        Image.fromarray(one_colour(0)).save(tmp_path / name)
    with pytest.raises(BadInput, match="same number") as error:
        dataloader.list_frames(tmp_path)
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize("name", ["cover.png", "1_2.png", "3 copy.png"])
def test_a_png_without_a_clear_number_is_refused(name, tmp_path):
    Image.fromarray(one_colour(0)).save(tmp_path / name)
    with pytest.raises(BadInput, match=name):
        dataloader.list_frames(tmp_path)


@pytest.mark.parametrize("name", ["-3.png", "frame_-3.png", "take -3.PNG", "--3.png"])
def test_a_negative_number_is_refused(name, tmp_path):
    write_pngs(tmp_path, [one_colour(0)], [name[:-4]])
    (tmp_path / f"{name[:-4]}.png").rename(tmp_path / name)
    with pytest.raises(BadInput, match=f"{name}: the number is negative"):
        dataloader.list_frames(tmp_path)


@pytest.mark.parametrize("name", ["2.jpg", "2.JPEG", "frame2.bmp", "2.webp", "2.tif", "cover.gif"])
def test_an_image_of_another_type_is_refused_rather_than_missing(name, tmp_path):
    write_pngs(tmp_path, [one_colour(0)] * 2, [1, 3])
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadInput, match=f"{name}: only PNG"):
        dataloader.list_frames(tmp_path)


def test_a_number_too_large_for_a_tensor_is_refused(tmp_path):
    write_pngs(tmp_path, [one_colour(0)], [2**63])
    with pytest.raises(BadInput, match="too large"):
        dataloader.list_frames(tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(BadInput, match="missing.*--truth"):
        dataloader.list_frames(tmp_path / "missing", "--truth")
    with pytest.raises(BadInput, match="no PNG file"):
        dataloader.list_frames(tmp_path)


@pytest.mark.parametrize("given", ["", "data/train", "data/train/train_img", "data/missing"])
@pytest.mark.parametrize("read", [partial(dataloader.read_recording, split="train"), dataloader.read_test_sequences],
                         ids=["train", "test"])
def test_a_wrong_level_is_refused_with_the_right_one(read, given, tmp_path):
    for folder in ("data/train/train_img", "data/test/test_img/0", "another", "figures/train"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "a file").write_bytes(b"")
    with pytest.raises(BadInput, match=f"--DR {tmp_path / given} is .*; did you mean --DR {tmp_path / 'data'}[?]$"):
        read(tmp_path / given, height=H, width=W, num_workers=1)


@pytest.mark.parametrize("given, meant", [(".", ".."), ("../train", "..")])
def test_a_wrong_level_is_found_from_a_relative_path(given, meant, tmp_path, monkeypatch):
    (tmp_path / "train" / "train_img").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "train")
    with pytest.raises(BadInput, match=f"did you mean --DR {re.escape(meant)}[?]$"):
        dataloader.read_recording(Path(given), "train", H, W, 1)


def test_a_missing_split_of_a_dataset_is_named_whatever_is_around_it(tmp_path):
    for folder in ("train/train_img", "train/train_label", "copy/val/val_img"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(BadInput, match=f"{tmp_path}/val/val_img: no such folder"):
        dataloader.read_validation(tmp_path, 2, H, W, 1)


def test_stray_files_are_ignored(own_data):
    before = dataloader.read_recording(own_data, "train", H, W, 1)
    for folder in ("train/train_img", "train/train_label", "test/test_img", "test/test_label", "test/test_img/0"):
        for name in (".DS_Store", "Thumbs.db", "._1.png", ".3.jpg", "notes.txt", ".1.png.swp"):
            (own_data / folder / name).write_bytes(b"stray")
        (own_data / folder / ".ipynb_checkpoints").mkdir()
    assert_same(dataloader.read_recording(own_data, "train", H, W, 1), before)
    assert [sequence.name for sequence in dataloader.read_test_sequences(own_data, H, W, 1)] == ["0", "1", "2", "10"]


# Pairs

def test_frames_and_poses_are_paired_by_number_not_by_position(tmp_path):
    """The names sort differently from the numbers, and differently for frames and poses."""
    for number in (9, 10, 2, 101):
        for folder, name, value in (("train_img", f"{number}.png", number), ("train_label", f"p{number:05}.png", 100)):
            (tmp_path / "train" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(one_colour(number + value)).save(tmp_path / "train" / folder / name)
    recording = dataloader.read_recording(tmp_path, "train", H, W, 3)
    assert recording.numbers.tolist() == [2, 9, 10, 101]
    assert recording.frames[:, 0, 0, 0].tolist() == [4, 18, 20, 202]
    assert recording.labels[:, 0, 0, 0].tolist() == [102, 109, 110, 201]
    assert recording.frames.dtype == torch.uint8 and recording.frames.shape == (4, 3, H, W)


@pytest.mark.parametrize("missing, word, present", [("train_label", "pose", "train_img"),
                                                    ("train_img", "frame", "train_label")])
def test_a_frame_without_a_pose_and_vice_versa_are_refused(missing, word, present, tmp_path):
    write_split(tmp_path, "train", 5, seed=0)
    (tmp_path / "train" / missing / "3.png").unlink()
    with pytest.raises(BadInput, match=f"its {word} is missing") as error:
        dataloader.read_recording(tmp_path, "train", H, W, 1)
    assert str(tmp_path / "train" / present / "3.png") in str(error.value)
    assert str(tmp_path / "train" / missing) in str(error.value)


def test_checksum_covers_every_part_of_a_recording():
    recording = recording_of([0, 1, 2, 3])
    changed = [recording.head(3), Recording(recording.labels, recording.labels, recording.numbers),
               Recording(recording.frames, recording.frames, recording.numbers),
               Recording(recording.frames, recording.labels, recording.numbers + 1),
               Recording(recording.frames.mT, recording.labels.mT, recording.numbers)]
    checksums = [part.checksum() for part in (recording, *changed)]
    assert len(set(checksums)) == len(checksums) and recording_of([0, 1, 2, 3]).checksum() == checksums[0]


# The cache. tests/data/test_frame_cache.py tests it by itself

def test_cached_frames_equal_decoded_ones_and_follow_the_images(own_data):
    def cached() -> Recording:
        return dataloader.read_recording(own_data, "train", 5, 9, 1, FrameCache(own_data))

    plain = dataloader.read_recording(own_data, "train", 5, 9, 1)
    for _ in range(2):
        assert_same(cached(), plain)
    assert cached().checksum() == plain.checksum()
    Image.fromarray(one_colour(77)).save(own_data / "train" / "train_img" / "3.png")
    assert (cached().frames[3] == 77).all()
    (own_data / "train" / "train_img" / "3.png").write_bytes(b"this is text")
    with pytest.raises(BadInput, match="3.png"):
        cached()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_cache_folder_that_cannot_be_written_is_refused(name, data, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadInput, match=f"--cache_dir {tmp_path / name}"):
        dataloader.read_recording(data, "train", H, W, 1, FrameCache(data, tmp_path / name))


def test_readers_ignore_the_cache(own_data):
    cache = FrameCache(own_data)
    before = dataloader.read_test_sequences(own_data, H, W, 1, cache)
    for folder in ("train/train_img", "test/test_img", "test/test_label", "test/test_img/0"):
        shutil.copytree(own_data / ".frame_cache", own_data / folder / ".frame_cache")
    after = dataloader.read_test_sequences(own_data, H, W, 1, cache)
    assert [sequence.name for sequence in before] == [sequence.name for sequence in after]
    assert list(dataloader.list_frames(own_data / "train" / "train_img")) == list(range(TRAIN_FRAMES))


def test_a_training_run_decodes_each_png_once_and_the_next_run_none(own_data, tmp_path, monkeypatch, no_figures):
    decoded, read = [], dataloader.read_image
    monkeypatch.setattr(dataloader, "read_image", lambda path, *size: decoded.append(path) or read(path, *size))

    def train(name: str) -> tuple[list[Path], bytes]:
        decoded.clear()
        Trainer.main([*TINY, "--DR", str(own_data), "--save_root", str(tmp_path / name), "--num_epoch", "2", "--cache"])
        return sorted(decoded), (tmp_path / name / "metrics.csv").read_bytes()

    before = contents(own_data)
    files, metrics = train("first")
    assert files == sorted(path for split in ("train", "val") for path in (own_data / split).rglob("*.png"))
    assert train("second") == ([], metrics)
    assert {name.split("/")[0] for name in contents(own_data).keys() - before.keys()} == {".frame_cache"}


# Clips

def slow_clip_starts(numbers: list[int], length: int, stride: int) -> list[int]:
    """Walk over the frames one by one, counting since the last jump."""
    starts, since_jump = [], 0
    for i in range(len(numbers)):
        since_jump = since_jump + 1 if i and numbers[i] == numbers[i - 1] + 1 else 0
        is_unbroken = i + length <= len(numbers)
        for j in range(i + 1, min(i + length, len(numbers))):
            if numbers[j] != numbers[i] + j - i:
                is_unbroken = False
        if is_unbroken and since_jump % stride == 0:
            starts.append(i)
    return starts


def test_clip_starts_equal_a_slow_double_loop():
    rng, found = np.random.default_rng(0), 0
    for _ in range(400):
        count, jump_rate = int(rng.integers(1, 60)), rng.choice([0.0, 0.05, 0.3, 1.0])
        steps = np.where(rng.random(count) < jump_rate, rng.integers(1, 6, count), 1)
        numbers = torch.from_numpy(int(rng.integers(5)) + steps.cumsum())
        length, stride = int(rng.integers(1, 12)), int(rng.integers(1, 14))
        starts = dataloader.clip_starts(numbers, length, stride)
        assert starts.dtype == torch.int64
        assert starts.tolist() == slow_clip_starts(numbers.tolist(), length, stride)
        found += len(starts)
    assert found > 1000


def test_every_clip_comes_once_per_epoch_in_the_given_order():
    loader = ClipLoader(recording_of([*range(10), *range(20, 29)]), length=3, stride=2, batch_size=3)
    order = torch.randperm(8, generator=generator(1))
    batches = [clips.frames for clips in loader.batches(order)]
    assert [len(batch) for batch in batches] == [3, 3, 2] and len(loader) == 3
    first = (torch.cat(batches)[:, 0, 0, 0, 0] * 255).round().int().tolist()
    expected = [0, 2, 4, 6, 20, 22, 24, 26]
    assert first == [expected[clip] for clip in order]
    assert list(loader.batches(order[8:])) == []


def test_batches_are_the_stored_pixels_divided_by_255():
    frames, labels = torch.randint(256, (2, 9, 3, 4, 5), dtype=torch.uint8, generator=generator())
    batches = list(ClipLoader(Recording(frames, labels, torch.arange(9)), 3, 3, 2).batches(torch.tensor([2, 0, 1])))
    assert [tuple(batch.frames.shape) for batch in batches] == [(2, 3, 3, 4, 5), (1, 3, 3, 4, 5)]
    assert torch.equal(torch.cat([batch.index for batch in batches]), torch.arange(9).view(3, 3)[[2, 0, 1]])
    for part, stored in enumerate((frames, labels)):
        pixels = torch.cat([batch[part] for batch in batches])
        assert pixels.dtype == torch.float32
        assert torch.equal(pixels, torch.stack([stored[6:9], stored[0:3], stored[3:6]]).float() / 255)


def load(data: Path, *flags: object) -> dataloader.Data:
    args = make_parser().parse_args([*TINY, "--DR", str(data), "--save_root", "run", *map(str, flags)])
    return load_data(args, torch.device("cpu"))


def test_shifted_copies_follow_the_recording_and_no_clip_crosses_into_another(own_data):
    write_walk(own_data)  # frames 0..11 and 20..31
    plain, shifted, again, other, fewer, part = (load(own_data, "--train_vi_len", 5, *flags) for flags in (
        [], ["--shifted_copies", 2], ["--shifted_copies", 2], ["--shifted_copies", 2, "--seed", 1],
        ["--shifted_copies", 1], ["--shifted_copies", 2, "--partial", 0.9]))
    assert torch.equal(shifted.frames[:24], plain.frames) and len(shifted.frames) == 72
    assert not torch.equal(shifted.frames[24:48], plain.frames)
    assert not torch.equal(shifted.frames[24:48], shifted.frames[48:])
    assert shifted.loader.starts.tolist() == [copy + start for copy in (0, 24, 48) for start in plain.loader.starts]
    assert torch.equal(again.frames, shifted.frames) and again.replay_checksum == shifted.replay_checksum
    assert not torch.equal(other.frames, shifted.frames)
    assert len({data.replay_checksum for data in (plain, shifted, other, fewer, part)}) == 5
    assert plain.replay_checksum == plain.checksum == shifted.facts()["checksum"]  # which identifies the dataset


def test_the_shifted_frames_and_poses_are_those_of_the_person_shift(own_data):
    write_walk(own_data)
    data = load(own_data, "--shifted_copies", 2)
    for copy, offsets in enumerate(data.person_shift.draw_offsets(2, 0), start=1):
        assert offsets.unique().numel() > 1
        frames, labels = data.person_shift.apply(torch.arange(24), offsets)
        place = slice(24 * copy, 24 * copy + 24)
        assert torch.equal(data.loader.frames[place], frames) and torch.equal(data.loader.labels[place], labels)


def test_fast_epochs_use_the_unshifted_part(own_data):
    write_walk(own_data)
    data = load(own_data, "--shifted_copies", 1, "--fast_train", "--fast_partial", 0.5, "--partial", 0.75)
    assert len(data.frames) == len(data.loader.frames) == 36 and len(data.fast_loader.frames) == 12
    assert torch.equal(data.fast_loader.frames, data.frames[:12])


def test_frames_poses_and_random_frame_of_a_clip_share_a_crop_window():
    image = torch.randint(256, (1, 3, 8, 16), dtype=torch.uint8, generator=generator()).expand(24, 3, 8, 16)
    recording = Recording(image, image, torch.arange(24))
    loader = ClipLoader(recording, 3, 3, 8, crop_fraction=0.5, with_random_frame=True)
    clips, = loader.batches(torch.arange(8), slice, generator(3), generator(3))
    assert torch.equal(clips.frames, clips.labels) and torch.equal(clips.random_frame, clips.frames[:, 0])
    is_unchanged = (clips.frames == image[0] / 255).flatten(1).all(dim=1)
    assert 0 < is_unchanged.sum() < 8 and torch.equal(is_unchanged, clips.is_whole)


@pytest.mark.parametrize("part", [slice(2, 5), slice(5, 8), slice(8, 8)], ids=str)
def test_random_draws_of_a_shard_are_those_of_the_whole_batch(part):
    frames = torch.randint(256, (24, 3, 8, 16), dtype=torch.uint8, generator=generator())
    loader = ClipLoader(Recording(frames, frames, torch.arange(24)), 3, 3, 8, crop_fraction=0.5, with_random_frame=True)
    whole, = loader.batches(torch.arange(8), slice, generator(3), generator(4))
    shard, = loader.batches(torch.arange(8), lambda count: part, generator(3), generator(4))
    for values, expected in zip(shard, whole, strict=True):
        assert torch.equal(values, expected[part])


def test_random_frames_come_from_anywhere_in_the_segment_of_the_clip():
    frames = 10 * torch.arange(24, dtype=torch.uint8).view(24, 1, 1, 1).expand(24, 3, 4, 5)
    numbers = torch.cat([torch.arange(6), torch.arange(10, 28)])
    loader = ClipLoader(Recording(frames, frames, numbers), 3, 3, 8, with_random_frame=True)
    seen = set()
    for seed in range(20):
        clips, = loader.batches(torch.arange(8), frame_generator=generator(seed))
        assert torch.equal(clips.random_frame, frames[clips.random_index] / 255)
        seen |= set(zip((clips.index[:, 0] < 6).tolist(), clips.random_index.tolist(), strict=True))
    assert seen == {(position < 6, position) for position in range(24)}


def test_a_recording_too_short_for_a_clip_is_refused():
    with pytest.raises(ValueError, match="no 4 consecutive frames"):
        ClipLoader(recording_of([0, 1, 2, 5, 6, 7, 9]), 4, 1, 2)


# Validation and test sequences

def test_validation_is_the_first_frames_without_a_jump(tmp_path):
    write_split(tmp_path, "val", 8, seed=0, numbers=[5, 6, 7, 8, 20, 21, 22, 23])
    recording = dataloader.read_validation(tmp_path, 4, H, W, 1)
    assert recording.numbers.tolist() == [5, 6, 7, 8]
    assert torch.equal(recording.frames, to_tensor(make_video(8, 0)[0][:4]))
    with pytest.raises(BadInput, match="from 8 to 20.*--val_vi_len 4"):
        dataloader.read_validation(tmp_path, 5, H, W, 1)
    with pytest.raises(BadInput, match="fewer than --val_vi_len 9.*--val_vi_len 8"):
        dataloader.read_validation(tmp_path, 9, H, W, 1)


def test_sequences_are_in_numeric_order_with_their_first_frames(tmp_path):
    for name in ("10", "2", "0", "1"):
        write_sequence(tmp_path, name, 5, seed=int(name))
    sequences = dataloader.read_test_sequences(tmp_path, H, W, 2)
    assert [sequence.name for sequence in sequences] == ["0", "1", "2", "10"]
    for sequence in sequences:
        frames, labels = make_video(5, int(sequence.name))
        assert torch.equal(sequence.first_frame, to_tensor(frames[0]))
        assert torch.equal(sequence.labels[1:], to_tensor(labels[1:]))
        assert sequence.numbers == [0, 1, 2, 3, 4]


def test_names_of_equal_numbers_are_ordered_as_text():
    names = ["1", "b1", "01", "10", "001", "a1", "2", "a01", "", "a"]
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(names).tolist()
        assert sorted(shuffled, key=dataloader.natural_order) == [
            "", "001", "01", "1", "2", "10", "a", "a01", "a1", "b1"]


def test_the_first_frame_has_the_lowest_number_and_needs_no_pose(tmp_path):
    frames, labels = make_video(4, 3)
    write_pngs(tmp_path / "test" / "test_img" / "0", frames[:2], [10, 9])
    write_pngs(tmp_path / "test" / "test_label" / "0", labels[1:], [10, 11, 12])
    sequence, = dataloader.read_test_sequences(tmp_path, H, W, 1)
    assert torch.equal(sequence.first_frame, to_tensor(frames[1]))
    assert sequence.numbers == [9, 10, 11, 12] and sequence.labels.shape == (4, 3, H, W)
    assert torch.equal(sequence.labels[1:], to_tensor(labels[1:]))


@pytest.mark.parametrize("gap", ["1", "2"])
def test_a_gap_in_the_poses_is_refused(gap, tmp_path):
    write_sequence(tmp_path, "0", 5, seed=0)
    (tmp_path / "test" / "test_label" / "0" / f"{gap}.png").unlink()
    with pytest.raises(BadInput, match=f"pose of frame {gap} is missing"):
        dataloader.read_test_sequences(tmp_path, H, W, 1)


def test_a_sequence_without_poses_or_first_frame_is_refused(tmp_path):
    write_sequence(tmp_path, "0", 3, seed=0)
    (tmp_path / "test" / "test_img" / "1").mkdir()
    with pytest.raises(BadInput, match="test_label.1: .*missing"):
        dataloader.read_test_sequences(tmp_path, H, W, 1)
    (tmp_path / "test" / "test_label" / "1").mkdir()
    with pytest.raises(BadInput, match="test_img.1: no PNG"):
        dataloader.read_test_sequences(tmp_path, H, W, 1)


# The real dataset, if it is available

@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    if not (REAL / "unpack.py").exists():
        pytest.skip(f"the real dataset is not in {REAL}")
    root = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, REAL / "unpack.py", root], check=True, capture_output=True)
    return root


def test_the_real_recording_reads_back_and_no_clip_crosses_its_cuts(real):
    recording = dataloader.read_recording(real, "train", 32, 64, 2)
    assert recording.frames.shape == recording.labels.shape == (2830, 3, 32, 64)
    assert recording.numbers.tolist() == [*range(19), *range(22, 1003), *range(2030, 3860)]
    stored = np.load(REAL / "train.npz")
    for images, name in ((recording.frames, "frames"), (recording.labels, "labels")):
        assert torch.equal(images, to_tensor(stored[name]))
    starts = dataloader.clip_starts(recording.numbers, 16, 1)
    assert len(starts) == (19 - 15) + (981 - 15) + (1830 - 15)
    assert (recording.numbers[starts + 15] - recording.numbers[starts] == 15).all()


def test_the_score_of_repeating_the_first_real_frame(real):
    """Over frames 1..600, as the course scores; over all of 1..629 it is 35.4 and 20.7 dB."""
    val = dataloader.read_validation(real, 630, 32, 64, 2).frames
    truth = list(dataloader.list_frames(real / "truth" / "0").values())
    test = dataloader.read_images(truth, 32, 64, 2, "truth")
    assert len(test) == 630
    for frames, expected in ((val, 35.8), (test, 21.0)):
        frames = dataloader.to_float(frames)
        assert course_score(psnr(repeat_first(frames), frames)) == pytest.approx(expected, abs=0.1)


def test_objects_print_as_one_line(data):
    loaded = load(data)
    val = loaded.val
    sequence = GivenSequence("0", val.frames[0], val.labels, val.numbers.tolist())
    for shown in (loaded, val, sequence, score(val.frames, val.frames)):
        assert "\n" not in repr(shown) and f"{len(val.frames)} frames" in repr(shown) and len(repr(shown)) < 120
