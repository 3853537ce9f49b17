"""Cache of decoded frames on disk. A file holds the images of one folder.

    64 bytes   SHA-256 of what the images were decoded from, CRC-32 of the pixels (little-endian), zeros
    the rest   pixels, uint8 (N, 3, H, W)

A file does not describe itself: it either matches what the caller expects or is ignored. A damaged or malicious file
can therefore neither execute code nor request memory. It is read rather than mapped into memory, so that nothing that
happens to it later reaches a run.
"""
import contextlib
import errno
import hashlib
import math
import os
import stat
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

from utils import atomic_write, logger

VERSION = 2  # of the file format and of the conversion from image to pixels; increase it when either changes
HEADER = 64
SIZES = 4  # frame sizes kept for each folder of images
UNUSED_DAYS = 30  # files that were not used for longer are deleted
NAME = "[0-9]*x[0-9]*.frames"  # pattern of the file names


class Source(NamedTuple):
    """What the cache of a folder of images must match."""
    digest: bytes  # of all that determines the pixels
    owners: set[int]  # users whose files are trusted
    umask: int  # permissions that the cache must not grant


class UntrustedCache(OSError):
    """Other users could have written the cache, or could read what they cannot read in the images."""


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
        self.warnings = set()  # kinds that were printed

    def read(self, paths: list[Path], height: int, width: int, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Images of one folder, uint8 (N, 3, height, width): cached, or from ``decode`` and then cached.

        Errors of ``decode`` propagate. A warning is printed once if a cache is not trusted, and if no place is
        writable.
        """
        try:
            # Before decoding: if a file changes meanwhile, the cache is outdated rather than wrong.
            source = _describe(paths, height, width)
        except OSError:  # decode explains it better
            return decode()
        name = paths[0].parent.relative_to(self.root) / f"{height}x{width}.frames"
        untrusted = None
        for place, _ in self.places:
            try:
                images = _read(place, name, source, (len(paths), 3, height, width))
            except UntrustedCache as error:
                untrusted = error
                continue
            if images is not None:
                return images
        if untrusted:
            self._warn("untrusted", f"{untrusted.filename} {untrusted.strerror}; this cache is not used and the images "
                                    "are decoded again")
        images = decode()
        self._write(name, source, images)
        return images

    def _write(self, name: Path, source: Source, images: np.ndarray) -> None:
        """Write to the first place that is writable."""
        reasons = []
        for place, caches in self.places:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                for folder in _folders(place, name):
                    folder.mkdir(mode=0o777 & ~source.umask, exist_ok=True)
                    _restrict(folder, source)
                with atomic_write(place / name) as temporary:
                    _restrict(temporary, source)  # before it holds pixels
                    with open(temporary, "wb") as file:
                        file.write(_header(source.digest, images))
                        file.write(images)
            except OSError as error:
                reasons.append(f"{place}: {error.strerror}")
                continue
            with contextlib.suppress(OSError):
                _delete_old_files((place / name).parent, caches)
            return
        self._warn("unwritable", f"{self.root}: cannot cache the decoded frames ({'; '.join(reasons)}), so every start "
                                 "will decode them again; choose another cache folder")

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self.warnings:
            logger.warning(message)
        self.warnings.add(kind)


def _describe(paths: list[Path], height: int, width: int) -> Source:
    folder, statuses = os.stat(paths[0].parent), list(map(os.stat, paths))
    files = [(path.name, status.st_size, status.st_mtime_ns) for path, status in zip(paths, statuses, strict=True)]
    digest = hashlib.sha256(ascii((VERSION, PIL.__version__, height, width, files)).encode()).digest()
    # The owner of the images can change what they show anyway. On Windows, every owner is 0 and modes say nothing.
    owners = {0, folder.st_uid, getattr(os, "geteuid", int)()}
    # Whether everybody can read the images; if not, only this user can read the cache, whose group may be another.
    is_public = folder.st_mode & 0o004 and all(status.st_mode & 0o004 for status in statuses) and all(
        os.stat(parent).st_mode & 0o001 for parent in paths[0].resolve().parents)
    return Source(digest, owners, 0 if os.name == "nt" else 0o022 if is_public else 0o077)


def _folders(place: Path, name: Path) -> list[Path]:
    """From the folder ``place`` down to that of the file place/name."""
    return [place / parent for parent in reversed(name.parents)]


def _read(place: Path, name: Path, source: Source, shape: tuple[int, ...]) -> np.ndarray | None:
    """The images of the file place/name; None if it is missing, damaged, or of another source or shape.

    Raises
    ------
    UntrustedCache : it matches, but see :func:`_check`.
    """
    path = place / name
    # Neither waits for a writer to open a pipe, nor follows a link.
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(path, "rb", opener=lambda path, mode: os.open(path, mode | flags)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size != HEADER + math.prod(shape):
                return None
            header = file.read(HEADER)
            if not header.startswith(source.digest):
                return None
            for folder in _folders(place, name):
                _check(folder, os.stat(folder), source)
            _check(path, status, source)
            images = np.empty(shape, np.uint8)
            if file.readinto(images) < images.nbytes or header != _header(source.digest, images):
                return None
    except UntrustedCache:
        raise
    except OSError:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # marks it as used
    return images


def _check(path: Path, status: os.stat_result, source: Source) -> None:
    """UntrustedCache if another user owns ``path`` (or the link that it is), or it grants what it must not."""
    if not {status.st_uid, os.lstat(path).st_uid} <= source.owners:
        raise UntrustedCache(errno.EPERM, "belongs to another user", str(path))
    if status.st_mode & source.umask:
        granted = "can be changed by other users" if status.st_mode & 0o022 else \
            "can be read by users who cannot read the images"
        raise UntrustedCache(errno.EPERM, granted, str(path))


def _restrict(path: Path, source: Source) -> None:
    """Remove the permissions that ``path`` must not grant. OSError: impossible, or another user owns it."""
    status = os.stat(path)
    _check(path, status, source._replace(umask=0))
    if status.st_mode & source.umask:
        os.chmod(path, stat.S_IMODE(status.st_mode) & ~source.umask)
        _check(path, os.stat(path), source)  # some file systems ignore chmod


def _header(digest: bytes, images: np.ndarray) -> bytes:
    return (digest + zlib.crc32(images).to_bytes(4, "little")).ljust(HEADER, b"\0")


def _delete_old_files(written: Path, caches: Path) -> None:
    """Keep the SIZES files of the folder ``written`` that were used last; in ``caches``, delete unused files.

    These include the temporary files of processes that died.
    """
    for path in sorted(written.glob(NAME), key=os.path.getmtime)[:-SIZES]:
        path.unlink()
    for pattern in (NAME, f".{NAME}.*.tmp"):
        for path in caches.rglob(pattern):
            if time.time() - path.stat().st_mtime > UNUSED_DAYS * 24 * 3600:
                path.unlink()
