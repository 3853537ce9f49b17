"""Command lines: the parser that both programs use, and types of flags."""
import argparse
import shlex
from collections.abc import Callable
from typing import NoReturn

from utils import BadInput


class FlagParser(argparse.ArgumentParser):
    """An ArgumentParser that also reads flags from ``@file`` (shell-like lines, # starts a comment).

    Its complaint is BadInput, one sentence, without the usage above it.
    """

    def __init__(self, **kwargs):
        super().__init__(fromfile_prefix_chars="@", allow_abbrev=False,
                         formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return shlex.split(arg_line, comments=True)

    def parse_known_args(self, *args, **kwargs):
        try:
            return super().parse_known_args(*args, **kwargs)
        except ValueError as error:  # an @file with an open quotation, or one that is no text
            self.error(f"the flags cannot be read from the @file ({error})")

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see --help")


class ChoiceOrOff(argparse.Action):
    """A flag with a choice, ``const`` where it is given alone; its other name, --no-FLAG, chooses "off"."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs):
        super().__init__(option_strings, dest, nargs="?", **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        is_off = option_string.startswith("--no-")
        if is_off and values != self.const:
            parser.error(f"{option_string} takes no value")
        setattr(namespace, self.dest, "off" if is_off else values)


def number(kind: type, least: float, most: float = float("inf"), above: bool = False) -> Callable[[str], float]:
    """An argparse type: an int or float within least..most (``above``: least itself is out)."""
    bounds = f"{'above' if above else 'at least'} {least}" + ("" if most == float("inf") else f", at most {most}")

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            word = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {word}") from None
        if not (value > least if above else value >= least) or not value <= most or abs(value) == float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must be {bounds}")
        return value

    return parse


def folder_name(text: str) -> str:
    """An argparse type: a folder's name, which an unset shell variable leaves empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of the folder is empty")
    return text
