"""Image files: conversion to RGB, resizing, and refusal of damaged or malicious files.

    pytest tests/data/test_image_file.py
"""
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modules.data import image_file

H, W = 8, 16


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "1", "LA", "RGBA"])
@pytest.mark.parametrize("size", [(8, 16), (32, 64), (5, 9), (37, 21), (7, 40), (1, 1)], ids=str)
def test_images_are_converted_to_rgb_and_resized_bilinearly_by_pillow(mode, size, tmp_path):
    pixels = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(tmp_path / "0.png")
    image = Image.open(tmp_path / "0.png")
    assert image.mode == mode
    expected = np.asarray(image.convert("RGB").resize((W, H), Image.Resampling.BILINEAR))
    assert np.array_equal(image_file.read(tmp_path / "0.png", H, W), expected)


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_rgb16(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG file with 16 bits for each of three channels, which Pillow reads but does not write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(PNG_SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
                     + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b""))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_upper_8_of_16_bits_are_kept(channels, tmp_path):
    """Pillow's own conversion of grey would clip everything above 255 of 65,535 to white."""
    pixels = np.random.default_rng(0).integers(0, 2**16, (H, W, channels), dtype=np.uint16)
    if channels == 1:
        Image.fromarray(pixels[..., 0]).save(tmp_path / "0.png")
        assert Image.open(tmp_path / "0.png").mode == "I;16"
    else:
        write_rgb16(tmp_path / "0.png", pixels)
    expected = np.broadcast_to(pixels // 256, (H, W, 3))
    assert np.array_equal(image_file.read(tmp_path / "0.png", H, W), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_are_refused(mode, tmp_path):
    image = Image.new(mode, (W, H), 0)
    if mode in ("RGBA", "LA"):
        image.putalpha(255)
        image.save(tmp_path / "opaque.png")
        assert not image_file.read(tmp_path / "opaque.png", H, W).any()
        image.putpixel((3, 3), (*[0] * (len(mode) - 1), 254))
        image.save(tmp_path / "0.png")
    else:  # a colour that is declared transparent
        image.save(tmp_path / "0.png", transparency=0 if mode == "P" else (0, 0, 0))
    with pytest.raises(ValueError, match="0.png: .*transparent"):
        image_file.read(tmp_path / "0.png", H, W)


def test_missing_truncated_and_other_files_are_refused(tmp_path):
    path = tmp_path / "4.png"
    with pytest.raises(ValueError, match="4.png: .*No such file"):
        image_file.read(path, H, W)
    Image.fromarray(picture()).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 24, 7):  # the last bytes hold a checksum and the end mark, but no pixels
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="4.png: "):
            image_file.read(path, H, W)
    path.write_text("this is text")
    with pytest.raises(ValueError, match="not a PNG image"):
        image_file.read(path, H, W)


@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", os.mkdir)], ids=["folder", "pipe"])
@pytest.mark.parametrize("is_link", [False, True])
def test_only_regular_files_are_read(make, is_link, tmp_path):
    """Opening the pipe would wait for ever."""
    make(tmp_path / "target")
    path = tmp_path / "3.png"
    path.symlink_to("target") if is_link else make(path)
    with pytest.raises(ValueError, match="3.png: not a regular file"):
        image_file.read(path, H, W)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("turn", [None, *Image.Transpose])
def test_an_image_is_turned_as_its_metadata_say(turn, kind, tmp_path):
    """Orientation N of EXIF is the transposition that is to be applied to the stored pixels."""
    orientations = {None: 1, Image.Transpose.FLIP_LEFT_RIGHT: 2, Image.Transpose.ROTATE_180: 3,
                    Image.Transpose.FLIP_TOP_BOTTOM: 4, Image.Transpose.TRANSPOSE: 5, Image.Transpose.ROTATE_270: 6,
                    Image.Transpose.TRANSVERSE: 7, Image.Transpose.ROTATE_90: 8}
    exif = Image.Exif()
    exif[0x0112] = orientations[turn]
    Image.fromarray(picture()).save(tmp_path / "0.png", kind, exif=exif)
    expected = Image.open(tmp_path / "0.png")
    expected = expected if turn is None else expected.transpose(turn)
    assert np.array_equal(image_file.read(tmp_path / "0.png", expected.height, expected.width), np.asarray(expected))


def test_16_bits_and_transparency_survive_a_turn(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 2**16, (H, W), dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "0.png", exif=exif)
    expected = np.rot90(pixels, -1)[..., None] // 256
    assert np.array_equal(image_file.read(tmp_path / "0.png", W, H), np.broadcast_to(expected, (W, H, 3)))
    Image.new("P", (W, H), 0).save(tmp_path / "1.png", transparency=0, exif=exif)
    with pytest.raises(ValueError, match="1.png: .*transparent"):
        image_file.read(tmp_path / "1.png", W, H)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [50_000, 10_000])  # beyond Pillow's limits for an error and for a warning
def test_a_small_file_that_claims_an_absurd_size_is_refused(side, tmp_path):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    (tmp_path / "0.png").write_bytes(PNG_SIGNATURE + png_chunk(b"IHDR", header) + struct.pack(">I", 9) + b"IDAT")
    with pytest.raises(ValueError, match="0.png: it claims more than"):
        image_file.read(tmp_path / "0.png", H, W)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "EPS"])
def test_another_format_named_png_is_refused(kind, tmp_path):
    """A GIF file can hold many frames; an EPS file is a program."""
    Image.fromarray(picture()).save(tmp_path / "0.png", kind)
    with pytest.raises(ValueError, match="0.png: not a PNG image"):
        image_file.read(tmp_path / "0.png", H, W)


def test_a_jpeg_named_png_is_read(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "0.png", "JPEG")
    assert np.array_equal(image_file.read(tmp_path / "0.png", H, W), np.asarray(Image.open(tmp_path / "0.png")))
