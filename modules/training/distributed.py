"""The processes of one training run, as torchrun starts them, on one machine or several."""
import contextlib
import datetime
import os
from collections.abc import Iterator

import torch
from torch import Tensor
from torch import distributed as dist

from utils import read_rank

TIMEOUT = datetime.timedelta(hours=2)  # the others wait that long while the main rank decodes a dataset


class DistributedContext:
    """What the processes of a run do together. Without torchrun there is a single one.

    Used as a context manager: within it the processes are connected, by NCCL for tensors on GPUs and by gloo for those
    on CPUs. The main rank (0) writes files; all ranks hold the same weights, generators and sums.

    Raises
    ------
    ValueError : WORLD_SIZE asks for several processes, but the variables that connect them are missing or invalid.
    """

    def __init__(self):
        self.rank, self.local_rank, self.world_size = read_rank()
        if self.world_size > 1 and not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise ValueError(f"WORLD_SIZE is {self.world_size}, but RANK, MASTER_ADDR and MASTER_PORT are not all set; "
                             "start several processes with torchrun, or unset WORLD_SIZE")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_single(self) -> bool:
        return self.world_size == 1

    def __enter__(self) -> "DistributedContext":
        if not self.is_single:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=TIMEOUT)
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        # After an error the other ranks may wait for this one: torchrun ends them when this process has ended.
        if kind is None and not self.is_single:
            dist.destroy_process_group()

    def shard(self, count: int) -> slice:
        """This rank's part of a batch of ``count`` clips. Sizes differ by one at most, and may be 0."""
        return slice(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def all_sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on the device, in place. No gradient flows through it."""
        if not self.is_single:
            dist.all_reduce(values)
        return values

    def all_shards(self, part: Tensor, count: int) -> Tensor:
        """All ranks' shards of a batch of ``count``, of which this rank has ``part`` (S, ...): (count, ...)."""
        whole = part.new_zeros(count, *part.shape[1:])
        whole[self.shard(count)] = part
        return self.all_sum(whole)

    def all_max(self, number: int) -> int:
        """The largest of all ranks' numbers. Exchanged as a CPU tensor, so that no rank waits for its GPU."""
        if self.is_single:
            return number
        number = torch.tensor(number)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def broadcast(self, message: object) -> object:
        """The main rank's ``message``, on every rank."""
        if self.is_single:
            return message
        box = [message]
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    @contextlib.contextmanager
    def local_main_first(self) -> Iterator[None]:
        """On each machine one rank goes first; the others find what it has left in a cache."""
        if self.local_rank > 0:
            self._barrier()
        yield
        if self.local_rank == 0:
            self._barrier()

    def _barrier(self) -> None:
        self.all_max(0)
