"""Schedules: pure functions of the epoch (counted from 0), so that resuming needs no history."""
import math


class KLAnnealing:
    """Weight beta of the KL divergence (Fu et al. 2019, "Cyclical Annealing Schedule").

    Parameters
    ----------
    kind : "cyclical", "monotonic" or "none", in any letter case.
    cycle : cyclical: the length of a cycle in epochs; monotonic: the divisor of its running sum.
    ratio : steepness; cyclical with 2 reaches full weight half way through the cycle.
    start, stop : the weight's range for cyclical; ``stop`` is the constant weight of none.

    Raises
    ------
    ValueError : an unknown kind, or a number that no schedule can have; the message names the flag.
    """

    KINDS = ("cyclical", "monotonic", "none")

    def __init__(self, kind: str, cycle: int, ratio: float, start: float = 0.0, stop: float = 1.0):
        self.kind = kind.lower()
        if self.kind not in self.KINDS:
            raise ValueError(f'--kl_anneal_type "{kind}": choose one of {", ".join(self.KINDS)}')
        least = 2 if self.kind == "cyclical" else 1
        if cycle < least:
            raise ValueError(f"--kl_anneal_cycle {cycle}: {self.kind} annealing needs at least {least} epochs")
        if not (ratio > 0 and math.isfinite(ratio)):
            raise ValueError(f"--kl_anneal_ratio {ratio}: it must be above 0")
        if not (0 <= start <= stop and math.isfinite(stop)):
            raise ValueError(f"--kl_anneal_start {start}, --kl_anneal_stop {stop}: 0 <= start <= stop is needed")
        self.cycle, self.ratio, self.start, self.stop = cycle, ratio, start, stop

    def __call__(self, epoch: int) -> float:
        """The weight in ``epoch``.

        cyclical: min(stop, start + (stop - start) * ((epoch mod cycle) / cycle) * ratio);
        monotonic: the running sum beta_0 = 0, beta_n = min(1, beta_{n-1} + ratio * n / cycle), in closed form;
        none: stop.
        """
        if self.kind == "cyclical":
            # The remainder is of integers: a float step would drift and restart at the wrong epoch.
            share = (epoch % self.cycle) / self.cycle
            return min(self.stop, self.start + (self.stop - self.start) * share * self.ratio)
        if self.kind == "monotonic":
            return min(1.0, self.ratio * epoch * (epoch + 1) / (2 * self.cycle))
        return self.stop


class TeacherForcing:
    """Probability of feeding the real frame (scheduled sampling, Bengio et al. 2015, with a linear decay).

    ``tfr`` before epoch e = max(tfr_sde, 1); from e on tfr - tfr_d_step * (epoch - e + 1), never below 0.

    Parameters
    ----------
    tfr : ratio at the start, 0..1.
    tfr_sde : the epoch at which the decay starts, at least 0.
    tfr_d_step : what each epoch takes off, at least 0.

    Raises
    ------
    ValueError : a number out of its range; the message names the flag.
    """

    def __init__(self, tfr: float, tfr_sde: int, tfr_d_step: float):
        if not 0 <= tfr <= 1:
            raise ValueError(f"--tfr {tfr}: a ratio lies between 0 and 1")
        if tfr_sde < 0:
            raise ValueError(f"--tfr_sde {tfr_sde}: an epoch is at least 0")
        if not 0 <= tfr_d_step <= 1:
            raise ValueError(f"--tfr_d_step {tfr_d_step}: a decay lies between 0 and 1")
        self.tfr, self.decay_start, self.decay = tfr, max(tfr_sde, 1), tfr_d_step

    def __call__(self, epoch: int) -> float:
        """The ratio in ``epoch``, 0..1."""
        # 0.9 - 3 * 0.3 is 1e-16 in floats: rounding makes the end an exact 0.
        return max(0.0, round(self.tfr - self.decay * max(0, epoch - self.decay_start + 1), 12))


class LearningRate:
    """Learning rate as a function of the time in epochs, fractions included: it moves within an epoch.

    Parameters
    ----------
    kind : "none" (constant), "cosine" (to 0 at ``epochs``; Loshchilov & Hutter 2017) or "multistep" (times
        ``gamma`` at each of ``milestones``).
    lr : the base rate.
    epochs : length of the run.
    warmup : epochs of linear growth from 0, at the start.
    milestones, gamma : for multistep.

    Raises
    ------
    ValueError : an unknown kind or a number out of its range; the message names the flag.
    """

    KINDS = ("none", "cosine", "multistep")

    def __init__(self, kind: str, lr: float, epochs: int, warmup: float = 0.0,
                 milestones: tuple[int, ...] = (2, 5), gamma: float = 0.1):
        if kind not in self.KINDS:
            raise ValueError(f'--lr_schedule "{kind}": choose one of {", ".join(self.KINDS)}')
        if not (lr > 0 and math.isfinite(lr)):
            raise ValueError(f"--lr {lr}: it must be above 0")
        if not 0 <= warmup <= epochs:
            raise ValueError(f"--warmup {warmup}: it lies between 0 and the run's {epochs} epochs")
        if not 0 < gamma < math.inf:
            raise ValueError(f"--lr_gamma {gamma}: it must be above 0")
        self.kind, self.lr, self.epochs, self.warmup = kind, lr, epochs, warmup
        self.milestones, self.gamma = milestones, gamma

    def __call__(self, time: float) -> float:
        """The rate at ``time`` epochs after the start."""
        rate = self.lr
        if self.warmup > 0:
            rate *= min(1.0, time / self.warmup)
        if self.kind == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(time / self.epochs, 1.0)))
        elif self.kind == "multistep":
            rate *= self.gamma ** sum(time >= milestone for milestone in self.milestones)
        return rate
