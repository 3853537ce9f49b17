"""Several processes that share each batch compute what one process computes with the whole of it.

    python -m pytest tests/test_processes.py
"""
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn

import Trainer
from conftest import TINY, TRAIN_FRAMES, make_video, read_csv, write_pngs
from dataloader import Clips
from modules.network.batch_norm import CrossProcessBatchNorm2d
from modules.training.distributed import DistributedContext
from utils import BadInput

ROOT = Path(__file__).resolve().parents[2]
# Clips that overlap, so that there are 9: batches of 4, 4 and 1, of which one of two processes has no share.
SHARED = [*TINY, "--batch_size", "4", "--clip_stride", "1", "--tfr", "0.5", "--tf_draw", "clip", "--tfr_sde", "9",
          "--crop_fraction", "0.5", "--kl_anneal_type", "Cyclical", "--kl_anneal_stop", "1", "--lr_schedule", "none",
          "--warmup", "0"]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("clips", [1, 2, 7, 16])
def test_shares_make_up_the_batch_and_differ_by_one_at_most(clips, processes):
    shares = []
    for rank in range(processes):
        environment = {"WORLD_SIZE": str(processes), "RANK": str(rank), "MASTER_ADDR": "here", "MASTER_PORT": "1"}
        shares.append(list(range(clips))[DistributedContext(environment).share(clips)])
    assert sum(shares, []) == list(range(clips))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_environment_that_is_not_torchruns_is_refused(refused, monkeypatch, data, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "torchrun" in refused("Trainer.py", *TINY, "--DR", data, "--save_root", tmp_path / "run")


def assert_same_weights(one: dict, other: dict) -> None:
    def settled(state: dict) -> dict:
        # What a bias adds, a BatchNorm after it takes away with its mean: the gradient is 0 but for rounding, and Adam,
        # which divides by its size, makes whole steps of that. What counts is the difference of the two.
        mean = state["label_encoder.2.running_mean"] - state["label_encoder.1.bias"]
        return {**state, "label_encoder.2.running_mean": mean, "label_encoder.1.bias": 0 * mean}

    torch.testing.assert_close(settled(one), settled(other), rtol=1e-3, atol=1e-4)


# Each process does these with its share, and compares with what it computes alone with the whole.

def check_statistics(processes: DistributedContext) -> None:
    """Outputs, gradients and running statistics, where the mean is a thousand standard deviations from 0."""
    torch.manual_seed(0)
    whole = 1000 + torch.randn(5, 4, 3, 3, dtype=torch.float64)
    wanted = torch.randn_like(whole)
    for layer in (alone := nn.BatchNorm2d(4).double(), shared := CrossProcessBatchNorm2d(4).double()):
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    for clips in (5, 3, 1):  # 1: there is a process with none
        share = processes.share(clips)
        x, part = whole[:clips].clone().requires_grad_(), whole[:clips][share].clone().requires_grad_()
        expected, output = alone(x), shared(part)
        alone.zero_grad(), shared.zero_grad()
        (expected * wanted[:clips]).sum().backward()
        (output * wanted[:clips][share]).sum().backward()
        torch.testing.assert_close(output, expected[share])
        torch.testing.assert_close(part.grad, x.grad[share], atol=1e-8, rtol=1e-5)
        for one, other in zip(shared.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(processes.total(one.grad), other.grad)
        torch.testing.assert_close(shared.state_dict(), alone.state_dict())


def check_gradients(processes: DistributedContext) -> None:
    """Of Trainer's step, for whole, odd and scarce batches; forced or not."""
    args = Trainer.make_parser().parse_args([*SHARED, "--DR", "-", "--save_root", "-", "--clip_grad", "0",
                                             "--free_bits", "30", "--l1", "0.1"])
    shared, alone = (Trainer.Trainer(args, torch.device("cpu"), several) for several in (processes, None))
    alone.model.label_encoder[2].__class__ = nn.BatchNorm2d  # there is a process group, but not for this one
    shared.forward = nn.parallel.DistributedDataParallel(shared.model, broadcast_buffers=False)
    torch.manual_seed(2)
    torch._dynamo.config.optimize_ddp = False
    for clips in (4, 3, 1, 4):
        if clips == 1:
            shared.model.compile_steps(2, "eager")  # what follows: a share that is not compiled, and one that is
        frames, labels = torch.rand(2, clips, 4, 3, args.frame_H, args.frame_W)
        forced = torch.arange(clips) % 2 == 0
        share = processes.share(clips)
        # Both start from the same weights: Adam turns a rounding error of a gradient near 0 into a whole step.
        alone.model.load_state_dict(shared.model.state_dict())
        sums = shared.train_step(Clips(frames[share], labels[share]), forced, 0.1, 1e-3)
        expected = alone.train_step(Clips(frames, labels), forced, 0.1, 1e-3)
        torch.testing.assert_close(sums, expected, rtol=1e-4, atol=1e-5)
        for (name, value), other in zip(shared.model.named_parameters(), alone.model.parameters(), strict=True):
            torch.testing.assert_close(value.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)


def in_two_processes(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with DistributedContext() as processes:
        check_statistics(processes)
        check_gradients(processes)
        assert processes.largest(10 * rank) == 10
        assert processes.broadcast({"from": rank}) == {"from": 0}


def test_statistics_and_gradients_are_those_of_the_whole_batch():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(in_two_processes, (port,), nprocs=2)


def test_more_processes_than_clips_are_refused():
    environment = {"WORLD_SIZE": "3", "RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    args = Trainer.make_parser().parse_args([*TINY, "--DR", "-", "--save_root", "-", "--batch_size", "2"])
    with pytest.raises(BadInput, match="--batch_size 2: fewer clips than the 3 processes"):
        Trainer.Trainer(args, torch.device("cpu"), DistributedContext(environment))


def test_another_dataset_than_the_first_process_has_is_refused(data, own_data):
    told = []

    class Two(DistributedContext):
        """As if another process had spoken before."""
        def broadcast(self, message):
            told.append(message)
            return told[0]

        def largest(self, number):
            return number

    def load(root: Path) -> None:
        args = Trainer.make_parser().parse_args([*TINY, "--DR", str(root), "--save_root", "-"])
        two = Two({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"})
        Trainer.Trainer(args, torch.device("cpu"), two).load_data()

    load(data)
    load(own_data)  # the same files elsewhere
    write_pngs(own_data / "train" / "train_img", make_video(1, seed=9)[0], [TRAIN_FRAMES - 1])
    with pytest.raises(BadInput, match="the same dataset"):
        load(own_data)


def test_two_processes_train_as_one_and_one_goes_on_from_there(data, tmp_path, no_figures):
    flags = [*SHARED, "--DR", str(data), "--num_epoch", "2", "--lr", "0.003", "--clip_stride", "3",
             "--replay", "0.8", "--any_first", "0.5", "--feedback_noise", "0.05", "--ema", "0.5", "--reference_frame"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*torchrun, "Trainer.py", *flags, "--save_root", str(tmp_path / "two")], cwd=ROOT, check=True,
                   capture_output=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"})
    Trainer.main([*flags, "--save_root", str(tmp_path / "one")])
    for name in ("one", "two"):
        Trainer.main([*flags, "--num_epoch", "3", "--save_root", str(tmp_path / name), "--resume"])
    one, two = (torch.load(tmp_path / name / "last.ckpt", weights_only=True)["model"] for name in ("one", "two"))
    assert_same_weights(one, two)
    one, two = (read_csv(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert len(one) == 3
    for row, other in zip(one, two, strict=True):
        for column in row:
            assert float(other[column]) == pytest.approx(float(row[column]), rel=1e-4), column
