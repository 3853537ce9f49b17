"""The position within an epoch, its teacher-forcing draw and its sums: what continuing there needs besides weights."""
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class EpochSums:
    """Sums over an epoch's clips, float64 scalars that stay on the device: reading them in each step would make the
    host wait for it."""
    loss: Tensor
    mse: Tensor  # like the loss, summed over a clip's frames
    kl: Tensor
    psnr: Tensor  # dB, mean over a clip's frames
    clips: Tensor  # of finite steps
    skipped: Tensor  # non-finite steps

    @classmethod
    def zeros(cls, device: torch.device) -> "EpochSums":
        return cls.from_vector(torch.zeros(len(fields(cls)), dtype=torch.float64, device=device))

    @classmethod
    def from_vector(cls, values: Tensor) -> "EpochSums":
        return cls(*values.double().unbind())

    @classmethod
    def of_step(cls, sums: Tensor, clips: int, is_finite: Tensor) -> "EpochSums":
        """``sums`` (4,) of loss, MSE, KL and PSNR over the clips of a step; only a skipped step where it is not finite.

        Filled on the device: a value that is copied there would make the host wait.
        """
        finite = torch.cat([sums, sums.new_full((1,), clips), sums.new_zeros(1)])
        skipped = torch.zeros_like(finite)
        skipped[-1].fill_(1)
        return cls.from_vector(torch.where(is_finite, finite, skipped))

    @classmethod
    def from_numbers(cls, numbers: dict[str, float], device: torch.device) -> "EpochSums":
        return cls.from_vector(torch.tensor([numbers[field.name] for field in fields(cls)], dtype=torch.float64,
                                            device=device))

    def add(self, other: "EpochSums") -> None:
        torch._foreach_add_(list(vars(self).values()), list(vars(other).values()))

    def numbers(self) -> dict[str, float]:
        """Read all of them from the device at once."""
        return dict(zip(vars(self), torch.stack(list(vars(self).values())).tolist(), strict=True))


@dataclass
class EpochProgress:
    """The state of the epoch in progress."""
    order: Tensor  # int64 (clips,), the permutation in which the clips are seen
    forced: Tensor | None  # bool (1,), whether the epoch uses teacher forcing, where that is drawn once per epoch
    sums: EpochSums
    clips: int = 0  # seen so far
    forced_clips: float = 0.0  # of these, under teacher forcing; in a blend the sum of the weights
    lr: float = 0.0  # of the latest step
    seconds: float = 0.0

    @classmethod
    def begin(cls, order: Tensor, device: torch.device) -> "EpochProgress":
        return cls(order, None, EpochSums.zeros(device))

    def draw_teacher_forcing(self, unit: str, ratio: float, clips: int, generator: torch.Generator) -> Tensor:
        """Which clips of the next batch are fed real frames: bool (B,), or for "blend" their weight, float (B,).

        Parameters
        ----------
        unit : what it is drawn for, "epoch", "batch" or "clip"; or "blend", where nothing is drawn.
        ratio : probability, or weight, of the real frames.
        """
        if unit == "blend":
            return torch.full((clips,), ratio)
        if unit != "epoch":
            self.forced = None  # drawn before the unit was changed on resume
            return (torch.rand(clips if unit == "clip" else 1, generator=generator) < ratio).expand(clips)
        if self.forced is None:
            self.forced = torch.rand(1, generator=generator) < ratio
        return self.forced.expand(clips)

    def count(self, clips: int, forced: Tensor, seconds: float) -> None:
        """Add a batch. ``seconds``: of the epoch so far."""
        self.clips += clips
        self.forced_clips += float(forced.double().sum())
        self.seconds = seconds

    @property
    def is_complete(self) -> bool:
        return self.clips == len(self.order)

    def means(self) -> dict[str, float]:
        """train_loss, train_mse and train_kl per clip, and the number of skipped steps, as in metrics.csv."""
        sums = self.sums.numbers()
        return {f"train_{name}": sums[name] / sums["clips"] for name in ("loss", "mse", "kl")} | {
            "skipped": int(sums["skipped"])}

    def describe(self) -> str:
        """Means over the epoch so far, for its progress bar."""
        sums = self.sums.numbers()
        clips = max(sums["clips"], 1)
        return (f"loss {sums['loss'] / clips:.4g}, PSNR {sums['psnr'] / clips:.2f} dB, teacher forcing in "
                f"{self.forced_clips / self.clips:.0%}, lr {self.lr:.2g}"
                + (f", {sums['skipped']:.0f} skipped" if sums["skipped"] else ""))

    def state_dict(self) -> dict:
        return vars(self) | {"sums": self.sums.numbers()}

    @classmethod
    def from_state_dict(cls, state: dict, device: torch.device) -> "EpochProgress":
        return cls(**(state | {"sums": EpochSums.from_numbers(state["sums"], device)}))
