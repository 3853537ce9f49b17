"""The comparison of the three KL annealing settings, as a user calls it.

    python -m pytest tests/test_compare_kl.py
"""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TINY, read_csv

ROOT = Path(__file__).resolve().parents[2]


def compare(*flags) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run([ROOT / "scripts" / "compare_kl.sh", *map(str, flags)], capture_output=True, text=True,
                          timeout=200, env=os.environ | {"PATH": paths, "OMP_NUM_THREADS": "1"})


def test_three_settings_are_trained_alike_and_drawn(data, tmp_path):
    flags = [*TINY, "--DR", data, f"--save_root={tmp_path / 'kl'}", "--num_epoch", 3, "--per_save", 9,
             "--monotonic_cycle", 5, "--monotonic_ratio=2", "--cyclical_cycle", 2, "--cyclical_ratio", 1]
    first = compare(*flags)
    assert first.returncode == 0, first.stderr
    configs = {name: json.loads((tmp_path / "kl" / name / "config.json").read_text())["flags"]
               for name in ("cyclical", "monotonic", "none")}
    varied = ("save_root", "kl_anneal_type", "kl_anneal_cycle", "kl_anneal_ratio")
    alike = [{flag: value for flag, value in config.items() if flag not in varied} for config in configs.values()]
    assert alike[0] == alike[1] == alike[2] and alike[0]["tfr"] == 0.8  # the report's setting
    betas = {name: [float(row["beta"]) for row in read_csv(tmp_path / "kl" / name / "metrics.csv")] for name in configs}
    assert betas == {"cyclical": [0, 0.5, 0], "monotonic": [0, pytest.approx(0.4), 1], "none": [1, 1, 1]}
    assert len(list((tmp_path / "kl" / "compare").glob("compare_*.png"))) == 4


@pytest.mark.parametrize("flags, words", [
    ([], "--save_root is missing"), (["--save_root"], "--save_root needs a value"),
    (["--save_root", "r", "--kl_anneal_cycle", "3"], "--kl_anneal_cycle: .*--cyclical_cycle"),
    (["--save_root", "r", "--ckpt_path=x"], "start anew"),
    (["--save_root", "r", "--kl_anneal_stop", "2"], "from 0 to 1"),
    (["--save_root", "r", "--resume", "--overwrite"], "--resume and --overwrite"),
    (["--save_root", "r", "--monotonic_cycle", "0"], "--monotonic_cycle 0"),
    (["--save_root", "r", "--cyclical_ratio", "x"], "--cyclical_ratio x"),
    (["--save_root", "r", "--DR", "/gone"], "/gone")])
def test_impossible_flags_are_refused(flags, words, tmp_path):
    flags = [str(tmp_path / "r") if flag == "r" else flag for flag in flags]
    run = compare(*flags)
    assert run.returncode == 2 and re.search(words, run.stderr) and "Traceback" not in run.stderr
    assert run.stderr.count("error:") == 1  # not once for each setting
