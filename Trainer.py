"""Train the conditional VAE on pose-conditioned clips.

    python Trainer.py --DR DATASET --save_root RUN                                       the defaults
    python Trainer.py @scripts/recipes/report.args --DR DATASET --save_root RUN          a recipe
    python Trainer.py --DR DATASET --save_root RUN --ckpt_path RUN/last.ckpt             continue a run
    python Trainer.py --DR DATASET --save_root RUN --ckpt_path RUN/best.ckpt --test      validate only

RUN/ then holds config.json, metrics.csv, timing.csv, TensorBoard events, last.ckpt, best.ckpt, epoch=N.ckpt and
figures/. The dataset's layout stands in dataloader.py.
"""
import argparse
import math
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dataloader import ClipLoader, read_recording, read_validation, to_float
from modules import figures
from modules.cvae import CVAE, clip_loss
from modules.metrics import psnr, repeat_first
from modules.schedulers import KLAnnealing, LearningRate, TeacherForcing
from utils import (
    NETWORK_FLAGS,
    BadInput,
    FlagParser,
    MetricLog,
    as_bad_input,
    check_writable,
    describe_run,
    folder_name,
    load_checkpoint,
    load_weights,
    make_generators,
    number,
    pick_device,
    progress_bar,
    run_main,
    save_checkpoint,
    write_json,
)

# What belongs to one call of the program rather than to the run: a continued run does not take these over.
CALL_FLAGS = ("DR", "save_root", "ckpt_path", "resume", "overwrite", "test", "device", "gpu", "num_workers")

POSES_FOR_STATISTICS = 512  # a million values a channel: more would not change the third digit


