"""Shift augmentation, against synthetic scenes in which the person really stands elsewhere.

    python -m pytest tests/data/test_person_shift.py
"""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import synthetic_scene as scene
from modules.data.person_shift import PersonShift, shift
from modules.evaluation.metrics import psnr
from modules.plots.run_figures import draw_shifts

SIZE, FRAMES = (32, 64), 40
BOUNDS = torch.tensor([0, FRAMES])


class Quiet:
    """No camera noise."""

    def normal(self, mean, deviation, size):
        return np.zeros(size)


def film(places: np.ndarray, depth: float = 2.6) -> tuple[torch.Tensor, torch.Tensor]:
    """A person who walks on the spot at these X, in metres: frames and poses, uint8 (N, 3, H, W)."""
    look, room = scene.scenery(0, 0, SIZE)
    track = np.zeros((len(places), len(scene.COLUMNS)))
    columns = {name: index for index, name in enumerate(scene.COLUMNS)}
    for name, value in {"z": depth, **scene.REST}.items():
        track[:, columns[name]] = value
    # The same skeleton everywhere: moved afterwards, so that the steps do not depend on the way.
    body = scene.skeleton(track, look.height, np.random.default_rng(0))
    frames, poses = [], []
    for number, place in enumerate(places):
        joints = {name: points[number] + [place, 0, 0] for name, points in body.items()}
        frames.append(scene.draw_frame(joints, look, room, Quiet()))
        poses.append(scene.draw_pose(joints, SIZE))
    return tuple(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous() for images in (frames, poses))


def metres(pixels: float, depth: float = 2.6) -> float:
    return pixels * depth / (scene.FOCAL * SIZE[0])


@pytest.fixture(scope="module")
def walk() -> SimpleNamespace:
    """Back and forth, and what is seen where the person is 7 pixels further right."""
    places = metres(14) * np.sin(np.linspace(0, 4 * np.pi, FRAMES))
    frames, labels = film(places)
    truth, poses = film(places + metres(7))
    return SimpleNamespace(frames=frames, labels=labels, truth=truth, poses=poses,
                           shift=PersonShift(frames, labels, BOUNDS))


