"""The choice of the arithmetic by timing.

    python -m pytest tests/training/test_precision.py
"""
import itertools

import pytest
import torch

from modules.config import build
from modules.config.trainer_flags import make_parser
from modules.network.cvae import CVAE
from modules.training import precision


def make_model() -> CVAE:
    return CVAE(F_dim=8, L_dim=4, N_dim=4, D_out_dim=8)


@pytest.mark.parametrize("seconds, expected", [
    ({"fp32": [9, 2, 3, 2], "bf16": [9, 1, 1, 1]}, "bf16"),
    ({"fp32": [9, 2, 2, 2], "bf16": [1, 1.9, 3, 3]}, "fp32"),  # too small a gain, and the first call does not count
    ({"fp32": [1, 2, 2, 2], "bf16": [9, 9, 1.5, 9]}, "bf16"),  # other work on the machine slowed some steps
    ({"fp32": [1, 1, 1, 1], "bf16": [1, 2, 2, 2]}, "fp32")])
def test_the_faster_arithmetic_is_chosen(seconds, expected, monkeypatch):
    times = {name: iter(values) for name, values in seconds.items()}
    monkeypatch.setattr(precision, "time_step", lambda model, frames, name: next(times[name]))
    assert precision.faster_precision(make_model(), 8, 16) == expected


def test_a_timed_step_computes_gradients_in_the_named_arithmetic(monkeypatch):
    seen, clock = [], itertools.count()
    model = make_model()
    model.generator.register_forward_hook(lambda part, inputs, output: seen.append(output.dtype))
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(clock))
    frames = torch.rand(2, 2, 3, 8, 16)
    assert [precision.time_step(model, frames, name) for name in ("fp32", "bf16")] == [1, 1]
    assert seen == [torch.float32, torch.bfloat16]
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name, has_bf16, expected", [
    ("auto", True, "timed"), ("auto", False, "fp32"), ("bf16", True, "bf16"), ("fp32", True, "fp32")])
def test_a_run_times_only_where_there_is_a_choice(name, has_bf16, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16}, raising=False)
    monkeypatch.setattr(build, "faster_precision", lambda model, height, width: "timed")
    args = make_parser().parse_args(["--DR=d", "--save_root=r", f"--precision={name}"])
    assert build.choose_precision(args, torch.device("cpu")) == expected
