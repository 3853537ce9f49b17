"""The checkpoint file: what is written reads back, and everything else is refused.

    python -m pytest tests/training/test_checkpoint.py
"""
import io
import os
import random
import zipfile

import pytest
import torch

from modules.network.cvae import CVAE
from modules.training import checkpoint

NETWORK = {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8, "output": "sigmoid", "template_activations": False,
           "reference_frame": False, "feed": "previous", "pose_levels": 0}


def state_of(model: torch.nn.Module) -> dict:
    return {"format": checkpoint.FORMAT, "weights": model.state_dict(), "ema": None, "network": dict(NETWORK),
            "frame_size": [8, 16],
            "flags": {"lr": 0.1, "DR": "data", "lr_milestones": [1, 2], "weight_decay": None, "bptt": False}}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CVAE(**NETWORK)


def refusal(path, state) -> str:
    torch.save(state, path)
    with pytest.raises(ValueError) as error:
        checkpoint.read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_checkpoint_reads_back(model, tmp_path):
    checkpoint.save(tmp_path / "a.ckpt", state_of(model))
    state = checkpoint.read(tmp_path / "a.ckpt")
    assert state["network"] == NETWORK and state["flags"] == state_of(model)["flags"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, state["weights"][name])


def test_random_bytes_are_no_checkpoint(tmp_path):
    """Bytes that happen to look like the start of a pickle make its reader fail in many ways."""
    rng, path = random.Random(0), tmp_path / "a.ckpt"
    for index in range(300):
        path.write_bytes((b"\x80\x02" if index % 2 else b"") + rng.randbytes(rng.choice([0, 1, 5, 50, 500])))
        with pytest.raises(ValueError, match="damaged"):
            checkpoint.read(path)


