"""Screenshots of a page, and what they reveal. Skipped where there is no browser.

    python -m pytest tests/scripts/test_screenshot.py
"""
import contextlib
import sys

import pytest
from PIL import Image

import screenshot
from utils import BadInput, run_main

PAGE = '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><body style="margin: 0">'


@pytest.fixture(scope="module")
def browser():
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(screenshot.open_browser())
        except BadInput as error:
            pytest.skip(str(error))
        yield started


def test_a_phone_has_two_pixels_for_each_of_css(browser, tmp_path):
    (tmp_path / "page.html").write_text(PAGE + '<div style="height: 2000px">a</div>')
    for width, pixels in ((390, (780, 4000)), (1280, (1280, 2000))):
        assert screenshot.take_screenshot(browser, tmp_path / "page.html", width, tmp_path / f"{width}.png") == []
        with Image.open(tmp_path / f"{width}.png") as picture:
            assert picture.size == pixels  # the whole page


def test_the_page_is_printed(browser, tmp_path):
    (tmp_path / "page.html").write_text(PAGE + '<div style="height: 2000px">a</div>')
    screenshot.print_pdf(browser, tmp_path / "page.html", tmp_path / "page.pdf")
    content = (tmp_path / "page.pdf").read_bytes()
    assert content.startswith(b"%PDF") and content.count(b"/MediaBox") >= 2  # pages of A4


def test_a_page_that_is_too_wide_or_requests_more_is_reported(browser, tmp_path):
    (tmp_path / "page.html").write_text(PAGE + '<div style="width: 900px">a</div><img src="http://x.invalid/a.png">')
    wrong = screenshot.take_screenshot(browser, tmp_path / "page.html", 390, tmp_path / "page.png")
    assert len(wrong) == 2 and "x.invalid" in wrong[0] and "900 pixels wide" in wrong[1]


def test_without_a_browser_a_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    (tmp_path / "page.html").write_text("a")
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    words = [str(tmp_path / "page.html"), "--save_root", str(tmp_path)]
    assert run_main("screenshot.py", lambda: screenshot.main(words)) == 2
    assert "pip install playwright" in capsys.readouterr().err
