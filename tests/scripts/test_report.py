"""The report: the content of the page.

    python -m pytest tests/scripts/test_report.py
"""
import base64
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_compare_runs import write_run

import report
import report_html
import report_text
from modules.plots import video
from utils import BadInput, run_main

NASTY = '</pre><script>alert("1")</script>&amp;<img src=http://x.y>'


class Page(HTMLParser):
    """Parses a page: what it loads, the cells of its tables, its texts by tag. Checks that tags are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.tables, self.texts, self.tags, self.open = [], {}, {}, set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        if tag == "img":
            assert attributes["alt"]
        if tag == "table":
            self.table = self.tables.setdefault(attributes.get("id", "scores"), [])
        if tag == "tr":
            self.table.append([])
        if tag in ("td", "th"):
            self.table[-1].append("")
        self.loads += [attributes[name] for name in ("src", "href", "data", "action", "srcset", "poster")
                       if name in attributes and tag != "a"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open:
            return
        self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data
        if {"td", "th"} & set(self.open):
            self.table[-1][-1] += data


def add_dataset(folder: Path, frames: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["dataset"] = {"root": NASTY, "train_frames": frames, "train_segments": 3, "clips": 177, "val_frames": 630,
                         "frame_size": [32, 64], "checksum": 255}
    config["flags"]["weight_decay"] = None
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """A finished run, one that crashed, one that has just started."""
    root = tmp_path_factory.mktemp("runs")
    first = write_run(root / "first", recorded=(0, 2), lr=0.001)
    clip = torch.rand(4, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    for name in ("val.gif", "val_epoch=2.gif"):
        video.side_by_side_gif(clip, clip, clip, first / "figures" / name)
    second = write_run(root / "second", 2, 70, non_finite=(1,), lr=0.002)
    add_dataset(first, 2830)
    add_dataset(second, 100)
    config = json.loads((second / "config.json").read_text())
    config["before"] = [{"command": "Trainer.py --num_epoch 2", "versions": None}, "no call"]
    config["flags"]["note"] = NASTY
    (second / "config.json").write_text(json.dumps(config | {"command": f"Trainer.py {NASTY}"}))
    return [first, second, write_run(root / "third", 0, 9)]


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.main([*map(str, runs), "-o", str(path), "--names", "first", NASTY, "third", "--epochs", "2",
                 "--title", f"Title {NASTY}"])
    return path


@pytest.fixture(scope="module")
def page(written) -> Page:
    return Page(written.read_text(encoding="utf-8"))


def test_the_page_is_self_contained(page, written):
    assert not page.open and "script" not in page.tags  # all tags are closed, and names and commands are escaped
    assert page.loads and all(address.startswith("data:") for address in page.loads)
    assert "url(" not in page.texts["style"] and "@import" not in page.texts["style"]
    assert written.stat().st_size < 2_000_000
    for address in page.loads:
        if "base64," in address:
            with Image.open(io.BytesIO(base64.b64decode(address.partition("base64,")[2]))) as picture:
                picture.verify()


def test_it_shows_scores_curves_gifs_and_commands_of_each_run(page):
    scores = {row[0]: row[1:] for row in page.tables["scores"]}
    assert list(scores) == ["run", "first", NASTY, "third"]
    assert scores["first"] == ["22.00 dB", "2", "18.00 dB", "3 of 3", "0.03333", "0.03333", "0.01", "done"]
    assert scores["third"][-1] == "stopped, no epoch yet"
    kinds = [address[:14] for address in page.loads]
    assert kinds.count("data:image/png") == 4 + 2 and kinds.count("data:image/gif") == 2
    assert "first, epoch 2" in page.texts["figcaption"]
    assert f"Trainer.py {NASTY}" in page.texts["pre"] and "Trainer.py --num_epoch 2" in page.texts["pre"]
    assert page.texts["h1"] == f"Title {NASTY}"
    assert "no val.gif yet" in page.texts["p"] and "commit abc" in page.texts["p"]


def test_settings_are_split_into_those_that_differ_and_those_that_all_share(page):
    differing = {row[0]: row[1:] for row in page.tables["differing"]}
    assert differing == {"flag": ["first", NASTY, "third"], "--num_epoch": ["3", "70", "9"],
                         "--lr": ["0.001", "0.002", "0.001"], "--note": ["-", NASTY, "-"],
                         "--weight_decay": ["not set", "not set", "-"]}
    assert {row[0]: row[1] for row in page.tables["shared"]} == {"flag": "value", "--train_vi_len": "16"}
    assert "details" in page.tags


def test_the_datasets_of_the_runs_are_described(page):
    assert page.tables["dataset"][1:] == [["first", NASTY, "2830", "3", "177", "630", "32 x 64", "000000ff"],
                                          [NASTY, NASTY, "100", "3", "177", "630", "32 x 64", "000000ff"]]


def test_no_value_is_shown_in_a_programs_words(page):
    shown = " ".join(text for tag, text in page.texts.items() if tag not in ("style", "pre"))
    assert not re.search(r"\b(null|None|nan|inf|undefined)\b", shown)


def test_a_run_without_config_is_reported(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    monkeypatch.setattr(report, "curves", lambda *_: "")
    report.main([str(write_run(tmp_path / "run", 2, None)), "-o", str(path)])
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open and "no config.json" in page.texts["p"]


def test_results_of_tester_are_shown(tmp_path):
    clip = torch.rand(3, 3, 8, 16)
    for name in ("10", "9"):
        video.side_by_side_gif(clip, clip, clip, tmp_path / f"compare_seq{name}.gif")
    summary = {"checkpoint": "best.ckpt", "mean": {"psnr": 21.5, "ssim": 0.8},
               "sequences": {"<9>": {"psnr": 21.0, "ssim": 0.8}}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = Page(report.result(tmp_path))
    assert page.tables["scores"] == [["sequence", "PSNR", "SSIM"], ["<9>", "21", "0.8"], ["mean", "21.5", "0.8"]]
    assert page.texts["figcaption"].index("sequence 9") < page.texts["figcaption"].index("sequence 10")
    for content in ("{", "{}", '{"checkpoint": "", "mean": 3}', '{"checkpoint": "", "mean": {"psnr": [0]}}',
                    '{"checkpoint": "", "mean": {"psnr": 1%s}, "sequences": {}}' % ("0" * 400)):
        (tmp_path / "summary.json").write_text(content)
        with pytest.raises(BadInput, match="summary.json"):
            report.result(tmp_path)


def test_a_result_without_real_frames_has_facts_but_no_table(tmp_path):
    summary = {"checkpoint": "/runs/a/best.ckpt", "checkpoint_sha256": "ab" * 32, "epochs": 4, "num_epoch": None,
               "versions": {"torch": "2.12", "numpy": None}, "latent": "mean"}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = Page(report.result(tmp_path))
    assert not page.tables and page.texts["p"].strip() == (
        f"checkpoint /runs/a/best.ckpt, SHA-256 {'ab' * 32}, trained epochs 4, latent mean, torch 2.12")
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"num_epoch": 30}))
    assert "trained epochs 4 of 30" in report.result(tmp_path)


def test_a_score_that_a_short_sequence_lacks_and_one_that_is_huge(tmp_path):
    summary = {"checkpoint": "best.ckpt", "mean": {"psnr": 1e308, "psnr_slope": -1.5},
               "sequences": {"0": {"psnr": float("nan"), "psnr_slope": -1.5}, "1": {"psnr": 21}}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert [row[1:] for row in Page(report.result(tmp_path)).tables["scores"][1:]] == [
        ["non-finite", "-1.5"], ["21", "-"], ["1e+308", "-1.5"]]


def test_an_mp4_is_preferred_and_has_a_poster_from_its_middle(tmp_path):
    clip = torch.zeros(9, 3, 128, 64)
    clip[3:6, 0] = 1
    video.side_by_side_gif(clip, clip, clip, tmp_path / "compare_seq3.gif")
    video.write_mp4(clip, tmp_path / "compare_seq3.mp4")
    video.write_gif(clip, tmp_path / "pred_seq4.gif")
    text = report.result(tmp_path)
    page = Page(text)
    assert "<video class=\"pixels moving\" controls muted loop playsinline autoplay" in text
    kinds = [address.partition(";")[0] for address in page.loads]
    assert kinds == ["data:video/mp4", "data:image/png", "data:image/png", "data:image/gif", "data:image/png"]
    assert page.texts["figcaption"].index("sequence 3: truth") < page.texts["figcaption"].index("sequence 4: pred")
    with Image.open(io.BytesIO(base64.b64decode(page.loads[1].partition("base64,")[2]))) as poster:
        assert poster.size == (64, 128) and poster.convert("RGB").getpixel((32, 64))[0] > 200


@pytest.mark.parametrize("content", [b"", b"\0\0\0\x18ftypmp42 and no more", "/dev/zero", "FIFO"])
def test_a_damaged_video_is_replaced_by_a_line(content, tmp_path):
    for name, embed in (("val.gif", report.embed_gif), ("val.mp4", report.embed_mp4)):
        if content == "FIFO":
            os.mkfifo(tmp_path / name)
        elif isinstance(content, str):
            (tmp_path / name).symlink_to(content)
        else:
            (tmp_path / name).write_bytes(content)
        line = embed(tmp_path / name, "Validation", "")
        assert "cannot be read" in line and "<p" in line


TEXT = r"""# My title & more

