"""Write one HTML file about training runs: scores, curves, GIFs, settings that differ, commands.

    python scripts/report.py runs/first runs/second -o report.html
    python scripts/report.py runs/* -o report.html --epochs 30 60 --results results/first --title "Annealing"

The file is self-contained: it opens without a network in any browser, also on a phone. Runs may differ in length and
settings, may have crashed or may still be running. --epochs adds the PSNR per frame after these epochs and the GIFs
figures/val_epoch=N.gif; --results adds scores and GIFs of Tester.py.
"""
import base64
import datetime
import json
import sys
import tempfile
from collections.abc import Container, Iterable
from html import escape
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

from compare_runs import (  # noqa: E402
    TABLE,
    Run,
    add_run_flags,
    draw,
    incomparable,
    printable,
    read_runs,
    score_table,
)
from dataloader import natural_order  # noqa: E402
from modules.config.parser import FlagParser  # noqa: E402
from modules.config.trainer_flags import CALL_FLAGS  # noqa: E402
from modules.plots import comparison, video  # noqa: E402
from utils import BadInput, atomic_write, check_writable, run_main  # noqa: E402

NO_SETTINGS = set(CALL_FLAGS) - {"DR"}  # flags of one call, which do not affect the result
RESULT_SCORES = {"psnr": "PSNR", "course_psnr": "PSNR, frames 1..600", "psnr_repeat_first": "repeat first frame",
                 "ssim": "SSIM", "psnr_slope": "slope, dB per 600 frames", "brightness_error": "brightness error",
                 "brightness_error_end": "brightness error at the end",
                 "drift": "drift compared with restarts", "drift_slope": "slope of the drift, dB per 600 frames"}
