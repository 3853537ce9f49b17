"""Checkpoints of the course's template: recognised, computed as the template computes, a start for training.

    python -m pytest tests/test_course.py
"""
import json

import pytest
import torch
from torch.nn import functional as F

import Tester
import Trainer
from conftest import TINY, read_csv
from modules.network.cvae import CVAE
from modules.training import checkpoint
from modules.training.template_checkpoint import PARTS, convert_template_checkpoint, is_template_checkpoint

PLAIN = {"reference_frame": False, "feed": "previous"}
SIZES = {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8}


def make_course_checkpoint(sizes=SIZES, **more) -> dict:
    """As the template's save() writes it: the state under the template's names, and once more as "optimizer"."""
    torch.manual_seed(0)
    own = CVAE(**sizes)
    for weight in own.parameters():
        weight.data *= 1.2  # livelier than at the start
    own.label_encoder[2].running_mean.normal_()
    own.label_encoder[2].running_var.uniform_(0.5, 2)
    names = {ours: theirs for theirs, ours in PARTS.items()}
    state = {}
    for name, weight in own.state_dict().items():
        part, _, inner = name.partition(".")
        state[f"{names[part]}.{inner}"] = weight.detach().clone()
    return {"state_dict": state, "optimizer": state, "lr": 0.001, "tfr": 0.25, "last_epoch": 41} | more


class Template:
    """The template's arithmetic, layer by layer from its weights' names, with nothing of this product in it."""

    def __init__(self, state: dict):
        self.state = state

    def conv(self, x, name, **how):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **how)

    def residual(self, x, name):
        skip = self.conv(x, f"{name}.skip") if f"{name}.skip.weight" in self.state else x
        x = F.leaky_relu(self.conv(x, f"{name}.conv1", padding=1), 0.01)
        return F.leaky_relu(self.conv(x, f"{name}.conv2", padding=1), 0.01) + skip

    def depth(self, x, name):
        skip = x if f"{name}.block.0.adaptor.weight" not in self.state else self.conv(x, f"{name}.block.0.adaptor")
        y = F.leaky_relu(self.conv(x, f"{name}.block.0.conv1.0"), 0.01)
        y = self.conv(y, f"{name}.block.0.depth_conv", padding=1, groups=y.shape[1])
        x = self.conv(y, f"{name}.block.0.conv2") + skip
        a, b = self.conv(x, f"{name}.block.1.conv").chunk(2, dim=1)
        return x + self.conv(a * F.leaky_relu(b, 0.1), f"{name}.block.1.conv_out")

    def run(self, x, part, layers):
        for index, layer in enumerate(layers):
            x = getattr(self, layer)(x, f"{part}.{index}")
        return x

    def frame(self, x):
        x = self.run(x, "frame_transformation", ["residual", "depth"] * 3)
        return self.conv(x, "frame_transformation.6", padding=1)

    def label(self, x):
        x = self.conv(F.pad(x, (3, 3, 3, 3), mode="reflect"), "label_transformation.1")
        norm = [self.state[f"label_transformation.2.{name}"]
                for name in ("running_mean", "running_var", "weight", "bias")]
        x = F.leaky_relu(F.batch_norm(x, *norm), 1.0)  # LeakyReLU(True)
        return self.residual(x, "label_transformation.4")

    def posterior(self, frame, label):
        x = self.run(torch.cat([frame, label], dim=1), "Gaussian_Predictor",
                     ["residual", "depth", "residual", "depth", "residual"])
        return self.conv(F.leaky_relu(x, 1.0), "Gaussian_Predictor.6").chunk(2, dim=1)

    def decode(self, frame, label, z):
        x = self.run(torch.cat([frame, label, z], dim=1), "Decoder_Fusion",
                     ["depth", "residual", "depth", "residual", "depth"])
        x = self.run(self.conv(x, "Decoder_Fusion.5"), "Generator", ["depth", "residual"] * 3 + ["depth"])
        return self.conv(x, "Generator.7")


@pytest.fixture(scope="module")
def course_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("course") / "epoch=41.ckpt"
    torch.save(make_course_checkpoint(), path)
    return path


def test_it_computes_as_the_template_does(course_file):
    state = checkpoint.read(course_file)
    model = Tester.load_model(state, torch.device("cpu"))
    template = Template(torch.load(course_file)["state_dict"])
    frames, labels = torch.rand(1, 5, 3, 8, 16), torch.rand(1, 5, 3, 8, 16)
    noise = torch.randn(1, 4, 4, 8, 16)

    video = model.generate(frames[:, 0], labels, "mean")
    expected = [frames[:, 0]]
    for t in range(1, 5):
        expected.append(template.decode(template.frame(expected[-1]), template.label(labels[:, t]),
                                        torch.zeros(1, 4, 8, 16)))
    torch.testing.assert_close(video, torch.stack(expected, dim=1), rtol=1e-4, atol=1e-5)
    assert video.min() < 0 or video.max() > 1  # linear: no bound

    with torch.no_grad():
        predictions, mu, logvar = model(frames, labels, torch.zeros(1, dtype=torch.bool), noise)
    previous = frames[:, 0]
    for t in range(1, 5):
        label = template.label(labels[:, t])
        own_mu, own_logvar = template.posterior(template.frame(frames[:, t]), label)
        previous = template.decode(template.frame(previous), label,
                                   own_mu + torch.exp(own_logvar / 2) * noise[:, t - 1])
        for ours, theirs in ((mu[:, t - 1], own_mu), (logvar[:, t - 1], own_logvar), (predictions[:, t - 1], previous)):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_slope_and_output_matter(course_file):
    """Without its own arithmetic the same weights would give another video."""
    state = checkpoint.read(course_file)
    videos = []
    for change in ({}, {"output": "sigmoid"}, {"template_activations": False}):
        model = Tester.load_model(state | {"network": state["network"] | change}, torch.device("cpu"))
        labels = torch.rand(1, 3, 3, 8, 16, generator=torch.Generator().manual_seed(0))
        videos.append(model.generate(torch.full((1, 3, 8, 16), 0.5), labels, "mean"))
    assert all((videos[0] - other).abs().max() > 1e-4 for other in videos[1:])


