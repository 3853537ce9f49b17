"""Decoder fusion and generator: formula, names with shapes, range of the output, frame sizes.

    python -m pytest tests/test_decoder.py
"""
import pytest
import torch
from test_layers import (
    conv,
    conv_shapes,
    depth_conv_block,
    depth_conv_shapes,
    lively,
    residual,
    residual_shapes,
    shapes,
)

from modules.network.decoder import DecoderFusion, Generator


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def chain(x, weights: dict, *blocks):
    """The blocks one after the other, then the 1x1 convolution at the end."""
    for index, block in enumerate(blocks):
        x = block(x, weights, f"{index}.")
    return conv(x, weights, str(len(blocks)))


@pytest.mark.parametrize("F, L, N, D", [(8, 4, 4, 8), (16, 2, 4, 24), (128, 32, 12, 192)])
def test_fusion_has_the_courses_names(F, L, N, D):
    c = F + L + N
    assert shapes(DecoderFusion(F, L, N, D)) == (
        depth_conv_shapes("0.", c, c) | residual_shapes("1.", c, c // 4)
        | depth_conv_shapes("2.", c // 4, c // 2) | residual_shapes("3.", c // 2, c // 2)
        | depth_conv_shapes("4.", c // 2, D // 2) | conv_shapes("5", D // 2, D, 1))


@pytest.mark.parametrize("output", ["sigmoid", "linear"])
@pytest.mark.parametrize("D", [8, 24, 192])
def test_generator_has_the_courses_names_whatever_its_output(D, output):
    assert shapes(Generator(D, output)) == (
        depth_conv_shapes("0.", D, D) | residual_shapes("1.", D, D // 2)
        | depth_conv_shapes("2.", D // 2, D // 2) | residual_shapes("3.", D // 2, D // 4)
        | depth_conv_shapes("4.", D // 4, D // 4) | residual_shapes("5.", D // 4, D // 8)
        | depth_conv_shapes("6.", D // 8, D // 8) | conv_shapes("7", D // 8, 3, 1))


def test_fusion_is_its_formula_on_frame_pose_and_z_in_this_order():
    fusion = lively(DecoderFusion(8, 4, 4, 8))
    frame, pose, z = (torch.randn(2, channels, 8, 8, dtype=torch.float64) for channels in (8, 4, 4))
    expected = chain(torch.cat([frame, pose, z], dim=1), fusion.state_dict(),
                     depth_conv_block, residual, depth_conv_block, residual, depth_conv_block)
    assert expected.shape == (2, 8, 8, 8)
    torch.testing.assert_close(fusion(frame, pose, z), expected)


@pytest.mark.parametrize("output", ["sigmoid", "linear"])
def test_generator_is_its_formula(output):
    generator = lively(Generator(16, output), 1.5)
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    expected = chain(x, generator.state_dict(), *[depth_conv_block, residual] * 3, depth_conv_block)
    if output == "sigmoid":
        assert expected.abs().min() < 3  # not all of it saturated
        expected = 1 / (1 + torch.exp(-expected))
    torch.testing.assert_close(generator(x), expected)


def test_sigmoid_stays_within_zero_and_one_where_linear_leaves_them():
    bounded, unbounded = Generator(8), Generator(8, "linear")
    unbounded.load_state_dict(bounded.state_dict())
    x = 3 * torch.randn(4, 8, 8, 8)
    assert unbounded(x).min() < -1
    assert 0 < bounded(x).min() and bounded(x).max() < 1
    assert bounded(10 * x).min() >= 0 and bounded(10 * x).max() <= 1  # saturated, but never beyond
    with torch.no_grad():
        unbounded[-1].weight *= -1
    assert unbounded(x).max() > 1


@pytest.mark.parametrize("output", ["tanh", "Sigmoid", ""])
def test_another_output_is_refused(output):
    with pytest.raises(ValueError, match=f'--output "{output}": choose'):
        Generator(8, output)


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (12, 8), (1, 1)])
def test_sizes_are_kept(size):
    fused = DecoderFusion(8, 4, 4, 8)(*(torch.rand(2, channels, *size) for channels in (8, 4, 4)))
    assert fused.shape == (2, 8, *size)
    assert Generator(8)(fused).shape == (2, 3, *size)
