"""What to change when a run fails: the flags that help."""
import argparse
import math

MEMORY_ADVICE = ("continue with --resume and a smaller --batch_size or --train_vi_len, --no-bptt, --precision bf16 or "
                 "--device cpu, or start again with a smaller --F_dim, --D_out_dim, --frame_H, --frame_W or --partial")


def advise_after_divergence(args: argparse.Namespace, mse: float = math.nan, kl: float = math.nan) -> str:
    """Flags against non-finite steps of a run whose first one had this MSE and KL."""
    beta = "--kl_anneal_stop" if args.kl_anneal_type == "None" else "--kl_anneal_start"
    advice = [f"a larger {beta}, which ties z to its prior"] * (math.isfinite(mse) and not math.isfinite(kl))
    advice += ["--precision fp32"] * (args.precision == "bf16") + ["--clip_grad 1"] * (args.clip_grad == 0)
    advice += [f"a smaller --lr than {args.lr:g}"]
    return (f"{args.save_root}/last.ckpt holds the weights before that: continue with --resume and "
            f"{' or '.join(advice)}, or start from best.ckpt with --ckpt_path and another --save_root")
