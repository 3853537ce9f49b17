"""What to change when a run fails or would train little: the flags that help."""
import argparse
import math
from pathlib import Path

from modules.schedulers import LearningRate

MEMORY_ADVICE = ("continue with --resume and a smaller --batch_size or --train_vi_len, --no-bptt, --precision bf16 or "
                 "--device cpu, or start again with a smaller --F_dim, --D_out_dim, --frame_H, --frame_W, --partial or "
                 "--shifted_copies")


FEW_UPDATES, ENOUGH_UPDATES = 300, 760  # of the results in the README, those after 760 updates are the earliest
LOW_RATE = 0.05  # of --lr


def advise_on_length(args: argparse.Namespace, batches: int, fast_batches: int) -> str:
    """A line about a run of so few updates that it needs more epochs, else "".

    Parameters
    ----------
    batches, fast_batches : updates in an epoch, and in each of the fast ones at the start.
    """
    def updates(epochs: int) -> int:
        fast = min(args.fast_train_epoch, epochs) if args.fast_train else 0
        return fast * fast_batches + (epochs - fast) * batches

    if updates(args.num_epoch) >= FEW_UPDATES:
        return ""
    epochs = next(epochs for epochs in range(args.num_epoch, ENOUGH_UPDATES + 1) if updates(epochs) >= ENOUGH_UPDATES)
    return (f"note: the whole run makes {updates(args.num_epoch)} updates, too few for a good model; --num_epoch "
            f"{epochs} makes {updates(epochs)}, as many as the smallest results in the README")


def advise_on_rate(args: argparse.Namespace, learning_rate: LearningRate, epoch: int) -> str:
    """A line about a schedule that leaves next to no learning rate from ``epoch`` to the end of the run, else ""."""
    left, points = args.num_epoch - epoch, 1000
    mean = sum(learning_rate(epoch + left * (point + 0.5) / points) for point in range(points)) / points
    if mean >= LOW_RATE * args.lr:
        return ""
    return (f"note: from epoch {epoch} on, the mean learning rate is {mean:.1e}, {mean / args.lr:.2%} of --lr "
            f"{args.lr:g}, which changes little; use --lr_schedule none with a small --lr instead of "
            f"{args.lr_schedule}, or start a new schedule in another folder with --ckpt_path and --finetune")


def describe_divergence(args: argparse.Namespace, streak: list[float], place: str, lr: float, beta: float) -> str:
    """The sentence that ends a run which diverges.

    Parameters
    ----------
    streak : number of the latest steps, all non-finite; loss, MSE, KL and gradient norm of the first of them.
    """
    skipped, loss, mse, kl, norm = streak
    return (f"{skipped:.0f} steps in a row, up to {place}, were non-finite and skipped: loss {loss:.3g}, MSE "
            f"{mse:.3g}, KL {kl:.3g}, gradient norm {norm:.3g} in the first, learning rate {lr:.3g}, beta {beta:.3g}; "
            f"{advise_after_divergence(args, mse, kl)}")


def advise_after_divergence(args: argparse.Namespace, mse: float = math.nan, kl: float = math.nan) -> str:
    """Flags against non-finite steps of a run whose first one had this MSE and KL."""
    if (args.weight_decay or 0) > max(1, 1 / args.lr):  # each step takes away more than the whole weights
        return (f"{args.save_root}/last.ckpt holds the weights before that: continue with --resume and a smaller "
                f"--weight_decay than {args.weight_decay:g}")
    beta = "--kl_anneal_stop" if args.kl_anneal_type == "None" else "--kl_anneal_start"
    advice = [f"a larger {beta}, which ties z to its prior"] * (math.isfinite(mse) and not math.isfinite(kl))
    advice += ["--precision fp32"] * (args.precision == "bf16") + ["--clip_grad 1"] * (args.clip_grad == 0)
    advice += [f"a smaller --lr than {args.lr:g}"]
    has_best = Path(args.save_root, "best.ckpt").is_file()
    best = ", or start from best.ckpt with --ckpt_path and another --save_root" if has_best else ""
    return (f"{args.save_root}/last.ckpt holds weights from before that: continue with --resume and "
            f"{' or '.join(advice)}{best}")
