"""Compare training runs: losses, schedules, validation PSNR over the epochs and frame by frame.

    python scripts/compare_runs.py runs/first runs/second                       figures in compare/, a table on screen
    python scripts/compare_runs.py runs/* --save_root DIR --epochs 30 60        also PSNR per frame after epochs 30, 60

RUN is a --save_root of Trainer.py. Runs may differ in length and settings, may have crashed or may still be running:
everything recorded so far is drawn. DIR then holds compare_psnr.png, compare_losses.png, compare_schedules.png and,
where a run recorded it, compare_psnr_per_frame.png; existing files of these names are replaced. A run without a record
of the PSNR per frame for a chosen epoch is drawn at its nearest recorded epoch, which the legend names.
"""
import argparse
import csv
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from modules.config.parser import FlagParser, folder_name, number  # noqa: E402
from modules.plots import comparison  # noqa: E402
from modules.plots.style import best  # noqa: E402
from modules.training.output_folder import is_locked  # noqa: E402
from utils import BadInput, check_writable, logger, run_main  # noqa: E402

# Flags that runs must share for numbers to be comparable, and which numbers are not comparable otherwise.
COMPARABLE = ((("train_vi_len",), "training loss, MSE and KL (sums over a clip's frames)"),
              (("decoder_variance", "l1"), "training loss (different objectives)"),
              (("kl_reduction", "N_dim"), "KL and training loss (different latent maps)"),
              (("DR", "val_vi_len", "frame_H", "frame_W", "val_latent"), "PSNR and validation loss (possibly different "
                                                                         "validation tasks)"))


@dataclass
class Run:
    """The content of a run folder."""
    folder: Path
    name: str
    config: dict  # {} where there is none
    history: list[dict]  # rows of metrics.csv, one per epoch
    is_running: bool
    per_frame: dict[int, list[float]] = field(default_factory=dict)  # epoch -> dB of the frames 1, 2, ...
    best_per_frame: tuple[int, list[float]] | None = None  # the same for the best epoch
    notes: list[str] = field(default_factory=list)  # what could not be read

    @property
    def flags(self) -> dict:
        flags = self.config.get("flags")
        return flags if isinstance(flags, dict) else {}

    @property
    def planned(self) -> int | None:
        epochs = self.flags.get("num_epoch")
        return epochs if isinstance(epochs, int) else None

    @property
    def done(self) -> int:
        return self.history[-1]["epoch"] + 1 if self.history else 0

    @property
    def state(self) -> str:
        state = "done" if self.planned is not None and self.done >= self.planned else "stopped"
        state = "running" if self.is_running else state
        return state if self.history else f"{state}, no epoch yet"

    def last(self, key: str) -> float | None:
        """The latest value of a column."""
        return next((row[key] for row in reversed(self.history) if row.get(key) is not None), None)


def read_runs(folders: list[Path], names: list[str] | None = None) -> list[Run]:
    """Read run folders.

    Parameters
    ----------
    names : one per run; None: the shortest path endings that differ.

    Raises
    ------
    BadInput : a folder is missing or given twice, none is a run, a file of a run is damaged, or the names do not fit.
    """
    real = [folder.resolve() for folder in folders]
    for index, folder in enumerate(folders):
        if real[index] in real[:index]:
            raise BadInput(f"RUN {printable(str(folder))} is given twice; give each run once")
        if not folder.is_dir():
            raise BadInput(f"RUN {printable(str(folder))}: no such folder; give the --save_root of a run of Trainer.py")
    if names is not None and len(names) != len(folders):
        raise BadInput(f"--names: {len(names)} names for {len(folders)} runs; give one per run")
    if names is not None and (len(set(names)) < len(names) or not all(map(str.strip, names))):
        raise BadInput("--names: two names are equal or one is empty; give each run its own name")
    names = list(map(printable, names or shortest_names(real)))
    runs = []
    for folder, name in zip(folders, names, strict=True):
        if (folder / "config.json").is_file() or (folder / "metrics.csv").is_file():
            runs.append(read_run(folder, name))
        else:  # runs/* also matches folders of figures and results
            logger.warning(f"{printable(str(folder))}: skipped, because it holds neither config.json nor metrics.csv")
    if not runs:
        raise BadInput("none of the folders is a run; give the --save_root of a run of Trainer.py")
    return runs


def shortest_names(folders: list[Path]) -> list[str]:
    """The shortest ending of each path that no other path shares."""
    names = []
    for folder in folders:
        others = [other.parts for other in folders if other != folder]
        length = next((length for length in range(1, len(folder.parts))
                       if not any(other[-length:] == folder.parts[-length:] for other in others)), len(folder.parts))
        names.append(str(Path(*folder.parts[-length:])) if folder.parts else str(folder))
    return names


