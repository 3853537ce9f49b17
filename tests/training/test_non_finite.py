"""Skipping non-finite steps on the device: against optimisers that never saw them.

    python -m pytest tests/training/test_non_finite.py
"""
import math

import pytest
import torch

from modules.training.non_finite import NonFiniteStepGuard


def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))
    return model.to(memory_format=torch.channels_last)


def run(optim: str, steps: list[str], guarded: bool):
    model = make()
    optimizer = getattr(torch.optim, optim)(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    guard = NonFiniteStepGuard(model, optimizer)
    finite = []
    for index, kind in enumerate(steps):
        if not guarded and kind != "finite":
            continue
        x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(index))
        guard.snapshot()
        loss = model(x).square().mean() * (math.inf if kind == "loss" else 1)
        optimizer.zero_grad()
        loss.backward()
        if kind == "gradient":
            next(model.parameters()).grad[0] = math.nan
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
        finite.append(bool(guard.step(torch.stack([loss, loss, loss * 0]), norm)))
    return model, optimizer, guard, finite


@pytest.mark.parametrize("optim", ["Adam", "AdamW"])
def test_skipped_steps_leave_no_trace(optim):
    steps = ["loss", "finite", "finite", "gradient", "loss", "finite"]
    model, optimizer, guard, finite = run(optim, steps, guarded=True)
    other, other_optimizer, _, _ = run(optim, steps, guarded=False)
    assert finite == [kind == "finite" for kind in steps]
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for one, two in zip(optimizer.state.values(), other_optimizer.state.values(), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_streak_counts_and_remembers_its_first_step():
    for steps, count in ((["finite"], 0), (["loss"], 1), (["loss", "gradient", "loss"], 3), (["loss", "finite"], 0),
                         (["finite", "gradient", "loss"], 2)):
        _, _, guard, _ = run("Adam", steps, guarded=True)
        assert guard.streak[0] == count
    loss, mse, kl, norm = guard.streak[1:].tolist()  # of the step with the NaN gradient
    assert math.isfinite(loss) and loss == mse and kl == 0 and math.isnan(norm)


def test_a_step_taken_elsewhere_is_taken():
    model, optimizer, _, _ = run("Adam", ["loss"], guarded=True)
    before = next(model.parameters()).clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not torch.equal(next(model.parameters()), before)


def test_adam_takes_its_step_by_the_formula():
    """m / (sqrt(v) + eps) with bias correction (Kingma & Ba 2015, algorithm 1), also after a skipped step."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    model = torch.nn.Module()
    model.weight = weight
    optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
    guard = NonFiniteStepGuard(model, optimizer)
    m = v = torch.zeros(2)
    expected = weight.detach().clone()
    for step, gradient in enumerate(([1.0, 3.0], [math.nan, 1.0], [-2.0, 0.5])):
        guard.snapshot()
        weight.grad = torch.tensor(gradient)
        guard.step(torch.zeros(3), weight.grad.norm())
        if step != 1:
            m, v = 0.9 * m + 0.1 * weight.grad, 0.999 * v + 0.001 * weight.grad ** 2
            t = {0: 1, 2: 2}[step]
            expected -= 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected)
