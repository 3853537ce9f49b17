"""Replay: which predictions are kept and which frames they replace.

    pytest tests/training/test_replay.py
"""
import torch

from dataloader import Clips
from modules.training.replay import Replay, choose_first_frames

INDEX = torch.tensor([[1, 2, 3], [5, 6, 7]])


def empty_replay() -> Replay:
    return Replay.empty(torch.zeros(10, 3, 4, 5, dtype=torch.uint8))


def recall_all(replay: Replay, real: torch.Tensor) -> torch.Tensor:
    return replay.recall(torch.arange(10), real, torch.ones(10, dtype=torch.bool))


def test_nothing_is_recalled_before_the_first_prediction():
    real = torch.rand(10, 3, 4, 5)
    assert torch.equal(recall_all(empty_replay(), real), real)


def test_latest_prediction_replaces_the_chosen_known_frames_only():
    real, replay = torch.rand(10, 3, 4, 5), empty_replay()
    predictions = torch.rand(2, 3, 3, 4, 5) * 1.4 - 0.2  # a linear output can leave the range
    replay.remember(INDEX, torch.rand(2, 3, 3, 4, 5), torch.ones(2, 1, dtype=torch.bool))
    replay.remember(INDEX, predictions, torch.ones(2, 1, dtype=torch.bool))
    recalled = recall_all(replay, real)
    for indices, expected in zip(INDEX, predictions.clamp(0, 1), strict=True):
        torch.testing.assert_close(recalled[indices], expected, atol=0.5 / 255 + 1e-6, rtol=0)
    assert torch.equal(recalled[[0, 4, 8, 9]], real[[0, 4, 8, 9]])
    chosen = torch.arange(10) != 2
    recalled = replay.recall(torch.arange(10), real, chosen)
    assert torch.equal(recalled[2], real[2]) and not torch.equal(recalled[1], real[1])


def test_predictions_of_a_non_finite_step_are_not_kept():
    real, replay = torch.rand(10, 3, 4, 5), empty_replay()
    replay.remember(INDEX, torch.rand(2, 3, 3, 4, 5), torch.tensor([[True], [False]]))
    before = recall_all(replay, real)
    assert torch.equal(before[5:8], real[5:8]) and not torch.equal(before[1:4], real[1:4])
    replay.remember(INDEX, torch.full((2, 3, 3, 4, 5), torch.nan), torch.zeros(2, 1, dtype=torch.bool))
    assert torch.equal(recall_all(replay, real), before)


def test_a_cropped_clip_never_begins_with_a_prediction():
    """A prediction shows the whole frame, a cropped clip a part of it."""
    frames, replay = torch.rand(2, 4, 3, 4, 5), empty_replay()
    replay.remember(INDEX, torch.rand(2, 3, 3, 4, 5), torch.ones(2, 1, dtype=torch.bool))
    batch = Clips(frames, frames, torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([True, False]))
    first = choose_first_frames(batch, 0.0, replay, 1.0, 2, slice(None), torch.Generator())
    assert not torch.equal(first[0], frames[0, 0]) and torch.equal(first[1], frames[1, 0])
