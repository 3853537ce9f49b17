"""The folder that a program writes to: the lock that one process holds, and which of its files are the program's."""
import contextlib
import datetime
import json
import os
import re
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock

from utils import TEMPORARY_NAME, BadInput, write_json

OWNER, LOCK = ".owner.json", ".lock"


def find_files(folder: Path, names: re.Pattern) -> list[Path]:
    """The files in ``folder`` and its subfolders whose path relative to it, with slashes, fully matches ``names``."""
    found = (path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file() or path.is_symlink())
    return sorted(path for path in found if names.fullmatch(path.relative_to(folder).as_posix()))


@contextlib.contextmanager
def lock_folder(folder: Path, names: re.Pattern) -> Iterator[None]:
    """Be the only process that writes to a folder. The system releases the lock when the process ends, in any way.

    Temporary files of ``names`` that a process left when it died are deleted; no other file is.

    Parameters
    ----------
    names : the files that the program writes there, as for ``find_files``.

    Raises
    ------
    BadInput : another process holds the lock; the message names that process.
    """
    owner = folder / OWNER
    try:
        lock = filelock.FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        name = "another process"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            holder = json.loads(owner.read_text(encoding="utf-8"))
            name = f"process {holder['process']} on {holder['host']}, since {holder['since']}: {holder['command']}"
        raise BadInput(f"{folder} is in use ({name}); wait for that process, end it or "
                       "choose another folder") from error
    try:
        for temporary in find_files(folder, TEMPORARY_NAME):
            path = temporary.relative_to(folder)
            written = path.with_name(TEMPORARY_NAME.fullmatch(path.as_posix())["name"])
            if written.name == OWNER or names.fullmatch(written.as_posix()):
                temporary.unlink(missing_ok=True)
        write_json(owner, {"process": os.getpid(), "host": socket.gethostname(), "command": shlex.join(sys.argv),
                           "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds")})
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process is writing to a folder."""
    if not (folder / OWNER).exists() or not (folder / LOCK).exists():
        return False
    try:
        # A process that was killed has left its name, but not the lock.
        with filelock.FileLock(folder / LOCK, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # another user's folder: trust the name
        return True
