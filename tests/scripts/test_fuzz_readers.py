"""A few of the damaged files that scripts/dev/fuzz_readers.py makes by the thousand.

    python -m pytest tests/scripts/test_fuzz_readers.py
"""
import random

import pytest

import damage
import fuzz_readers
from utils import BadInput


@pytest.mark.parametrize("reader, cases", [("dataset", 80), ("checkpoint", 6), ("submission", 100)])
def test_damaged_files_are_read_or_refused_in_a_sentence(reader, cases):
    outcomes = fuzz_readers.fuzz(reader, cases, first=10**6)  # others than the script's own
    assert set(outcomes) == {"read", "refused"}, {what: seeds for what, seeds in outcomes.items() if len(what) > 8}


def test_a_damaged_cache_of_decoded_frames_is_replaced():
    assert set(fuzz_readers.fuzz("cache", 20, first=10**6)) == {"read"}


@pytest.mark.parametrize("error, words", [
    (ValueError("x"), "ValueError: x"), (BadInput("names no file"), "bad message"),
    (BadInput("--flag\n--flag"), "bad message"), (BadInput("--flag" * 500), "bad message"),
    (BadInput("--flag 3: too much; give less"), "refused"), (None, "read")], ids=str)
def test_outcomes_are_told_apart(error, words, tmp_path, monkeypatch):
    def reader(work, rng):
        if error is not None:
            raise error

    monkeypatch.setitem(fuzz_readers.READERS, "dataset", reader)
    assert words in fuzz_readers.run_case("dataset", tmp_path, 0)


def test_a_slow_case_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_readers, "MAX_SECONDS", -1)
    monkeypatch.setitem(fuzz_readers.READERS, "dataset", lambda work, rng: None)
    assert fuzz_readers.run_case("dataset", tmp_path, 0).startswith("took ")


def test_the_same_seed_gives_the_same_damage():
    damaged = [damage.damage_bytes(bytes(range(256)), random.Random(seed)) for seed in (1, 1, 2)]
    assert damaged[0] == damaged[1] != damaged[2]
