"""The rollout (CVAE.generate) against a slow loop, its random source, its invariances.

    python -m pytest tests/network/test_generate.py
"""
import re

import pytest
import torch
from tiny_cvae import TINY, copy_state, make_clips, make_model, slow_match, with_statistics

from modules.network.cvae import POSES_AT_ONCE

STRATEGIES = [{}, {"match_histogram": "previous"}, {"match_histogram": "first"}, {"reference_frame": True},
              {"feed": "first"}, {"pose_levels": 2}]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def setting(length: int, batch: int = 2, **arguments):
    """A model with trained statistics, first frames and poses."""
    frames, labels, _ = make_clips(torch.float32, batch, length, (4, 5))
    return with_statistics(make_model(torch.float32, **arguments)), frames[:, 0], labels


def slow_generate(model, first_frame, labels, source=None):
    """One frame at a time in evaluation mode, each pose encoded alone; z from the generator ``source``, or 0."""
    model.eval()
    frames, given = [first_frame], first_frame
    with torch.no_grad():
        for t in range(1, labels.shape[1]):
            shape = len(given), TINY["N_dim"], *given.shape[2:]
            z = torch.zeros(shape) if source is None else torch.randn(shape, generator=source)
            features = model.frame_encoder(first_frame if model.feed == "first" else given)
            if model.reference_frame:
                features = torch.cat([features, model.frame_encoder(first_frame)], dim=1)
            frames.append(model.generator(model.decoder_fusion(features, model.label_encoder(labels[:, t]), z)))
            given = slow_match(model.match_histogram, frames[-1], given, first_frame)
    return torch.stack(frames, dim=1)


@pytest.mark.parametrize("arguments", STRATEGIES, ids=str)
def test_mean_rollout_equals_the_slow_loop(arguments):
    model, first_frame, labels = setting(9, **arguments)
    expected = slow_generate(model, first_frame, labels)
    torch.testing.assert_close(model.generate(first_frame, labels, "mean"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 2 * POSES_AT_ONCE + 3])
