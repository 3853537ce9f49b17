"""The parts of an HTML page that needs no other file: tables, pictures, videos, style."""
import base64
import io
import itertools
from collections.abc import Callable, Container, Iterable
from html import escape
from pathlib import Path

from PIL import Image

from modules.plots import video
from run_reader import printable, read_bytes

MAX_POSTER_FRAMES = 2000  # decoded at most to find the middle of a video
READ_ERRORS = (OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError)

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 70rem; margin: 0 auto;
       padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top;
         min-width: 4rem; max-width: 12rem; overflow-wrap: break-word; }
td:first-child { min-width: 8rem; } .number { text-align: right; } td.number, .whole { white-space: nowrap; }
.grid { display: grid; gap: 1.5rem; align-items: start;
        grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 0; } figcaption { font-size: .9rem; } img, video { max-width: 100%; height: auto; display: block; }
.pixels { image-rendering: pixelated; width: 100%; } .poster { display: none; }
.plot { max-width: 48rem; }
.columns { columns: 30rem; column-gap: 1.5rem; } .columns figure { break-inside: avoid; margin-bottom: 1.5rem; }
.text { max-width: 48rem; } .text table { margin: 1rem 0; } blockquote { margin-left: 0; padding-left: 1rem;
        border-left: 3px solid #ddd; }
.math { font-family: ui-serif, serif; font-style: italic; }
pre { white-space: pre-wrap; background: #f4f4f4; padding: .6rem; font-size: .85rem; }
summary { cursor: pointer; padding: .4rem 0; } .note { color: #555; font-size: .9rem; }
.line { display: inline-block; width: 1.1rem; margin-right: .4rem; vertical-align: middle; border-top: 3px; }
@page { size: A4; margin: 12mm; }
@media print {
  html { font-size: 11px; } body { font-size: 1rem; max-width: none; padding: 0; print-color-adjust: exact; }
  h2 { margin-top: 1.5rem; } h1, h2, h3, h2 + p { break-after: avoid; }
  figure, table, tr, blockquote { break-inside: avoid; } p { orphans: 3; widows: 3; }
  .scroll { overflow: visible; } th, td { padding: .2rem .4rem; min-width: 0; } td:first-child { min-width: 5rem; }
  .columns { columns: 2; } .columns figure { margin-bottom: .8rem; }
  .plot { max-width: 60%; } .columns .plot, .grid .plot, .text { max-width: none; }
  .grid { grid-template-columns: 1fr 1fr; gap: .8rem; }
  details:not([open]), h2:has(+ details:not([open])), .moving { display: none; } .poster { display: block; }
}
"""


def data_address(kind: str, content: bytes) -> str:
    """A data: address, which holds the content itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def embed_plot(path: Path, alt: str) -> str:
    """A PNG, embedded in the page, or a line on why it is missing. ``alt`` is plain text."""
    return _embed(path, alt, lambda content: (
        f'<figure class="plot"><img alt="{escape(alt)}" src="{data_address("image/png", content)}"></figure>'))


def embed_gif(path: Path, alt: str, caption: str, labelled: bool = True) -> str:
    """A GIF, embedded in the page at a small size and enlarged by the browser, or a line on why it is missing. On paper
    its middle frame is shown."""
    def show(content: bytes) -> str:
        small, poster = video.shrink_gif(io.BytesIO(content), labelled), io.BytesIO()
        with Image.open(io.BytesIO(small)) as picture:
            picture.seek(picture.n_frames // 2)
            picture.convert("RGB").save(poster, "PNG", optimize=True)
        moving = f'<img class="pixels moving" alt="{escape(alt)}" src="{data_address("image/gif", small)}">'
        return _with_poster(moving, poster.getvalue(), alt, caption)
    return _embed(path, alt, show)


def embed_mp4(path: Path, alt: str, caption: str) -> str:
    """An MP4, embedded in the page, or a line on why it is missing. On paper its middle frame is shown."""
    def show(content: bytes) -> str:
        poster = middle_frame(content)
        moving = (f'<video class="pixels moving" controls muted loop playsinline autoplay aria-label="{escape(alt)}" '
                  f'poster="{data_address("image/png", poster)}" src="{data_address("video/mp4", content)}"></video>')
        return _with_poster(moving, poster, alt, caption)
    return _embed(path, alt, show)


def _with_poster(moving: str, poster: bytes, alt: str, caption: str) -> str:
    return (f'<figure>{moving}<img class="pixels poster" alt="{escape(alt)}" src="{data_address("image/png", poster)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>")


def _embed(path: Path, alt: str, show: Callable[[bytes], str]) -> str:
    try:
        return show(read_bytes(path))
    except FileNotFoundError:
        return lines_of([f"{alt}: no {path.name} yet"])
    except READ_ERRORS as error:
        return lines_of([f"{alt}: {path} cannot be read ({error})"])


def middle_frame(content: bytes) -> bytes:
    """The frame in the middle of an MP4, as a PNG. ValueError: it cannot be decoded."""
    import av  # loads ffmpeg, which only MP4 files need
    picture = io.BytesIO()
    try:
        with av.open(io.BytesIO(content)) as file:
            middle = min(file.streams.video[0].frames // 2, MAX_POSTER_FRAMES)
            frame = next(itertools.islice(file.decode(video=0), middle, None))
            frame.to_image().save(picture, "PNG", optimize=True)
    except (av.error.FFmpegError, IndexError, StopIteration, MemoryError) as error:
        raise ValueError(f"not a video: {error}") from error
    return picture.getvalue()


def table(head: Iterable[str], rows: Iterable[Iterable[str]], numbers: Container[int] = (), name: str = "") -> str:
    """A table that scrolls on narrow screens. Cells are HTML; ``numbers``: right-aligned columns; ``name``: its id."""
    mark = f' id="{name}"' if name else ""
    lines = [f'<div class="scroll"><table{mark}>']
    for tag, row in [("th", head), *(("td", row) for row in rows)]:
        cells = (f'<{tag} class="number">{cell}</{tag}>' if place in numbers else f"<{tag}>{cell}</{tag}>"
                 for place, cell in enumerate(row))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table></div>"])


def section(title: str, *parts: str) -> str:
    """A heading and its parts; nothing where all of them are empty."""
    parts = tuple(filter(None, parts))
    return "\n".join([f"<h2>{escape(title)}</h2>", *parts]) if parts else ""


def lines_of(notes: list[str]) -> str:
    return "".join(f'<p class="note">{escape(printable(note))}</p>\n' for note in notes)
