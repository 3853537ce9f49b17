"""Training steps and short training runs in this process: parts of check_gpu.py."""
import csv
import itertools
import math
import os
import statistics
from functools import partialmethod

import torch

import Trainer
from benchmark_cases import BETA, LEARNING_RATE
from check_gpu_report import SAME_QUALITY, TINY, Report, compilation_errors
from dataloader import load_data
from modules.config import recipes
from modules.config.trainer_flags import merge_flags, parse_command_line
from modules.network.cvae import CVAE
from modules.training.distributed import DistributedContext
from modules.training.progress import EpochProgress
from utils import BadInput, is_out_of_memory

STRATEGIES = {
    "teacher forcing": ["--tfr", "1"],
    "teacher forcing drawn per clip": ["--tfr", "0.5", "--tf_draw", "clip"],
    "blended teacher forcing": ["--tfr", "0.5", "--tf_draw", "blend"],
    "free running": ["--tfr", "0"],
    "free running with gradient": ["--tfr", "0", "--bptt"],
    "histogram of the previous frame": ["--tfr", "0", "--match_histogram"],
    "histogram of the first frame": ["--tfr", "0", "--match_histogram", "first"],
    "replay": ["--tfr", "0", "--replay", "0.9"],
    "any first frame": ["--tfr", "0", "--any_first", "0.9", "--replay", "0.5"],
    "reference frame": ["--tfr", "0", "--reference_frame"],
    "first frame as input": ["--feed", "first"],
    "crops": ["--crop_fraction", "0.9"],
    "optimal variance, L1, mean KL": ["--decoder_variance", "optimal", "--l1", "0.5", "--kl_reduction", "mean"],
    "average of the weights": ["--ema", "0.99", "--optim", "AdamW"],
}
STEPS = 3  # after one that loads the clip order and prepares the convolutions
SEEDS = 4  # fp32 and bf16 of a single seed ended 0.28 dB apart: rounding errors alone change a short training so much


def strategies(report: Report) -> str:
    """Every strategy and recipe trains some steps; on a GPU, PyTorch raises where a step waits for it."""
    errors = {}
    cases = STRATEGIES | {f"recipe {name}": ["--recipe", name] for name in recipes.names()}
    for name, flags in cases.items():
        try:
            report.figures[name] = train_steps(report, flags)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            errors[name] = " ".join(str(error).split())[:200]
        print(f"{name}: {errors.get(name, 'ok')}", flush=True)
        report.save()
    if errors:
        raise BadInput("; ".join(f"{name}: {text}" for name, text in errors.items()))
    return f"{len(cases)} x {STEPS} steps" + (", none waits for the GPU" if report.device.type == "cuda" else "")


def train_steps(report: Report, flags: list[str]) -> float:
    """The mean loss of STEPS steps after a first one, as Trainer.train_one_epoch takes them. RuntimeError: one waits
    for the GPU, or is not finite."""
    trainer = make_trainer(report, [*flags, "--batch_size", "2"])
    trainer.model.train()
    loader, generators, args = trainer.loader, trainer.generators, trainer.args
    progress = EpochProgress.begin(torch.arange(len(loader.starts)), report.device)
    batches = loader.batches(progress.order, crop_generator=generators["crop"],
                             frame_generator=generators["random_frame"])
    try:
        for step, batch in enumerate(itertools.islice(batches, 1 + STEPS)):
            clips = len(batch.frames)
            forced = progress.draw_teacher_forcing(args.tf_draw, args.tfr, clips, generators["teacher_forcing"])
            progress.sums.add(trainer.train_step(batch, forced, BETA, LEARNING_RATE))
            progress.count(clips, forced, 0.0)
            if step == 0 and report.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
    finally:
        if report.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    means = progress.means()
    if means["skipped"] or progress.clips < (1 + STEPS) * 2:
        raise RuntimeError(f"{means['skipped']} non-finite steps, {progress.clips} clips")
    return means["train_loss"]