Before. <b>Raw</b> [good](https://a.b) [bad](javascript:alert(1))

## psnr per frame

About frames: $q_\phi(z*a*b)$ costs $5.

## Derivation

$$
a * b * c
- \mathrm{KL}
== \{x\}
$$

```
## no heading
```

![A picture](my%20own.png)

## Own heading

Own words.

## Implementation
"""


def test_the_authors_sections_stand_at_their_places(runs, tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "my own.png")
    (tmp_path / "text.md").write_text(TEXT)
    report.main([str(runs[0]), "-o", str(tmp_path / "page.html"), "--text", str(tmp_path / "text.md")])
    content = (tmp_path / "page.html").read_text()
    page = Page(content)
    assert not page.open and page.texts["h1"] == page.texts["title"] == "My title & more"
    assert re.findall("<h2>(.*?)</h2>", content) == [
        "Derivation", "Scores", "Dataset", "Curves", "psnr per frame", "Validation sequence", "Own heading",
        "Settings", "Commands"]
    after = content.partition("About frames")[2]
    assert after.index("<figure") < after.index("<h2>") and 'alt="PSNR per frame' in after[:500]
    assert all(address.startswith("data:") for address in page.loads) and 'href="https://a.b"' in content
    assert "<b>" not in content and not re.search('href="javascript', content)
    assert r"$q_\phi(z*a*b)$" in page.texts["code"] and "costs $5." in page.texts["p"]
    assert "a * b * c\n- \\mathrm{KL}\n== \\{x\\}" in page.texts["pre"] and "## no heading" in page.texts["code"]


def test_a_missing_text_is_created_with_the_headings_of_the_report(tmp_path, capsys):
    text = report_text.read_text(tmp_path / "text.md")
    assert "template" in capsys.readouterr().out
    headings = re.findall("^## (.*)", (tmp_path / "text.md").read_text(), re.MULTILINE)
    assert headings == list(text.sections)[1:] and "Other strategies" in headings
    assert {*(name for names in report.FIGURE_TEXTS.values() for name in names)} < set(headings)
    assert text.take_all().strip() == ""  # an empty section shows no heading


@pytest.mark.parametrize("picture", ["https://a.b/c.png", "missing.png", "text.md", "/dev/zero",
                                     "data:image/png;base64,AA"])
def test_a_picture_that_cannot_be_embedded_is_refused(picture, tmp_path):
    (tmp_path / "text.md").write_text(f"## A ![alt]({picture})")
    with pytest.raises(BadInput, match="picture .* cannot be embedded") as caught:
        report_text.read_text(tmp_path / "text.md")
    assert str(tmp_path / "text.md") in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "FIFO", "bytes"])
def test_a_text_that_cannot_be_read_is_refused(kind, tmp_path):
    path = tmp_path / "text.md"
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.write_bytes(b"\xff")
    with pytest.raises(BadInput, match="--text .* cannot be read"):
        report_text.read_text(path)


def test_the_style_is_for_paper_too():
    assert "size: A4" in report_html.STYLE and "@media print" in report_html.STYLE


@pytest.mark.parametrize("words, complaint", [
    (["-o", "."], "--output"), (["-o", "run/config.json"], "--output"),
    (["-o", "run/config.json/report.html"], "--output"), (["--results", "nowhere"], "--results"),
])
def test_invalid_flags_write_no_page(words, complaint, tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "curves", lambda *_: "")
    assert run_main("report.py", lambda: report.main(["run", *words])) == 2
    errors = capsys.readouterr().err
    assert complaint in errors and errors.count("\n") == 1
    assert not list(tmp_path.glob("**/*.html"))


def test_the_page_never_replaces_the_authors_text(runs, tmp_path):
    (tmp_path / "both.html").write_text("mine")
    with pytest.raises(BadInput, match="is the file of --text"):
        report.main([str(runs[0]), "-o", str(tmp_path / "both.html"), "--text", str(tmp_path / "both.html")])
    assert (tmp_path / "both.html").read_text() == "mine"
