"""Frame encoder and label encoder: formula, names with shapes, BatchNorm statistics, frame sizes.

    python -m pytest tests/test_encoders.py
"""
import pytest
import torch
from test_layers import (
    conv,
    conv_shapes,
    depth_conv_block,
    depth_conv_shapes,
    leaky,
    lively,
    residual,
    residual_shapes,
    shapes,
)
from torch.nn import functional

from modules.network.encoders import FrameEncoder, LabelEncoder


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def images(*shape: int):
    return torch.rand(*shape, dtype=torch.float64)


def label_encoder(x, weights: dict, mean, variance):
    """The formula, with the statistics that BatchNorm is to use."""
    x = conv(functional.pad(x, (3, 3, 3, 3), mode="reflect"), weights, "1")
    mean, variance, scale, offset = (v.view(1, -1, 1, 1) for v in (mean, variance, weights["2.weight"],
                                                                   weights["2.bias"]))
    x = (x - mean) / (variance + 1e-5).sqrt() * scale + offset
    return residual(leaky(x), weights, "4.")


def before_norm(x, weights: dict):
    """What BatchNorm sees, a channel a row."""
    x = conv(functional.pad(x, (3, 3, 3, 3), mode="reflect"), weights, "1")
    return x.transpose(0, 1).flatten(1)


def copy(part) -> dict:
    return {name: value.clone() for name, value in part.state_dict().items()}


@pytest.mark.parametrize("F", [8, 24, 128])
def test_frame_encoder_has_the_courses_names(F):
    assert shapes(FrameEncoder(F)) == (
        residual_shapes("0.", 3, F // 8) | depth_conv_shapes("1.", F // 8, F // 8)
        | residual_shapes("2.", F // 8, F // 4) | depth_conv_shapes("3.", F // 4, F // 4)
        | residual_shapes("4.", F // 4, F // 2) | depth_conv_shapes("5.", F // 2, F // 2)
        | conv_shapes("6", F // 2, F, 3))


@pytest.mark.parametrize("L", [2, 4, 32])
def test_label_encoder_has_the_courses_names(L):
    norm = {f"2.{name}": (L // 2,) for name in ("weight", "bias", "running_mean", "running_var")}
    assert shapes(LabelEncoder(L)) == (
        conv_shapes("1", 3, L // 2, 7) | norm | {"2.num_batches_tracked": ()} | residual_shapes("4.", L // 2, L))


def test_frame_encoder_is_its_formula():
    encoder = lively(FrameEncoder(16))
    weights, frames = copy(encoder), images(2, 3, 8, 8)
    x = frames
    for index, block in enumerate([residual, depth_conv_block] * 3):
        x = block(x, weights, f"{index}.")
    torch.testing.assert_close(encoder(frames), conv(x, weights, "6", 1))


def test_label_encoder_in_training_normalises_by_the_batch_and_updates_the_running_statistics_once():
    encoder = lively(LabelEncoder(8))
    weights, poses = copy(encoder), images(5, 3, 8, 8)
    seen = before_norm(poses, weights)
    expected = label_encoder(poses, weights, seen.mean(1), seen.var(1, unbiased=False))
    torch.testing.assert_close(encoder(poses), expected)
    torch.testing.assert_close(encoder[2].running_mean, 0.1 * seen.mean(1))
    torch.testing.assert_close(encoder[2].running_var, 0.9 + 0.1 * seen.var(1, unbiased=True))
    assert encoder[2].num_batches_tracked.item() == 1


def test_label_encoder_in_evaluation_uses_the_running_statistics_and_leaves_them():
    encoder = lively(LabelEncoder(8))
    encoder(images(5, 3, 8, 8))  # a training step, so that they are no longer 0 and 1
    encoder.eval()
    weights, poses = copy(encoder), images(4, 3, 8, 8)
    expected = label_encoder(poses, weights, weights["2.running_mean"], weights["2.running_var"])
    torch.testing.assert_close(encoder(poses), expected)
    assert all(torch.equal(value, weights[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("encoder, channels", [(FrameEncoder(8), 8), (LabelEncoder(4), 4)])
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (12, 8), (9, 4)])
def test_frame_sizes_down_to_four_and_odd_ones_are_kept(encoder, channels, size):
    assert encoder(torch.rand(2, 3, *size)).shape == (2, channels, *size)


@pytest.mark.parametrize("encoder", [FrameEncoder(8), LabelEncoder(4)])
def test_in_evaluation_each_image_is_encoded_alone(encoder):
    encoder = lively(encoder).eval()
    batch = images(3, 3, 8, 8)
    torch.testing.assert_close(encoder(batch), torch.cat([encoder(batch[i:i + 1]) for i in range(3)]))
    assert not torch.allclose(encoder(batch)[0], encoder(batch)[1], rtol=1e-3, atol=1e-3)


def white_poses(count: int, height: int = 12, width: int = 16) -> torch.Tensor:
    """White pictures with a small coloured square each."""
    poses = torch.ones(count, 3, height, width)
    for index, pose in enumerate(poses):
        pose[:, 2 + index % 8:5 + index % 8, 3 + index % 7:5 + index % 7] = torch.tensor([0.1, 0.8, 0.3])[:, None, None]
    return poses


def test_estimated_statistics_are_those_of_the_poses_under_the_present_weights():
    encoder, poses = LabelEncoder(4).eval(), white_poses(9)
    encoder.estimate_statistics(poses)
    responses = encoder[1](encoder[0](poses)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(encoder[2].running_mean, responses.mean(1))
    torch.testing.assert_close(encoder[2].running_var, responses.var(1))
    # Evaluation now gives what training gives for the same poses, up to the variance's n / (n - 1).
    torch.testing.assert_close(encoder(poses), encoder.train()(poses), rtol=1e-3, atol=1e-3)


def test_evaluation_follows_weights_that_move_only_with_estimated_statistics():
    """The white background makes the responses a large constant that moves with the weights."""
    encoder, poses = LabelEncoder(4), white_poses(9)
    for _ in range(50):
        encoder(poses)
        with torch.no_grad():
            encoder[1].weight += 0.002
    trained = encoder(poses).detach()

    def error() -> float:
        return (encoder.eval()(poses) - trained).abs().max().item()

    lagging = error()
    encoder.estimate_statistics(poses)
    assert error() < 0.02 and lagging > 20 * error()


def test_the_pose_survives_bfloat16_autocast():
    encoder, poses = LabelEncoder(4), white_poses(9)
    exact = encoder(poses)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(poses), exact)
