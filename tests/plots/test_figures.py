"""python -m pytest tests/test_figures.py"""
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from modules.evaluation.metrics import psnr, to_uint8
from modules.plots import comparison, curves, style, video

NAN = math.nan


def make_history(epochs: int, validate_every: int = 1, lost: tuple[int, ...] = ()) -> list[dict]:
    history = []
    for epoch in range(epochs):
        mse = math.exp(-epoch / 10)
        row = {"epoch": epoch, "train_loss": mse + 0.1, "train_mse": mse, "train_kl": 0.2, "beta": 0.5,
               "tfr": 1 - epoch / epochs, "tf_used": float(epoch % 3 == 0), "lr": 1e-3, "val_loss": None,
               "val_psnr": None}
        if epoch % validate_every == 0:
            row |= {"val_loss": mse / 10, "val_psnr": 20.0 + epoch}
        if epoch in lost:
            row |= {"train_loss": NAN, "train_mse": NAN, "val_loss": NAN, "val_psnr": NAN}
        history.append(row)
    return history


HISTORIES = {
    "full": make_history(60),
    "one row": make_history(1),
    "NaN": make_history(12, lost=(3, 4, 8)),
    "only NaN": make_history(3, lost=(0, 1, 2)),
    "validation every 5": make_history(23, validate_every=5),
    "no validation": [row | {"val_loss": None, "val_psnr": None} for row in make_history(8)],
    "zero and infinite": [row | {"train_loss": math.inf, "val_loss": 0.0} for row in make_history(4)],
    "empty": [],
}


def colours(path) -> dict[str, int]:
    """How many pixels a picture has of each colour."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.int64).reshape(-1, 3) @ [1 << 16, 1 << 8, 1]
    values, counts = np.unique(pixels, return_counts=True)
    return {f"#{value:06X}": int(count) for value, count in zip(values, counts, strict=True)}


def make_clip(frames: int, height: int = 32, width: int = 64) -> torch.Tensor:
    """A smooth background before which a bright square moves: (T, 3, H, W) in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    clip = torch.stack([x, y, 0.5 * x + 0.3 * y]).repeat(frames, 1, 1, 1)
    for t in range(frames):
        left = t % (width - 10)
        clip[t, :, 5:15, left : left + 10] = torch.tensor([1.0, 0.8, 0.1]).view(3, 1, 1)
    return clip


def read_gif(path) -> tuple[torch.Tensor, list[int], Image.Image]:
    """Frames uint8 (N, 3, H, W), durations in ms, the picture."""
    picture = Image.open(path)
    frames, durations = [], []
    for frame in ImageSequence.Iterator(picture):
        durations.append(frame.info["duration"])
        frames.append(np.asarray(frame.convert("RGB")))
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), durations, picture


# Plots

@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", HISTORIES)
def test_every_history_can_be_drawn(name, tmp_path):
    least = {"full": 300, "NaN": 300, "one row": 10}.get(name, 0)  # pixels of a curve in its very colour
    for plot, colors in ((curves.plot_losses, (style.BLUE, style.VERMILION, style.GREEN)),
                         (curves.plot_teacher_forcing, (style.PURPLE, style.ORANGE, style.BLUE))):
        plot(HISTORIES[name], tmp_path / "figures" / "plot.png")
        assert [path.name for path in (tmp_path / "figures").iterdir()] == ["plot.png"]
        with Image.open(tmp_path / "figures" / "plot.png") as picture:
            assert picture.width > 800 and picture.height > 500
        seen = colours(tmp_path / "figures" / "plot.png")
        assert len(seen) > 10
        assert all(seen.get(colour, 0) >= least for colour in colors)


@pytest.fixture
def panels(monkeypatch):
    """The panels of the last plot, looked at just before it is saved."""
    seen = SimpleNamespace(axes=[])
    finish = style._finish

    def spy(figure, axes, *args, **kwargs):
        seen.axes = axes
        finish(figure, axes, *args, **kwargs)

    for module in (curves, comparison):
        monkeypatch.setattr(module, "_finish", spy)
    return seen


def labels_of(panel) -> list[str]:
    return [text.get_text() for text in panel.get_legend().get_texts()]