def printable(text: str) -> str:
    """The text with control characters, line breaks and undecodable bytes replaced by "?"."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def read_run(folder: Path, name: str) -> Run:
    """Read one run folder. BadInput: a table in it is damaged; the message names file and line."""
    run = Run(folder, name, {}, read_metrics(folder / "metrics.csv"), is_locked(folder))
    unknown = "settings and planned epochs are unknown"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        run.config = config if isinstance(config, dict) else {}
        if not run.flags:
            run.notes.append(f"config.json holds no flags; {unknown}")
    except (OSError, ValueError, RecursionError) as error:
        run.notes.append(f"config.json cannot be read ({printable(str(error))}); {unknown}")
    run.best_per_frame = read_psnr(folder / "psnr_best.csv")
    for path in folder.glob("psnr_epoch=*.csv"):
        if recorded := read_psnr(path):
            run.per_frame[recorded[0]] = recorded[1]
    return run


def read_rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, float | None]]:
    """The rows of a table of numbers; an empty cell is None. A missing or empty file has no rows.

    Raises
    ------
    BadInput : a column is missing or a cell is not a number; the message names file, line and column.
    """
    rows, shown = [], printable(str(path))
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in needed if name not in (reader.fieldnames or needed)]
            if missing:
                raise BadInput(f"{shown}: column {missing[0]} is missing; use the file that Trainer.py wrote")
            for row in reader:
                where = f"{shown}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise BadInput(f"{where} has more or fewer cells than the header; fix or delete the line")
                rows.append({name: _parse(cell, f"{where}, column {name}") for name, cell in row.items()})
                if any(rows[-1][name] is None for name in needed):
                    raise BadInput(f"{where} lacks a number in one of the columns {', '.join(needed)}; fix or delete "
                                   "the line")
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{shown} is not a CSV file ({error}); use the file that Trainer.py wrote") from error
    return rows


def _parse(cell: str, where: str) -> float | None:
    try:
        return float(cell) if cell.strip() else None
    except ValueError:
        raise BadInput(f"{where}: {printable(cell)[:30]!r} is not a number; fix or delete the line") from None


def _to_count(value: float, where: str) -> int:
    if not (0 <= value < 2**53 and value == int(value)):
        raise BadInput(f"{where}: {value} is not a whole number of at least 0; fix or delete the line")
    return int(value)


def read_metrics(path: Path) -> list[dict]:
    """metrics.csv of a run: one row per epoch. BadInput: as ``read_rows``, or epochs that do not increase."""
    rows, shown = read_rows(path, ("epoch",)), printable(str(path))
    for line, row in enumerate(rows, start=2):
        row["epoch"] = _to_count(row["epoch"], f"{shown}: line {line}, column epoch")
    for line, (before, row) in enumerate(zip(rows[:-1], rows[1:], strict=True), start=3):
        if row["epoch"] <= before["epoch"]:
            raise BadInput(f"{shown}: line {line} has epoch {row['epoch']} after epoch {before['epoch']}; fix or "
                           "delete the line")
    return rows


def read_psnr(path: Path) -> tuple[int, list[float]] | None:
    """Epoch and dB of the frames 1, 2, ... of a psnr_*.csv; None for a missing or empty one. BadInput: as
    ``read_rows``, or frames or epochs that do not fit."""
    rows, shown = read_rows(path, ("epoch", "frame", "psnr")), printable(str(path))
    if not rows:
        return None
    wrong = [line for line, row in enumerate(rows, start=2)
             if row["frame"] != line - 1 or row["epoch"] != rows[0]["epoch"]]
    if wrong:
        raise BadInput(f"{shown}: line {wrong[0]} is not frame {wrong[0] - 1} of the epoch in line 2; use the file "
                       "that Trainer.py wrote")
    return _to_count(rows[0]["epoch"], f"{shown}: line 2, column epoch"), [row["psnr"] for row in rows]


def choose_moments(runs: list[Run], epochs: list[int]) -> tuple[dict[str, dict], list[str]]:
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
                curves[run.name] = nearest, run.per_frame[nearest]
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


TABLE = ("run", "best val PSNR", "in epoch", "epochs", "train loss", "val loss", "state")


def score_table(runs: list[Run]) -> list[tuple[str, ...]]:
    """A row of texts per run, with the columns of TABLE; the losses are the latest."""
    rows = []
    for run in runs:
        top = best(run.history, "val_psnr")
        losses = ["-" if (value := run.last(key)) is None else f"{value:.4g}" for key in ("train_loss", "val_loss")]
        rows.append((run.name, *((f"{top[1]:.2f} dB", str(top[0])) if top else ("-", "-")),
                     f"{run.done} of {'?' if run.planned is None else run.planned}", *losses, run.state))
    return rows


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
