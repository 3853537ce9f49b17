"""The comparison of runs, whose folders are written here as a training leaves them.

    pytest tests/test_compare_runs.py
"""
from pathlib import Path

import pytest
from PIL import Image

import compare_runs
from modules.training.metric_log import METRICS
from modules.training.run_folder import hold_run_folder, is_held
from utils import BadInput, run_main, write_json, write_table


def write_run(folder: Path, epochs: int = 3, planned: int | None = 3, lost: tuple[int, ...] = (),
              recorded: tuple[int, ...] = (), **flags) -> Path:
    """A run folder: ``planned`` None leaves config.json out; ``recorded`` are the epochs with PSNR per frame."""
    folder.mkdir(parents=True)
    if planned is not None:
        flags = {"num_epoch": planned, "lr": 0.001, "train_vi_len": 16, "save_root": str(folder), **flags}
        write_json(folder / "config.json", {"command": f"Trainer.py --save_root {folder}", "flags": flags,
                                            "versions": {"python": "3.11"}, "commit": "abc", "before": []})
    rows = []
    for epoch in range(epochs):
        row = dict.fromkeys(METRICS, 0.5) | {"epoch": epoch, "skipped": 0, "val_loss": 0.01, "val_psnr": 20.0 + epoch}
        if epoch in lost:
            row |= {"train_loss": float("nan"), "val_loss": float("inf"), "val_psnr": float("nan")}
        rows.append(row if epoch % 2 == 0 else row | {"val_loss": None, "val_psnr": None})
    if epochs:
        write_table(folder / "metrics.csv", METRICS, rows)
    for epoch in recorded:
        write_psnr(folder / f"psnr_epoch={epoch}.csv", epoch)
    if recorded:
        write_psnr(folder / "psnr_best.csv", recorded[-1])
    return folder


def write_psnr(path: Path, epoch: int) -> None:
    write_table(path, ("epoch", "frame", "psnr"),
                [{"epoch": epoch, "frame": frame, "psnr": 30.0 - frame} for frame in (1, 2, 3)])


