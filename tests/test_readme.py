"""README.md against the programs: every flag with its default, every script that it names.

    pytest tests/test_readme.py
"""
import re
from pathlib import Path

import pytest

import Tester
import Trainer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("program", [Trainer, Tester])
def test_every_flag_stands_in_the_readme_with_its_default(program):
    section = README.split(f"### {program.__name__}.py")[1].split("\n#")[0]
    rows = {row.split("|")[1].split(",")[0].strip(" `"): row for row in section.splitlines() if row.startswith("| `")}
    actions = [action for action in program.make_parser()._actions if action.dest != "help"]
    assert set(rows) == {action.option_strings[0] for action in actions}
    for action in actions:
        default = rows[action.option_strings[0]].split("|")[2].strip()
        if isinstance(action.default, (int, float, str)) and not isinstance(action.default, bool):
            assert default == f"`{action.default}`"
        elif isinstance(action.default, bool):
            assert default == ("on" if action.default else "off")


def test_every_file_that_the_readme_names_is_there():
    names = set(re.findall(r"(?<!tests/)(?:scripts|modules|docs/images)/[\w./]+\.\w+", README))
    assert len(names) > 8
    assert not [name for name in names if not (ROOT / name).is_file()]


def test_every_test_that_the_readme_names_is_there():
    names = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", README)
    assert len(names) > 10
    assert not [name for file, name in names if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")]


def test_no_two_commands_more_than_promised():
    block = README.split("## Two commands")[1].split("##")[0]
    assert re.findall(r"^    (scripts/\S+)", block, re.MULTILINE) == ["scripts/demo.sh", "scripts/test.sh"]
