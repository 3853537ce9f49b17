"""Train the conditional VAE on pose-conditioned clips.

    python Trainer.py --DR DATASET --save_root RUN                                       the course's protocol
    python Trainer.py --recipe best_small --DR DATASET --save_root RUN                   a recipe
    python Trainer.py --DR DATASET --save_root RUN --resume                              continue a run
    python Trainer.py --DR DATASET --save_root RUN --ckpt_path RUN/best.ckpt --test      validate only
    torchrun --nproc_per_node=4 Trainer.py --DR DATASET --save_root RUN                  on four GPUs

RUN/ then holds config.json, metrics.csv, timing.csv, TensorBoard events, last.ckpt, best.ckpt, epoch=N.ckpt,
psnr_best.csv, psnr_epoch=N.csv and figures/. dataloader.py describes the dataset's layout.
"""
import argparse
import math
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import utils  # noqa: F401  first: it says which packages are missing

# isort: split
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dataloader import ClipLoader, Clips, Data, Recording, load_data, load_validation
from modules.config.advice import MEMORY_ADVICE, advise_after_divergence, describe_divergence
from modules.config.build import describe_settings, make_model, make_optimizer, make_schedules
from modules.config.run_plan import OpenedRun, RunPlan, Start
from modules.config.summary import announce_start
from modules.config.trainer_flags import GivenFlags, checkpoint_errors, parse_command_line, read_settings
from modules.evaluation.evaluate import Evaluation, evaluate
from modules.evaluation.metrics import psnr
from modules.objective import clip_loss
from modules.plots.background import BackgroundDrawing
from modules.plots.run_figures import RunFigures, draw_shifts, draw_validation, sample_picture
from modules.training import checkpoint
from modules.training.distributed import DistributedContext
from modules.training.metric_log import MetricLog, describe_epoch
from modules.training.non_finite import NonFiniteStepGuard
from modules.training.progress import EpochSums
from modules.training.replay import Replay, choose_first_frames
from modules.training.run_folder import find_undrawn, write_config
from modules.training.run_writer import RunWriter
from modules.training.signals import StopSignals
from modules.training.state import TrainingState
from utils import (
    BadInput,
    Interrupted,
    as_bad_input,
    check_writable,
    compile_pays,
    logger,
    make_deterministic,
    make_generators,
    pick_device,
    pick_precision,
    progress_bar,
    run_main,
)

MAX_SKIPPED = 10  # abort when the latest 10 or more steps were all non-finite
CHECK_EVERY = 16  # steps between two checks of that: each makes the host wait for the device


