"""Write one HTML file about training runs: scores, curves, videos, settings that differ, commands, your own text.

    python scripts/report.py runs/first runs/second -o report.html
    python scripts/report.py runs/* -o report.html --epochs 30 60 --results results/first --text notes.md

The file is self-contained: it opens without a network in any browser, also on a phone. Runs may differ in length and
settings, may have crashed or may still be running. --epochs adds the PSNR per frame after these epochs and the GIFs
figures/val_epoch=N.gif; --results adds scores and videos of Tester.py; --text adds sections that you wrote in Markdown.
"""
import datetime
import json
import sys
import tempfile
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder
import utils  # noqa: E402, F401  first: it says which packages are missing

# isort: split
from compare_runs import (  # noqa: E402
    TABLE,
    add_run_flags,
    draw,
    format_number,
    incomparable,
    score_table,
)
from dataloader import natural_order  # noqa: E402
from modules.config.parser import FlagParser  # noqa: E402
from modules.config.trainer_flags import CALL_FLAGS  # noqa: E402
from modules.plots import comparison  # noqa: E402
from report_html import STYLE, embed_gif, embed_mp4, embed_plot, lines_of, section, table  # noqa: E402
from report_text import Text, read_text  # noqa: E402
from run_reader import Run, printable, read_bytes, read_runs  # noqa: E402
from utils import BadInput, atomic_write, check_writable, run_main  # noqa: E402

FIGURE_TEXTS = {"KL weight and teacher forcing": ("Teacher forcing", "KL annealing"),
                "PSNR per frame": ("PSNR per frame",)}  # figure -> headings of --text that belong to it
DATASET_FACTS = {"root": "folder", "train_frames": "training frames", "train_segments": "uncut segments",
                 "clips": "training clips", "val_frames": "validation frames", "frame_size": "height x width",
                 "checksum": "checksum, training"}
NO_SETTINGS = set(CALL_FLAGS) - {"DR"}  # flags of one call, which do not affect the result
RESULT_SCORES = {"psnr": "PSNR", "course_psnr": "PSNR, frames 1..600", "psnr_repeat_first": "repeat first frame",
                 "ssim": "SSIM", "psnr_slope": "slope, dB per 600 frames", "brightness_error": "brightness error",
                 "brightness_error_end": "brightness error at the end",
                 "drift": "drift compared with restarts", "drift_slope": "slope of the drift, dB per 600 frames"}
SCORES_EXPLAINED = ("Means over the predicted frames, PSNR in dB. Slope: trend of the PSNR within a sequence. "
                    "Brightness error: mean of prediction minus truth, pixels in 0..1. Drift: PSNR compared with a "
                    "rollout that is restarted from real frames.")
LABELS = "truth, prediction, pose"  # of a video's parts, from left to right
DRAWN_LINES = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "double"}  # matplotlib's styles in CSS

def scores(runs: list[Run]) -> str:
    """The runs, the best first, in the colours of the figures."""
    rows, places = [], {run.name: index for index, run in enumerate(runs)}
    for name, *cells, state in score_table(runs):
        color, style = comparison.run_style(places[name])
        line = f'<span class="line" style="border-top-style: {DRAWN_LINES[style]}; border-color: {color}"></span>'
        rows.append([line + escape(name), *map(escape, cells), f'<span class="whole">{escape(state)}</span>'])
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes] + incomparable(runs)
    return section("Scores", table(map(escape, TABLE), rows, range(1, len(TABLE) - 1)),
                   lines_of(["The best run first, by the PSNR of the free-running validation rollout (mean over its "
                             "frames). Repeat first: PSNR of repeating the given frame. Train MSE and KL (divergence "
                             "of the posterior, in nats) are means per predicted frame of the latest epoch, val MSE "
                             "that of the rollout.", *notes]))