class Trainer:
    """A training run: the model, its schedules and optimiser, the data, and the state that a checkpoint keeps.

    Parameters
    ----------
    args : the flags of ``make_parser``.
    device : where the model and the frames live.

    Raises
    ------
    BadInput : flags that no run can have; the message names them.
    """

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.args, self.device = args, device
        torch.manual_seed(args.seed)  # the initial weights
        with as_bad_input(ValueError):
            self.model = CVAE(**{flag: getattr(args, flag) for flag in NETWORK_FLAGS}, bptt=args.bptt)
            self.teacher_forcing = TeacherForcing(args.tfr, args.tfr_sde, args.tfr_d_step)
            self.kl_annealing = KLAnnealing(args.kl_anneal_type, args.kl_anneal_cycle, args.kl_anneal_ratio,
                                            args.kl_anneal_start, args.kl_anneal_stop)
            self.learning_rate = LearningRate(args.lr_schedule, args.lr, args.num_epoch, args.warmup,
                                              args.lr_milestones, args.lr_gamma)
        # The layout in which convolutions run fastest, on CPUs with vector units as on GPUs.
        self.model.to(device, memory_format=torch.channels_last)
        self.autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=args.precision == "bf16")
        decay = args.weight_decay if args.weight_decay is not None else {"Adam": 0.0, "AdamW": 0.01}[args.optim]
        self.optimizer = getattr(torch.optim, args.optim)(self.model.parameters(), lr=args.lr, weight_decay=decay)
        self.generators = make_generators(args.seed, device)
        self.epoch = 0  # the epoch to be run next
        self.best_psnr = -math.inf
        self.metrics: list[dict] = []
        self.timing: list[dict] = []
        self.validation: dict | None = None  # the latest result of validate()

    def load_data(self) -> None:
        """Read the validation sequence and, unless --test, the training frames from --DR onto the device.

        Raises
        ------
        BadInput : the dataset is missing, incomplete, damaged or too short; the message names the file or folder.
        """
        args, root = self.args, Path(self.args.DR)
        size = args.frame_H, args.frame_W, args.num_workers
        val = read_validation(root, args.val_vi_len, *size).to(self.device)
        self.val_frames, self.val_labels = to_float(val.frames), to_float(val.labels)
        if args.test:
            return
        train = read_recording(root, "train", *size).to(self.device)
        shares = {False: ("--partial", args.partial)}
        if args.fast_train:
            shares[True] = ("--fast_partial", args.fast_partial)
        self.loaders = {}  # of the fast epochs (True), where there are any, and of all others (False)
        for fast, (flag, share) in shares.items():
            recording = train.first(int(share * len(train.numbers) + 1e-9))  # 0.29 * 100 is 28.999... in floats
            self.loaders[fast] = ClipLoader(recording, args.train_vi_len, args.clip_stride or args.train_vi_len,
                                            args.batch_size, flag)

    def fit(self) -> None:
        """Train up to --num_epoch epochs; log, validate and save as the flags say."""
        folder = Path(self.args.save_root)
        log = MetricLog(folder, self.metrics, self.timing)
        log.write()
        self.save(folder / "last.ckpt")  # whatever happens in the first epoch, there is something to go back to
        while self.epoch < self.args.num_epoch:
            epoch, is_last = self.epoch, self.epoch + 1 == self.args.num_epoch
            began = time.perf_counter()
            row, frames = self.train_one_epoch()
            self.estimate_statistics()
            trained = time.perf_counter()
            # Before anything is saved: the last good weights must outlive bad ones.
            if not (math.isfinite(row["train_loss"]) and all(p.isfinite().all() for p in self.model.parameters())):
                raise BadInput(f"the numbers went bad in epoch {epoch} (training loss {row['train_loss']:.3g}); the "
                               f"weights before it are in {folder / 'last.ckpt'}: continue from there with a smaller "
                               "--lr or --clip_grad")
            is_best = False
            is_save = is_last or epoch % self.args.per_save == 0
            if is_last or epoch % self.args.val_every == 0 or (is_save and self.args.store_visualization):
                self.validation = self.validate(epoch)
                row |= {"val_loss": self.validation["loss"], "val_psnr": self.validation["psnr"]}
                is_best = self.validation["psnr"] > self.best_psnr
                self.best_psnr = max(self.best_psnr, self.validation["psnr"])
            log.add(row, {"epoch": epoch, "train_seconds": round(trained - began, 3),
                          "val_seconds": round(time.perf_counter() - trained, 3),
                          "frames_per_second": round(frames / (trained - began), 1)})
            print(describe_epoch(row, self.args.num_epoch), flush=True)
            self.epoch += 1
            if is_save:
                self.save(folder / f"epoch={epoch}.ckpt")
                self.draw(folder / "figures", log)
            if is_best:
                self.save(folder / "best.ckpt")
            self.save(folder / "last.ckpt")
            log.write()

    def train_one_epoch(self) -> tuple[dict, int]:
        """One pass over the shuffled clips. Returns the epoch's row for metrics.csv, and how many frames it saw."""
        args, epoch = self.args, self.epoch
        loader = self.loaders[args.fast_train and epoch < args.fast_train_epoch]
        beta, ratio = self.kl_annealing(epoch), self.teacher_forcing(epoch)
        order = torch.randperm(len(loader.starts), generator=self.generators["order"])
        forced_epoch = self._draw_teacher_forcing(1, ratio) if args.tf_draw == "epoch" else None
        # Sums stay on the device: reading one in each step would make the host wait for it.
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)  # loss, MSE, KL, PSNR, times clips
        forced_clips = clips = 0
        shown = -math.inf
        self.model.train()
        with progress_bar(loader.batches(order), f"epoch {epoch}/{args.num_epoch - 1}", len(loader),
                          unit="batch") as bar:
            for step, (frames, labels) in enumerate(bar):
                lr = self.learning_rate(epoch + (step + 0.5) / len(loader))
                if forced_epoch is None:
                    forced = self._draw_teacher_forcing(len(frames) if args.tf_draw == "clip" else 1, ratio)
                else:
                    forced = forced_epoch
                forced = forced.expand(len(frames))
                sums += len(frames) * self.train_step(frames, labels, forced, beta, lr)
                forced_clips, clips = forced_clips + int(forced.sum()), clips + len(frames)
                if time.monotonic() - shown > 0.5:
                    shown = time.monotonic()
                    loss, _, _, quality = (sums / clips).tolist()
                    bar.set_postfix_str(f"loss {loss:.4g}, PSNR {quality:.2f} dB, beta {beta:.3g}, teacher forcing "
                                        f"{ratio:.2f} {'on' if forced.any() else 'off'}, lr {lr:.2g}", refresh=False)
        loss, mse, kl, _ = (sums / clips).tolist()
        row = {"epoch": epoch, "train_loss": loss, "train_mse": mse, "train_kl": kl, "beta": beta, "tfr": ratio,
               "tf_used": forced_clips / clips, "lr": lr, "val_loss": None, "val_psnr": None}
        return row, clips * args.train_vi_len

    def train_step(self, frames: Tensor, labels: Tensor, forced: Tensor, beta: float, lr: float) -> Tensor:
        """One update of the weights.

        Parameters
        ----------
        frames, labels : (B, T, 3, H, W) in [0, 1]. forced : bool (B,), the clips that see real frames.

        Returns
        -------
        (4,) on the device: loss, MSE, KL (summed over a clip's frames) and PSNR (dB, mean over frames).
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.autocast():
            predictions, mu, logvar = self.model(frames, labels, forced, generator=self.generators["latent"])
        predictions, mu, logvar = predictions.float(), mu.float(), logvar.float()
        loss, mse, kl = clip_loss(predictions, frames[:, 1:], mu, logvar, beta, self.args.kl_reduction)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.args.clip_grad > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip_grad)
        self.optimizer.step()
        with torch.no_grad():
            return torch.stack([loss, mse, kl, psnr(predictions, frames[:, 1:]).mean()])

    def estimate_statistics(self) -> None:
        """Give the label encoder statistics that fit its present weights, from poses spread over the training data."""
        labels = self.loaders[False].labels
        self.model.label_encoder.estimate_statistics(to_float(labels[::max(len(labels) // POSES_FOR_STATISTICS, 1)]))

    def _draw_teacher_forcing(self, count: int, ratio: float) -> Tensor:
        return torch.rand(count, generator=self.generators["teacher_forcing"]) < ratio

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
        progress = partial(progress_bar, desc="validation", unit="frame")
        with self.autocast():
            prediction = self.model.generate(truth[:1], self.val_labels[None], self.args.val_latent, noise, progress)[0]
        per_frame = psnr(prediction[1:], truth[1:])
        loss = (prediction[1:] - truth[1:]).square().mean().item()
        return {"epoch": epoch, "loss": loss, "psnr": per_frame.mean().item(), "psnr_per_frame": per_frame.cpu(),
                "prediction": prediction.cpu()}

    def draw(self, folder: Path, log: MetricLog) -> None:
        """Write the figures of the run so far, and a picture for TensorBoard."""
        figures.plot_losses(self.metrics, folder / "loss.png")
        figures.plot_teacher_forcing(self.metrics, folder / "teacher_forcing.png")
        if self.validation is not None:
            self.draw_validation(folder)
            if self.args.store_visualization:
                shutil.copyfile(folder / "val.gif", folder / f"val_epoch={self.validation['epoch']}.gif")
            last = len(self.val_frames) - 1
            shown = torch.arange(last // 4, last + 1, max(last // 4, 1))
            rows = [figures.tile(*clips)[0] for clips in zip(
                self.val_frames[shown].cpu().split(1), self.validation["prediction"][shown].split(1),
                self.val_labels[shown].cpu().split(1), strict=True)]
            log.add_picture(torch.cat(rows, dim=1), self.validation["epoch"])

    def draw_validation(self, folder: Path, prefix: str = "") -> None:
        """Write PSNR per frame and truth | prediction | pose of the latest validation."""
        curves = {"prediction": self.validation["psnr_per_frame"],
                  "repeat the first frame": psnr(repeat_first(self.val_frames), self.val_frames)[1:].cpu()}
        title = f"Validation, epoch {self.validation['epoch']}"
        figures.plot_psnr(curves, folder / f"{prefix}psnr_per_frame.png", title)
        figures.side_by_side_gif(self.val_frames.cpu(), self.validation["prediction"], self.val_labels.cpu(),
                                 folder / f"{prefix}val.gif")

    def save(self, path: Path) -> None:
        """Write everything that continuing needs."""
        save_checkpoint(path, {
            "model": self.model.state_dict(), "network": {flag: getattr(self.args, flag) for flag in NETWORK_FLAGS},
            "frame_size": [self.args.frame_H, self.args.frame_W], "flags": vars(self.args),
            "optimizer": self.optimizer.state_dict(), "epoch": self.epoch, "best_psnr": self.best_psnr,
            "generators": {purpose: generator.get_state() for purpose, generator in self.generators.items()},
            "device": self.device.type, "metrics": self.metrics, "timing": self.timing})

    def restore(self, state: dict, path: Path) -> None:
        """Continue from a checkpoint that ``save`` wrote. BadInput: it does not fit."""
        load_weights(self.model, state, path)
        try:
            flags = [{key: value for key, value in group.items() if key != "params"}
                     for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, own in zip(self.optimizer.param_groups, flags, strict=True):
                group.update(own)  # moments are the checkpoint's, settings are the flags'
            for purpose, generator in self.generators.items():
                # The latent generator's state is of its device's kind: on another device it starts anew.
                if purpose != "latent" or generator.device.type == state["device"]:
                    generator.set_state(state["generators"][purpose])
            self.epoch, self.best_psnr = state["epoch"], state["best_psnr"]
            self.metrics, self.timing = state["metrics"], state["timing"]
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise BadInput(f"--ckpt_path {path}: its training state is damaged or for another --optim ({error}); "
                           "start from another checkpoint") from error


def describe_epoch(row: dict, num_epoch: int) -> str:
    """An epoch's row of metrics.csv as a line to read."""
    val = "" if row["val_psnr"] is None else f"  val loss {row['val_loss']:.5f}  val PSNR {row['val_psnr']:.2f} dB"
    return (f"epoch {row['epoch']}/{num_epoch - 1}  loss {row['train_loss']:.4f}  MSE {row['train_mse']:.4f}  "
            f"KL {row['train_kl']:.4g}  beta {row['beta']:.3g}  teacher forcing {row['tfr']:.2f} (used in "
            f"{row['tf_used']:.0%})  lr {row['lr']:.2e}{val}")


