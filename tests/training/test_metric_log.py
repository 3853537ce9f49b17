"""metrics.csv, timing.csv and TensorBoard events.

    python -m pytest tests/training/test_metric_log.py
"""
import pytest
import torch

from conftest import read_csv
from modules.training.metric_log import METRICS, TIMING, MetricLog, describe_epoch, write_psnr

ROWS = [dict.fromkeys(METRICS, 1 / 3) | {"epoch": epoch} for epoch in (0, 1)]


def test_tables_hold_every_row_and_events_every_value(tmp_path):
    log = MetricLog(tmp_path, ROWS[:1], [dict.fromkeys(TIMING, 0)])  # of a run that is resumed
    log.add(ROWS[1] | {"val_loss": None}, 2.0, 0.5, 100)
    log.write()
    rows = read_csv(tmp_path / "metrics.csv")
    assert tuple(rows[0]) == METRICS and [row["epoch"] for row in rows] == ["0", "1"]
    assert float(rows[1]["train_loss"]) == 1 / 3 and [row["val_loss"] for row in rows] == [str(1 / 3), ""]
    timing = [tuple(row.values()) for row in read_csv(tmp_path / "timing.csv")]
    assert timing == [("0",) * 4, ("1", "2.0", "0.5", "50.0")]
    events, = tmp_path.glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes() and b"val/loss" not in events.read_bytes()
    write_psnr(tmp_path / "psnr.csv", 3, torch.tensor([100.0, 20.5, 19.25]), torch.tensor([100.0, 18.5, 17.25]))
    assert read_csv(tmp_path / "psnr.csv") == [
        {"epoch": "3", "frame": "1", "psnr": "20.5", "psnr_repeat_first": "18.5"},
        {"epoch": "3", "frame": "2", "psnr": "19.25", "psnr_repeat_first": "17.25"}]


def test_events_that_the_disk_refuses_are_one_error_with_a_path(tmp_path, monkeypatch, capfd):
    def full(*args):
        raise OSError(28, "No space left on device")

    log = MetricLog(tmp_path, [], [])
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    with pytest.raises(OSError) as error:
        log.add(ROWS[0], 1.0, 1.0, 1)
        log.write()
    assert error.value.errno == 28 and error.value.filename.startswith(str(tmp_path / "events"))
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("frames", [1, 15])
def test_the_line_of_an_epoch_has_means_per_predicted_frame(frames):
    """The rows of metrics.csv hold sums over a clip."""
    row = ROWS[0] | {"train_loss": 3.0, "train_mse": 1.5, "train_kl": 30.0, "skipped": 0}
    line = describe_epoch(row, 2, frames, None)
    assert f"loss {3 / frames:.4f}  MSE {1.5 / frames:.5f}  KL {30 / frames:.4g}" in line
