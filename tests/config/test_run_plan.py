"""How a call begins its run: new, resume, branch, finetune, overwrite; and the lock on the folder.

    python -m pytest tests/config/test_run_plan.py
"""
import pytest

from modules.config.run_plan import OpenedRun, Start, plan_run
from modules.config.trainer_flags import GivenFlags
from modules.training.output_folder import is_locked, lock_folder
from modules.training.run_folder import RUN_FILES
from utils import BadInput


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def run(folder):
    """A folder that holds a run, and a file of the user's."""
    (folder / "figures").mkdir(parents=True)
    for name in ("last.ckpt", "best.ckpt", "metrics.csv", "figures/loss.png", "notes.txt"):
        (folder / name).write_text("x")
    return folder


def plan(folder, **flags):
    return plan_run({"save_root": str(folder)} | flags)


def test_a_folder_without_a_run_begins_one_and_is_not_touched(folder, tmp_path):
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        assert plan(folder, **flags).start is Start.NEW
    other = tmp_path / "other.ckpt"
    assert plan(folder, ckpt_path=str(other)).start is Start.BRANCH
    assert plan(folder, ckpt_path=str(other), finetune=True).start is Start.FINETUNE
    assert plan(folder, ckpt_path=str(other), finetune=True, resume=True).start is Start.FINETUNE
    assert plan(folder, ckpt_path=str(other)).checkpoint == other
    assert plan(folder, ckpt_path=str(folder / "last.ckpt"), overwrite=True).start is Start.BRANCH  # no such file: said
    assert not folder.exists()


def test_resume_and_the_runs_own_last_checkpoint_continue_it(run):
    for flags in ({"resume": True}, {"ckpt_path": str(run / "last.ckpt")},
                  {"ckpt_path": str(run / ".." / run.name / "last.ckpt")},
                  {"ckpt_path": str(run / "best.ckpt"), "finetune": True, "resume": True}):
        resumed = plan(run, **flags)
        assert (resumed.start, resumed.checkpoint, resumed.replaced) == (Start.RESUME, run / "last.ckpt", ())
        assert resumed.touches_run


def test_overwrite_replaces_the_files_of_the_run_and_no_others(run, tmp_path):
    replaced = plan(run, overwrite=True)
    assert replaced.start is Start.NEW and replaced.touches_run
    assert {path.name for path in replaced.replaced} == {"last.ckpt", "best.ckpt", "metrics.csv", "loss.png"}
    assert plan(run, overwrite=True, ckpt_path=str(tmp_path / "other.ckpt")).start is Start.BRANCH


@pytest.mark.parametrize("flags, words", [
    ({}, "already holds a run"),
    ({"ckpt_path": "best.ckpt"}, "already holds a run"),  # older than the run's last epochs, which it would replace
    ({"ckpt_path": "last.ckpt", "finetune": True}, "already holds a run"),
    ({"ckpt_path": "last.ckpt", "overwrite": True}, "--overwrite"),
    ({"ckpt_path": "best.ckpt", "finetune": True, "overwrite": True}, "best.ckpt"),
    ({"resume": True, "overwrite": True}, "--resume and --overwrite"),
    ({"resume": True, "ckpt_path": "best.ckpt"}, "--resume and --ckpt_path"),
    ({"finetune": True}, "--ckpt_path")], ids=str)
def test_a_run_is_never_replaced_unasked_nor_with_the_weights_that_are_given(flags, words, run):
    if "ckpt_path" in flags:
        flags = flags | {"ckpt_path": str(run / flags["ckpt_path"])}
    with pytest.raises(BadInput, match=words):
        plan(run, **flags)


def test_resume_without_a_checkpoint_but_with_other_files_of_a_run_is_refused(run):
    (run / "last.ckpt").unlink()
    with pytest.raises(BadInput, match="no last.ckpt"):
        plan(run, resume=True)


# The lock

def opened(folder, **flags):
    return OpenedRun(GivenFlags({}, {"save_root": str(folder)} | flags))


def test_a_run_that_is_continued_is_locked_at_once_and_a_new_folder_when_it_is_claimed(folder, run, tmp_path):
    with opened(run, resume=True):
        assert is_locked(run)
    new = tmp_path / "new"
    with opened(new) as opening:
        assert not new.exists()
        opening.claim()
        assert is_locked(new)
    assert not is_locked(run) and not is_locked(new)


def test_claiming_deletes_what_is_replaced(run):
    with opened(run, overwrite=True) as opening:
        assert (run / "last.ckpt").exists()
        opening.claim()
        assert not (run / "last.ckpt").exists() and (run / "notes.txt").exists()


def test_a_run_in_use_is_refused_and_named(run):
    with lock_folder(run, RUN_FILES), pytest.raises(BadInput, match="in use"), opened(run, resume=True):
        pass


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_a_run_that_another_process_began_meanwhile_is_neither_replaced_nor_taken_over(flags, folder):
    with pytest.raises(BadInput, match="already holds a run|meanwhile"), opened(folder, **flags) as opening:
        folder.mkdir()
        (folder / "last.ckpt").write_text("another run's")
        opening.claim()
    assert (folder / "last.ckpt").read_text() == "another run's"
