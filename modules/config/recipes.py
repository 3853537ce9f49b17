"""Recipes: named sets of flags, found from any working directory."""
import argparse
import shlex
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "recipes"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.args"))


def check_name(text: str) -> str:
    """An argparse type: the name of a recipe."""
    if text not in names():
        raise argparse.ArgumentTypeError(f"there is no recipe {text!r}; choose one of {', '.join(names())}")
    return text


def read(name: str) -> list[str]:
    """The flags of a recipe as the words of a command line."""
    return shlex.split((FOLDER / f"{name}.args").read_text(encoding="utf-8"), comments=True)
