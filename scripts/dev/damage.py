"""Damaged files for fuzz_readers.py: bytes, PNG files, and checkpoints, reproducible from a random generator."""
import io
import random
import struct
import zipfile
import zlib

import numpy as np
import torch
from PIL import Image


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, removed, duplicated or overwritten, or everything after a point removed."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        if not content:
            return rng.randbytes(rng.randrange(50))
        at, count = rng.randrange(len(content)), rng.choice([1, 1, 4, 50])
        match rng.randrange(6):
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                del content[at:at + count]
            case 2:
                content[at:at] = content[at:at + count]
            case 3:
                content[at:at + count] = rng.randbytes(count)
            case 4:
                content[at:at + count] = rng.choice([b"\0", b"\xff", b",", b"\n", b"-", b"9"]) * count
            case 5 if rng.random() < 0.3:
                del content[at:]
    return bytes(content)


def damage_png(content: bytes, rng: random.Random) -> bytes:
    """Damage inside the chunks of a PNG file, with valid checksums."""
    chunks, at = [], 8
    while at < len(content):
        length = struct.unpack(">I", content[at:at + 4])[0]
        chunks.append([content[at + 4:at + 8], content[at + 8:at + 8 + length]])
        at += 12 + length
    kind = rng.randrange(5)
    chunk = rng.choice(chunks)
    if kind == 0:
        chunk[1] = damage_bytes(chunk[1], rng)
    elif kind == 1:  # the header: width, height, bits, colour type, interlacing
        values = list(struct.unpack(">IIBBBBB", chunks[0][1]))
        values[rng.randrange(7)] = rng.choice([0, 1, 3, 4, 8, 16, 255, 50_000, 2**31 - 1])
        chunks[0][1] = struct.pack(">IIBBBBB", *[value % 256 if index > 1 else value
                                                 for index, value in enumerate(values)])
    elif kind == 2:  # the pixels: other data, correctly compressed
        chunks[-2][1] = zlib.compress(damage_bytes(zlib.decompress(chunks[-2][1]), rng))
    elif kind == 3:
        name = rng.choice([b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"tEXt", b"gAMA", b"acTL", b"fcTL", b"eXIf", b"pHYs"])
        chunks.insert(rng.randrange(len(chunks) + 1), [name, rng.randbytes(rng.choice([0, 1, 3, 26, 300]))])
    else:
        rng.shuffle(chunks)
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
             for name, data in chunks]
    return content[:8] + b"".join(parts)


def other_picture(rng: random.Random) -> bytes:
    """A picture of an unexpected mode, bit depth, format or size."""
    buffer = io.BytesIO()
    mode = rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "F"])
    size = rng.choice([(1, 1), (16, 8), (300, 2), (3, 500)])
    array = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (size[1], size[0], 4), np.uint8)
    picture = Image.fromarray(array, "RGBA" if mode == "RGBA" else None)
    picture = Image.fromarray(array.view(np.uint16)[..., 0].copy()) if mode == "I;16" else picture.convert(mode)
    kinds = {"PNG": mode != "F", "GIF": True, "BMP": mode in ("1", "L", "P", "RGB"), "TIFF": True,
             "JPEG": mode in ("L", "RGB"), "WEBP": mode in ("RGB", "RGBA"), "EPS": mode in ("L", "RGB")}
    kind = rng.choice([name for name, possible in kinds.items() if possible])
    if kind == "GIF":
        picture = picture.convert("RGB")
    picture.save(buffer, kind)
    return buffer.getvalue()


ABSURD = [None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, float("nan"), float("inf"), "", "text", "--overwrite",
          "@/etc/hostname", "a\nb", b"bytes", [], [1, "2"], {}, {"a": 1}, (), torch.tensor(1.0), torch.zeros(0),
          torch.zeros(3, dtype=torch.int64), torch.full((5,), float("nan")), torch.zeros(1).expand(10**6),
          torch.zeros(2, 2).to_sparse(), torch.zeros(3, device="meta"), torch.zeros(2, dtype=torch.complex64),
          torch.zeros(5056, dtype=torch.uint8), torch.Size([3]), torch.float16, torch.device("cpu")]


def replace_value(state: dict, rng: random.Random) -> None:
    """Replace, remove or rename one value anywhere in nested dicts and lists."""
    here = state
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(here[key], dict | list) or rng.random() < 0.3:
            break
        here = here[key]
    match rng.randrange(6):
        case 0 if isinstance(here, dict):
            del here[key]
        case 1 if isinstance(here, dict):
            here[rng.choice([3, "new", None, "a\n" * 99, ("a",)])] = here.pop(key)
        case 2 if isinstance(here[key], torch.Tensor) and here[key].layout == torch.strided and not here[key].is_meta:
            tensor = here[key]
            here[key] = rng.choice([lambda: tensor.double(), lambda: tensor.flatten()[:1], lambda: tensor.flatten(),
                                    lambda: tensor.float() * float("nan"), lambda: -tensor.float(),
                                    lambda: tensor.to_sparse(), lambda: tensor[None]])()
        case _:
            here[key] = rng.choice(ABSURD)


def damage_pickle(content: bytes, rng: random.Random) -> bytes:
    """Damage inside a part of a checkpoint's ZIP file, most often its pickle, with valid checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(buffer, "w") as damaged:
        names = whole.namelist()
        pickle = next(name for name in names if name.endswith("data.pkl"))
        chosen = pickle if rng.random() < 0.8 else rng.choice(names)
        for name in names:
            part = whole.read(name)
            damaged.writestr(name, damage_bytes(part, rng) if name == chosen else part)
    return buffer.getvalue()
