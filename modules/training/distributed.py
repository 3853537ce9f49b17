"""The processes of one training run, as torchrun starts them, on one machine or several."""
import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch import distributed as dist

TIMEOUT = datetime.timedelta(hours=2)  # others wait that long while the first decodes a dataset, say


class DistributedContext:
    """What the processes of a run do together. Where torchrun has not started several, this one is alone.

    Used as a context: within it the processes are connected, by NCCL for tensors on GPUs and by gloo for those on
    CPUs. The first process (rank 0) writes files; all hold the same weights, generators and sums.

    Parameters
    ----------
    environment : the variables by which torchrun tells who this process is; {} for one that works alone.

    Attributes
    ----------
    rank, count : of this process, of all. local_rank : on its machine, from 0.

    Raises
    ------
    ValueError : the environment speaks of several processes, but not of where they meet.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ):
        self.count = int(environment.get("WORLD_SIZE", "1"))
        # A cluster may set a rank for a process that works alone.
        self.rank, self.local_rank = (int(environment.get(name, "0")) if self.count > 1 else 0
                                      for name in ("RANK", "LOCAL_RANK"))
        if self.count > 1 and not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
            raise ValueError(f"the environment has WORLD_SIZE {self.count}, but no RANK, MASTER_ADDR and MASTER_PORT; "
                             "start several processes with torchrun, or unset WORLD_SIZE")

    @property
    def is_alone(self) -> bool:
        return self.count == 1

    def __enter__(self) -> "DistributedContext":
        if not self.is_alone:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=TIMEOUT)
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        # After an error the others may wait for this process: they end with it, when torchrun sees that it has ended.
        if kind is None and not self.is_alone:
            dist.destroy_process_group()

    def share(self, count: int) -> slice:
        """This process's share of a batch of ``count`` clips: the shares differ by one at most, and may be empty."""
        return slice(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    def total(self, values: Tensor) -> Tensor:
        """The sum of all processes' ``values``, on the device, for statistics: no gradient flows through it."""
        if not self.is_alone:
            dist.all_reduce(values)
        return values

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers: how they agree on what only some of them know.

        It goes from host to host, so that no process waits for its GPU.
        """
        if self.is_alone:
            return number
        number = torch.tensor(number)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def broadcast(self, message: object) -> object:
        """The first process's ``message``, which all others wait for here."""
        if self.is_alone:
            return message
        box = [message]
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    @contextlib.contextmanager
    def one_before_others(self) -> Iterator[None]:
        """On each machine one process goes first; the others find what it has left in a cache."""
        if not self.is_alone and self.local_rank > 0:
            self.largest(0)
        yield
        if not self.is_alone and self.local_rank == 0:
            self.largest(0)