class Trainer:
    """A training run: the model, its optimiser and schedules, and the state that a checkpoint keeps.

    Construct it, load a checkpoint into ``state`` where there is one to start from, and ``fit``.

    Parameters
    ----------
    args : the flags of Trainer.py.
    data : from ``load_data``.
    device : where the model and the data live.
    distributed : the processes that share each batch; None for this one alone.

    Raises
    ------
    BadInput : flags that no run can have.
    """

    def __init__(self, args: argparse.Namespace, data: Data, device: torch.device,
                 distributed: DistributedContext | None = None):
        self.args, self.data, self.device = args, data, device
        self.distributed = distributed or DistributedContext()
        self.folder = Path(args.save_root)
        self.precision = pick_precision(args.precision, device)
        self.autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=self.precision == "bf16")
        self.teacher_forcing, self.kl_annealing, self.learning_rate = make_schedules(args)
        torch.backends.cudnn.benchmark = not args.deterministic  # the sizes hardly ever change
        torch.manual_seed(args.seed)  # the initial weights
        # The layout in which convolutions run fastest, on CPUs with vector units as on GPUs.
        self.model = make_model(args).to(device, memory_format=torch.channels_last)
        self.trained_model = self.model  # or DistributedDataParallel around it
        self.optimizer = make_optimizer(args, self.model)
        self.guard = NonFiniteStepGuard(self.model, self.optimizer)
        self.generators = make_generators(args.seed, device)
        self.state = TrainingState(self.model, self.optimizer, self.generators, args.ema,
                                   Replay.empty(data.frames, data.replay_checksum) if args.replay else None,
                                   data.val.checksum(args.val_latent, args.seed, args.match_histogram), data.checksum)
        self.validation: tuple[int, Evaluation] | None = None  # the latest, with its epoch
        self.signals, self.drawing = StopSignals(), BackgroundDrawing()
        self.writer = RunWriter(self.folder, self.state_dict, args.save_every_minutes)

    @property
    def loader(self) -> ClipLoader:
        """The loader of the current epoch."""
        is_fast = self.args.fast_train and self.state.epoch < self.args.fast_train_epoch
        return self.data.fast_loader if is_fast else self.data.loader

    # The run

    def fit(self) -> None:
        """Train up to --num_epoch epochs; log, validate, save and draw as the flags say.

        Raises
        ------
        Interrupted : a signal asked for it, and last.ckpt holds the state.
        BadInput : training diverged; last.ckpt holds an earlier, finite state.
        """
        self._prepare_forward()
        with self.signals, self.drawing:
            if self.distributed.is_main:
                self.writer.log = MetricLog(self.folder, self.state.metrics, self.state.timing)
                is_complete = self.state.epoch >= self.args.num_epoch
                if undrawn := find_undrawn(self.folder, self.args.store_visualization, is_complete):
                    self.draw_missing(undrawn)
            while self.state.epoch < self.args.num_epoch:
                self.stop_if_requested()
                self.train_one_epoch()
                self.finish_epoch()

    def _prepare_forward(self) -> None:
        args = self.args
        # By the length of the whole run, so that a resumed one continues with the same arithmetic.
        frames = len(self.data.loader.starts) * args.train_vi_len * args.num_epoch
        if compile_pays(args.compile, self.device, 0 if args.deterministic else frames):
            torch._dynamo.config.optimize_ddp = False  # it would split the compiled parts for a small gain
            self.state.compile_steps()
        if not self.distributed.is_single:
            # Buffers need no exchange: training reads none of them, and the main rank's are saved.
            self.trained_model = DistributedDataParallel(self.model, broadcast_buffers=False)

    def train_one_epoch(self) -> None:
        """Train on the shuffled clips of the epoch, or on those that an interruption has left."""
        args, epoch, loader = self.args, self.state.epoch, self.loader
        beta, ratio = self.kl_annealing(epoch), self.teacher_forcing(epoch)
        progress = self.state.begin_epoch(len(loader.starts))
        began, shown = time.perf_counter() - progress.seconds, -math.inf
        shard = self.distributed.shard(loader.batch_size)
        self.model.compiled_batch = shard.stop - shard.start  # other sizes, such as the last batch's, run uncompiled
        self.model.train()
        batches = loader.batches(progress.order[progress.clips:], self.distributed.shard, self.generators["crop"],
                                 self.generators["random_frame"])
        with progress_bar(batches, f"epoch {epoch}/{args.num_epoch - 1}", len(loader), unit="batch",
                          initial=progress.clips // loader.batch_size) as bar:
            for step, batch in enumerate(bar, start=1):
                clips = min(loader.batch_size, len(progress.order) - progress.clips)  # of the whole batch
                forced = progress.draw_teacher_forcing(args.tf_draw, ratio, clips, self.generators["teacher_forcing"])
                # At the middle of the step, so that an epoch's mean rate does not depend on the batch size.
                progress.lr = self.learning_rate(epoch + (progress.clips + clips / 2) / len(progress.order))
                progress.sums.add(self.train_step(batch, forced, beta, progress.lr))
                progress.count(clips, forced, time.perf_counter() - began)
                if step % CHECK_EVERY == 0:
                    self.abort_if_diverged()
                if time.monotonic() - shown > 0.5 and self.distributed.is_main:
                    shown = time.monotonic()
                    bar.set_postfix_str(f"{progress.describe()}, beta {beta:.3g}", refresh=False)
                self.stop_if_requested()
                if self.distributed.is_main and self.writer.is_due():
                    self.save()
        self.abort_if_diverged()  # this waits for the device: only now is the time that of the whole work
        progress.seconds = time.perf_counter() - began

    # A step

    def train_step(self, batch: Clips, forced: Tensor, beta: float, lr: float) -> EpochSums:
        """One update of the weights.

        Parameters
        ----------
        batch : this rank's shard of the B clips.
        forced : (B,), for all clips: bool, which see real frames, or float, the weight of the real frame in a blend.

        Returns
        -------
        On the device: loss, MSE, KL (summed over a clip's frames) and PSNR (dB, mean over frames), each times B; B
        clips; 0 skipped steps. A step whose loss or gradient is not finite changes nothing and counts as skipped only.
        """
        args = self.args
        clips, shard = len(forced), self.distributed.shard(len(forced))
        self.guard.snapshot()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        frames, targets = batch.frames, batch.frames[:, 1:]
        if args.any_first or args.replay:
            first = choose_first_frames(batch, args.any_first, self.state.replay, args.replay, clips, shard,
                                        self.generators["first_frame"])
            frames = torch.cat([first[:, None], targets], dim=1)
        # Every rank draws the noise of the whole batch, so that it does not depend on how the batch is divided.
        noise = torch.randn(clips, targets.shape[1], self.model.N_dim, *frames.shape[-2:], device=self.device,
                            generator=self.generators["latent"])[shard]
        with self.autocast():
            predictions, mu, logvar = self.trained_model(frames, batch.labels, forced[shard], noise,
                                                         reference=batch.random_frame)
        predictions, mu, logvar = predictions.float(), mu.float(), logvar.float()
        if len(frames):
            loss, mse, kl = clip_loss(predictions, targets, mu, logvar, beta, args.kl_reduction, args.l1,
                                      args.decoder_variance)
            quality = psnr(predictions.detach(), targets).mean()
        else:  # more ranks than clips: nothing to learn from, but the others wait for a gradient
            loss = mse = kl = quality = predictions.sum() + mu.sum() + logvar.sum()
        self.optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel takes the mean over the ranks; it must be the mean over the clips.
        (loss * (len(frames) * self.distributed.world_size / clips)).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), args.clip_grad or math.inf)
        with torch.no_grad():
            sums = self.distributed.all_sum(torch.stack([loss, mse, kl, quality]) * len(frames))
            is_finite = self.guard.step(sums[:3] / clips, norm)
            if self.state.ema is not None:
                self.state.ema.update_parameters(self.model, is_finite)
            if self.state.replay is not None:
                # Only uncropped clips are stored. Every rank stores those of all ranks.
                index, predictions, is_kept = (self.distributed.all_shards(part, clips) for part in (
                    batch.index[:, 1:], predictions.detach(), (batch.is_whole & is_finite).int()))
                self.state.replay.remember(index, predictions, is_kept[:, None] > 0)
            return EpochSums.of_step(sums, clips, is_finite)

    # Between epochs

    def finish_epoch(self) -> None:
        """Validate and log; save and draw as often as the flags and the clock say."""
        args, state, epoch, progress = self.args, self.state, self.state.epoch, self.state.progress
        is_last = epoch + 1 == args.num_epoch
        is_save = is_last or epoch % args.per_save == 0
        is_validation = is_last or epoch % args.val_every == 0 or (is_save and args.store_visualization)
        if not self.distributed.is_main:  # a rollout cannot be shared, each frame needs the previous one: keep pace
            for _ in self._validation_frames(range(1, len(self.data.val.frames)) if is_validation else ()):
                pass
            state.epoch, state.progress = epoch + 1, None
            return
        encoder = state.evaluated_model.label_encoder
        encoder.set_statistics(*encoder.pose_statistics(self.data.pose_sample))
        self._check_finite()
        began = time.perf_counter()
        evaluation = self.validate() if is_validation else None
        row = {"epoch": epoch, **progress.means(), "beta": self.kl_annealing(epoch), "lr": progress.lr,
               "tfr": self.teacher_forcing(epoch), "tf_used": progress.forced_clips / progress.clips,
               "val_loss": None if evaluation is None else evaluation.mse,
               "val_psnr": None if evaluation is None else evaluation.mean_psnr}
        self.writer.log.add(row, progress.seconds, time.perf_counter() - began, progress.clips * args.train_vi_len)
        state.epoch, state.progress, scores, is_best = epoch + 1, None, None, False
        if evaluation is not None:
            self.validation, scores = (epoch, evaluation), (evaluation.psnr, evaluation.psnr_repeat_first)
            is_best = evaluation.mean_psnr > state.best_psnr
            state.best_psnr = max(evaluation.mean_psnr, state.best_psnr)
        if is_last:
            self.drawing.wait()  # figures that are older than the last checkpoint count as missing
        self.writer.finish_epoch(epoch, scores, is_best, is_save)
        if is_last or self.writer.is_due(at_end=True):
            self.save()
        self._report(row, evaluation)
        keeps_gif = is_save and args.store_visualization
        if is_last or keeps_gif or self.drawing.is_due():
            self.draw(keeps_gif, is_last)

    def validate(self) -> Evaluation | None:
        """Evaluate a rollout of the validation sequence, z from the same seed each time. None where it diverged, as
        that of an untrained model with unbounded output may."""
        args, val = self.args, self.data.val
        try:
            return evaluate(self.state.evaluated_model, val.frames, val.labels, args.val_latent, args.seed,
                            self.precision, self._validation_frames)
        except ValueError as error:
            logger.warning("epoch %d has no score, %s; training continues", self.state.epoch, error)
            return None

    def _validation_frames(self, frames: Iterable[int]) -> Iterator[int]:
        for frame in progress_bar(frames, "validation", unit="frame"):
            yield frame
            self.stop_if_requested()

    def _report(self, row: dict, evaluation: Evaluation | None) -> None:
        try:
            print(describe_epoch(row, self.args.num_epoch, self.args.train_vi_len - 1, evaluation), flush=True)
        except OSError:  # a closed terminal, which also sends a signal
            self.save()
            if self.distributed.is_single:  # otherwise the other ranks are elsewhere
                self.stop_if_requested()
            raise

    def draw(self, keeps_gif: bool, is_last: bool) -> None:
        """Draw the figures of the run so far: at its end at once, before that beside the training."""
        figures = RunFigures(self.folder.absolute() / "figures", self.state.metrics, self.args.train_vi_len - 1,
                             self.data.val.labels.cpu(), self.validation, keeps_gif)
        if self.validation is not None:
            self.writer.log.add_picture(sample_picture(self.validation[1], figures.labels), self.validation[0])
        if is_last:
            figures.draw()
        else:
            self.drawing.start(figures)

    def draw_missing(self, path: Path) -> None:
        """Draw the figures of the latest epoch=N.ckpt, ``path``, where a process died before it drew them."""
        print(f"drawing the missing or outdated figures of {path.name}", flush=True)
        try:
            saved = checkpoint.read(path)
            self.validation = saved["epoch"] - 1, evaluate_checkpoint(saved, self.args, self.data.val, self.device)
        except ValueError as error:
            logger.warning("%s has no validation figures: %s", path, error)
        self.draw(self.args.store_visualization, is_last=True)

    # Stopping

    def stop_if_requested(self) -> None:
        """If a signal has asked the run to stop, save and raise Interrupted. All ranks call it at the same places:
        between two steps, and between two frames of a validation."""
        number = self.distributed.all_max(self.signals.number or 0)
        if not number:
            return
        is_saved = not self.distributed.is_main or self.save()
        state = "the state" if is_saved else "a state from before the latest steps, which were skipped"
        raise Interrupted(f"{signal.Signals(number).name}: stopped {self.state.describe_place()}; "
                          f"{self.folder / 'last.ckpt'} holds {state}, continue with --resume", number)

    def abort_if_diverged(self) -> None:
        """BadInput where the latest steps were all skipped as non-finite, or all of the complete epoch."""
        streak, progress, epoch = self.guard.streak.tolist(), self.state.progress, self.state.epoch
        if streak[0] >= MAX_SKIPPED or (progress.is_complete and progress.sums.clips.item() == 0):
            place = f"clip {progress.clips} of epoch {epoch}"
            raise BadInput(describe_divergence(self.args, streak, place, progress.lr, self.kl_annealing(epoch)))

    def _check_finite(self) -> None:
        """BadInput where the state is not finite. Called before anything is saved."""
        if not self.state.is_finite():
            raise BadInput(f"non-finite weights in epoch {self.state.epoch}; {advise_after_divergence(self.args)}")

    # Checkpoints

    def state_dict(self, with_replay: bool) -> dict:
        """What a checkpoint holds, for resuming and generating. BadInput: the state is not finite."""
        self._check_finite()
        return self.state.state_dict(self.data.pose_sample, with_replay) | describe_settings(self.args)

    def save(self) -> bool:
        """Write tables, best.ckpt and last.ckpt; not the latter while steps are being skipped: then the weights may be
        the cause, and a run that resumes from an older last.ckpt repeats these steps with the same outcome. Returns
        whether last.ckpt was written."""
        self.writer.write(with_last=(is_finite := bool(self.guard.streak[0] == 0)))
        return is_finite


