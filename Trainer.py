"""Train the conditional VAE on pose-conditioned clips.

    python Trainer.py --DR DATASET --save_root RUN                                       the defaults
    python Trainer.py @scripts/recipes/report.args --DR DATASET --save_root RUN          a recipe
    python Trainer.py --DR DATASET --save_root RUN --resume                              continue a run
    python Trainer.py --DR DATASET --save_root RUN --ckpt_path RUN/best.ckpt --test      validate only
    torchrun --nproc_per_node=4 Trainer.py --DR DATASET --save_root RUN                  on four GPUs

RUN/ then holds config.json, metrics.csv, timing.csv, TensorBoard events, last.ckpt, best.ckpt, epoch=N.ckpt,
psnr_best.csv, psnr_epoch=N.csv and figures/. The dataset's layout stands in dataloader.py.
"""
import argparse
import contextlib
import math
import os
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dataloader import ClipLoader, Clips, read_recording, read_validation, to_float
from modules.config.parser import ChoiceOrOff, FlagParser, folder_name, number
from modules.data.frame_cache import FrameCache
from modules.data.histogram import HISTOGRAM_REFERENCES
from modules.evaluation.metrics import psnr, repeat_first
from modules.network.cvae import CVAE, FEEDS
from modules.objective import DECODER_VARIANCES, clip_loss
from modules.plots import curves, video
from modules.schedulers import KLAnnealing, LearningRate, TeacherForcing
from modules.training import checkpoint
from modules.training.checkpoint import LARGEST_FRAME, LARGEST_NETWORK, NETWORK_FLAGS, ON_DEVICE, load_checkpoint
from modules.training.distributed import DistributedContext
from modules.training.ema import WeightAverage
from modules.training.metric_log import METRICS, TIMING, MetricLog
from modules.training.non_finite import NonFiniteStepGuard
from modules.training.replay import Replay
from modules.training.run_folder import check_run_folder, describe_run, hold_run_folder
from modules.training.signals import StopSignals
from utils import (
    BadInput,
    Interrupted,
    as_bad_input,
    atomic_write,
    check_writable,
    compile_pays,
    make_deterministic,
    make_generators,
    pick_device,
    pick_precision,
    progress_bar,
    run_main,
    tell,
    write_json,
    write_table,
)

# What belongs to one call of the program rather than to the run: a continued run does not take these over.
CALL_FLAGS = ("DR", "save_root", "ckpt_path", "resume", "finetune", "overwrite", "test", "device", "gpu", "num_workers",
              "compile", "cache", "cache_dir")
# How a checkpoint was trained that is older than these flags.
WITHOUT_FLAG = {"replay": 0.0, "ema": 0.0, "decoder_variance": "fixed"}

POSES_FOR_STATISTICS = 512  # a million values a channel: more would not change the third digit
CONSTANT_BETA = {"fixed": 0.0001, "optimal": 0.001}  # by --decoder_variance
SKIPPED_IN_A_ROW = 10  # steps with bad numbers after which no good one is to be hoped for
LOOK_EVERY = 16  # steps between two looks at how many were skipped: a look makes the host wait for the device
MEMORY_ADVICE = ("go on with --resume and a smaller --batch_size (or --train_vi_len), --no-bptt, --precision bf16 or "
                 "--device cpu, or start anew with a smaller --F_dim, --D_out_dim, --frame_H, --frame_W or --partial")


@dataclass
class EpochProgress:
    """How far an epoch is: what it takes, besides the weights, to go on within it."""
    order: Tensor  # (clips,), the permutation in which the clips are seen
    forced: Tensor | None  # bool (1,), whether the epoch uses teacher forcing, where that is drawn once an epoch
    sums: Tensor  # float64 (6,) on the device: loss, MSE, KL, PSNR, each times clips; clips that count; skipped steps
    clips: int = 0  # seen so far
    forced_clips: int = 0  # seen so far under teacher forcing
    lr: float = 0.0  # of the latest step
    seconds: float = 0.0


