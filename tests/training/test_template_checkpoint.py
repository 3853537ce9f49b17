"""Checkpoints of the course's template: recognised, evaluated as the template does, a start for training.

    python -m pytest tests/training/test_template_checkpoint.py
"""
import pytest
import torch
from torch import nn

import Tester
import Trainer
from conftest import NETWORK, TINY, read_csv
from modules.network.cvae import CVAE
from modules.training import checkpoint
from modules.training.template_checkpoint import convert_template_checkpoint, is_template_checkpoint

PREFIXES = {"frame_encoder": "frame_transformation", "label_encoder": "label_transformation",
            "gaussian_predictor": "Gaussian_Predictor", "decoder_fusion": "Decoder_Fusion", "generator": "Generator"}
SIZES = {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8}
KIND = {"output": "linear", "template_activations": True, "reference_frame": False, "feed": "previous",
        "pose_levels": 0}


def make_template_checkpoint(sizes=SIZES) -> dict:
    """As the template's save() writes it: the state under the template's names, and again as "optimizer"."""
    torch.manual_seed(0)
    state = {f"{PREFIXES[part]}.{name}": weight for part, module in CVAE(**sizes).named_children()
             for name, weight in module.state_dict().items()}
    return {"state_dict": state, "optimizer": state, "lr": 0.001, "tfr": 0.25, "last_epoch": 41}


@pytest.fixture(scope="module")
def template_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("template") / "epoch=41.ckpt"
    torch.save(make_template_checkpoint(), path)
    return path


def test_it_computes_what_the_template_computes(template_file):
    """The tests of the network hold each part's formula; the template differs in LeakyReLU(True), the identity."""
    model, template = checkpoint.load_model(checkpoint.read(template_file)), torch.load(template_file)["state_dict"]
    for part, module in model.named_children():
        for name, weight in module.state_dict().items():
            assert torch.equal(weight, template[f"{PREFIXES[part]}.{name}"])
    pad, convolution, norm, _, block = model.label_encoder
    *blocks, _, last = model.gaussian_predictor
    poses, features = torch.randn(2, 3, 8, 16), torch.randn(2, 8, 8, 16)
    with torch.no_grad():
        labels = model.label_encoder(poses)
        torch.testing.assert_close(labels, block(norm(convolution(pad(poses)))))
        posterior = torch.cat(model.gaussian_predictor(features, labels), dim=1)
        torch.testing.assert_close(posterior, last(nn.Sequential(*blocks)(torch.cat([features, labels], dim=1))))


def test_sizes_and_epoch_are_read_from_it():
    default = {"F_dim": 128, "L_dim": 32, "N_dim": 12, "D_out_dim": 192}
    content = make_template_checkpoint(default)
    state = convert_template_checkpoint(content)
    assert state["network"] == default | KIND and state["frame_size"] == [32, 64] and state["epoch"] == 42
    assert all(words in state["template_note"] for words in ("F_dim 128", "D_out_dim 192", "41", "0.001", "0.25"))
    for epoch in (10**400, "3", -5, None):
        assert convert_template_checkpoint(content | {"last_epoch": epoch, "lr": [], "tfr": None})["epoch"] is None
    for other in ({"state_dict": {}}, {"state_dict": {"encoder.weight": 1, 3: 1}}, {"weights": {}}, [], None):
        assert is_template_checkpoint(content) and not is_template_checkpoint(other)
    del content["state_dict"]["Decoder_Fusion.5.weight"]
    with pytest.raises(ValueError, match="Decoder_Fusion.5.weight"):
        convert_template_checkpoint(content)


def test_both_programs_evaluate_it_and_a_run_starts_from_it(template_file, data, tmp_path, no_figures, capsys):
    given = ["--DR", str(data), "--ckpt_path", str(template_file), "--save_root"]
    Tester.main([*given, str(tmp_path / "r"), "--any_size", "--no-make_gif", "--device", "cpu", "--no-cache", "--truth",
                 str(data / "truth")])
    assert '"epochs": 42' in (tmp_path / "r" / "summary.json").read_text()
    flags, run = TINY[len(NETWORK):], tmp_path / "run"  # the sizes of the network are the checkpoint's
    Trainer.main([*flags, *given, str(tmp_path / "test"), "--test"])
    assert "loss" in capsys.readouterr().out
    Trainer.main([*flags, *given, str(run), "--num_epoch", "1", "--lr", "1e-9"])
    state, template = checkpoint.read(run / "last.ckpt"), checkpoint.read(template_file)
    assert state["network"] == SIZES | KIND
    for name in ("decoder_fusion.1.conv1.weight", "label_encoder.1.weight"):
        torch.testing.assert_close(state["weights"][name], template["weights"][name], rtol=0, atol=1e-6)
    Trainer.main([*flags, *given[:2], "--save_root", str(run), "--num_epoch", "2", "--resume"])
    assert [row["epoch"] for row in read_csv(run / "metrics.csv")] == ["0", "1"]
