"""The baseline of the benchmark has the results of the optimised implementation.

    python -m pytest tests/scripts/test_baseline.py
"""
import pytest
import torch

import baseline
import benchmark
import benchmark_cases
from conftest import H, W
from modules.evaluation.evaluate import rollout
from modules.network.cvae import CVAE
from modules.objective import clip_loss
from utils import make_generators

NETWORK = {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8}
B, T = 3, 4
TINY = [word for name, size in NETWORK.items() for word in (f"--{name}", str(size))] + [
    "--frame_H", str(H), "--frame_W", str(W), "--train_vi_len", str(T), "--batch_size", str(B), "--pairs", "4",
    "--device", "cpu", "--precision", "fp32"]


def make_clips(dtype):
    """Frames, labels and noise."""
    torch.manual_seed(0)
    return torch.rand(B, T, 3, H, W, dtype=dtype), torch.rand(B, T, 3, H, W, dtype=dtype), torch.randn(
        B, T - 1, NETWORK["N_dim"], H, W, dtype=dtype)


@pytest.mark.parametrize("two_passes", [False, True])
@pytest.mark.parametrize("mode", baseline.MODES)
def test_loss_and_gradients_are_equal(mode, two_passes):
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
def test_a_step_gives_equal_weights(mode, tmp_path):
    args, device = benchmark.parse_flags(TINY), torch.device("cpu")
    trainer = benchmark_cases.make_trainer(args, device, tmp_path, *["--bptt"] * (mode == "bptt"))
    plain = benchmark_cases.copy_network(trainer, device)
    start = {name: value.clone() for name, value in plain.named_parameters()}
    optimizer = torch.optim.Adam(plain.parameters(), lr=benchmark_cases.LEARNING_RATE)
    frames, labels, _ = make_clips(torch.float32)
    noise = torch.randn(B, T - 1, NETWORK["N_dim"], H, W, generator=make_generators(args.seed, device)["latent"])
    benchmark_cases.train_step(trainer, frames, labels, torch.full((B,), mode == "teacher_forced"))
    baseline.train_step(plain, optimizer, frames, labels, noise, benchmark_cases.BETA, mode, trainer.args.clip_grad)
    weights = dict(plain.named_parameters())
    for name, value in trainer.model.named_parameters():
        # BatchNorm removes the mean, so this bias has a gradient of rounding errors, which Adam scales to full steps.
        if name != "label_encoder.1.bias":
            assert not torch.equal(value, start[name]), name
            torch.testing.assert_close(value, weights[name], rtol=0, atol=2e-5, msg=name)


def test_a_rollout_gives_equal_pixels():
    torch.manual_seed(0)
    model = CVAE(**NETWORK, output="sigmoid").eval()
    frames, labels = torch.randint(256, (2, B, T, 3, H, W), dtype=torch.uint8)
    slow = baseline.generate(model, frames[:, 0] / 255, labels / 255, torch.Generator().manual_seed(3))
    model.to(memory_format=torch.channels_last)
    fast = torch.stack(rollout(model, frames[:, 0], list(labels), seed=3))
    # Two memory layouts differ by rounding errors, which may move a pixel to the next value.
    assert (slow.int() - fast.int()).abs().max() <= 1 and (slow[:, 1] != slow[:, 2]).any()