def apply(walk: SimpleNamespace, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    moved, poses = walk.shift.apply(torch.arange(FRAMES), torch.full((FRAMES,), offset))
    return moved / 255, poses / 255


def test_a_shifted_person_looks_like_one_who_stands_there(walk):
    moved, poses = apply(walk, 7)
    assert psnr(moved, walk.truth / 255).mean() > 40 > 20 + psnr(walk.frames / 255, walk.truth / 255).mean()
    assert psnr(poses, walk.poses / 255).mean() > 37 > 20 + psnr(walk.labels / 255, walk.poses / 255).mean()


def test_the_light_of_a_frame_is_kept(walk):
    light = torch.where(torch.arange(FRAMES) % 2 == 0, 1.0, 0.95)[:, None, None, None]
    frames, truth = ((images * light).to(torch.uint8) for images in (walk.frames, walk.truth))
    flickering = SimpleNamespace(frames=frames, labels=walk.labels, shift=PersonShift(frames, walk.labels, BOUNDS))
    assert psnr(apply(flickering, 7)[0], truth / 255).mean() > 33.2


def test_the_background_is_seen_although_the_person_mostly_stands_before_it(walk):
    frames, labels = (torch.cat([images, images[:1].expand(3 * FRAMES, -1, -1, -1)])
                      for images in (walk.frames, walk.labels))
    found = PersonShift(frames, labels, torch.tensor([0, 4 * FRAMES]))
    assert psnr(found.background, walk.shift.background) > 36


def test_where_the_person_stood_the_background_is_seen(walk):
    empty, _ = film(np.full(2, 100.0))
    assert psnr(walk.shift.background, empty[0] / 255) > 38
    assert walk.shift.found > 0.9 and 0.03 < walk.shift.covered < 0.2


def test_the_picture_shows_six_frames_and_what_became_of_them(walk, tmp_path):
    draw_shifts(walk.shift, tmp_path / "figures" / "shifted_copies.png")
    picture = np.asarray(Image.open(tmp_path / "figures" / "shifted_copies.png").convert("L"))
    is_blank = (picture > 250).all(axis=1)
    assert (is_blank[:-1] & ~is_blank[1:]).sum() in (6, 7)  # rows, and the titles


def test_no_offset_changes_no_bit_and_each_frame_has_its_own(walk):
    index = torch.tensor([3, 8, 9])
    moved, poses = walk.shift.apply(index, torch.tensor([0, 5, -2]))
    assert torch.equal(moved[0], walk.frames[3]) and torch.equal(poses[0], walk.labels[3])
    for number, offset in ((1, 5), (2, -2)):
        alone, alone_pose = apply(walk, offset)
        assert torch.equal(moved[number] / 255, alone[index[number]])
        assert torch.equal(poses[number] / 255, alone_pose[index[number]])


def test_images_are_shifted_by_whole_pixels_and_filled_at_the_edge():
    images = torch.arange(8.0).view(2, 1, 1, 4)
    assert shift(images, torch.tensor([1, -2]), 9.0).view(2, 4).tolist() == [[9, 0, 1, 2], [6, 7, 9, 9]]
    assert shift(images, torch.tensor([1, -2]), None).view(2, 4).tolist() == [[0, 0, 1, 2], [6, 7, 7, 7]]


def test_a_person_who_touches_an_edge_is_only_moved_across_it():
    right = np.linspace(metres(-4), metres(27), FRAMES)
    frames, labels = film(right)
    found = PersonShift(frames, labels, BOUNDS)
    for mirrored, ends in ((False, (0, 12)), (True, (-12, 0))):
        given = [images.flip(-1) if mirrored else images for images in (frames, labels)]
        found = PersonShift(*given, BOUNDS)
        assert (found.lowest.tolist(), found.highest.tolist()) == ([ends[0]], [ends[1]])


def test_a_person_who_always_touches_both_edges_is_not_moved(walk):
    """Otherwise the copies would be copies."""
    frames, labels = film(np.linspace(metres(-31), metres(31), FRAMES))
    with pytest.raises(ValueError, match="touches both sides"):
        PersonShift(frames, labels, BOUNDS)
    assert str(walk.shift).endswith("can be moved in 100.0% of the frames")


def test_a_second_scene_is_refused(walk):
    """Also a short one, which no median over all frames shows."""
    frames = torch.cat([walk.frames] * 3 + [walk.frames.flip(-2)[:20]])
    labels = torch.cat([walk.labels] * 3 + [walk.labels[:20]])
    with pytest.raises(ValueError, match=r"after the first 120 frames: .* scene"):
        PersonShift(frames, labels, torch.tensor([0, 120, 140]))


def test_each_stretch_of_each_copy_has_an_offset_that_depends_on_the_seed_only(walk):
    count = 300
    several = PersonShift(walk.frames.repeat(8, 1, 1, 1)[:count], walk.labels.repeat(8, 1, 1, 1)[:count],
                          torch.tensor([0, 20, count]))
    assert several.stretch.bincount().tolist() == [20, 96, 96, 88]  # none crosses a cut
    offsets = several.draw_offsets(500, 3)
    assert offsets.shape == (500, count)
    assert torch.equal(offsets, several.draw_offsets(500, 3))
    assert not torch.equal(offsets, several.draw_offsets(500, 4))
    drawn = offsets[:, [0, 20, 120, 299]]  # one frame of each stretch
    assert torch.equal(offsets, drawn[:, several.stretch])
    assert len(drawn.unique(dim=0)) > 490  # stretches and copies are independent
    for column in drawn.T:  # uniform: 20 +- 4.4 of each
        shares = torch.tensor([(column == offset).sum() for offset in range(-12, 13)])
        assert shares.sum() == 500 and 5 < shares.min() and shares.max() < 40
    several.lowest[1], several.highest[1] = 0, 2
    assert several.draw_offsets(500, 3)[:, 20].unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("case, words", [
    ("no pose", "no limb"), ("still", "never leaves"), ("camera", "the camera moves"), ("elsewhere", "hardly moves")])
def test_a_recording_without_a_background_is_refused(case, words, walk):
    frames, labels = walk.frames.clone(), walk.labels.clone()
    if case == "no pose":
        labels[:] = 255
    elif case == "still":
        frames, labels = (images[:1].expand(FRAMES, -1, -1, -1) for images in (frames, labels))
    elif case == "camera":
        wall = torch.randint(128, frames.shape[1:], dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        frames = torch.stack([(frame // 2 + wall).roll(3 * number, -1) for number, frame in enumerate(frames)])
    else:  # the limbs are not where the person is
        frames = frames[:1].expand(FRAMES, -1, -1, -1)
    with pytest.raises(ValueError, match=words):
        PersonShift(frames, labels, BOUNDS)
