"""Files that are replaced whole or not at all."""
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``; what is written there takes its place once it is wholly on the disk.

    A process that dies half way, or a machine that loses power, leaves the file that was there. What such a process
    leaves besides is called ``.NAME.PROCESS.tmp``.

    Raises
    ------
    OSError : the disk refuses; its filename is ``path``, which is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # not every system lets a folder be opened
            _flush(path.parent, os.O_RDONLY)  # else the new name may be lost with the power
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
