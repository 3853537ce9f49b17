"""KL weight, teacher-forcing ratio and learning rate against slow recurrences in exact arithmetic, and torch's own.

    python -m pytest tests/test_schedulers.py
"""
import math
import random
from fractions import Fraction

import pytest
import torch

from modules.schedulers import KLAnnealing, LearningRate, TeacherForcing

EPOCHS = range(501)
CYCLES = [2, 3, 7, 10, 33, 100]
RATIOS = [0.5, 1, 2]
NAN, INFINITY = math.nan, math.inf


def close(value: float, abs: float = 1e-12):
    return pytest.approx(value, rel=1e-12, abs=abs)


# KLAnnealing

def slow_cyclical(cycle: int, ratio: float, start: float, stop: float) -> list[float]:
    """A hand goes round the cycle."""
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
def test_cyclical_is_its_formula(cycle, ratio, start, stop):
    beta = KLAnnealing("cyclical", cycle, ratio, start, stop)
    assert [beta(epoch) for epoch in EPOCHS] == close(slow_cyclical(cycle, ratio, start, stop), abs=1e-16)
    assert all(start <= beta(epoch) <= stop for epoch in EPOCHS)


@pytest.mark.parametrize("cycle", CYCLES)
def test_cyclical_restarts_exactly_at_each_cycle(cycle):
    for ratio in RATIOS:
        beta = KLAnnealing("cyclical", cycle, ratio)
        assert [epoch for epoch in EPOCHS if beta(epoch) == 0] == list(range(0, 501, cycle))


@pytest.mark.parametrize("cycle", CYCLES)
def test_cyclical_with_ratio_one_peaks_just_below_one_in_the_last_epoch_of_a_cycle(cycle):
    values = [KLAnnealing("cyclical", cycle, 1)(epoch) for epoch in range(cycle)]
    assert max(values) == values[-1] == close((cycle - 1) / cycle)


@pytest.mark.parametrize("cycle", [2, 10, 100])
def test_cyclical_with_ratio_two_is_full_from_the_middle_of_a_cycle(cycle):
    beta = KLAnnealing("cyclical", cycle, 2)
    assert all((beta(epoch) == 1) == (epoch % cycle >= cycle / 2) for epoch in EPOCHS)


@pytest.mark.parametrize("ratio", RATIOS + [0.01])
@pytest.mark.parametrize("cycle", [1, *CYCLES])
def test_monotonic_is_its_running_sum(cycle, ratio):
    beta = KLAnnealing("monotonic", cycle, ratio)
    values = [beta(epoch) for epoch in EPOCHS]
    assert values == close(slow_monotonic(cycle, ratio))
    assert values[0] == 0 and max(values) <= 1 and values == sorted(values)


@pytest.mark.parametrize("stop", [1.0, 0.25, 0.0, 3.0])
def test_none_is_constant(stop):
    beta = KLAnnealing("none", 10, 1.0, stop=stop)
    assert {beta(epoch) for epoch in EPOCHS} == {stop}


@pytest.mark.parametrize("kind", KLAnnealing.KINDS)
def test_the_letter_case_of_the_kind_does_not_matter(kind):
    values = [KLAnnealing(kind, 7, 1)(epoch) for epoch in EPOCHS]
    for spelling in (kind.upper(), kind.capitalize()):
        assert [KLAnnealing(spelling, 7, 1)(epoch) for epoch in EPOCHS] == values


def test_the_kinds_differ():
    values = [[KLAnnealing(kind, 10, 1)(epoch) for epoch in EPOCHS] for kind in ("cyclical", "monotonic", "none")]
    assert values[0] != values[1] != values[2] != values[0]


@pytest.mark.parametrize("kind, cycle, ratio, start, stop, flag", [
    ("linear", 10, 1, 0, 1, "--kl_anneal_type"),
    ("", 10, 1, 0, 1, "--kl_anneal_type"),
    ("cyclical", 1, 1, 0, 1, "--kl_anneal_cycle"),
    ("Cyclical", 1, 1, 0, 1, "--kl_anneal_cycle"),
    ("cyclical", 0, 1, 0, 1, "--kl_anneal_cycle"),
    ("monotonic", 0, 1, 0, 1, "--kl_anneal_cycle"),
    ("cyclical", 10, 0, 0, 1, "--kl_anneal_ratio"),
    ("monotonic", 10, -1, 0, 1, "--kl_anneal_ratio"),
    ("cyclical", 10, NAN, 0, 1, "--kl_anneal_ratio"),
    ("cyclical", 10, INFINITY, 0, 1, "--kl_anneal_ratio"),
    ("cyclical", 10, 1, 0.8, 0.2, "--kl_anneal_start"),
    ("cyclical", 10, 1, -0.1, 1, "--kl_anneal_start"),
    ("none", 10, 1, 0, -1, "--kl_anneal_stop"),
    ("none", 10, 1, 0, INFINITY, "--kl_anneal_stop"),
    ("none", 10, 1, 0, NAN, "--kl_anneal_stop"),
])
def test_annealing_refuses_what_no_schedule_can_have(kind, cycle, ratio, start, stop, flag):
    with pytest.raises(ValueError, match=flag):
        KLAnnealing(kind, cycle, ratio, start, stop)