def test_a_truncated_checkpoint_is_refused(model, tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(state_of(model), path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, len(whole) // 50):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            checkpoint.read(path)


def test_one_wrong_bit_in_a_weight_is_found(model, tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(state_of(model), path)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(model.generator[0].block[0].conv1[0].weight.detach().numpy().tobytes()) + 5] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.read(path)


def test_a_compressed_file_is_refused_before_it_is_decompressed(model, tmp_path):
    torch.save(state_of(model), tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as whole, \
            zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as packed:
        for part in whole.namelist():
            packed.writestr(part, whole.read(part))
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.read(tmp_path / "b.ckpt")


def test_the_form_of_before_pytorch_1_6_is_refused(model, tmp_path):
    """It states sizes that nothing in the file confirms."""
    torch.save(state_of(model), tmp_path / "a.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.read(tmp_path / "a.ckpt")


@pytest.mark.parametrize("content", [
    {"state_dict": {}, "optimizer": {}}, [1, 2], torch.zeros(3), {"weights": {"a": torch.zeros(1)}},
    {"format": "2", "weights": {}, "network": NETWORK, "frame_size": [8, 16], "flags": {}}], ids=str)
def test_a_file_of_something_else_is_refused(content, tmp_path):
    assert "not a checkpoint" in refusal(tmp_path / "a.ckpt", content)


@pytest.mark.parametrize("change, words", [
    ({"format": 99}, "another version"), ({"network": {"F_dim": 8}}, "network"),
    ({"weights": []}, "weights"), ({"ema": 3}, "ema"),
    ({"network": {**NETWORK, "new": 1}}, "network"),
    ({"network": {**NETWORK, "F_dim": 9}}, "multiple of 8"), ({"network": {**NETWORK, "F_dim": 8.0}}, "network"),
    ({"network": {**NETWORK, "F_dim": 10**12}}, "network"), ({"network": {**NETWORK, "F_dim": -8}}, "network"),
    ({"network": {**NETWORK, "F_dim": 8192}}, "does not fit"),
    ({"network": {**NETWORK, "output": "tanh\n"}}, "output"),
    ({"network": {**NETWORK, "template_activations": 1}}, "network"),
    ({"network": {**NETWORK, "reference_frame": 0}}, "network"), ({"network": {**NETWORK, "feed": "next"}}, "feed"),
    ({"network": {**NETWORK, "pose_levels": 9}}, "network"), ({"network": {**NETWORK, "pose_levels": -1}}, "network"),
    ({"network": {**NETWORK, "pose_levels": 4}}, "network: pose_levels"),  # of frames 8 pixels high
    ({"frame_size": [8, 10**9]}, "frame size"), ({"frame_size": [8]}, "frame size"),
    ({"frame_size": [8.0, 16]}, "frame size"), ({"frame_size": [True, 16]}, "frame size"),
    ({"flags": {"lr": {}}}, "flags"), ({"flags": {3: 1}}, "flags"), ({"flags": {"lr_milestones": ["1"]}}, "flags"),
    ({"flags": {"lr": 10**400}}, "flags")], ids=str)
def test_values_that_no_run_writes_are_refused(change, words, model, tmp_path):
    assert words in refusal(tmp_path / "a.ckpt", state_of(model) | change)


def test_a_network_of_an_earlier_version_has_the_courses_label_encoder(model, tmp_path):
    state = state_of(model)
    del state["network"]["pose_levels"]
    checkpoint.save(tmp_path / "a.ckpt", state)
    assert checkpoint.read(tmp_path / "a.ckpt")["network"]["pose_levels"] == 0


def test_weights_that_do_not_fit_are_refused(model, tmp_path):
    given = model.state_dict()
    name, weight = next((name, weight) for name, weight in given.items() if weight.dim() == 4)
    for change in ({name: weight[:, :, :1]}, {name: weight.double()}, {name: None}, {"extra\n" * 50: weight},
                   {name: weight.to_sparse()}, {name: weight.to("meta")}):
        message = refusal(tmp_path / "a.ckpt", state_of(model) | {"weights": {**given, **change}})
        assert "does not fit the network" in message and len(message) < 300
    missing = {key: given[key] for key in given if key != name}
    assert name in refusal(tmp_path / "a.ckpt", state_of(model) | {"weights": missing})
    lost = {**given, name: torch.full_like(weight, torch.nan)}
    assert "non-finite" in refusal(tmp_path / "a.ckpt", state_of(model) | {"weights": lost})
    assert "non-finite" in refusal(tmp_path / "a.ckpt", state_of(model) | {"ema": lost})


@pytest.mark.parametrize("tensor", [torch.zeros(1).expand(2**40), torch.zeros(2, 1).expand(2, 3)])
@pytest.mark.parametrize("place", [
    lambda state, tensor: state["weights"].update(new=tensor), lambda state, tensor: state.update(progress=[(tensor,)]),
    lambda state, tensor: state.update(replay={"predictions": tensor})], ids=["weights", "progress", "replay"])
def test_tensors_that_claim_more_than_is_stored_are_refused_before_they_are_used(tensor, place, model, tmp_path,
                                                                                 monkeypatch):
    state = state_of(model)
    place(state, tensor)
    state["itself"] = [state["weights"]]  # a pickle may also hold cycles and parts twice
    state["itself"].append(state["itself"])
    monkeypatch.setattr(checkpoint, "_check_description", lambda state: pytest.fail("used"))
    assert "bytes, more than it stores" in refusal(tmp_path / "a.ckpt", state)


def test_many_views_of_one_storage_and_tensors_with_attributes_are_refused(model, tmp_path):
    views = [torch.zeros(10**6)[index:] for index in range(2)]
    shared = torch.zeros(10**6)
    assert "more than it stores" in refusal(tmp_path / "a.ckpt", state_of(model) | {"new": [shared[1:], shared[2:]]})
    views[0].numel = 3
    assert "attributes" in refusal(tmp_path / "a.ckpt", state_of(model) | {"new": views})


def test_a_checkpoint_loads_from_a_string_and_an_error_names_the_file(model, tmp_path):
    path = str(tmp_path / "a.ckpt")
    checkpoint.save(tmp_path / "a.ckpt", state_of(model))
    loaded, first_frame, labels = checkpoint.load_checkpoint(path), torch.rand(1, 3, 8, 16), torch.rand(1, 3, 3, 8, 16)
    assert torch.allclose(*(net.generate(first_frame, labels, "mean") for net in (loaded, model)), atol=1e-5)
    with pytest.raises(ValueError, match="gone.ckpt: there is no such file"):
        checkpoint.load_checkpoint(str(tmp_path / "gone.ckpt"))


def test_nothing_in_a_checkpoint_is_executed(model, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    for place in ("flags", "weights", "optimizer", "progress"):
        torch.save(state_of(model) | {place: Hostile()}, tmp_path / "a.ckpt")
        with pytest.raises(ValueError, match="damaged"):
            checkpoint.read(tmp_path / "a.ckpt")
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert (tmp_path / "executed").exists()  # the file is hostile indeed


def test_an_unreadable_file_is_not_a_damaged_one(model, tmp_path, monkeypatch):
    torch.save(state_of(model), tmp_path / "a.ckpt")

    def refuse(*args):
        raise PermissionError(13, "Permission denied", "a.ckpt")

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    with pytest.raises(PermissionError):
        checkpoint.read(tmp_path / "a.ckpt")


def test_a_full_disk_leaves_the_old_checkpoint(model, tmp_path):
    """A real limit of the system: no file may grow beyond some bytes."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, state_of(model))
    whole, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, hard))
    try:
        with pytest.raises(OSError) as error:
            checkpoint.save(path, state_of(model))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.filename == str(path) and path.read_bytes() == whole
    assert [child.name for child in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_is_no_larger_than_what_it_holds(model, tmp_path):
    """Views of a larger tensor would drag the whole of it along."""
    buffer = io.BytesIO()
    torch.save({name: weight.clone() for name, weight in model.state_dict().items()}, buffer)
    checkpoint.save(tmp_path / "a.ckpt", state_of(model))
    assert (tmp_path / "a.ckpt").stat().st_size < buffer.tell() + 20_000
