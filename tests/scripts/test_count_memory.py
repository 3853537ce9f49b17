"""The memory of a training step, counted from its tensors.

    python -m pytest tests/scripts/test_count_memory.py
"""
import count_memory
from conftest import H, W

FLAGS = ["--F_dim", "8", "--L_dim", "4", "--N_dim", "4", "--D_out_dim", "8", "--frame_H", str(H), "--frame_W", str(W),
         "--train_vi_len", "2", "--precision", "fp32", "--ema", "0.9", "--threads", "1"]


def test_all_but_the_weights_and_their_copies_grows_with_the_batch():
    small, large = (count_memory.count([*FLAGS, "--batch_size", clips]) for clips in ("2", "4"))
    weights = 8_819 * 4  # bytes: with an average, two moments, gradients and the guard's copy, four to six times
    assert 4 <= (2 * small - large) / weights <= 6
    assert large - small > 10 * 2 * 3 * H * W * 4  # two clips' activations are many times their frames