def make_parser() -> FlagParser:
    parser = FlagParser(prog="Trainer.py", description="Train the conditional VAE on pose-conditioned clips.")
    switch = argparse.BooleanOptionalAction  # --flag and --no-flag, so that a recipe can pin either

    group = parser.add_argument_group("data")
    group.add_argument("--DR", required=True, help="root folder of the dataset")
    group.add_argument("--frame_H", type=number(int, 4, 4096), default=32, help="height of the frames, pixels")
    group.add_argument("--frame_W", type=number(int, 4, 4096), default=64, help="width of the frames, pixels")
    group.add_argument("--train_vi_len", type=number(int, 2, 10**6), default=16,
                       help="length of a training clip, frames")
    group.add_argument("--val_vi_len", type=number(int, 2, 10**6), default=630,
                       help="length of the validation sequence, frames")
    group.add_argument("--clip_stride", type=number(int, 1, 10**6),
                       help="frames between the starts of training clips; None: the clip's length, no overlap")
    group.add_argument("--partial", type=number(float, 0, 1, above=True), default=1.0,
                       help="share of the training frames in use, the first in number order")
    group.add_argument("--fast_train", action=switch, default=False,
                       help="use --fast_partial instead of --partial in the first --fast_train_epoch epochs")
    group.add_argument("--fast_partial", type=number(float, 0, 1, above=True), default=0.4,
                       help="share of the training frames in the fast epochs")
    group.add_argument("--fast_train_epoch", type=number(int, 0), default=5, help="number of fast epochs")

    channels = number(int, 1, 8192)
    group = parser.add_argument_group("network (another network than a checkpoint's is refused)")
    group.add_argument("--F_dim", type=channels, default=128, help="frame features' channels, a multiple of 8")
    group.add_argument("--L_dim", type=channels, default=32, help="pose feature channels, a multiple of 2")
    group.add_argument("--N_dim", type=channels, default=12, help="latent map channels, a multiple of 4")
    group.add_argument("--D_out_dim", type=channels, default=192,
                       help="fused feature channels, a multiple of 8")
    group.add_argument("--output", choices=["sigmoid", "linear"], default="sigmoid",
                       help="the generator's last activation; linear is the course's, unbounded")

    group = parser.add_argument_group("roll-out: which frame is fed to the next step")
    group.add_argument("--tfr", type=number(float, 0, 1), default=1.0,
                       help="teacher-forcing ratio at the start: probability of feeding the real frame")
    group.add_argument("--tfr_sde", type=number(int, 0), default=10,
                       help="epoch at which the ratio starts to decay (0 counts as 1)")
    group.add_argument("--tfr_d_step", type=number(float, 0, 1), default=0.1, help="decay of the ratio per epoch")
    group.add_argument("--tf_draw", choices=["epoch", "batch", "clip"], default="epoch",
                       help="what teacher forcing is drawn for: once an epoch, for each batch or for each clip")
    group.add_argument("--bptt", action=switch, default=False,
                       help="let the gradient through the fed-back prediction (slower, more memory)")

    group = parser.add_argument_group("objective: MSE + beta * KL, summed over a clip's frames")
    group.add_argument("--kl_anneal_type", type=str.capitalize, default="Cyclical",
                       choices=[kind.capitalize() for kind in KLAnnealing.KINDS],
                       help="how beta moves over the epochs; any letter case")
    group.add_argument("--kl_anneal_cycle", type=number(int, 1), default=10,
                       help="Cyclical: length of a cycle in epochs (not the number of cycles, as the course's "
                            "template reads it); Monotonic: divisor of the running sum")
    group.add_argument("--kl_anneal_ratio", type=number(float, 0, above=True), default=1.0,
                       help="steepness of beta; Cyclical with 2 has full weight half way through the cycle")
    group.add_argument("--kl_anneal_start", type=number(float, 0), default=0.0, help="Cyclical: lowest beta")
    group.add_argument("--kl_anneal_stop", type=number(float, 0), default=1.0,
                       help="Cyclical: highest beta; None: the constant beta")
    group.add_argument("--kl_reduction", choices=["sum", "mean"], default="sum",
                       help="KL summed over the latent map (the course's) or its mean")

    group = parser.add_argument_group("optimisation")
    group.add_argument("--num_epoch", type=number(int, 1, 10**9), default=70, help="length of the run, epochs")
    group.add_argument("--batch_size", type=number(int, 1, 10**6), default=2, help="clips a step")
    group.add_argument("--optim", choices=["Adam", "AdamW"], default="Adam", help="optimiser")
    group.add_argument("--weight_decay", type=number(float, 0), help="None: 0 for Adam, 0.01 for AdamW")
    group.add_argument("--lr", type=number(float, 0, above=True), default=0.001, help="learning rate")
    group.add_argument("--lr_schedule", choices=LearningRate.KINDS, default="none",
                       help="none: constant; cosine: to 0 at the end; multistep: times --lr_gamma at --lr_milestones")
    group.add_argument("--lr_milestones", type=number(int, 0), nargs="*", default=[2, 5],
                       help="epochs at which multistep drops the rate (default: the course's)")
    group.add_argument("--lr_gamma", type=number(float, 0, above=True), default=0.1, help="factor of such a drop")
    group.add_argument("--warmup", type=number(float, 0), default=0.0,
                       help="epochs, fractions allowed, of linear growth of the rate at the start")
    group.add_argument("--clip_grad", type=number(float, 0), default=1.0,
                       help="largest norm of the gradient; 0: no clipping")
    group.add_argument("--precision", choices=["fp32", "bf16"], default="fp32",
                       help="arithmetic of the network; bf16 (autocast) is faster where the processor has it")
    group.add_argument("--seed", type=number(int, 0, 2**31), default=0, help="seed of every random choice")

    group = parser.add_argument_group("run")
    group.add_argument("--save_root", required=True, type=folder_name,
                       help="run folder; a new run refuses one that holds a run")
    group.add_argument("--ckpt_path", help="checkpoint to continue from; flags given here win over its own")
    group.add_argument("--resume", action="store_true",
                       help="continue from --save_root/last.ckpt; without one, start there")
    group.add_argument("--overwrite", action="store_true", help="delete the run that --save_root holds, start anew")
    group.add_argument("--test", action="store_true", help="validate --ckpt_path only")
    group.add_argument("--per_save", type=number(int, 1), default=3,
                       help="epochs between epoch=N.ckpt files and between figures")
    group.add_argument("--val_every", type=number(int, 1), default=1, help="epochs between validations")
    group.add_argument("--val_latent", choices=["prior", "mean"], default="prior",
                       help="z in validation: drawn from N(0, I), or its mean 0")
    group.add_argument("--store_visualization", action=switch, default=False,
                       help="keep a validation GIF at each save: figures/val_epoch=N.gif")
    group.add_argument("--device", choices=["cuda", "cpu"], help="None: cuda where there is one, else cpu")
    group.add_argument("--gpu", type=number(int, 1), default=1, help="number of GPUs; this version trains on one")
    group.add_argument("--num_workers", type=number(int, 0, 1024), default=4,
                       help="threads that decode images; 0: one")
    return parser


