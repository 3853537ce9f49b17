"""The checkpoint file: written atomically, read without executing anything in it, checked before it is used."""
import io
import math
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from modules.network.cvae import CVAE
from modules.training.template_checkpoint import convert_template_checkpoint, is_template_checkpoint
from utils import atomic_write

FORMAT = 2
CPU = torch.device("cpu")
NETWORK_FLAGS = ("F_dim", "L_dim", "N_dim", "D_out_dim", "output", "template_activations", "reference_frame", "feed",
                 "pose_levels")
MAX_FRAME, MAX_CHANNELS = 4096, 8192  # pixels per side, channels
MAX_EPOCH = 10**9
NULLABLE_METRICS = ("val_loss", "val_psnr")


def save(path: Path, state: dict) -> None:
    write(path, serialize(state))


def serialize(state: dict) -> memoryview:
    """The content of a checkpoint file."""
    buffer = io.BytesIO()  # torch's own file writer hides why a disk refuses
    torch.save({"format": FORMAT, **state}, buffer)
    return buffer.getbuffer()


def write(path: Path, content: memoryview) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def evaluated_weights(state: dict) -> dict[str, Tensor]:
    """The weights to evaluate and to generate with: the averaged ones where there are any."""
    return state["weights"] if state.get("ema") is None else state["ema"]


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> CVAE:
    """The network of a checkpoint file, ready for its ``generate``.

    Raises
    ------
    ValueError, PermissionError : as ``read``; the message names the file.
    """
    try:
        state = read(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return load_model(state, torch.device(device))


def load_model(state: dict, device: torch.device = CPU, match_histogram: str | None = None) -> CVAE:
    """The network of a checkpoint with the weights to generate with, on ``device``, in evaluation mode.

    Parameters
    ----------
    state : from ``read``.
    match_histogram : "off", "previous" or "first"; None: as in training.
    """
    model = CVAE(**state["network"], match_histogram=match_histogram or state["flags"].get("match_histogram", "off"))
    model.load_state_dict(evaluated_weights(state))
    return model.to(device, memory_format=torch.channels_last).eval()


def read(path: str | Path) -> dict:
    """Read a checkpoint of this program or of the course's template, on the CPU. Nothing in the file is executed.

    Returns
    -------
    A dict with at least weights (a finite state_dict that fits the network), ema (the same, or None), network
    (NETWORK_FLAGS), frame_size (H, W), flags (name -> None, bool, number, str or list of numbers) and epoch (trained
    epochs, or None). One of the template also has ``template_note``, a sentence about it, and no training state.

    Raises
    ------
    ValueError : no such file, a damaged one, no checkpoint, or weights that do not fit or are not finite.
    PermissionError : it may not be read.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError("this is a folder; name a checkpoint in it, such as best.ckpt")
    if not path.is_file():
        raise ValueError("there is no such file")
    state = _unpickle(path)
    if is_template_checkpoint(state):
        state = convert_template_checkpoint(state)
    else:
        parts = {"format": int, "weights": dict, "network": dict, "frame_size": (list, tuple), "flags": dict}
        if not isinstance(state, dict) or type(state.get("format")) is not int:
            raise ValueError("this is not a checkpoint of Trainer.py")
        if state["format"] != FORMAT:
            raise ValueError("it was written by another version of Trainer.py; use that version")
        for key, kind in parts.items():
            _require(isinstance(state.get(key), kind), key)
        state.pop("template_note", None)
    _check_description(state)
    for name in ("weights", "ema"):
        if name == "weights" or state.get("ema") is not None:
            _check_weights(state["network"], state[name], name)
    return state


def _unpickle(path: Path) -> object:
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch never compresses: a compressed part could unfold to any size.
            compressed = any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist())
            if compressed or archive.testzip() is not None:
                raise ValueError("a compressed part, or a wrong checksum")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged files; the error below says it better
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # damaged bytes make the unpickler raise anything
        raise ValueError("the file is damaged or not a checkpoint") from error
    _check_sizes(list(_tensors(content)), path.stat().st_size)
    return content


def _check_sizes(tensors: list[Tensor], most: int) -> None:
    """ValueError if tensors claim more memory than the file has. With a stride of 0 or a shared storage they can claim
    any size, which the first operation on them would allocate."""
    if any(tensor.__dict__ for tensor in tensors):  # an attribute in the place of a method
        raise ValueError("the checkpoint is damaged (tensors with attributes); use another one")
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    is_expanded = any(tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() for tensor in tensors
                      if tensor.layout == torch.strided and tensor.device.type == "cpu")
    if is_expanded or claimed > most:
        raise ValueError(f"the checkpoint is damaged (its tensors claim {claimed:,} bytes, more than it stores); use "
                         "another one")


def _tensors(content: object) -> Iterator[Tensor]:
    """All tensors in nested dicts, lists and tuples, each once."""
    left, seen = [content], set()  # no recursion: a file may nest to any depth, and contain itself
    while left:
        part = left.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, dict):
            left += part.values()
        elif isinstance(part, list | tuple):
            left += part


def _check_description(state: dict) -> None:
    size = state["frame_size"]
    _require(len(size) == 2 and all(_is_count(side, 4, MAX_FRAME) for side in size), "frame size")
    for flag, value in state["flags"].items():
        plain = value is None or isinstance(value, str | bool) or _is_number(value)
        _require(isinstance(flag, str) and (plain or isinstance(value, list) and all(map(_is_number, value))), "flags")
    state.setdefault("epoch", None)
    _require(state["epoch"] is None or _is_count(state["epoch"], 0, MAX_EPOCH), "epoch")
    state["network"].setdefault("pose_levels", 0)  # networks of earlier versions have none
    _require(set(state["network"]) == set(NETWORK_FLAGS), "network")
    kinds = {"template_activations": bool, "reference_frame": bool, "output": str, "feed": str}
    for name, value in state["network"].items():
        _require(type(value) is kinds.get(name, int) and (name in kinds or value <= MAX_CHANNELS), f"network: {name}")
    _require(2 ** state["network"]["pose_levels"] <= min(size), "network: pose_levels")


def _check_weights(network: dict, given: object, part: str) -> None:
    """ValueError if ``given`` is not a finite state_dict of ``network``, which is never built, however large."""
    _require(isinstance(given, dict), part)
    try:
        with torch.device("meta"):
            expected = CVAE(**network).state_dict()
    except ValueError as error:
        raise ValueError(f"the checkpoint is damaged (network: {' '.join(str(error).split())})") from error
    for name in [*expected, *(given.keys() - expected.keys())]:
        if name not in expected or not _fits(given.get(name), expected[name]):
            raise ValueError(f"{part}: {str(name)[:80]!r} does not fit the network")
    if not all(tensor.isfinite().all() for tensor in given.values()):
        raise ValueError(f"{part} are non-finite; use an earlier checkpoint")


def check_training_state(state: dict, named_parameters: dict[str, nn.Parameter], generators: dict[str, torch.Generator],
                         tables: dict[str, tuple[str, ...]]) -> None:
    """Check that a checkpoint holds all that training needs to continue. Nothing is changed.

    Parameters
    ----------
    state : from ``read``. tables : columns of the run's tables, by name.

    Raises
    ------
    ValueError : a part is missing, has another type or shape, or is out of range.
    """
    _require(_is_count(state.get("epoch"), 0, MAX_EPOCH), "epoch")
    best = state.get("best_psnr")
    _require(isinstance(best, float) and best < math.inf, "best_psnr")
    for name in ("validation", "recording"):  # runs of earlier versions have none
        _require(state.setdefault(name, None) is None or _is_count(state[name], 0, 2**32), name)
    _require(_is_count(state.get("ema_steps"), 0, 2**62), "ema_steps")
    _require(isinstance(state.get("device"), str), "device")
    _require({"replay", "progress"} <= state.keys(), "replay, progress")
    for name, columns in tables.items():
        _check_table(state.get(name), name, columns, state["epoch"])
    _check_optimizer(state.get("optimizer"), list(named_parameters.values()))
    _check_generators(state.get("generators"), generators, state["device"])
    if state.get("replay") is not None:
        _check_replay(state["replay"], state["frame_size"])
    if state.get("progress") is not None:
        _check_progress(state["progress"])


def _check_table(rows: object, name: str, columns: tuple[str, ...], epochs: int) -> None:
    _require(isinstance(rows, list) and len(rows) == epochs, name)
    for epoch, row in enumerate(rows):
        _require(isinstance(row, dict) and row.keys() == set(columns) and row["epoch"] == epoch, name)
        _require(all(_is_number(value) or (value is None and column in NULLABLE_METRICS)
                     for column, value in row.items()), name)


def _check_optimizer(moments: object, parameters: list[nn.Parameter]) -> None:
    _require(isinstance(moments, dict) and moments.keys() in (set(), set(range(len(parameters)))), "optimizer")
    for index, moment in moments.items():
        _require(isinstance(moment, dict), "optimizer")
        for name, like in (("step", torch.tensor(0.0)), ("exp_avg", parameters[index]),
                           ("exp_avg_sq", parameters[index])):
            _require(_fits(moment.get(name), like) and bool(moment[name].isfinite().all()), f"optimizer: {name}")


def _check_generators(saved: object, generators: dict[str, torch.Generator], device: str) -> None:
    _require(isinstance(saved, dict) and saved.keys() == generators.keys(), "generators")
    for purpose, generator in generators.items():
        if is_portable(purpose, generator, device):
            try:
                torch.Generator(generator.device).set_state(saved[purpose])
            except (RuntimeError, TypeError, AttributeError):
                _require(False, f"generators: {purpose}")


def is_portable(purpose: str, generator: torch.Generator, device: str) -> bool:
    """Whether a generator's state that was saved on ``device`` fits: the latent's is of its device's kind."""
    return purpose != "latent" or generator.device.type == device


def _check_replay(replay: object, frame_size: list[int]) -> None:
    _require(isinstance(replay, dict), "replay")
    offsets = replay.pop("offsets", None)  # stored by earlier versions, which shifted the person in some predictions
    _require(replay.keys() == {"predictions", "is_known", "checksum"}, "replay")
    is_known = replay["is_known"]
    _require(isinstance(is_known, Tensor) and is_known.dim() == 1, "replay")
    frames = torch.empty((len(is_known), 3, *frame_size), dtype=torch.uint8, device="meta")
    _require(_fits(replay["predictions"], frames) and _fits(is_known, torch.empty(len(is_known), dtype=torch.bool))
             and _is_count(replay["checksum"], 0, 2**32), "replay")
    if offsets is not None:
        _require(_fits(offsets, torch.empty(len(is_known), dtype=torch.int64)), "replay")
        replay["is_known"] = is_known & (offsets == 0)


def _check_progress(progress: object) -> None:
    _require(isinstance(progress, dict)
             and progress.keys() == {"order", "forced", "sums", "clips", "forced_clips", "lr", "seconds"}, "progress")
    order, forced, sums = progress["order"], progress["forced"], progress["sums"]
    _require(isinstance(order, Tensor) and order.dim() == 1 and _fits(order, torch.empty(len(order), dtype=torch.int64))
             and torch.equal(order.sort().values, torch.arange(len(order))), "progress: order")
    _require(forced is None or _fits(forced, torch.empty(1, dtype=torch.bool)), "progress: forced")
    forced_clips = progress["forced_clips"]
    _require(_is_count(progress["clips"], 0, len(order)) and type(forced_clips) is float
             and 0 <= forced_clips <= len(order), "progress: clips")
    _require(isinstance(sums, dict) and sums.keys() == {"loss", "mse", "kl", "psnr", "clips", "skipped"}
             and all(type(value) is float and math.isfinite(value) for value in sums.values())
             and all(0 <= sums[name] <= progress["clips"] for name in ("clips", "skipped")), "progress: sums")
    _require(all(type(progress[name]) is float and 0 <= progress[name] < math.inf for name in ("lr", "seconds")),
             "progress: time")


def _require(condition: bool, part: str) -> None:
    if not condition:
        raise ValueError(f"the checkpoint is damaged ({part}); use another one")


def _fits(tensor: object, like: Tensor) -> bool:
    """Whether it is a plain tensor on the CPU with the shape and dtype of ``like``."""
    return (isinstance(tensor, Tensor) and tensor.shape == like.shape and tensor.dtype == like.dtype
            and tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.requires_grad)


def _is_count(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: object) -> bool:
    return type(value) is float or _is_count(value, -2**63, 2**63)
