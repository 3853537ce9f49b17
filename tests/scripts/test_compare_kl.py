"""The comparison of the three KL annealing settings, with a stand-in for Python that records its calls.

    python -m pytest tests/scripts/test_compare_kl.py
"""
import os
import subprocess
from pathlib import Path

import pytest

from modules.config.trainer_flags import make_parser, parse_command_line

ROOT = Path(__file__).resolve().parents[2]
# Like Trainer.py it writes config.json when training starts, and exits with 2 for invalid flags and for divergence.
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" '' >> "$CALLS"
[[ $1 == *Trainer.py ]] || exit 0
while [ "$1" != --save_root ]; do shift; done
[[ $2 == *"${REFUSED:-nothing}" ]] && exit 2
mkdir -p "$2" && sleep 0.01 && touch "$2/config.json"
[[ $2 == *"${DIVERGED:-nothing}" ]] && exit 2
exit "${CODE:-0}"
"""


@pytest.fixture
def compare(tmp_path):
    """Call the script. Returns its result, and program and flags of each call of Python."""
    stand_in, calls = tmp_path / "bin" / "python", tmp_path / "calls"
    stand_in.parent.mkdir()
    stand_in.write_text(PYTHON)
    stand_in.chmod(0o755)

    def call(*flags: str, **variables: str) -> tuple[subprocess.CompletedProcess, list[tuple[str, list[str]]]]:
        calls.write_text("")
        paths = os.pathsep.join([str(stand_in.parent), os.environ["PATH"]])
        run = subprocess.run([ROOT / "scripts" / "compare_kl.sh", *flags], capture_output=True, text=True, cwd=tmp_path,
                             env=os.environ | variables | {"PATH": paths, "CALLS": str(calls)})
        recorded = [words.splitlines() for words in calls.read_text().split("\n\n") if words]
        return run, [(Path(words[0]).name, words[1:]) for words in recorded if words[0] != "-c"]

    return call


def test_three_settings_are_trained_alike_and_compared(compare):
    run, calls = compare("--DR", "data", "--save_root=kl", "--num_epoch", "3", "--monotonic_cycle", "5",
                         "--monotonic_ratio=2.5", "--cyclical_cycle", "2")
    assert run.returncode == 0 and [program for program, _ in calls] == ["Trainer.py"] * 3 + ["compare_runs.py"]
    settings = [make_parser().defaults() | parse_command_line(flags).all for _, flags in calls[:3]]
    varied = ("save_root", "kl_anneal_type", "kl_anneal_cycle", "kl_anneal_ratio")
    assert [tuple(setting[flag] for flag in varied) for setting in settings[:2]] == [
        ("kl/cyclical", "Cyclical", 2, 2), ("kl/monotonic", "Monotonic", 5, 2.5)]
    assert settings[2]["kl_anneal_type"] == "None" and settings[2]["save_root"] == "kl/none"
    alike = [{flag: value for flag, value in setting.items() if flag not in varied} for setting in settings]
    assert alike[0] == alike[1] == alike[2]
    assert (alike[0]["recipe"], alike[0]["num_epoch"], alike[0]["resume"]) == ("report", 3, True)
    assert (alike[0]["kl_anneal_start"], alike[0]["kl_anneal_stop"]) == (0, 1)
    assert calls[3][1] == ["kl/cyclical", "kl/monotonic", "kl/none", "--save_root", "kl/compare"]


def test_overwrite_replaces_resume(compare):
    _, calls = compare("--DR", "data", "--save_root", "kl", "--overwrite")
    assert all("--overwrite" in flags and "--resume" not in flags for _, flags in calls[:3])


def test_a_run_that_diverged_is_compared(compare):
    run, calls = compare("--save_root", "kl", DIVERGED="cyclical")
    assert run.returncode == 0 and len(calls) == 4 and "cyclical" in run.stderr


@pytest.mark.parametrize("variables, code, count", [
    ({"REFUSED": "cyclical"}, 2, 1), ({"REFUSED": "monotonic"}, 2, 2), ({"CODE": "130"}, 130, 1)], ids=str)
def test_invalid_flags_and_an_interruption_end_it(variables, code, count, compare):
    run, calls = compare("--save_root", "kl", **variables)
    assert run.returncode == code and len(calls) == count


@pytest.mark.parametrize("flags, words", [
    ([], "--save_root"), (["--save_root"], "--save_root needs a value"),
    (["--kl_anneal_cycle", "3"], "--cyclical_cycle"), (["--kl_anneal_stop", "2"], "--kl_anneal_stop"),
    (["--ckpt_path=x"], "--ckpt_path"), (["--recipe", "best"], "--recipe"),
    (["--resume", "--overwrite"], "--resume and --overwrite"), (["--monotonic_cycle", "0"], "--monotonic_cycle 0"),
    (["--cyclical_cycle", "1"], "--cyclical_cycle 1"), (["--cyclical_ratio", "x"], "--cyclical_ratio x"),
    (["--cyclical_ratio", "0.0"], "--cyclical_ratio 0.0")])
def test_flags_are_checked_before_the_first_run(flags, words, compare):
    save_root = [] if "--save_root" in flags or not flags else ["--save_root", "kl"]
    run, calls = compare(*save_root, *flags)
    assert run.returncode == 2 and words in run.stderr and run.stderr.count("error:") == 1 and not calls
