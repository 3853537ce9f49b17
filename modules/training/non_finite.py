"""Steps with a non-finite loss or gradient: skipped, undone and counted on the device."""
import torch
from torch import Tensor, nn


class NonFiniteStepGuard:
    """Takes optimiser steps, and skips those whose loss or gradient is not finite.

    Whether a step is finite is known on the device only, and reading it would make the host wait in every step. So the
    decision stays there: a fused optimiser leaves weights and moments unchanged where its ``found_inf`` is 1 (as
    torch.amp.GradScaler skips steps), and the buffers are restored with torch.where.

    Parameters
    ----------
    model : its buffers (BatchNorm's running statistics) are restored with a skipped step.
    optimizer : a fused one, over the model's parameters.

    Attributes
    ----------
    streak : float64 (5,), on the device: how many steps up to the latest were skipped in a row, and the loss, MSE, KL
        and gradient norm of the first of them.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.buffers = list(model.buffers())
        self.streak = torch.zeros(5, dtype=torch.float64, device=next(model.parameters()).device)

    def snapshot(self) -> None:
        """To be called before the forward pass, which updates the running statistics."""
        self.before = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def step(self, parts: Tensor, gradient_norm: Tensor) -> Tensor:
        """Take the optimiser's step, or undo what this training step has changed so far.

        Parameters
        ----------
        parts : (3,) loss, MSE, KL. gradient_norm : scalar, over all parameters. Both on the device.

        Returns
        -------
        bool scalar on the device: whether the step was finite.
        """
        values = torch.cat([parts.double(), gradient_norm.double().view(1)])
        is_finite = values.isfinite().all()
        self.optimizer.found_inf = (~is_finite).float()
        self.optimizer.step()
        del self.optimizer.found_inf  # a step taken elsewhere must not be skipped
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(torch.where(is_finite, buffer, before))
        first = torch.where(self.streak[0] > 0, self.streak[1:], values)
        self.streak.copy_(torch.where(is_finite, 0.0, torch.cat([self.streak[:1] + 1, first])))
        return is_finite