def test_losses_are_labelled_honestly(panels, tmp_path):
    curves.plot_losses(make_history(20), tmp_path / "loss.png")
    loss, quality = panels.axes
    assert loss.get_yscale() == "log" and quality.get_yscale() == "linear"
    assert any("sum over a clip" in label and "objective" in label for label in labels_of(loss))
    assert any("validation" in label and "mean per frame" in label for label in labels_of(loss))
    assert "best: 39.00 dB in epoch 19" in labels_of(quality)
    assert quality.get_ylabel() == "PSNR (dB)" and quality.get_xlabel() == "epoch"


def test_validation_is_drawn_only_where_it_happened(panels, tmp_path):
    curves.plot_losses(make_history(23, validate_every=5), tmp_path / "loss.png")
    line = next(line for line in panels.axes[0].get_lines() if "validation" in line.get_label())
    assert list(line.get_xdata()) == [0, 5, 10, 15, 20]


def test_numbers_that_are_not_finite_are_marked(panels, tmp_path):
    curves.plot_losses(HISTORIES["NaN"], tmp_path / "loss.png")
    for panel in panels.axes:
        line = next(line for line in panel.get_lines() if line.get_label() == "not a finite number")
        assert list(line.get_xdata()) == [3, 4, 8]


def test_epochs_with_teacher_forcing_are_shaded(panels, tmp_path):
    history = make_history(12)
    for row in history:
        row["tf_used"] = float(row["epoch"] in (0, 1, 2, 5, 9))
    curves.plot_teacher_forcing(history, tmp_path / "forcing.png")
    for panel in panels.axes:
        spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in panel.patches]
        assert spans == [(-0.5, 2.5), (4.5, 5.5), (8.5, 9.5)]
    assert labels_of(panels.axes[0]).count("epochs that used teacher forcing") == 1


@pytest.mark.filterwarnings("error")
def test_psnr_curves_start_at_frame_1_and_name_their_mean(panels, tmp_path):
    lines = {"prediction": torch.tensor([30.0, 25.0, 26.93]), "repeat first frame": [20.0, 18.0]}
    curves.plot_psnr(lines, tmp_path / "psnr.png", "PSNR per frame")
    panel = panels.axes[0]
    assert labels_of(panel) == ["prediction, mean 27.31 dB", "repeat first frame, mean 19.00 dB"]
    assert list(panel.get_lines()[0].get_xdata()) == [1, 2, 3]
    for lines in ({}, {"nothing": []}, {"lost": [NAN, NAN]}, {"one": [25.0]}):
        curves.plot_psnr(lines, tmp_path / "psnr.png", "PSNR per frame")


def test_a_long_roll_out_shows_its_slope_and_its_brightness_below(panels, tmp_path):
    falling = torch.linspace(30, 24, 601)
    curves.plot_psnr({"a": falling, "b": falling[:50]}, tmp_path / "p.png", "P", {"a": falling / 100, "b": [0.1] * 50})
    above, below = panels.axes
    assert labels_of(above)[0] == "a, mean 27.00 dB, slope -6.0"
    assert "slope" not in labels_of(above)[1]
    lines = [line for line in below.get_lines() if len(line.get_xdata()) > 2]
    assert [len(line.get_xdata()) for line in lines] == [601, 50]
    assert [line.get_color() for line in lines] == [line.get_color() for line in above.get_lines()]


def test_a_writer_that_fails_leaves_the_old_picture_and_no_rubbish(monkeypatch, tmp_path):
    path = tmp_path / "plot.png"
    path.write_bytes(b"the old picture")

    def fail(figure, file, format):
        file.write_bytes(b"half a picture")
        raise ZeroDivisionError

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(ZeroDivisionError):
        curves.plot_losses(make_history(3), path)
    assert path.read_bytes() == b"the old picture"
    assert [child.name for child in tmp_path.iterdir()] == ["plot.png"]


