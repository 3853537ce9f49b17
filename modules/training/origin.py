"""Which checkpoint a file is: its digest, how far its run had trained, and whether it is the best of that run."""
import hashlib
from pathlib import Path

import torch

from modules.training import checkpoint

BEST = "best.ckpt"


def read_with_digest(path: Path) -> tuple[dict, str]:
    """A checkpoint, and the SHA-256 of the file that was read. Errors as ``checkpoint.read``."""
    while True:  # a run that is still training may replace the file between two reads
        digest = _sha256(path)
        state = checkpoint.read(path)
        if _sha256(path) == digest:
            return state, digest


def planned_epochs(state: dict) -> int | None:
    """The length of the checkpoint's run, or None where it is unknown."""
    epochs = state["flags"].get("num_epoch")
    return epochs if type(epochs) is int and epochs > 0 else None


def describe_epochs(state: dict) -> str:
    """How far the checkpoint's run had trained, for messages."""
    if state["epoch"] is None:
        return "after an unknown number of epochs"
    planned = planned_epochs(state)
    text = f"after {state['epoch']} epochs" if planned is None else f"after {state['epoch']} of {planned} epochs"
    return text + (" and a part of the next" if state.get("progress") is not None else "")


def find_best(path: Path, state: dict) -> tuple[Path, dict] | None:
    """The best checkpoint of the folder that ``path`` is in, with its state; None where it has the weights of
    ``state``, or there is none that can be read."""
    best = path.with_name(BEST)
    try:
        if not best.is_file() or best.samefile(path):
            return None
        other = checkpoint.read(best)
    except (OSError, ValueError):
        return None
    own, others = checkpoint.evaluated_weights(state), checkpoint.evaluated_weights(other)
    is_same = own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)
    return None if is_same else (best, other)


def _sha256(path: Path) -> str | None:
    """None for what is no regular file, which ``checkpoint.read`` refuses."""
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
