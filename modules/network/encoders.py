"""E, the frame encoder, and L, the label (pose) encoder."""
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from modules.network.batch_norm import CrossProcessBatchNorm2d
from modules.network.layers import DepthConvBlock, ResidualBlock


class FrameEncoder(nn.Sequential):
    """Frame (B, 3, H, W) in [0, 1] -> features (B, F_dim, H, W). F_dim is a multiple of 8."""

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


class UNet(nn.Module):
    """Adds context of the whole image to a map of features (B, channels, H, W); H and W are at least 2^levels.

    Each level halves the resolution of the one above. On the way back up, its features are concatenated with those of
    the level above (Ronneberger, Fischer & Brox 2015, "U-Net"). In a pose image limbs have one thickness, whether the
    person is near or far: only the distances between them tell how wide a body to draw, and those span much of the
    image. Level k has 2k * channels channels; its maps are small, so that all levels together cost little.
    """

    def __init__(self, channels: int, levels: int):
        super().__init__()
        widths = list(pairwise([channels, *(2 * level * channels for level in range(1, levels + 1))]))
        self.down = nn.ModuleList(nn.Sequential(ResidualBlock(above, width), DepthConvBlock(width, width))
                                  for above, width in widths)
        self.up = nn.ModuleList(ResidualBlock(above + width, above) for above, width in widths)

    def forward(self, features: Tensor) -> Tensor:
        above = []
        for level in self.down:
            above.append(features)
            features = level(functional.avg_pool2d(features, 2))
        for level in reversed(self.up):
            skipped = above.pop()
            # To the nearest pixel: on a GPU, the gradient of bilinear interpolation differs from run to run.
            features = functional.interpolate(features, size=skipped.shape[-2:])
            features = level(torch.cat([features, skipped.to(features.dtype)], dim=1))
        return features


class LabelEncoder(nn.Sequential):
    """Pose image (B, 3, H, W) in [0, 1] -> features (B, L_dim, H, W). L_dim is even; H and W are at least 4,
    and at least 2^levels.

    Its BatchNorm is the only layer that mixes the images of a batch. So a training step encodes all poses of all clips
    in one call: one set of batch statistics and one running update per step, in every process the same.

    Pose images are white nearly everywhere, so the input of the BatchNorm is a large constant with a small pattern on
    it (mean 2.4, standard deviation 0.03 after a few hundred steps). This has two consequences:

    - bfloat16 would round the pattern away. This part always computes in float32, under autocast too.
    - The constant moves with the weights, a dozen standard deviations ahead of the running mean. So the statistics are
      recomputed before the network is evaluated: ``set_statistics(*pose_statistics(poses))``.

    template_activations : slope 1.0 in the LeakyReLU, as in the course's template.
    levels : of a ``UNet`` that follows; 0, as in the course: none.
    """

    def __init__(self, L_dim: int, template_activations: bool = False, levels: int = 0):
        super().__init__(
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, L_dim // 2, 7),
            CrossProcessBatchNorm2d(L_dim // 2),
            nn.LeakyReLU(1.0 if template_activations else 0.01),
            ResidualBlock(L_dim // 2, L_dim),
            *([UNet(L_dim, levels)] if levels else []),
        )

    def forward(self, poses: Tensor) -> Tensor:
        pad, convolution, norm, activation, block, *rest = self
        with torch.autocast(poses.device.type, enabled=False):
            features = block(activation(norm(convolution(pad(poses)))))
        for part in rest:
            features = part(features)
        return features

    @torch.no_grad()
    def pose_statistics(self, poses: Tensor) -> tuple[Tensor, Tensor]:
        """Statistics of the BatchNorm's input for ``poses`` under the current weights. Changes nothing.

        These replace the running averages, which lag behind weights that move (Wu & Johnson 2021, "Rethinking 'Batch'
        in BatchNorm", section 3).

        Parameters
        ----------
        poses : (P, 3, H, W) in [0, 1], a representative sample of the training poses.

        Returns
        -------
        mean, var : (L_dim / 2,) each; per channel, over all poses and pixels. var is the unbiased variance.
        """
        pad, convolution = self[0], self[1]
        with torch.autocast(poses.device.type, enabled=False):
            responses = convolution(pad(poses))  # (P, L_dim / 2, H, W)
        return responses.mean(dim=(0, 2, 3)), responses.var(dim=(0, 2, 3))

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, var: Tensor) -> None:
        """Use these statistics, (L_dim / 2,) each, in evaluation mode."""
        self[2].running_mean.copy_(mean)
        self[2].running_var.copy_(var)
