"""README.md, docs/ and the requirements against the code: files, links, flags, commands, the Python example.

    python -m pytest tests/test_readme.py
"""
import re
import shlex
from pathlib import Path

import pytest
import torch

import Trainer
from conftest import TINY, H, W
from modules.config import tester_flags, trainer_flags

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
PARSERS = {"Trainer.py": trainer_flags.make_parser, "Tester.py": tester_flags.make_parser}
OTHER_PROGRAMS_FLAGS = {"--nproc-per-node", "--max-restarts", "--nnodes", "--node-rank", "--master-addr", "--logdir"}


def find_flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", text))


def commands(text: str) -> list[list[str]]:
    """The words of each command in a page's code blocks, with the shell variables that the page sets substituted."""
    variables, found = {}, []
    for line in text.splitlines():
        line = re.sub(r"\$(\w+)", lambda name: variables[name[1]], line) if line.startswith("    ") else ""
        if assignment := re.fullmatch(r'\s+([A-Z]+)="(.*)"', line):
            variables[assignment[1]] = assignment[2]
        elif re.match(r"\s+!?(python|torchrun|scripts/\w+\.sh)\b", line):
            found.append(shlex.split(line.split("&&")[0].strip(" !"), comments=True))
    return found


def test_the_readme_is_short():
    assert len(README.encode()) <= 12_000


def test_two_commands_are_the_quick_start():
    block = README.split("## Quick start")[1].split("##")[0]
    assert re.findall(r"^    (\S+)", block, re.MULTILINE) == ["scripts/demo.sh", "scripts/test.sh"]


@EVERY_PAGE
def test_every_file_that_a_page_names_exists(page):
    names = re.findall(r"(?:scripts|modules|docs|tests)/[a-z_/]+\.\w+", PAGES[page])
    assert not [name for name in names if not (ROOT / name).is_file()]


@EVERY_PAGE
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        name, _, anchor = target.partition("#")
        path = page.parent / name
        assert path.is_file(), target
        headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings]


@EVERY_PAGE
def test_every_flag_that_a_page_names_exists(page):
    scripts = [path for path in (ROOT / "scripts").rglob("*.*") if path.suffix in (".py", ".sh")]
    known = set().union(OTHER_PROGRAMS_FLAGS, *(find_flags(path.read_text(encoding="utf-8")) for path in scripts),
                        *(parser()._option_string_actions for parser in PARSERS.values()))
    assert not find_flags(PAGES[page]) - known


@EVERY_PAGE
def test_every_command_of_a_page_is_accepted(page):
    for words in commands(PAGES[page]):
        place = next(index for index, word in enumerate(words) if word.endswith((".py", ".sh")))
        assert (ROOT / words[place]).is_file(), words
        if parser := PARSERS.get(words[place]):
            parser().parse_args(words[place + 1:])


def test_the_map_of_the_code_is_complete():
    listed = set(re.findall(r"^  ([\w/]+\.py) ", README, re.MULTILINE))
    modules = ROOT / "modules"
    assert listed == {path.relative_to(modules).as_posix() for path in modules.rglob("*.py")
                      if path.name != "__init__.py"}


def test_every_recipe_is_described():
    table = README.split("## Recipes")[1].split("##")[0]
    recipes = {path.stem for path in (ROOT / "scripts" / "recipes").glob("*.args")}
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == recipes


def test_the_python_example_runs(data, tmp_path, monkeypatch, no_figures):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert len(code.splitlines()) <= 6
    monkeypatch.chdir(tmp_path)
    Trainer.main([*TINY, "--num_epoch", "1", "--DR", str(data), "--save_root", "runs/first"])
    names = {"first_frame": torch.rand(1, 3, H, W), "labels": torch.rand(1, 5, 3, H, W)}
    exec(code, names)
    assert names["frames"].shape == names["labels"].shape
    assert torch.equal(names["frames"][:, 0], names["first_frame"])
    assert (tmp_path / "result.mp4").stat().st_size > 0


def test_requirements_have_a_lower_bound_and_a_version_that_works():
    """No upper bound: in a notebook, pip then keeps the PyTorch that is installed."""
    constraints = (ROOT / "requirements-constraints.txt").read_text(encoding="utf-8")
    pinned = re.findall(r"^([\w-]+)==", constraints, re.MULTILINE)
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if not line.startswith("-r"):
                package = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=[\d.]+ +# .+", line)
                assert package and package[1] in pinned, line
