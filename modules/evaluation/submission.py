"""The Kaggle submission file."""
from pathlib import Path

import numpy as np
from torch import Tensor

from utils import atomic_write


def write_submission(videos: list[Tensor], path: Path) -> None:
    """Write the course's CSV: a header id,0,1,...; a row a frame, sequence after sequence, id counting from 0.

    Parameters
    ----------
    videos : uint8 (T, 3, H, W) each, the given first frame included.
    """
    # Four bytes for each value, what it does not need being zeros, which are then struck out: a whole frame at once.
    texts = np.array([f",{value}" for value in range(256)], "S4").view(np.uint32)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(("id," + ",".join(map(str, range(videos[0][0].numel()))) + "\n").encode("ascii"))
        row = 0
        for video in videos:
            for frame in video.flatten(1).numpy():
                file.write(b"%d%s\n" % (row, texts[frame].tobytes().replace(b"\0", b"")))
                row += 1
