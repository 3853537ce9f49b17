"""The results that Tester.py writes to its folder: which files they are, and how new ones replace old ones."""
import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from modules.training.output_folder import LOCK, lock_folder
from utils import TEMPORARY_NAME, BadInput, check_writable

SUMMARY = "summary.json"
RESULTS = ("submission.csv", SUMMARY, "psnr.png")
SEQUENCE_RESULTS = ("seq{}.csv", "pred_seq{}.gif", "pred_seq{}.mp4", "compare_seq{}.gif", "compare_seq{}.mp4")
RESULT_NAME = re.compile(r"submission\.csv|summary\.json|psnr\.png|seq[^/]+\.csv|(pred|compare)_seq[^/]+\.(gif|mp4)")
STAGING = ".unfinished_results"


def recorded_results(folder: Path) -> set[str]:
    """The names under "files" in the folder's summary.json, as far as results can have such names."""
    try:
        summary = folder / SUMMARY
        files = json.loads(summary.read_text(encoding="utf-8"))["files"] if summary.is_file() else []
        return {name for name in files if RESULT_NAME.fullmatch(name)}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # of another program, an older one, or damaged
        return set()


def check_results(folder: Path, overwrite: bool, sequences: Iterable[str] = ()) -> set[str]:
    """The names of the old results in the folder: those that its summary.json lists, and those that the results of
    ``sequences`` would replace. Any other file is the user's.

    Raises
    ------
    BadInput : there are old results, which are to stay, or a folder has the name of a result.
    """
    names = {*RESULTS, *recorded_results(folder),
             *(form.format(name) for form in SEQUENCE_RESULTS for name in sequences)}
    found = sorted(name for name in names if os.path.lexists(folder / name))
    if found and not overwrite:
        raise BadInput(f"--save_root {folder} already holds results ({found[0]}); replace them with --overwrite, or "
                       "use another folder")
    for name in found:
        if (folder / name).is_dir():
            raise BadInput(f"--save_root {folder}: {name} is a folder, but a result has this name; move it away, or "
                           "use another folder")
    return set(found)


@contextlib.contextmanager
def replace_results(folder: Path, overwrite: bool) -> Iterator[tuple[Path, set[str]]]:
    """Lock the folder, and collect the results of a block in a subfolder of it.

    Yields its path and the names of the old results, to which the block adds others that it recognises.

    At the end of the block they replace the old results file by file, summary.json last; then the old ones that have no
    successor are deleted. If the block raises, nothing has changed. What a killed process left is deleted.

    Raises
    ------
    BadInput : the folder cannot be written, another process writes to it, or it holds results that are to stay.
    """
    check_writable(folder)
    check_results(folder, overwrite)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    has_lock = (folder / LOCK).exists()
    staging = folder / STAGING
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder, RESULT_NAME):
            try:
                old = check_results(folder, overwrite)  # another process may have changed the folder meanwhile
                _delete(staging)
                staging.mkdir()
                yield staging, old
                new = sorted(staging.iterdir(), key=lambda path: path.name == SUMMARY)
                for path in new:
                    os.replace(path, folder / path.name)
                for name in old - {path.name for path in new}:
                    (folder / name).unlink(missing_ok=True)
            except BaseException:
                if not has_lock:
                    with contextlib.suppress(OSError):
                        (folder / LOCK).unlink()
                raise
            finally:
                _delete(staging)
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):  # another process has started there
                path.rmdir()
        raise


def _delete(staging: Path) -> None:
    if staging.is_symlink():
        staging.unlink()
    with contextlib.suppress(OSError):
        for path in staging.iterdir():
            if RESULT_NAME.fullmatch(path.name) or TEMPORARY_NAME.fullmatch(path.name):
                path.unlink()
        staging.rmdir()  # unless the user has put something there
