"""Reads run folders of Trainer.py, also damaged ones, for the programs that compare and report runs."""
import csv
import io
import json
import math
import stat
from dataclasses import dataclass, field
from pathlib import Path

from modules.plots.comparison import Recording
from modules.training.output_folder import is_locked
from utils import BadInput, logger

MAX_BYTES = 64 << 20  # of a file: larger ones, such as a link to /dev/zero, are not what our programs write
LARGEST = 3.4e38  # of float32, in which training computes: larger numbers count as infinite


@dataclass
class Run:
    """The content of a run folder."""
    folder: Path
    name: str
    config: dict  # {} where there is none
    history: list[dict]  # rows of metrics.csv, one per epoch; training losses are means per predicted frame
    is_running: bool
    per_frame: dict[int, Recording] = field(default_factory=dict)  # epoch -> PSNR of each frame
    best_per_frame: Recording | None = None  # of the best epoch
    notes: list[str] = field(default_factory=list)  # what could not be read

    @property
    def flags(self) -> dict:
        return self._table("flags")

    @property
    def dataset(self) -> dict:
        return self._table("dataset")

    def _table(self, key: str) -> dict:
        table = self.config.get(key)
        return table if isinstance(table, dict) else {}

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


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of at most MAX_BYTES.

    Raises
    ------
    ValueError : it is larger, or something else, such as a device or a FIFO, which may have no end.
    OSError : it is missing or cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a regular file")
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
    return content


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
        if (folder / "config.json").exists() or (folder / "metrics.csv").exists():
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
    unknown = "settings, planned epochs and training losses are unknown"
    try:
        config = json.loads(read_bytes(folder / "config.json").decode("utf-8"))
        run.config = config if isinstance(config, dict) else {}
        if not run.flags:
            run.notes.append(f"config.json holds no flags; {unknown}")
    except (OSError, ValueError, RecursionError) as error:
        run.notes.append(f"config.json cannot be read ({printable(str(error))}); {unknown}")
    _divide_by_frames(run)
    run.best_per_frame = read_psnr(folder / "psnr_best.csv")
    for path in folder.glob("psnr_epoch=*.csv"):
        if recorded := read_psnr(path):
            run.per_frame[recorded.epoch] = recorded
    return run


def _divide_by_frames(run: Run) -> None:
    """Training losses of metrics.csv, sums over a clip's predicted frames, become means per frame. They are left out
    where the length of a clip is unknown."""
    length = run.flags.get("train_vi_len")
    is_known = isinstance(length, int) and 2 <= length <= 10**6
    if run.flags and not is_known:
        run.notes.append("config.json lacks a valid train_vi_len; training losses per frame are unknown")
    for row in run.history:
        for key in ("train_loss", "train_mse", "train_kl"):
            if row.get(key) is not None:
                row[key] = row[key] / (length - 1) if is_known else None


def read_rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, float | None]]:
    """The rows of a table of numbers; an empty cell is None. A missing or empty file has no rows.

    Raises
    ------
    BadInput : a column is missing or a cell is not a number; the message names file, line and column.
    """
    rows, shown = [], printable(str(path))
    try:
        reader = csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8-sig"), newline=""))
        missing = [name for name in needed if name not in (reader.fieldnames or needed)]
        if missing:
            raise BadInput(f"{shown}: column {missing[0]} is missing; use the file that Trainer.py wrote")
        for row in reader:
            where = f"{shown}: line {reader.line_num}"
            if None in row or None in row.values():
                raise BadInput(f"{where} has more or fewer cells than the header; fix or delete the line")
            rows.append({name: _parse(cell, f"{where}, column {printable(name)}") for name, cell in row.items()})
            if any(rows[-1][name] is None for name in needed):
                raise BadInput(f"{where} lacks a number in one of the columns {', '.join(needed)}; fix or delete "
                               "the line")
    except FileNotFoundError:
        return []
    except (ValueError, csv.Error) as error:
        raise BadInput(f"{shown} is not a CSV file ({error}); use the file that Trainer.py wrote") from error
    return rows


def _parse(cell: str, where: str) -> float | None:
    try:
        value = float(cell) if cell.strip() else None
    except ValueError:
        raise BadInput(f"{where}: {printable(cell)[:30]!r} is not a number; fix or delete the line") from None
    return value if value is None or not abs(value) > LARGEST else math.copysign(math.inf, value)


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


def read_psnr(path: Path) -> Recording | None:
    """A psnr_*.csv; None for a missing or empty one. BadInput: as ``read_rows``, or frames or epochs that do not
    fit."""
    rows, shown = read_rows(path, ("epoch", "frame", "psnr")), printable(str(path))
    if not rows:
        return None
    wrong = [line for line, row in enumerate(rows, start=2)
             if row["frame"] != line - 1 or row["epoch"] != rows[0]["epoch"]]
    if wrong:
        raise BadInput(f"{shown}: line {wrong[0]} is not frame {wrong[0] - 1} of the epoch in line 2; use the file "
                       "that Trainer.py wrote")
    repeat_first = [row.get("psnr_repeat_first") for row in rows]  # older runs lack it
    return Recording(_to_count(rows[0]["epoch"], f"{shown}: line 2, column epoch"), [row["psnr"] for row in rows],
                     None if None in repeat_first else repeat_first)
