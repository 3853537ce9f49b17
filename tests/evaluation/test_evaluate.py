"""The one scorer of both programs: rollouts, their scores, and the same numbers wherever a checkpoint is evaluated.

    python -m pytest tests/evaluation/test_evaluate.py
"""
import json
import math
import re

import pytest
import torch

import Tester
import Trainer
from conftest import TINY, VAL_FRAMES, read_csv
from modules.evaluation import scores
from modules.evaluation.evaluate import rollout, score
from modules.network.cvae import CVAE


def random_video(length: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (length, 3, 8, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_sequences_of_different_lengths_are_generated_as_each_alone():
    torch.manual_seed(0)
    model, labels = CVAE(8, 4, 4, 8, "sigmoid"), [random_video(length, seed=length) for length in (5, 2, 7)]
    first = torch.cat([random_video(1, seed) for seed in range(3)])
    for index, video in enumerate(rollout(model, first, labels, "mean")):
        alone, = rollout(model, first[index:index + 1], labels[index:index + 1], "mean")
        assert video.dtype == torch.uint8 and torch.equal(video[0], first[index])
        assert video.shape == labels[index].shape and len({tuple(frame.flatten().tolist()) for frame in video}) > 1
        assert (video.int() - alone.int()).abs().max() <= 1  # 1: sums of floats in another order


def test_scores_leave_out_the_given_frame():
    truth = torch.full((3, 3, 4, 4), 100, dtype=torch.uint8)
    truth[2] = 110
    video = truth.clone()
    video[1:] += 51  # a fifth of the range
    result = score(video, truth)
    assert result.psnr.tolist() == pytest.approx([100, *[-20 * math.log10(0.2)] * 2])
    assert result.mean_psnr == pytest.approx(-20 * math.log10(0.2)) and result.mse == pytest.approx(0.04)
    assert result.mean_psnr_repeat_first == pytest.approx((100 + 20 * math.log10(255 / 10)) / 2)


@pytest.mark.parametrize("latent", [["--latent", "prior"], ["--val_latent", "mean"]], ids=" ".join)
@pytest.mark.parametrize("flags", [["--output", "sigmoid"], ["--output", "linear"],
                                   ["--output", "linear", "--ema", "0.9"]], ids=" ".join)
def test_a_checkpoint_has_one_score_in_training_in_its_test_and_in_tester(flags, latent, data, tmp_path, no_figures,
                                                                         capsys):
    run, result, places = tmp_path / "run", tmp_path / "result", ["--DR", str(data), "--save_root"]
    ckpt_path = ["--ckpt_path", str(run / "best.ckpt")]
    Trainer.main([*TINY, *flags, *latent, *places, str(run), "--num_epoch", "1", "--seed", "5", "--lr", "0.01"])
    row, = read_csv(run / "metrics.csv")

    capsys.readouterr()
    Trainer.main([*TINY, *places, str(tmp_path / "test"), *ckpt_path, "--test"])  # seed and z are the checkpoint's
    printed = re.search(r"PSNR ([\d.]+) dB.* loss ([\d.]+)", capsys.readouterr().out)
    assert printed.groups() == (f"{float(row['val_psnr']):.2f}", f"{float(row['val_loss']):.6f}")

    Tester.main([*places, str(result), *ckpt_path, "--split", "val", "--val_vi_len", str(VAL_FRAMES), *latent,
                 "--device", "cpu", "--no-cache", "--no-make_gif"])  # seed and precision are the checkpoint's
    summary, frames = json.loads((result / "summary.json").read_text()), read_csv(result / "seqval.csv")[1:]
    assert summary["sequences"]["val"]["psnr"] == summary["mean"]["psnr"] == float(row["val_psnr"])
    assert [frame["psnr"] for frame in frames] == [frame["psnr"] for frame in read_csv(run / "psnr_best.csv")]


def test_drift_separates_what_a_rollout_loses_from_what_the_sequence_costs():
    frames = torch.arange(700, dtype=torch.float64)
    restarted = 40 - frames / 100  # the sequence becomes harder: -6 dB per 600 frames
    rollout_psnr = restarted - (frames > 60).double()  # and the rollout loses 1 dB once
    found = scores.compare_with_restarted(rollout_psnr, restarted, 60)
    assert found["psnr_slope_restarted"] == pytest.approx(-6)
    assert found["drift"] == pytest.approx(-1) and found["drift_slope"] == pytest.approx(0, abs=1e-9)
    rollout_psnr[61:] -= frames[61:] / 300
    rollout_psnr[601:] = 0  # not scored
    assert scores.compare_with_restarted(rollout_psnr, restarted, 60)["drift_slope"] == pytest.approx(-2)
    assert "drift" not in scores.compare_with_restarted(rollout_psnr, restarted, 600)
