"""What a checkpoint keeps of a run: it is restored completely, or refused and nothing is changed.

    python -m pytest tests/training/test_state.py
"""
import copy
import math

import pytest
import torch

from conftest import TRAIN_FRAMES, make_video, write_pngs, write_walk
from kill_run import same
from modules.training import checkpoint
from modules.training.progress import EpochProgress, EpochSums
from training.run_helpers import RUN, batches, make_trainer, train_until


@pytest.fixture(scope="module")
def path(data, tmp_path_factory):
    """last.ckpt of a run that was stopped within epoch 1."""
    folder = tmp_path_factory.mktemp("state") / "run"
    assert "in epoch 1 after 2 of 3 clips" in train_until(10, data, folder, *RUN)
    return folder / "last.ckpt"


@pytest.fixture
def saved(path) -> dict:
    return checkpoint.read(path)


@pytest.fixture(scope="module")
def untouched(data):
    """A trainer in its initial state. Never to be changed."""
    return make_trainer(data, *RUN)


def state_of(trainer) -> dict:
    return copy.deepcopy(trainer.state.state_dict(trainer.data.pose_sample, with_replay=True))


def test_everything_is_restored(saved, untouched, data):
    trainer = make_trainer(data, *RUN)
    trainer.state.load_state_dict(saved)
    state, initial = state_of(trainer), state_of(untouched)
    for part in state:
        assert same(state[part], saved[part]), part
        assert part in ("device", "validation", "recording") or not same(state[part], initial[part]), part


def test_the_evaluated_weights_alone_can_be_restored(saved, untouched, data):
    trainer = make_trainer(data, *RUN)
    trainer.state.load_weights(saved)
    state, initial = state_of(trainer), state_of(untouched)
    for part in state:
        assert same(state[part], initial[part]) == (part not in ("weights", "ema")), part
    for name, _ in trainer.model.named_parameters():
        assert torch.equal(state["weights"][name], saved["ema"][name]), name


@pytest.mark.parametrize("place, value", [
    (["epoch"], None), (["epoch"], 2), (["best_psnr"], math.nan), (["validation"], -1), (["recording"], -1),
    (["ema_steps"], -1), (["device"], None),
    (["metrics"], []), (["metrics", 0, "epoch"], 5), (["metrics", 0, "lr"], "0.1"), (["metrics", 0, "train_kl"], None),
    (["timing", 0, "new"], 1), (["optimizer"], []), (["optimizer", 0], None),
    (["optimizer", 0, "exp_avg"], torch.zeros(1)), (["optimizer", 0, "step"], torch.tensor(math.nan)),
    (["generators", "order"], torch.zeros(3)), (["generators", "latent"], None), (["replay"], {}),
    (["replay", "is_known"], torch.zeros(TRAIN_FRAMES)), (["progress"], {}),
    (["progress", "order"], torch.tensor([0, 0, 1])), (["progress", "clips"], 4), (["progress", "forced"], True),
    (["progress", "sums", "loss"], math.inf), (["progress", "sums", "clips"], 1e300), (["progress", "lr"], math.inf)],
    ids=str)
def test_a_damaged_state_is_refused_and_nothing_changes(place, value, saved, untouched):
    inner = saved
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    before = state_of(untouched)
    with pytest.raises(ValueError, match="damaged"):
        untouched.state.load_state_dict(saved)
    assert same(state_of(untouched), before)


def test_the_latent_generator_of_another_kind_of_device_is_left_out(saved, untouched, data):
    saved["device"] = "cuda"
    saved["generators"]["latent"] = torch.zeros(16, dtype=torch.uint8)  # a CUDA generator's state
    trainer = make_trainer(data, *RUN)
    trainer.state.load_state_dict(saved)
    for purpose, state in state_of(trainer)["generators"].items():
        expected = state_of(untouched) if purpose == "latent" else saved
        assert torch.equal(state, expected["generators"][purpose]), purpose


def test_predictions_of_fewer_frames_under_the_same_checksum_are_refused(saved, data):
    replay = {name: value[:3] if isinstance(value, torch.Tensor) else value for name, value in saved["replay"].items()}
    trainer = make_trainer(data, *RUN)
    with pytest.raises(ValueError, match="replay"):
        trainer.state.load_state_dict(saved | {"replay": replay})
    assert trainer.state.epoch == 0


def test_predictions_with_a_shifted_person_of_an_earlier_version_are_not_replayed(saved, data):
    trainer, offsets = make_trainer(data, *RUN), torch.arange(TRAIN_FRAMES) % 3
    trainer.state.load_state_dict(saved | {"replay": saved["replay"] | {"offsets": offsets}})
    assert torch.equal(trainer.state.replay.is_known, saved["replay"]["is_known"] & (offsets == 0))
    assert trainer.state.replay.is_known.any()
    with pytest.raises(ValueError, match="replay"):
        trainer.state.load_state_dict(saved | {"replay": saved["replay"] | {"offsets": offsets[1:]}})


