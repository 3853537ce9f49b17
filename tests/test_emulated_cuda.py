"""Emulated CUDA tensors: what is refused, what makes the host wait, and what does neither.

    python -m pytest tests/test_emulated_cuda.py
"""
import copy

import pytest
import torch

from emulated_cuda import CudaTensor, HostWaits, WrongDevice, emulate, host_never_waits

X = torch.arange(6.0).view(2, 3)
MASK, INDEX, SCALAR = X > 2, torch.tensor([1, 0]), torch.tensor(2.0)


@pytest.fixture
def x():
    with emulate() as cuda:
        yield X.to(cuda)


@pytest.mark.parametrize("call", [
    lambda x: x + X, lambda x: X * x, lambda x: X.add_(x), lambda x: torch.where(MASK, x, x),
    lambda x: torch.cat([x, X]), lambda x: torch.stack([x.sum(), SCALAR]), lambda x: x.gather(0, INDEX[:, None]),
    lambda x: X[x[0].long()], lambda x: x.__setitem__(INDEX, X), lambda x: torch._foreach_mul_([x], SCALAR),
    lambda x: torch.lerp(x, x, X), lambda x: torch.nn.functional.mse_loss(x, X), lambda x: torch.nn.Linear(3, 1)(x),
    lambda x: SCALAR.add_(x.sum()), lambda x: SCALAR.__iadd__(x.sum()),
    lambda x: torch.randn(2, device="cuda", generator=torch.Generator()),
    lambda x: torch.randn(2, generator=torch.Generator("cuda")), lambda x: x.numpy()])
def test_what_cuda_refuses_is_refused(call, x):
    with pytest.raises((WrongDevice, TypeError)):
        call(x)


@pytest.mark.parametrize("call", [
    lambda x: x.sum().item(), lambda x: float(x[0, 0]), lambda x: bool(x.any()), lambda x: x.tolist(),
    lambda x: f"{x.sum():.3f}", lambda x: repr(x), lambda x: 3 in x, lambda x: max(x[0]), lambda x: x.cpu(),
    lambda x: x.to("cpu", non_blocking=True), lambda x: X.cuda(), lambda x: X.to(x),
    lambda x: torch.ones(3).copy_(x[0]), lambda x: x.copy_(X), lambda x: torch.tensor(1.0, device="cuda"),
    lambda x: x.new_tensor([1.0]),
    lambda x: x.nonzero(), lambda x: x.unique(), lambda x: x.equal(x), lambda x: torch.allclose(x, x),
    lambda x: x[x > 2], lambda x: x[MASK], lambda x: x[INDEX], lambda x: x[[1, 0]], lambda x: x[x[0, 1].long()],
    lambda x: x.__setitem__((0, 0), 1), lambda x: x.__setitem__(INDEX.to("cuda", non_blocking=True), 1),
    lambda x: x.__setitem__(x > 2, x[0, 0]), lambda x: x.__setitem__(0, X[0]), lambda x: x[:x[0, 1].long()],
    lambda x: torch.where(x > 2, x, SCALAR), lambda x: torch.save(x, "/dev/null"), lambda x: torch.cuda.synchronize()])
def test_what_makes_the_host_wait_is_noticed(call, x):
    copied = copy.deepcopy(x)
    with pytest.raises(HostWaits), host_never_waits():
        call(copied)
    call(copied)


@pytest.mark.parametrize("call", [
    lambda x: x + 1, lambda x: x * SCALAR, lambda x: x[0, 1], lambda x: x[INDEX.to(x.device, non_blocking=True)],
    lambda x: torch.where(x > 2, 0.0, x), lambda x: x.masked_fill(x > 2, 0), lambda x: x.new_zeros(3),
    lambda x: torch.full((3,), 2.0, device="cuda"), lambda x: torch.zeros_like(X, device="cuda"),
    lambda x: x.sort(dim=1).values, lambda x: torch.tensor(1.0) - x.sum(),
    lambda x: torch.rand(3, device="cuda", generator=torch.Generator("cuda")), lambda x: x.copy_(X, non_blocking=True)])
def test_what_runs_on_the_device_is_allowed(call, x):
    with host_never_waits():
        assert call(x).device == torch.device("cuda", 0)


def test_assignments_that_run_on_the_device_are_allowed(x):
    with host_never_waits():
        x[0] = 5
        x[x > 4.5] = 7
        x[1, 1:] = x[0, 1:]
    assert x.tolist() == [[7, 7, 7], [3, 7, 7]]


def test_the_first_tensor_decides_where_it_does_on_a_gpu(x):
    for found in (X[0].expand_as(x), X.view(3, 2).reshape_as(x), torch.ones(2, 3).copy_(x), X[x[0, 1].long()]):
        assert type(found) is torch.Tensor
    for found in (x[0].expand_as(X), x.view(3, 2).view_as(X), x.clone().copy_(X), x[INDEX]):
        assert type(found) is CudaTensor


def test_a_copy_shares_no_memory_and_gradients_flow_on_the_device(x):
    other = x.cpu()
    x.requires_grad_()
    (x.square().sum() + torch.cat([x, x]).sum()).backward()
    assert type(other) is torch.Tensor and type(x.grad) is CudaTensor and torch.equal(x.grad.cpu(), 2 * other + 2)
    with torch.no_grad():
        x.zero_()
    assert torch.equal(other, X)


def test_a_module_moves_there_and_back(x):
    layer = torch.nn.BatchNorm1d(3).to(x.device)
    twin = copy.deepcopy(layer)
    assert all(part.is_cuda for part in [*twin.parameters(), *twin.buffers()]) and len(list(twin.parameters())) == 2
    with torch.no_grad():
        twin.weight.fill_(3)
    layer.load_state_dict({name: part.cpu() for name, part in twin.state_dict().items()})
    assert layer.weight.tolist() == [3, 3, 3] and layer.weight.requires_grad
