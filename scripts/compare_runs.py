"""Compare training runs: losses, schedules, validation PSNR over the epochs and frame by frame.

    python scripts/compare_runs.py runs/first runs/second                       figures in compare/, a table on screen
    python scripts/compare_runs.py runs/* --save_root DIR --epochs 30 60        also PSNR per frame after epochs 30, 60

RUN is a --save_root of Trainer.py. Runs may differ in length and settings, may have crashed or may still be running:
everything recorded so far is drawn. DIR then holds compare_psnr.png, compare_losses.png, compare_schedules.png and,
where a run recorded it, compare_psnr_per_frame.png; existing files of these names are replaced. A run without a record
of the PSNR per frame for a chosen epoch is drawn at its nearest recorded epoch, which the legend names.
"""
import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder
import utils  # noqa: E402, F401  first: it says which packages are missing

# isort: split
from modules.config.parser import FlagParser, folder_name, number  # noqa: E402
from modules.plots import comparison  # noqa: E402
from modules.plots.style import best  # noqa: E402
from run_reader import Run, read_runs  # noqa: E402
from utils import check_writable, run_main  # noqa: E402

# Flags that runs must share for numbers to be comparable, and which numbers are not comparable otherwise.
COMPARABLE = ((("decoder_variance", "l1", "kl_anneal_type", "kl_anneal_cycle", "kl_anneal_ratio", "kl_anneal_start",
                "kl_anneal_stop"), "training loss (different objectives)"),
              (("kl_reduction", "N_dim"), "KL and training loss (different latent maps)"),
              (("DR", "val_vi_len", "frame_H", "frame_W", "val_latent"), "PSNR and validation loss (possibly different "
                                                                         "validation tasks)"))


def choose_moments(runs: list[Run], epochs: list[int]) -> tuple[dict[str, dict[str, comparison.Recording | None]],
                                                                list[str]]:
    """The input of ``comparison.compare_psnr_per_frame``: the best epoch and the chosen ones, for all runs.

    Returns
    -------
    The moments that at least one run recorded, and a note on each one that a run lacks.
    """
    moments = {"best epoch": {run.name: run.best_per_frame for run in runs}}
    lacking = [run.name for run in runs if run.history and not run.best_per_frame]
    notes = [f"PSNR per frame of the best epoch: not recorded by {', '.join(lacking)}"] * bool(lacking)
    lacking = [run.name for run in runs if run.history and not run.per_frame]
    notes += [f"PSNR per frame of chosen epochs: not recorded by {', '.join(lacking)}"] * bool(lacking and epochs)
    for epoch in dict.fromkeys(epochs):
        curves = moments[f"epoch {epoch}"] = dict.fromkeys((run.name for run in runs), None)
        for run in runs:
            if run.per_frame:
                nearest = min(run.per_frame, key=lambda other: (abs(other - epoch), other))
                curves[run.name] = run.per_frame[nearest]
                if nearest != epoch:
                    notes.append(f"{run.name}: PSNR per frame of epoch {epoch} was not recorded, epoch {nearest} is "
                                 f"drawn; recorded epochs: {_abbreviate(sorted(run.per_frame))}")
    return {title: curves for title, curves in moments.items() if any(curves.values())}, notes


def _abbreviate(epochs: list[int]) -> str:
    texts = list(map(str, epochs))
    return ", ".join(texts if len(texts) <= 8 else [*texts[:4], "...", *texts[-3:]])


def incomparable(runs: list[Run]) -> list[str]:
    """A sentence for each kind of number whose meaning differs between runs. Runs without flags are left out."""
    notes, known = [], [run.flags for run in runs if run.flags]
    if all(run.dataset for run in runs if run.flags):  # the same dataset may lie in several places
        known = [run.flags | {"DR": [run.dataset.get(fact) for fact in ("checksum", "val_frames")]}
                 for run in runs if run.flags]
    for flags, numbers in COMPARABLE:
        differing = [f"--{flag}" for flag in flags if len({str(values.get(flag)) for values in known}) > 1]
        if differing:
            notes.append(f"runs differ in {', '.join(differing)}: do not compare {numbers}")
    return notes


