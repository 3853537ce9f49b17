"""Several processes that share each batch compute what one process computes with the whole of it.

    python -m pytest tests/training/test_distributed.py
"""
import contextlib
import io
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
from modules.config.run_plan import OpenedRun
from modules.config.trainer_flags import merge_flags, parse_command_line
from modules.network.batch_norm import CrossProcessBatchNorm2d
from modules.training.distributed import DistributedContext
from utils import BadInput, run_main

ROOT = Path(__file__).resolve().parents[2]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    return {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "RANK": str(rank),
            "LOCAL_RANK": str(rank)}


def test_shards_make_up_the_batch_and_sizes_differ_by_one_at_most(monkeypatch):
    for clips, processes in ((1, 3), (2, 2), (8, 3), (16, 8), (7, 1)):
        shards = []
        for rank in range(processes):
            monkeypatch.setattr(os, "environ", environment(rank, processes, port=1))
            shards.append(list(range(clips))[DistributedContext().shard(clips)])
        assert sum(shards, []) == list(range(clips)) and max(map(len, shards)) - min(map(len, shards)) <= 1


def test_impossible_numbers_of_processes_are_refused(refused, monkeypatch, data, tmp_path):
    flags = [*TINY, "--DR", str(data), "--save_root", str(tmp_path / "run"), "--batch_size", "3"]
    with pytest.raises(BadInput, match="--batch_size 3"):
        OpenedRun(parse_command_line(flags)).prepare(world_size=4)
    monkeypatch.setenv("WORLD_SIZE", "2")  # and nothing else of torchrun
    assert "torchrun" in refused("Trainer.py", *flags, untouched=tmp_path)


def check_statistics(distributed: DistributedContext) -> None:
    """Outputs, gradients and running statistics, with a mean a thousand standard deviations from 0."""
    torch.manual_seed(0)
    inputs, wanted = 1000 + torch.randn(5, 4, 3, 3, dtype=torch.float64), torch.randn(5, 4, 3, 3, dtype=torch.float64)
    alone, shared = nn.BatchNorm2d(4).double(), CrossProcessBatchNorm2d(4).double()
    for clips in (5, 3, 1):  # 1: one process has an empty shard
        shard = distributed.shard(clips)
        x, part = inputs[:clips].clone().requires_grad_(), inputs[:clips][shard].clone().requires_grad_()
        expected, output = alone(x), shared(part)
        (expected * wanted[:clips]).sum().backward()
        (output * wanted[:clips][shard]).sum().backward()
        torch.testing.assert_close(output, expected[shard])
        torch.testing.assert_close(part.grad, x.grad[shard], atol=1e-8, rtol=1e-5)
        torch.testing.assert_close(shared.state_dict(), alone.state_dict())


def train_steps(data: Path, distributed: DistributedContext) -> list:
    """Sums and gradients of a step for full, odd and tiny batches, one of them compiled where there are two processes.
    Each is from the same weights, because Adam turns a rounding error of a gradient near 0 into a whole step."""
    results = []
    for clips, is_compiled in ((4, False), (3, False), (1, False), (4, True)):
        trainer = make_trainer(data, distributed)
        if not distributed.is_single:
            trainer.trained_model = nn.parallel.DistributedDataParallel(trainer.model, broadcast_buffers=False)
            if is_compiled:
                trainer.model.compile_steps(2, "eager")
        frames, labels = torch.rand(2, clips, 4, 3, 8, 16, generator=torch.Generator().manual_seed(2))
        shard = distributed.shard(clips)
        sums = trainer.train_step(Clips(frames[shard], labels[shard]), torch.arange(clips) % 2 == 0, 0.1, 1e-3)
        results.append((sums.numbers(), {name: value.grad for name, value in trainer.model.named_parameters()}))
    return results


def make_trainer(data: Path, distributed: DistributedContext) -> Trainer.Trainer:
    args = merge_flags(parse_command_line([*TINY, "--DR", str(data), "--save_root", "-", "--clip_grad", "0"]))
    return Trainer.make_trainer(args, None, False, distributed)


def in_two_processes(rank: int, port: int, data: Path, other_data: Path) -> None:
    torch.set_num_threads(1)
    expected = train_steps(data, DistributedContext())
    os.environ |= environment(rank, 2, port)
    with contextlib.redirect_stderr(io.StringIO()) as stderr, DistributedContext() as distributed:
        check_statistics(distributed)
        torch.testing.assert_close(train_steps(data, distributed), expected, rtol=1e-3, atol=1e-5)
        assert distributed.all_max(10 * rank) == 10 and distributed.broadcast({"from": rank}) == {"from": 0}
        with pytest.raises(BadInput, match="--DR") if rank else contextlib.nullcontext():
            make_trainer(other_data if rank else data, distributed)
        if rank:
            os._exit(0)  # dies without a word
        assert run_main("P.py", lambda: distributed.all_max(0)) == 2
        assert "another process" in stderr.getvalue()


def test_a_step_of_two_processes_is_that_of_one_with_the_whole_batch(data, own_data):
    write_pngs(own_data / "train" / "train_img", make_video(1, seed=9)[0], [TRAIN_FRAMES - 1])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(in_two_processes, (port, data, own_data), nprocs=2)


def test_two_processes_train_as_one_and_one_resumes_their_run(data, tmp_path, no_figures):
    """With 3 clips: batches of 2 and 1, of which one process has an empty shard."""
    flags = [*TINY, "--DR", str(data), "--num_epoch", "2", "--lr", "0.003", "--tfr", "0.5", "--tf_draw", "clip",
             "--crop_fraction", "0.5", "--replay", "0.8", "--any_first", "0.5", "--ema", "0.5", "--reference_frame"]
    one, two = tmp_path / "one", tmp_path / "two"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    output = subprocess.run([*torchrun, "Trainer.py", *flags, "--save_root", str(two)], cwd=ROOT, check=True,
                            capture_output=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}).stdout
    assert output.count(b"epoch 1/1") == len(list(two.glob("events*"))) == 1  # only the main rank reports and writes
    Trainer.main([*flags, "--save_root", str(one)])
    for run in (one, two):
        Trainer.main([*flags, "--num_epoch", "3", "--save_root", str(run), "--resume"])
    for row, other in zip(read_csv(one / "metrics.csv"), read_csv(two / "metrics.csv"), strict=True):
        assert list(map(float, row.values())) == pytest.approx(list(map(float, other.values())), rel=1e-4)
    one, two = (torch.load(run / "last.ckpt", weights_only=True) for run in (one, two))
    for part in ("weights", "ema"):
        for weights in (one[part], two[part]):
            # Only their difference has an effect, which the scores show. The gradient of a bias before a BatchNorm is 0
            # but for rounding errors, which Adam scales to whole steps.
            del weights["label_encoder.1.bias"], weights["label_encoder.2.running_mean"]
        torch.testing.assert_close(one[part], two[part], rtol=1e-3, atol=1e-4)
