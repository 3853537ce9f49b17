"""Measure what training in bfloat16 costs in quality: the same run in float32 and in bfloat16, scored free-running.

    python scripts/dev/compare_precision.py --save_root DIR               a short training on synthetic people
    python scripts/dev/compare_precision.py --save_root DIR --DR DATASET --truth TRUTH --seeds 0 1 -- --recipe demo

For each seed, Trainer.py runs in both precisions and Tester.py scores the test sequences (latent mean, course score) in
the precision of the training and, for the float32 weights, also in bfloat16. The flags of Trainer.py follow --.
Finished trainings are not repeated, so that an interrupted comparison continues. It fails if bfloat16 is more than
--tolerance dB below float32 in the mean over the seeds.
"""
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from modules.config.parser import FlagParser, number  # noqa: E402
from utils import BadInput, check_writable, run_main  # noqa: E402

# A small free-running network for a few minutes: short clips first, then longer ones, in which rounding errors grow.
STAGES = [["--F_dim", "32", "--L_dim", "16", "--N_dim", "8", "--D_out_dim", "48", "--output", "sigmoid", "--tfr", "0",
           "--kl_anneal_type", "None", "--kl_anneal_stop", "0.0001", "--lr", "0.002", "--warmup", "0.5",
           "--val_every", "2", "--val_latent", "mean", "--train_vi_len", "4", "--batch_size", "4", "--num_epoch", "2"],
          ["--resume", "--train_vi_len", "16", "--batch_size", "2", "--lr_schedule", "cosine", "--num_epoch", "3"]]
ROWS = [("fp32", "fp32"), ("bf16", "bf16"), ("fp32", "bf16")]  # precision of the training, of the rollout


def call(program: str, *flags: str | Path | int) -> None:
    """Run a program of this repository. BadInput: it failed; its message is printed above."""
    if subprocess.run([sys.executable, str(ROOT / program), *map(str, flags)]).returncode:
        raise BadInput(f"{program} failed (see above); fix that and start again")


def train(run: Path, stages: list[list[str]], data: Path, precision: str, seed: int) -> None:
    """Train a run, one call per stage."""
    for index, stage in enumerate(stages):
        done = run / f"stage{index}"
        if not done.exists():
            call("Trainer.py", *stage, "--DR", data, "--save_root", run, "--precision", precision, "--seed", seed,
                 *["--resume"] * ("--resume" not in stage))
            done.touch()


def score(result: Path, run: Path, data: Path, truth: Path, precision: str) -> float:
    """Course score over the test sequences, dB."""
    if not (result / "summary.json").exists():
        call("Tester.py", "--DR", data, "--ckpt_path", run / "last.ckpt", "--save_root", result, "--truth", truth,
             "--latent", "mean", "--precision", precision, "--no-make_gif", "--any_size", "--overwrite")
    return json.loads((result / "summary.json").read_text(encoding="utf-8"))["mean"]["course_psnr"]


def parse_flags(argv: list[str] | None) -> tuple[argparse.Namespace, list[list[str]]]:
    """The script's own flags, and those of Trainer.py, which follow --, as stages of the training."""
    parser = FlagParser(prog="compare_precision.py", description=__doc__.split("\n")[0],
                        epilog="The flags of Trainer.py follow --; the default is a short training.")
    parser.add_argument("--save_root", type=Path, required=True, help="folder for data, runs and results")
    parser.add_argument("--DR", type=Path, help="dataset; None: synthetic people, made in --save_root")
    parser.add_argument("--truth", type=Path, help="folder with the real frames of its test sequences, K/N.png")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0], help="seeds of the runs")
    parser.add_argument("--tolerance", type=number(float, 0), default=0.3, help="acceptable loss of bfloat16, dB")
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:end])  # an @file after -- is for Trainer.py
    if (args.DR is None) != (args.truth is None):
        raise BadInput("--DR and --truth: give both, the dataset and the real frames of its test sequences, or neither")
    return args, [words[end + 1:]] if words[end + 1:] else STAGES


def print_table(table: dict[tuple[str, str], list[float]], seeds: list[int]) -> None:
    """The scores in dB, a row for each of ROWS."""
    print(f"\n| trained in | rolled out in | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | change |\n"
          f"| --- | --- |{' --- |' * (len(seeds) + 2)}")
    fp32 = statistics.mean(table[ROWS[0]])
    for row, scores in table.items():
        mean = statistics.mean(scores)
        cells = [*row, *(f"{value:.2f}" for value in (*scores, mean)), f"{mean - fp32:+.2f} dB"]
        print(f"| {' | '.join(cells)} |")


def main(argv: list[str] | None = None) -> None:
    args, stages = parse_flags(argv)
    folder = args.save_root
    check_writable(folder)
    data, truth = args.DR or folder / "data", args.truth or folder / "data" / "truth"
    if not data.exists() and args.DR is None:
        call("scripts/make_synthetic_dataset.py", data)
    table = {row: [] for row in ROWS}
    for seed in args.seeds:
        for trained, rolled_out in ROWS:
            run = folder / f"{trained}_seed{seed}"
            train(run, stages, data, trained, seed)
            result = folder / f"{trained}_seed{seed}_in_{rolled_out}"
            table[trained, rolled_out].append(score(result, run, data, truth, rolled_out))
    print_table(table, args.seeds)
    loss = statistics.mean(table[ROWS[0]]) - statistics.mean(table[ROWS[1]])
    if loss > args.tolerance:
        raise BadInput(f"bfloat16 is {loss:.2f} dB below float32, more than --tolerance {args.tolerance:g}; use "
                       "--precision fp32 for such runs")


if __name__ == "__main__":
    sys.exit(run_main("compare_precision.py", main))