def test_figures_load_without_matplotlib_and_av():
    code = ("import sys, modules.plots.curves, modules.plots.video; "
            "assert not {'matplotlib', 'av', 'torchmetrics'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)


# Plots that compare runs

COMPARISONS = [comparison.compare_losses, comparison.compare_schedules, comparison.compare_quality]
NAMES = ["_a$b$", "c^{_" * 30, "\\frac", "d" * 200]  # nothing in a name may be read as mathematics


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("plot", COMPARISONS)
def test_any_set_of_histories_can_be_compared(plot, tmp_path):
    plot(HISTORIES, tmp_path / "plot.png")
    seen = colours(tmp_path / "plot.png")
    assert seen[style.BLUE] > 500  # the first one, "full"
    plot({name: make_history(4) for name in NAMES}, tmp_path / "plot.png")
    plot({"empty": []}, tmp_path / "plot.png")


@pytest.mark.filterwarnings("error")
def test_psnr_per_frame_of_runs_that_did_not_record_it(panels, tmp_path):
    moments = {"best epoch": {"a": (7, [30.0, 20.0, math.inf]), "b": None, "c": (0, [NAN])},
               "epoch 3": {"a": None, "b": None, "c": (3, [21.0])}}
    comparison.compare_psnr_per_frame(moments, tmp_path / "plot.png")
    first, second = map(labels_of, panels.axes)
    assert first[1] == "b, not recorded" and second[2] == "c, epoch 3, mean 21.00 dB"
    assert list(panels.axes[0].get_lines()[0].get_xdata()) == [1, 2, 3]
    assert panels.axes[0].get_lines()[2].get_color() == panels.axes[1].get_lines()[2].get_color()  # run c


def test_more_runs_than_colours_are_told_apart(panels, tmp_path):
    runs = {f"run {index}": make_history(3) for index in range(20)}
    comparison.compare_losses(runs, tmp_path / "plot.png")
    for panel in panels.axes:
        looks = [(line.get_color(), line.get_linestyle()) for line in panel.get_lines()]
        assert len(looks) == len(set(looks)) == 20
        assert looks == [(line.get_color(), line.get_linestyle()) for line in panels.axes[0].get_lines()]


def test_compared_losses_stand_apart_on_log_scales(panels, tmp_path):
    comparison.compare_losses({"a": make_history(9), "b": make_history(30)}, tmp_path / "plot.png")
    assert [panel.get_yscale() for panel in panels.axes] == ["log"] * 4
    titles = [panel.get_title(loc="left") for panel in panels.axes]
    for title, words in zip(titles, ("training loss", "MSE", "KL", "validation loss"), strict=True):
        assert words in title
    assert [list(line.get_xdata()) for line in panels.axes[3].get_lines()] == [list(range(9)), list(range(30))]


def test_epochs_with_teacher_forcing_are_a_row_of_bars_for_each_run(panels, tmp_path):
    half = make_history(6)
    for row in half:
        row["tf_used"] = 0.5 if row["epoch"] in (2, 3) else 0.0
    comparison.compare_schedules({"a": make_history(4), "half": half, "none yet": []}, tmp_path / "plot.png")
    assert panels.axes[0].get_yscale() == "linear"  # equal weights
    bars = panels.axes[2]
    heights = [[value - patch.get_data().baseline for value in patch.get_data().values] for patch in bars.patches]
    assert heights[0] == pytest.approx([0.85, 0, 0, 0.85])  # epochs 0 and 3 of make_history
    assert heights[1] == pytest.approx([0, 0, 0.425, 0.425, 0, 0])
    assert [patch.get_data().baseline for patch in bars.patches] == [2, 1]  # the rows, in the order of the legend
    assert [patch.get_data().edges[0] for patch in bars.patches] == [-0.5, -0.5]


def test_weights_of_different_size_are_both_seen(panels, tmp_path):
    small = [row | {"beta": 1e-5} for row in make_history(5)]
    comparison.compare_schedules({"a": make_history(5), "small": small}, tmp_path / "plot.png")
    assert panels.axes[0].get_yscale() == "log"


def test_best_epoch_passes_over_what_is_not_finite():
    assert comparison.best(HISTORIES["NaN"], "val_psnr") == (11, 31.0)
    assert comparison.best(HISTORIES["only NaN"], "val_psnr") is None
    assert comparison.best(HISTORIES["no validation"], "val_psnr") is None


# Tiles

def test_tile_puts_clips_side_by_side():
    truth, prediction = make_clip(3), 1 - make_clip(3)
    tiled = video.tile(truth, to_uint8(prediction))
    assert tiled.dtype == torch.uint8 and tiled.shape == (3, 3, 32, 64 + video.SEPARATOR + 64)
    assert torch.equal(tiled[..., :64], to_uint8(truth))
    assert torch.equal(tiled[..., -64:], to_uint8(prediction))
    assert (tiled[..., 64:-64] == 128).all()


def test_tile_writes_labels_above_enlarged_clips():
    clip = make_clip(2)
    tiled = video.tile(clip, clip, labels=["truth", "prediction"])
    assert torch.equal(tiled[:, :, -128:, :256], video._enlarge(to_uint8(clip)))
    for band in (tiled[:, :, :-128, :256], tiled[:, :, :-128, -256:]):
        assert (band == 255).float().mean() > 0.7 and (band < 60).sum() > 50  # black letters on white


def test_tile_refuses_clips_that_do_not_match():
    with pytest.raises(ValueError, match="one length and one height"):
        video.tile(make_clip(2), make_clip(3))
    with pytest.raises(ValueError, match="one length and one height"):
        video.tile(make_clip(2), make_clip(2, height=16))
    with pytest.raises(ValueError, match="1 labels for 2 clips"):
        video.tile(make_clip(2), make_clip(2), labels=["truth"])
    with pytest.raises(ValueError, match="at least one"):
        video.tile()
    with pytest.raises(ValueError, match="NaN"):
        video.tile(make_clip(2) * NAN)


# GIF

def test_gif_shows_every_frame_once_and_loops_for_ever(tmp_path):
    clip = make_clip(30)
    video.write_gif(clip, tmp_path / "clip.gif", fps=20)
    frames, durations, picture = read_gif(tmp_path / "clip.gif")
    assert picture.info["loop"] == 0
    assert durations == [50] * 30
    assert frames.shape == (30, 3, 128, 256)
    assert psnr(frames, video._enlarge(to_uint8(clip)), 255).min() > 35  # the right frame at each place
    assert not torch.equal(frames[0], frames[1])


@pytest.mark.parametrize("fps", [7, 12.5, 20, 24, 30, 50])
@pytest.mark.parametrize("repeat", [1, 3], ids=["moving", "each frame three times"])
def test_gif_lasts_as_long_as_the_clip(fps, repeat, tmp_path):
    clip = make_clip(10).repeat_interleave(repeat, dim=0)
    video.write_gif(clip, tmp_path / "clip.gif", fps=fps)
    durations = read_gif(tmp_path / "clip.gif")[1]
    assert abs(sum(durations) - 1000 * len(clip) / fps) <= 5
    assert max(durations) - min(durations) <= 10


@pytest.mark.parametrize("frames", [1, 8])
def test_gif_of_a_still_clip_keeps_its_duration(frames, tmp_path):
    video.write_gif(make_clip(1).repeat(frames, 1, 1, 1), tmp_path / "clip.gif", fps=20)
    shown, durations, _ = read_gif(tmp_path / "clip.gif")
    assert len(shown) == 1 and durations == [50 * frames]


def test_gif_does_not_flicker_where_nothing_moves(tmp_path):
    clip = make_clip(20)
    video.write_gif(clip, tmp_path / "clip.gif")
    frames = read_gif(tmp_path / "clip.gif")[0]
    assert (frames[:, :, 64:] == frames[:1, :, 64:]).all()  # below the square


def test_gif_keeps_few_colours_exactly(tmp_path):
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(256, (200, 3), generator=generator, dtype=torch.uint8)
    clip = table[torch.randint(200, (4, 128, 40), generator=generator)].permute(0, 3, 1, 2)
    video.write_gif(clip, tmp_path / "clip.gif")
    frames = read_gif(tmp_path / "clip.gif")[0]
    assert frames.shape == clip.shape  # 128 high already: as it is
    assert (frames.int() - clip.int()).abs().float().mean() < 1


@pytest.mark.parametrize("fps", [0, -1, 51, NAN])
def test_gif_refuses_a_frame_rate_that_viewers_do_not_keep(fps, tmp_path):
    with pytest.raises(ValueError, match="at most 50"):
        video.write_gif(make_clip(2), tmp_path / "clip.gif", fps=fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [video.write_gif, video.write_mp4])
def test_what_is_no_clip_is_refused(write, tmp_path):
    for wrong in (torch.zeros(3, 32, 64), torch.zeros(2, 1, 32, 64), torch.zeros(0, 3, 32, 64)):
        with pytest.raises(ValueError, match="A clip has shape"):
            write(wrong, tmp_path / "clip")
    with pytest.raises(ValueError, match="NaN"):
        write(make_clip(2) * NAN, tmp_path / "clip")
    assert not list(tmp_path.iterdir())


def test_side_by_side_gif_has_all_three_clips(tmp_path):
    truth, prediction, poses = make_clip(3), 1 - make_clip(3), torch.zeros(3, 3, 32, 64)
    video.side_by_side_gif(truth, prediction, poses, tmp_path / "side.gif")
    frames, durations, _ = read_gif(tmp_path / "side.gif")
    expected = video.tile(truth, prediction, poses, labels=["truth", "prediction", "pose"])
    assert sum(durations) == 150 and frames.shape == expected.shape
    assert psnr(frames, expected, 255).min() > 33


def test_a_shrunk_gif_has_the_models_own_pixels_and_no_labels(tmp_path):
    truth, prediction, poses = make_clip(20), 1 - make_clip(20), torch.zeros(20, 3, 32, 64)
    video.side_by_side_gif(truth, prediction, poses, tmp_path / "side.gif", fps=12.5)
    (tmp_path / "small.gif").write_bytes(video.shrink_gif(tmp_path / "side.gif", labelled=True))
    frames, durations, picture = read_gif(tmp_path / "small.gif")
    assert durations == read_gif(tmp_path / "side.gif")[1] and picture.info["loop"] == 0
    line = torch.full((20, 3, 32, 1), 128, dtype=torch.uint8)
    parts = [to_uint8(truth), line, to_uint8(prediction), line, to_uint8(poses)]
    assert psnr(frames, torch.cat(parts, dim=3), 255).min() > 30
    assert (tmp_path / "small.gif").stat().st_size < (tmp_path / "side.gif").stat().st_size / 1.5


def test_a_gif_that_was_not_enlarged_keeps_its_size(tmp_path):
    clip = torch.rand(3, 3, 130, 40, generator=torch.Generator().manual_seed(0))
    video.write_gif(clip, tmp_path / "clip.gif")
    (tmp_path / "same.gif").write_bytes(video.shrink_gif(tmp_path / "clip.gif", labelled=False))
    assert read_gif(tmp_path / "same.gif")[0].shape == clip.shape


# MP4

def read_mp4(path) -> tuple[torch.Tensor, SimpleNamespace]:
    import av
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        info = SimpleNamespace(codec=stream.codec_context.name, format=stream.codec_context.pix_fmt,
                               rate=float(stream.average_rate), seconds=container.duration / 1e6)
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), info


