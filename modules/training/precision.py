"""Which arithmetic trains faster on this CPU."""
import time

import torch

from modules.network.cvae import CVAE

FRAMES, HEIGHT, WIDTH = 4, 32, 64  # predicted per timed step, at most: more would take longer and tell the same
REPEATS = 3
GAIN = 1.1  # bf16 must be this much faster: below, the noise of the clock would decide


def time_step(model: CVAE, frames: torch.Tensor, precision: str) -> float:
    """Seconds of a forward and backward pass over clips of two frames, (B, 2, 3, H, W)."""
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        predictions, mu, logvar = model(frames, frames, torch.zeros(len(frames)))
    model.zero_grad(set_to_none=True)
    (predictions.float().sum() + mu.float().sum() + logvar.float().sum()).backward()
    return time.perf_counter() - began


def faster_precision(model: CVAE, height: int, width: int) -> str:
    """Time a few steps on random pixels in both kinds of arithmetic.

    Not every processor with bf16 instructions gains from them: with the small network, training in bf16 was 1.6 times
    as fast as in fp32 on an AMD EPYC, and slower on an Intel Xeon.

    Parameters
    ----------
    model : a network on the CPU. Its gradients and BatchNorm's running statistics change.

    Returns
    -------
    "bf16" where it is at least GAIN times as fast, else "fp32".
    """
    size = min(height, HEIGHT), min(width, WIDTH)
    frames = torch.rand(FRAMES, 2, 3, *size, generator=torch.Generator().manual_seed(0))
    model = model.to(memory_format=torch.channels_last)
    seconds = {"fp32": [], "bf16": []}
    for _ in range(1 + REPEATS):  # in turns, so that other work on the machine slows down both
        for precision, times in seconds.items():
            times.append(time_step(model, frames, precision))
    fp32, bf16 = (min(times[1:]) for times in seconds.values())  # the first call of each prepares the convolutions
    return "bf16" if bf16 * GAIN <= fp32 else "fp32"
