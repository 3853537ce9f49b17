"""The GPU check: its runner with a stand-in for the parts, and the parts in their reduced form on a CPU.

    python -m pytest tests/scripts/test_check_gpu.py
"""
import json
import logging
import os
import subprocess
import time
from pathlib import Path

import pytest
import torch

import check_gpu
import check_gpu_parts
import check_gpu_speed
import check_gpu_training
import Trainer
from check_gpu_report import NotRun, Report, compilation_errors
from modules.network.cvae import CVAE
from utils import BadInput, logger

SCRIPT = Path(check_gpu.__file__).with_suffix(".sh")
STAND_IN = """
import json, os, pathlib, subprocess, sys, time
name, result = sys.argv[1], pathlib.Path(sys.argv[2], sys.argv[1] + ".json")
def write(passed, message, **more):
    result.write_text(json.dumps({"passed": passed, "message": message, **more}))
if name == "machine":
    write(True, "A | B")
elif name == "tests":
    write(False, "")
    sys.exit("tests: error: not installed: torch; run this")
elif name == "strategies":
    raise ValueError("the reason")
elif name == "too_many":
    write(None, "no GPU")
elif name == "speed_eager":
    write(False, "", table=["| row |"])
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path(sys.argv[2], "child").write_text(str(child.pid))
    time.sleep(60)
"""


# The runner

@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    program = tmp_path / "parts.py"
    program.write_text(STAND_IN)
    monkeypatch.setattr(check_gpu, "PROGRAM", program)
    monkeypatch.setattr(check_gpu, "LIMIT", 2)
    return tmp_path / "out"


def result(out: Path, name: str) -> dict:
    return json.loads((out / f"{name}.json").read_text())


def test_a_failing_part_does_not_stop_the_others(stand_in, capsys):
    assert check_gpu.main([str(stand_in), "--parts", "tests", "strategies", "memory", "too_many", "machine"]) == 1
    found = {name: result(stand_in, name) for name in ("tests", "strategies", "memory", "too_many", "machine")}
    assert [part["passed"] for part in found.values()] == [False, False, False, None, True]
    assert [part["message"] for part in found.values()] == [
        "tests: error: not installed: torch; run this", "ValueError: the reason", "wrote no result", "no GPU", "A | B"]
    assert all(part["seconds"] >= 0 for part in found.values())
    assert "Traceback" in (stand_in / "strategies.log").read_text()
    assert capsys.readouterr().out.splitlines()[-1].endswith("failed: tests, strategies, memory")
    assert check_gpu.main([str(stand_in), "--parts", "machine", "too_many"]) == 0