# The program


def main(argv: list[str] | None = None) -> None:
    given = parse_command_line(argv)
    with as_bad_input():
        distributed = DistributedContext()
    with distributed:
        if given.all.get("test"):
            if distributed.is_main:
                test(given)
        elif distributed.is_main:
            run(given, distributed)
        elif (start := distributed.broadcast(None)) is not None:  # otherwise there is nothing to train
            make_trainer(*start, distributed).fit()


def run(given: GivenFlags, distributed: DistributedContext) -> None:
    """The main rank's part, the only one that reads and writes the run folder."""
    with OpenedRun(given) as opened:
        start = opened.prepare(distributed.world_size)
        distributed.broadcast(start)
        if start is None:  # the run is complete
            return
        trainer = make_trainer(*start, distributed)
        plan = opened.claim()
        if trainer.state.epoch < trainer.args.num_epoch:  # otherwise only figures are missing
            begin_run(trainer, plan, None if start[2] else start[1])
        trainer.fit()
    print(f"{trainer.state.describe_score()}; checkpoints, curves and figures are in {trainer.folder}")


def make_trainer(args: argparse.Namespace, state: dict | None, weights_only: bool,
                 distributed: DistributedContext) -> Trainer:
    """Load the data and construct the trainer in the state that it starts from."""
    if args.deterministic:
        make_deterministic()
    device = pick_device(args.device, args.threads)
    with distributed.local_main_first():
        data = load_data(args, device)
    # Ranks with other frames would go through other batches and wait for each other at different places.
    if distributed.broadcast(data.checksum) != data.checksum:
        raise BadInput(f"--DR {args.DR}: these frames are not those of the main rank; give all machines the same "
                       "dataset")
    if not distributed.is_main:
        data.person_shift = None  # only the main rank draws it
    trainer = Trainer(args, data, device, distributed)
    if state is not None:
        with checkpoint_errors(Path(args.ckpt_path)):
            trainer.state.load_weights(state) if weights_only else trainer.state.load_state_dict(state)
    return trainer


