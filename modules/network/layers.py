"""The building blocks of every part of the network, with the names and the layer order of the course's code."""
import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection: (B, in_channels, H, W) -> (B, out_channels, H, W).

    ``skip`` (a 1x1 convolution) exists only where the channel counts differ.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.activation = nn.LeakyReLU(0.01)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.skip is None else self.skip(x)
        return identity + self.activation(self.conv2(self.activation(self.conv1(x))))


class DepthConv(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolution with a residual connection: (B, in_channels, H, W) ->
    (B, out_channels, H, W). ``adaptor`` is to this block what ``skip`` is to ResidualBlock."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(in_channels, in_channels, 1), nn.LeakyReLU(0.01))
        self.depth_conv = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1)
        self.adaptor = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.adaptor is None else self.adaptor(x)
        return identity + self.conv2(self.depth_conv(self.conv1(x)))


class ConvFFN(nn.Module):
    """Gated pointwise feed-forward layer with a residual connection: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 1)
        self.conv_out = nn.Conv2d(2 * channels, channels, 1)
        self.gate = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.chunk(self.conv(x), 2, dim=1)
        return x + self.conv_out(a * self.gate(b))


class DepthConvBlock(nn.Module):
    """DepthConv, then ConvFFN: (B, in_channels, H, W) -> (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.block = nn.Sequential(DepthConv(in_channels, out_channels), ConvFFN(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)