def write_flag(flag: str, value: bool | int | float | str | list | None) -> list[str]:
    """A flag with its value as the words of a command line."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]


def parse_flags(argv: list[str] | None = None) -> tuple[argparse.Namespace, dict | None]:
    """Read the flags, those of a checkpoint beneath those given. Returns the flags and the checkpoint, if any.

    Raises
    ------
    BadInput : flags that do not go together, or a checkpoint that cannot be used.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.gpu > 1:
        print(f"Trainer.py: --gpu {args.gpu}: this version trains on one GPU; going on with one", file=sys.stderr)
    if args.resume and args.overwrite:
        raise BadInput("--resume and --overwrite: one continues the run in --save_root, the other deletes it; give one")
    if args.resume and args.ckpt_path:
        raise BadInput("--resume and --ckpt_path: --resume continues from --save_root/last.ckpt; give one of the two")
    if args.resume and (Path(args.save_root) / "last.ckpt").is_file():
        args.ckpt_path = str(Path(args.save_root) / "last.ckpt")
    if args.test and not args.ckpt_path:
        raise BadInput("--test validates a checkpoint; give one with --ckpt_path")
    if not args.ckpt_path:
        return args, None
    ckpt_path = args.ckpt_path
    state = load_checkpoint(Path(ckpt_path))
    known = vars(args).keys() - set(CALL_FLAGS)
    # Written out as a command line before the one given: the parser checks both alike, and what comes later wins.
    saved = [word for flag, value in state["flags"].items() if flag in known for word in write_flag(flag, value)]
    args = parser.parse_args(saved + list(sys.argv[1:] if argv is None else argv))
    args.ckpt_path = ckpt_path
    for flag in NETWORK_FLAGS:
        if getattr(args, flag) != state["network"][flag]:
            raise BadInput(f"--{flag} {getattr(args, flag)}: the checkpoint {ckpt_path} has {state['network'][flag]}; "
                           "a network cannot change its size: leave the flag out")
    return args, state


