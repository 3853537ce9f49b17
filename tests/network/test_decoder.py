"""Decoder fusion and generator: formula, names and shapes of the weights, range of the output, frame sizes.

    python -m pytest tests/network/test_decoder.py
"""
import pytest
import torch
from formulas import (
    chain,
    conv,
    conv_shapes,
    depth_conv_block,
    depth_conv_shapes,
    residual,
    residual_shapes,
    scaled,
    shapes,
)

from modules.network.decoder import DecoderFusion, Generator


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("F, L, N, D", [(8, 4, 4, 8), (16, 2, 4, 24), (128, 32, 12, 192)])
def test_fusion_has_the_courses_names_and_shapes(F, L, N, D):
    c = F + L + N
    assert shapes(DecoderFusion(F, L, N, D)) == (
        depth_conv_shapes("0.", c, c) | residual_shapes("1.", c, c // 4)
        | depth_conv_shapes("2.", c // 4, c // 2) | residual_shapes("3.", c // 2, c // 2)
        | depth_conv_shapes("4.", c // 2, D // 2) | conv_shapes("5", D // 2, D, 1))


@pytest.mark.parametrize("output", ["sigmoid", "linear"])
@pytest.mark.parametrize("D", [8, 24, 192])
def test_generator_has_the_courses_names_and_shapes(D, output):
    assert shapes(Generator(D, output)) == (
        depth_conv_shapes("0.", D, D) | residual_shapes("1.", D, D // 2)
        | depth_conv_shapes("2.", D // 2, D // 2) | residual_shapes("3.", D // 2, D // 4)
        | depth_conv_shapes("4.", D // 4, D // 4) | residual_shapes("5.", D // 4, D // 8)
        | depth_conv_shapes("6.", D // 8, D // 8) | conv_shapes("7", D // 8, 3, 1))


def test_fusion_equals_its_formula():
    fusion = scaled(DecoderFusion(8, 4, 4, 8))
    frame, pose, z = (torch.randn(2, channels, 8, 8, dtype=torch.float64) for channels in (8, 4, 4))
    weights = fusion.state_dict()
    expected = chain(torch.cat([frame, pose, z], dim=1), weights, *[depth_conv_block, residual] * 2, depth_conv_block)
    torch.testing.assert_close(fusion(frame, pose, z), conv(expected, weights, "5"))


@pytest.mark.parametrize("output", ["sigmoid", "linear"])
def test_generator_equals_its_formula(output):
    generator = scaled(Generator(16, output), 1.5)
    x, weights = torch.randn(2, 16, 8, 8, dtype=torch.float64), generator.state_dict()
    expected = conv(chain(x, weights, *[depth_conv_block, residual] * 3, depth_conv_block), weights, "7")
    if output == "sigmoid":
        assert expected.abs().min() < 3  # not saturated everywhere
        expected = 1 / (1 + torch.exp(-expected))
    torch.testing.assert_close(generator(x), expected)


def test_the_sigmoid_keeps_extreme_inputs_in_the_range_of_images():
    bounded, unbounded = Generator(8, "sigmoid"), Generator(8, "linear")
    unbounded.load_state_dict(bounded.state_dict())
    x = 30 * torch.randn(4, 8, 8, 8)
    assert unbounded(x).min() < 0 or unbounded(x).max() > 1
    assert bounded(x).min() >= 0 and bounded(x).max() <= 1


def test_an_unknown_output_is_rejected():
    with pytest.raises(ValueError, match="tanh"):
        Generator(8, "tanh")


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (1, 1)])
def test_frame_sizes_are_preserved(size):
    fused = DecoderFusion(8, 4, 4, 8)(*(torch.rand(2, channels, *size) for channels in (8, 4, 4)))
    assert fused.shape == (2, 8, *size)
    assert Generator(8)(fused).shape == (2, 3, *size)
