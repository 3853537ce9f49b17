"""The comparison of runs, on run folders as training leaves them.

    python -m pytest tests/scripts/test_compare_runs.py
"""
from pathlib import Path

import pytest
from PIL import Image

import compare_runs
from modules.plots.comparison import Recording
from modules.training.metric_log import METRICS
from modules.training.output_folder import lock_folder
from modules.training.run_folder import RUN_FILES
from utils import run_main, write_json, write_table

PLOTS = ("compare_losses", "compare_schedules", "compare_quality", "compare_psnr_per_frame")


def write_run(folder: Path, epochs: int = 3, planned: int | None = 3, non_finite: tuple[int, ...] = (),
              recorded: tuple[int, ...] = (), **flags) -> Path:
    """A run folder. planned: None leaves out config.json. recorded: epochs with PSNR per frame."""
    folder.mkdir(parents=True)
    if planned is not None:
        flags = {"num_epoch": planned, "lr": 0.001, "train_vi_len": 16, "save_root": str(folder), **flags}
        write_json(folder / "config.json", {"command": f"Trainer.py --save_root {folder}", "flags": flags,
                                            "versions": {"python": "3.11"}, "commit": "abc", "before": []})
    rows = []
    for epoch in range(epochs):
        row = dict.fromkeys(METRICS, 0.5) | {"epoch": epoch, "skipped": 0, "val_loss": 0.01, "val_psnr": 20.0 + epoch}
        if epoch in non_finite:
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
    write_table(path, ("epoch", "frame", "psnr", "psnr_repeat_first"),
                [{"epoch": epoch, "frame": frame, "psnr": 30.0 - frame, "psnr_repeat_first": 20.0 - frame}
                 for frame in (1, 2, 3)])


