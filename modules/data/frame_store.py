"""Decoded frames on disk: a file holds one stack of images and is mapped into memory, not read.

    64 bytes   SHA-256 of what the stack was made from, CRC-32 of the pixels (little-endian), zeros
    the rest   the pixels, uint8 (N, 3, H, W)

Nothing in a file says how it is to be read: it fits what the caller expects, or it is none. So a damaged or hostile one
can neither run anything nor ask for memory.
"""
import contextlib
import hashlib
import math
import os
import time
import zlib
from pathlib import Path

import numpy as np
import PIL

from utils import atomic_write

VERSION = 1  # of the file format and of how an image becomes pixels: whoever changes either counts on
HEADER = 64
SIZES = 4  # frame sizes that are kept of a folder of images
UNUSED_DAYS, UNFINISHED_DAYS = 30, 1  # after which a file, and what a process that died has left, is deleted


def describe(paths: list[Path], height: int, width: int) -> bytes:
    """What a stack is made from, 32 bytes: names, sizes and times of its files, the frame size, the decoder.

    It comes before the decoding: a file that changes meanwhile then makes the stored stack stale, not wrong.

    Raises
    ------
    OSError : a file is not there.
    """
    files = [(path.name, status.st_size, status.st_mtime_ns) for path in paths for status in [os.stat(path)]]
    return hashlib.sha256(ascii((VERSION, PIL.__version__, height, width, files)).encode()).digest()


def read(path: Path, source: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """The stored stack, uint8 of that shape; None where there is none, another or a damaged one.

    Its memory is shared with all processes that map the file, as long as nobody writes to it.
    """
    try:
        if path.stat().st_size != HEADER + math.prod(shape):  # a pipe, which would block, has no size
            return None
        with open(path, "rb") as file:
            header = file.read(HEADER)
            if not header.startswith(source):
                return None
            images = np.memmap(file, np.uint8, "c", HEADER, shape)  # "c": torch warns of memory that is read-only
    except (OSError, ValueError):  # ValueError: it became shorter meanwhile
        return None
    if header != _header(source, images):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the time of the latest use
    return images


def write(path: Path, source: bytes, images: np.ndarray) -> None:
    """Store a stack. The least used of more than SIZES files in the folder are deleted.

    Raises
    ------
    OSError : the disk refuses; what was there still is.
    """
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(_header(source, images))
        file.write(images)
    with contextlib.suppress(OSError):
        for old in sorted(path.parent.glob("*.frames"), key=os.path.getmtime)[:-SIZES]:
            old.unlink()


def delete_unused(folder: Path) -> None:
    """Delete what lies below ``folder`` and nobody has used for long."""
    for pattern, days in (("*.frames", UNUSED_DAYS), (".*.frames.*.tmp", UNFINISHED_DAYS)):
        for path in folder.rglob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > days * 24 * 3600:
                    path.unlink()


def _header(source: bytes, images: np.ndarray) -> bytes:
    return (source + zlib.crc32(images).to_bytes(4, "little")).ljust(HEADER, b"\0")
