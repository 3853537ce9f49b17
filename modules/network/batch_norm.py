"""Batch normalisation whose training statistics span the processes of a run."""
import torch
from torch import Tensor
from torch import distributed as dist


class _Total(torch.autograd.Function):
    """A sum over all processes through which the gradient flows: what one holds counts in the losses of all."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Total.forward(ctx, gradient)


class CrossProcessBatchNorm2d(torch.nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of the whole batch, whichever processes its parts are in.

    (torch.nn.SyncBatchNorm does the same for tensors on GPUs only.) The squares are summed about the mean, in a second
    exchange: about 0 they would cancel where the mean is large. The gradients of DistributedDataParallel are in step
    with this: no part of the network before it can have all its gradients before its own backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); B may be 0 where other processes hold the batch."""
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(x)
        return self._forward_shared(x)

    def keep_from_compilation(self) -> None:
        """For a network whose steps are compiled: torch.compile knows no exchange between processes in a function of
        its own gradient. (No decorator: that would load the compiler, two seconds, also where nobody trains.)"""
        self._forward_shared = torch.compiler.disable(self._forward_shared)

    def _forward_shared(self, x: Tensor) -> Tensor:
        count = x.new_full((1,), x.numel() / x.shape[1])
        total = _Total.apply(torch.cat([x.sum(dim=(0, 2, 3)), count]))
        count = total[-1].detach()
        centred = x - (total[:-1] / count).view(-1, 1, 1)
        variance = _Total.apply(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(total[:-1] / count, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
