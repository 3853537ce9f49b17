"""Both programs on emulated CUDA tensors: on any machine, a tensor that was left on the CPU turns a test red, and so
does a training step that makes the host wait for the device.

    python -m pytest tests/test_device_placement.py
"""
import json
from itertools import islice

import pytest
import torch

import kill_run
import Tester
import Trainer
from conftest import TINY, contents, read_csv, write_walk
from dataloader import Clips, load_data
from emulated_cuda import emulate, host_never_waits
from modules.config.trainer_flags import merge_flags, parse_command_line
from modules.network.cvae import CVAE
from modules.training import checkpoint
from modules.training.progress import EpochProgress
from training.run_helpers import RUN, batches, train

ALL, NONE, ONE, BLEND = [True] * 3, [False] * 3, [False, True, False], [0.3, 0.0, 1.0]
STEP = ["--train_vi_len", 3, "--batch_size", 3]
EPOCH = [*RUN, "--num_epoch", 1]


@pytest.fixture
def cuda():
    with emulate() as device:
        yield device


def make_trainer(data, device: torch.device, *flags) -> Trainer.Trainer:
    args = merge_flags(parse_command_line([*TINY, "--DR", str(data), "--save_root", "unused", *map(str, flags)]))
    return Trainer.Trainer(args, load_data(args, device), device)


def step(trainer: Trainer.Trainer, batch: Clips, forced: list = NONE) -> dict[str, float]:
    """A step in which the host never waits. Returns its sums."""
    with host_never_waits():
        sums = trainer.train_step(batch, torch.tensor(forced[:len(batch.frames)]), 0.1, 0.01)
    return sums.numbers()


def state_of(trainer: Trainer.Trainer) -> dict:
    state = trainer.state.state_dict(trainer.data.pose_sample, with_replay=True)
    return on_cpu({part: state[part] for part in ("weights", "ema", "ema_steps", "optimizer", "replay")})


def on_cpu(state: object) -> object:
    if isinstance(state, dict):
        return {name: on_cpu(part) for name, part in state.items()}
    return state.cpu() if isinstance(state, torch.Tensor) else state


# A step

@pytest.mark.parametrize("forced, flags", [
    (ALL, []), (BLEND, ["--bptt"]), (ONE, ["--bptt", "--precision", "bf16"]),
    (NONE, ["--match_histogram"]), (BLEND, ["--match_histogram", "first", "--precision", "bf16"]),
    (ONE, ["--replay", 1, "--any_first", 0.5, "--ema", 0.9, "--batch_size", 2]),
    (ONE, ["--reference_frame", "--any_first", 1, "--crop_fraction", 0.5, "--clip_grad", 0]),
    (ONE, ["--feed", "first"]),
    (NONE, ["--decoder_variance", "optimal", "--l1", 0.1, "--kl_reduction", "mean", "--optim", "AdamW"])], ids=str)
def test_a_step_on_cuda_is_that_on_a_cpu_and_never_waits(forced, flags, data):
    def run(device: torch.device) -> tuple[list[dict], dict]:
        trainer = make_trainer(data, device, *STEP, *flags)
        if device.type == "cpu":
            trainer.model.two_passes = True  # as on a GPU
        steps = 1 + ("--replay" in flags)  # the second begins with a prediction of the first
        return [step(trainer, batch, forced) for batch in islice(batches(trainer), steps)], state_of(trainer)

    expected = run(torch.device("cpu"))
    with emulate() as device:
        found = run(device)
    tolerance = {"rtol": 0.05, "atol": 0.01} if "bf16" in flags else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found, expected, **tolerance)


def test_a_batch_is_read_without_waiting(own_data, cuda):
    write_walk(own_data)
    trainer = make_trainer(own_data, cuda, *STEP, "--crop_fraction", 0.5, "--any_first", 0.5, "--batch_size", 1,
                           "--shifted_copies", 1, "--replay", 1)
    epoch = batches(trainer)
    next(epoch)  # the order of the clips is copied once
    with host_never_waits():
        batch = next(epoch)
    assert all(part.is_cuda for part in batch)


# A run

@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """An epoch on CUDA, with its figures. Never write to it."""
    folder = tmp_path_factory.mktemp("placement") / "run"
    with emulate():
        train(data, folder, *EPOCH, "--device", "cuda")
    return folder


def test_a_run_on_cuda_is_that_on_a_cpu_and_a_run_can_move(run, data, tmp_path, no_figures, cuda):
    expected = train(data, tmp_path, *EPOCH)  # the sequential rollout, which rounds differently
    assert checkpoint.read(run / "last.ckpt")["device"] == "cuda"
    found, = read_csv(run / "metrics.csv")
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: float(value) for name, value in expected[0].items()}, rel=1e-3)
    rows = train(data, tmp_path, "--resume", "--num_epoch", 2, "--device", "cuda")
    assert rows[0] == expected[0] and rows[1]["val_psnr"]


def test_a_step_after_loading_is_that_of_the_run_that_was_saved(data, tmp_path, cuda):
    first, second = (make_trainer(data, cuda, *RUN) for _ in range(2))
    before, after = batches(first)
    first.state.progress = EpochProgress.begin(torch.arange(3), cuda)
    step(first, before)
    checkpoint.save(tmp_path / "last.ckpt", first.state_dict(with_replay=True))
    second.state.load_state_dict(checkpoint.read(tmp_path / "last.ckpt"))
    for trainer in (first, second):
        trainer.state.progress.sums.add(trainer.train_step(after, torch.tensor([False]), 0.1, 0.01))
    assert kill_run.same(state_of(first), state_of(second))
    assert first.state.progress.means() == second.state.progress.means()


# Evaluation

def test_generation_on_cuda_is_that_on_a_cpu(run, data, tmp_path, no_figures, cuda, monkeypatch):
    generate, devices = CVAE.generate, []
    monkeypatch.setattr(CVAE, "generate", lambda model, first, *rest: devices.append(first.device.type) or generate(
        model, first, *rest))
    for device in ("cpu", "cuda"):
        Tester.main(list(map(str, ("--DR", data, "--ckpt_path", run / "best.ckpt", "--save_root", tmp_path / device,
                                   "--any_size", "--no-cache", "--truth", data / "truth", "--restart_every", 2,
                                   "--match_histogram", "--device", device))))
    assert devices == ["cpu"] * 2 + ["cuda"] * 2
    found, expected = (contents(tmp_path / device) for device in ("cuda", "cpu"))
    scores, expected_scores = (json.loads(files.pop("summary.json")) for files in (found, expected))
    assert found == expected and "submission.csv" in found
    for part in ("mean", "sequences"):
        assert scores[part] == expected_scores[part]


def test_a_checkpoint_is_validated_on_cuda(run, data, tmp_path, no_figures, cuda, capsys):
    Trainer.main(["--DR", str(data), "--save_root", str(tmp_path), "--no-cache", "--device", "cuda", "--ckpt_path",
                  str(run / "last.ckpt"), "--test"])
    row, = read_csv(run / "metrics.csv")
    assert f"PSNR {float(row['val_psnr']):.2f} dB" in capsys.readouterr().out
