"""Steps whose numbers went bad: skipped, undone and counted on the device, without the host waiting for it."""
import torch
from torch import Tensor, nn


class NonFiniteStepGuard:
    """Takes optimiser steps, and skips those whose loss or gradient is not finite.

    Whether a step is good is known on the device only, and asking would make the host wait for it in every step. So
    the decision stays there: a fused optimiser leaves weights and moments alone where its ``found_inf`` is 1 (the way
    in which torch.amp.GradScaler skips steps), and the buffers are put back with torch.where.

    Parameters
    ----------
    model : its buffers (BatchNorm's running statistics) go back with a skipped step.
    optimizer : a fused one, over the model's parameters.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.buffers = list(model.buffers())
        device = next(model.parameters()).device
        # Of the skipped steps in a row that end with the latest step: how many, and what the first of them had:
        # loss, MSE, KL, gradient norm.
        self.streak = torch.zeros(5, dtype=torch.float64, device=device)

    def remember(self) -> None:
        """Call before the forward pass, which moves the running statistics."""
        self.before = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def step(self, parts: Tensor, gradient_norm: Tensor) -> Tensor:
        """Take the optimiser's step, or undo what this step has changed so far.

        Parameters
        ----------
        parts : (3,) loss, MSE, KL. gradient_norm : a scalar, over all parameters. Both on the device.

        Returns
        -------
        bool scalar on the device: whether the step counts.
        """
        seen = torch.cat([parts.double(), gradient_norm.double().view(1)])
        good = seen.isfinite().all()
        self.optimizer.found_inf = (~good).float()
        self.optimizer.step()
        del self.optimizer.found_inf  # whoever steps it elsewhere must not skip
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(torch.where(good, buffer, before))
        first = torch.where(self.streak[0] > 0, self.streak[1:], seen)
        self.streak.copy_(torch.where(good, 0.0, torch.cat([self.streak[:1] + 1, first])))
        return good
