"""Errors and exit codes, ranks, files, device, precision, seeds.

    python -m pytest tests/test_utils.py
"""
import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import utils
from conftest import contents
from utils import BadInput

ROOT = Path(utils.__file__).parent
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def throw(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error, code, words", [
    (KeyboardInterrupt(), 130, "interrupted"), (utils.Interrupted("saved", 15), 143, "saved"),
    (BadInput("what, where"), 2, "error: what, where"), (MemoryError(), 2, "memory; use --less"),
    (OSError(errno.ENOSPC, "No space left", "last.ckpt"), 2, "last.ckpt .*No space left.*--resume"),
    (PermissionError(errno.EACCES, "Permission denied", "x.png"), 2, "x.png .*Permission denied"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "memory; use --less"),
    (RuntimeError("could not create a primitive"), 2, "memory; use --less")], ids=repr)
def test_what_ends_a_program_is_one_line_and_an_exit_code(error, code, words, capsys):
    assert utils.run_main("P.py", lambda: throw(error), "use --less") == code
    assert re.fullmatch(f"P.py: .*{words}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("is_closed", [False, True])
def test_any_name_can_be_printed_also_where_stdout_is_closed(is_closed):
    program = (f"import sys, utils; sys.stdout = None if {is_closed} else sys.stdout; "
               "sys.exit(utils.run_main('P.py', lambda: print('r\\u00fcn \\udcff')))")
    expected = b"" if is_closed else rb"r\xfcn \udcff" + os.linesep.encode()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=Path(utils.__file__).parent,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, b"")


@pytest.mark.parametrize("text, words", [
    ("Connection closed by peer [10.0.0.2]:1234", "another process"), ("NCCL communicator aborted", "another process"),
    ("NCCL error in ProcessGroupNCCL.cpp: Cuda failure 2 'out of memory'", "out of memory; use --less")])
def test_another_process_is_lost_only_where_there_is_one_and_memory_has_not_run_out(text, words, monkeypatch, capsys):
    with pytest.raises(RuntimeError):  # an error that is none of these keeps its traceback
        utils.run_main("P.py", lambda: throw(RuntimeError(text.replace("out of memory", ""))))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert utils.run_main("P.py", lambda: throw(RuntimeError(text)), "use --less") == 2
    assert words in capsys.readouterr().err


