"""Take screenshots of an HTML file in a headless browser, in the size of a phone and of a desktop, and print it.

    python scripts/dev/screenshot.py report.html --save_root DIR     DIR/report_390.png, report_1280.png, report.pdf

Network and JavaScript are off. It fails if the page requests anything outside its file or is wider than the screen.
Needs Playwright and Chromium: an installed one, or Playwright's own.
"""
import contextlib
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs from any folder
from modules.config.parser import FlagParser, folder_name, number  # noqa: E402
from utils import BadInput, check_writable, run_main  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
INSTALL = "install them with: python -m pip install playwright && python -m playwright install chromium"
HEIGHTS = {False: 900, True: 844}  # of a desktop's window, of a phone's screen
PHONE_UP_TO = 600  # pixels of width


@contextlib.contextmanager
def open_browser():
    """A headless Chromium. BadInput: it is not installed or does not start."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise BadInput(f"this needs Playwright and Chromium; {INSTALL}") from error
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        try:
            # In containers the user is often root, for whom Chromium has no sandbox. Only local files are shown.
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error as error:
            raise BadInput(f"Chromium does not start ({str(error).splitlines()[0]}); {INSTALL}") from error
        try:
            yield browser
        except Error as error:
            raise BadInput(f"the browser cannot show the file ({str(error).splitlines()[0]})") from error
        finally:
            browser.close()


def take_screenshot(browser, page: Path, width: int, picture: Path) -> list[str]:
    """Write a PNG of the whole page at a width in CSS pixels. Returns what is wrong with the page."""
    is_phone = width <= PHONE_UP_TO
    requested = []
    context = browser.new_context(viewport={"width": width, "height": HEIGHTS[is_phone]}, is_mobile=is_phone,
                                  device_scale_factor=2 if is_phone else 1, java_script_enabled=False, offline=True)
    with contextlib.closing(context):
        tab = context.new_page()
        address = page.resolve().as_uri()
        tab.on("request", lambda request: requested.append(request.url))
        tab.goto(address)
        tab.screenshot(path=picture, full_page=True)
        needed = tab.evaluate("document.documentElement.scrollWidth")
    wrong = [f"requests {url[:100]}" for url in requested if url != address and not url.startswith("data:")]
    return wrong + [f"is {needed} pixels wide on a screen of {width}"] * (needed > width)


def print_pdf(browser, page: Path, pdf: Path) -> None:
    """Write the page as it is printed, on the paper that its style names, or on A4."""
    with contextlib.closing(browser.new_context(java_script_enabled=False, offline=True)) as context:
        tab = context.new_page()
        tab.goto(page.resolve().as_uri())
        tab.pdf(path=pdf, format="A4", prefer_css_page_size=True, print_background=True)


def main(argv: list[str] | None = None) -> None:
    parser = FlagParser(prog="screenshot.py", description="Take screenshots of an HTML page, and print it.")
    parser.add_argument("page", metavar="HTML", type=Path, help="the file")
    parser.add_argument("--save_root", type=folder_name, default=".", help="folder for the screenshots and the PDF")
    parser.add_argument("--widths", type=number(int, 100, 4000), nargs="+", default=[390, 1280],
                        help=f"screen widths, CSS pixels; up to {PHONE_UP_TO} for a phone")
    args = parser.parse_args(argv)
    if not args.page.is_file():
        raise BadInput(f"{args.page}: no such file; give an HTML file")
    folder = Path(args.save_root)
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wrong = []
    with open_browser() as browser:
        for width in args.widths:
            picture = folder / f"{args.page.stem}_{width}.png"
            wrong += take_screenshot(browser, args.page, width, picture)
            print(picture)
        print_pdf(browser, args.page, folder / f"{args.page.stem}.pdf")
        print(folder / f"{args.page.stem}.pdf")
    if wrong:
        raise BadInput(f"{args.page} {'; it '.join(wrong)}; see the screenshots")


if __name__ == "__main__":
    sys.exit(run_main("screenshot.py", main))
