"""The building blocks against their formulas; names and shapes of their weights; slopes of their activations.

    python -m pytest tests/network/test_layers.py
"""
import pytest
import torch
from formulas import depth_conv_block, depth_conv_shapes, residual, residual_shapes, scaled, shapes

from modules.network.layers import ConvFFN, DepthConv, DepthConvBlock, ResidualBlock


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("make, formula", [(ResidualBlock, residual), (DepthConvBlock, depth_conv_block)])
@pytest.mark.parametrize("channels", [(3, 8), (8, 3), (6, 6), (1, 1)])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
def test_block_equals_its_formula(make, formula, channels, size):
    block = scaled(make(*channels))
    x = torch.randn(2, channels[0], *size, dtype=torch.float64)
    assert block(x).shape == (2, channels[1], *size)
    torch.testing.assert_close(block(x), formula(x, block.state_dict()))


@pytest.mark.parametrize("channels", [(3, 8), (8, 3), (6, 6)])
def test_weights_have_the_courses_names_and_shapes(channels):
    assert shapes(ResidualBlock(*channels)) == residual_shapes("", *channels)
    assert shapes(DepthConvBlock(*channels)) == depth_conv_shapes("", *channels)


def with_unit_weights(part):
    """Weights 1 at the centre of each kernel, biases 0: only the activations change the input."""
    part.double()
    with torch.no_grad():
        for value in part.parameters():
            value.zero_()
            if value.dim() == 4:
                value[..., value.shape[2] // 2, value.shape[3] // 2] = 1
    return part


@pytest.mark.parametrize("part, negative, positive", [
    (ResidualBlock(1, 1), -1 - 0.01**2, 2),  # slope 0.01 twice
    (DepthConv(1, 1), -1 - 0.01, 2),
    (ConvFFN(1), -1 + 2 * 0.1, 3),  # a * gate(b) = -1 * -0.1, in two channels
], ids=["ResidualBlock", "DepthConv", "ConvFFN"])
def test_slopes_in_closed_form(part, negative, positive):
    x = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(with_unit_weights(part)(-x), torch.full_like(x, negative))
    torch.testing.assert_close(with_unit_weights(part)(x), torch.full_like(x, positive))