def test_prior_rollout_equals_the_slow_loop(length):
    model, first_frame, labels = setting(length)
    video = model.generate(first_frame, labels, generator=torch.Generator().manual_seed(5))
    expected = slow_generate(model, first_frame, labels, torch.Generator().manual_seed(5))
    torch.testing.assert_close(video, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(video[:, 0], first_frame)


def test_the_seed_decides_the_prior_rollout_and_has_no_effect_on_the_mean_one():
    model, first_frame, labels = setting(6)
    for latent in ("prior", "mean"):
        one, same, other = (model.generate(first_frame, labels, latent, torch.Generator().manual_seed(value))
                            for value in (1, 1, 2))
        assert torch.equal(one, same)
        changed = ((one - other).abs().flatten(2).amax(2) > 1e-5)[:, 1:]
        assert changed.all() if latent == "prior" else not changed.any()


@pytest.mark.parametrize("latent", ["prior", "mean"])
@pytest.mark.parametrize("short", [2, POSES_AT_ONCE, POSES_AT_ONCE + 1])
def test_the_start_of_a_rollout_does_not_depend_on_its_length(short, latent):
    model, first_frame, labels = setting(POSES_AT_ONCE + 9)
    videos = [model.generate(first_frame, labels[:, :length], latent, torch.Generator().manual_seed(1))
              for length in (short, labels.shape[1])]
    torch.testing.assert_close(videos[0], videos[1][:, :short], rtol=1e-5, atol=1e-6)


def test_clips_of_a_batch_do_not_influence_each_other():
    model, first_frame, labels = setting(7, batch=3)
    alone = [model.generate(first_frame[b:b + 1], labels[b:b + 1], "mean") for b in range(3)]
    torch.testing.assert_close(model.generate(first_frame, labels, "mean"), torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_a_frame_depends_on_the_first_frame_and_on_poses_up_to_its_own_but_the_first():
    model, first_frame, labels = setting(5)
    base = model.generate(first_frame, labels, "mean")

    def changes(frame, poses) -> list[bool]:
        return ((model.generate(frame, poses, "mean") - base).abs().flatten(2).amax(2) > 1e-6).any(0).tolist()

    assert all(changes(torch.rand_like(first_frame), labels)[:2])
    for t in range(5):
        poses = labels.clone()
        poses[:, t] = torch.rand_like(poses[:, t])
        changed = changes(first_frame, poses)
        assert not any(changed[:t])
        assert changed[t] if t > 0 else not any(changed)


def test_rollout_equals_a_free_running_training_pass_with_the_prior_as_posterior():
    model = with_statistics(make_model(torch.float32)).eval()
    frames, labels, noise = make_clips(torch.float32)
    with torch.no_grad():
        model.gaussian_predictor[-1].weight.zero_()
        model.gaussian_predictor[-1].bias.zero_()
        clip = model(frames, labels, torch.zeros(len(frames), dtype=torch.bool), torch.zeros_like(noise))[0]
    torch.testing.assert_close(model.generate(frames[:, 0], labels, "mean")[:, 1:], clip, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_rollout_uses_evaluation_mode_and_restores_the_model(training):
    model, first_frame, labels = setting(5)
    expected = slow_generate(model, first_frame, labels)
    before = copy_state(model)
    video = model.train(training).generate(first_frame, labels, "mean")
    torch.testing.assert_close(video, expected, rtol=1e-5, atol=1e-6)
    assert all(part.training is training for part in model.modules())
    torch.testing.assert_close(copy_state(model), before, rtol=0, atol=0)
    assert not video.requires_grad


def test_training_mode_is_restored_after_an_error():
    model, first_frame, labels = setting(5)

    def interrupted(frames):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(first_frame, labels, progress=interrupted)
    assert all(part.training for part in model.modules())


def test_progress_sees_every_predicted_frame():
    model, first_frame, labels = setting(7)
    seen = []

    def progress(frames):
        for t in frames:
            seen.append(t)
            yield t

    model.generate(first_frame, labels, "mean", progress=progress)
    assert seen == list(range(1, 7))


def test_memory_of_pose_features_is_bounded_in_long_rollouts():
    model, first_frame, labels = setting(2 * POSES_AT_ONCE + 3)
    sizes = []
    model.label_encoder.register_forward_hook(lambda part, inputs, output: sizes.append(len(output)))
    model.generate(first_frame, labels)
    assert max(sizes) <= 2 * POSES_AT_ONCE


@pytest.mark.parametrize("latent", ["posterior", "Prior", ""])
def test_an_unknown_latent_is_rejected(latent):
    model, first_frame, labels = setting(3)
    with pytest.raises(ValueError, match="latent"):
        model.generate(first_frame, labels, latent)


@pytest.mark.parametrize("change, words", [
    (lambda first, labels: (first.to(torch.uint8), labels), "first_frame must be torch.float32 in [0, 1] on cpu"),
    (lambda first, labels: (first, labels.double()), "labels must be torch.float32"),
    (lambda first, labels: (first.to("meta"), labels), "on meta"),
    (lambda first, labels: (first, labels.numpy()), "labels must be a tensor, got ndarray"),
    (lambda first, labels: (first[0], labels), "first_frame must have shape (B, 3, H, W)"),
    (lambda first, labels: (first.permute(0, 2, 3, 1), labels), "first_frame must have shape (B, 3, H, W)"),
    (lambda first, labels: (first, labels[0]), "labels must have shape (B, T, 3, H, W)"),
    (lambda first, labels: (first[:1], labels), "first_frame's B, H and W"),
    (lambda first, labels: (first, labels[..., 1:]), "first_frame's B, H and W"),
    (lambda first, labels: (first, labels[:, :0]), "T at least 1")])
def test_wrong_arguments_are_rejected_and_the_expected_ones_named(change, words):
    model, first_frame, labels = setting(3)
    with pytest.raises(ValueError, match=re.escape(words)):
        model.generate(*change(first_frame, labels))


def test_a_model_prints_as_one_line():
    model, *_ = setting(3)
    assert "parameters" in repr(model) and "\n" not in repr(model) and len(repr(model)) < 120
