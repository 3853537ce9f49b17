"""From flags to the objects of modules/, whose errors become sentences about flags."""
import argparse
import os

import torch

from modules.network.cvae import CVAE
from modules.schedulers import KLAnnealing, LearningRate, TeacherForcing
from modules.training.checkpoint import NETWORK_FLAGS
from modules.training.timing import pick_rollout_threads, pick_training
from utils import as_bad_input, pick_precision


def describe_settings(args: argparse.Namespace) -> dict:
    """What a checkpoint keeps of the flags."""
    return {"network": {flag: getattr(args, flag) for flag in NETWORK_FLAGS},
            "frame_size": [args.frame_H, args.frame_W], "flags": vars(args)}


def make_model(args: argparse.Namespace) -> CVAE:
    """The network. BadInput: sizes that it cannot have."""
    with as_bad_input("--F_dim, --L_dim, --N_dim, --D_out_dim"):
        return CVAE(**{flag: getattr(args, flag) for flag in NETWORK_FLAGS}, bptt=args.bptt,
                    match_histogram=args.match_histogram)


def choose_arithmetic(args: argparse.Namespace, device: torch.device) -> None:
    """Set the precision ("fp32" or "bf16") and, on a CPU, the number of threads that a run keeps: as given, else the
    faster ones on this machine."""
    precision = pick_precision(args.precision, device)
    if device.type == "cpu":
        is_open = args.precision == "auto" and precision == "bf16"  # not every processor with bf16 gains from it
        threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else args.threads
        precision, args.threads = pick_training(make_model(args), args.frame_H, args.frame_W,
                                                None if is_open else precision, threads)
        torch.set_num_threads(args.threads)
    args.precision = precision


def choose_rollout_threads(args: argparse.Namespace, trained: int | None, model: CVAE, sequences: int,
                           frame_size: tuple[int, int]) -> None:
    """Set the number of threads of a rollout on a CPU: as given, else as in training, or one where all are slow."""
    if args.threads is None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(trained or torch.get_num_threads(), torch.get_num_threads()))
        torch.set_num_threads(pick_rollout_threads(model, sequences, *frame_size, args.precision))


def make_optimizer(args: argparse.Namespace, model: torch.nn.Module) -> torch.optim.Optimizer:
    decay = args.weight_decay if args.weight_decay is not None else {"Adam": 0.0, "AdamW": 0.01}[args.optim]
    return getattr(torch.optim, args.optim)(model.parameters(), lr=args.lr, weight_decay=decay, fused=True)


def make_schedules(args: argparse.Namespace) -> tuple[TeacherForcing, KLAnnealing, LearningRate]:
    """The schedules. BadInput: numbers that exclude each other."""
    with as_bad_input("--kl_anneal_cycle, --kl_anneal_start, --kl_anneal_stop"):
        kl_annealing = KLAnnealing(args.kl_anneal_type, args.kl_anneal_cycle, args.kl_anneal_ratio,
                                   args.kl_anneal_start, args.kl_anneal_stop)
    with as_bad_input("--warmup, --num_epoch"):
        learning_rate = LearningRate(args.lr_schedule, args.lr, args.num_epoch, args.warmup, args.lr_milestones,
                                     args.lr_gamma)
    return TeacherForcing(args.tfr, args.tfr_sde, args.tfr_d_step), kl_annealing, learning_rate
