"""Which checkpoint a file is: digest, epochs, and the best one next to it.

    python -m pytest tests/training/test_origin.py
"""
import hashlib

import pytest
import torch

from modules.network.cvae import CVAE
from modules.training import checkpoint
from modules.training.origin import describe_epochs, find_best, planned_epochs, read_with_digest

NETWORK = {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8, "output": "sigmoid", "template_activations": False,
           "reference_frame": False, "feed": "previous", "pose_levels": 0}


def save(path, seed=0, epoch=12, **flags):
    torch.manual_seed(seed)
    checkpoint.save(path, {"weights": CVAE(**NETWORK).state_dict(), "ema": None, "network": NETWORK,
                           "frame_size": [8, 16], "flags": flags, "epoch": epoch})
    return path


@pytest.mark.parametrize("changes, text", [
    ({}, "after 12 of 32 epochs"), ({"progress": {}}, "after 12 of 32 epochs and a part of the next"),
    ({"progress": None}, "after 12 of 32 epochs"), ({"flags": {}}, "after 12 epochs"),
    ({"epoch": None}, "after an unknown number of epochs"), ({"flags": {"num_epoch": "many"}}, "after 12 epochs")])
def test_a_message_says_how_far_the_run_had_trained(changes, text):
    assert describe_epochs({"epoch": 12, "flags": {"num_epoch": 32}} | changes) == text


def test_digest_and_state_are_of_the_same_file(tmp_path, monkeypatch):
    """A run replaces the file while it is read."""
    path, read, seeds = save(tmp_path / "best.ckpt", num_epoch=5), checkpoint.read, [1, 2]

    def read_and_replace(path):
        state = read(path)
        if seeds:
            save(path, seeds.pop(), epoch=13)
        return state

    monkeypatch.setattr(checkpoint, "read", read_and_replace)
    state, digest = read_with_digest(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() and not seeds
    assert state["epoch"] == read(path)["epoch"] == 13 and planned_epochs(state) is None
    for name, weight in read(path)["weights"].items():
        assert torch.equal(state["weights"][name], weight)
    with pytest.raises(ValueError, match="this is a folder"):
        read_with_digest(tmp_path)


def test_another_best_checkpoint_of_the_folder_is_found(tmp_path):
    last, best = save(tmp_path / "last.ckpt"), tmp_path / "best.ckpt"
    state = checkpoint.read(last)
    assert find_best(last, state) is None
    save(best, seed=1, epoch=9)
    assert find_best(last, state)[0] == best and find_best(last, state)[1]["epoch"] == 9
    assert find_best(best, checkpoint.read(best)) is None
    save(best, epoch=9)  # other bytes, the same weights
    assert find_best(last, state) is None
    best.write_bytes(b"damaged")
    assert find_best(last, state) is None
    best.unlink()
    best.symlink_to(last)
    assert find_best(last, state) is None