DRAWN_LINES = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "double"}  # matplotlib's styles in CSS

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
figure { margin: 0; } figcaption { font-size: .9rem; } img { max-width: 100%; height: auto; display: block; }
img.pixels { image-rendering: pixelated; width: 100%; }
.columns { columns: 30rem; column-gap: 1.5rem; } .columns figure { break-inside: avoid; margin-bottom: 1.5rem; }
pre { white-space: pre-wrap; background: #f4f4f4; padding: .6rem; font-size: .85rem; }
summary { cursor: pointer; padding: .4rem 0; } .note { color: #555; font-size: .9rem; }
.line { display: inline-block; width: 1.1rem; margin-right: .4rem; vertical-align: middle; border-top: 3px; }
"""


def embed_plot(path: Path, alt: str) -> str:
    """A PNG, embedded in the page. ``alt`` is plain text."""
    return f'<figure><img alt="{escape(alt)}" src="{_data("image/png", path.read_bytes())}"></figure>'


def embed_gif(path: Path, alt: str, caption: str, labelled: bool = True) -> str:
    """A GIF, embedded in the page at a small size and enlarged by the browser, or a line on why it is missing."""
    try:
        content = video.shrink_gif(path, labelled)
    except FileNotFoundError:
        return lines_of([f"{alt}: no {path.name} yet"])
    except (OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
        return lines_of([f"{alt}: {path} cannot be read ({error})"])
    return (f'<figure><img class="pixels" alt="{escape(alt)}" src="{_data("image/gif", content)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>")


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


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
    return "\n".join([f"<h2>{escape(title)}</h2>", *filter(None, parts)])


def lines_of(notes: list[str]) -> str:
    return "".join(f'<p class="note">{escape(printable(note))}</p>\n' for note in notes)


def scores(runs: list[Run]) -> str:
    rows = []
    for index, (name, *cells, state) in enumerate(score_table(runs)):
        color, style = comparison.run_style(index)
        line = f'<span class="line" style="border-top-style: {DRAWN_LINES[style]}; border-color: {color}"></span>'
        rows.append([line + escape(name), *map(escape, cells), f'<span class="whole">{escape(state)}</span>'])
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes] + incomparable(runs)
    return section("Best scores", table(map(escape, TABLE), rows, range(1, len(TABLE) - 1)),
                   lines_of(["PSNR is the mean over the frames of the free-running validation rollout. Losses are the "
                             "latest.", *notes]))


def curves(runs: list[Run], epochs: list[int]) -> str:
    """The figures of compare_runs.py, drawn in a temporary folder."""
    names = ", ".join(run.name for run in runs)
    with tempfile.TemporaryDirectory() as folder:
        paths, notes = draw(runs, epochs, Path(folder))
        pictures = [embed_plot(path, f"{title} of the runs {names}") for title, path in paths.items()]
    return section("Curves", '<div class="columns">', *pictures, "</div>", lines_of(notes))


def gifs(runs: list[Run], epochs: list[int]) -> str:
    parts = []
    for run in runs:
        parts.append(embed_gif(run.folder / "figures" / "val.gif", f"Validation of {run.name}",
                               f"{run.name}, latest save: truth, prediction, pose"))
        for epoch in epochs:
            path = run.folder / "figures" / f"val_epoch={epoch}.gif"
            if path.is_file():
                parts.append(embed_gif(path, f"Validation of {run.name} after epoch {epoch}",
                                       f"{run.name}, epoch {epoch}: truth, prediction, pose"))
    return section("Validation sequence", '<div class="grid">', *parts, "</div>")


def setting(run: Run, flag: str) -> str:
    value = run.flags.get(flag, "-")
    return value if isinstance(value, str) else json.dumps(value)


def calls_of(run: Run) -> list[dict]:
    """The records of each call of a run in config.json, the latest last."""
    before = run.config.get("before")
    return [call for call in (*(before if isinstance(before, list) else []), run.config)
            if isinstance(call, dict) and call]


def origin(run: Run) -> str | None:
    """The checkpoint from which a fine-tuned run started; later calls continue the run itself."""
    flags = [call["flags"] for call in calls_of(run) if isinstance(call.get("flags"), dict)]
    return next((printable(str(flag.get("ckpt_path"))) for flag in flags if flag.get("finetune")), None)


def flag_cell(flag: str) -> str:
    return f'<span class="whole">--{escape(printable(flag))}</span>'


def settings(runs: list[Run]) -> str:
    """The flags that differ, and, folded away, those that all runs share."""
    known = [run for run in runs if run.flags]
    flags = [flag for flag in dict.fromkeys(flag for run in known for flag in run.flags) if flag not in NO_SETTINGS]
    differing = [flag for flag in flags if len({setting(run, flag) for run in known}) > 1]
    shared = [flag for flag in flags if flag not in differing]
    parts = []
    if any(map(origin, runs)):
        parts.append(table(["run", "starts from the weights of"],
                           [[escape(run.name), escape(origin(run) or "-")] for run in runs], name="origins"))
    if differing:
        rows = [[flag_cell(flag), *(escape(setting(run, flag)) for run in runs)] for flag in differing]
        parts.append(table(["flag", *(escape(run.name) for run in runs)], rows, name="differing"))
    elif len(known) > 1:
        parts.append("<p>The runs have the same settings.</p>")
    if shared:
        rows = [[flag_cell(flag), escape(setting(known[0], flag))] for flag in shared]
        parts.append(f"<details><summary>{len(shared)} settings{' shared by all runs' * (len(known) > 1)}</summary>"
                     f"{table(['flag', 'value'], rows, name='shared')}</details>")
    return section("Settings that differ" if len(runs) > 1 else "Settings", *parts)


def commands(runs: list[Run]) -> str:
    parts = []
    for run in runs:
        calls = calls_of(run)
        parts.append(f"<h3>{escape(run.name)}</h3>")
        if not calls:
            parts.append('<p class="note">unknown: no config.json</p>')
        shown = None
        for call in calls:
            versions = call.get("versions")
            versions = versions if isinstance(versions, dict) else {}
            made_with = ", ".join([*(f"{name} {version}" for name, version in versions.items() if version),
                                   f"commit {call.get('commit') or 'unknown'}"])
            parts.append(lines_of([made_with]) if made_with != shown else "")
            parts.append(f"<pre>{escape(str(call.get('command', 'unknown')))}</pre>")
            shown = made_with
    return section("Commands", "<p>The calls of each run, the latest last, and the versions they used.</p>", *parts)


def result(folder: Path) -> str:
    """Scores and GIFs of a result folder of Tester.py.

    Raises
    ------
    BadInput : it is not a result folder, or its summary.json is damaged.
    """
    shown = printable(str(folder))
    path, pattern = folder / "summary.json", "compare_seq*.gif"
    if not any(folder.glob(pattern)):
        pattern = "pred_seq*.gif"
    videos = sorted(folder.glob(pattern), key=lambda video: natural_order(video.stem))
    if not path.is_file() and not videos:
        raise BadInput(f"--results {shown} holds neither summary.json nor GIFs; give a --save_root of Tester.py")
    parts = result_scores(path) if path.is_file() else []
    pictures = []
    if (folder / "psnr.png").is_file():
        pictures.append(embed_plot(folder / "psnr.png", f"PSNR per frame of {shown}"))
    for path in videos:
        name = printable(path.stem.partition("_seq")[2])
        labelled = path.name.startswith("compare")
        what = "truth, prediction, pose" if labelled else "prediction"
        pictures.append(embed_gif(path, f"Sequence {name} of {shown}", f"sequence {name}: {what}", labelled))
    return section(f"Generated: {shown}", *parts, '<div class="grid">', *pictures, "</div>")


def result_scores(path: Path) -> list[str]:
    """The settings and the table of scores in a summary.json. BadInput: it is damaged."""
    shown = printable(str(path))
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        columns = [name for name in RESULT_SCORES if name in summary["mean"]]
        rows = [[escape(name), *(f"{float(values[column]):.4g}" for column in columns)]
                for name, values in (*summary["sequences"].items(), ("mean", summary["mean"]))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"--results {shown} is not a summary of Tester.py ({type(error).__name__}: "
                       f"{printable(str(error))}); run Tester.py again with --overwrite") from error
    made_with = ", ".join(f"{name} {summary[name]}" for name in ("checkpoint", "epochs", "split", "latent", "seed",
                                                                 "match_histogram") if name in summary)
    return [lines_of([made_with]), table(["sequence", *(RESULT_SCORES[column] for column in columns)], rows,
                                        range(1, len(columns) + 1))]


def build(runs: list[Run], epochs: list[int], results: list[Path], title: str) -> str:
    """The whole page."""
    made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    body = [scores(runs), curves(runs, epochs), gifs(runs, epochs), *map(result, results), settings(runs),
            commands(runs)]
    return "\n".join(["<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
                      '<meta name="viewport" content="width=device-width, initial-scale=1">',
                      # An empty icon, so that no browser requests one.
                      '<link rel="icon" href="data:,">',
                      f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", "</head>", "<body>",
                      f"<h1>{escape(title)}</h1>",
                      f'<p class="note">{len(runs)} run{"s" * (len(runs) > 1)}, as of {made}</p>',
                      *body, "</body>", "</html>", ""])


def main(argv: list[str] | None = None) -> None:
    parser = FlagParser(prog="report.py", description="Write one HTML file about training runs.")
    add_run_flags(parser)
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="FILE", default="report.html",
        help="the HTML file; an existing one is replaced")
    add("--title", default="Training runs", help="heading of the page")
    add("--results", type=Path, nargs="+", metavar="RESULT", default=[],
        help="result folders (--save_root of Tester.py) whose scores and GIFs are added")
    args = parser.parse_args(argv)
    if args.output.is_dir():
        raise BadInput(f"--output {args.output} is a folder; give a file name")
    if args.output.exists() and args.output.suffix.lower() not in (".html", ".htm"):
        raise BadInput(f"--output {args.output} exists and is not an .html file; choose another name")
    check_writable(args.output.parent, "--output in")
    page = build(read_runs(args.runs, args.names), args.epochs, args.results, printable(args.title))
    with atomic_write(args.output) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB, self-contained")


if __name__ == "__main__":
    sys.exit(run_main("report.py", main))
