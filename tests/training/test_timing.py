"""The choice of precision and threads by timing.

    python -m pytest tests/training/test_timing.py
"""
import argparse
import itertools

import pytest
import torch

from modules.config import build
from modules.config.trainer_flags import make_parser
from modules.network.cvae import CVAE
from modules.training import timing

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    """Three threads by default, whatever the machine; the test's changes are undone."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with timing.use_threads(3):
        yield


def make_model() -> CVAE:
    return CVAE(F_dim=8, L_dim=4, N_dim=4, D_out_dim=8)


@pytest.mark.parametrize("usual, other, expected", [
    ([9, 2, 3, 2], [9, 1, 1, 1], True), ([9, 2, 2, 2], [1, 1.9, 3, 3], False),  # too small a gain; first calls
    ([1, 2, 2, 2], [9, 9, 1.5, 9], True),  # other work on the machine slowed some calls
    ([1, 1, 1, 1], [1, 2, 2, 2], False)])
def test_the_faster_way_is_the_one_with_the_fastest_call_after_the_first(usual, other, expected, monkeypatch):
    now = itertools.accumulate(value for pair in zip(usual, other, strict=True) for duration in pair
                               for value in (0, duration))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    assert timing.pick_faster(lambda: None, lambda: None) == expected


@pytest.mark.parametrize("precision, threads, faster, expected, asked", [
    (None, None, [True, True], ("bf16", 3), 2), (None, None, [True, False], ("bf16", 1), 2),
    (None, None, [False, False], ("fp32", 1), 2), ("bf16", None, [True], ("bf16", 3), 1),
    (None, 2, [False], ("fp32", 2), 1), ("fp32", 2, [], ("fp32", 2), 0), ("fp32", 1, [], ("fp32", 1), 0)])
def test_only_what_is_open_is_timed(precision, threads, faster, expected, asked, monkeypatch):
    calls, seen, model = [], [], make_model()
    model.generator.register_forward_hook(
        lambda part, inputs, output: seen.append((str(output.dtype)[6:], torch.get_num_threads())))

    is_run = precision is None and threads is None and all(faster)  # a real step with many threads takes a second

    def pick(usual, other, gain=1):
        calls.append((usual(), other()) if is_run else None)
        return faster[len(calls) - 1]

    monkeypatch.setattr(timing, "pick_faster", pick)
    assert timing.pick_training(model, 8, 16, precision, threads) == expected
    assert len(calls) == asked and torch.get_num_threads() == 3
    if is_run:
        assert seen == [("float32", 3), ("bfloat16", 3), ("bfloat16", 1), ("bfloat16", 3)]
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("is_slowed, expected", [(False, 3), (True, 1)])
def test_a_rollout_takes_one_thread_only_where_all_are_much_slower(is_slowed, expected, monkeypatch):
    def pick(usual, other, gain):
        usual(), other()
        assert gain == timing.ROLLOUT_GAIN
        return is_slowed

    monkeypatch.setattr(timing, "pick_faster", pick)
    assert timing.pick_rollout_threads(make_model(), 2, 8, 16, "fp32") == expected


def arguments(*flags: str) -> argparse.Namespace:
    return make_parser().parse_args(["--DR=d", "--save_root=r", "--F_dim=8", "--D_out_dim=8", *flags])


@pytest.mark.parametrize("flags, has_bf16, open_precision, open_threads", [
    ([], True, True, True), ([], False, False, True), (["--precision=bf16"], True, False, True),
    (["--precision=fp32", "--threads=2"], True, False, False)])
def test_what_the_user_gives_is_not_chosen(flags, has_bf16, open_precision, open_threads, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16}, raising=False)
    args = arguments(*flags)

    def pick(model, height, width, precision, threads):
        assert (precision is None, threads is None) == (open_precision, open_threads)
        return precision or "bf16", threads or 1

    monkeypatch.setattr(build, "pick_training", pick)
    build.choose_arithmetic(args, CPU)
    assert args.precision in ("bf16", "fp32") and args.threads == torch.get_num_threads() == (1 if open_threads else 2)


def test_the_environments_number_of_threads_is_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    args = arguments("--precision=fp32")
    build.choose_arithmetic(args, CPU)
    assert args.threads == 3


@pytest.mark.parametrize("given, trained, default, expected", [(2, 3, 3, 3), (None, 2, 3, 2), (None, 5, 3, 3),
                                                               (None, None, 3, 3)])
def test_a_rollout_uses_the_threads_of_the_training_where_the_machine_has_them(given, trained, default, expected,
                                                                               monkeypatch):
    monkeypatch.setattr(build, "pick_rollout_threads", lambda *args: torch.get_num_threads())
    args = argparse.Namespace(threads=given, precision="fp32")
    build.choose_rollout_threads(args, trained, make_model(), 1, (8, 16))
    assert torch.get_num_threads() == expected
