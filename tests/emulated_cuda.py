"""CUDA tensors on any machine: what a GPU refuses is refused, and what makes the host wait for it can be forbidden.

    with emulate():
        x = torch.zeros(3, device="cuda")    # x.device is cuda:0 and x.is_cuda is True, but the CPU holds its values
        x + torch.ones(3)                    # WrongDevice
        with host_never_waits():
            x.sum().item()                   # HostWaits

Results are bit for bit those of the CPU, which computes them. Neither FakeTensorMode nor the device "meta" has values,
which teacher forcing and checkpoints need. Not emulated: what happens inside an operation, such as CUDA's kernels and
the list of operations that its autocast runs in bfloat16; its generators; streams, memory, compilation.
"""
import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# Operations whose result, or its shape, the host must know.
READS = {"_local_scalar_dense", "nonzero", "equal", "allclose", "masked_select", "_unique2", "unique_dim",
         "unique_consecutive", "bincount", "repeat_interleave"}
FROM_HOST = {"tensor", "as_tensor", "asarray", "new_tensor"}
# Functions that refuse a scalar on the CPU; the others take it as a number.
ON_ONE_DEVICE = {"cat", "stack", "concat", "concatenate", "hstack", "vstack", "searchsorted", "bucketize"}
# Methods that take tensors of both devices and whose result is on the device of the first.
LIKE_THE_FIRST = {"expand_as", "view_as", "reshape_as", "copy_", "__getitem__"}
_is_waiting_forbidden = False


class WrongDevice(RuntimeError):
    """CUDA would refuse the call."""


class HostWaits(RuntimeError):
    """The host would wait for the GPU to finish its work."""


class CudaTensor(Tensor):
    """A tensor on the CPU that passes for one on cuda:0."""
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return _call(function, args, kwargs or {})

    def get_device(self) -> int:
        return 0

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else self.tolist(), spec)

    def __repr__(self) -> str:
        return f"CudaTensor({self.tolist()})"

    def __deepcopy__(self, memo: dict) -> "CudaTensor":
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        copy.__dict__.update(self.__dict__)  # which says whether it is a parameter
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: int):
        return self.cpu().__reduce_ex__(protocol)  # a file that is read with map_location="cpu"


class _Generator(torch.Generator):
    """A generator on the CPU that passes for one on the device that was asked for."""
    device = property(lambda self: self.asked_for)

    def __new__(cls, device: torch.device | str = "cpu"):
        generator = super().__new__(cls, "cpu")
        generator.asked_for = CUDA if torch.device(device).type == "cuda" else CPU
        return generator

    def __init__(self, device: torch.device | str = "cpu"):
        pass


class _AllFunctions(TorchFunctionMode):
    """Also passes functions to ``_call`` that get no CudaTensor, such as torch.zeros."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return _call(function, args, kwargs or {})


class _NoReads(TorchDispatchMode):
    """Sees every operation, those of a backward pass included."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.overloadpacket.__name__ in READS:
            raise HostWaits(operation.name())
        return operation(*args, **kwargs or {})


_NO_READS = _NoReads()


@contextlib.contextmanager
def emulate() -> Iterator[torch.device]:
    """Within it the device "cuda" exists. Yields that device."""
    autocast, group = torch.autocast, torch._C._group_tensors_by_device_and_dtype

    def autocast_on_cpu(device_type: str, *args, **kwargs) -> torch.autocast:
        return autocast("cpu", *args, **kwargs)

    def group_by_emulated_device(lists: list, with_indices: bool = False) -> dict:
        groups, device = group(lists, with_indices), next(_tensors(lists)).device
        return {(device, dtype): found for (_, dtype), found in groups.items()}

    with pytest.MonkeyPatch.context() as patch, _AllFunctions():
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch, "autocast", autocast_on_cpu)
        patch.setattr(torch.amp, "autocast", autocast_on_cpu)
        patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", group_by_emulated_device)
        # A module that is moved gets new parameters; the old ones would keep their type.
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        for name, answer in (("is_available", True), ("is_bf16_supported", True), ("device_count", 1),
                             ("is_current_stream_capturing", False)):
            patch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
        patch.setattr(torch.cuda, "synchronize", lambda *_: _wait("torch.cuda.synchronize"))
        yield torch.device("cuda")


@contextlib.contextmanager
def host_never_waits() -> Iterator[None]:
    """Within it, whatever makes the host wait for the GPU raises HostWaits, as torch.cuda.set_sync_debug_mode("error")
    does, and so does a copy to the CPU that does not wait: its values may be read too early."""
    global _is_waiting_forbidden
    before, _is_waiting_forbidden = _is_waiting_forbidden, True
    try:
        yield
    finally:
        _is_waiting_forbidden = before


def _wait(reason: str) -> None:
    if _is_waiting_forbidden:
        raise HostWaits(reason)