class Trainer:
    """A training run: the model, its schedules and optimiser, the data, and the state that a checkpoint keeps.

    Parameters
    ----------
    args : the flags of ``make_parser``.
    device : where the model and the frames live.
    processes : those that share each batch; this one alone where it is None.

    Raises
    ------
    BadInput : flags that no run can have; the message names them.
    """

    def __init__(self, args: argparse.Namespace, device: torch.device, processes: DistributedContext | None = None):
        self.args, self.device, self.processes = args, device, processes or DistributedContext({})
        if self.processes.count > args.batch_size:
            raise BadInput(f"--batch_size {args.batch_size}: fewer clips than the {self.processes.count} processes; "
                           "give at least one to each")
        # What is kept is what "auto" has come to: a continued run goes on in the same arithmetic.
        args.precision = pick_precision(args.precision, device)
        torch.backends.cudnn.benchmark = not args.deterministic  # the sizes hardly ever change
        torch.manual_seed(args.seed)  # the initial weights
        with as_bad_input(ValueError):
            self.model = CVAE(**{flag: getattr(args, flag) for flag in NETWORK_FLAGS}, bptt=args.bptt,
                              match_histogram=args.match_histogram)
            self.teacher_forcing = TeacherForcing(args.tfr, args.tfr_sde, args.tfr_d_step)
            self.kl_annealing = KLAnnealing(args.kl_anneal_type, args.kl_anneal_cycle, args.kl_anneal_ratio,
                                            args.kl_anneal_start, self._top_beta())
            self.learning_rate = LearningRate(args.lr_schedule, args.lr, args.num_epoch, args.warmup,
                                              args.lr_milestones, args.lr_gamma)
        # The layout in which convolutions run fastest, on CPUs with vector units as on GPUs.
        self.model.to(device, memory_format=torch.channels_last)
        self.autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=args.precision == "bf16")
        decay = args.weight_decay if args.weight_decay is not None else {"Adam": 0.0, "AdamW": 0.01}[args.optim]
        self.optimizer = getattr(torch.optim, args.optim)(self.model.parameters(), lr=args.lr, weight_decay=decay,
                                                          fused=True)
        self.guard = NonFiniteStepGuard(self.model, self.optimizer)
        self.average = WeightAverage(self.model, args.ema)
        self.replay: Replay | None = None  # with --replay, once the frames are known
        self.forward = self.model
        self.generators = make_generators(args.seed, device)
        self.epoch = 0  # the epoch to be run next, or the one under way
        self.progress: EpochProgress | None = None
        self.best_psnr = -math.inf
        self.metrics: list[dict] = []
        self.timing: list[dict] = []
        self.validation: dict | None = None  # the latest result of validate()
        self.folder = Path(args.save_root)
        self.interrupts: StopSignals | None = None  # while fit() runs
        self.saved_at = time.monotonic()

    def _top_beta(self) -> float:
        """--kl_anneal_stop, or without it the course's top of a cycle and the constant that served best."""
        if self.args.kl_anneal_stop is not None:
            return self.args.kl_anneal_stop
        return CONSTANT_BETA[self.args.decoder_variance] if self.args.kl_anneal_type == "None" else 1.0

    def load_data(self) -> None:
        """Read the validation sequence and, unless --test, the training frames from --DR onto the device.

        Raises
        ------
        BadInput : the dataset is missing, incomplete, damaged or too short, or --cache_dir cannot be written; the
            message names the file or folder.
        """
        with self.processes.one_before_others():
            self._load_data()
        # Others would go through other batches, and all would wait for each other at different places.
        if not self.processes.is_alone and self.processes.broadcast(self.fingerprint) != self.fingerprint:
            raise BadInput(f"--DR {self.args.DR}: the frames here are not those that the first process has; give all "
                           "machines the same dataset")

    def _load_data(self) -> None:
        args, root = self.args, Path(self.args.DR)
        cache = FrameCache(root, args.cache_dir) if args.cache else None
        how = args.frame_H, args.frame_W, args.num_workers, cache
        val = read_validation(root, args.val_vi_len, *how).to(self.device)
        self.val_frames, self.val_labels = to_float(val.frames), to_float(val.labels)
        if args.test:
            return
        train = read_recording(root, "train", *how)
        if not self.processes.is_alone:
            self.fingerprint = [zlib.crc32(part.numpy()) for part in (train.numbers, train.frames, train.labels)]
        shape = repr(tuple(train.frames.shape)).encode()
        crc = zlib.crc32(train.frames.numpy(), zlib.crc32(shape)) if args.replay else 0
        train = train.to(self.device)
        shares = {False: ("--partial", args.partial)}
        if args.fast_train:
            shares[True] = ("--fast_partial", args.fast_partial)
        self.loaders = {}  # by whether an epoch is a fast one, and by how often the clips' length has doubled
        for fast, (flag, share) in shares.items():
            recording = train.first(int(share * len(train.numbers) + 1e-9))  # 0.29 * 100 is 28.999... in floats
            grown = sorted(args.grow_vi_len)
            for doublings, (first, end) in enumerate(zip([0, *grown], [*grown, args.num_epoch], strict=True)):
                end = min(end, args.num_epoch, args.fast_train_epoch) if fast else min(end, args.num_epoch)
                if first >= end and (fast, doublings) != (False, 0):  # there is no such epoch
                    continue
                length = args.train_vi_len * 2**doublings
                # With --replay a clip begins with the frame that the clip before it predicts last.
                stride = args.clip_stride or length - (args.replay > 0)
                batch_size = max(args.batch_size // 2**doublings, self.processes.count)
                self.loaders[fast, doublings] = ClipLoader(recording, length, stride, batch_size, flag,
                                                           args.crop_fraction,
                                                           args.reference_frame or args.feed == "first"
                                                           or args.any_first > 0, "--train_vi_len"
                                                           if not doublings else "--grow_vi_len's number of epochs")
        if args.replay:
            if self.replay is None or self.replay.of != crc:  # none, or of other frames
                self.replay = Replay(torch.zeros_like(train.frames), torch.zeros(len(train.frames), dtype=torch.bool),
                                     crc)
            self.replay = self.replay.to(self.device)

    def fit(self) -> None:
        """Train up to --num_epoch epochs; log, validate and save as the flags say.

        Raises
        ------
        Interrupted : a signal has asked for it, and last.ckpt holds the state.
        BadInput : the numbers went bad; last.ckpt holds the latest good weights.
        """
        args = self.args
        clips = len(self.loaders[False, 0].starts)
        # By the length of the whole run, so that a continued one goes on with the same arithmetic.
        if compile_pays(args.compile, self.device, 0 if args.deterministic else
                        clips * args.train_vi_len * args.num_epoch):
            torch._dynamo.config.optimize_ddp = False  # it would cut the pieces up, to send early what is small anyway
            self.model.compile_steps()  # for the batches of the epoch: train_one_epoch says how large they are
        if not self.processes.is_alone:
            # Buffers need no exchange: training reads none of them, and the first process's are saved.
            self.forward = DistributedDataParallel(self.model, broadcast_buffers=False)
        with StopSignals() as self.interrupts:
            log = None
            if self.processes.rank == 0:
                place = self.device.type
                if not self.processes.is_alone:
                    place = f"{self.processes.count} processes on {place}"
                parameters = sum(value.numel() for value in self.model.parameters())
                print(f"{clips} clips of {args.train_vi_len} frames, {parameters:,} parameters, {place}, "
                      f"{args.precision}, run folder {self.folder}", flush=True)
                log = MetricLog(self.folder, self.metrics, self.timing)
                log.write()
            while self.epoch < self.args.num_epoch:
                self.end_if_asked()
                self.train_one_epoch()
                self.finish_epoch(log)

    @property
    def loader(self) -> ClipLoader:
        """Of the epoch that is to be run next or under way."""
        args = self.args
        return self.loaders[args.fast_train and self.epoch < args.fast_train_epoch,
                            sum(self.epoch >= grown for grown in args.grow_vi_len)]

    def train_one_epoch(self) -> None:
        """Train on the shuffled clips of the epoch, or on those that an interruption has left."""
        args, epoch = self.args, self.epoch
        loader = self.loader
        beta, ratio = self.kl_annealing(epoch), self.teacher_forcing(epoch)
        now = self.progress = self._begin_epoch(len(loader.starts), ratio)
        began, shown = time.perf_counter() - now.seconds, -math.inf
        share = self.processes.share(loader.batch_size)
        self.model.compiled_batch = share.stop - share.start  # the others, such as a smaller last one, run uncompiled
        self.model.train()
        batches = loader.batches(now.order[now.clips:], self.processes.share, self.generators["augmentation"],
                                 self.generators["reference"])
        with progress_bar(batches, f"epoch {epoch}/{args.num_epoch - 1}", len(loader), unit="batch",
                          initial=now.clips // loader.batch_size) as bar:
            for step, batch in enumerate(bar, start=1):
                clips = min(loader.batch_size, len(now.order) - now.clips)  # of the whole batch
                forced = now.forced
                if args.tf_draw == "blend":
                    forced = torch.full((1,), ratio)
                elif forced is None:
                    forced = self._draw_teacher_forcing(clips if args.tf_draw == "clip" else 1, ratio)
                forced = forced.expand(clips)
                now.lr = self.learning_rate(epoch + (now.clips + clips / 2) / len(now.order))
                now.sums += self.train_step(batch, forced, beta, now.lr)
                now.clips, now.forced_clips = now.clips + clips, now.forced_clips + int((forced > 0).sum())
                now.seconds = time.perf_counter() - began
                if step % LOOK_EVERY == 0:
                    self.check_steps()
                if time.monotonic() - shown > 0.5 and self.processes.rank == 0:
                    shown = time.monotonic()
                    loss, _, _, quality, counted, skipped = now.sums.tolist()
                    counted = max(counted, 1)
                    bar.set_postfix_str(f"loss {loss / counted:.4g}, PSNR {quality / counted:.2f} dB, "
                                        f"beta {beta:.3g}, teacher forcing {ratio:.2f} "
                                        f"{'on' if forced.any() else 'off'}, lr {now.lr:.2g}"
                                        + (f", {skipped:.0f} skipped" if skipped else ""), refresh=False)
                self.end_if_asked()
                if 0 < 60 * args.save_every_minutes < time.monotonic() - self.saved_at and self.processes.rank == 0:
                    self.save_last()
        self.check_steps()  # this waits for the device: only now is the time that of the whole work
        now.seconds = time.perf_counter() - began

    def _begin_epoch(self, clips: int, ratio: float) -> EpochProgress:
        """The state of the epoch that was interrupted, or of a new one."""
        now = self.progress
        if now is not None and len(now.order) != clips:
            if self.processes.rank == 0:
                print(f"epoch {self.epoch} starts again: it had {len(now.order)} clips and now has {clips}")
            now = None
        if now is None:
            order = torch.randperm(clips, generator=self.generators["order"])
            # Sums stay on the device: reading one in each step would make the host wait for it.
            now = EpochProgress(order, None, torch.zeros(6, dtype=torch.float64, device=self.device))
        if self.args.tf_draw != "epoch":
            now.forced = None
        elif now.forced is None:
            now.forced = self._draw_teacher_forcing(1, ratio)
        return now

    def finish_epoch(self, log: MetricLog | None) -> None:
        """Validate, log, save and draw. With last.ckpt, which comes after the tables, the epoch is over."""
        args, epoch, now = self.args, self.epoch, self.progress
        is_last = epoch + 1 == args.num_epoch
        is_save = is_last or epoch % args.per_save == 0
        is_validation = is_last or epoch % args.val_every == 0 or (is_save and args.store_visualization)
        if self.processes.rank > 0:
            if is_validation:
                self.wait_for_validation()
            self.epoch, self.progress = epoch + 1, None
            return
        with self.average.applied():
            self.estimate_statistics()
        self.check_state()
        loss, mse, kl, _, clips, skipped = now.sums.tolist()
        row = {"epoch": epoch, "train_loss": loss / clips, "train_mse": mse / clips, "train_kl": kl / clips,
               "beta": self.kl_annealing(epoch), "tfr": self.teacher_forcing(epoch),
               "tf_used": self.teacher_forcing(epoch) if args.tf_draw == "blend" else now.forced_clips / now.clips,
               "lr": now.lr, "skipped": int(skipped),
               "val_loss": None, "val_psnr": None}
        is_best = False
        began = time.perf_counter()
        if is_validation:
            validation = self.validate(epoch)
            is_validation = math.isfinite(validation["loss"])
            if not is_validation:  # the weights are finite, so training may mend it
                tell(f"Trainer.py: epoch {epoch}: over the validation sequence the roll-out grew beyond all bounds, as "
                     "that of a young model with --output linear may; the epoch has no score, the run goes on")
        if is_validation:
            self.validation = validation
            row |= {"val_loss": validation["loss"], "val_psnr": validation["psnr"]}
            is_best = validation["psnr"] > self.best_psnr
            self.best_psnr = max(self.best_psnr, validation["psnr"])
        log.add(row, {"epoch": epoch, "train_seconds": round(now.seconds, 3),
                      "val_seconds": round(time.perf_counter() - began, 3),
                      "frames_per_second": round(now.clips * len(self.loader.window) / max(now.seconds, 1e-3), 1)})
        self.epoch, self.progress = epoch + 1, None
        if is_save:
            self.save(self.folder / f"epoch={epoch}.ckpt")
            if is_validation:
                self.write_psnr(self.folder / f"psnr_epoch={epoch}.csv")
        if is_best:
            self.save(self.folder / "best.ckpt")
            self.write_psnr(self.folder / "psnr_best.csv")
        log.write()
        self.save_last()
        try:
            print(describe_epoch(row, args.num_epoch), flush=True)
        except OSError:  # a terminal that was closed, or a pipe whose reader has gone: Ctrl-C ends both at once
            if self.processes.is_alone:  # else the others are elsewhere
                self.end_if_asked()
            raise
        if is_save:
            self.draw(self.folder / "figures", log)

    def end_if_asked(self) -> None:
        """Between two steps or two frames: where a signal has asked for the end, save and raise Interrupted.

        All processes call it at the same places: a signal that one of them has seen ends all.
        """
        if self.interrupts is None:
            return
        number = self.processes.largest(self.interrupts.number or 0)
        if not number:
            return
        state = "the state"
        if self.processes.rank == 0 and not self.save_last():
            state += " before the latest steps, which were skipped"
        now, where = self.progress, f"before epoch {self.epoch}"
        if now is not None:
            where = f"in epoch {self.epoch} after {now.clips} of {len(now.order)} clips"
            if now.clips == len(now.order):
                where = f"in the validation of epoch {self.epoch}"
        name = signal.Signals(number).name
        raise Interrupted(f"{name}: stopped {where}; {self.folder / 'last.ckpt'} holds {state}, go on with --resume",
                          number)

    def check_steps(self) -> None:
        """BadInput: the latest steps were all skipped for bad numbers, or all of the epoch so far and it is over."""
        skipped, *seen = self.guard.streak.tolist()
        now = self.progress
        none_counts = now.clips == len(now.order) and now.sums[4].item() == 0
        if skipped < SKIPPED_IN_A_ROW and not none_counts:
            return
        loss, mse, kl, norm = seen
        steps = -(-now.clips // self.loader.batch_size)
        raise self._bad_numbers(
            f"the latest {skipped:.0f} steps, up to step {steps} of epoch {self.epoch}, were skipped for bad numbers; "
            f"the first of them had loss {loss:.3g}, MSE {mse:.3g}, KL {kl:.3g} and gradient norm {norm:.3g}, learning "
            f"rate {now.lr:.3g}, beta {self.kl_annealing(self.epoch):.3g}",
            is_latent=math.isfinite(mse) and not math.isfinite(kl))

    def check_state(self) -> None:
        """BadInput: weights, running statistics or moments are not all finite. Called before anything is saved."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        finite = [tensor.isfinite().all() for tensor in (*self.model.state_dict().values(), *moments)]
        if not torch.stack(finite).all():
            raise self._bad_numbers(f"weights became infinite or NaN in epoch {self.epoch}")

    def _bad_numbers(self, what: str, is_latent: bool = False) -> BadInput:
        args = self.args
        beta = "--kl_anneal_stop" if args.kl_anneal_type == "None" else "--kl_anneal_start"
        mends = [f"a larger {beta}, which ties z to its prior"] * is_latent
        mends += ["--precision fp32"] * (args.precision == "bf16") + ["--clip_grad 1"] * (args.clip_grad == 0)
        mends += [f"a smaller --lr than {args.lr:g}"]
        return BadInput(f"{what}; {self.folder / 'last.ckpt'} has the weights before that: continue with --resume and "
                        f"{' or '.join(mends)}, or, where they are spoilt already, with best.ckpt as --ckpt_path and "
                        "another --save_root")

    def train_step(self, batch: Clips, forced: Tensor, beta: float, lr: float) -> Tensor:
        """One update of the weights.

        Parameters
        ----------
        batch : this process's share of the B clips.
        forced : bool (B,), which of all clips see real frames, or float, the share of the real frame in what they see.

        Returns
        -------
        (6,) on the device: loss, MSE, KL (summed over a clip's frames) and PSNR (dB, mean over frames), each times B;
        B; 0. A step whose loss or gradient is not finite changes nothing and returns zeros and a 1 at the end.
        """
        args, frames = self.args, batch.frames
        clips, share = len(forced), self.processes.share(len(forced))
        self.guard.remember()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Every process draws the noise of the whole batch, so that it does not depend on how the batch is shared.
        noise = torch.randn(clips, frames.shape[1] - 1, self.model.N_dim, *frames.shape[-2:], device=self.device,
                            generator=self.generators["latent"])[share]
        disturbance = None
        if args.feedback_noise or args.feedback_jitter:
            disturbance = self._draw_disturbance(clips, frames)[share]
        targets = frames[:, 1:]
        if batch.index is not None and (args.any_first or self.replay is not None):
            # The last step's disturbance is free for this frame: what that step predicts is not fed back.
            first = self._choose_first(batch, clips, 0.0 if disturbance is None else disturbance[:, -1])
            frames = torch.cat([first[:, None], targets], dim=1)
        with self.autocast():
            predictions, mu, logvar = self.forward(frames, batch.labels, forced[share], noise,
                                                   reference=batch.reference, disturbance=disturbance)
        predictions, mu, logvar = predictions.float(), mu.float(), logvar.float()
        if len(frames):
            loss, mse, kl = clip_loss(predictions, targets, mu, logvar, beta, args.kl_reduction, args.l1,
                                      args.free_bits, args.decoder_variance)
            quality = psnr(predictions.detach(), targets).mean()
        else:  # more processes than clips: nothing to learn from, but the others wait for a gradient
            loss = mse = kl = quality = predictions.sum() + mu.sum() + logvar.sum()
        self.optimizer.zero_grad(set_to_none=True)
        # The mean over the processes, which DistributedDataParallel takes, is to be the mean over the clips.
        (loss * (len(frames) * self.processes.count / clips)).backward()
        largest_norm = args.clip_grad or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), largest_norm)
        with torch.no_grad():
            sums = self.processes.total(torch.stack([loss, mse, kl, quality]) * len(frames))
            good = self.guard.step(sums[:3] / clips, norm)
            self.average.update(good)
            if self.replay is not None and batch.index is not None:
                self._remember(batch, predictions, good, clips)
            # Filled on the device: a value that is copied there would make the host wait.
            sums = torch.cat([sums, sums.new_full((1,), clips), sums.new_zeros(1)])
            return torch.where(good, sums, torch.eye(6, device=self.device)[5])

    def _choose_first(self, batch: Clips, clips: int, disturbance: Tensor | float) -> Tensor:
        """What the clips of this process begin with, (S, 3, H, W): --any_first and --replay, drawn for all clips.
        A recalled prediction is fed back as any other is: with ``disturbance`` (S, 3, H, W) added."""
        drawn = torch.rand(2, clips, generator=self.generators["first"])[:, self.processes.share(clips)]
        drawn = drawn.to(self.device, non_blocking=True)
        index, first = batch.index[:, 0], batch.frames[:, 0]
        if self.args.any_first:
            is_any = drawn[0] < self.args.any_first
            index = torch.where(is_any, batch.reference_index, index)
            first = torch.where(is_any[:, None, None, None], batch.reference, first)
        if self.replay is not None:
            first = self.replay.recall(index, first, (drawn[1] < self.args.replay) & batch.is_whole, disturbance)
        return first

    def _draw_disturbance(self, clips: int, frames: Tensor) -> Tensor:
        """What is added to the fed-back frames of all clips, (B, T-1, 3, H, W): noise of each pixel, and of each
        frame's brightness and colours as a whole."""
        draw = partial(torch.randn, device=self.device, generator=self.generators["disturbance"])
        size = clips, frames.shape[1] - 1
        pixels = self.args.feedback_noise * draw(*size, *frames.shape[2:])
        return pixels + self.args.feedback_jitter * (draw(*size, 3, 1, 1) + draw(*size, 1, 1, 1))

    def _remember(self, batch: Clips, predictions: Tensor, good: Tensor, clips: int) -> None:
        """Keep the predictions of whole clips for --replay, in each process those of all."""
        share = self.processes.share(clips)
        parts = []
        for part in (batch.index[:, 1:], predictions.detach(), (batch.is_whole & good).int()):
            whole = part.new_zeros(clips, *part.shape[1:])
            whole[share] = part
            parts.append(self.processes.total(whole))
        index, predictions, kept = parts
        self.replay.remember(index, predictions, kept[:, None] > 0)

    def estimate_statistics(self) -> None:
        """Give the label encoder statistics that fit its present weights, from poses spread over the training data."""
        labels = self.loaders[False, 0].labels
        self.model.label_encoder.estimate_statistics(to_float(labels[::max(len(labels) // POSES_FOR_STATISTICS, 1)]))

    def _draw_teacher_forcing(self, count: int, ratio: float) -> Tensor:
        return torch.rand(count, generator=self.generators["teacher_forcing"]) < ratio

    def _validation_progress(self, frames: Iterable[int]) -> Iterator[int]:
        for frame in progress_bar(frames, "validation", unit="frame"):
            yield frame
            self.end_if_asked()

    def wait_for_validation(self) -> None:
        """Keep step with the first process: a roll-out cannot be shared, each frame needs the one before it."""
        for _ in self._validation_progress(range(1, len(self.val_frames))):
            pass

    def validate(self, epoch: int) -> dict:
        """Free-running roll-out over the validation sequence from its first frame.

        z is drawn from the same seed each time, so that epochs compare. ``epoch`` is the one that was trained last.

        Returns
        -------
        epoch : as given. loss : mean MSE over frames 1..T-1, without KL. psnr : mean PSNR over the same, dB.
        psnr_per_frame : (T-1,). prediction : (T, 3, H, W), the given first frame included.
        """
        truth = self.val_frames
        noise = torch.Generator(self.device).manual_seed(self.args.seed)
        with self.average.applied(), self.autocast():
            prediction = self.model.generate(truth[:1], self.val_labels[None], self.args.val_latent, noise,
                                             self._validation_progress)[0]
        per_frame = psnr(prediction[1:], truth[1:])
        loss = (prediction[1:] - truth[1:]).square().mean().item()
        return {"epoch": epoch, "loss": loss, "psnr": per_frame.mean().item(), "psnr_per_frame": per_frame.cpu(),
                "prediction": prediction.cpu()}

    def write_psnr(self, path: Path) -> None:
        """Write the PSNR of each frame of the latest validation, so that runs can be compared frame by frame."""
        rows = [{"epoch": self.validation["epoch"], "frame": frame, "psnr": value}
                for frame, value in enumerate(self.validation["psnr_per_frame"].tolist(), start=1)]
        write_table(path, ("epoch", "frame", "psnr"), rows)

    def draw(self, folder: Path, log: MetricLog) -> None:
        """Write the figures of the run so far, and a picture for TensorBoard."""
        curves.plot_losses(self.metrics, folder / "loss.png")
        curves.plot_teacher_forcing(self.metrics, folder / "teacher_forcing.png")
        if self.validation is not None:
            self.draw_validation(folder)
            if self.args.store_visualization:
                with atomic_write(folder / f"val_epoch={self.validation['epoch']}.gif") as temporary:
                    shutil.copyfile(folder / "val.gif", temporary)
            last = len(self.val_frames) - 1
            shown = torch.arange(last // 4, last + 1, max(last // 4, 1))
            rows = [video.tile(*clips)[0] for clips in zip(
                self.val_frames[shown].cpu().split(1), self.validation["prediction"][shown].split(1),
                self.val_labels[shown].cpu().split(1), strict=True)]
            log.add_picture(torch.cat(rows, dim=1), self.validation["epoch"])

    def draw_validation(self, folder: Path, prefix: str = "") -> None:
        """Write PSNR per frame and truth | prediction | pose of the latest validation."""
        lines = {"prediction": self.validation["psnr_per_frame"],
                  "repeat the first frame": psnr(repeat_first(self.val_frames), self.val_frames)[1:].cpu()}
        title = f"Validation, epoch {self.validation['epoch']}"
        curves.plot_psnr(lines, folder / f"{prefix}psnr_per_frame.png", title)
        video.side_by_side_gif(self.val_frames.cpu(), self.validation["prediction"], self.val_labels.cpu(),
                                 folder / f"{prefix}val.gif")

    def save(self, path: Path, with_replay: bool = False) -> None:
        """Write everything that continuing needs, and that Tester needs. BadInput: the numbers went bad.

        What --replay keeps is as large as the frames themselves, and nothing is lost for good without it.
        """
        progress = None
        latest = self.average.latest()
        with self.average.applied():
            if self.progress is not None:
                self.estimate_statistics()  # no effect on training, but the file can be tested as it is
                progress = vars(self.progress) | {"sums": self.progress.sums.cpu()}
            model = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.check_state()
        checkpoint.save(path, {
            # What is to be used, and where that is an average, what training goes on from.
            "model": model, "latest": latest, "averaged_steps": self.average.steps.cpu(),
            "network": {flag: getattr(self.args, flag) for flag in NETWORK_FLAGS},
            "frame_size": [self.args.frame_H, self.args.frame_W], "flags": vars(self.args),
            "optimizer": {"state": self.optimizer.state_dict()["state"]},  # its settings are the flags'
            "epoch": self.epoch, "best_psnr": self.best_psnr,
            "generators": {purpose: generator.get_state() for purpose, generator in self.generators.items()},
            "replay": vars(self.replay.to(torch.device("cpu"))) if with_replay and self.replay is not None else None,
            "device": self.device.type, "metrics": self.metrics, "timing": self.timing, "progress": progress})

    def save_last(self) -> bool:
        """Replace last.ckpt, but not while steps are being skipped: the weights may be what makes the numbers bad.

        A run that goes on from an older last.ckpt does the same steps once more, with the same outcome. Returns whether
        it was replaced.
        """
        if self.guard.streak[0] > 0:
            return False
        self.save(self.folder / "last.ckpt", with_replay=True)
        self.saved_at = time.monotonic()
        return True

    @torch.no_grad()
    def restore(self, state: dict, path: Path) -> None:
        """Continue from a checkpoint, or start from its weights: under --finetune, or where it has no more.

        Nothing is changed before all of it has been checked. BadInput: it does not fit.
        """
        parameters = list(self.model.parameters())
        if self.args.finetune or "recognised" in state:
            self.model.load_state_dict(state["model"])
            self.average.begin()
            return
        try:
            checkpoint.check_training_state(state, dict(self.model.named_parameters()), self.generators,
                                            {"metrics": METRICS, "timing": TIMING})
        except ValueError as error:
            raise BadInput(f"--ckpt_path {path}: {error}") from error
        self.model.load_state_dict(state["model"])
        self.average.begin(state.get("averaged_steps"))
        if not self.args.test:
            self.model.load_state_dict(state.get("latest", {}), strict=False)
        moments = {}
        for index, moment in state["optimizer"]["state"].items():
            # Laid out in memory as the weights are: a fused step walks through both alike.
            moments[index] = {name: torch.empty_like(parameters[index]).copy_(moment[name])
                              for name in ("exp_avg", "exp_avg_sq")} | {"step": moment["step"]}
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        for purpose, generator in self.generators.items():
            # A state of its device's kind: on another device the generator starts anew.
            if purpose in state["generators"] and (purpose not in ON_DEVICE
                                                   or generator.device.type == state["device"]):
                generator.set_state(state["generators"][purpose])
        self.epoch, self.best_psnr = state["epoch"], state["best_psnr"]
        self.metrics, self.timing = [dict.fromkeys(METRICS) | row for row in state["metrics"]], state["timing"]
        if state.get("replay") is not None and self.args.replay:
            self.replay = Replay(**state["replay"])
        if state.get("progress") is not None:
            self.progress = EpochProgress(**{field.name: state["progress"][field.name]
                                              for field in fields(EpochProgress)})
            self.progress.sums = self.progress.sums.clone(memory_format=torch.contiguous_format).to(self.device)


def describe_epoch(row: dict, num_epoch: int) -> str:
    """An epoch's row of metrics.csv as a line to read."""
    val = "" if row["val_psnr"] is None else f"  val loss {row['val_loss']:.5f}  val PSNR {row['val_psnr']:.2f} dB"
    skipped = f"  {row['skipped']} steps skipped for bad numbers" if row["skipped"] else ""
    return (f"epoch {row['epoch']}/{num_epoch - 1}  loss {row['train_loss']:.4f}  MSE {row['train_mse']:.4f}  "
            f"KL {row['train_kl']:.4g}  beta {row['beta']:.3g}  teacher forcing {row['tfr']:.2f} (used in "
            f"{row['tf_used']:.0%})  lr {row['lr']:.2e}{val}{skipped}")


def make_parser() -> FlagParser:
    parser = FlagParser(prog="Trainer.py", description="Train the conditional VAE on pose-conditioned clips.")
    switch = argparse.BooleanOptionalAction  # --flag and --no-flag, so that a recipe can pin either

    group = parser.add_argument_group("data")
    group.add_argument("--DR", required=True, help="root folder of the dataset")
    group.add_argument("--frame_H", type=number(int, 4, LARGEST_FRAME), default=32, help="height of the frames, pixels")
    group.add_argument("--frame_W", type=number(int, 4, LARGEST_FRAME), default=64, help="width of the frames, pixels")
    group.add_argument("--train_vi_len", type=number(int, 2, 10**6), default=2,
                       help="length of a training clip, frames")
    group.add_argument("--val_vi_len", type=number(int, 2, 10**6), default=630,
                       help="length of the validation sequence, frames")
    group.add_argument("--clip_stride", type=number(int, 0, 10**6), default=0,
                       help="frames between the starts of training clips; 0: the clip's length, no overlap, or with "
                            "--replay one less")
    group.add_argument("--partial", type=number(float, 0, 1, above=True), default=1.0,
                       help="share of the training frames in use, the first in number order")
    group.add_argument("--grow_vi_len", type=number(int, 1), nargs="*", default=[],
                       help="epochs at which the clips double in length and the batch halves, such as 10 20")
    group.add_argument("--crop_fraction", type=number(float, 0, 1), default=0.0,
                       help="share of the training clips that are shown as a random crop (the same window for all "
                            "frames and poses of a clip, at least half of each side, resized back)")
    group.add_argument("--fast_train", action=switch, default=False,
                       help="use --fast_partial instead of --partial in the first --fast_train_epoch epochs")
    group.add_argument("--fast_partial", type=number(float, 0, 1, above=True), default=0.4,
                       help="share of the training frames in the fast epochs")
    group.add_argument("--fast_train_epoch", type=number(int, 0), default=5, help="number of fast epochs")

    channels = number(int, 1, LARGEST_NETWORK)
    group = parser.add_argument_group("network (another network than a checkpoint's is refused)")
    group.add_argument("--F_dim", type=channels, default=128, help="frame features' channels, a multiple of 8")
    group.add_argument("--L_dim", type=channels, default=32, help="pose feature channels, a multiple of 2")
    group.add_argument("--N_dim", type=channels, default=12, help="latent map channels, a multiple of 4")
    group.add_argument("--D_out_dim", type=channels, default=192,
                       help="fused feature channels, a multiple of 8")
    group.add_argument("--output", choices=["sigmoid", "linear"], default="sigmoid",
                       help="the generator's last activation; linear is the course's, unbounded")

    group.add_argument("--reference_frame", action=switch, default=False,
                       help="give the decoder the features of the sequence's first frame at every step, beside those "
                            "of the frame before (in training a frame from anywhere in the same recording stands for "
                            "it; beyond the course's rules)")
    group.add_argument("--template_activations", action=switch, default=False,
                       help="no activation at the two places where the course's template writes LeakyReLU(True), which "
                            "is slope 1.0; set by itself with a checkpoint of the template")

    group = parser.add_argument_group("roll-out: which frame is fed to the next step")
    group.add_argument("--tfr", type=number(float, 0, 1), default=0.0,
                       help="teacher-forcing ratio at the start: probability of feeding the real frame")
    group.add_argument("--tfr_sde", type=number(int, 0), default=10,
                       help="epoch at which the ratio starts to decay (0 counts as 1)")
    group.add_argument("--tfr_d_step", type=number(float, 0, 1), default=0.1, help="decay of the ratio per epoch")
    group.add_argument("--tf_draw", choices=["epoch", "batch", "clip", "blend"], default="epoch",
                       help="what teacher forcing is drawn for: once an epoch, for each batch or for each clip; blend: "
                            "nothing is drawn, each frame fed is that share of the real one and else the prediction")
    group.add_argument("--bptt", action=switch, default=False,
                       help="let the gradient through the fed-back prediction (slower, more memory)")

    group.add_argument("--match_histogram", "--no-match_histogram", action=ChoiceOrOff, const="previous",
                       default="off", choices=HISTOGRAM_REFERENCES,
                       help="give each fed-back prediction the histogram of the frame that was fed in before it "
                            "(previous, also without a word) or of the first frame, in training and validation")

    group.add_argument("--replay", type=number(float, 0, 1), default=0.95,
                       help="share of the training clips that begin with the model's own latest prediction of their "
                            "first frame instead of the real one, so that short clips teach long roll-outs")
    group.add_argument("--any_first", type=number(float, 0, 1), default=0.0,
                       help="share of the training clips that begin with any frame of the same recording, between two "
                            "jumps of the numbers (or, with --replay, what was predicted for it), instead of their own "
                            "first, so that the person is drawn from the pose and only the room is carried on")
    group.add_argument("--feedback_noise", type=number(float, 0), default=0.0,
                       help="in training, standard deviation of the noise on each fed-back pixel (range 0..1)")
    group.add_argument("--feedback_jitter", type=number(float, 0), default=0.0,
                       help="in training, standard deviation of the change of each fed-back frame's brightness, and of "
                            "each of its channels (range 0..1)")
    group.add_argument("--feed", choices=FEEDS, default="previous",
                       help="what each frame is predicted from: the frame before, or always the sequence's first, with "
                            "nothing fed back (in training a frame from anywhere in the same recording stands for it; "
                            "beyond the course's rules)")

    group = parser.add_argument_group("objective: error + beta * KL, summed over a clip's frames")
    group.add_argument("--decoder_variance", choices=DECODER_VARIANCES, default="optimal",
                       help="variance that the decoder claims: the same for all frames, so that the error is the MSE "
                            "(the course's); or for each frame the likeliest one, so that it is the logarithm of the "
                            "frame's MSE, which is what the mean PSNR scores")
    group.add_argument("--l1", type=number(float, 0), default=0.0,
                       help="weight of the mean absolute error, which is added whatever --decoder_variance is")
    group.add_argument("--free_bits", type=number(float, 0), default=0.0,
                       help="KL of a frame that costs nothing more to use: nats, or with --kl_reduction mean nats a "
                            "latent value")
    group.add_argument("--kl_anneal_type", type=str.capitalize, default="None",
                       choices=[kind.capitalize() for kind in KLAnnealing.KINDS],
                       help="how beta moves over the epochs; any letter case")
    group.add_argument("--kl_anneal_cycle", type=number(int, 1), default=10,
                       help="Cyclical: length of a cycle in epochs (not the number of cycles, as the course's "
                            "template reads it); Monotonic: divisor of the running sum")
    group.add_argument("--kl_anneal_ratio", type=number(float, 0, above=True), default=1.0,
                       help="steepness of beta; Cyclical with 2 has full weight half way through the cycle")
    group.add_argument("--kl_anneal_start", type=number(float, 0), default=0.0, help="Cyclical: lowest beta")
    group.add_argument("--kl_anneal_stop", type=number(float, 0),
                       help="Cyclical: highest beta; None: the constant beta; Monotonic always goes to 1; not given: 1 "
                            "for Cyclical, for None 0.001, or 0.0001 with --decoder_variance fixed")
    group.add_argument("--kl_reduction", choices=["sum", "mean"], default="sum",
                       help="KL summed over the latent map (the course's) or its mean")

    group = parser.add_argument_group("optimisation")
    group.add_argument("--num_epoch", type=number(int, 1, 10**9), default=32, help="length of the run, epochs")
    group.add_argument("--batch_size", type=number(int, 1, 10**6), default=16, help="clips a step, over all processes")
    group.add_argument("--optim", choices=["Adam", "AdamW"], default="Adam", help="optimiser")
    group.add_argument("--weight_decay", type=number(float, 0), help="None: 0 for Adam, 0.01 for AdamW")
    group.add_argument("--lr", type=number(float, 0, above=True), default=0.001, help="learning rate")
    group.add_argument("--lr_schedule", choices=LearningRate.KINDS, default="cosine",
                       help="none: constant; cosine: to 0 at the end; multistep: times --lr_gamma at --lr_milestones")
    group.add_argument("--lr_milestones", type=number(int, 0), nargs="*", default=[2, 5],
                       help="epochs at which multistep drops the rate (default: the course's)")
    group.add_argument("--lr_gamma", type=number(float, 0, above=True), default=0.1, help="factor of such a drop")
    group.add_argument("--warmup", type=number(float, 0), default=0.2,
                       help="epochs, fractions allowed, of linear growth of the rate at the start")
    group.add_argument("--ema", type=number(float, 0, 0.9999999), default=0.995,
                       help="decay of the exponential moving average of the weights that is validated, saved and "
                            "generated with; 0: the latest weights are")
    group.add_argument("--clip_grad", type=number(float, 0), default=1.0,
                       help="largest norm of the gradient; 0: no clipping")
    group.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto",
                       help="arithmetic of the network; auto: bf16 (autocast) where the processor computes in it, else "
                            "fp32")
    group.add_argument("--seed", type=number(int, 0, 2**31), default=0, help="seed of every random choice")

    group = parser.add_argument_group("run")
    group.add_argument("--save_root", required=True, type=folder_name,
                       help="run folder; a new run refuses one that holds a run")
    group.add_argument("--ckpt_path", help="checkpoint to continue from, flags given here win over its own; or one of "
                                           "the course's template to start from")
    group.add_argument("--resume", action="store_true",
                       help="continue from --save_root/last.ckpt; without one, start there")
    group.add_argument("--finetune", action="store_true",
                       help="take only the weights from --ckpt_path, and the flags that are not given: epochs, "
                            "schedules, optimiser and curves start anew")
    group.add_argument("--overwrite", action="store_true", help="delete the run that --save_root holds, start anew")
    group.add_argument("--test", action="store_true", help="validate --ckpt_path only")
    group.add_argument("--save_every_minutes", type=number(float, 0), default=10.0,
                       help="minutes between saves of last.ckpt within a long epoch; 0: only at its end")
    group.add_argument("--per_save", type=number(int, 1), default=3,
                       help="epochs between epoch=N.ckpt files and between figures")
    group.add_argument("--val_every", type=number(int, 1), default=1, help="epochs between validations")
    group.add_argument("--val_latent", choices=["prior", "mean"], default="prior",
                       help="z in validation: drawn from N(0, I), or its mean 0")
    group.add_argument("--store_visualization", action=switch, default=False,
                       help="keep a validation GIF at each save: figures/val_epoch=N.gif")
    group.add_argument("--device", choices=["cuda", "cpu"], help="None: cuda where there is one, else cpu")
    group.add_argument("--gpu", type=number(int, 1), default=1,
                       help="number of GPUs, as the course has it; more than one are started with torchrun "
                            "--nproc_per_node")
    group.add_argument("--compile", choices=["auto", "on", "off"], default="auto",
                       help="compile the steps with torch.compile; auto: on a GPU, where the run is long enough to "
                            "gain more than the minutes that it takes")
    group.add_argument("--deterministic", action=switch, default=False,
                       help="on CUDA, too, use only algorithms that give the same bits in each run (slower); on a CPU "
                            "all do")
    group.add_argument("--num_workers", type=number(int, 0, 1024), default=4,
                       help="threads that decode images; 0: one")
    group.add_argument("--cache", action=switch, default=True,
                       help="keep the decoded frames on disk, so that only the first start decodes them")
    group.add_argument("--cache_dir", type=folder_name,
                       help="where they are kept; None: in .frame_cache in --DR or, where that cannot be written, in "
                            "the user's cache folder")
    return parser


def write_flag(flag: str, value: bool | int | float | str | list | None) -> list[str]:
    """A flag with its value as the words of a command line."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, list):  # of numbers: none is taken for a flag
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}={value}"]  # one word: whatever the value is, it is no flag and no @file


def refuse_contradictions(args: argparse.Namespace) -> None:
    """BadInput: flags that do not go together."""
    if args.resume and args.overwrite:
        raise BadInput("--resume and --overwrite: one continues the run in --save_root, the other deletes it; give one")
    if args.resume and args.ckpt_path and not args.finetune:
        raise BadInput("--resume and --ckpt_path: --resume continues from --save_root/last.ckpt; give one of the two")
    if args.finetune and not args.ckpt_path:
        raise BadInput("--finetune starts from the weights of a checkpoint; give one with --ckpt_path")
    if args.finetune and args.test:
        raise BadInput("--finetune and --test: one trains, the other validates only; give one of the two")


def refuse_strategies(args: argparse.Namespace) -> None:
    """BadInput: strategies that do not go together, wherever each comes from."""
    if args.replay and args.clip_stride not in (0, args.train_vi_len - 1):
        raise BadInput(f"--replay {args.replay:g} and --clip_stride {args.clip_stride}: each clip has to begin with "
                       "the last frame of the clip before it; give --clip_stride 0 or --replay 0, also where the "
                       "other comes from a checkpoint or a recipe, or is the default")
    if args.replay and args.grow_vi_len and args.clip_stride:
        raise BadInput(f"--replay {args.replay:g}, --grow_vi_len and --clip_stride: the stride grows with the clips; "
                       "give --clip_stride 0 or --replay 0")
    if args.feed == "first" and (args.replay or args.any_first or args.bptt or args.feedback_noise
                                 or args.feedback_jitter or args.match_histogram != "off" or args.reference_frame):
        raise BadInput("--feed first: nothing is fed back, and the first frame is seen anyhow; give --replay 0 and "
                       "leave out --any_first, --bptt, --feedback_noise, --feedback_jitter, --match_histogram and "
                       "--reference_frame")


def tell_what_has_no_effect(args: argparse.Namespace) -> None:
    """A sentence about flags that are given and change nothing."""
    if args.train_vi_len > 2 or args.grow_vi_len or args.feed == "first":
        return
    idle = [f"--tfr {args.tfr:g}"] * (args.tfr > 0) + ["--bptt"] * args.bptt
    if args.match_histogram != "off":
        idle.append("--match_histogram (but in validation)")
    if not args.replay:
        idle += [f"--{flag}" for flag in ("feedback_noise", "feedback_jitter") if getattr(args, flag)]
    if idle:
        tell(f"Trainer.py: {' and '.join(idle)}: no effect in training on clips of 2 frames, within which nothing is "
             "fed back; give longer ones, such as the course's --train_vi_len 16")


def parse_flags(argv: list[str] | None = None) -> tuple[argparse.Namespace, dict | None]:
    """Read the flags, those of a checkpoint beneath those given. Returns the flags and the checkpoint, if any.

    Raises
    ------
    BadInput : flags that do not go together, or a checkpoint that cannot be used.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    refuse_contradictions(args)
    if args.gpu > 1 and "WORLD_SIZE" not in os.environ:
        print(f"Trainer.py: --gpu {args.gpu}: going on with one; more are started as torchrun "
              f"--nproc_per_node={args.gpu} Trainer.py ...", file=sys.stderr)
    if args.resume and (Path(args.save_root) / "last.ckpt").is_file():
        args.ckpt_path = str(Path(args.save_root) / "last.ckpt")
        args.finetune = False  # that has begun already: the same command with --resume goes on
    if args.test and not args.ckpt_path:
        raise BadInput("--test validates a checkpoint; give one with --ckpt_path")
    if not args.ckpt_path:
        refuse_strategies(args)
        return args, None
    ckpt_path, finetune = args.ckpt_path, args.finetune
    state = load_checkpoint(Path(ckpt_path))
    known = vars(args).keys() - set(CALL_FLAGS)
    # Written out as a command line before the one given: the parser checks both alike, and what comes later wins.
    before = {} if "recognised" in state else WITHOUT_FLAG
    saved = [word for flag, value in {**before, **state["flags"]}.items() if flag in known
             for word in write_flag(flag, value)]
    args = parser.parse_args(saved + list(sys.argv[1:] if argv is None else argv))
    args.ckpt_path, args.finetune = ckpt_path, finetune
    refuse_strategies(args)
    for flag in NETWORK_FLAGS:
        if getattr(args, flag) != state["network"][flag]:
            raise BadInput(f"--{flag} {getattr(args, flag)}: the checkpoint {ckpt_path} has {state['network'][flag]}; "
                           "a network cannot change its size: leave the flag out")
    return args, state


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    refuse_contradictions(args)
    with as_bad_input(ValueError):
        processes = DistributedContext()
    with processes:
        if processes.rank == 0:
            lead(args, argv, processes)
            return
        prepared = processes.broadcast(None)
        if prepared is not None:  # else there is nothing to train
            trainer = make_trainer(*prepared, processes)
            trainer.load_data()
            trainer.fit()


def lead(args: argparse.Namespace, argv: list[str] | None, processes: DistributedContext) -> None:
    """What the first process does, the only one that reads and writes the run folder."""
    folder = Path(args.save_root)
    check_writable(folder)
    with contextlib.ExitStack() as hold:
        # What lies in a folder is continued or deleted only while nobody else writes there. Another folder may still
        # be refused, and is left as it is.
        last = folder / "last.ckpt"
        held = not args.test and (
            (args.overwrite and folder.is_dir())
            or (last.is_file() and (args.resume or Path(args.ckpt_path or "").resolve() == last.resolve())))
        if held:
            hold.enter_context(hold_run_folder(folder))
        args, state = parse_flags(argv)
        if state is not None and (args.finetune or "recognised" in state):
            print(f"{args.ckpt_path}: {state.get('recognised', 'its weights')}; epochs, schedules and optimiser start "
                  "anew")
        if args.test:
            processes.broadcast(None)
            test(args, state)
            return
        old_run = check_run_folder(args)
        tell_what_has_no_effect(args)
        trainer = make_trainer(args, state, processes)
        if trainer.epoch >= args.num_epoch and args.resume:
            print(f"the run in {folder} has its {trainer.epoch} epochs already; a larger --num_epoch continues it")
            processes.broadcast(None)
            return
        if trainer.epoch >= args.num_epoch:
            raise BadInput(f"--num_epoch {args.num_epoch}: the checkpoint has trained {trainer.epoch} epochs already; "
                           "give more")
        processes.broadcast((args, state))
        trainer.load_data()
        if not held:
            folder.mkdir(parents=True, exist_ok=True)
            hold.enter_context(hold_run_folder(folder))
            old_run = check_run_folder(args)  # another run may have come first
        for path in old_run:
            path.unlink()
        if not (folder / "best.ckpt").exists():
            trainer.best_psnr = -math.inf  # the best of a run that lives elsewhere: this folder has to have its own
        if state is not None and state.get("latest") and not args.ema:
            trainer.estimate_statistics()  # the file has those of the average
        trainer.save(folder / "last.ckpt", with_replay=True)  # from now on there is something to resume
        write_json(folder / "config.json", describe_run(args, folder / "config.json"))
        trainer.fit()
    best = f"best validation PSNR {trainer.best_psnr:.2f} dB" if math.isfinite(trainer.best_psnr) else "no score yet"
    print(f"{best}; checkpoints, curves and figures are in {folder}")


def make_trainer(args: argparse.Namespace, state: dict | None, processes: DistributedContext | None = None) -> Trainer:
    if args.deterministic:
        make_deterministic()
    trainer = Trainer(args, pick_device(args.device), processes)
    if state is not None:
        trainer.restore(state, Path(args.ckpt_path))
    return trainer


def test(args: argparse.Namespace, state: dict) -> None:
    """Validate a checkpoint, print its scores and draw its figures."""
    trainer = make_trainer(args, state)
    trainer.load_data()
    epochs = state.get("epoch")
    trainer.validation = trainer.validate(-1 if epochs is None else epochs - 1)
    trainer.draw_validation(trainer.folder / "figures", "test_")
    loss, quality = trainer.validation["loss"], trainer.validation["psnr"]
    print(f"validation of {args.ckpt_path} (after {'?' if epochs is None else epochs} epochs, z: {args.val_latent}) "
          f"over {args.val_vi_len - 1} frames: loss {loss:.6f}, PSNR {quality:.3f} dB")


if __name__ == "__main__":
    sys.exit(run_main("Trainer.py", main, MEMORY_ADVICE))
