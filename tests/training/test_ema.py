"""The moving average of the weights: against its formula, and beside the weights that training goes on from.

    python -m pytest tests/test_average.py
"""
import pytest
import torch

import Tester
import Trainer
from conftest import TINY
from modules.training.ema import WeightAverage


def make() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_it_is_the_recursive_mean_and_skipped_steps_do_not_count(decay):
    model = make()
    average = WeightAverage(model, decay)
    expected, steps = {name: value.detach().clone() for name, value in model.named_parameters()}, 0
    for index in range(20):
        good = index % 5 != 2
        with torch.no_grad():
            for value in model.parameters():
                value += torch.randn(value.shape)
        average.update(torch.tensor(good))
        if good:
            steps += 1
            kept = min(decay, (1 + steps) / (10 + steps))
            expected = {name: kept * expected[name] + (1 - kept) * value.detach()
                        for name, value in model.named_parameters()}
    for name, value in average.weights.items():
        torch.testing.assert_close(value, expected[name])


def test_the_model_has_the_average_for_a_while_and_its_own_weights_afterwards():
    model = make()
    average = WeightAverage(model, 0.5)
    places = [value.data_ptr() for value in model.parameters()]
    with torch.no_grad():
        for value in model.parameters():
            value += 1
    latest = average.latest()
    with pytest.raises(RuntimeError), average.applied():
        assert all(torch.equal(value, average.weights[name]) for name, value in model.named_parameters())
        raise RuntimeError("whatever happens")
    assert all(torch.equal(value, latest[name]) for name, value in model.named_parameters())
    assert places == [value.data_ptr() for value in model.parameters()]  # compiled steps hold these tensors


def test_without_decay_there_is_none():
    model = make()
    average = WeightAverage(model, 0.0)
    before = [value.clone() for value in model.parameters()]
    average.update(torch.tensor(True))
    with average.applied():
        assert all(map(torch.equal, before, model.parameters()))
    assert average.latest() == {}


def test_the_average_is_validated_saved_and_generated_with(data, tmp_path, monkeypatch, no_figures):
    seen = []
    generate = Trainer.CVAE.generate

    def watch(self, *args):
        seen.append({name: value.detach().clone() for name, value in self.named_parameters()})
        return generate(self, *args)

    monkeypatch.setattr(Trainer.CVAE, "generate", watch)
    Trainer.main([*TINY, "--DR", str(data), "--save_root", str(tmp_path / "run"), "--num_epoch", "1", "--ema", "0.9"])
    state = torch.load(tmp_path / "run" / "last.ckpt")
    assert state["averaged_steps"] > 0 and state["latest"].keys() == seen[0].keys()
    for name, value in seen[0].items():
        assert torch.equal(state["model"][name], value) and not torch.equal(state["latest"][name], value)
    Tester.main(["--DR", str(data), "--ckpt_path", str(tmp_path / "run" / "last.ckpt"), "--any_size", "--device", "cpu",
                 "--save_root", str(tmp_path / "results"), "--no-cache", "--precision", "fp32", "--no-make_gif"])
    assert len(seen) > 1 and all(torch.equal(value, seen[0][name]) for name, value in seen[-1].items())
    args, state = Trainer.parse_flags(["--DR", str(data), "--save_root", str(tmp_path / "other"), "--finetune",
                                       "--ckpt_path", str(tmp_path / "run" / "last.ckpt")])
    tuned = Trainer.make_trainer(args, state)  # from what was validated, not from what training would go on from
    assert all(torch.equal(value, seen[0][name]) for name, value in tuned.model.named_parameters())
    assert all(torch.equal(value, seen[0][name]) for name, value in tuned.average.weights.items())