def _call(function: Callable, args: tuple, kwargs: dict) -> object:
    """Call a function of torch: its devices are checked, the CPU computes, its results are where CUDA has them."""
    name = function.__name__
    if name in ("to", "cuda", "cpu") and isinstance(args[0], Tensor):
        return _transfer(name, *args, **kwargs)
    tensors = list(_tensors((args, kwargs)))
    is_on_cuda = any(isinstance(tensor, CudaTensor) for tensor in tensors)
    if is_on_cuda:
        _check_devices(name, args, kwargs, tensors)
        is_on_cuda = name not in LIKE_THE_FIRST or isinstance(args[0], CudaTensor)
    if kwargs.get("device") is not None:
        is_on_cuda = torch.device(kwargs["device"]).type == "cuda"
        kwargs = kwargs | ({"device": CPU} if is_on_cuda else {})
    if name in FROM_HOST and is_on_cuda:
        _wait(name)
    generator = kwargs.get("generator")
    if generator is not None and (generator.device.type == "cuda") != is_on_cuda:
        raise WrongDevice(f"{name}: the generator is on {generator.device}, but the tensor is not")
    no_reads = _NO_READS if _is_waiting_forbidden and is_on_cuda and name != "__get__" else contextlib.nullcontext()
    with torch._C.DisableTorchFunctionSubclass(), no_reads:
        result = function(*args, **kwargs)
        return _on_cuda(result) if is_on_cuda else result


def _tensors(values: object) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple | dict):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _on_cuda(result: object) -> object:
    """The result of a function, its tensors on CUDA."""
    if isinstance(result, Tensor):
        return result if isinstance(result, CudaTensor) else result.as_subclass(CudaTensor)
    return type(result)(map(_on_cuda, result)) if isinstance(result, list | tuple) else result


def _transfer(name: str, tensor: Tensor, *args, **kwargs) -> Tensor:
    """Tensor.to, Tensor.cuda or Tensor.cpu. A tensor that changes its device is copied."""
    is_copied = kwargs.pop("copy", False)
    if name != "to":
        kwargs["device"] = CUDA if name == "cuda" else CPU
    elif args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
    was_on_cuda = isinstance(tensor, CudaTensor)
    is_on_cuda = was_on_cuda if device is None else device.type == "cuda"
    if was_on_cuda and not is_on_cuda or is_on_cuda and not was_on_cuda and not non_blocking:
        _wait("a copy between host and device")
    if device is None or is_on_cuda:
        device = CPU
    with torch._C.DisableTorchFunctionSubclass():
        result = tensor.to(device, dtype or tensor.dtype, copy=is_copied or was_on_cuda != is_on_cuda,
                           memory_format=layout or torch.preserve_format)
        return _on_cuda(result) if is_on_cuda else result


def _check_devices(name: str, args: tuple, kwargs: dict, tensors: list[Tensor]) -> None:
    """WrongDevice where CUDA refuses the ``tensors`` among the arguments; HostWaits where that is forbidden."""
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor)]
    if name in ("__getitem__", "__setitem__"):
        _check_index(*args)
    elif name == "tolist":
        _wait(name)
    elif name == "copy_":
        if on_cpu and (isinstance(args[1], CudaTensor) or not (kwargs.get("non_blocking") or any(args[2:]))):
            _wait("a copy between host and device")
    elif on_cpu and name not in LIKE_THE_FIRST | {"_has_compatible_shallow_copy_type"}:
        is_in_place = name.startswith("__i") or name.endswith("_") and not name.endswith("__")
        if (any(tensor.dim() for tensor in on_cpu) or name in ON_ONE_DEVICE or name.startswith(("_foreach", "_fused"))
                or is_in_place and any(tensor is args[0] for tensor in on_cpu)):
            raise WrongDevice(f"{name}: tensors on cuda:0 and on the CPU")
        if name == "where":
            _wait("a scalar that is copied to the device")


def _check_index(tensor: Tensor, index: object, *value: object) -> None:
    """``_check_devices`` for ``tensor[index]`` and ``tensor[index] = value``."""
    is_on_cuda, parts = isinstance(tensor, CudaTensor), index if isinstance(index, tuple) else (index,)
    given = [part for part in parts if isinstance(part, Tensor)]
    numbers = [part for part in given if part.dim() == 0 and part.dtype != torch.bool]
    arrays = [part for part in given if part.dim() or part.dtype == torch.bool]
    lists = [part for part in parts if isinstance(part, list)]
    is_mask = any(part.dtype == torch.bool for part in arrays)
    if not is_on_cuda and any(isinstance(part, CudaTensor) for part in arrays):
        raise WrongDevice("an index on cuda:0 into a tensor on the CPU")
    if is_on_cuda and (lists or any(not isinstance(part, CudaTensor) for part in arrays)):
        _wait("an index that is copied to the device")
    if any(isinstance(part, CudaTensor) for part in numbers):
        _wait("an index that is read from the device")
    if is_mask and (not value or isinstance(value[0], Tensor)):
        _wait("the number of values that a mask selects")
    if value and isinstance(value[0], Tensor) and isinstance(value[0], CudaTensor) != is_on_cuda:
        if (arrays or lists) and (value[0].dim() or not is_on_cuda):
            raise WrongDevice("a value and the tensor that it is assigned to are on cuda:0 and on the CPU")
        _wait("a value that is copied between host and device")
    if value and not isinstance(value[0], Tensor) and not is_mask:
        with torch._C.DisableTorchFunctionSubclass():
            if arrays or lists or tensor[index].dim() == 0:  # a whole slice is filled on the device
                _wait("a number that is copied to the device")
