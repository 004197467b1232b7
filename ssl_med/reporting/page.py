"""A tiny HTML builder: text is escaped and free of local paths unless it is already :class:`Markup`."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from ssl_med.reporting.redact import hide_paths

_EMPTY_TAGS = {"meta", "img", "br", "hr", "line", "rect", "circle", "path", "polyline", "polygon"}
# The browser itself is told to fetch nothing: what is not in the file does not exist.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Markup(str):
    """HTML that this package made; everything else is text."""


Content = object
"""What may stand inside a tag: Markup, text, a number, None (nothing) or a list of these."""


def escape(text: object) -> Markup:
    """Text made safe to stand in a page: no tag, no local path."""
    return Markup(html.escape(hide_paths(str(text)), quote=True))


def join(*children: Content) -> Markup:
    """The children one after the other; lists are unrolled, None is left out, text is escaped."""
    parts = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(str(child))
        elif isinstance(child, list | tuple):
            parts.append(str(join(*child)))
        elif child is not None:
            parts.append(str(escape(child)))
    return Markup("".join(parts))


def tag(name: str, /, *children: Content, **attributes: object) -> Markup:
    """One element.

    Args:
        name: the element, such as ``p``.
        children: its content.
        attributes: values are escaped; ``class_`` is written ``class``, ``stroke_width`` is written ``stroke-width``;
            None leaves the attribute out and True writes its bare name.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in _EMPTY_TAGS and not children:
        return Markup(f"<{name}{written}>" if name in {"meta", "img", "br", "hr"} else f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def _attribute(key: str, value: object) -> str:
    key = {"viewBox": key}.get(key, key.rstrip("_").replace("_", "-"))
    if value is True:
        return f" {key}"
    return f' {key}="{value if isinstance(value, Markup) else escape(value)}"'


def picture(file: Path, alt: str) -> Markup:
    """A PNG file inlined, with its size so that the page does not jump while it opens.

    Raises:
        ValueError: the file is not a PNG picture.
    """
    content = file.read_bytes()
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR":
        raise ValueError(f"{file.name} is not a PNG picture")
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    source = Markup("data:image/png;base64," + base64.b64encode(content).decode("ascii"))
    return tag("img", src=source, alt=alt, width=width, height=height)


def details(summary: Content, *children: Content) -> Markup:
    """Content that opens on a click."""
    return tag("details", tag("summary", summary), *children)


def table(head: Sequence[Content], rows: Sequence[Sequence[Content]], caption: Content = None) -> Markup:
    """A table whose first column names the row; it scrolls sideways on a narrow screen."""
    heads = tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in head]))
    body = [tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]]) for row in rows]
    name = tag("caption", caption) if caption is not None else None
    return tag("div", tag("table", name, heads, tag("tbody", body)), class_="wide")


def facts(pairs: Sequence[tuple[str, Content]]) -> Markup:
    """Names and values in two columns."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs], class_="facts")


def document(title: str, body: Content) -> str:
    """A whole page that needs nothing beside itself: no network, no script."""
    style = Markup(Path(__file__).with_name("style.css").read_text("utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", tag("main", body)), lang="en") + "\n"
