"""The author's own sections of a report: Markdown -> HTML, by heading."""
import io
import re
from dataclasses import dataclass, field
from html import escape, unescape
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from report_html import READ_ERRORS, data_address
from run_reader import printable, read_bytes
from utils import BadInput, atomic_write

# The questions of the course's report. Each of these headings has a place in the page.
TEMPLATE = """\
## Derivation

## Implementation

## Teacher forcing

## KL annealing

## PSNR per frame

## Other strategies
"""
PICTURES = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}
MATH = re.compile(r"\$\$.+?\$\$|\$(?![\s$])[^$\n]*?(?<![\s\\])\$(?!\d)", re.DOTALL)


@dataclass
class Text:
    """What an author wrote."""
    title: str | None = None  # the first heading, where it is of level 1
    sections: dict[str, str] = field(default_factory=dict)  # heading -> HTML; "" is what stands before the first

    def take(self, heading: str) -> str:
        """Remove a section, its heading in any letter case, and return it as HTML with its heading; "" if missing."""
        found = next((name for name in self.sections if name.casefold() == heading.casefold()), None)
        return "" if found is None else self._show(found)

    def take_all(self) -> str:
        """Remove and return all sections that are left, in their order."""
        return "\n".join(self._show(name) for name in list(self.sections))

    def _show(self, name: str) -> str:
        content = self.sections.pop(name)
        heading = f"<h2>{name}</h2>\n" if name else ""
        return f'<div class="text">{heading}{content}</div>' if content.strip() else ""


def read_text(path: Path) -> Text:
    """Read Markdown. A missing file is created, with the headings that have a place in the page.

    Raises
    ------
    BadInput : it cannot be read or created, is not UTF-8, or names a picture that cannot be embedded.
    """
    shown = f"--text {printable(str(path))}"
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(TEMPLATE, encoding="utf-8")
        print(f"{path}: a template; write below its headings and call report.py again")
    try:
        content = read_bytes(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise BadInput(f"{shown} cannot be read ({printable(str(error))}); give a Markdown file in UTF-8") from error
    return render(content, path.parent, shown)


def render(content: str, folder: Path, shown: str = "--text") -> Text:
    """Convert Markdown without HTML to sections, one per heading of level 1 or 2.

    Parameters
    ----------
    folder : where the pictures lie, which are embedded.
    shown : names the file in messages.

    Raises
    ------
    BadInput : a picture cannot be embedded.
    """
    from markdown_it import MarkdownIt  # only --text needs it
    markdown = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable(["table", "strikethrough"])
    markdown.inline.ruler.before("escape", "math", _read_math)
    markdown.block.ruler.before("fence", "math", _read_math_block, {"alt": ["paragraph", "blockquote", "list"]})
    markdown.add_render_rule("math", _render_math)
    tokens, text, name = markdown.parse(content), Text(), ""
    parts: dict[str, list] = {name: []}
    for picture in (child for token in tokens for child in token.children or [] if child.type == "image"):
        picture.attrs["src"] = _embed_picture(unquote(str(picture.attrs["src"])), folder, shown)
    while tokens:
        token = tokens.pop(0)
        if token.type == "heading_open" and token.tag in ("h1", "h2") and token.level == 0:
            heading = markdown.renderer.render([tokens.pop(0)], markdown.options, {})
            tokens.pop(0)  # heading_close
            if token.tag == "h1" and text.title is None and list(parts) == [""] and not parts[""]:
                text.title = unescape(re.sub("<[^>]*>", "", heading))
            else:
                name = heading
                parts.setdefault(name, [])
            continue
        parts[name].append(token)
    text.sections = {name: markdown.renderer.render(part, markdown.options, {}) for name, part in parts.items()}
    return text


def _embed_picture(source: str, folder: Path, shown: str) -> str:
    """The data: address of a picture. BadInput: it cannot be embedded."""
    try:
        content = read_bytes(folder / source)
        with Image.open(io.BytesIO(content)) as picture:
            return data_address(PICTURES[picture.format], content)
    except (*READ_ERRORS, KeyError) as error:
        raise BadInput(f"{shown}: the picture {printable(source)[:200]!r} cannot be embedded; give a PNG, JPEG, GIF or "
                       "WebP file, by its path relative to the text") from error


# TeX is shown as it was written: the page has no program that could typeset it, but neither may Markdown change it.


def _read_math(state, silent: bool) -> bool:
    match = MATH.match(state.src, state.pos)
    if not match:
        return False
    if not silent:
        state.push("math", "code", 0).content = match[0]
    state.pos = match.end()
    return True


def _read_math_block(state, first: int, last: int, silent: bool) -> bool:
    """Lines from one that begins with $$ to one that ends with it. On one line it is inline."""
    def read(line: int) -> str:
        return state.getLines(line, line + 1, state.blkIndent, False).strip()

    start = read(first)
    if not start.startswith("$$") or (len(start) > 2 and start.endswith("$$")):
        return False
    end = next((line for line in range(first + 1, last) if read(line).endswith("$$")), None)
    if end is None:
        return False
    if not silent:
        token = state.push("math", "pre", 0)
        token.content = "\n".join(map(read, range(first, end + 1)))[2:-2].strip()
        token.map, token.block = [first, end + 1], True
        state.line = end + 1
    return True


def _render_math(renderer, tokens, index: int, options, env) -> str:
    token = tokens[index]
    return f'<{token.tag} class="math">{escape(token.content)}</{token.tag}>'