def test_a_cycle_of_one_epoch_is_refused_only_where_it_would_switch_the_weight_off():
    assert KLAnnealing("monotonic", 1, 1)(1) == 1
    assert KLAnnealing("none", 1, 1)(1) == 1


# TeacherForcing

def slow_ratios(tfr: str, start: int, step: str, epochs: int) -> list[float]:
    """Decimal numbers in exact arithmetic, one epoch after the other."""
    ratios = [Fraction(tfr)]
    for epoch in range(1, epochs):
        ratios.append(max(Fraction(0), ratios[-1] - Fraction(step)) if epoch >= start else ratios[-1])
    return [float(ratio) for ratio in ratios]


@pytest.mark.parametrize("tfr", ["1", "0.8", "0.9", "0"])
@pytest.mark.parametrize("step", ["0.1", "0.3", "1", "0.007", "0"])
@pytest.mark.parametrize("start", [0, 1, 2, 8, 50])
def test_teacher_forcing_is_its_formula(tfr, step, start):
    ratio = TeacherForcing(float(tfr), start, float(step))
    values, expected = [ratio(epoch) for epoch in range(250)], slow_ratios(tfr, start, step, 250)
    assert values == close(expected)
    assert [value == 0 for value in values] == [value == 0 for value in expected]  # exactly, and never 1e-16 instead
    assert min(values) >= 0 and max(values) <= 1


def test_teacher_forcing_of_a_typical_run():
    ratio = TeacherForcing(0.8, 8, 0.1)
    assert [ratio(epoch) for epoch in range(8)] == [0.8] * 8
    assert ratio(8) == 0.7
    assert ratio(14) > 0
    assert [ratio(epoch) for epoch in range(15, 300)] == [0.0] * 285


def test_teacher_forcing_starts_to_fall_in_epoch_one_at_the_earliest():
    at_once, at_one = TeacherForcing(1.0, 0, 0.25), TeacherForcing(1.0, 1, 0.25)
    assert [at_once(epoch) for epoch in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert [at_one(epoch) for epoch in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


@pytest.mark.parametrize("tfr, start, step, flag", [
    (-0.1, 8, 0.1, "--tfr "), (1.1, 8, 0.1, "--tfr "), (NAN, 8, 0.1, "--tfr "),
    (0.8, -1, 0.1, "--tfr_sde "),
    (0.8, 8, -0.1, "--tfr_d_step "), (0.8, 8, 1.1, "--tfr_d_step "), (0.8, 8, NAN, "--tfr_d_step "),
])
def test_teacher_forcing_refuses_numbers_out_of_range(tfr, start, step, flag):
    with pytest.raises(ValueError, match=flag):
        TeacherForcing(tfr, start, step)


# LearningRate

def torch_rates(make_scheduler, lr: float, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = make_scheduler(optimizer), []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_none_keeps_the_rate():
    rate = LearningRate("none", 3e-4, 10)
    assert {rate(time / 4) for time in range(60)} == {3e-4}


def test_cosine_goes_from_the_full_rate_over_half_to_zero():
    rate = LearningRate("cosine", 0.2, 40)
    assert rate(0) == 0.2
    assert rate(20) == close(0.1)
    assert rate(40) == close(0.0)
    assert rate(41) == close(0.0)  # and stays there
    values = [rate(time / 10) for time in range(401)]
    assert all(later < earlier for earlier, later in zip(values, values[1:], strict=False))  # within an epoch too


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


def test_multistep_steps_at_the_milestone_and_by_default_at_two_and_five():
    rate = LearningRate("multistep", 1.0, 20)
    assert [rate(time) for time in (0, 1.99, 2, 4.99, 5, 19)] == close([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("kind", LearningRate.KINDS)
@pytest.mark.parametrize("warmup", [1, 2.5, 4])
def test_warmup_grows_linearly_from_zero_and_then_leaves_the_rate_alone(kind, warmup):
    warm, plain = LearningRate(kind, 0.3, 20, warmup), LearningRate(kind, 0.3, 20)
    assert warm(0) == 0
    for time in (step / 8 for step in range(8 * 20)):
        assert warm(time) == close(plain(time) * min(1, time / warmup))


@pytest.mark.parametrize("arguments, flag", [
    (("linear", 0.1, 10), "--lr_schedule"), (("Cosine", 0.1, 10), "--lr_schedule"),
    (("none", 0.0, 10), "--lr "), (("none", -0.1, 10), "--lr "), (("none", NAN, 10), "--lr "),
    (("none", INFINITY, 10), "--lr "),
    (("none", 0.1, 10, -1), "--warmup"), (("none", 0.1, 10, 11), "--warmup"), (("none", 0.1, 10, NAN), "--warmup"),
    (("multistep", 0.1, 10, 0, (2, 5), 0.0), "--lr_gamma"), (("multistep", 0.1, 10, 0, (2, 5), -1), "--lr_gamma"),
    (("multistep", 0.1, 10, 0, (2, 5), NAN), "--lr_gamma"),
])
def test_learning_rate_refuses_numbers_out_of_range(arguments, flag):
    with pytest.raises(ValueError, match=flag):
        LearningRate(*arguments)


# All three

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
    assert [make()(epoch) for epoch in EPOCHS] == [values[epoch] for epoch in EPOCHS]  # as after resuming
