"""The comparison of precisions, with the two programs called in this process.

    python -m pytest tests/test_compare_precision.py
"""
from pathlib import Path

import pytest

import compare_precision
from conftest import NETWORK, PROGRAMS, TINY
from utils import BadInput


@pytest.fixture
def calls(monkeypatch, no_figures) -> list[tuple[str, ...]]:
    """The programs' flags, call by call."""
    called = []

    def call(program: str, *flags):
        called.append((program, *map(str, flags)))
        PROGRAMS[program]([str(flag) for flag in flags if flag != "--no-cache"] + ["--no-cache"])

    monkeypatch.setattr(compare_precision, "call", call)
    return called


def compare(data: Path, folder: Path, *flags: str) -> None:
    compare_precision.main(["--save_root", str(folder), "--DR", str(data), "--truth", str(data / "truth"), *flags, "--",
                            *TINY[:TINY.index("--precision")], "--num_epoch", "1"])


def test_each_precision_is_trained_once_and_a_stopped_comparison_goes_on(data, tmp_path, calls, capsys):
    assert NETWORK == TINY[:len(NETWORK)]
    compare(data, tmp_path / "out", "--tolerance", "100")
    trained = [words[words.index("--precision") + 1] for words in calls if words[0] == "Trainer.py"]
    rolled = [words[words.index("--precision") + 1] for words in calls if words[0] == "Tester.py"]
    assert trained == ["fp32", "bf16"] and rolled == ["fp32", "bf16", "bf16"]
    table = capsys.readouterr().out
    assert "| fp32 | fp32 |" in table and "| bf16 | bf16 |" in table
    calls.clear()
    compare(data, tmp_path / "out", "--tolerance", "100")
    assert not calls and capsys.readouterr().out == table[table.index("\n| trained in"):]


def test_a_loss_beyond_the_tolerance_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_precision, "train", lambda *_: None)
    monkeypatch.setattr(compare_precision, "score", lambda result, *_: 27.0 if "bf16_seed" in result.name else 28.0)
    with pytest.raises(BadInput, match="1.00 dB below float32"):
        compare(tmp_path, tmp_path / "out")
