"""D, the decoder fusion, and G, the generator."""
import torch
from torch import Tensor, nn

from modules.network.layers import DepthConvBlock, ResidualBlock


class DecoderFusion(nn.Sequential):
    """Features of the frame before, of the pose, and z, fused.

    (B, F_dim, H, W), (B, L_dim, H, W), (B, N_dim, H, W) -> (B, D_out_dim, H, W). All is computed in the type and
    the memory layout of the frame features: one part in another would carry its own into the whole residual stream.
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
        is_last = frame_features.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_last else torch.contiguous_format
        others = (part.to(frame_features.dtype, memory_format=layout) for part in (pose_features, z))
        return super().forward(torch.cat([frame_features, *others], dim=1))


class Generator(nn.Sequential):
    """Fused features (B, D_out_dim, H, W) to a frame (B, 3, H, W). D_out_dim is a multiple of 8.

    ``output`` "sigmoid" bounds the frame to (0, 1), so that what is fed back for hundreds of frames stays a picture;
    "linear" is the course's arithmetic, unbounded.
    """

    def __init__(self, D_out_dim: int, output: str = "sigmoid"):
        if output not in ("sigmoid", "linear"):
            raise ValueError(f'--output "{output}": choose sigmoid or linear')
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
