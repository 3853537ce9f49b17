"""python -m pytest tests/plots/test_video.py"""
import math
import resource
import signal
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from modules.evaluation.metrics import psnr, to_uint8
from modules.plots import video

NAN = math.nan


def make_clip(frames: int, height: int = 32, width: int = 64) -> torch.Tensor:
    """A bright square moving over a smooth static background: (T, 3, H, W) in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    clip = torch.stack([x, y, 0.5 * x + 0.3 * y]).repeat(frames, 1, 1, 1)
    for t in range(frames):
        left = t % (width - 10)
        clip[t, :, 5:15, left : left + 10] = torch.tensor([1.0, 0.8, 0.1]).view(3, 1, 1)
    return clip


def enlarged(clip: torch.Tensor, factor: int = 4) -> torch.Tensor:
    return to_uint8(clip).repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def read_gif(path) -> SimpleNamespace:
    """frames: uint8 (N, 3, H, W); durations in ms; loop: 0 for endless."""
    with Image.open(path) as picture:
        loop, frames, durations = picture.info.get("loop"), [], []
        for frame in ImageSequence.Iterator(picture):
            durations.append(frame.info["duration"])
            frames.append(np.asarray(frame.convert("RGB")))
    frames = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    return SimpleNamespace(frames=frames, durations=durations, loop=loop)


def read_mp4(path) -> SimpleNamespace:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return SimpleNamespace(frames=torch.from_numpy(frames).permute(0, 3, 1, 2), codec=stream.codec_context.name,
                               format=stream.codec_context.pix_fmt, fps=float(stream.average_rate),
                               seconds=container.duration / 1e6)


# Tiles

def test_tile_places_clips_side_by_side():
    truth, prediction = make_clip(3), 1 - make_clip(3, width=40)
    tiled = video.tile(truth, to_uint8(prediction))
    assert tiled.dtype == torch.uint8 and tiled.shape == (3, 3, 32, 64 + video.SEPARATOR + 40)
    assert torch.equal(tiled[..., :64], to_uint8(truth))
    assert torch.equal(tiled[..., -40:], to_uint8(prediction))
    assert (tiled[..., 64:-40] == 128).all()


def test_tile_writes_labels_above_enlarged_clips():
    clip = make_clip(2)
    tiled = video.tile(clip, clip, labels=["truth", "prediction"])
    assert torch.equal(tiled[:, :, -128:, :256], enlarged(clip))
    for band in (tiled[:, :, :-128, :256], tiled[:, :, :-128, -256:]):
        assert (band == 255).float().mean() > 0.7 and (band < 60).sum() > 50  # black text on white


@pytest.mark.parametrize("clips, labels, message", [
    ([make_clip(2), make_clip(3)], None, "length"),
    ([make_clip(2), make_clip(2, height=16)], None, "height"),
    ([make_clip(2), make_clip(2)], ["truth"], "1 labels for 2 clips"),
    ([], None, "at least one"),
    ([make_clip(2) * NAN], None, "NaN"),
])
def test_tile_rejects_clips_that_do_not_match(clips, labels, message):
    with pytest.raises(ValueError, match=message):
        video.tile(*clips, labels=labels)


# GIF

def test_gif_shows_every_frame_in_order_and_loops_forever(tmp_path):
    clip = make_clip(30)
    video.write_gif(clip, tmp_path / "clip.gif", fps=20)
    gif = read_gif(tmp_path / "clip.gif")
    assert gif.loop == 0 and gif.durations == [50] * 30
    assert gif.frames.shape == (30, 3, 96, 192)
    assert psnr(gif.frames, enlarged(clip, 3), 255).min() > 35
    assert (gif.frames[:, :, 48:] == gif.frames[:1, :, 48:]).all()  # the static part does not flicker
    assert [path.name for path in tmp_path.iterdir()] == ["clip.gif"]


def test_gif_of_noise_does_not_flicker_where_it_is_static(tmp_path):
    clip = torch.rand(4, 3, 128, 40, generator=torch.Generator().manual_seed(0))
    clip[1:, :, :64] = clip[:1, :, :64]  # the upper half is static
    video.write_gif(clip, tmp_path / "clip.gif")
    frames = read_gif(tmp_path / "clip.gif").frames
    assert frames.shape == clip.shape  # already 128 pixels high
    assert psnr(frames, to_uint8(clip), 255).min() > 15
    assert (frames[:, :, :64] == frames[:1, :, :64]).all()


def test_gif_holds_the_mean_colour_of_pixels_that_hardly_change(tmp_path):
    """Noise of the prediction would flicker and take most of the bytes; a jump must be seen at once."""
    noise = torch.randint(-4, 5, (40, 3, 96, 40), generator=torch.Generator().manual_seed(0))
    clip = (120 + noise).to(torch.uint8)
    clip[25:, :, :48] += 40
    video.write_gif(clip, tmp_path / "clip.gif")
    gif = read_gif(tmp_path / "clip.gif")
    assert gif.durations == [1250, 750]  # two pictures
    expected = torch.cat([clip[:25].float().mean(0).round()[None], clip[25:].float().mean(0).round()[None]])
    expected[:, :, 48:] = clip[:, :, 48:].float().mean(0).round()
    assert (gif.frames - expected).abs().max() <= 2


def test_gif_follows_a_slow_change(tmp_path):
    clip = torch.linspace(0, 255, 128).round().to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 96, 8)
    video.write_gif(clip, tmp_path / "clip.gif")
    gif = read_gif(tmp_path / "clip.gif")
    frames = gif.frames.repeat_interleave(torch.tensor(gif.durations) // 50, dim=0)
    assert (frames.int() - clip.int()).abs().max() <= video.GIF_TOLERANCE // 2 + 1


def test_colours_are_held_in_bands_that_bound_memory(monkeypatch):
    clip = make_clip(6)
    whole = video._hold_colours(to_uint8(clip))
    monkeypatch.setattr(video, "HELD_PIXELS", 6 * 64 * 5)
    assert torch.equal(video._hold_colours(to_uint8(clip)), whole)


def test_gif_keeps_a_small_number_of_colours(tmp_path):
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(256, (200, 3), generator=generator, dtype=torch.uint8)
    clip = table[torch.randint(200, (4, 128, 40), generator=generator)].permute(0, 3, 1, 2)
    video.write_gif(clip, tmp_path / "clip.gif")
    assert (read_gif(tmp_path / "clip.gif").frames.int() - clip.int()).abs().float().mean() < 1


@pytest.mark.parametrize("fps", [7, 12.5, 24, 30, 50])
@pytest.mark.parametrize("repeat", [1, 3], ids=["moving", "each frame three times"])
def test_gif_lasts_as_long_as_the_clip(fps, repeat, tmp_path):
    clip = make_clip(10).repeat_interleave(repeat, dim=0)
    video.write_gif(clip, tmp_path / "clip.gif", fps=fps)
    durations = read_gif(tmp_path / "clip.gif").durations
    assert abs(sum(durations) - 1000 * len(clip) / fps) <= 5
    assert max(durations) - min(durations) <= 10


@pytest.mark.parametrize("frames", [1, 8])
def test_gif_of_a_static_clip_keeps_its_duration(frames, tmp_path):
    video.write_gif(make_clip(1).repeat(frames, 1, 1, 1), tmp_path / "clip.gif", fps=20)
    gif = read_gif(tmp_path / "clip.gif")
    assert len(gif.frames) == 1 and gif.durations == [50 * frames]


def test_side_by_side_has_all_three_clips(tmp_path):
    truth, prediction, poses = clips = make_clip(3), 1 - make_clip(3), torch.zeros(3, 3, 32, 64)
    video.side_by_side_gif(*clips, tmp_path / "side.gif")
    video.side_by_side_mp4(*clips, tmp_path / "side.mp4")
    gif, mp4 = read_gif(tmp_path / "side.gif"), read_mp4(tmp_path / "side.mp4")
    for shown, height in ((gif, 96), (mp4, 128)):
        expected = video.tile(truth, prediction, poses, labels=["truth", "prediction", "pose"], min_height=height)
        assert shown.frames.shape == expected.shape and psnr(shown.frames, expected, 255).min() > 33
    assert sum(gif.durations) == 150 and mp4.seconds == pytest.approx(0.15, abs=0.02)


def test_shrink_gif_restores_the_models_resolution_without_labels(tmp_path):
    truth, prediction, poses = make_clip(20), 1 - make_clip(20), torch.zeros(20, 3, 32, 64)
    large, small = tmp_path / "large.gif", tmp_path / "small.gif"
    video.side_by_side_gif(truth, prediction, poses, large, fps=12.5)
    small.write_bytes(video.shrink_gif(large, labelled=True))
    gif = read_gif(small)
    assert gif.durations == read_gif(large).durations and gif.loop == 0
    line = torch.full((20, 3, 32, 1), 128, dtype=torch.uint8)
    parts = [to_uint8(truth), line, to_uint8(prediction), line, to_uint8(poses)]
    assert psnr(gif.frames, torch.cat(parts, dim=3), 255).min() > 30
    assert small.stat().st_size < large.stat().st_size / 1.3


def test_shrink_gif_keeps_the_size_of_a_gif_that_was_not_enlarged(tmp_path):
    clip = torch.rand(3, 3, 130, 40, generator=torch.Generator().manual_seed(0))
    video.write_gif(clip, tmp_path / "clip.gif")
    (tmp_path / "same.gif").write_bytes(video.shrink_gif(tmp_path / "clip.gif", labelled=False))
    assert read_gif(tmp_path / "same.gif").frames.shape == clip.shape


# MP4

@pytest.mark.parametrize("fps", [20, 12.5])
def test_mp4_has_every_frame(fps, tmp_path):
    clip = make_clip(25)
    video.write_mp4(clip, tmp_path / "clip.mp4", fps=fps)
    mp4 = read_mp4(tmp_path / "clip.mp4")
    assert mp4.codec == "h264" and mp4.format == "yuv420p" and mp4.fps == fps
    assert mp4.seconds == pytest.approx(25 / fps, abs=0.02)
    assert mp4.frames.shape == (25, 3, 128, 256)
    assert psnr(mp4.frames, enlarged(clip), 255).min() > 35
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_mp4_quality_is_above_the_default_of_the_encoder(tmp_path):
    clip = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0)).mean(1, keepdim=True)
    clip = clip.expand(3, 3, 128, 128)  # grey noise: its quality depends on the rate alone
    video.write_mp4(clip, tmp_path / "clip.mp4")
    frames = read_mp4(tmp_path / "clip.mp4").frames
    assert psnr(frames, to_uint8(clip), 255).mean() > 35  # libx264 without options: 29.5


def test_mp4_of_odd_size_repeats_the_last_line(tmp_path):
    clip = torch.zeros(1, 3, 131, 77)
    clip[:, :, 100:] = 1.0  # resizing instead would move this edge
    clip[:, :, :, 60:] = 0.5
    video.write_mp4(clip, tmp_path / "clip.mp4")
    frames = read_mp4(tmp_path / "clip.mp4").frames
    assert frames.shape == (1, 3, 132, 78)
    assert psnr(frames[:, :, :131, :77], to_uint8(clip), 255).min() > 40
    assert (frames[:, :, 131].int() - frames[:, :, 130].int()).abs().max() < 8


def test_mp4_without_libx264(monkeypatch, tmp_path):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    clip = make_clip(5)
    video.write_mp4(clip, tmp_path / "clip.mp4")
    mp4 = read_mp4(tmp_path / "clip.mp4")
    assert mp4.codec == "mpeg4" and len(mp4.frames) == 5
    assert psnr(mp4.frames, enlarged(clip), 255).min() > 33


# Errors

@pytest.mark.parametrize("write, fps", [(video.write_gif, 0), (video.write_gif, 51), (video.write_gif, NAN),
                                        (video.write_mp4, 0), (video.write_mp4, math.inf), (video.write_mp4, NAN)])
def test_invalid_frame_rates_are_rejected(write, fps, tmp_path):
    with pytest.raises(ValueError, match="fps"):
        write(make_clip(2), tmp_path / "clip", fps=fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [video.write_gif, video.write_mp4])
def test_invalid_clips_are_rejected(write, tmp_path):
    for clip in (torch.zeros(3, 32, 64), torch.zeros(2, 1, 32, 64), torch.zeros(0, 3, 32, 64)):
        with pytest.raises(ValueError, match="shape"):
            write(clip, tmp_path / "clip")
    with pytest.raises(ValueError, match="NaN"):
        write(make_clip(2) * NAN, tmp_path / "clip")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [video.write_gif, video.write_mp4])
def test_a_full_disk_is_an_os_error_and_keeps_the_previous_file(write, tmp_path):
    """A limit on the size of files stands for a full disk."""
    path = tmp_path / "clip"
    path.write_bytes(b"previous")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=str(path)):
            write(make_clip(2), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"previous" and len(list(tmp_path.iterdir())) == 1
