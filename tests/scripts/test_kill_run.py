"""The kill test: what it finds in a run folder and in the comparison of two.

    python -m pytest tests/scripts/test_kill_run.py
"""
import shutil

import pytest
import torch

import kill_run
import Trainer
from conftest import TINY, leave_out_figures
from modules.training import checkpoint


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("kill_run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        leave_out_figures(patch)
        Trainer.main([*TINY, "--DR", str(data), "--save_root", str(folder), "--num_epoch", "2"])
    return folder


def test_the_state_of_a_run_is_found(run):
    assert kill_run.inspect(run) == kill_run.Found(epoch=2, clips=0, rows=2, unfinished=0)


def test_damage_is_found(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    metrics = (copy / "metrics.csv").read_text()
    for content in (metrics[:-5], metrics.splitlines()[0] + "\n", metrics + metrics.splitlines()[-1] + "\n"):
        (copy / "metrics.csv").write_text(content)
        with pytest.raises((kill_run.Lost, ValueError)):
            kill_run.inspect(copy)
            kill_run.compare(run, copy)
    (copy / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:-100])
    with pytest.raises(kill_run.Lost, match="last.ckpt"):
        kill_run.inspect(copy)


@pytest.mark.parametrize("part", ["weights", "optimizer", "generators"])
def test_differences_between_runs_are_found(run, tmp_path, part):
    copy = shutil.copytree(run, tmp_path / "copy")
    kill_run.compare(run, copy)
    state = torch.load(copy / "last.ckpt", weights_only=True)
    values = state[part]
    while not isinstance(values, torch.Tensor):
        parent, key = values, next(iter(values))
        values = values[key]
    parent[key] = values + 1
    checkpoint.save(copy / "last.ckpt", state)
    with pytest.raises(kill_run.Lost, match=part):
        kill_run.compare(run, copy)


def test_nested_values_are_compared():
    values = {"a": [torch.zeros(2), 1.0], "b": None}
    assert kill_run.same(values, {"b": None, "a": [torch.zeros(2), 1.0]})
    for other in ({"a": [torch.ones(2), 1.0], "b": None}, {"a": [torch.zeros(2)], "b": None}, {"a": values["a"]}, None,
                  {"a": [None, 1.0], "b": None}):
        assert not kill_run.same(values, other) and not kill_run.same(other, values)
