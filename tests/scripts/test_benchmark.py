"""The benchmark: its plain baseline equals the optimised, its rows, its arithmetic, its refusals.

    python -m pytest tests/test_benchmark.py
"""
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import baseline
import benchmark
import benchmark_works
import Trainer
from conftest import H, W
from dataloader import Clips
from modules.evaluation.metrics import to_uint8
from modules.network.cvae import CVAE
from modules.objective import clip_loss

NETWORK = {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8}
B, T = 3, 4
TINY = [word for name, size in NETWORK.items() for word in (f"--{name}", str(size))] + [
    "--frame_H", str(H), "--frame_W", str(W), "--train_vi_len", str(T), "--pairs", "4", "--frames", "6", "--sequences",
    "2", "--repeats", "1", "--num_workers", "1", "--device", "cpu", "--precision", "fp32"]
KEYS = {"work", "baseline_s", "optimised_s", "ratio", "frames_per_second", "tflops", "share_of_peak", "repeats",
        "device", "machine", "threads", "precision", "compiled", "batch_size", "torch"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(benchmark_works, "PNG_SIZE", (32, 16))
    monkeypatch.setitem(benchmark.PEAK_SIZE, "cpu", 64)


def make_clips(dtype):
    """Frames, labels and noise."""
    return torch.rand(B, T, 3, H, W, dtype=dtype), torch.rand(B, T, 3, H, W, dtype=dtype), torch.randn(
        B, T - 1, NETWORK["N_dim"], H, W, dtype=dtype)


# The baseline

@pytest.mark.parametrize("two_passes", [False, True])
@pytest.mark.parametrize("mode", baseline.MODES)
def test_the_baseline_has_the_optimiseds_loss_and_gradients(mode, two_passes):
    frames, labels, noise = make_clips(torch.float64)
    results = []
    for side in benchmark.SIDES:
        torch.manual_seed(1)
        model = CVAE(**NETWORK, bptt=mode == "bptt").double()
        model.two_passes = two_passes
        if side == "baseline":
            loss = baseline.clip_loss(model, frames, labels, noise, 0.01, mode)
        else:
            model.to(memory_format=torch.channels_last)
            predictions, mu, logvar = model(frames, labels, torch.full((B,), mode == "teacher_forced"), noise)
            loss = clip_loss(predictions, frames[:, 1:], mu, logvar, 0.01)[0]
        loss.backward()
        results.append((loss, {name: value.grad for name, value in model.named_parameters()},
                        dict(model.named_buffers())))
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("mode", baseline.MODES)
def test_a_baseline_step_gives_the_optimiseds_weights(mode):
    args = benchmark.parse_flags([*TINY, "--batch_size", str(B)])
    trainer, plain = benchmark_works.make_networks(args, torch.device("cpu"), *["--bptt"] * (mode == "bptt"))
    start = {name: value.clone() for name, value in plain.named_parameters()}
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.001)
    frames, labels, _ = make_clips(torch.float32)
    source = torch.Generator().set_state(trainer.generators["latent"].get_state())
    noise = torch.randn(B, T - 1, NETWORK["N_dim"], H, W, generator=source)
    sums = trainer.train_step(Clips(frames, labels), torch.full((B,), mode == "teacher_forced"), 0.01, 0.001)
    loss = baseline.train_step(plain, optimizer, frames, labels, noise, 0.01, mode, trainer.args.clip_grad)
    assert loss == pytest.approx(sums[0].item() / B, rel=1e-5)
    weights = dict(plain.named_parameters())
    for name, value in trainer.model.named_parameters():
        # The BatchNorm takes away the mean: this bias has no gradient but rounding, of which Adam makes full steps.
        if name != "label_encoder.1.bias":
            assert not torch.equal(value, start[name]), name
            torch.testing.assert_close(value, weights[name], rtol=0, atol=2e-5, msg=name)


def test_a_baseline_roll_out_gives_the_optimiseds_frames():
    model = CVAE(**NETWORK).double().eval()
    frames, labels, _ = make_clips(torch.float64)
    slow = baseline.generate(model, frames[:, 0], labels, torch.Generator().manual_seed(3))
    model.to(memory_format=torch.channels_last)
    fast = model.generate(frames[:, 0], labels, generator=torch.Generator().manual_seed(3))
    assert torch.equal(slow, to_uint8(fast))
    assert (slow[:, 1] != slow[:, 2]).any()