def draw(runs: list[Run], epochs: list[int], folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Draw every figure that the runs have data for.

    Returns
    -------
    Title -> file, and notes on the figures.

    Raises
    ------
    OSError : a file cannot be written.
    """
    histories = {run.name: run.history for run in runs}
    paths = {"Validation PSNR": folder / "compare_psnr.png", "Losses": folder / "compare_losses.png",
             "KL weight and teacher forcing": folder / "compare_schedules.png"}
    plots = comparison.compare_quality, comparison.compare_losses, comparison.compare_schedules
    for plot, path in zip(plots, paths.values(), strict=True):
        plot(histories, path)
    moments, notes = choose_moments(runs, epochs)
    if moments:
        paths["PSNR per frame"] = folder / "compare_psnr_per_frame.png"
        comparison.compare_psnr_per_frame(moments, paths["PSNR per frame"])
    else:
        (folder / "compare_psnr_per_frame.png").unlink(missing_ok=True)  # an earlier comparison's
        notes = ["no figure of PSNR per frame: no run recorded it (psnr_best.csv, psnr_epoch=N.csv)"]
    return paths, notes


TABLE = ("run", "best val PSNR", "in epoch", "repeat first", "epochs", "train MSE", "KL", "val MSE", "state")


def rank(runs: list[Run]) -> list[Run]:
    """The runs, the best validation PSNR first; those without one last."""
    tops = [best(run.history, "val_psnr") for run in runs]
    order = sorted(range(len(runs)), key=lambda index: -tops[index][1] if tops[index] else math.inf)
    return [runs[index] for index in order]


def score_table(runs: list[Run]) -> list[tuple[str, ...]]:
    """A row of texts per run, with the columns of TABLE, in the order of ``rank``.

    The errors are the latest, means per frame. The training loss is left out: its KL weight differs between runs and
    epochs.
    """
    rows = []
    for run in rank(runs):
        top, recorded = best(run.history, "val_psnr"), run.best_per_frame
        repeat_first = comparison.mean_of(recorded.repeat_first) if recorded and recorded.repeat_first else None
        errors = [format_number(run.last(key)) for key in ("train_mse", "train_kl", "val_loss")]
        rows.append((run.name, *((format_number(top[1], " dB"), str(top[0])) if top else ("-", "-")),
                     format_number(repeat_first, " dB"),
                     f"{run.done} of {'?' if run.planned is None else run.planned}", *errors, run.state))
    return rows


def format_number(value: float | None, unit: str = "") -> str:
    """A number as a text, with two decimals where it has a unit; "-" for None."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "non-finite"
    return f"{value:.2f}{unit}" if unit and abs(value) < 1000 else f"{value:.4g}{unit}"


def print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(TABLE, *rows, strict=True)]
    for row in (TABLE, *rows):
        print("  ".join(text.ljust(width) if place in (0, len(TABLE) - 1) else text.rjust(width)
                        for place, (text, width) in enumerate(zip(row, widths, strict=True))).rstrip())


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that choose the runs and the epochs."""
    add = parser.add_argument
    add("runs", metavar="RUN", type=Path, nargs="+", help="run folder, a --save_root of Trainer.py")
    add("--epochs", type=number(int, 0), nargs="+", metavar="N", default=[],
        help="epochs, besides the best, whose PSNR per frame is drawn; or a run's nearest recorded epoch")
    add("--names", nargs="+", metavar="NAME", help="names of the runs; None: the shortest path endings that differ")


def main(argv: list[str] | None = None) -> None:
    parser = FlagParser(prog="compare_runs.py", description="Compare training runs.")
    add_run_flags(parser)
    parser.add_argument("--save_root", type=folder_name, default="compare", help="folder for the figures")
    args = parser.parse_args(argv)
    folder = Path(args.save_root)
    check_writable(folder)
    runs = read_runs(args.runs, args.names)
    paths, notes = draw(runs, args.epochs, folder)
    print_table(score_table(runs))
    for note in (*(f"{run.name}: {note}" for run in runs for note in run.notes), *notes, *incomparable(runs)):
        print(note)
    print("figures: " + ", ".join(map(str, paths.values())))


if __name__ == "__main__":
    sys.exit(run_main("compare_runs.py", main))
