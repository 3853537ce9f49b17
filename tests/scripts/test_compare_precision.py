"""The comparison of precisions, with stand-ins for the two programs.

    python -m pytest tests/scripts/test_compare_precision.py
"""
import json
from pathlib import Path

import pytest

import compare_precision
from modules.config import tester_flags, trainer_flags
from utils import BadInput


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, str]]:
    """Program and precision of each call. The stand-ins parse the flags and write what the programs would."""
    called = []

    def call(program: str, *flags):
        parser = {"Trainer.py": trainer_flags, "Tester.py": tester_flags}[program].make_parser()
        args = parser.parse_args(list(map(str, flags)))
        called.append((program, args.precision))
        folder = Path(args.save_root)
        folder.mkdir(parents=True, exist_ok=True)
        if program == "Tester.py":
            course_psnr = 28.0 if "fp32_seed" in args.ckpt_path else 27.0
            (folder / "summary.json").write_text(json.dumps({"mean": {"course_psnr": course_psnr}}))

    monkeypatch.setattr(compare_precision, "call", call)
    return called


def compare(folder: Path, *flags: str) -> None:
    compare_precision.main(["--save_root", str(folder), "--DR", "data", "--truth", "truth", *flags])


def test_each_precision_is_trained_once_and_an_interrupted_comparison_continues(tmp_path, calls, capsys):
    compare(tmp_path, "--tolerance", "1", "--", "--recipe", "demo")
    assert calls == [("Trainer.py", "fp32"), ("Tester.py", "fp32"), ("Trainer.py", "bf16"), ("Tester.py", "bf16"),
                     ("Tester.py", "bf16")]
    table = capsys.readouterr().out
    assert "| fp32 | fp32 | 28.00 | 28.00 | +0.00 dB |" in table and "| bf16 | bf16 | 27.00 |" in table
    calls.clear()
    compare(tmp_path, "--tolerance", "1", "--", "--recipe", "demo")
    assert not calls and capsys.readouterr().out == table


def test_the_default_is_a_training_in_two_stages(tmp_path, calls):
    compare(tmp_path, "--tolerance", "1")
    assert [program for program, _ in calls].count("Trainer.py") == 2 * 2


def test_a_loss_beyond_the_tolerance_is_an_error(tmp_path, calls):
    with pytest.raises(BadInput, match="1.00 dB"):
        compare(tmp_path)


def test_a_dataset_without_truth_is_refused(tmp_path):
    with pytest.raises(BadInput, match="--truth"):
        compare_precision.main(["--save_root", str(tmp_path), "--DR", "data"])
