"""The Kaggle submission file."""
from pathlib import Path

import numpy as np
from torch import Tensor

from utils import atomic_write


def write_submission(videos: list[Tensor], path: Path) -> None:
    """Write the course's CSV: the header id,0,1,..., then one row per frame, sequence after sequence.

    A row holds its number, from 0, and the pixels 0..255 in the order channel, row, column.

    Parameters
    ----------
    videos : uint8 (T, 3, H, W) each, the given first frame included.
    """
    # A table of the texts ",0" to ",255" as four bytes each, padded with zeros that are removed afterwards, converts a
    # whole frame at once.
    texts = np.array([f",{value}" for value in range(256)], "S4").view(np.uint32)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(("id," + ",".join(map(str, range(videos[0][0].numel()))) + "\n").encode("ascii"))
        row = 0
        for video in videos:
            for frame in video.flatten(1).numpy():
                file.write(b"%d%s\n" % (row, texts[frame].tobytes().replace(b"\0", b"")))
                row += 1
