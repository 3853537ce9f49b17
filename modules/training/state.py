"""The state of a training run: everything that a checkpoint keeps, and that a resumed run continues from."""
import math

import torch
from torch import Tensor

from modules.network.cvae import CVAE
from modules.training import checkpoint
from modules.training.ema import ExponentialMovingAverage
from modules.training.metric_log import METRICS, TIMING
from modules.training.progress import EpochProgress
from modules.training.replay import Replay
from utils import logger

RUNNING_MEAN, RUNNING_VAR = "label_encoder.2.running_mean", "label_encoder.2.running_var"


class TrainingState:
    """The parts of a run that change while it trains.

    Parameters
    ----------
    model : the network that is trained.
    optimizer : over the model's parameters.
    generators : from ``make_generators``.
    ema_decay : 0 for no moving average of the weights.
    replay : None where no clip is replayed.
    validation : checksum of all that the validation score depends on besides the model. A best score that was
        measured under another one is not kept.
    recording : checksum of the training recording.
    """

    def __init__(self, model: CVAE, optimizer: torch.optim.Optimizer, generators: dict[str, torch.Generator],
                 ema_decay: float = 0.0, replay: Replay | None = None, validation: int = 0,
                 recording: int = 0):
        self.model, self.optimizer, self.generators, self.replay = model, optimizer, generators, replay
        self.validation, self.recording = validation, recording
        self.ema = ExponentialMovingAverage(model, ema_decay) if ema_decay else None
        self.epoch = 0  # the epoch to be run next, or in progress
        self.progress: EpochProgress | None = None  # of the epoch in progress
        self.best_psnr = -math.inf  # of the validations so far, dB
        self.metrics: list[dict] = []  # rows of metrics.csv
        self.timing: list[dict] = []

    @property
    def evaluated_model(self) -> CVAE:
        """The model that is evaluated and generated with: averaged weights where there are any."""
        return self.model if self.ema is None else self.ema.module

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def compile_steps(self) -> None:
        self.model.compile_steps()
        if self.ema is not None:
            self.ema.module.compile_steps()

    def describe_place(self) -> str:
        """Where in the run it is, for messages."""
        if self.progress is None:
            return f"before epoch {self.epoch}"
        if self.progress.is_complete:
            return f"after the last step of epoch {self.epoch}"
        return f"in epoch {self.epoch} after {self.progress.clips} of {len(self.progress.order)} clips"

    def describe_score(self) -> str:
        return f"best validation PSNR {self.best_psnr:.2f} dB" if math.isfinite(self.best_psnr) else "no score yet"

    def begin_epoch(self, clips: int) -> EpochProgress:
        """The progress within the interrupted epoch, or that of a new one with ``clips`` clips in random order."""
        if self.progress is not None and len(self.progress.order) != clips:
            logger.warning("epoch %d starts again: it had %d clips and now has %d", self.epoch,
                           len(self.progress.order), clips)
            self.progress = None
        if self.progress is None:
            order = torch.randperm(clips, generator=self.generators["order"])
            self.progress = EpochProgress.begin(order, self.device)
        return self.progress

    def is_finite(self) -> bool:
        """Whether weights, running statistics and the optimiser's moments are all finite."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = (*self.model.state_dict().values(), *self.evaluated_model.state_dict().values(), *moments)
        return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())

    def state_dict(self, poses: Tensor, with_replay: bool) -> dict:
        """What a checkpoint keeps. Nothing is changed.

        Parameters
        ----------
        poses : (P, 3, H, W) in [0, 1], from which BatchNorm's statistics are estimated, so that the file can be
            evaluated as it is, also one from within an epoch.
        with_replay : include the replay's predictions, which are as large as the training frames.
        """
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        ema = None
        if self.ema is not None:
            ema = {name: value.clone() for name, value in self.ema.module.state_dict().items()}
        mean, var = self.evaluated_model.label_encoder.pose_statistics(poses)
        (weights if ema is None else ema).update({RUNNING_MEAN: mean, RUNNING_VAR: var})
        return {"weights": weights, "ema": ema, "ema_steps": 0 if self.ema is None else int(self.ema.n_averaged),
                "optimizer": self.optimizer.state_dict()["state"],  # its settings are the flags'
                "generators": {purpose: generator.get_state() for purpose, generator in self.generators.items()},
                "device": self.device.type,
                "replay": vars(self.replay.to(torch.device("cpu"))) if with_replay and self.replay else None,
                "epoch": self.epoch, "best_psnr": self.best_psnr, "validation": self.validation,
                "recording": self.recording,
                "metrics": self.metrics, "timing": self.timing,
                "progress": None if self.progress is None else self.progress.state_dict()}

    def load_weights(self, state: dict) -> None:
        """Start from the evaluated weights of a checkpoint and nothing else."""
        self.model.load_state_dict(checkpoint.evaluated_weights(state))
        if self.ema is not None:
            self.ema.load(self.model.state_dict(), 0)

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where a checkpoint was saved. Nothing changes unless all of it fits.

        Predictions of another recording than the replay's are ignored.

        Raises
        ------
        ValueError : a part is missing or does not fit.
        """
        checkpoint.check_training_state(state, dict(self.model.named_parameters()), self.generators,
                                        {"metrics": METRICS, "timing": TIMING})
        replay = None
        if self.replay is not None and state["replay"] and state["replay"]["checksum"] == self.replay.checksum:
            replay = Replay(**state["replay"]).to(self.device)
            if replay.predictions.shape != self.replay.predictions.shape:
                raise ValueError("the checkpoint is damaged (replay); use another one")
        self.model.load_state_dict(state["weights"])
        if self.ema is not None:
            self.ema.load(checkpoint.evaluated_weights(state), state["ema_steps"])
        moments = {}
        for index, parameter in enumerate(self.model.parameters()):
            if index in state["optimizer"]:
                moment = state["optimizer"][index]
                # Laid out in memory like the weights: a fused step traverses both alike.
                moments[index] = {"step": moment["step"]} | {
                    name: torch.empty_like(parameter).copy_(moment[name]) for name in ("exp_avg", "exp_avg_sq")}
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        for purpose, generator in self.generators.items():
            if checkpoint.is_portable(purpose, generator, state["device"]):
                generator.set_state(state["generators"][purpose])
        self.replay = replay or self.replay
        self.epoch = state["epoch"]
        if state["validation"] == self.validation:
            self.best_psnr = state["best_psnr"]
        else:
            logger.warning("the validation differs from that of the checkpoint in its frames, latent, seed or "
                           "histogram matching: the best score is reset")
        self.metrics, self.timing = state["metrics"], state["timing"]
        if state["progress"] is not None:
            self.progress = EpochProgress.from_state_dict(state["progress"], self.device)
