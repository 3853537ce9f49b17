"""Schedules as pure functions of the epoch, counted from 0: resuming a run needs no history."""
import math


class KLAnnealing:
    """Weight beta of the KL divergence (Fu et al. 2019, "Cyclical Annealing Schedule").

    Parameters
    ----------
    kind : "cyclical", "monotonic" or "none", in any letter case.
    cycle : for cyclical, epochs per cycle, at least 2; for monotonic, the divisor of its running sum, at least 1.
    ratio : slope, above 0. With 2, a cycle reaches ``stop`` half way.
    start, stop : range of beta for cyclical, at least 0; ``stop`` is the constant beta of none.

    Raises
    ------
    ValueError : unknown ``kind``, a cycle too short for cyclical, or ``start`` above ``stop``.
    """

    KINDS = ("cyclical", "monotonic", "none")

    def __init__(self, kind: str, cycle: int, ratio: float, start: float = 0.0, stop: float = 1.0):
        self.kind = kind.lower()
        if self.kind not in self.KINDS:
            raise ValueError(f'kind of KL annealing must be one of {", ".join(self.KINDS)}, got "{kind}"')
        if self.kind == "cyclical" and cycle < 2:  # beta would stay at start
            raise ValueError(f"cyclical KL annealing needs a cycle of at least 2 epochs, got {cycle}")
        if start > stop:
            raise ValueError(f"KL annealing needs start <= stop, got start {start} and stop {stop}")
        self.cycle, self.ratio, self.start, self.stop = cycle, ratio, start, stop

    def __call__(self, epoch: int) -> float:
        """beta in ``epoch``.

        cyclical: min(stop, start + (stop - start) * ((epoch mod cycle) / cycle) * ratio);
        monotonic: the running sum beta_0 = 0, beta_n = min(1, beta_{n-1} + ratio * n / cycle), in closed form;
        none: stop.
        """
        if self.kind == "cyclical":
            # Integer remainder: adding up a float step would drift and restart at the wrong epoch.
            fraction = (epoch % self.cycle) / self.cycle
            return min(self.stop, self.start + (self.stop - self.start) * fraction * self.ratio)
        if self.kind == "monotonic":
            return min(1.0, self.ratio * epoch * (epoch + 1) / (2 * self.cycle))
        return self.stop


class TeacherForcing:
    """Probability of feeding the real frame: scheduled sampling (Bengio et al. 2015) with a linear decay.

    ``tfr`` before epoch e = max(tfr_sde, 1); from e on tfr - tfr_d_step * (epoch - e + 1), but at least 0.

    Parameters
    ----------
    tfr : initial ratio, 0..1.
    tfr_sde : the epoch at which the decay starts, at least 0.
    tfr_d_step : decrease per epoch, at least 0.
    """

    def __init__(self, tfr: float, tfr_sde: int, tfr_d_step: float):
        self.tfr, self.decay_start, self.decay = tfr, max(tfr_sde, 1), tfr_d_step

    def __call__(self, epoch: int) -> float:
        """The ratio in ``epoch``, 0..1."""
        # 0.9 - 3 * 0.3 is 1e-16 in floating point; rounding makes the end an exact 0.
        return max(0.0, round(self.tfr - self.decay * max(0, epoch - self.decay_start + 1), 12))


class LearningRate:
    """Learning rate as a function of the time in epochs. Fractions count: it changes within an epoch.

    Parameters
    ----------
    kind : "none" (constant), "cosine" (to 0 at ``epochs``; Loshchilov & Hutter 2017) or "multistep" (multiplied by
        ``gamma`` at each of ``milestones``).
    lr : base rate, above 0.
    epochs : length of the run.
    warmup : epochs of linear growth from 0 at the start, at most ``epochs``.
    milestones, gamma : epochs and factor (above 0), for multistep.

    Raises
    ------
    ValueError : unknown ``kind``, or a warmup longer than the run.
    """

    KINDS = ("none", "cosine", "multistep")

    def __init__(self, kind: str, lr: float, epochs: int, warmup: float = 0.0,
                 milestones: tuple[int, ...] = (2, 5), gamma: float = 0.1):
        if kind not in self.KINDS:
            raise ValueError(f'kind of learning-rate schedule must be one of {", ".join(self.KINDS)}, got "{kind}"')
        if warmup > epochs:
            raise ValueError(f"warmup must not be longer than the run of {epochs} epochs, got {warmup}")
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