# What a run writes: whatever else lies in its folder is not ours to delete.
RUN_FILES = ("config.json", "metrics.csv", "timing.csv", "last.ckpt", "best.ckpt", "epoch=*.ckpt",
             "events.out.tfevents.*")
RUN_FIGURES = ("figures/loss.png", "figures/teacher_forcing.png", "figures/psnr_per_frame.png", "figures/val.gif",
               "figures/val_epoch=*.gif")


def check_run_folder(args: argparse.Namespace) -> list[Path]:
    """The files of another run that --overwrite allows to delete from --save_root; none for a new or continued run.

    Raises
    ------
    BadInput : the folder cannot be written, or holds a run that is not to be continued or overwritten.
    """
    folder = Path(args.save_root)
    check_writable(folder)
    # Another checkpoint of this folder is older than its last epochs: continuing there would delete those.
    continues = args.ckpt_path and Path(args.ckpt_path).resolve() == (folder / "last.ckpt").resolve()
    if continues and args.overwrite:
        raise BadInput(f"--overwrite deletes the run in {folder}, --ckpt_path continues it; give one of the two")
    if continues or not any(path for pattern in RUN_FILES for path in folder.glob(pattern)):
        return []
    if not args.overwrite:
        raise BadInput(f"--save_root {folder} holds a run already; continue it with --resume, delete it with "
                       "--overwrite, or choose another folder")
    return [path for pattern in RUN_FILES + RUN_FIGURES for path in folder.glob(pattern)]


