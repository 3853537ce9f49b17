"""The moving average of the weights: against its formula, and where it is used.

    python -m pytest tests/training/test_ema.py
"""
import pytest
import torch

import Tester
import Trainer
from conftest import TINY, read_csv
from modules.training import checkpoint
from modules.training.ema import ExponentialMovingAverage


def make() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_it_is_the_recursive_mean_and_skipped_steps_do_not_count(decay):
    model = make()
    ema = ExponentialMovingAverage(model, decay)
    expected, steps = {name: value.detach().clone() for name, value in model.named_parameters()}, 0
    for index in range(20):
        is_finite = index % 5 != 2
        with torch.no_grad():
            for value in model.parameters():
                value += torch.randn(value.shape)
        ema.update_parameters(model, torch.tensor(is_finite))
        if is_finite:
            steps += 1
            kept = min(decay, (1 + steps) / (10 + steps))
            expected = {name: kept * expected[name] + (1 - kept) * value.detach()
                        for name, value in model.named_parameters()}
    assert ema.n_averaged == steps
    for name, value in ema.module.named_parameters():
        torch.testing.assert_close(value, expected[name])


def test_the_average_is_validated_saved_and_generated_with(data, tmp_path, no_figures):
    run, flags = tmp_path / "run", ["--DR", str(data), "--latent", "mean"]
    Trainer.main([*TINY, *flags, "--save_root", str(run), "--num_epoch", "1", "--ema", "0.9"])
    state = checkpoint.read(run / "last.ckpt")
    names = [name for name, _ in checkpoint.load_model(state).named_parameters()]
    assert state["ema_steps"] == 2
    assert not any(torch.equal(state["ema"][name], state["weights"][name]) for name in names if "weight" in name)

    def psnr_of(path, weights):
        torch.save(checkpoint.read(run / "last.ckpt") | {"weights": weights, "ema": None}, path)
        Tester.main([*flags, "--ckpt_path", str(path), "--split", "val", "--val_vi_len", "6", "--device", "cpu",
                     "--no-cache", "--precision", "fp32", "--save_root", str(path.with_suffix("")), "--no-make_gif"])
        rows = read_csv(path.with_suffix("") / "seqval.csv")[1:]
        return sum(float(row["psnr"]) for row in rows) / len(rows)

    validated = float(read_csv(run / "metrics.csv")[0]["val_psnr"])
    assert psnr_of(tmp_path / "ema.ckpt", state["ema"]) == pytest.approx(validated, abs=1e-4)
    assert psnr_of(tmp_path / "raw.ckpt", state["weights"]) != pytest.approx(validated, abs=1e-4)


def test_finetuning_starts_from_the_average(data, tmp_path, no_figures):
    run = tmp_path / "run"
    Trainer.main([*TINY, "--DR", str(data), "--save_root", str(run), "--num_epoch", "1", "--ema", "0.9"])
    Trainer.main([*TINY, "--DR", str(data), "--save_root", str(tmp_path / "tuned"), "--finetune", "--lr", "1e-12",
                  "--ckpt_path", str(run / "last.ckpt")])
    old, new = checkpoint.read(run / "last.ckpt"), checkpoint.read(tmp_path / "tuned" / "last.ckpt")
    for name, value in old["ema"].items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(new["weights"][name], value)
            torch.testing.assert_close(new["ema"][name], value)