def dataset(runs: list[Run]) -> str:
    """What the runs were trained on; runs with the same data share a row."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.dataset:
            groups.setdefault(json.dumps(run.dataset, sort_keys=True), []).append(run)
    rows = [[escape(", ".join(run.name for run in group)),
             *(escape(fact_text(key, group[0].dataset.get(key))) for key in DATASET_FACTS)]
            for group in groups.values()]
    heads = ["run", *DATASET_FACTS.values()]
    return section("Dataset", table(heads, rows, range(2, len(heads)), "dataset")) if rows else ""


def fact_text(key: str, value: object) -> str:
    if value is None:
        return "-"
    if key == "frame_size" and isinstance(value, list):
        return " x ".join(map(str, value))
    return printable(f"{value:08x}" if key == "checksum" and isinstance(value, int) else str(value))


def curves(runs: list[Run], epochs: list[int], text: Text) -> str:
    """The figures of compare_runs.py, drawn in a temporary folder. One that the author writes about stands below that
    text, the others together."""
    names = ", ".join(run.name for run in runs)
    together, apart = [], []
    with tempfile.TemporaryDirectory() as folder:
        paths, notes = draw(runs, epochs, Path(folder))
        for title, path in paths.items():
            picture = embed_plot(path, f"{title} of the runs {names}")
            about = "\n".join(filter(None, map(text.take, FIGURE_TEXTS.get(title, ()))))
            if about:
                apart += [about, picture]
            else:
                together.append(picture)
    return "\n".join([section("Curves", '<div class="columns">', *together, "</div>", lines_of(notes)), *apart])


def gifs(runs: list[Run], epochs: list[int]) -> str:
    parts = []
    for run in runs:
        parts.append(embed_gif(run.folder / "figures" / "val.gif", f"Validation of {run.name}",
                               f"{run.name}, latest save: {LABELS}"))
        for epoch in epochs:
            path = run.folder / "figures" / f"val_epoch={epoch}.gif"
            if path.is_file():
                parts.append(embed_gif(path, f"Validation of {run.name} after epoch {epoch}",
                                       f"{run.name}, epoch {epoch}: {LABELS}"))
    return section("Validation sequence", '<div class="grid">', *parts, "</div>")


def setting(run: Run, flag: str) -> str:
    value = run.flags.get(flag, "-")
    if value is None:
        return "not set"
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
            software = ", ".join([*(f"{name} {version}" for name, version in versions.items() if version),
                                   f"commit {call.get('commit') or 'unknown'}"])
            parts.append(lines_of([software]) if software != shown else "")
            parts.append(f"<pre>{escape(str(call.get('command', 'unknown')))}</pre>")
            shown = software
    return section("Commands", "<p>The calls of each run, the latest last, and the versions they used.</p>", *parts)


def result(folder: Path) -> str:
    """Scores and videos of a result folder of Tester.py.

    Raises
    ------
    BadInput : it is not a result folder, or its summary.json is damaged.
    """
    shown = printable(str(folder))
    path = folder / "summary.json"
    videos = {}  # of each sequence, the best that there is
    for pattern in ("pred_seq*.gif", "compare_seq*.gif", "compare_seq*.mp4"):
        videos |= {video.stem.partition("_seq")[2]: video for video in folder.glob(pattern)}
    if not path.exists() and not videos:
        raise BadInput(f"--results {shown} holds neither summary.json nor videos; give a --save_root of Tester.py")
    parts = result_scores(path) if path.exists() else []
    pictures = []
    if (folder / "psnr.png").exists():
        pictures.append(embed_plot(folder / "psnr.png", f"PSNR per frame of {shown}"))
    for name in sorted(videos, key=natural_order):
        path, name = videos[name], printable(name)
        labelled = path.name.startswith("compare")
        words = f"Sequence {name} of {shown}", f"sequence {name}: {LABELS if labelled else 'prediction'}"
        pictures.append(embed_mp4(path, *words) if path.suffix == ".mp4" else embed_gif(path, *words, labelled))
    return section(f"Generated: {shown}", *parts, '<div class="columns">', *pictures, "</div>")


def result_scores(path: Path) -> list[str]:
    """The settings and the table of scores in a summary.json. BadInput: it is damaged."""
    shown = printable(str(path))
    try:
        summary = json.loads(read_bytes(path).decode("utf-8"))
        facts = lines_of([made_with(summary)])
        columns = [name for name in RESULT_SCORES if name in summary.get("mean", ())]
        rows = [[escape(name), *(format_number(float(values[column])) if column in values else "-"
                                 for column in columns)]
                for name, values in (*summary.get("sequences", {}).items(), ("mean", summary.get("mean")))
                if values is not None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        raise BadInput(f"--results {shown} is not a summary of Tester.py ({type(error).__name__}: "
                       f"{printable(str(error))}); run Tester.py again with --overwrite") from error
    if not columns:
        return [facts]
    heads = ["sequence", *(RESULT_SCORES[column] for column in columns)]
    return [facts, table(heads, rows, range(1, len(heads))), lines_of([SCORES_EXPLAINED])]


def made_with(summary: dict) -> str:
    """Checkpoint and settings of a summary.json as a line to read. Unknown ones are left out."""
    epochs, planned = summary.get("epochs"), summary.get("num_epoch")
    facts = {"checkpoint": summary["checkpoint"], "SHA-256": summary.get("checkpoint_sha256"),
             "trained epochs": epochs if planned is None or epochs is None else f"{epochs} of {planned}",
             **{name: summary.get(key) for key, name in (("split", "split"), ("latent", "latent"), ("seed", "seed"),
                                                         ("match_histogram", "histogram matching"))}}
    versions = summary.get("versions")
    facts |= versions if isinstance(versions, dict) else {}
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def build(runs: list[Run], epochs: list[int], results: list[Path], title: str, text: Text) -> str:
    """The whole page."""
    made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    body = [*map(text.take, ("", "Derivation", "Implementation")), scores(runs), dataset(runs),
            curves(runs, epochs, text), gifs(runs, epochs), *map(result, results), text.take_all(), settings(runs),
            commands(runs)]
    return "\n".join(["<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
                      '<meta name="viewport" content="width=device-width, initial-scale=1">',
                      # An empty icon, so that no browser requests one.
                      '<link rel="icon" href="data:,">',
                      f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", "</head>", "<body>",
                      f"<h1>{escape(title)}</h1>",
                      f'<p class="note">{len(runs)} run{"s" * (len(runs) > 1)}, as of {made}</p>',
                      *filter(None, body), "</body>", "</html>", ""])


def main(argv: list[str] | None = None) -> None:
    parser = FlagParser(prog="report.py", description="Write one HTML file about training runs.")
    add_run_flags(parser)
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="FILE", default="report.html",
        help="the HTML file; an existing one is replaced")
    add("--title", help="heading of the page; None: that of --text, or Training runs")
    add("--text", type=Path, metavar="FILE.md",
        help="your own sections, in Markdown; those under the headings Teacher forcing, KL annealing and PSNR per "
             "frame stand by their figures. A missing file is created, with the headings of the course's questions")
    add("--results", type=Path, nargs="+", metavar="RESULT", default=[],
        help="result folders (--save_root of Tester.py) whose scores and GIFs are added")
    args = parser.parse_args(argv)
    if args.output.is_dir():
        raise BadInput(f"--output {args.output} is a folder; give a file name")
    if args.output.exists() and args.output.suffix.lower() not in (".html", ".htm"):
        raise BadInput(f"--output {args.output} exists and is not an .html file; choose another name")
    if args.text and args.output.resolve() == args.text.resolve():
        raise BadInput(f"--output {args.output} is the file of --text; choose another name")
    check_writable(args.output.parent, "--output in")
    runs = read_runs(args.runs, args.names)
    text = read_text(args.text) if args.text else Text()
    title = args.title or text.title or "Training runs"
    page = build(runs, args.epochs, args.results, printable(title), text)
    with atomic_write(args.output) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB, self-contained")


if __name__ == "__main__":
    sys.exit(run_main("report.py", main))
