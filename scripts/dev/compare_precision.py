"""Show what training in bfloat16 costs in quality: the same run in float32 and in bfloat16, scored free-running.

    python scripts/dev/compare_precision.py --save_root DIR                       a short training on synthetic people
    python scripts/dev/compare_precision.py --save_root DIR --DR DATASET --truth TRUTH --seeds 0 1 2 -- @FILE.args

For each seed Trainer.py runs in either precision and Tester.py scores the test sequences (z its prior's mean, course
score), in the precision of the training and, for the weights that float32 has trained, also in bfloat16. The flags of
Trainer.py stand after --. What is there already is not trained again, so that a stopped comparison goes on. Where
bfloat16 is more than --tolerance dB below float32, in the mean over the seeds, it ends with an error.
"""
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from modules.config.parser import FlagParser, number  # noqa: E402
from utils import BadInput, check_writable, run_main  # noqa: E402

# A few minutes of free-running training: short clips first, then longer ones, whose chains let rounding errors grow.
STAGES = [[f"@{ROOT / 'scripts' / 'recipes' / 'cpu_hour.args'}", "--train_vi_len", "4", "--clip_stride", "4",
           "--lr_schedule", "none", "--num_epoch", "2"],
          ["--resume", "--train_vi_len", "16", "--clip_stride", "16", "--batch_size", "2", "--lr_schedule", "cosine",
           "--num_epoch", "3"]]
ROWS = [("fp32", "fp32"), ("bf16", "bf16"), ("fp32", "bf16")]  # precision of the training, of the roll-out


def call(program: str, *flags: str | Path | int) -> None:
    """Run a program of this repo. BadInput: it has failed; what it says stands above."""
    if subprocess.run([sys.executable, str(ROOT / program), *map(str, flags)]).returncode:
        raise BadInput(f"{program} has ended with an error, which stands above; mend it and start again")


def train(run: Path, stages: list[list[str]], data: Path, precision: str, seed: int) -> None:
    """Train a run to its end, in as many calls as there are stages."""
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


def main(argv: list[str] | None = None) -> None:
    parser = FlagParser(prog="compare_precision.py", description=__doc__.split("\n")[0],
                        epilog="The flags of Trainer.py stand after --; without them it is a short one.")
    parser.add_argument("--save_root", type=Path, required=True, help="folder for data, runs and results")
    parser.add_argument("--DR", type=Path, help="dataset; None: synthetic people, made in --save_root")
    parser.add_argument("--truth", type=Path, help="folder with the real frames of its test sequences K/N.png")
    parser.add_argument("--seeds", type=number(int, 0), nargs="+", default=[0], help="seeds of the runs")
    parser.add_argument("--tolerance", type=number(float, 0), default=0.3, help="what bfloat16 may cost, dB")
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])  # an @file after -- is Trainer.py's
    stages = [words[cut + 1:]] if words[cut + 1:] else STAGES
    if (args.DR is None) != (args.truth is None):
        raise BadInput("--DR and --truth: give both, the dataset and the real frames of its test sequences, or none")
    folder = args.save_root
    check_writable(folder)
    data, truth = args.DR or folder / "data", args.truth or folder / "data" / "truth"
    if not data.exists() and args.DR is None:
        call("scripts/make_synthetic_dataset.py", data)

    table = {row: [] for row in ROWS}
    for seed in args.seeds:
        for trained, rolled in ROWS:
            run = folder / f"{trained}_seed{seed}"
            train(run, stages, data, trained, seed)
            result = folder / f"{trained}_seed{seed}_in_{rolled}"
            table[trained, rolled].append(score(result, run, data, truth, rolled))
    print(f"\n| trained in | rolled out in | {' | '.join(f'seed {seed}' for seed in args.seeds)} | mean | change |\n"
          f"| --- | --- |{' --- |' * (len(args.seeds) + 2)}")
    means = {row: sum(scores) / len(scores) for row, scores in table.items()}
    for row, scores in table.items():
        cells = [*row, *(f"{value:.2f}" for value in (*scores, means[row])), f"{means[row] - means[ROWS[0]]:+.2f} dB"]
        print(f"| {' | '.join(cells)} |")
    if means[ROWS[1]] < means[ROWS[0]] - args.tolerance:
        raise BadInput(f"bfloat16 ends {means[ROWS[0]] - means[ROWS[1]]:.2f} dB below float32, more than --tolerance "
                       f"{args.tolerance:g}: give --precision fp32 for such runs")


if __name__ == "__main__":
    sys.exit(run_main("compare_precision.py", main))
