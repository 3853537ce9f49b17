"""What Trainer and Tester share: exit codes, flags, device, generators, folders, tables, the log.

    python -m pytest tests/test_utils.py
"""
import json
import os

import pytest
import torch

import utils
from conftest import read_csv
from modules.config.parser import FlagParser, number
from modules.training import metric_log
from utils import BadInput

# Exit codes

def test_exit_codes(capsys):
    def raises(error):
        raise error

    assert utils.run_main("P.py", lambda: None) == 0
    assert capsys.readouterr().err == ""
    assert utils.run_main("P.py", lambda: raises(BadInput("what, where, mend"))) == 2
    assert capsys.readouterr().err == "P.py: error: what, where, mend\n"
    assert utils.run_main("P.py", lambda: raises(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "P.py: interrupted\n"
    with pytest.raises(ZeroDivisionError):  # a bug stays a bug, with its traceback
        utils.run_main("P.py", lambda: raises(ZeroDivisionError()))


def test_only_the_named_errors_become_bad_input():
    with pytest.raises(BadInput, match="the sentence"), utils.as_bad_input(ValueError):
        raise ValueError("the sentence")
    with pytest.raises(TypeError), utils.as_bad_input(ValueError):
        raise TypeError


# Flags

@pytest.fixture
def parser():
    parser = FlagParser(prog="P.py")
    parser.add_argument("--count", type=number(int, 1, 5), default=2)
    parser.add_argument("--share", type=number(float, 0, 1, above=True), default=1.0)
    parser.add_argument("--name")
    return parser


def test_flags_from_a_file_with_comments(parser, tmp_path):
    (tmp_path / "a.args").write_text("# a comment that isn't a flag\n--count 3 # three\n\n"
                                     "  --name 'two words'\n--share=0.5\n")
    args = parser.parse_args([f"@{tmp_path / 'a.args'}"])
    assert (args.count, args.share, args.name) == (3, 0.5, "two words")
    args = parser.parse_args([f"@{tmp_path / 'a.args'}", "--count", "4"])
    assert (args.count, args.share) == (4, 0.5)  # the later flag wins


@pytest.mark.parametrize("content", [b"--name 'no end", b"--name \xff\xfe"], ids=["open quotation", "no UTF-8"])
def test_a_flag_file_that_cannot_be_read_is_refused(content, parser, tmp_path):
    (tmp_path / "a.args").write_bytes(content)
    with pytest.raises(BadInput):
        parser.parse_args([f"@{tmp_path / 'a.args'}"])


def test_a_missing_flag_file_is_refused(parser, tmp_path):
    with pytest.raises(BadInput, match="gone.args"):
        parser.parse_args([f"@{tmp_path / 'gone.args'}"])


@pytest.mark.parametrize("flag, value, words", [
    ("--count", "0", "at least 1, at most 5"), ("--count", "6", "at least 1, at most 5"),
    ("--count", "-1", "at least 1"), ("--count", "2.0", "whole number"), ("--count", "two", "whole number"),
    ("--share", "0", "above 0, at most 1"), ("--share", "1.01", "above 0, at most 1"), ("--share", "-0.1", "above 0"),
    ("--share", "nan", "out of range"), ("--share", "inf", "out of range"), ("--share", "half", "not a number"),
    ("--cou", "3", "--cou"), ("--nothing", "3", "--nothing")])
def test_impossible_values_are_refused_with_flag_value_and_bounds(flag, value, words, parser):
    with pytest.raises(BadInput, match=words) as error:
        parser.parse_args([flag, value])
    assert flag in str(error.value) and value in str(error.value) and "\n" not in str(error.value)


def test_bounds_belong_to_the_range(parser):
    assert parser.parse_args(["--count", "1", "--share", "1"]).count == 1
    assert parser.parse_args(["--count", "5", "--share", "1e-9"]).share == 1e-9
    with pytest.raises(Exception, match="out of range"):
        number(float, 0)("inf")


# Device and randomness

def test_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert utils.pick_device(None).type == "cpu" == utils.pick_device("cpu").type
    with pytest.raises(BadInput, match="--device cuda: .*; use --device cpu"):
        utils.pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert utils.pick_device(None).type == "cuda" == utils.pick_device("cuda").type
    assert utils.pick_device("cpu").type == "cpu"


def test_generators_are_repeatable_and_independent():
    cpu = torch.device("cpu")
    draws = [{name: torch.rand(4, generator=generator) for name, generator in utils.make_generators(seed, cpu).items()}
             for seed in (0, 0, 1, 2)]
    assert set(draws[0]) == {"order", "teacher_forcing", "latent", "augmentation", "disturbance", "first",
                             "reference"}
    assert all(torch.equal(draws[0][name], draws[1][name]) for name in draws[0])
    different = [tuple(draw.tolist()) for i in (0, 2, 3) for draw in draws[i].values()]
    assert len(set(different)) == 21


# Files

def test_a_folder_that_cannot_be_written_is_refused_and_not_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadInput, match="--save_root .* cannot be written .*is no folder.*; choose another folder"):
            utils.check_writable(path)
    utils.check_writable(tmp_path / "new" / "below")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(BadInput, match="is write-protected"):
        utils.check_writable(tmp_path / "new")


def test_tables_keep_every_digit(tmp_path):
    rows = [{"a": 1 / 3, "b": None}, {"a": 1e-30, "b": 7}]
    utils.write_table(tmp_path / "t.csv", ("a", "b"), rows)
    assert (tmp_path / "t.csv").read_bytes() == b"a,b\n0.3333333333333333,\n1e-30,7\n"
    assert [float(row["a"]) for row in read_csv(tmp_path / "t.csv")] == [1 / 3, 1e-30]


# The log

def test_the_log_writes_its_rows_and_hides_events_of_a_process_that_died(tmp_path):
    first = dict.fromkeys(metric_log.METRICS, 0.5) | {"epoch": 0, "val_loss": None}
    log = metric_log.MetricLog(tmp_path, [], [])
    log.add(first, {"epoch": 0, "train_seconds": 1.0, "val_seconds": 2.0, "frames_per_second": 3.0})
    log.write()
    assert list(read_csv(tmp_path / "metrics.csv")[0]) == list(metric_log.METRICS)
    assert read_csv(tmp_path / "metrics.csv")[0]["val_loss"] == ""
    assert read_csv(tmp_path / "timing.csv") == [
        {"epoch": "0", "train_seconds": "1.0", "val_seconds": "2.0", "frames_per_second": "3.0"}]
    events = list(tmp_path.glob("events.out.tfevents.*"))
    assert len(events) == 1 and b"train/loss" in events[0].read_bytes()
    assert b"val/loss" not in events[0].read_bytes()


def test_events_that_the_disk_refuses_are_one_error_with_a_name(tmp_path, monkeypatch, capfd):
    log = metric_log.MetricLog(tmp_path, [], [])

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    row = dict.fromkeys(metric_log.METRICS, 0.5) | {"epoch": 0}
    with pytest.raises(OSError) as error:
        log.add(row, {"epoch": 0, "train_seconds": 1.0, "val_seconds": 2.0, "frames_per_second": 3.0})
        log.write()
    assert (error.value.errno, error.value.filename) == (28, str(tmp_path / "events.out.tfevents"))
    assert "Traceback" not in capfd.readouterr().err


def test_json_ends_with_a_line_end(tmp_path):
    utils.write_json(tmp_path / "a.json", {"é": [1, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"é": [1, None]} and text.endswith("}\n")


# Precision and compilation

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("features, expected", [
    ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True, "avx512_bf16": False}, "bf16"), ({"arm_bf16": True}, "bf16"),
    ({"avx512_bf16": False, "avx2": True}, "fp32"), ({}, "fp32"),
])
def test_auto_precision_is_what_the_processor_computes_in(features, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert utils.pick_precision("auto", CPU) == expected
    assert [utils.pick_precision(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]


def test_compilation_by_itself_only_on_a_gpu_and_for_long_work(monkeypatch):
    monkeypatch.setattr(utils.shutil, "which", lambda name: f"/bin/{name}")
    long = utils.COMPILE_PAYS_FROM
    assert utils.compile_pays("auto", GPU, long) and not utils.compile_pays("auto", GPU, long - 1)
    assert not utils.compile_pays("auto", CPU, long) and not utils.compile_pays("off", GPU, long)
    assert utils.compile_pays("on", CPU, 1)


def test_compilation_without_a_compiler_is_refused_or_left_out(monkeypatch):
    monkeypatch.setattr(utils.shutil, "which", lambda name: None)
    assert not utils.compile_pays("auto", GPU, utils.COMPILE_PAYS_FROM)
    with pytest.raises(BadInput, match="--compile on: .* compiler"):
        utils.compile_pays("on", CPU, 1)
