"""E, the frame encoder, and L, the label (pose) encoder."""
from torch import nn

from modules.layers import DepthConvBlock, ResidualBlock


class FrameEncoder(nn.Sequential):
    """A frame (B, 3, H, W) in [0, 1] to features (B, F_dim, H, W). F_dim is a multiple of 8."""

    def __init__(self, F_dim: int):
        super().__init__(
            ResidualBlock(3, F_dim // 8),
            DepthConvBlock(F_dim // 8, F_dim // 8),
            ResidualBlock(F_dim // 8, F_dim // 4),
            DepthConvBlock(F_dim // 4, F_dim // 4),
            ResidualBlock(F_dim // 4, F_dim // 2),
            DepthConvBlock(F_dim // 2, F_dim // 2),
            nn.Conv2d(F_dim // 2, F_dim, 3, padding=1),
        )


class LabelEncoder(nn.Sequential):
    """A pose image (B, 3, H, W) in [0, 1] to features (B, L_dim, H, W). L_dim is even; H and W are at least 4.

    Its BatchNorm is the only layer that looks across the batch, so a training step hands it all poses of all
    clips in one call: one set of statistics and one running update a step.
    """

    def __init__(self, L_dim: int):
        super().__init__(
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, L_dim // 2, 7),
            nn.BatchNorm2d(L_dim // 2),
            nn.LeakyReLU(0.01),
            ResidualBlock(L_dim // 2, L_dim),
        )
