"""Exponential moving average of the weights."""
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class ExponentialMovingAverage(AveragedModel):
    """average <- d * average + (1 - d) * weights after each step, d = min(decay, (1 + n) / (10 + n)) after n steps.

    Polyak & Juditsky (1992) average all iterates; the exponential form with its short memory at the start is that of
    TensorFlow's ExponentialMovingAverage. The weights fluctuate about the minimum by the size of a step, their average
    does not. ``module`` is the averaged model; its buffers are its own.

    Parameters
    ----------
    model : the model whose parameters are averaged.
    decay : d, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, device=next(model.parameters()).device)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module, is_finite: Tensor) -> None:
        """Include the latest weights, unless their step was skipped (``is_finite``, bool scalar on the device).

        Everything stays on the device, whereas AveragedModel's own version reads its counter in each step, which makes
        the host wait for a GPU.
        """
        self.n_averaged += is_finite
        steps = self.n_averaged.double()
        weight = (1 - ((1 + steps) / (10 + steps)).clamp(max=self.decay)) * is_finite
        averages = list(self.module.parameters())
        differences = torch._foreach_sub(list(model.parameters()), averages)
        torch._foreach_mul_(differences, weight.float())
        torch._foreach_add_(averages, differences)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor], steps: int) -> None:
        """Continue from an average of ``steps`` steps; 0 starts from these weights."""
        self.module.load_state_dict(weights)
        self.n_averaged.fill_(steps)