def begin_run(trainer: Trainer, plan: RunPlan, saved: dict | None) -> None:
    """Write the first files of the run, from which it can be resumed. ``saved``: the checkpoint that it continues."""
    args, data, state = trainer.args, trainer.data, trainer.state
    if plan.start is not Start.RESUME or not (plan.folder / "best.ckpt").exists():
        state.best_psnr = -math.inf  # that of a run in another folder: this one needs a best.ckpt of its own
    trainer.save()  # from now on there is something to resume
    plan.delete_replaced(state.epoch)
    write_config(plan.folder / "config.json", vars(args), {"root": str(Path(args.DR).absolute()), **data.facts()})
    if data.person_shift is not None:
        draw_shifts(data.person_shift, plan.folder / "figures" / "shifted_copies.png")
    place = f"{trainer.distributed.world_size} x {trainer.device.type}, run folder {plan.folder}"
    announce_start(args, state, saved, trainer.learning_rate, data, place)
    data.person_shift = None  # as large as the recording, and not needed any more


def test(given: GivenFlags) -> None:
    """--test: evaluate a checkpoint on the validation sequence, print its scores and draw its figures."""
    path = given.all.get("ckpt_path")
    if not path or given.all.get("finetune"):
        raise BadInput("--test evaluates a checkpoint; name it with --ckpt_path, and leave out --finetune")
    args, state = read_settings(given, Path(path))
    check_writable(Path(args.save_root))
    device = pick_device(args.device, args.threads)
    val = load_validation(args, device)
    with as_bad_input(f"--ckpt_path {path}"):
        evaluation = evaluate_checkpoint(state, args, val, device)
    trained = "unknown epochs" if state["epoch"] is None else f"{state['epoch']} epochs"
    draw_validation(evaluation, val.labels.cpu(), f"after {trained}", Path(args.save_root) / "figures", "test_")
    print(f"validation of {path} after {trained}, z from the {args.val_latent}, {len(val.frames) - 1} frames: "
          f"{evaluation}, loss {evaluation.mse:.6f}")


def evaluate_checkpoint(state: dict, args: argparse.Namespace, val: Recording, device: torch.device) -> Evaluation:
    """The validation score of a checkpoint. ValueError: the rollout diverged."""
    model = checkpoint.load_model(state, device, args.match_histogram)
    return evaluate(model, val.frames, val.labels, args.val_latent, args.seed, pick_precision(args.precision, device),
                    partial(progress_bar, desc="validation", unit="frame"))


if __name__ == "__main__":
    sys.exit(run_main("Trainer.py", main, MEMORY_ADVICE))
