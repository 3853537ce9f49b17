"""How a call begins its run: new, resume, branch, finetune, overwrite; and the lock on the folder.

    python -m pytest tests/config/test_run_plan.py
"""
import pytest

from conftest import contents
from modules.config.run_plan import OpenedRun, Start, plan_run
from modules.config.trainer_flags import GivenFlags
from modules.training.output_folder import is_locked, lock_folder
from modules.training.run_folder import MARKER, RUN_FILES, mark
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
    mark(folder)
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


@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "figures/loss.png", "epoch=3.ckpt", MARKER])
def test_files_that_are_only_named_like_a_runs_are_in_the_way(name, folder):
    """Somebody else's config.json or metrics.csv: without the mark of a run it is neither replaced nor deleted."""
    (folder / "figures").mkdir(parents=True)
    for path in (folder / name, folder / "figures" / "test_val.gif"):
        path.write_text("x")
    for flags in ({}, {"overwrite": True}, {"resume": True}, {"ckpt_path": "c.ckpt"}):
        with pytest.raises(BadInput, match=f"contains {name} but no .run"):
            plan(folder, **flags)
    (folder / name).unlink()
    assert plan(folder).start is Start.NEW  # a validation's figures are not


def test_a_run_that_was_copied_without_its_mark_is_resumed_and_marked_but_not_replaced(run):
    (run / MARKER).unlink()
    with pytest.raises(BadInput, match="contains best.ckpt but no .run.*--resume"):
        plan(run, overwrite=True)
    with opened(run, resume=True) as opening:
        assert opening.claim().start is Start.RESUME
    assert plan(run, overwrite=True).replaced


def test_a_process_that_died_after_it_claimed_the_folder_left_no_run(folder):
    with opened(folder) as opening:
        opening.claim()
    assert {".run", ".lock"} == set(contents(folder))
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        assert plan(folder, **flags) == plan(folder)


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


def test_the_old_run_is_deleted_only_once_the_new_one_has_a_checkpoint(run):
    before = contents(run)
    with opened(run, overwrite=True) as opening:
        replaced = opening.claim()
        assert contents(run).items() >= before.items()
        replaced.delete_replaced(0)
        replaced.delete_replaced(0)  # also after files have vanished
    assert contents(run).keys() == {"last.ckpt", "notes.txt", MARKER, ".lock"}


def test_a_resumed_run_deletes_what_an_old_run_has_left_for_later_epochs(run):
    """A process may have died between its first last.ckpt and the deletion of the run that it replaced."""
    for name in ("epoch=1.ckpt", "epoch=2.ckpt", "psnr_epoch=12.csv", "epoch=x.ckpt"):
        (run / name).write_text("old")
    with opened(run, resume=True) as opening:
        opening.claim().delete_replaced(2)
    assert {"epoch=1.ckpt", "epoch=x.ckpt", "last.ckpt"} <= contents(run).keys()
    assert not {"epoch=2.ckpt", "psnr_epoch=12.csv"} & contents(run).keys()


def test_a_folder_whose_name_tensorboard_cannot_write_to_is_refused(tmp_path):
    with pytest.raises(BadInput, match="--save_root.*utf-8"), opened(tmp_path / "r\udcffn"):
        pass
    assert not contents(tmp_path)


def test_a_run_in_use_is_refused_and_named(run):
    with lock_folder(run, RUN_FILES), pytest.raises(BadInput, match="in use"), opened(run, resume=True):
        pass


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_a_run_that_another_process_began_meanwhile_is_neither_replaced_nor_taken_over(flags, folder):
    with pytest.raises(BadInput, match="already holds a run|meanwhile"), opened(folder, **flags) as opening:
        folder.mkdir()
        mark(folder)
        (folder / "last.ckpt").write_text("another run's")
        opening.claim()
    assert (folder / "last.ckpt").read_text() == "another run's"