def test_the_default_sizes_are_recognised():
    default = {"F_dim": 128, "L_dim": 32, "N_dim": 12, "D_out_dim": 192}
    state = convert_template_checkpoint(make_course_checkpoint(default))
    assert state["network"] == default | {"output": "linear", "template_activations": True} | PLAIN
    assert state["frame_size"] == [32, 64] and state["epoch"] == 42
    for words in ("course's template", "F_dim 128", "D_out_dim 192", "last epoch 41", "lr 0.001", "tfr 0.25",
                  "linear output", "slope 1.0"):
        assert words in state["recognised"]


def test_what_is_not_the_templates_is_not_recognised():
    assert is_template_checkpoint(make_course_checkpoint())
    for content in ({"state_dict": {}}, {"state_dict": {"encoder.weight": 1}}, {"model": {}}, [], None,
                    {"state_dict": {3: 1}}, {"state_dict": None}):
        assert not is_template_checkpoint(content)


def test_the_other_entries_may_be_missing_or_odd():
    whole = make_course_checkpoint()
    assert convert_template_checkpoint({"state_dict": whole["state_dict"]})["epoch"] is None
    for odd in ({"last_epoch": 10**400}, {"last_epoch": "3"}, {"lr": []}, {"tfr": None}, {"last_epoch": -5}):
        assert "\n" not in convert_template_checkpoint(whole | odd)["recognised"]


@pytest.mark.parametrize("change, words", [
    (lambda state: state.pop("frame_transformation.6.weight"), "frame_transformation.6.weight is missing"),
    (lambda state: state.update({"Gaussian_Predictor.6.weight": torch.zeros(3, 4, 1, 1)}), "Gaussian_Predictor.6"),
    (lambda state: state.update({"Decoder_Fusion.5.weight": 3}), "Decoder_Fusion.5.weight"),
    (lambda state: state.pop("Generator.7.bias"), "generator.7.bias"),
    (lambda state: state.update({"mse.weight": torch.zeros(1)}), "mse.weight"),
    (lambda state: state["Generator.7.bias"].fill_(torch.nan), "NaN")])
def test_a_damaged_one_is_refused(change, words, data, tmp_path, refused):
    whole = make_course_checkpoint()
    change(whole["state_dict"])
    torch.save(whole, tmp_path / "bad.ckpt")
    for program in ("Trainer.py", "Tester.py"):
        message = refused(program, "--DR", data, "--save_root", tmp_path / "run", "--ckpt_path", tmp_path / "bad.ckpt",
                          untouched=tmp_path)
        assert words in message


def test_tester_takes_it_and_says_what_it_is(course_file, data, tmp_path, capsys):
    Tester.main(["--DR", str(data), "--ckpt_path", str(course_file), "--save_root", str(tmp_path / "r"), "--any_size",
                 "--no-make_gif", "--device", "cpu", "--no-cache", "--truth", str(data / "truth")])
    out = capsys.readouterr().out
    assert "a checkpoint of the course's template (F_dim 8" in out and "frames of 32 x 64" in out
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["epochs"] == 42


def test_trainer_starts_from_it_and_writes_its_own_form(course_file, data, tmp_path, no_figures, capsys):
    frame = TINY[8:]  # all but the sizes of the network, which the checkpoint tells
    assert "--F_dim" not in frame
    flags = [*frame, "--DR", str(data), "--save_root", str(tmp_path / "run"), "--num_epoch", "1", "--lr", "1e-9"]
    Trainer.main([*flags, "--ckpt_path", str(course_file)])
    assert "course's template" in capsys.readouterr().out
    row, = read_csv(tmp_path / "run" / "metrics.csv")
    assert row["epoch"] == "0"
    state = checkpoint.read(tmp_path / "run" / "last.ckpt")
    assert state["network"] == SIZES | {"output": "linear", "template_activations": True} | PLAIN
    course = convert_template_checkpoint(torch.load(course_file))["model"]
    name = "decoder_fusion.1.conv1.weight"
    torch.testing.assert_close(state["model"][name], course[name], rtol=0, atol=1e-6)
    Trainer.main([*flags[:-4], "--num_epoch", "2", "--resume"])  # from now on a run as any other
    assert len(read_csv(tmp_path / "run" / "metrics.csv")) == 2


def test_trainer_validates_it(course_file, data, tmp_path, no_figures, capsys):
    Trainer.main([*TINY[8:], "--DR", str(data), "--save_root", str(tmp_path / "t"), "--ckpt_path", str(course_file),
                  "--test"])
    assert "after 42 epochs" in capsys.readouterr().out


def test_another_network_than_its_own_is_refused(course_file, data, tmp_path, refused):
    for flags in (["--F_dim", 16], ["--output", "sigmoid"], ["--no-template_activations"]):
        message = refused("Trainer.py", "--DR", data, "--save_root", tmp_path / "run", "--ckpt_path", course_file,
                          *flags)
        assert "cannot change" in message
