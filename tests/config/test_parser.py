"""Command lines: flags from files, numbers within bounds, choices that can be switched off.

    python -m pytest tests/config/test_parser.py
"""
import pytest

from modules.config.parser import ChoiceOrOff, FlagParser, folder_name, number
from utils import BadInput


@pytest.fixture
def parser():
    parser = FlagParser(prog="P.py")
    parser.add_argument("--count", type=number(int, 1, 5), default=2)
    parser.add_argument("--fraction", type=number(float, 0, 1, above=True), default=1.0)
    parser.add_argument("--any", type=number(float, 0))
    parser.add_argument("--name", type=folder_name)
    parser.add_argument("--match", "--no-match", action=ChoiceOrOff, const="near", default="off",
                        choices=("off", "near", "far"))
    return parser


def test_flags_from_a_file_and_the_later_flag_wins(parser, tmp_path):
    path = tmp_path / "a.args"
    path.write_text("# a comment that isn't a flag\n--count 3 # three\n\n  --name 'two words'\n--fraction=1e-9\n")
    assert parser.parse_given([f"@{path}", "--count", "5"]) == {"count": 5, "fraction": 1e-9, "name": "two words"}
    for unreadable in (b"--name 'no end", b"--name \xff\xfe"):
        path.write_bytes(unreadable)
        with pytest.raises(BadInput):
            parser.parse_args([f"@{path}"])
    path.write_text(f"@{path}\n")
    with pytest.raises(BadInput, match="@file .it includes itself"):
        parser.parse_args([f"@{path}"])
    with pytest.raises(BadInput, match="the @file cannot be read .*gone.args"):
        parser.parse_args([f"@{tmp_path / 'gone.args'}"])


@pytest.mark.parametrize("flag, value, words", [
    ("--count", "0", "at least 1, at most 5"), ("--count", "6", "at most 5"), ("--count", "2.0", "whole number"),
    ("--fraction", "0", "above 0, at most 1"), ("--fraction", "1.01", "at most 1"), ("--fraction", "nan", "range"),
    ("--any", "inf", "range"), ("--any", "half", "number"), ("--match", "middle", "far"),
    ("--no-match", "far", "no value"), ("--name", " ", "empty"), ("--cou", "3", "--cou")])
def test_impossible_values_are_refused_with_flag_and_bounds(flag, value, words, parser):
    with pytest.raises(BadInput, match=words) as error:
        parser.parse_args([flag, value])
    assert flag in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("given, meant", [
    ("--counts 3", "--count"), ("--frac-tion=0.5", "--fraction"), ("--NAME x", "--name"), ("--no_match", "--no-match"),
    ("--qqq", None)])
def test_an_unknown_flag_is_refused_with_the_most_similar_one(given, meant, parser):
    flag = given.partition("=")[0].split()[0]
    with pytest.raises(BadInput, match=f"there is no flag {flag}") as error:
        parser.parse_args(given.split())
    assert str(error.value).count("did you mean") == (meant is not None)
    assert meant is None or f"{flag} (did you mean {meant}?)" in str(error.value)


def test_a_choice_can_be_switched_off(parser):
    for flags, choice in (("", "off"), ("--match", "near"), ("--match far", "far"), ("--match --no-match", "off")):
        assert parser.parse_args(flags.split()).match == choice