def test_the_summary_covers_the_parts_of_several_calls(stand_in):
    check_gpu.main([str(stand_in), "--parts", "too_many", "tests"])
    assert "`machine` was not run" in (stand_in / "summary.md").read_text()
    check_gpu.main([str(stand_in), "--parts", "machine"])
    text = (stand_in / "summary.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert text.splitlines()[2] == "A / B"  # a bar would end the cell
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["machine", "tests", "too_many"]
    assert [row.split("|")[3].strip() for row in rows[2:]] == ["passed", "**failed**", "not run"]
    assert len({row.count("|") for row in rows}) == 1


def is_running(process: int) -> bool:
    try:
        # A child whose parent was killed may stay a zombie where nobody waits for it.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_part_that_takes_too_long_is_ended_with_its_children_and_keeps_its_rows(stand_in):
    began = time.monotonic()
    assert check_gpu.main([str(stand_in), "--parts", "speed_eager", "machine"]) == 1
    assert time.monotonic() - began < 60
    found = result(stand_in, "speed_eager")
    assert found["passed"] is False and found["message"] == "stopped after 2 s, see speed_eager.log"
    assert "## speed_eager\n\n| row |" in (stand_in / "summary.md").read_text()
    assert not is_running(int((stand_in / "child").read_text()))
    assert result(stand_in, "machine")["passed"]


def test_an_unusable_folder_is_a_sentence(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert check_gpu.main([str(tmp_path / "file"), "--parts", "machine"]) == 2
    assert capsys.readouterr().err.startswith("check_gpu.sh: error: ")


def test_every_part_has_a_function():
    assert check_gpu.PARTS.keys() == check_gpu_parts.FUNCTIONS.keys()


def test_the_command_runs_from_any_folder(tmp_path):
    subprocess.run([SCRIPT, "out", "--device", "cpu", "--parts", "machine"], cwd=tmp_path, check=True,
                   stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    found = result(tmp_path / "out", "machine")
    assert found["passed"] and torch.__version__ in found["message"] and found["device"] == "cpu"
    assert found["message"] in (tmp_path / "out" / "summary.md").read_text()


# The parts

@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("check_gpu")


@pytest.fixture
def report(out, monkeypatch) -> Report:
    monkeypatch.setattr(Trainer, "Trainer", Trainer.Trainer)  # so that what a part replaces is restored
    monkeypatch.setattr(CVAE, "compile_steps", CVAE.compile_steps)
    return Report("part", out, torch.device("cpu"), small=True)


def test_a_strategy_that_fails_is_named_after_all_were_tried(report, monkeypatch):
    monkeypatch.setattr(check_gpu_training.recipes, "names", lambda: ["best"])
    cases = {name: check_gpu_training.STRATEGIES[name] for name in ("blended teacher forcing", "crops")}
    monkeypatch.setattr(check_gpu_training, "STRATEGIES", cases)
    assert check_gpu_training.strategies(report) == "3 x 3 steps"
    assert report.figures.keys() == {"blended teacher forcing", "crops", "recipe best"}

    train_steps = check_gpu_training.train_steps

    def fail_once(report: Report, flags: list[str]) -> float:
        if "blend" in flags:
            raise RuntimeError("called a synchronizing CUDA operation")
        return train_steps(report, flags)

    monkeypatch.setattr(check_gpu_training, "train_steps", fail_once)
    report.figures.clear()
    with pytest.raises(BadInput, match="^blended teacher forcing: called a synchronizing CUDA operation$"):
        check_gpu_training.strategies(report)
    assert report.figures.keys() == {"crops", "recipe best"}


def test_strategies_have_flags_that_a_run_accepts(report):
    for flags in check_gpu_training.STRATEGIES.values():
        check_gpu_training.merge_flags(check_gpu_training.parse_command_line([*flags, "--DR", "-", "--save_root", "-"]))


def test_the_speed_of_a_step_is_a_row(report, monkeypatch):
    part, arithmetic = check_gpu_speed.eager, "eager fp32"
    monkeypatch.setattr(check_gpu_speed, "SMALL_SHAPES", [(2, 2)])
    assert part(report) == "1 of 1 rows"
    row, = report.figures["rows"]
    assert row["steps_per_epoch"] == -(-(check_gpu_speed.EPOCH - 1) // 2)  # a clip from every frame but the last
    assert row["epoch_seconds"] == pytest.approx(row["steps_per_epoch"] * row["ms"] / 1e3)
    assert row["tflops"] == pytest.approx(row["gflop_per_step"] / row["ms"])
    assert arithmetic in report.table[2] and len({line.count("|") for line in report.table}) == 1


def test_a_shape_that_does_not_fit_into_the_memory_is_a_row(report, monkeypatch):
    def measure(report, clips, *others):
        if clips == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"ms": 1.0, "tflops": 1.0, "frames_per_second": 1.0, "memory_gib": None, "epoch_seconds": 1.0}

    monkeypatch.setattr(check_gpu_speed, "measure", measure)
    monkeypatch.setattr(check_gpu_speed, "SMALL_SHAPES", [(2, 2), (3, 2)])
    assert check_gpu_speed.eager(report) == "1 of 2 rows"
    assert "out of memory" in report.table[2] and len({line.count("|") for line in report.table}) == 1


def test_compiled_training_counts_compilations(report, no_figures):
    assert check_gpu_training.compiled_and_eager(report).endswith("(+0.00), mean of 1 seed(s)")
    (first, *later), = report.figures["graphs"]
    assert first > 0 and later == [first]


@pytest.mark.parametrize("graphs, scores", [((2, 3), (30.0, 30.0)), ((0, 0), (30.0, 30.0)), ((2, 2), (30.0, 29.6))])
def test_a_recompilation_no_compilation_or_a_loss_of_quality_fails(report, monkeypatch, graphs, scores):
    def train(report: Report, name: str, *flags: str) -> list[dict]:
        check_gpu_training.CountingTrainer.graphs += graphs
        return [{"val_psnr": str(scores[name == "compiled"])}]

    monkeypatch.setattr(check_gpu_training, "train", train)
    with pytest.raises(BadInput, match="wanted"):
        check_gpu_training.compiled_and_eager(report)


def test_a_group_of_one_process_trains_as_a_process_without(report, no_figures, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # restored afterwards
    assert check_gpu_training.one_process(report).startswith("gloo: ")
    assert not torch.distributed.is_initialized()


def test_a_fall_back_to_eager_mode_is_noticed():
    with compilation_errors() as errors:
        logger.warning("an other warning")
        logger.warning("torch.compile failed (%s)", "reason")
    logger.log(logging.WARNING, "torch.compile failed later")
    assert errors == ["torch.compile failed (reason)"]


def test_parts_that_need_a_gpu_say_so(report):
    for part in (check_gpu_parts.devices, check_gpu_parts.too_many):
        with pytest.raises(NotRun, match="no GPU"):
            part(report)


def test_one_sentence_is_required():
    line = "Trainer.py: error: (rank 1) this machine has 1 GPU(s); use fewer"
    assert check_gpu_parts.one_sentence(f"noise\n{line}\nTraceback of torchrun", "has 1 GPU") == line
    for output in ("noise", line.replace("1 GPU", "2 GPU"), f'File "/a/Trainer.py", line 3, in run\n{line}'):
        with pytest.raises(BadInput, match="one sentence"):
            check_gpu_parts.one_sentence(output, "has 1 GPU")


def test_scores_must_be_close(report):
    assert "(-0.040)" in check_gpu_parts.compare(report, "CPU", "GPU", 30.0, 29.96, 0.05)
    for other in (29.9, float("nan")):
        with pytest.raises(BadInput, match="0.05 dB apart"):
            check_gpu_parts.compare(report, "CPU", "GPU", 30.0, other, 0.05)


def test_a_program_that_fails_is_a_sentence_with_its_last_line(report, capfd):
    assert report.run("-c", "print('all'); print('well')") == "all\nwell\n"
    with pytest.raises(BadInput, match="ended with code 3 instead of 0: the reason"):
        report.run("-c", "import sys; print('the reason'); sys.exit(3)")
    assert "all\nwell\n" in capfd.readouterr().out
