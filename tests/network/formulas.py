"""The building blocks written out with torch.nn.functional, and the names and shapes of their weights."""
import torch
from torch.nn import functional


def shapes(part) -> dict[str, tuple]:
    return {name: tuple(value.shape) for name, value in part.state_dict().items()}


def conv_shapes(name: str, inputs: int, outputs: int, size: int) -> dict[str, tuple]:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def residual_shapes(prefix: str, inputs: int, outputs: int) -> dict[str, tuple]:
    """ResidualBlock; the prefix ends in a dot."""
    return (conv_shapes(prefix + "conv1", inputs, outputs, 3)
            | conv_shapes(prefix + "conv2", outputs, outputs, 3)
            | (conv_shapes(prefix + "skip", inputs, outputs, 1) if inputs != outputs else {}))


def depth_conv_shapes(prefix: str, inputs: int, outputs: int) -> dict[str, tuple]:
    """DepthConvBlock; the prefix ends in a dot."""
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


def chain(x, weights: dict, *blocks):
    """The blocks numbered 0, 1, ... in sequence."""
    for index, block in enumerate(blocks):
        x = block(x, weights, f"{index}.")
    return x


def scaled(part, factor: float = 3):
    """The part in float64 with larger weights, so that every activation sees both signs."""
    part.double()
    with torch.no_grad():
        for value in part.parameters():
            value *= factor
    return part
