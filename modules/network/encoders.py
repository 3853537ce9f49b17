"""E, the frame encoder, and L, the label (pose) encoder."""
import torch
from torch import Tensor, nn

from modules.network.batch_norm import CrossProcessBatchNorm2d
from modules.network.layers import DepthConvBlock, ResidualBlock


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
    clips in one call: one set of statistics and one running update a step, also where several processes share it.

    Pose images are nearly everywhere white. So what reaches the BatchNorm is a large constant with a small pattern on
    it (mean 2.4, standard deviation 0.03 after a few hundred steps), which has two consequences: bfloat16 would round
    the pattern away, so this part always computes in float32; and the constant moves with the weights, a dozen
    standard deviations ahead of the running mean, so the statistics are estimated anew before they are used.

    ``template_activations``: slope 1.0 for the LeakyReLU, as the course's template has it.
    """

    def __init__(self, L_dim: int, template_activations: bool = False):
        super().__init__(
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, L_dim // 2, 7),
            CrossProcessBatchNorm2d(L_dim // 2),
            nn.LeakyReLU(1.0 if template_activations else 0.01),
            ResidualBlock(L_dim // 2, L_dim),
        )

    def forward(self, poses: Tensor) -> Tensor:
        with torch.autocast(poses.device.type, enabled=False):
            return super().forward(poses)

    @torch.no_grad()
    def estimate_statistics(self, poses: Tensor) -> None:
        """Set the BatchNorm's evaluation statistics to those of ``poses`` under the present weights.

        Mean and unbiased variance over all values of a channel, instead of the running averages, which lag behind
        weights that move (Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3).

        Parameters
        ----------
        poses : (P, 3, H, W) in [0, 1], a fair sample of the training poses.
        """
        pad, convolution, norm = self[0], self[1], self[2]
        with torch.autocast(poses.device.type, enabled=False):
            responses = convolution(pad(poses))  # (P, L_dim / 2, H, W)
        norm.running_mean.copy_(responses.mean(dim=(0, 2, 3)))
        norm.running_var.copy_(responses.var(dim=(0, 2, 3)))