# The arithmetic

def test_each_gradient_of_a_convolution_counts_as_much_as_its_forward_pass():
    for groups in (1, 8):
        layer, pixels = torch.nn.Conv2d(8, 8, 3, padding=1, groups=groups), torch.rand(2, 8, 4, 5, requires_grad=True)
        mapping = {torch.ops.aten.convolution_backward: benchmark.convolution_backward_flops}
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            layer(pixels).sum().backward()
        assert counter.get_total_flops() == 3 * 2 * (2 * 8 * 4 * 5) * (8 // groups * 9)


def test_a_work_counts_the_side_that_does_with_less():
    weight = torch.rand(4, 4)

    def optimised(times):
        for _ in range(times):
            weight @ weight

    for slow, fast in ((2, 3), (3, 2)):
        work = benchmark_works.Work(lambda slow=slow: optimised(slow), lambda fast=fast: optimised(fast), 1, samples=10)
        assert benchmark.count_flops(work) == 10 * 2 * 2 * 4**3


# The program

def test_the_table_has_a_row_for_each_work(tmp_path, capsys):
    short = "--train_vi_len", "2", "--batch_size", "1"
    assert benchmark.main([*TINY, *short, "--json", str(tmp_path / "rows.json")]) == 0
    out = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["work"] for row in rows] == list(benchmark.WORKS) == [
        "train_free_running", "train_teacher_forced", "train_bptt", "generate", "data_epoch", "startup_cached",
        "submission_csv"]
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == list(benchmark.WORKS)
    assert len({line.count("|") for line in table}) == 1
    for row in rows:
        assert (row["tflops"] is None) == (row["work"] in ("data_epoch", "startup_cached", "submission_csv"))
    assert "Measured peak" in out and "Loading data takes" in out


def test_a_profile_is_a_trace_and_a_table(tmp_path, capsys):
    assert benchmark.main([*TINY, "--only", "generate", "--profile", str(tmp_path / "traces")]) == 0
    assert json.loads((tmp_path / "traces" / "generate.json").read_text())["traceEvents"]
    assert "aten::mkldnn_convolution" in capsys.readouterr().out


def test_only_times_what_it_names(tmp_path, capsys):
    path = tmp_path / "rows.json"
    assert benchmark.main([*TINY, "--only", "submission_csv", "--repeats", "3", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())
    assert set(row) == KEYS and row["work"] == "submission_csv" and row["repeats"] == 3
    assert row["ratio"] == pytest.approx(row["baseline_s"] / row["optimised_s"]) and row["tflops"] is None
    assert "Measured peak" not in capsys.readouterr().out


def test_both_ways_write_the_same_submission(tmp_path):
    work = benchmark_works.submission_csv(benchmark.parse_flags(TINY), torch.device("cpu"), tmp_path)
    work.baseline()
    work.optimised()
    assert (tmp_path / "baseline.csv").read_bytes() == (tmp_path / "submission.csv").read_bytes()


def test_repeats_end_when_the_time_is_spent():
    calls = []
    work = benchmark_works.Work(lambda: calls.append("baseline"), lambda: calls.append("optimised"), 1)
    args = benchmark.parse_flags([*TINY, "--repeats", "3"])
    benchmark.measure("work", work, args, torch.device("cpu"))
    assert calls == ["baseline", "optimised"] * 4  # the first of them is the warm-up
    args.seconds = 0.0
    assert [len(times) for times in benchmark.measure("work", work, args, torch.device("cpu")).values()] == [1, 1]


@pytest.mark.parametrize("flags, words", [
    (["--only", "training"], "training"), (["--pairs", "3"], "--pairs 3"), (["--repeats", "0"], "--repeats"),
    (["--json", "gone/rows.json"], "--json"), (["--F_dim", "9", "--only", "generate"], "--F_dim 9")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_impossible_flags_are_refused(flags, words, capsys):
    assert benchmark.main([*TINY, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmark.py: error: ") and words in line


def test_its_defaults_are_the_trainers_but_for_the_courses_clips():
    trainer = Trainer.make_parser()
    args = benchmark.parse_flags([])
    own = {name for name in benchmark.SHARED_FLAGS if getattr(args, name) != trainer.get_default(name)}
    assert own == {"train_vi_len", "batch_size"} and (args.train_vi_len, args.batch_size) == (16, 2)