def make_trainer(report: Report, flags: list[str]) -> Trainer.Trainer:
    size = [*TINY, "--train_vi_len", "4"] if report.small else []
    words = [*flags, *size, *report.data_flags(), "--save_root", str(report.work / "unused")]
    args = merge_flags(parse_command_line(words))
    return Trainer.Trainer(args, load_data(args, report.device), report.device)


# Training runs

class CountingTrainer(Trainer.Trainer):
    """Notes how many graphs torch.compile has compiled by the end of each epoch."""
    graphs: list[int] = []

    def finish_epoch(self) -> None:
        super().finish_epoch()
        self.graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def compiled_and_eager(report: Report) -> str:
    """Compiled and eager training with the same seeds. Where something is compiled again, the log tells why."""
    import torch._dynamo  # takes seconds
    torch._logging.set_logs(recompiles=True)
    if report.device.type == "cpu":  # Dynamo's part, which decides about recompilation, without minutes of C++
        CVAE.compile_steps = partialmethod(CVAE.compile_steps, backend="eager")
    Trainer.Trainer = CountingTrainer
    graphs = report.figures["graphs"] = []  # of each compiled run, by the end of each epoch
    scores = {"compiled": [], "eager": []}
    report.figures["val_psnr"] = scores
    with compilation_errors() as errors:
        for seed in range(1 if report.small else SEEDS):
            for name, choice in (("compiled", "on"), ("eager", "off")):
                torch._dynamo.reset()  # each run is another model, compiled for the first time
                torch._dynamo.utils.counters.clear()
                CountingTrainer.graphs.clear()
                rows = train(report, name, "--compile", choice, "--seed", str(seed))
                scores[name].append(float(rows[-1]["val_psnr"]))
                if choice == "on":
                    graphs.append(list(CountingTrainer.graphs))
                report.save()
    if errors:
        raise BadInput(errors[0])
    first, later = min(run[0] for run in graphs), max(run[-1] - run[0] for run in graphs)
    compiled, eager = (statistics.mean(values) for values in scores.values())
    message = (f"{first} graphs compiled in the first epoch, {later} later; validation {compiled:.2f} dB compiled, "
               f"{eager:.2f} dB eager ({compiled - eager:+.2f}), mean of {len(graphs)} seed(s)")
    if not first or later or not abs(compiled - eager) <= SAME_QUALITY:
        raise BadInput(f"{message}; wanted: some, 0, and at most {SAME_QUALITY} dB apart")
    return message


def train(report: Report, name: str, *flags: str, distributed: DistributedContext | None = None) -> list[dict]:
    """A short training in this process. Returns the rows of metrics.csv."""
    folder = report.new_folder(name)
    words = [*report.training_flags(), "--save_root", str(folder), *flags]
    Trainer.run(parse_command_line(words), distributed or DistributedContext())
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


class OneProcess(DistributedContext):
    """A process group of this process alone: everything that several processes exchange goes through it."""

    @property
    def is_single(self) -> bool:
        return False


def one_process(report: Report) -> str:
    """A run through NCCL and DistributedDataParallel, and the same run without."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    alone = train(report, "without_group", "--compile", "off")
    with OneProcess() as distributed:
        backend = "NCCL" if report.device.type == "cuda" else "gloo"
        print(f"process group {torch.distributed.get_backend_config()}", flush=True)
        rows = train(report, "with_group", "--compile", "off", distributed=distributed)
    loss, expected = (float(table[0]["train_loss"]) for table in (rows, alone))  # later ones amplify rounding errors
    report.figures |= {"loss": loss, "loss_alone": expected}
    message = f"{backend}: training loss of the first epoch {loss:.5g}, without a process group {expected:.5g}"
    if not math.isclose(loss, expected, rel_tol=0.02):
        raise BadInput(f"{message}; wanted: equal up to 2 %")
    return message
