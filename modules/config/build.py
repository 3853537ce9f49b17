"""From flags to the objects of modules/, whose errors become sentences about flags."""
import argparse

import torch

from modules.network.cvae import CVAE
from modules.schedulers import KLAnnealing, LearningRate, TeacherForcing
from modules.training.checkpoint import NETWORK_FLAGS
from modules.training.precision import faster_precision
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


def choose_precision(args: argparse.Namespace, device: torch.device) -> str:
    """"fp32" or "bf16"; "auto" is the faster one on this machine."""
    precision = pick_precision(args.precision, device)
    if args.precision == "auto" and device.type == "cpu" and precision == "bf16":
        return faster_precision(make_model(args), args.frame_H, args.frame_W)
    return precision


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