@pytest.fixture
def compare(tmp_path, capsys, monkeypatch):
    """Call the program in an empty folder; returns exit code, output and what stands on stderr."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*words) -> tuple[int, str, str]:
        code = run_main("compare_runs.py", lambda: compare_runs.main([str(word) for word in words]))
        return code, *capsys.readouterr()

    return call


def cells(output: str, name: str) -> list[str]:
    return next(line for line in output.splitlines() if line.startswith(name)).split()


def test_runs_of_any_state_are_listed_and_drawn(tmp_path, compare):
    done = write_run(tmp_path / "done", 3, 3, recorded=(0, 2))
    crashed = write_run(tmp_path / "crashed", 2, 70, lost=(0,))
    begun = write_run(tmp_path / "begun", 0, 9)
    bare = write_run(tmp_path / "bare", 5, None)
    going = write_run(tmp_path / "going", 1, 50)
    with hold_run_folder(going):
        code, output, errors = compare(done, crashed, begun, bare, going)
    assert (code, errors) == (0, "")
    assert cells(output, "done") == ["done", "22.00", "dB", "2", "3", "of", "3", "0.5", "0.01", "done"]
    assert cells(output, "crashed") == ["crashed", "-", "-", "2", "of", "70", "0.5", "inf", "stopped"]
    assert cells(output, "begun")[-4:] == ["stopped,", "no", "epoch", "yet"]
    assert cells(output, "bare") == ["bare", "24.00", "dB", "4", "5", "of", "?", "0.5", "0.01", "stopped"]
    assert cells(output, "going")[-1] == "running"
    assert "bare: config.json cannot be read" in output and "not recorded by crashed, bare, going" in output
    pictures = sorted((tmp_path / "here" / "compare").iterdir())
    assert [path.name for path in pictures] == ["compare_losses.png", "compare_psnr.png", "compare_psnr_per_frame.png",
                                                "compare_schedules.png"]
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.format == "PNG" and picture.width > 900


def test_a_killed_process_holds_no_run(tmp_path):
    folder = write_run(tmp_path / "run")
    assert not is_held(folder)
    (folder / ".owner.json").write_text("{}")  # what such a process leaves
    assert not is_held(folder)
    with hold_run_folder(folder):
        assert is_held(folder)
    assert not is_held(folder) and not (folder / ".owner.json").exists()


def test_a_chosen_epoch_that_a_run_lacks_is_drawn_at_the_nearest(tmp_path):
    runs = compare_runs.read_runs([write_run(tmp_path / "a", recorded=(0, 3, 6)),
                                   write_run(tmp_path / "b", recorded=(5,)), write_run(tmp_path / "old")])
    moments, notes = compare_runs.choose_moments(runs, [5, 5, 100])
    assert list(moments) == ["best epoch", "epoch 5", "epoch 100"]
    assert moments["epoch 5"] == {"a": (6, [29.0, 28.0, 27.0]), "b": (5, [29.0, 28.0, 27.0]), "old": None}
    assert moments["best epoch"]["a"][0] == 6 and moments["best epoch"]["old"] is None
    assert notes == ["PSNR per frame at the best epoch was not recorded by old",
                     "PSNR per frame at chosen epochs was not recorded by old",
                     "a: no PSNR per frame of epoch 5, epoch 6 is drawn; recorded are 0, 3, 6",
                     "a: no PSNR per frame of epoch 100, epoch 6 is drawn; recorded are 0, 3, 6",
                     "b: no PSNR per frame of epoch 100, epoch 5 is drawn; recorded are 5"]


def test_runs_that_recorded_no_psnr_per_frame_leave_the_picture_out(tmp_path, compare, monkeypatch):
    for name in ("compare_losses", "compare_schedules", "compare_quality"):
        monkeypatch.setattr(compare_runs.comparison, name, lambda *_: None)
    code, output, _ = compare(write_run(tmp_path / "old"), "--epochs", 3, "--save_root", tmp_path / "out")
    assert code == 0 and "no run has recorded it" in output
    assert not (tmp_path / "out" / "compare_psnr_per_frame.png").exists()


def test_names_are_the_shortest_ends_that_differ(tmp_path, monkeypatch):
    folders = [write_run(tmp_path / name) for name in ("x/seed0", "y/seed0", "other")]
    assert [run.name for run in compare_runs.read_runs(folders)] == ["x/seed0", "y/seed0", "other"]
    assert [run.name for run in compare_runs.read_runs(folders[:1])] == ["seed0"]
    assert [run.name for run in compare_runs.read_runs(folders, ["1", "2", "3\n"])] == ["1", "2", "3?"]
    monkeypatch.chdir(folders[2])
    assert compare_runs.read_run(Path("."), "here").history and compare_runs.read_runs([Path(".")])[0].name == "other"


def test_numbers_that_mean_something_else_are_named(tmp_path):
    runs = compare_runs.read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", train_vi_len=8),
                                   write_run(tmp_path / "c", planned=None)])
    note, = compare_runs.what_does_not_compare(runs)
    assert "--train_vi_len" in note and "training loss" in note


def test_a_run_from_before_a_flag_compares_as_what_it_was(tmp_path):
    old, fixed, optimal = compare_runs.read_runs([
        write_run(tmp_path / "old"), write_run(tmp_path / "fixed", decoder_variance="fixed"),
        write_run(tmp_path / "optimal", decoder_variance="optimal")])
    assert not compare_runs.what_does_not_compare([old, fixed])
    for run in (old, fixed):
        note, = compare_runs.what_does_not_compare([run, optimal])
        assert "--decoder_variance" in note and "training loss" in note


def test_what_is_no_run_is_passed_over_with_a_line(tmp_path, compare):
    write_run(tmp_path / "a")
    (tmp_path / "pictures").mkdir()
    code, out, errors = compare(str(tmp_path / "a"), str(tmp_path / "pictures"), "--save_root", str(tmp_path / "out"))
    assert code == 0 and "pictures holds neither config.json nor metrics.csv" in errors and "22.00 dB" in out


@pytest.mark.parametrize("words, complaint", [
    (["a", "missing"], "there is no such folder"),
    (["empty"], "none of the folders is a run"),
    (["a", "b/../a"], "given twice"),
    (["a", "b", "--names", "one"], "1 names for 2 runs"),
    (["a", "b", "--names", "one", "one"], "two names are equal"),
    (["a", "--epochs", "-1"], "out of range"),
    (["a", "--save_root", "a/metrics.csv"], "is no folder"),
    ([], "the following arguments are required"),
])
def test_bad_input_is_a_sentence(words, complaint, tmp_path, compare, monkeypatch):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    code, _, errors = compare(*words)
    assert code == 2 and "Traceback" not in errors
    errors = errors.splitlines(keepends=True)[-1]
    assert errors.startswith("compare_runs.py: error: ") and complaint in errors


@pytest.mark.parametrize("name, content, complaint", [
    ("metrics.csv", "epoch,train_loss\n0,1\n1,abc\n", "line 3, column train_loss: 'abc' is no number"),
    ("metrics.csv", "epoch,train_loss\n0,1\n1", "line 3 has more or fewer cells"),
    ("metrics.csv", "epoch,train_loss\n0,1\n0,1\n", "line 3 has epoch 0 after epoch 0"),
    ("metrics.csv", "epoch,train_loss\nnan,1\n", "line 2, column epoch: nan is no whole number"),
    ("metrics.csv", "epoch,train_loss\n,1\n", "line 2 lacks a number"),
    ("metrics.csv", "a,b\n0,1\n", "lacks the column epoch"),
    ("metrics.csv", b"epoch\n\xff\xfe\n", "is no CSV file"),
    ("psnr_best.csv", "epoch,frame,psnr\n0,1,20\n0,3,20\n", "line 3 is not frame 2"),
    ("psnr_epoch=4.csv", "epoch,frame\n0,1\n", "lacks the column psnr"),
])
def test_a_damaged_table_is_refused_with_file_and_line(name, content, complaint, tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=complaint) as caught:
        compare_runs.read_run(folder, "run")
    assert str(folder / name) in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "null", "3", '{"flags": 3, "before": 7}', "[" * 10**5])
def test_a_damaged_config_costs_the_settings_only(content, tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "config.json").write_text(content)
    run = compare_runs.read_run(folder, "run")
    assert len(run.history) == 3 and run.planned is None and run.state == "stopped"
    assert "config.json" in run.notes[0]


def test_empty_tables_are_runs_without_an_epoch(tmp_path):
    folder = write_run(tmp_path / "run", epochs=0)
    for content in ("", ",".join(METRICS) + "\n"):
        (folder / "metrics.csv").write_text(content)
        assert compare_runs.read_run(folder, "run").state == "stopped, no epoch yet"