def test_predictions_of_other_frames_are_not_replayed(saved, data, own_data):
    write_pngs(own_data / "train" / "train_img", make_video(1, seed=9)[0], [TRAIN_FRAMES - 1])
    for root, flags, is_kept in ((data, [], True), (own_data, [], False), (data, ["--frame_W", 8], False)):
        trainer = make_trainer(root, *RUN, *flags)
        trainer.state.load_state_dict(saved)
        assert bool(trainer.state.replay.is_known.any()) == is_kept
        assert trainer.state.replay.predictions.shape == trainer.data.frames.shape


def test_predictions_of_other_shifted_copies_are_not_replayed(own_data):
    write_walk(own_data)
    trainer = make_trainer(own_data, *RUN, "--shifted_copies", 1)
    trainer.state.replay.is_known[30] = True
    saved = copy.deepcopy(trainer.state_dict(with_replay=True))
    for flags, is_kept in (([1], True), ([2], False), ([0], False), ([1, "--seed", 5], False)):
        other = make_trainer(own_data, *RUN, "--shifted_copies", *flags)
        other.state.load_state_dict(copy.deepcopy(saved))
        assert bool(other.state.replay.is_known.any()) == is_kept


def test_a_best_score_is_kept_only_for_the_validation_that_measured_it(saved, data, own_data, capsys):
    """Otherwise a higher score under other conditions would never be beaten, and best.ckpt never change again."""
    write_pngs(own_data / "val" / "val_img", make_video(1, seed=9)[0], [2])
    for root, flags, is_kept in ((data, ["--lr", 0.1], True), (data, ["--seed", 3], False), (own_data, [], False),
                                 (data, ["--val_vi_len", 5], False),
                                 (data, ["--frame_W", 8], False), (data, ["--val_latent", "mean"], False)):
        trainer = make_trainer(root, *RUN, *flags)
        trainer.state.load_state_dict(saved)
        assert trainer.state.best_psnr == (saved["best_psnr"] if is_kept else -math.inf)
        assert capsys.readouterr().err.count("the best score is reset") == (not is_kept)


def test_moments_from_another_memory_layout_give_the_same_step(path, data):
    """A fused step traverses weights, gradients and moments in the order of memory."""
    weights = []
    for is_contiguous in (False, True):
        trainer, state = make_trainer(data, *RUN), checkpoint.read(path)
        for moment in state["optimizer"].values() if is_contiguous else ():
            moment.update({name: value.contiguous() for name, value in moment.items()})
        trainer.state.load_state_dict(state)
        batch = next(batches(trainer))
        trainer.train_step(batch, torch.zeros(len(batch.frames), dtype=torch.bool), 0.1, 0.01)
        weights.append(state_of(trainer)["weights"])
    assert same(*weights)


# Within an epoch

@pytest.mark.parametrize("unit, ratio, values, uniform", [
    ("epoch", 0.5, {0, 1}, (True, True)), ("batch", 0.5, {0, 1}, (False, True)), ("clip", 0.5, {0, 1}, (False, False)),
    ("epoch", 0, {0}, (True, True)), ("clip", 0, {0}, (True, True)), ("clip", 1, {1}, (True, True)),
    ("blend", 0.25, {0.25}, (True, True))])
def test_teacher_forcing_is_drawn_per_unit(unit, ratio, values, uniform):
    generator, drawn = torch.Generator().manual_seed(0), []
    for _ in range(20):
        progress = EpochProgress.begin(torch.arange(5), torch.device("cpu"))
        drawn.append([progress.draw_teacher_forcing(unit, ratio, clips, generator).tolist() for clips in (2, 2, 1)])
    assert {value for epoch in drawn for batch in epoch for value in batch} == values
    same_in_epochs = all(len(set(sum(epoch, []))) == 1 for epoch in drawn)
    same_in_batches = all(len(set(batch)) == 1 for epoch in drawn for batch in epoch)
    assert (same_in_epochs, same_in_batches) == uniform


def test_means_are_per_clip_of_the_finite_steps():
    progress = EpochProgress.begin(torch.arange(5), torch.device("cpu"))
    for values in ([2.0, 1.0, 4.0, 20.0, 2, 0], [0, 0, 0, 0, 0, 1], [4.0, 5.0, 2.0, 10.0, 1, 0]):
        progress.sums.add(EpochSums.from_vector(torch.tensor(values)))
    assert progress.means() == {"train_loss": 2.0, "train_mse": 2.0, "train_kl": 2.0, "skipped": 1}
