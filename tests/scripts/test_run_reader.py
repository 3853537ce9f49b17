"""Run folders with damaged files.

    python -m pytest tests/scripts/test_run_reader.py
"""
import os
from pathlib import Path

import pytest
from test_compare_runs import write_run

import run_reader
from modules.training.metric_log import METRICS
from utils import BadInput


@pytest.mark.parametrize("name, content, complaint", [
    ("metrics.csv", "epoch,train_loss\n0,1\n1,abc\n", "line 3, column train_loss"),
    ("metrics.csv", "epoch,train_loss\n0,1\n1", "line 3"),
    ("metrics.csv", "epoch,train_loss\n0,1\n0,1\n", "line 3 has epoch 0 after epoch 0"),
    ("metrics.csv", "epoch,train_loss\nnan,1\n", "line 2, column epoch"),
    ("metrics.csv", "epoch,train_loss\n,1\n", "line 2"),
    ("metrics.csv", "a,b\n0,1\n", "column epoch"),
    ("metrics.csv", b"epoch\n\xff\xfe\n", "CSV"),
    ("psnr_best.csv", "epoch,frame,psnr\n0,1,20\n0,3,20\n", "line 3 is not frame 2"),
    ("psnr_epoch=4.csv", "epoch,frame\n0,1\n", "column psnr")])
def test_a_damaged_table_is_refused_with_file_and_line(name, content, complaint, tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=complaint) as caught:
        run_reader.read_run(folder, "run")
    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"flags": 3, "before": 7}', "[" * 10**5])
def test_a_damaged_config_costs_the_settings_only(content, tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "config.json").write_text(content)
    run = run_reader.read_run(folder, "run")
    assert len(run.history) == 3 and run.planned is None and run.state == "stopped"
    assert "config.json" in run.notes[0]


@pytest.mark.parametrize("content", ["", ",".join(METRICS) + "\n"])
def test_an_empty_table_is_a_run_without_epochs(content, tmp_path):
    folder = write_run(tmp_path / "run", epochs=0)
    (folder / "metrics.csv").write_text(content)
    assert run_reader.read_run(folder, "run").state == "stopped, no epoch yet"


@pytest.fixture(params=["/dev/zero", "FIFO", "large"])
def endless(request, monkeypatch) -> callable:
    """Puts a file without an end, or a large one, in the place of another."""
    def replace(path: Path) -> None:
        path.unlink(missing_ok=True)
        if request.param == "FIFO":
            os.mkfifo(path)
        elif request.param == "large":
            monkeypatch.setattr(run_reader, "MAX_BYTES", 1 << 20)
            with open(path, "wb") as file:
                file.truncate((1 << 20) + 1)
        else:
            path.symlink_to(request.param)

    return replace


@pytest.mark.parametrize("name", ["metrics.csv", "psnr_best.csv", "psnr_epoch=2.csv"])
def test_a_table_without_an_end_is_refused(name, endless, tmp_path):
    folder = write_run(tmp_path / "run", recorded=(2,))
    endless(folder / name)
    with pytest.raises(BadInput, match=f"{name} is not a CSV file .(not a regular file|larger than 1 MiB)"):
        run_reader.read_run(folder, "run")


def test_a_config_without_an_end_costs_the_settings_only(endless, tmp_path):
    folder = write_run(tmp_path / "run")
    endless(folder / "config.json")
    run, = run_reader.read_runs([folder])
    assert len(run.history) == 3 and "config.json cannot be read" in run.notes[0]


@pytest.mark.parametrize("length", [None, 1, True, "16", 10**400])
def test_training_losses_of_clips_of_unknown_length_are_left_out(length, tmp_path):
    run = run_reader.read_run(write_run(tmp_path / "run", train_vi_len=length), "run")
    assert run.last("train_mse") is None and run.last("val_loss") == 0.01 and "train_vi_len" in run.notes[0]


def test_a_run_without_repeat_first_has_none(tmp_path):
    (tmp_path / "psnr_best.csv").write_text("epoch,frame,psnr\n3,1,20\n3,2,19\n")
    recorded = run_reader.read_psnr(tmp_path / "psnr_best.csv")
    assert (recorded.epoch, recorded.psnr, recorded.repeat_first) == (3, [20, 19], None)
