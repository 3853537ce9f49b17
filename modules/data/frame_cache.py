"""Where a dataset's decoded frames are kept on disk."""
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from modules.data import frame_store
from utils import check_writable, tell


class FrameCache:
    """The place of a dataset's decoded frames on disk, so that only the first start decodes them.

    In root/.frame_cache or, where that cannot be written, in the user's cache folder.

    Parameters
    ----------
    root : the dataset, or whatever else the folders of images lie in.
    given : --cache_dir, in the stead of both; it may serve many datasets.
    """

    def __init__(self, root: Path, given: str | None = None):
        self.root, self.given = root, given
        path = os.path.realpath(root)
        name = f"{os.path.basename(path)}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
        of_user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pose-video-prediction")
        # The places in the order in which they are tried, each with the folder above it that holds nothing but caches.
        if given is not None:
            self.places = {Path(given, name): Path(given, name)}
        else:
            self.places = {root / ".frame_cache": root / ".frame_cache"}
            if of_user.is_absolute():  # a user without a home has no such place
                self.places[of_user / name] = of_user
        self.has_written = self.has_told = False

    def read(self, paths: list[Path], height: int, width: int, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The images of one folder, uint8 (N, 3, height, width): as they are kept, or else by ``decode``, and kept.

        Raises
        ------
        BadInput : what ``decode`` raises, or they are to be kept in --cache_dir and it cannot be written.
        """
        try:
            source = frame_store.describe(paths, height, width)
        except OSError:  # decoding finds the words for it
            return decode()
        name = paths[0].parent.relative_to(self.root) / f"{height}x{width}.frames"
        for place in self.places:
            images = frame_store.read(place / name, source, (len(paths), 3, height, width))
            if images is not None:
                return images
        if self.given is not None:
            check_writable(Path(self.given), "--cache_dir")
        images = decode()
        self._write(name, source, images)
        return images

    def _write(self, name: Path, source: bytes, images: np.ndarray) -> None:
        """Write to the first place that takes it. Where none does, say so once: the run has its frames all the same."""
        refusals = []
        for place, caches in self.places.items():
            try:
                frame_store.write(place / name, source, images)
            except OSError as error:
                refusals.append(f"{place}: {error.strerror}")
                continue
            if not self.has_written:
                frame_store.delete_unused(caches)
            self.has_written = True
            return
        if not self.has_told:
            tell(f"{self.root}: the decoded frames cannot be kept ({'; '.join(refusals)}), so that each start decodes "
                 "them again; name a folder for them with --cache_dir")
        self.has_told = True
