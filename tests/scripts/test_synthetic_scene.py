"""The synthetic scene: agreement of frames and poses, skeleton, motion, difficulty.

    python -m pytest tests/scripts/test_synthetic_scene.py
"""
import numpy as np
import pytest

import make_synthetic_dataset as synthetic
import synthetic_scene as scene

SIZE = (32, 64)


@pytest.fixture(scope="module")
def performance():
    """A default test sequence of seed 0: bodies, look and room."""
    shot = synthetic.Shot(0, (scene.TEST, 0), range(630), "", "")
    chunks = list(synthetic.chunks_of(shot, 0, SIZE))
    body = {name: np.concatenate([chunk.body[name] for chunk in chunks]) for name in chunks[0].body}
    return body, *scene.scenery(0, 0, SIZE)


def draw(performance, t):
    body, look, room = performance
    body = {name: places[t] for name, places in body.items()}
    return scene.draw_frame(body, look, room, Quiet()), scene.draw_pose(body, SIZE)


class Quiet:
    """A sensor without noise."""

    def normal(self, mean, deviation, shape):
        return np.zeros(shape)


def empty_room(performance):
    body, look, room = performance
    far_away = {name: places[0] + [0, 0, 1e3] for name, places in body.items()}  # too far to fill a pixel
    return scene.draw_frame(far_away, look, room, Quiet())


def test_the_pose_is_blank_exactly_when_the_person_is_out_of_view(performance):
    room, seen = empty_room(performance).astype(int), {True: 0, False: 0}
    for t in range(0, 630, 9):
        frame, pose = draw(performance, t)
        changed = np.mean(np.abs(frame - room).max(-1) > 12)
        blank = bool((pose == 255).all())
        seen[blank] += 1
        assert changed < 0.01 if blank else changed > 0.001, t
    assert seen[True] >= 2 and seen[False] >= 50


def test_the_pose_lies_on_the_person(performance):
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
    for turned, sign in ((body, 1), (away, -1)):  # the left hand of a person facing us is at the right of the picture
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
    assert np.linalg.norm(np.diff(joints, axis=1), axis=-1).max() < 0.3  # metres per frame: fast hands, no jumps
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
    assert out.any() and not out[0] and np.any(np.diff(out.astype(int)) == -1)  # leaves and comes back
    assert np.any(p["x"] < -0.5) and np.any(p["x"] > 0.5)


@pytest.mark.parametrize("seed, sequence", [(0, 0), (1, 3)])
def test_repeating_the_first_frame_scores_poorly(seed, sequence):
    shot = synthetic.Shot(0, (scene.TEST, sequence), range(630), "", "")
    bodies = [{name: places[i] for name, places in chunk.body.items()}
              for chunk in synthetic.chunks_of(shot, seed, SIZE) for i in range(0, len(chunk.numbers), 15)]
    look, room = scene.scenery(seed, 0, SIZE)
    frames = [scene.draw_frame(body, look, room, Quiet()) for body in bodies]
    error = [np.mean((frame.astype(float) - frames[0]) ** 2) for frame in frames[1:]]
    assert 17 < np.mean(10 * np.log10(255**2 / np.array(error))) < 23


def test_other_sizes_show_the_same_scene(performance):
    body, look, _ = performance
    body = {name: places[0] for name, places in body.items()}
    small = draw(performance, 0)[0].astype(float)
    large = scene.draw_frame(body, look, scene.scenery(0, 0, (64, 128))[1], Quiet()).astype(float)
    shrunk = large.reshape(32, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 3
