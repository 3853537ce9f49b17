"""Who may import whom: scripts -> Trainer, Tester -> dataloader -> modules -> utils, and the order within modules/.

    python -m pytest tests/test_imports.py
"""
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What each part may import, besides itself, utils and libraries.
ALLOWED = {
    "utils": set(),
    "modules.objective": set(),
    "modules.schedulers": set(),
    "modules.data": set(),
    "modules.network": {"modules.data"},
    "modules.training": {"modules.network", "modules.data"},
    "modules.config": {"modules.training", "modules.network", "modules.data", "modules.objective",
                       "modules.schedulers"},
    "modules.evaluation": {"modules.data"},
    "modules.plots": {"modules.evaluation", "modules.data"},
    "dataloader": {"modules"},
    "Tester": {"dataloader", "modules"},
    "Trainer": {"dataloader", "modules"},
}
FILES = [path for path in [ROOT / "utils.py", ROOT / "dataloader.py", ROOT / "Trainer.py", ROOT / "Tester.py",
                           *sorted((ROOT / "modules").rglob("*.py"))] if path.name != "__init__.py"]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def part_of(name: str) -> str:
    """The key of ALLOWED that a module belongs to."""
    return max((part for part in ALLOWED if name == part or name.startswith(f"{part}.")), key=len, default="")


def imports(path: Path) -> set[str]:
    """The modules of this repo that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if part_of(name) or name.split(".")[0] in ("scripts", "tests")}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path):
    own = part_of(name_of(path))
    assert own, f"{path.name} belongs to no part"
    allowed = ALLOWED[own]
    for name in imports(path):
        part = part_of(name)
        assert part in ({own, "utils"} | allowed) or part.split(".")[0] in allowed, f"{path.name} imports {name}"


def test_no_flag_is_named_outside_the_configuration():
    """modules/ raises ValueErrors about parameters; only modules/config and the programs speak of flags."""
    named = [f"{name_of(path)}: {node.value[:60]}" for path in FILES if part_of(name_of(path)) not in
             ("modules.config", "dataloader", "Trainer", "Tester", "utils")
             for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)
             and re.search("--[a-zA-Z]", node.value)]
    assert not named


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "scripts").rglob("*.py"))], ids=name_of)
def test_files_and_functions_fit_on_a_few_screens(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 450
    long = [node.name for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 70]
    assert not long
