"""How to compute on this CPU: short timings that choose the arithmetic and the number of threads."""
import contextlib
import time
from collections.abc import Callable, Iterator

import torch

from modules.network.cvae import CVAE

FRAMES, HEIGHT, WIDTH = 4, 32, 64  # of a timed step, at most: more would take longer and show the same
REPEATS = 3
GAIN = 1.1  # below, the noise of the clock would decide
ROLLOUT_GAIN = 1.5  # a rollout with the threads of the training scores exactly what validation did: worth some time


def pick_faster(usual: Callable[[], None], other: Callable[[], None], gain: float = GAIN) -> bool:
    """Whether ``other`` is at least ``gain`` times as fast as ``usual``."""
    seconds = [], []
    for _ in range(1 + REPEATS):  # in turns, so that other work on the machine slows down both
        for run, times in zip((usual, other), seconds, strict=True):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
    first, second = (min(times[1:]) for times in seconds)  # the first call of each prepares the convolutions
    return second * gain <= first


@contextlib.contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Compute with ``count`` threads in a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_training(model: CVAE, height: int, width: int, precision: str | None, threads: int | None) -> tuple[str, int]:
    """Choose the arithmetic and the number of threads for training on this CPU.

    Not every processor with bf16 instructions gains from them, and on a machine that is busy with other work, threads
    that wait for each other can be several times slower than one alone.

    Parameters
    ----------
    model : a network on the CPU. Its gradients and BatchNorm's running statistics change.
    height, width : of a frame.
    precision, threads : None where they are to be chosen.

    Returns
    -------
    "fp32" or "bf16", and 1 or the number of threads that PyTorch uses by default.
    """
    noise = torch.Generator().manual_seed(0)
    frames = torch.rand(FRAMES, 2, 3, min(height, HEIGHT), min(width, WIDTH), generator=noise)
    model = model.to(memory_format=torch.channels_last)

    def step(precision: str, threads: int) -> None:
        with use_threads(threads):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                predictions, mu, logvar = model(frames, frames, torch.zeros(FRAMES))
            model.zero_grad(set_to_none=True)
            (predictions.float().sum() + mu.float().sum() + logvar.float().sum()).backward()

    most = threads or torch.get_num_threads()
    if precision is None:
        precision = "bf16" if pick_faster(lambda: step("fp32", most), lambda: step("bf16", most)) else "fp32"
    if threads is None and most > 1 and not pick_faster(lambda: step(precision, 1), lambda: step(precision, most)):
        most = 1
    return precision, most


def pick_rollout_threads(model: CVAE, sequences: int, height: int, width: int, precision: str) -> int:
    """1, or PyTorch's present number of threads unless they make a rollout on this CPU much slower than one alone.

    Parameters
    ----------
    model : the network, on the CPU. sequences : how many the rollout generates at once.
    """
    most = torch.get_num_threads()
    frame, labels = torch.rand(sequences, 3, height, width), torch.rand(sequences, 4, 3, height, width)

    def generate(threads: int) -> None:
        with use_threads(threads), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            model.generate(frame, labels, "mean")

    is_slowed = most > 1 and pick_faster(lambda: generate(most), lambda: generate(1), ROLLOUT_GAIN)
    return 1 if is_slowed else most
