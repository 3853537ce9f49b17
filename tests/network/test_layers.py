"""The two building blocks against their formulas, written out with torch.nn.functional; their names and slopes.

The formulas (residual, depth_conv_block) and the names with shapes (residual_shapes, depth_conv_shapes) also serve the
tests of the parts that are built of these blocks.

    python -m pytest tests/test_layers.py
"""
import pytest
import torch
from torch.nn import functional

from modules.network.layers import ConvFFN, DepthConv, DepthConvBlock, ResidualBlock


def shapes(part) -> dict[str, tuple]:
    return {name: tuple(value.shape) for name, value in part.state_dict().items()}


def conv_shapes(name: str, inputs: int, outputs: int, size: int) -> dict[str, tuple]:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def residual_shapes(prefix: str, inputs: int, outputs: int) -> dict[str, tuple]:
    """Names and shapes of a ResidualBlock; the prefix ends in a dot."""
    return (conv_shapes(prefix + "conv1", inputs, outputs, 3)
            | conv_shapes(prefix + "conv2", outputs, outputs, 3)
            | (conv_shapes(prefix + "skip", inputs, outputs, 1) if inputs != outputs else {}))


def depth_conv_shapes(prefix: str, inputs: int, outputs: int) -> dict[str, tuple]:
    """Names and shapes of a DepthConvBlock; the prefix ends in a dot."""
    return (conv_shapes(prefix + "block.0.conv1.0", inputs, inputs, 1)
            | conv_shapes(prefix + "block.0.depth_conv", 1, inputs, 3)
            | conv_shapes(prefix + "block.0.conv2", inputs, outputs, 1)
            | (conv_shapes(prefix + "block.0.adaptor", inputs, outputs, 1) if inputs != outputs else {})
            | conv_shapes(prefix + "block.1.conv", outputs, 4 * outputs, 1)
            | conv_shapes(prefix + "block.1.conv_out", 2 * outputs, outputs, 1))


def conv(x, weights: dict, name: str, padding: int = 0):
    return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)


def leaky(x, slope: float = 0.01):
    return torch.where(x >= 0, x, slope * x)


def residual(x, weights: dict, prefix: str = ""):
    """conv3x3, LeakyReLU, conv3x3, LeakyReLU, plus the input (through conv1x1 where the channels differ)."""
    inner = leaky(conv(leaky(conv(x, weights, prefix + "conv1", 1)), weights, prefix + "conv2", 1))
    return inner + (conv(x, weights, prefix + "skip") if f"{prefix}skip.weight" in weights else x)


def depth_conv_block(x, weights: dict, prefix: str = ""):
    """DepthConv with its depthwise convolution channel by channel, then the gated feed-forward layer."""
    depth, feed_forward = prefix + "block.0.", prefix + "block.1."
    kernels, offsets = weights[depth + "depth_conv.weight"], weights[depth + "depth_conv.bias"]
    inner = leaky(conv(x, weights, depth + "conv1.0"))
    inner = torch.stack([functional.conv2d(inner[:, c, None], kernels[c, None], offsets[c, None], padding=1)[:, 0]
                         for c in range(inner.shape[1])], dim=1)
    inner = conv(inner, weights, depth + "conv2")
    x = inner + (conv(x, weights, depth + "adaptor") if f"{depth}adaptor.weight" in weights else x)
    expanded = conv(x, weights, feed_forward + "conv")
    half = expanded.shape[1] // 2
    return x + conv(expanded[:, :half] * leaky(expanded[:, half:], 0.1), weights, feed_forward + "conv_out")


def lively(part, factor: float = 3):
    """In float64 and with larger weights, so that each activation sees both signs and matters."""
    part.double()
    with torch.no_grad():
        for value in part.parameters():
            value *= factor
    return part


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("channels", [(3, 8), (8, 3), (6, 6), (1, 1)])
@pytest.mark.parametrize("size", [(8, 8), (4, 4), (5, 7), (1, 1)])
def test_residual_block_is_its_formula(channels, size):
    block = lively(ResidualBlock(*channels))
    x = torch.randn(2, channels[0], *size, dtype=torch.float64)
    assert block(x).shape == (2, channels[1], *size)
    torch.testing.assert_close(block(x), residual(x, block.state_dict()))


@pytest.mark.parametrize("channels", [(3, 8), (8, 3), (6, 6), (1, 1)])
@pytest.mark.parametrize("size", [(8, 8), (4, 4), (5, 7), (1, 1)])
def test_depth_conv_block_is_its_formula(channels, size):
    block = lively(DepthConvBlock(*channels))
    x = torch.randn(2, channels[0], *size, dtype=torch.float64)
    assert block(x).shape == (2, channels[1], *size)
    torch.testing.assert_close(block(x), depth_conv_block(x, block.state_dict()))


@pytest.mark.parametrize("channels", [(3, 8), (8, 3), (6, 6)])
def test_names_are_the_courses_and_a_skip_or_adaptor_exists_only_where_channels_differ(channels):
    assert shapes(ResidualBlock(*channels)) == residual_shapes("", *channels)
    assert shapes(DepthConvBlock(*channels)) == depth_conv_shapes("", *channels)
    assert ("skip.weight" in shapes(ResidualBlock(*channels))) == (channels[0] != channels[1])
    assert ("block.0.adaptor.weight" in shapes(DepthConvBlock(*channels))) == (channels[0] != channels[1])


def through(part):
    """One channel, every weight 1 (in the middle of its kernel), every bias 0: only the activations act."""
    part.double()
    with torch.no_grad():
        for value in part.parameters():
            value.zero_()
            if value.dim() == 4:
                value[..., value.shape[2] // 2, value.shape[3] // 2] = 1
    return part


@pytest.mark.parametrize("part, negative, positive", [
    (ResidualBlock(1, 1), -1 - 0.01**2, 2),  # the slope 0.01 twice
    (DepthConv(1, 1), -1 - 0.01, 2),
    (ConvFFN(1), -1 + 2 * 0.1, 3),  # a * gate(b) = -1 * -0.1, twice as wide as the input
])
def test_leaky_slopes_in_closed_form(part, negative, positive):
    x = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(through(part)(-x), torch.full_like(x, negative))
    torch.testing.assert_close(through(part)(x), torch.full_like(x, positive))
