"""The checkpoint file: written whole, read without executing anything in it, and checked before it is used."""
import io
import math
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from modules.network.cvae import CVAE, FEEDS
from modules.training.template_checkpoint import convert_template_checkpoint, is_template_checkpoint
from utils import BadInput, atomic_write

FORMAT = 1
NETWORK_FLAGS = ("F_dim", "L_dim", "N_dim", "D_out_dim", "output", "template_activations", "reference_frame", "feed")
ON_DEVICE = ("latent", "disturbance")  # generators whose state is of their device's kind
NETWORK_BEFORE = {"template_activations": False, "reference_frame": False, "feed": "previous"}
LATER_GENERATORS = ("augmentation", "disturbance", "first", "reference")  # that older files lack
LARGEST_FRAME, LARGEST_NETWORK = 4096, 8192  # pixels a side, channels


def save(path: Path, state: dict) -> None:
    buffer = io.BytesIO()  # torch's own file writer hides why a disk refuses
    torch.save({"format": FORMAT, **state}, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read(path: Path) -> dict:
    """A checkpoint of this product or of the course's template, on the CPU. Nothing in the file is executed.

    Returns
    -------
    A dict that holds at least model (a state_dict that fits the network, all values finite), network (NETWORK_FLAGS),
    frame_size (H, W) and flags (name -> None, bool, number, str or list of numbers). One of the template also has
    ``recognised``, a sentence about it, and no training state.

    Raises
    ------
    ValueError : no such file, a broken one, one that is no such checkpoint, or one whose weights are not those of its
        network or not finite. The message does not name the file.
    PermissionError : it may not be read.
    """
    state = _read_checkpoint(path)
    if is_template_checkpoint(state):
        try:
            state = convert_template_checkpoint(state)
        except ValueError as error:
            raise ValueError(f"{error}; give another checkpoint") from error
    else:
        parts = {"format": int, "model": dict, "network": dict, "frame_size": (list, tuple), "flags": dict}
        if not isinstance(state, dict) or not all(isinstance(state.get(key), kind) for key, kind in parts.items()):
            raise ValueError("this is no checkpoint of Trainer.py; give one of its .ckpt files")
        # Checkpoints from before these flags existed were trained without them.
        state["network"] = NETWORK_BEFORE | state["network"]
        if state["format"] != FORMAT or set(state["network"]) != set(NETWORK_FLAGS):
            raise ValueError("it was written by another version of Trainer.py; use that version")
        state.pop("recognised", None)
    if len(state["frame_size"]) != 2 or not all(_is_count(side, 4, LARGEST_FRAME) for side in state["frame_size"]):
        raise ValueError("its frame size is none; give another checkpoint")
    for flag, value in state["flags"].items():
        numbers = isinstance(value, list) and all(_is_number(item) for item in value)
        if not isinstance(flag, str) or not (value is None or numbers or isinstance(value, str) or _is_number(value)
                                             or isinstance(value, bool)):
            raise ValueError("its flags are damaged; give another checkpoint")
    if not (state.get("epoch") is None or _is_count(state["epoch"], 0, 10**9)):
        raise ValueError("its epoch is no number of epochs; give another checkpoint")
    _check_weights(state["network"], state["model"])
    return state


def _read_checkpoint(path: Path) -> object:
    if not path.is_file():
        raise ValueError("there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch never compresses: a compressed part could unfold to any size.
            compressed = any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist())
            if compressed or archive.testzip() is not None:
                raise ValueError("a compressed part, or a wrong check sum")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it finds odd in a broken file; the error below says it better
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # damaged bytes make the unpickler raise whatever it meets
        raise ValueError("this file is broken or no checkpoint; give a .ckpt file that Trainer.py wrote") from error


def _check_weights(network: dict, given: dict) -> None:
    """ValueError: ``given`` is not the state_dict of ``network``. The network is not built for that, however large."""
    sizes = [value for flag, value in network.items() if flag.endswith("_dim")]
    try:
        if not all(_is_count(size, 1, LARGEST_NETWORK) for size in sizes):
            raise ValueError("its channels are no sizes")
        if not isinstance(network["template_activations"], bool) or network["output"] not in ("sigmoid", "linear"):
            raise ValueError("its activations are none")
        if not isinstance(network["reference_frame"], bool) or network["feed"] not in FEEDS:
            raise ValueError("its inputs are none")
        with torch.device("meta"):
            expected = CVAE(**network).state_dict()
    except ValueError as error:
        raise ValueError(f"its network cannot be ({error}); give another checkpoint") from error
    for name in [*expected, *(given.keys() - expected.keys())]:
        if name not in expected or not _fits(given.get(name), expected[name]):
            raise ValueError(f"it is from another network ({str(name)[:80]!r} does not fit); give a checkpoint of this "
                             "network")
    if not all(tensor.isfinite().all() for tensor in given.values()):
        raise ValueError("its weights hold NaN or infinite values; give an earlier one")


def check_training_state(state: dict, named_parameters: dict[str, nn.Parameter], generators: dict[str, torch.Generator],
                         tables: dict[str, tuple[str, ...]]) -> None:
    """Look whether a checkpoint holds what a run of such parameters needs to go on. Nothing is changed.

    Parameters
    ----------
    state : as ``read`` returns it. tables : the columns of the run's tables, by name.

    Raises
    ------
    ValueError : a part of it is missing, of another type or shape, or out of range.
    """

    def require(condition: bool, part: str) -> None:
        if not condition:
            raise ValueError(f"its training state is damaged ({part}); start from another checkpoint")

    def require_dict(value: object, part: str) -> dict:
        require(isinstance(value, dict), part)
        return value

    epoch, best = state.get("epoch"), state.get("best_psnr")
    require(_is_count(epoch, 0, 10**9), "epoch")
    require(isinstance(best, float) and not math.isnan(best), "best_psnr")
    for part, columns in tables.items():
        rows = state.get(part)
        require(isinstance(rows, list) and len(rows) == epoch, part)
        for index, row in enumerate(rows):
            # Rows from before this column existed lack it.
            require(isinstance(row, dict) and row.keys() | ({"skipped"} & set(columns)) == set(columns), part)
            require(all(_is_number(value) or (value is None and name in ("val_loss", "val_psnr", "skipped"))
                        for name, value in row.items()) and row["epoch"] == index, part)

    replay = state.get("replay")
    if replay is not None:
        require_dict(replay, "replay")
        predictions, is_known = replay.get("predictions"), replay.get("is_known")
        shape = (len(is_known) if isinstance(is_known, Tensor) and is_known.dim() == 1 else 0, 3, *state["frame_size"])
        require(_fits(predictions, torch.empty(shape, dtype=torch.uint8, device="meta"))
                and _fits(is_known, torch.empty(shape[0], dtype=torch.bool)) and _is_count(replay.get("of"), 0, 2**32)
                and replay.keys() == {"predictions", "is_known", "of"}, "replay")
    latest = require_dict(state.get("latest", {}), "latest")  # empty, or missing in an old file, without an average
    require(latest.keys() in (set(), named_parameters.keys()), "latest")
    require(all(_fits(value, named_parameters[name]) and bool(value.isfinite().all())
                for name, value in latest.items()), "latest")
    steps = state.get("averaged_steps", torch.zeros((), dtype=torch.float64))
    require(_fits(steps, torch.zeros((), dtype=torch.float64)) and 0 <= steps.item() < math.inf, "averaged_steps")
    parameters = list(named_parameters.values())
    moments = require_dict(require_dict(state.get("optimizer"), "optimizer").get("state"), "optimizer")
    require(moments.keys() in (set(), set(range(len(parameters)))), "optimizer")
    for index, moment in moments.items():
        moment = require_dict(moment, "optimizer")
        for name, like in (("step", torch.tensor(0.0)), ("exp_avg", parameters[index]),
                           ("exp_avg_sq", parameters[index])):
            require(_fits(moment.get(name), like) and bool(moment[name].isfinite().all()), f"optimizer: {name}")
    require(isinstance(state.get("device"), str), "device")
    for purpose, generator in generators.items():
        saved = require_dict(state.get("generators"), "generators").get(purpose)
        if purpose in LATER_GENERATORS and purpose not in state["generators"]:
            continue
        # Useless on a device of another kind.
        if purpose not in ON_DEVICE or generator.device.type == state.get("device"):
            try:
                torch.Generator(generator.device).set_state(saved)
            except (RuntimeError, TypeError, AttributeError):
                require(False, f"generators: {purpose}")

    progress = state.get("progress")
    if progress is None:
        return
    require_dict(progress, "progress")
    order, forced = progress.get("order"), progress.get("forced")
    require(isinstance(order, Tensor) and order.dim() == 1 and _fits(order, torch.empty(len(order), dtype=torch.int64))
            and torch.equal(order.sort().values, torch.arange(len(order))), "progress: order")
    require("forced" in progress and (forced is None or _fits(forced, torch.empty(1, dtype=torch.bool))),
            "progress: forced")
    require(_is_count(progress.get("clips"), 0, len(order)), "progress: clips")
    sums = progress.get("sums")
    require(_fits(sums, torch.empty(6, dtype=torch.float64)) and bool(sums.isfinite().all())
            and bool((sums[4:] >= 0).all() and (sums[4:] <= progress["clips"]).all()), "progress: sums")
    require(_is_count(progress.get("forced_clips"), 0, len(order)), "progress: forced_clips")
    for name in ("lr", "seconds"):
        require(_is_number(progress.get(name)) and 0 <= progress[name] < math.inf, f"progress: {name}")


def _fits(tensor: object, like: Tensor) -> bool:
    """Whether it is a plain tensor on the CPU with the shape and type of ``like``."""
    return (isinstance(tensor, Tensor) and tensor.shape == like.shape and tensor.dtype == like.dtype
            and tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.requires_grad)


def _is_count(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: object) -> bool:
    return type(value) is float or _is_count(value, -2**63, 2**63)


def load_checkpoint(path: Path) -> dict:
    """``read`` for a file that the user has named. BadInput: it cannot be used."""
    try:
        return read(path)
    except ValueError as error:
        raise BadInput(f"--ckpt_path {path}: {error}") from error
