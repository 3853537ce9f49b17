"""D, the decoder fusion, and G, the generator."""
import torch
from torch import Tensor, nn

from modules.network.layers import DepthConvBlock, ResidualBlock


class DecoderFusion(nn.Sequential):
    """Fuses the features of the input frame, those of the pose, and z.

    (B, F_dim, H, W), (B, L_dim, H, W), (B, N_dim, H, W) -> (B, D_out_dim, H, W). D_out_dim is even. Pose features and
    z are cast to the dtype and memory format of the frame features; otherwise their concatenation, and with it all
    residual blocks that follow, would fall back to the wider type and the slower layout.
    """

    def __init__(self, F_dim: int, L_dim: int, N_dim: int, D_out_dim: int):
        channels = F_dim + L_dim + N_dim
        super().__init__(
            DepthConvBlock(channels, channels),
            ResidualBlock(channels, channels // 4),
            DepthConvBlock(channels // 4, channels // 2),
            ResidualBlock(channels // 2, channels // 2),
            DepthConvBlock(channels // 2, D_out_dim // 2),
            nn.Conv2d(D_out_dim // 2, D_out_dim, 1),
        )

    def forward(self, frame_features: Tensor, pose_features: Tensor, z: Tensor) -> Tensor:
        is_channels_last = frame_features.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_channels_last else torch.contiguous_format
        others = (part.to(frame_features.dtype, memory_format=layout) for part in (pose_features, z))
        return super().forward(torch.cat([frame_features, *others], dim=1))


class Generator(nn.Sequential):
    """Fused features (B, D_out_dim, H, W) -> frame (B, 3, H, W). D_out_dim is a multiple of 8.

    output : "linear", unbounded as in the course's code; or "sigmoid", in (0, 1), so that a prediction that is fed
        back for hundreds of frames stays in the range of images.

    Raises ValueError for any other ``output``.
    """

    def __init__(self, D_out_dim: int, output: str = "linear"):
        if output not in ("linear", "sigmoid"):
            raise ValueError(f'output must be "linear" or "sigmoid", got "{output}"')
        super().__init__(
            DepthConvBlock(D_out_dim, D_out_dim),
            ResidualBlock(D_out_dim, D_out_dim // 2),
            DepthConvBlock(D_out_dim // 2, D_out_dim // 2),
            ResidualBlock(D_out_dim // 2, D_out_dim // 4),
            DepthConvBlock(D_out_dim // 4, D_out_dim // 4),
            ResidualBlock(D_out_dim // 4, D_out_dim // 8),
            DepthConvBlock(D_out_dim // 8, D_out_dim // 8),
            nn.Conv2d(D_out_dim // 8, 3, 1),
            *([nn.Sigmoid()] if output == "sigmoid" else []),
        )