def main(argv: list[str] | None = None) -> None:
    args, state = parse_flags(argv)
    folder = Path(args.save_root)
    old_run = [] if args.test else check_run_folder(args)
    trainer = Trainer(args, pick_device(args.device))
    if state is not None:
        trainer.restore(state, Path(args.ckpt_path))
    if trainer.epoch >= args.num_epoch and not args.test:
        raise BadInput(f"--num_epoch {args.num_epoch}: the checkpoint has trained {trainer.epoch} epochs already; give "
                       "more")
    trainer.load_data()
    if args.test:
        check_writable(folder)
        trainer.validation = trainer.validate(trainer.epoch - 1)
        trainer.draw_validation(folder / "figures", "test_")
        loss, quality = trainer.validation["loss"], trainer.validation["psnr"]
        print(f"validation of {args.ckpt_path} (after {trainer.epoch} epochs, z: {args.val_latent}) over "
              f"{args.val_vi_len - 1} frames: loss {loss:.6f}, PSNR {quality:.3f} dB")
        return
    folder.mkdir(parents=True, exist_ok=True)
    for path in old_run:
        path.unlink()
    if not (folder / "best.ckpt").exists():
        trainer.best_psnr = -math.inf  # the best of a run that lives elsewhere: this folder has to have its own
    write_json(folder / "config.json", describe_run(args, folder / "config.json"))
    print(f"{len(trainer.loaders[False].starts)} clips of {args.train_vi_len} frames, "
          f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters, {trainer.device}, run folder {folder}")
    trainer.fit()
    print(f"best validation PSNR {trainer.best_psnr:.2f} dB; checkpoints, curves and figures are in {folder}")


if __name__ == "__main__":
    sys.exit(run_main("Trainer.py", main))
