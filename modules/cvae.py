"""The conditional VAE: the five parts, one training clip (forward), the free-running roll-out (generate)."""
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from modules.decoder import DecoderFusion, Generator
from modules.encoders import FrameEncoder, LabelEncoder
from modules.latent import GaussianPredictor, kl_divergence, reparameterize

POSES_AT_ONCE = 32  # pose images encoded in one call during generation: bounds memory at any length


class CVAE(nn.Module):
    """Predicts each frame of a video from the frame before, the pose and a latent map z.

    Parameters
    ----------
    F_dim, L_dim, N_dim, D_out_dim : channels of the frame features (multiple of 8), pose features (even),
        latent map (multiple of 4) and fused features (multiple of 8).
    output : "sigmoid" or "linear", the generator's last activation.
    template_activations : slope 1.0, that is no activation, at the two places where the course's template writes
        ``LeakyReLU(True)``.
    bptt : let the gradient through the fed-back prediction (back-propagation through time); without it the
        prediction is detached before it is fed back.

    Raises
    ------
    ValueError : a size that the layers cannot have; the message names it.
    """

    def __init__(self, F_dim: int = 128, L_dim: int = 32, N_dim: int = 12, D_out_dim: int = 192,
                 output: str = "sigmoid", template_activations: bool = False, bptt: bool = False):
        super().__init__()
        sizes = {"F_dim": (F_dim, 8), "L_dim": (L_dim, 2), "N_dim": (N_dim, 4), "D_out_dim": (D_out_dim, 8)}
        for name, (size, multiple) in sizes.items():
            if size <= 0 or size % multiple:
                raise ValueError(f"--{name} {size}: it must be a positive multiple of {multiple}")
        self.frame_encoder = FrameEncoder(F_dim)
        self.label_encoder = LabelEncoder(L_dim, template_activations)
        self.gaussian_predictor = GaussianPredictor(F_dim, L_dim, N_dim, template_activations)
        self.decoder_fusion = DecoderFusion(F_dim, L_dim, N_dim, D_out_dim)
        self.generator = Generator(D_out_dim, output)
        self.N_dim = N_dim
        self.bptt = bptt

    def forward(self, frames: Tensor, labels: Tensor, teacher_forcing: Tensor, noise: Tensor | None = None,
                generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Predict frames 2..T of training clips, one after the other.

        z comes from the posterior of the frame that is being predicted; the frame before is the real one where
        ``teacher_forcing`` says so and the prediction otherwise (the first frame is always real).

        Parameters
        ----------
        frames, labels : (B, T, 3, H, W) in [0, 1], T >= 2.
        teacher_forcing : bool, (B,) for whole clips, or (B, T-1): entry t is for the prediction of frame t + 2.
            Best on the CPU: looking at it there costs no synchronisation.
        noise : (B, T-1, N, H, W) from N(0, I); drawn from ``generator`` where it is None.

        Returns
        -------
        predictions : (B, T-1, 3, H, W), of frames 2..T.
        mu, logvar : (B, T-1, N, H, W), of the posteriors.
        """
        steps = frames.shape[1] - 1
        forced = teacher_forcing.view(len(frames), -1).expand(-1, steps)  # (B, T-1)
        # No encoder call here depends on a prediction, so each handles all its frames at once.
        real = self._over_time(self.frame_encoder, frames)  # (B, T, F, H, W)
        poses = self._over_time(self.label_encoder, labels[:, 1:])  # (B, T-1, L, H, W)
        mu, logvar = self.gaussian_predictor(real[:, 1:].flatten(0, 1), poses.flatten(0, 1))
        mu, logvar = mu.unflatten(0, (-1, steps)), logvar.unflatten(0, (-1, steps))  # (B, T-1, N, H, W)
        z = reparameterize(mu, logvar, noise, generator)

        predictions = []
        for t in range(steps):
            previous = real[:, t]
            if t > 0 and not forced[:, t].all():
                fed_back = predictions[-1] if self.bptt else predictions[-1].detach()
                free = self.frame_encoder(fed_back)
                mask = forced[:, t].to(free.device, non_blocking=True).view(-1, 1, 1, 1)
                previous = torch.where(mask, previous, free)
            predictions.append(self.decode(previous, poses[:, t], z[:, t]))
        return torch.stack(predictions, dim=1), mu, logvar

    @torch.no_grad()
    def generate(self, first_frame: Tensor, labels: Tensor, latent: str = "prior",
                 generator: torch.Generator | None = None,
                 progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> Tensor:
        """Free-running roll-out from one real frame, with evaluation statistics and without gradient.

        Parameters
        ----------
        first_frame : (B, 3, H, W) in [0, 1]; the only real frame that is ever seen.
        labels : (B, T, 3, H, W) in [0, 1]; the pose of frame 1 is not used.
        latent : "prior", z ~ N(0, I) for each frame, or "mean", z = 0.
        generator : source of z, on first_frame's device. Noise is drawn frame by frame, so that a longer
            roll-out begins with the shorter one.
        progress : wraps the loop over frames, for a progress bar.

        Returns
        -------
        (B, T, 3, H, W): the first frame, then the predictions of frames 2..T.

        Raises
        ------
        ValueError : another kind of latent.
        """
        if latent not in ("prior", "mean"):
            raise ValueError(f'the latent is "prior" or "mean", not "{latent}"')
        was_training = self.training
        self.eval()
        try:
            video = first_frame.new_empty(*labels.shape[:2], *first_frame.shape[1:])
            video[:, 0] = first_frame
            z = first_frame.new_zeros(len(first_frame), self.N_dim, *first_frame.shape[2:])
            for t in progress(range(1, labels.shape[1])):
                ahead = (t - 1) % POSES_AT_ONCE
                if ahead == 0:
                    poses = self._over_time(self.label_encoder, labels[:, t:t + POSES_AT_ONCE])
                if latent == "prior":
                    z = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
                video[:, t] = self.decode(self.frame_encoder(video[:, t - 1]), poses[:, ahead], z)
            return video
        finally:
            self.train(was_training)

    def decode(self, frame_features: Tensor, pose_features: Tensor, z: Tensor) -> Tensor:
        """(B, F, H, W), (B, L, H, W), (B, N, H, W) -> the predicted frame (B, 3, H, W)."""
        return self.generator(self.decoder_fusion(frame_features, pose_features, z))

    @staticmethod
    def _over_time(part: nn.Module, clips: Tensor) -> Tensor:
        """Apply ``part`` to every frame of (B, T, ...) in one call."""
        return part(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])


def clip_loss(predictions: Tensor, targets: Tensor, mu: Tensor, logvar: Tensor, beta: float,
              kl_reduction: str = "sum") -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a clip, averaged over the batch: the sum over its predicted frames of MSE + beta * KL.

    Parameters
    ----------
    predictions, targets : (B, T-1, 3, H, W); the MSE is the mean over a frame's values.
    mu, logvar : (B, T-1, N, H, W).
    beta : weight of the KL divergence, at least 0.

    Returns
    -------
    loss, mse, kl : scalars; loss = mse + beta * kl, mse and kl summed over the frames.
    """
    steps = targets.shape[1]
    mse = steps * functional.mse_loss(predictions, targets)
    kl = steps * kl_divergence(mu.flatten(0, 1), logvar.flatten(0, 1), kl_reduction)
    return mse + beta * kl, mse, kl
