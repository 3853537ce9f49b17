"""KL weight, teacher-forcing ratio and learning rate against recurrences in exact arithmetic and torch's schedulers.

    python -m pytest tests/test_schedulers.py
"""
import random
from fractions import Fraction

import pytest
import torch

from modules.schedulers import KLAnnealing, LearningRate, TeacherForcing

EPOCHS = range(501)
CYCLES = [2, 3, 7, 10, 100]
RATIOS = [0.5, 1, 2]


def close(value: float, abs: float = 1e-12):
    return pytest.approx(value, rel=1e-12, abs=abs)


# KLAnnealing

def slow_cyclical(cycle: int, ratio: float, start: float, stop: float) -> list[float]:
    values, position = [], 0
    start, stop = Fraction(start), Fraction(stop)
    for _ in EPOCHS:
        values.append(float(min(stop, start + (stop - start) * Fraction(position, cycle) * Fraction(ratio))))
        position += 1
        if position == cycle:
            position = 0
    return values


def slow_monotonic(cycle: int, ratio: float) -> list[float]:
    """beta_0 = 0, beta_n = min(1, beta_{n-1} + ratio * n / cycle)."""
    values = [Fraction(0)]
    for n in EPOCHS[1:]:
        values.append(min(Fraction(1), values[-1] + Fraction(ratio) * Fraction(n, cycle)))
    return [float(value) for value in values]


@pytest.mark.parametrize("start, stop", [(0, 1), (0.2, 0.8), (0.5, 0.5), (0, 1e-4)])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("cycle", CYCLES)
def test_cyclical_equals_its_formula(cycle, ratio, start, stop):
    beta = KLAnnealing("cyclical", cycle, ratio, start, stop)
    assert [beta(epoch) for epoch in EPOCHS] == close(slow_cyclical(cycle, ratio, start, stop), abs=1e-16)
    assert all(start <= beta(epoch) <= stop for epoch in EPOCHS)


@pytest.mark.parametrize("cycle", CYCLES)
def test_cyclical_restarts_exactly_and_peaks_where_the_ratio_says(cycle):
    for ratio in RATIOS:
        beta = KLAnnealing("cyclical", cycle, ratio)
        assert [epoch for epoch in EPOCHS if beta(epoch) == 0] == list(range(0, 501, cycle))
    assert KLAnnealing("cyclical", cycle, 1)(cycle - 1) == close((cycle - 1) / cycle)  # never reaches 1
    beta = KLAnnealing("cyclical", cycle, 2)
    assert all((beta(epoch) == 1) == (epoch % cycle >= cycle / 2) for epoch in EPOCHS)


@pytest.mark.parametrize("ratio", RATIOS + [0.01])
@pytest.mark.parametrize("cycle", [1, *CYCLES])
def test_monotonic_equals_its_running_sum(cycle, ratio):
    beta = KLAnnealing("monotonic", cycle, ratio)
    values = [beta(epoch) for epoch in EPOCHS]
    assert values == close(slow_monotonic(cycle, ratio))
    assert values[0] == 0 and max(values) <= 1 and values == sorted(values)


@pytest.mark.parametrize("stop", [1.0, 0.25, 0.0])
def test_none_is_constant(stop):
    beta = KLAnnealing("none", 10, 1.0, stop=stop)
    assert {beta(epoch) for epoch in EPOCHS} == {stop}


def test_the_letter_case_of_the_kind_does_not_matter():
    values = {kind: [KLAnnealing(kind, 7, 1)(epoch) for epoch in EPOCHS]
              for kind in ("cyclical", "Cyclical", "CYCLICAL", "monotonic", "Monotonic", "none", "None")}
    assert values["cyclical"] == values["Cyclical"] == values["CYCLICAL"] != values["monotonic"]
    assert values["monotonic"] == values["Monotonic"] != values["none"] == values["None"]


@pytest.mark.parametrize("arguments, word", [
    (("linear", 10, 1), "linear"), (("Cyclical", 1, 1), "cycle"), (("cyclical", 10, 1, 0.8, 0.2), "start"),
])
def test_annealing_rejects_unknown_kinds_and_impossible_combinations(arguments, word):
    with pytest.raises(ValueError, match=word):
        KLAnnealing(*arguments)


@pytest.mark.parametrize("kind", ["monotonic", "none"])
def test_only_cyclical_needs_a_cycle_of_two_epochs(kind):
    assert KLAnnealing(kind, 1, 1)(1) == 1


# TeacherForcing

