"""Frame encoder and label encoder: formula, names and shapes of the weights, BatchNorm statistics, frame sizes.

    python -m pytest tests/network/test_encoders.py
"""
import pytest
import torch
from formulas import (
    chain,
    conv,
    conv_shapes,
    depth_conv_block,
    depth_conv_shapes,
    leaky,
    residual,
    residual_shapes,
    scaled,
    shapes,
)
from torch.nn import functional

from modules.network.encoders import FrameEncoder, LabelEncoder, UNet


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def images(*shape: int):
    return torch.rand(*shape, dtype=torch.float64)


def copy(part) -> dict:
    return {name: value.clone() for name, value in part.state_dict().items()}


def first_convolution(poses, weights: dict):
    return conv(functional.pad(poses, (3, 3, 3, 3), mode="reflect"), weights, "1")


def label_encoder(poses, weights: dict, mean, variance):
    """The formula, with the given BatchNorm statistics."""
    mean, variance, scale, offset = (v.view(1, -1, 1, 1) for v in (mean, variance, weights["2.weight"],
                                                                   weights["2.bias"]))
    x = (first_convolution(poses, weights) - mean) / (variance + 1e-5).sqrt() * scale + offset
    return residual(leaky(x), weights, "4.")


@pytest.mark.parametrize("F", [8, 24, 128])
def test_frame_encoder_has_the_courses_names_and_shapes(F):
    assert shapes(FrameEncoder(F)) == (
        residual_shapes("0.", 3, F // 8) | depth_conv_shapes("1.", F // 8, F // 8)
        | residual_shapes("2.", F // 8, F // 4) | depth_conv_shapes("3.", F // 4, F // 4)
        | residual_shapes("4.", F // 4, F // 2) | depth_conv_shapes("5.", F // 2, F // 2)
        | conv_shapes("6", F // 2, F, 3))


@pytest.mark.parametrize("L", [2, 4, 32])
def test_label_encoder_has_the_courses_names_and_shapes(L):
    norm = {f"2.{name}": (L // 2,) for name in ("weight", "bias", "running_mean", "running_var")}
    assert shapes(LabelEncoder(L)) == (
        conv_shapes("1", 3, L // 2, 7) | norm | {"2.num_batches_tracked": ()} | residual_shapes("4.", L // 2, L))


def test_frame_encoder_equals_its_formula():
    encoder = scaled(FrameEncoder(16))
    weights, frames = copy(encoder), images(2, 3, 8, 8)
    expected = conv(chain(frames, weights, *[residual, depth_conv_block] * 3), weights, "6", 1)
    torch.testing.assert_close(encoder(frames), expected)


def test_label_encoder_in_training_uses_batch_statistics_and_updates_the_running_ones():
    encoder = scaled(LabelEncoder(8))
    weights, poses = copy(encoder), images(5, 3, 8, 8)
    responses = first_convolution(poses, weights).transpose(0, 1).flatten(1)
    expected = label_encoder(poses, weights, responses.mean(1), responses.var(1, unbiased=False))
    torch.testing.assert_close(encoder(poses), expected)
    torch.testing.assert_close(encoder[2].running_mean, 0.1 * responses.mean(1))
    torch.testing.assert_close(encoder[2].running_var, 0.9 + 0.1 * responses.var(1, unbiased=True))


def test_label_encoder_in_evaluation_uses_the_running_statistics_and_keeps_them():
    encoder = scaled(LabelEncoder(8))
    encoder(images(5, 3, 8, 8))  # a training step, after which they are no longer 0 and 1
    encoder.eval()
    weights, poses = copy(encoder), images(4, 3, 8, 8)
    expected = label_encoder(poses, weights, weights["2.running_mean"], weights["2.running_var"])
    torch.testing.assert_close(encoder(poses), expected)
    torch.testing.assert_close(copy(encoder), weights, rtol=0, atol=0)


def half(x):
    """The mean of each 2 x 2 pixels."""
    return x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean(dim=(3, 5))


def double(x):
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_the_u_net_equals_its_formula():
    net = scaled(UNet(4, 2))
    weights, x = copy(net), images(3, 4, 8, 12)
    first = depth_conv_block(residual(half(x), weights, "down.0.0."), weights, "down.0.1.")
    second = depth_conv_block(residual(half(first), weights, "down.1.0."), weights, "down.1.1.")
    joined = residual(torch.cat([double(second), first], dim=1), weights, "up.1.")
    expected = residual(torch.cat([double(joined), x], dim=1), weights, "up.0.")
    torch.testing.assert_close(net(x), expected)
    assert first.shape[1] == 8 and second.shape[1] == 16


def test_the_u_net_follows_the_courses_layers():
    net = scaled(LabelEncoder(4, levels=2)).eval()
    weights, poses = copy(net), images(3, 3, 8, 12)
    stem = label_encoder(poses, weights, weights["2.running_mean"], weights["2.running_var"])
    torch.testing.assert_close(net(poses), net[5](stem))


@pytest.mark.parametrize("levels, is_seen", [(0, False), (3, True)])
def test_with_levels_every_pixel_sees_the_whole_pose(levels, is_seen):
    encoder, poses = scaled(LabelEncoder(4, levels=levels)).eval(), images(1, 3, 32, 64).requires_grad_()
    encoder(poses)[0, :, 0, 0].sum().backward()
    assert (poses.grad[0, :, 20:, 20:].abs().max() > 0) == is_seen


@pytest.mark.parametrize("encoder, channels", [(FrameEncoder(8), 8), (LabelEncoder(4), 4),
                                               (LabelEncoder(4, levels=2), 4)])
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (9, 4)])
def test_frame_sizes_down_to_four_are_preserved(encoder, channels, size):
    assert encoder(torch.rand(2, 3, *size)).shape == (2, channels, *size)


def white_poses(count: int, height: int = 12, width: int = 16) -> torch.Tensor:
    """White images with a small coloured square each."""
    poses = torch.ones(count, 3, height, width)
    for index, pose in enumerate(poses):
        pose[:, 2 + index % 8:5 + index % 8, 3 + index % 7:5 + index % 7] = torch.tensor([0.1, 0.8, 0.3])[:, None, None]
    return poses


def test_pose_statistics_are_those_of_the_first_convolution_and_change_nothing():
    encoder, poses = LabelEncoder(4), white_poses(9)
    before = copy(encoder)
    mean, var = encoder.pose_statistics(poses)
    torch.testing.assert_close(copy(encoder), before, rtol=0, atol=0)
    responses = first_convolution(poses, before).transpose(0, 1).flatten(1)
    torch.testing.assert_close((mean, var), (responses.mean(1), responses.var(1)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.stack(encoder.pose_statistics(poses)), torch.stack([mean, var]))


def test_set_statistics_makes_evaluation_match_training():
    """The white background makes the responses a large constant, which moves with the weights."""
    encoder, poses = LabelEncoder(4), white_poses(9)
    for _ in range(50):
        encoder(poses)
        with torch.no_grad():
            encoder[1].weight += 0.002
    trained = encoder(poses).detach()
    encoder.eval()
    lagging = (encoder(poses) - trained).abs().max()
    encoder.set_statistics(*encoder.pose_statistics(poses))
    error = (encoder(poses) - trained).abs().max()
    assert error < 0.02 and lagging > 20 * error  # what is left is the factor n / (n - 1) of the variance


def test_the_label_encoder_computes_in_float32_under_autocast():
    encoder, poses = LabelEncoder(4), white_poses(9)
    exact = encoder(poses)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(poses), exact)


def test_the_u_net_follows_autocast():
    encoder = LabelEncoder(4, levels=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(white_poses(9)).dtype == torch.bfloat16
