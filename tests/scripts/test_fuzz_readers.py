"""A slice of the damaged files that scripts/dev/fuzz_readers.py makes by the thousand.

    python -m pytest tests/test_fuzz_readers.py
"""
import random

import pytest

import fuzz_readers
from utils import BadInput


@pytest.mark.parametrize("reader, cases", [("dataset", 120), ("checkpoint", 25), ("submission", 150)])
def test_damaged_files_are_read_or_refused_in_a_sentence(reader, cases):
    outcomes = fuzz_readers.fuzz(reader, cases, first=10**6)  # others than the script's own
    assert set(outcomes) == {"read", "refused"}, {what: seeds for what, seeds in outcomes.items() if len(what) > 8}
    assert len(outcomes["refused"]) > cases / 3 and len(outcomes["read"]) > cases / 25


def test_damaged_files_of_decoded_frames_are_made_anew():
    assert set(fuzz_readers.fuzz("cache", 60, first=10**6)) == {"read"}


@pytest.mark.parametrize("error, words", [
    (ValueError("x"), "ValueError: x"), (BadInput("no file is named"), "a bad sentence"),
    (BadInput("--flag\n--flag"), "a bad sentence"), (BadInput("--flag" * 500), "a bad sentence"),
    (BadInput("--flag 3: too much; give less"), "refused"), (None, "read")], ids=str)
def test_the_script_tells_right_from_wrong(error, words, tmp_path, monkeypatch):
    def reader(work, dice):
        if error is not None:
            raise error

    monkeypatch.setitem(fuzz_readers.READERS, "dataset", reader)
    assert words in fuzz_readers.run_case("dataset", tmp_path, 0)


def test_a_slow_case_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_readers, "SLOWEST", -1)
    monkeypatch.setitem(fuzz_readers.READERS, "dataset", lambda work, dice: None)
    assert fuzz_readers.run_case("dataset", tmp_path, 0).startswith("took ")


def test_the_same_seed_gives_the_same_damage():
    damages = [fuzz_readers.damage_bytes(bytes(range(256)), random.Random(seed)) for seed in (1, 1, 2)]
    assert damages[0] == damages[1] != damages[2]
