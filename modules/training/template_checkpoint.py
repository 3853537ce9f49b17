"""Checkpoints of the course's own template, converted for this network."""
from torch import Tensor

PARTS = {"frame_transformation": "frame_encoder", "label_transformation": "label_encoder",
         "Gaussian_Predictor": "gaussian_predictor", "Decoder_Fusion": "decoder_fusion", "Generator": "generator"}
FRAME_SIZE = [32, 64]  # the course's; its checkpoints do not store one

# Where each size can be read: a weight's name, and how many times the size its first dimension is.
SIZES = {"F_dim": ("frame_transformation.6.weight", 1), "L_dim": ("label_transformation.4.conv2.weight", 1),
         "N_dim": ("Gaussian_Predictor.6.weight", 2), "D_out_dim": ("Decoder_Fusion.5.weight", 1)}


def is_template_checkpoint(content: object) -> bool:
    """Whether a file's content has the form that the template saves."""
    weights = content.get("state_dict") if isinstance(content, dict) else None
    return isinstance(weights, dict) and any(str(name).split(".")[0] in PARTS for name in weights)


def convert_template_checkpoint(content: dict) -> dict:
    """Convert the template's checkpoint into one of this program that holds weights only.

    The template has no activation after the last convolution, and writes ``LeakyReLU(True)``, which is slope 1.0 and
    thus no activation, after the label encoder's BatchNorm and before the Gaussian predictor's last convolution. Its
    "optimizer" is a second copy of the model's state, so there is no training state to continue from.

    Parameters
    ----------
    content : "state_dict" and, optionally, "last_epoch", "lr" and "tfr".

    Returns
    -------
    weights, ema (None), network, frame_size, flags as in a checkpoint of Trainer.py; epoch : trained epochs or None;
    template_note : a sentence about what was found.

    Raises
    ------
    ValueError : a weight that tells a size of the network is missing.
    """
    weights = content["state_dict"]
    network = {}
    for size, (name, factor) in SIZES.items():
        weight = weights.get(name)
        if not isinstance(weight, Tensor) or weight.dim() != 4 or len(weight) % factor:
            raise ValueError(f"it looks like a checkpoint of the course's template, but {name} is missing or not a "
                             "convolution")
        network[size] = len(weight) // factor
    network |= {"output": "linear", "template_activations": True, "reference_frame": False, "feed": "previous",
                "pose_levels": 0}

    converted = {}
    for name, weight in weights.items():
        part, _, inner = str(name).partition(".")
        converted[f"{PARTS.get(part, part)}.{inner}"] = weight
    found = [f"{size} {network[size]}" for size in SIZES]
    last = content.get("last_epoch")
    if type(last) is int and 0 <= last < 10**9:
        found.append(f"last epoch {last}")
    else:
        last = None
    found += [f"{key} {content[key]:g}" for key in ("lr", "tfr") if type(content.get(key)) is float]
    note = (f"a checkpoint of the course's template ({', '.join(found)}): weights only, linear output, slope 1.0 where "
            "the template writes LeakyReLU(True)")
    return {"weights": converted, "ema": None, "network": network, "frame_size": FRAME_SIZE, "flags": network,
            "epoch": None if last is None else last + 1, "template_note": note}
