"""When the files of a run are written.

    python -m pytest tests/training/test_run_writer.py
"""
import torch

from modules.training import checkpoint
from modules.training.run_writer import RunWriter

SCORES = torch.ones(3), torch.ones(3)


def test_the_end_of_an_epoch_is_saved_every_half_minute_and_a_long_epoch_by_its_flag(tmp_path):
    for minutes, within in ((10, False), (0.6, True), (0, False)):
        writer = RunWriter(tmp_path, lambda with_replay: {}, minutes)
        assert not writer.is_due() and not writer.is_due(at_end=True)
        writer.saved_at -= 29
        assert not writer.is_due(at_end=True)
        writer.saved_at -= 9
        assert writer.is_due(at_end=True) and writer.is_due() == within
        writer.write()
        assert not writer.is_due(at_end=True)


def test_best_is_the_state_at_the_end_of_its_epoch_and_written_with_last(tmp_path):
    now = {"epoch": 0}
    writer = RunWriter(tmp_path, lambda with_replay: now | {"replay": with_replay}, 0)
    for epoch, (is_best, is_save) in enumerate([(True, False), (True, True), (False, False)]):
        now["epoch"] = epoch
        writer.finish_epoch(epoch, SCORES, is_best, is_save)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=1.ckpt", "psnr_epoch=1.csv"]
    writer.write()
    writer.write()
    found = {name: torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("best", "epoch=1", "last")}
    assert {name: (state["epoch"], state["replay"]) for name, state in found.items()} == {
        "best": (1, False), "epoch=1": (1, False), "last": (2, True)}


def test_last_is_written_after_the_others(tmp_path, monkeypatch):
    order, write = [], checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda path, content: order.append(path.name) or write(path, content))
    writer = RunWriter(tmp_path, lambda with_replay: {}, 0)
    writer.log = type("Log", (), {"write": lambda self: order.append("tables")})()
    writer.finish_epoch(0, SCORES, is_best=True, is_save=False)
    writer.write(with_last=False)
    assert order == ["best.ckpt", "tables"] and not (tmp_path / "last.ckpt").exists()
    writer.write()
    assert order == ["best.ckpt", "tables", "tables", "last.ckpt"]
