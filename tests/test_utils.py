"""What Trainer and Tester share: exit codes, flags, device, generators, files that are replaced whole, checkpoints.

    python -m pytest tests/test_utils.py
"""
import io
import json
import os
import random

import pytest
import torch
from conftest import contents, read_csv

import utils
from modules.cvae import CVAE
from utils import BadInput

NETWORK = {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8, "output": "sigmoid"}


def state_of(model: torch.nn.Module) -> dict:
    return {"model": model.state_dict(), "network": NETWORK, "frame_size": [8, 16], "flags": {}}


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
    parser = utils.FlagParser(prog="P.py")
    parser.add_argument("--count", type=utils.number(int, 1, 5), default=2)
    parser.add_argument("--share", type=utils.number(float, 0, 1, above=True), default=1.0)
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
        utils.number(float, 0)("inf")


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
    assert set(draws[0]) == {"order", "teacher_forcing", "latent"}
    assert all(torch.equal(draws[0][name], draws[1][name]) for name in draws[0])
    different = [tuple(draw.tolist()) for i in (0, 2, 3) for draw in draws[i].values()]
    assert len(set(different)) == 9


# Files

def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), utils.replacing(path, "w") as file:
        file.write("half")
        raise ZeroDivisionError
    assert contents(tmp_path) == {"file": b"old"}
    with utils.replacing(path, "w") as file:
        file.write("new")
        assert path.read_text() == "old"
    assert contents(tmp_path) == {"file": b"new"}


def test_a_full_disk_is_bad_input_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    path.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="last.ckpt cannot be written .No space left on device.; free some space"):
        utils.save_checkpoint(path, {"model": {}})
    assert contents(tmp_path) == {"last.ckpt": b"old"}


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


# Checkpoints

def test_a_checkpoint_reads_back(tmp_path):
    model, other = CVAE(**NETWORK), CVAE(**NETWORK)
    utils.save_checkpoint(tmp_path / "a.ckpt", state_of(model))
    state = utils.load_checkpoint(tmp_path / "a.ckpt")
    utils.load_weights(other, state, tmp_path / "a.ckpt")
    assert state["network"] == NETWORK and state["format"] == utils.CHECKPOINT_FORMAT
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])


def test_random_bytes_are_no_checkpoint(tmp_path):
    """Bytes that happen to look like the start of a pickle make its reader fail in many ways."""
    dice, path = random.Random(0), tmp_path / "a.ckpt"
    for index in range(300):
        path.write_bytes((b"\x80\x02" if index % 2 else b"") + dice.randbytes(dice.choice([0, 1, 5, 50, 500])))
        with pytest.raises(BadInput, match="a.ckpt: this"):
            utils.load_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_a_truncated_checkpoint_is_refused(zipped, tmp_path):
    buffer, path = io.BytesIO(), tmp_path / "a.ckpt"
    state = {"format": utils.CHECKPOINT_FORMAT, "model": {"a": torch.zeros(50)}, "network": NETWORK,
             "frame_size": [8, 16], "flags": {}}
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    whole = buffer.getvalue()
    path.write_bytes(whole)
    assert utils.load_checkpoint(path)["network"] == NETWORK
    for length in range(0, len(whole) - 1, 11):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match="a.ckpt: this"):
            utils.load_checkpoint(path)


@pytest.mark.parametrize("content", [
    {"state_dict": {}, "optimizer": {}}, [1, 2], torch.zeros(3), {"model": {"a": torch.zeros(1)}},
    {"format": "1", "model": {}, "network": NETWORK, "frame_size": [8, 16], "flags": {}},
    {"format": 1, "model": [], "network": NETWORK, "frame_size": [8, 16], "flags": {}}], ids=str)
def test_a_file_of_something_else_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(BadInput, match="no checkpoint of Trainer.py; give one of its"):
        utils.load_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("change", [{"format": 99}, {"network": {"F_dim": 8}}, {"network": {**NETWORK, "new": 1}}],
                         ids=str)
def test_a_checkpoint_of_another_version_is_refused(change, tmp_path):
    torch.save({"format": utils.CHECKPOINT_FORMAT, **state_of(CVAE(**NETWORK)), **change}, tmp_path / "a.ckpt")
    with pytest.raises(BadInput, match="another version"):
        utils.load_checkpoint(tmp_path / "a.ckpt")


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"format": utils.CHECKPOINT_FORMAT, **state_of(CVAE(**NETWORK)), "flags": Hostile()},
               tmp_path / "a.ckpt")
    with pytest.raises(BadInput, match="broken or no checkpoint"):
        utils.load_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert (tmp_path / "executed").exists()  # the file is hostile indeed


def test_weights_that_do_not_fit_are_refused_and_none_is_taken(tmp_path):
    model = CVAE(**NETWORK)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    given = CVAE(**NETWORK).state_dict()
    name, weight = next((name, weight) for name, weight in given.items() if weight.dim() == 4)
    for change in ({name: weight[:, :, :1]}, {name: weight.double()}, {name: None}, {"extra": weight}):
        with pytest.raises(BadInput, match="another network .* does not fit") as error:
            utils.load_weights(model, {"model": {**given, **change}}, tmp_path / "a.ckpt")
        assert next(iter(change)) in str(error.value)
    with pytest.raises(BadInput, match="another network"):
        utils.load_weights(model, {"model": {key: given[key] for key in given if key != name}}, tmp_path / "a.ckpt")
    assert all(torch.equal(before[key], weight) for key, weight in model.state_dict().items())


# The log

def test_the_log_writes_its_rows_and_hides_events_of_a_process_that_died(tmp_path):
    first = dict.fromkeys(utils.METRICS, 0.5) | {"epoch": 0, "val_loss": None}
    log = utils.MetricLog(tmp_path, [], [])
    log.add(first, {"epoch": 0, "train_seconds": 1.0, "val_seconds": 2.0, "frames_per_second": 3.0})
    log.write()
    assert list(read_csv(tmp_path / "metrics.csv")[0]) == list(utils.METRICS)
    assert read_csv(tmp_path / "metrics.csv")[0]["val_loss"] == ""
    assert read_csv(tmp_path / "timing.csv") == [
        {"epoch": "0", "train_seconds": "1.0", "val_seconds": "2.0", "frames_per_second": "3.0"}]
    events = list(tmp_path.glob("events.out.tfevents.*"))
    assert len(events) == 1 and b"train/loss" in events[0].read_bytes()
    assert b"val/loss" not in events[0].read_bytes()


def test_json_ends_with_a_line_end(tmp_path):
    utils.write_json(tmp_path / "a.json", {"é": [1, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"é": [1, None]} and text.endswith("}\n")
