"""The report: the content of the page.

    python -m pytest tests/scripts/test_report.py
"""
import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_compare_runs import write_run

import report
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
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        if tag == "img":
            assert attributes["alt"]
        if tag == "table":
            self.table = self.tables.setdefault(attributes.get("id", "scores"), [])
        if tag == "tr":
            self.table.append([])
        if tag in ("td", "th"):
            self.table[-1].append("")
        self.loads += [attributes[name] for name in ("src", "href", "data", "action", "srcset") if name in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open:
            return
        self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data
        if {"td", "th"} & set(self.open):
            self.table[-1][-1] += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """A finished run, one that crashed, one that has just started."""
    root = tmp_path_factory.mktemp("runs")
    first = write_run(root / "first", recorded=(0, 2), lr=0.001)
    clip = torch.rand(4, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    for name in ("val.gif", "val_epoch=2.gif"):
        video.side_by_side_gif(clip, clip, clip, first / "figures" / name)
    second = write_run(root / "second", 2, 70, non_finite=(1,), lr=0.002)
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
    assert scores["first"] == ["22.00 dB", "2", "3 of 3", "0.5", "0.01", "done"]
    assert scores["third"][-1] == "stopped, no epoch yet"
    kinds = [address[:14] for address in page.loads]
    assert kinds.count("data:image/png") == 4 and kinds.count("data:image/gif") == 2
    assert "first, epoch 2" in page.texts["figcaption"]
    assert f"Trainer.py {NASTY}" in page.texts["pre"] and "Trainer.py --num_epoch 2" in page.texts["pre"]
    assert page.texts["h1"] == f"Title {NASTY}"
    assert "no val.gif yet" in page.texts["p"] and "commit abc" in page.texts["p"]


def test_settings_are_split_into_those_that_differ_and_those_that_all_share(page):
    differing = {row[0]: row[1:] for row in page.tables["differing"]}
    assert differing == {"flag": ["first", NASTY, "third"], "--num_epoch": ["3", "70", "9"],
                         "--lr": ["0.001", "0.002", "0.001"], "--note": ["-", NASTY, "-"]}
    assert {row[0]: row[1] for row in page.tables["shared"]} == {"flag": "value", "--train_vi_len": "16"}
    assert "details" in page.tags


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
    for content in ("{", "{}", '{"mean": 3}', '{"mean": {"psnr": "x"}, "sequences": {}}'):
        (tmp_path / "summary.json").write_text(content)
        with pytest.raises(BadInput, match="summary.json"):
            report.result(tmp_path)


def test_a_damaged_gif_is_replaced_by_a_line(tmp_path):
    (tmp_path / "val.gif").write_bytes(b"GIF89a and no more")
    assert "cannot be read" in report.embed_gif(tmp_path / "val.gif", "Validation", "")


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
