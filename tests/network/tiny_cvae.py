"""A tiny CVAE and random clips for it."""
import numpy as np
import torch
from skimage.exposure import match_histograms

from modules.network.cvae import CVAE

TINY = {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8}
B, T, H, W = 3, 5, 8, 12


def make_model(dtype=torch.float64, output: str = "sigmoid", **arguments) -> CVAE:
    """Tiny, with weights a little larger than initialised, so that every input shows many frames later."""
    torch.manual_seed(1)
    model = CVAE(**TINY, output=output, **arguments).to(dtype)
    with torch.no_grad():
        for value in model.parameters():
            value *= 1.3
    return model


def make_clips(dtype=torch.float64, batch: int = B, length: int = T, size: tuple[int, int] = (H, W)):
    """Frames, labels and noise."""
    return (torch.rand(batch, length, 3, *size, dtype=dtype), torch.rand(batch, length, 3, *size, dtype=dtype),
            torch.randn(batch, length - 1, TINY["N_dim"], *size, dtype=dtype))


def with_statistics(model: CVAE) -> CVAE:
    """After one pass in training mode BatchNorm's running statistics are no longer 0 and 1."""
    with torch.no_grad():
        model.train().label_encoder(torch.rand(8, 3, H, W, dtype=next(model.parameters()).dtype) ** 2)
    return model


def slow_match(target: str, predictions, previous, first):
    """Each prediction with the histogram of its target frame, by scikit-image."""
    if target == "off":
        return predictions
    targets = previous if target == "previous" else first
    return torch.tensor(np.stack([match_histograms(frame.numpy(), other.numpy(), channel_axis=0)
                                  for frame, other in zip(predictions.detach(), targets, strict=True)]))


def copy_state(model: CVAE) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