def slow_ratios(tfr: str, start: int, step: str, epochs: int) -> list[float]:
    ratios = [Fraction(tfr)]
    for epoch in range(1, epochs):
        ratios.append(max(Fraction(0), ratios[-1] - Fraction(step)) if epoch >= start else ratios[-1])
    return [float(ratio) for ratio in ratios]


@pytest.mark.parametrize("tfr", ["1", "0.8", "0.9", "0"])
@pytest.mark.parametrize("step", ["0.1", "0.3", "1", "0.007", "0"])
@pytest.mark.parametrize("start", [0, 1, 2, 8, 50])
def test_teacher_forcing_equals_its_formula(tfr, step, start):
    ratio = TeacherForcing(float(tfr), start, float(step))
    values, expected = [ratio(epoch) for epoch in range(250)], slow_ratios(tfr, start, step, 250)
    assert values == close(expected)
    assert [value == 0 for value in values] == [value == 0 for value in expected]  # exactly 0, not 1e-16
    assert min(values) >= 0 and max(values) <= 1


def test_the_decay_starts_in_epoch_1_at_the_earliest():
    from_0, from_1 = TeacherForcing(1.0, 0, 0.25), TeacherForcing(1.0, 1, 0.25)
    assert [from_0(epoch) for epoch in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert [from_1(epoch) for epoch in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


# LearningRate

def torch_rates(make_scheduler, lr: float, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = make_scheduler(optimizer), []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_none_is_a_constant_rate():
    rate = LearningRate("none", 3e-4, 10)
    assert {rate(time / 4) for time in range(60)} == {3e-4}


def test_cosine_decreases_from_the_base_rate_through_half_to_zero():
    rate = LearningRate("cosine", 0.2, 40)
    assert rate(0) == 0.2
    assert rate(20) == close(0.1)
    assert rate(40) == close(0.0)
    assert rate(41) == close(0.0)
    values = [rate(time / 10) for time in range(401)]
    assert all(later < earlier for earlier, later in zip(values, values[1:], strict=False))  # within epochs too


def test_cosine_equals_torchs_at_whole_epochs():
    expected = torch_rates(lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30), 0.01, 31)
    assert [LearningRate("cosine", 0.01, 30)(epoch) for epoch in range(31)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("milestones", [(2, 5), (5, 2), (1,), (3, 10, 19), (4, 4)])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0])
def test_multistep_equals_torchs_at_whole_epochs(milestones, gamma):
    expected = torch_rates(
        lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma), 0.01, 20)
    rate = LearningRate("multistep", 0.01, 20, milestones=milestones, gamma=gamma)
    assert [rate(epoch) for epoch in range(20)] == close(expected)


def test_multistep_changes_at_the_milestones_by_default_2_and_5():
    rate = LearningRate("multistep", 1.0, 20)
    assert [rate(time) for time in (0, 1.99, 2, 4.99, 5, 19)] == close([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("kind", LearningRate.KINDS)
@pytest.mark.parametrize("warmup", [1, 2.5, 4])
def test_warmup_is_a_linear_factor_from_0_to_1(kind, warmup):
    warm, plain = LearningRate(kind, 0.3, 20, warmup), LearningRate(kind, 0.3, 20)
    assert warm(0) == 0
    for time in (step / 8 for step in range(8 * 20)):
        assert warm(time) == close(plain(time) * min(1, time / warmup))


@pytest.mark.parametrize("arguments, word", [(("linear", 0.1, 10), "linear"), (("none", 0.1, 10, 11), "warmup")])
def test_learning_rate_rejects_unknown_kinds_and_a_warmup_longer_than_the_run(arguments, word):
    with pytest.raises(ValueError, match=word):
        LearningRate(*arguments)


# All schedules

@pytest.mark.parametrize("make", [
    lambda: KLAnnealing("cyclical", 7, 2), lambda: KLAnnealing("monotonic", 70, 1), lambda: KLAnnealing("none", 7, 1),
    lambda: TeacherForcing(0.8, 8, 0.1), lambda: LearningRate("cosine", 0.1, 501, warmup=5),
    lambda: LearningRate("multistep", 0.1, 501, milestones=(20, 100)),
])
def test_the_order_of_the_calls_does_not_matter(make):
    schedule = make()
    shuffled = list(EPOCHS)
    random.Random(0).shuffle(shuffled)
    values = {epoch: schedule(epoch) for epoch in shuffled}
    assert [values[epoch] for epoch in EPOCHS] == [schedule(epoch) for epoch in EPOCHS]
    assert [make()(epoch) for epoch in EPOCHS] == [values[epoch] for epoch in EPOCHS]  # as in a resumed run
