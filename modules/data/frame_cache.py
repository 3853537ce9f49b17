"""Cache of decoded frames on disk. A file holds the images of one folder and is mapped into memory, not read.

    64 bytes   SHA-256 of what the images were decoded from, CRC-32 of the pixels (little-endian), zeros
    the rest   pixels, uint8 (N, 3, H, W)

A file does not describe itself: it either matches what the caller expects or is ignored. A damaged or malicious file
can therefore neither execute code nor request memory.
"""
import contextlib
import hashlib
import math
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL

from utils import atomic_write, logger

VERSION = 1  # of the file format and of the conversion from image to pixels; increase it when either changes
HEADER = 64
SIZES = 4  # frame sizes kept for each folder of images
UNUSED_DAYS = 30  # files that were not used for longer are deleted


class FrameCache:
    """Decoded frames of a dataset on disk, so that only the first start decodes them.

    They are kept in root/.frame_cache or, if that is not writable, in the user's cache folder.

    Parameters
    ----------
    root : folder that contains the folders of images.
    folder : used instead of both places; several datasets can share it.
    """

    def __init__(self, root: Path, folder: str | Path | None = None):
        self.root, self.folder = root, None if folder is None else Path(folder)
        path = os.path.realpath(root)
        name = f"{os.path.basename(path)}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
        # In order of preference. The second folder of each pair holds nothing but caches: there, old files are deleted.
        if self.folder is not None:
            self.places = [(self.folder / name, self.folder / name)]
        else:
            self.places = [(root / ".frame_cache", root / ".frame_cache")]
            user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pose-video-prediction")
            if user.is_absolute():  # not for a user without a home folder
                self.places.append((user / name, user))
        self.has_warned = False

    def read(self, paths: list[Path], height: int, width: int, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Images of one folder, uint8 (N, 3, height, width): cached, or from ``decode`` and then cached.

        Cached images are a memory map, which all processes share until one writes to its copy. Errors of ``decode``
        propagate. If no place is writable, a warning is printed once.
        """
        try:
            # Before decoding: if a file changes meanwhile, the cache is outdated rather than wrong.
            source = _describe(paths, height, width)
        except OSError:  # decode explains it better
            return decode()
        name = paths[0].parent.relative_to(self.root) / f"{height}x{width}.frames"
        for place, _ in self.places:
            images = _read(place / name, source, (len(paths), 3, height, width))
            if images is not None:
                return images
        images = decode()
        self._write(name, source, images)
        return images

    def _write(self, name: Path, source: bytes, images: np.ndarray) -> None:
        """Write to the first place that is writable."""
        reasons = []
        for place, caches in self.places:
            try:
                with atomic_write(place / name) as temporary, open(temporary, "wb") as file:
                    file.write(_header(source, images))
                    file.write(images)
            except OSError as error:
                reasons.append(f"{place}: {error.strerror}")
                continue
            with contextlib.suppress(OSError):
                _delete_old_files((place / name).parent, caches)
            return
        if not self.has_warned:
            logger.warning(f"{self.root}: cannot cache the decoded frames ({'; '.join(reasons)}), so every start will "
                           "decode them again; choose a writable cache folder")
        self.has_warned = True


def _describe(paths: list[Path], height: int, width: int) -> bytes:
    """Digest of all that determines the pixels: names, sizes and times of the files, frame size, decoder."""
    files = [(path.name, status.st_size, status.st_mtime_ns) for path in paths for status in [os.stat(path)]]
    return hashlib.sha256(ascii((VERSION, PIL.__version__, height, width, files)).encode()).digest()


def _read(path: Path, source: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map the images of a file; None if it is missing, damaged, or of another source or shape."""
    try:
        if path.stat().st_size != HEADER + math.prod(shape):  # excludes a pipe as well, which would block
            return None
        with open(path, "rb") as file:
            header = file.read(HEADER)
            if not header.startswith(source):
                return None
            images = np.memmap(file, np.uint8, "c", HEADER, shape)  # "c": torch warns of read-only memory
    except (OSError, ValueError):  # ValueError: the file was truncated meanwhile
        return None
    if header != _header(source, images):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # marks it as used
    return images


def _header(source: bytes, images: np.ndarray) -> bytes:
    return (source + zlib.crc32(images).to_bytes(4, "little")).ljust(HEADER, b"\0")


def _delete_old_files(written: Path, caches: Path) -> None:
    """Keep the SIZES files of the folder ``written`` that were used last; in ``caches``, delete unused files.

    These include the temporary files of processes that died.
    """
    for path in sorted(written.glob("*.frames"), key=os.path.getmtime)[:-SIZES]:
        path.unlink()
    for pattern in ("*.frames", ".*.frames.*.tmp"):
        for path in caches.rglob(pattern):
            if time.time() - path.stat().st_mtime > UNUSED_DAYS * 24 * 3600:
                path.unlink()
