"""The posterior q(z | x_t, p_t) and reparameterised samples of it."""
import torch
from torch import Tensor, nn

from modules.network.layers import DepthConvBlock, ResidualBlock

# Variances from e^-10 to e^10: wide enough that the clamp never acts in a healthy run, narrow enough that neither the
# standard deviation (at most 148) nor the variance's term in the KL divergence (at most 11,013 per latent value)
# overflows if the first batches produce extreme values.
LOGVAR_RANGE = (-10.0, 10.0)


class GaussianPredictor(nn.Sequential):
    """Parameters of the posterior, from the features of the frame to be predicted and of its pose.

    (B, F_dim, H, W), (B, L_dim, H, W) -> mu, logvar, each (B, N_dim, H, W). N_dim is a multiple of 4. logvar is clamped
    to ``LOGVAR_RANGE`` here, so that samples and the KL divergence use the same value.

    template_activations : slope 1.0 in the LeakyReLU before the last convolution, as in the course's template.
    """

    def __init__(self, F_dim: int, L_dim: int, N_dim: int, template_activations: bool = False):
        super().__init__(
            ResidualBlock(F_dim + L_dim, N_dim // 4),
            DepthConvBlock(N_dim // 4, N_dim // 4),
            ResidualBlock(N_dim // 4, N_dim // 2),
            DepthConvBlock(N_dim // 2, N_dim // 2),
            ResidualBlock(N_dim // 2, N_dim),
            nn.LeakyReLU(1.0 if template_activations else 0.01),
            nn.Conv2d(N_dim, 2 * N_dim, 1),
        )

    def forward(self, frame_features: Tensor, pose_features: Tensor) -> tuple[Tensor, Tensor]:
        inputs = frame_features, pose_features.to(frame_features.dtype)  # the dtype that autocast has chosen
        mu, logvar = torch.chunk(super().forward(torch.cat(inputs, dim=1)), 2, dim=1)
        return mu, logvar.clamp(*LOGVAR_RANGE)


def reparameterize(
    mu: Tensor, logvar: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Sample of N(mu, e^logvar), differentiable in mu and logvar (Kingma & Welling 2014, section 2.4).

    Parameters
    ----------
    mu, logvar : tensors of the same shape.
    noise : drawn from N(0, I), the same shape. Default: drawn here from ``generator``.
    generator : on mu's device. Default: torch's global generator.

    Returns
    -------
    z = mu + exp(logvar / 2) * noise, in the shape of mu.
    """
    if noise is None:
        noise = torch.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype)
    return mu + torch.exp(0.5 * logvar) * noise
