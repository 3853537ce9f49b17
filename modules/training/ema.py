"""An exponential moving average of the weights, which is validated, saved and generated with instead of the latest."""
import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """average <- d * average + (1 - d) * weights after each step, d = min(decay, (1 + n) / (10 + n)) after n steps.

    (Polyak & Juditsky 1992 average all iterates; the exponential form with the short memory at the start is that of
    TensorFlow's ExponentialMovingAverage.) The latest weights jump about the minimum by the size of a step; their
    average does not.

    Parameters
    ----------
    model : its parameters are averaged; buffers are not.
    decay : d, in [0, 1). With 0 there is no average, and the latest weights are used.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = dict(model.named_parameters()) if decay else {}
        self.weights = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.steps = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
        self._set_aside: dict[str, Tensor] | None = None  # the latest weights, while the model has the average

    @torch.no_grad()
    def begin(self, steps: Tensor | None = None) -> None:
        """Take the model's present weights for the average, as it was after ``steps`` steps (None: after none)."""
        for name, value in self.weights.items():
            value.copy_(self.parameters[name])
        if self.weights:
            self.steps.fill_(0.0 if steps is None else steps.item())

    @torch.no_grad()
    def update(self, good: Tensor) -> None:
        """Take in the latest weights, unless their step was skipped (``good``, bool scalar on the device)."""
        if not self.weights:
            return
        self.steps += good
        share = (1 - ((1 + self.steps) / (10 + self.steps)).clamp(max=self.decay)) * good
        averages = list(self.weights.values())
        differences = torch._foreach_sub(list(self.parameters.values()), averages)
        torch._foreach_mul_(differences, share.float())
        torch._foreach_add_(averages, differences)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """While it lasts the model has the averaged weights. Afterwards it has the latest again, bit for bit.

        Within another one (a run that is stopped in its validation saves there) it changes nothing.
        """
        if self._set_aside is not None:
            yield
            return
        self._set_aside = self.latest()
        self._load(self.weights)
        try:
            yield
        finally:
            self._load(self._set_aside)
            self._set_aside = None

    def latest(self) -> dict[str, Tensor]:
        """A copy of the latest weights, for a checkpoint whose model is the average."""
        latest = self.parameters if self._set_aside is None else self._set_aside
        return {name: value.detach().clone() for name, value in latest.items()}

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        for name, value in weights.items():
            self.parameters[name].copy_(value)  # in place: compiled steps and the optimiser hold these very tensors
