"""The posterior q(z | x_t, p_t) and a sample of it."""
import torch
from torch import Tensor, nn

from modules.network.layers import DepthConvBlock, ResidualBlock

# e^-10 .. e^10 as variance: wide enough never to bind in a healthy run, narrow enough that neither the standard
# deviation (148 at most) nor the variance's part of the KL divergence (11,013 a value at most) of a wild first batch
# overflows.
LOGVAR_RANGE = (-10.0, 10.0)


class GaussianPredictor(nn.Sequential):
    """Posterior parameters from the features of the frame that is to be predicted and of its pose.

    (B, F_dim, H, W) and (B, L_dim, H, W) -> mu, logvar, each (B, N_dim, H, W). N_dim is a multiple of 4.
    logvar is clamped to ``LOGVAR_RANGE`` here, so that the sample and the KL divergence use the same value.
    ``template_activations``: slope 1.0 for the LeakyReLU before the last convolution, as the course's template has it.
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
        inputs = frame_features, pose_features.to(frame_features.dtype)  # the type that autocast has chosen
        mu, logvar = torch.chunk(super().forward(torch.cat(inputs, dim=1)), 2, dim=1)
        return mu, logvar.clamp(*LOGVAR_RANGE)


def reparameterize(
    mu: Tensor, logvar: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """A sample of N(mu, e^logvar) through which the gradient flows (Kingma & Welling 2014, section 2.4).

    Parameters
    ----------
    mu, logvar : any shape, the same for both.
    noise : the same shape, drawn from N(0, I); drawn here from ``generator`` where it is None.
    generator : source of the noise, on mu's device; None is torch's global generator.

    Returns
    -------
    z = mu + exp(logvar / 2) * noise, the shape of mu.
    """
    if noise is None:
        noise = torch.randn(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype)
    return mu + torch.exp(0.5 * logvar) * noise