@pytest.mark.parametrize("fps", [20, 12.5])
def test_mp4_holds_every_frame(fps, tmp_path):
    clip = make_clip(25)
    video.write_mp4(clip, tmp_path / "clip.mp4", fps=fps)
    frames, info = read_mp4(tmp_path / "clip.mp4")
    assert info.codec == "h264" and info.format == "yuv420p" and info.rate == fps
    assert info.seconds == pytest.approx(25 / fps, abs=0.02)
    assert frames.shape == (25, 3, 128, 256)
    assert psnr(frames, video._enlarge(to_uint8(clip)), 255).min() > 35
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_mp4_of_an_odd_size_repeats_the_last_line_and_moves_nothing(tmp_path):
    clip = torch.zeros(1, 3, 131, 77)
    clip[:, :, 100:] = 1.0  # a picture that was stretched instead would have its edge a line lower
    clip[:, :, :, 60:] = 0.5
    video.write_mp4(clip, tmp_path / "clip.mp4")
    frames, _ = read_mp4(tmp_path / "clip.mp4")
    assert frames.shape == (1, 3, 132, 78)
    assert psnr(frames[:, :, :131, :77], to_uint8(clip), 255).min() > 40
    assert (frames[:, :, 131].int() - frames[:, :, 130].int()).abs().max() < 8


def test_mp4_falls_back_where_libx264_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(video, "H264", "no_such_codec")
    clip = make_clip(5)
    video.write_mp4(clip, tmp_path / "clip.mp4")
    frames, info = read_mp4(tmp_path / "clip.mp4")
    assert info.codec == "mpeg4" and len(frames) == 5
    assert psnr(frames, video._enlarge(to_uint8(clip)), 255).min() > 33


@pytest.mark.parametrize("fps", [0, -5, math.inf, NAN])
def test_mp4_refuses_a_frame_rate_that_is_none(fps, tmp_path):
    with pytest.raises(ValueError, match="frames per second"):
        video.write_mp4(make_clip(2), tmp_path / "clip.mp4", fps=fps)