def test_ranks_are_those_of_torchrun_and_only_the_main_rank_prints_messages(monkeypatch, capsys):
    assert utils.read_rank({}) == utils.read_rank({"WORLD_SIZE": "1", "RANK": "3"}) == (0, 0, 1)
    assert utils.read_rank({"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1"}) == (5, 1, 8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        utils.logger.warning("message of %s", rank)
        utils.logger.error("error of %s", rank)
    assert re.findall(r"(\w+) of (\d)", capsys.readouterr().err) == [("message", "0"), ("error", "0"), ("error", "1")]


# Files

def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.json"
    utils.write_json(path, {"é": [1 / 3, None]})
    old = contents(tmp_path)
    assert old.keys() == {"new/a.json"} and json.loads(path.read_text(encoding="utf-8")) == {"é": [1 / 3, None]}
    with pytest.raises(ZeroDivisionError), utils.atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert contents(tmp_path) == old
    monkeypatch.setattr(os, "fsync", lambda descriptor: throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError) as error:
        utils.write_json(path, {})
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path)) and contents(tmp_path) == old


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(utils.secrets, "token_hex", lambda size: "0" * 2 * size)
    (tmp_path / ".file.00000000.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError), utils.atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert victim.read_text() == "precious"


def test_a_folder_that_cannot_be_written_is_refused_and_none_is_created(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="--save_root"):
        utils.check_writable(tmp_path / "file" / "below")
    utils.check_writable(tmp_path / "new" / "below")
    (tmp_path / "link").symlink_to("nowhere")
    for folder in (tmp_path / "link", tmp_path / "link" / "below"):
        with pytest.raises(BadInput, match="link is a link to nowhere, which does not exist"):
            utils.check_writable(folder)
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(BadInput, match="--cache_dir"):
        utils.check_writable(tmp_path / "new", "--cache_dir")
    assert not (tmp_path / "new").exists()


def test_a_name_outside_the_terminals_encoding_is_printed_escaped(monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert utils.run_main("P.py", lambda: print("results are in \u00e9\udcff")) == 0
    assert out.buffer.getvalue() == b"results are in \\xe9\\udcff\n"


# Packages and threads

PROGRAMS = ("Trainer.py", "Tester.py", "scripts/report.py", "scripts/compare_runs.py", "scripts/score_submission.py",
            "scripts/score_by_pose.py", "scripts/hold_out.py", "scripts/make_synthetic_dataset.py")
HIDE = """
import runpy, sys
from importlib.machinery import PathFinder
find, hidden = PathFinder.find_spec, sys.argv[2]
PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] == hidden else find(name, *rest)
sys.argv = [sys.argv[1], "--help"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("program, package", [(name, "numpy") for name in PROGRAMS] + [
    ("Trainer.py", "torch"), ("Trainer.py", "torchvision"), ("Tester.py", "torchvision"), ("Tester.py", "av")])
def test_a_missing_package_is_one_sentence_that_names_the_command_that_installs_it(program, package):
    call = subprocess.run([sys.executable, "-c", HIDE, str(ROOT / program), package], capture_output=True, text=True)
    assert call.returncode == 2 and call.stdout == ""
    pattern = rf"{Path(program).name}: error: .*\b{package}\b.*scripts/setup.sh.*\n"
    assert re.fullmatch(pattern, call.stderr), call.stderr


def test_the_required_packages_are_those_of_the_requirements():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = {re.match(r"[\w-]+", line)[0] for line in lines} | {"av"}  # with imageio
    assert set(utils.PACKAGES) == names - {"pillow", "markdown-it-py"} | {"PIL", "markdown_it"}


def test_the_number_of_threads_can_be_given():
    before = torch.get_num_threads()
    try:
        utils.pick_device("cpu", 3)
        assert torch.get_num_threads() == 3
        utils.pick_device("cpu")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# Device, precision, seeds

def test_the_device_is_cuda_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert utils.pick_device(None) == utils.pick_device("cpu") == CPU
    with pytest.raises(BadInput, match="--device cpu"):
        utils.pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert utils.pick_device(None) == utils.pick_device("cuda") == GPU and utils.pick_device("cpu") == CPU
    monkeypatch.setattr(os, "environ", {"WORLD_SIZE": "4", "LOCAL_RANK": "3"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BadInput, match="2 GPU"):
        utils.pick_device(None)


def test_auto_precision_is_what_the_processor_supports(monkeypatch):
    for features, expected in (({"avx512_bf16": True}, "bf16"), ({"arm_bf16": True}, "bf16"),
                               ({"avx512_bf16": False, "avx2": True}, "fp32"), ({}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features, raising=False)
        assert [utils.pick_precision(name, CPU) for name in ("auto", "fp32", "bf16")] == [expected, "fp32", "bf16"]


def test_compilation_is_automatic_only_for_long_work_on_a_gpu(monkeypatch):
    monkeypatch.setattr(utils.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(utils.Path, "exists", lambda path: True)
    many = utils.COMPILE_PAYS_FROM
    pays = [utils.compile_pays(*work) for work in (("auto", GPU, many), ("auto", GPU, many - 1), ("auto", CPU, many),
                                                   ("off", GPU, many), ("on", CPU, 1))]
    assert pays == [True, False, False, False, True]


@pytest.mark.parametrize("compiler, has_header, words", [
    (None, True, "needs the compiler gcc"), ("/bin/gcc", False, "needs Python.h .*python3-dev"),
    (None, False, "needs the compiler gcc and Python.h")])
def test_without_what_compilation_needs_a_run_continues_and_says_so(compiler, has_header, words, monkeypatch, capsys):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(utils.shutil, "which", lambda name: compiler)
    monkeypatch.setattr(utils.Path, "exists", lambda path: path.name == "Python.h" and has_header)
    assert not utils.compile_pays("auto", GPU, utils.COMPILE_PAYS_FROM)
    assert re.search(words, capsys.readouterr().err)
    with pytest.raises(BadInput, match=f"--compile on: .*{words}"):
        utils.compile_pays("on", GPU, 1)
    assert not utils.compile_pays("auto", CPU, utils.COMPILE_PAYS_FROM) and capsys.readouterr().err == ""


def test_generators_are_reproducible_and_differ_by_purpose_and_seed():
    draws = [[tuple(torch.rand(4, generator=generator).tolist())
              for generator in utils.make_generators(seed, CPU).values()] for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1] and len(set(sum(draws[1:], []))) == 3 * len(draws[0])