@pytest.fixture
def compare(tmp_path, capsys, monkeypatch):
    """Call the program in an empty folder. Returns exit code, stdout and stderr."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*words) -> tuple[int, str, str]:
        code = run_main("compare_runs.py", lambda: compare_runs.main([str(word) for word in words]))
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def no_plots(monkeypatch):
    for name in PLOTS:
        monkeypatch.setattr(compare_runs.comparison, name, lambda *_: None)


def cells(output: str, name: str) -> list[str]:
    return next(line for line in output.splitlines() if line.startswith(name)).split()


def test_runs_in_any_state_are_listed_and_drawn(tmp_path, compare):
    done = write_run(tmp_path / "done", 3, 3, recorded=(0, 2))
    crashed = write_run(tmp_path / "crashed", 2, 70, non_finite=(0,))
    started = write_run(tmp_path / "started", 0, 9)
    bare = write_run(tmp_path / "bare", 5, None)
    running = write_run(tmp_path / "running", 1, 50)
    with lock_folder(running, RUN_FILES):
        code, output, errors = compare(done, crashed, started, bare, running)
    assert (code, errors) == (0, "")
    assert cells(output, "done") == ["done", "22.00", "dB", "2", "18.00", "dB", "3", "of", "3", "0.03333",
                                     "0.03333", "0.01", "done"]
    assert cells(output, "crashed") == ["crashed", "-", "-", "-", "2", "of", "70", "0.03333", "0.03333",
                                        "non-finite", "stopped"]
    assert cells(output, "started")[-4:] == ["stopped,", "no", "epoch", "yet"]
    assert cells(output, "bare") == ["bare", "24.00", "dB", "4", "-", "5", "of", "?", "-", "-", "0.01", "stopped"]
    names = [line.split()[0] for line in output.splitlines()[1:6]]
    assert names == ["bare", "done", "running", "crashed", "started"]  # by PSNR
    assert cells(output, "running")[-1] == "running"
    assert "bare: config.json" in output and "not recorded by crashed, bare, running" in output
    figures = sorted((tmp_path / "here" / "compare").iterdir())
    assert [path.name for path in figures] == ["compare_losses.png", "compare_psnr.png", "compare_psnr_per_frame.png",
                                               "compare_schedules.png"]
    for path in figures:
        with Image.open(path) as picture:
            assert picture.format == "PNG"


def test_a_chosen_epoch_without_record_is_drawn_at_the_nearest(tmp_path):
    runs = compare_runs.read_runs([write_run(tmp_path / "a", recorded=(0, 3, 6)),
                                   write_run(tmp_path / "b", recorded=(5,)), write_run(tmp_path / "none")])
    moments, notes = compare_runs.choose_moments(runs, [5, 5, 100])
    assert list(moments) == ["best epoch", "epoch 5", "epoch 100"]
    assert moments["epoch 5"] == {
        **{name: Recording(epoch, [29.0, 28.0, 27.0], [19.0, 18.0, 17.0]) for name, epoch in (("a", 6), ("b", 5))},
        "none": None}
    assert moments["best epoch"]["a"].epoch == 6 and moments["best epoch"]["none"] is None
    assert len(notes) == 5 and all("none" in note for note in notes[:2])
    assert [note[0] for note in notes[2:]] == ["a", "a", "b"] and all("is drawn" in note for note in notes[2:])


def test_without_records_there_is_no_figure_of_psnr_per_frame(tmp_path, compare, no_plots):
    old = tmp_path / "out" / "compare_psnr_per_frame.png"
    old.parent.mkdir()
    old.touch()
    code, output, _ = compare(write_run(tmp_path / "run"), "--epochs", 3, "--save_root", tmp_path / "out")
    assert code == 0 and "no run recorded it" in output and not old.exists()


def test_names_are_the_shortest_path_endings_that_differ(tmp_path, monkeypatch):
    folders = [write_run(tmp_path / name) for name in ("x/seed0", "y/seed0", "other")]
    assert [run.name for run in compare_runs.read_runs(folders)] == ["x/seed0", "y/seed0", "other"]
    assert [run.name for run in compare_runs.read_runs(folders[:1])] == ["seed0"]
    assert [run.name for run in compare_runs.read_runs(folders, ["1", "2", "3\n"])] == ["1", "2", "3?"]
    monkeypatch.chdir(folders[2])
    assert compare_runs.read_runs([Path(".")])[0].name == "other"


@pytest.mark.parametrize("flags", [{"kl_anneal_stop": 0.1}, {"decoder_variance": "optimal"}, {"kl_reduction": "mean"},
                                   {"val_vi_len": 60}, {"DR": "b"}], ids=str)
def test_incomparable_numbers_are_named(flags, tmp_path):
    given = {"decoder_variance": "fixed", "kl_reduction": "sum", "val_vi_len": 630, "DR": "a", "kl_anneal_stop": 1.0}
    runs = [write_run(tmp_path / "a", **given), write_run(tmp_path / "b", **given | flags),
            write_run(tmp_path / "c", planned=None)]
    note, = compare_runs.incomparable(compare_runs.read_runs(runs))
    assert f"--{next(iter(flags))}" in note
    assert not compare_runs.incomparable(compare_runs.read_runs([runs[0], runs[2]]))


def test_errors_per_frame_of_clips_of_any_length_are_comparable(tmp_path):
    runs = compare_runs.read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", train_vi_len=6)])
    assert [run.history[0]["train_mse"] for run in runs] == pytest.approx([0.5 / 15, 0.5 / 5])
    assert not compare_runs.incomparable(runs)


@pytest.mark.parametrize("checksum, count", [(1, 0), (2, 1)])
def test_the_same_dataset_in_two_places_is_comparable(checksum, count, tmp_path):
    runs = compare_runs.read_runs([write_run(tmp_path / "a", DR="a"), write_run(tmp_path / "b", DR="b")])
    for run, number in zip(runs, (1, checksum), strict=True):
        run.config["dataset"] = {"checksum": number, "val_frames": 630}
    assert len(compare_runs.incomparable(runs)) == count


@pytest.mark.filterwarnings("error")
def test_huge_numbers_are_compared(tmp_path, compare):
    folder = write_run(tmp_path / "huge", recorded=(2,))
    for name in ("metrics.csv", "psnr_best.csv"):
        lines = (folder / name).read_text().splitlines()
        count, kept = lines[0].count(",") + 1, 1 if name == "metrics.csv" else 2
        for index, number in enumerate(("1e308", "-1e308", "3e38"), start=1):
            cells = lines[index].split(",")
            lines[index] = ",".join([*cells[:kept], *[number] * (count - kept)])
        (folder / name).write_text("\n".join(lines))
    code, output, errors = compare(folder, write_run(tmp_path / "other", recorded=(2,)))
    assert (code, errors) == (0, "") and "non-finite" in output
    assert max(map(len, output.splitlines()[:3])) < 200
    assert len(list((tmp_path / "here" / "compare").iterdir())) == 4


def test_a_folder_that_is_not_a_run_is_skipped(tmp_path, compare, no_plots):
    write_run(tmp_path / "a")
    (tmp_path / "figures").mkdir()
    code, output, errors = compare(tmp_path / "a", tmp_path / "figures")
    assert code == 0 and "figures: skipped" in errors and "22.00 dB" in output


@pytest.mark.parametrize("words, complaint", [
    (["a", "missing"], "RUN missing"), (["empty"], "none of the folders"), (["a", "b/../a"], "given twice"),
    (["a", "b", "--names", "one"], "--names"), (["a", "b", "--names", "one", "one"], "--names"),
    (["a", "--epochs", "-1"], "--epochs"), (["a", "--save_root", "a/metrics.csv"], "--save_root"), ([], "RUN")])
def test_invalid_flags_are_refused(words, complaint, tmp_path, compare, monkeypatch):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    code, _, errors = compare(*words)
    assert code == 2 and errors.splitlines()[-1].startswith("compare_runs.py: error: ") and complaint in errors
