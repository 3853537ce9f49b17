"""The benchmark: its rows, its count of the arithmetic, its profile, invalid flags.

    python -m pytest tests/scripts/test_benchmark.py
"""
import json

import pytest
import torch
from test_baseline import TINY as TINY_STEP
from torch.utils.flop_counter import FlopCounterMode

import benchmark
import benchmark_cases
from modules.config.trainer_flags import make_parser

TINY = [*TINY_STEP, "--train_vi_len", "2", "--batch_size", "1", "--frames", "6", "--sequences", "2", "--repeats", "1",
        "--num_workers", "1"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(benchmark_cases, "PNG_SIZE", (32, 16))
    monkeypatch.setitem(benchmark.PEAK_SIZE, "cpu", 64)


def test_each_gradient_of_a_convolution_counts_as_much_as_its_forward_pass():
    for groups in (1, 8):
        layer, pixels = torch.nn.Conv2d(8, 8, 3, padding=1, groups=groups), torch.rand(2, 8, 4, 5, requires_grad=True)
        mapping = {torch.ops.aten.convolution_backward: benchmark.convolution_backward_flops}
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            layer(pixels).sum().backward()
        assert counter.get_total_flops() == 3 * 2 * (2 * 8 * 4 * 5) * (8 // groups * 9)


@pytest.mark.parametrize("slow, fast", [(2, 3), (3, 2)])
def test_arithmetic_is_counted_on_the_side_that_needs_less(slow, fast):
    weight = torch.rand(4, 4)
    case = benchmark_cases.Case(lambda: [weight @ weight for _ in range(slow)],
                                lambda: [weight @ weight for _ in range(fast)], 1, samples=10)
    assert benchmark.count_flops(case) == 10 * 2 * 2 * 4**3


def test_the_table_has_a_row_for_each_case(tmp_path, capsys):
    assert benchmark.main([*TINY, "--json", str(tmp_path / "rows.json")]) == 0
    output = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["case"] for row in rows] == list(benchmark_cases.CASES)
    table = [line for line in output.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == list(benchmark_cases.CASES)
    assert len({line.count("|") for line in table}) == 1
    for row in rows:
        assert row["ratio"] == pytest.approx(row["baseline_s"] / row["optimised_s"])
        assert (row["tflops"] is None) == (row["case"] in ("data_epoch", "startup_cached", "submission_csv"))


def test_a_profile_is_a_trace_and_a_table(tmp_path, capsys):
    assert benchmark.main([*TINY, "--only", "generate", "--profile", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "generate.json").read_text())["traceEvents"]
    assert "convolution" in capsys.readouterr().out


def test_both_sides_write_the_same_submission(tmp_path):
    case = benchmark_cases.submission_csv(benchmark.parse_flags(TINY), torch.device("cpu"), tmp_path)
    case.baseline()
    case.optimised()
    assert (tmp_path / "baseline.csv").read_bytes() == (tmp_path / "submission.csv").read_bytes()


def test_repeats_end_when_the_time_is_spent():
    calls = []
    case = benchmark_cases.Case(lambda: calls.append("baseline"), lambda: calls.append("optimised"), 1)
    args = benchmark.parse_flags([*TINY, "--repeats", "3"])
    benchmark.measure("case", case, args, torch.device("cpu"))
    assert calls == ["baseline", "optimised"] * 4  # the first of them is the warm-up
    args.seconds = 0.0
    assert [len(times) for times in benchmark.measure("case", case, args, torch.device("cpu")).values()] == [1, 1]


@pytest.mark.parametrize("flags, word", [
    (["--only", "training"], "training"), (["--pairs", "2", "--train_vi_len", "3"], "--pairs 2"),
    (["--repeats", "0"], "--repeats"), (["--json", "gone/rows.json"], "--json"),
    (["--F_dim", "9", "--only", "generate"], "F_dim")])
def test_invalid_flags_are_refused(flags, word, capsys):
    assert benchmark.main([*TINY, *flags]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("benchmark.py: error: ") and word in line


def test_the_default_sizes_are_those_of_the_trainer():
    args, parser = benchmark.parse_flags([]), make_parser()
    assert all(getattr(args, name) == parser.get_default(name) for name in benchmark_cases.SHARED_FLAGS)
