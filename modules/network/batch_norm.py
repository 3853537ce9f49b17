"""Batch normalisation with the statistics of a batch that several processes share."""
import torch
from torch import Tensor
from torch import distributed as dist


class _AllReduceSum(torch.autograd.Function):
    """Sum over all processes. Each process's losses depend on it, so its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _AllReduceSum.forward(ctx, gradient)


class CrossProcessBatchNorm2d(torch.nn.BatchNorm2d):
    """BatchNorm2d whose training statistics span the shards of all processes; with one process, plain BatchNorm2d.

    It does what torch.nn.SyncBatchNorm does, which supports GPUs only. The squared deviations are summed in a second
    all-reduce, after the mean is known: sum(x^2) - mean^2 would cancel where the mean is large.

    Its all-reduces during the backward pass cannot get out of order with those of DistributedDataParallel: in every
    process, the layers that run before this one receive their last gradients only after its backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W). B may be 0 as long as another process has a part of the batch."""
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(x)
        return self._forward_across_processes(x)

    def exclude_from_compilation(self) -> None:
        """Keep torch.compile out of the part that communicates: it cannot trace collectives in a custom autograd
        Function. A method and no decorator, because importing the compiler takes two seconds."""
        self._forward_across_processes = torch.compiler.disable(self._forward_across_processes)

    def _forward_across_processes(self, x: Tensor) -> Tensor:
        count = x.new_full((1,), x.numel() / x.shape[1])
        total = _AllReduceSum.apply(torch.cat([x.sum(dim=(0, 2, 3)), count]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = x - mean.view(-1, 1, 1)
        variance = _AllReduceSum.apply(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
