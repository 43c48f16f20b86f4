"""What the site needs beyond mkdocs: diagrams that are drawn here, and links that leave `docs/`.

mkdocs calls `on_page_markdown` for every page (`hooks` in mkdocs.yml). The pages themselves are plain
Markdown, which a code host shows as well: there a diagram is drawn by the host, and a link to a
source file is relative.
"""

from __future__ import annotations

import math
import os
import re
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)(#[^)\s]*)?(?=\))")
PICTURE = re.compile(r"^!\[([^\]]*)\]\(([^)\s]+)\)$", re.MULTILINE)
OUTPUT = re.compile(r"^```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# As many as docs/site.css has room for on a telephone.
MOST_COLUMNS = 72
ARROW = re.compile(r"^\s*(\S+) --> (\S+?)(?:: (.*))?$")
# The same in the page of a code host and here: what is drawn has at most so many states.
_WIDTH, _HEIGHT, _RADIUS_X, _RADIUS_Y = 720, 400, 270, 150


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: object) -> str:
    """Draw the diagrams of a page, and lead its links to files outside of `docs/` to the repository."""
    source = Path(page.file.abs_src_path)
    root = Path(config["config_file_path"]).parent
    base = config["repo_url"].rstrip("/") + "/blob/main/"

    def outside(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / match[2]))
        if target.is_relative_to(config["docs_dir"]):
            return match[0]
        if not target.exists() or not target.is_relative_to(root):
            message = f"{page.file.src_path} links to {match[2]}, which does not exist."
            raise PluginError(message)
        link: str = match[1] + base + target.relative_to(root).as_posix() + (match[3] or "")
        return link

    drawn = OUTPUT.sub(columns, markdown)
    drawn = FENCE.sub(lambda match: draw(match[1]), drawn)
    # A picture leads to itself: on a telephone it is too small to be read.
    return LINK.sub(outside, PICTURE.sub(r"[![\1](\2)](\2)", drawn))


def columns(match: re.Match[str]) -> str:
    """Mark output whose lines are aligned: it is made smaller where it does not fit, and not wrapped."""
    lines = match[1].splitlines()
    aligned = sum(bool(re.search(r"\S {3,}\S", line)) for line in lines) > 1
    if not aligned or max(map(len, lines)) > MOST_COLUMNS:
        return match[0]
    return f"```{{ .text .columns }}\n{match[1]}```"


class Edge(NamedTuple):
    """An arrow between two states."""

    start: str
    end: str
    label: str


def edges_of(source: str) -> list[Edge]:
    """Read a state diagram; a line that is not understood is an error, not an arrow less."""
    kind, *lines = source.strip().splitlines()
    found = []
    for line in lines:
        match = ARROW.match(line)
        if kind != "stateDiagram-v2" or match is None:
            message = f"tools/docs_hooks.py cannot draw the line {line!r} of a {kind}."
            raise PluginError(message)
        start, end, label = match.groups()
        found.append(
            Edge("start" if start == "[*]" else start, "end" if end == "[*]" else end, label or "")
        )
    return found


def draw(source: str) -> str:
    """Draw a state diagram: states on an ellipse, arrows with numbers, what they mean below."""
    edges = edges_of(source)
    states = list(dict.fromkeys(state for edge in edges for state in (edge.start, edge.end)))
    # The end comes last: arrows lead around the ellipse.
    states.sort(key=lambda state: state == "end")
    places = {
        state: (
            _WIDTH / 2 - _RADIUS_X * math.cos(2 * math.pi * number / len(states)),
            _HEIGHT / 2 - _RADIUS_Y * math.sin(2 * math.pi * number / len(states)),
        )
        for number, state in enumerate(states)
    }
    numbers: dict[tuple[str, str], list[int]] = {}
    for number, edge in enumerate(edges, 1):
        numbers.setdefault(edge[:2], []).append(number)
    parts = [
        _arrow(places[start], places[end], ", ".join(map(str, which)))
        for (start, end), which in numbers.items()
    ]
    parts += [_box(state, *places[state]) for state in states]
    meanings = [
        f"<li>{escape(edge.start)} → {escape(edge.end)}"
        f"{': ' + escape(edge.label) if edge.label else ''}</li>"
        for edge in edges
    ]
    head = (
        '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L10 5L0 10z" fill="currentColor"/></marker>'
    )
    return "\n".join(
        [
            f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="14" '
            'font-family="sans-serif" style="max-width:100%">',
            f"<defs>{head}</defs>",
            *parts,
            "</svg></figure>",
            f"<ol>{''.join(meanings)}</ol>",
        ]
    )


def _arrow(start: tuple[float, float], end: tuple[float, float], text: str) -> str:
    (x1, y1), (x2, y2) = start, end
    length = math.hypot(x2 - x1, y2 - y1)
    across = (-(y2 - y1) / length, (x2 - x1) / length)
    # Bent to one side, so that an arrow and its opposite are two.
    bend = 0.14 * length
    cx, cy = (x1 + x2) / 2 + across[0] * bend, (y1 + y2) / 2 + across[1] * bend
    x1, y1 = _edge_of_box((x1, y1), (cx, cy))
    x2, y2 = _edge_of_box((x2, y2), (cx, cy))
    mx, my = (x1 + 2 * cx + x2) / 4, (y1 + 2 * cy + y2) / 4
    return (
        f'<path d="M{x1:.0f} {y1:.0f}Q{cx:.0f} {cy:.0f} {x2:.0f} {y2:.0f}" fill="none" '
        'stroke="currentColor" marker-end="url(#head)"/>'
        f'<text x="{mx:.0f}" y="{my + 5:.0f}" text-anchor="middle" fill="currentColor" '
        'stroke="var(--md-default-bg-color,white)" stroke-width="5" paint-order="stroke">'
        f"{text}</text>"
    )


_HALF_WIDTH, _HALF_HEIGHT = 46, 17


def _edge_of_box(middle: tuple[float, float], towards: tuple[float, float]) -> tuple[float, float]:
    dx, dy = towards[0] - middle[0], towards[1] - middle[1]
    scale = min(_HALF_WIDTH / abs(dx) if dx else 9, _HALF_HEIGHT / abs(dy) if dy else 9)
    return middle[0] + dx * scale, middle[1] + dy * scale


def _box(state: str, x: float, y: float) -> str:
    return (
        f'<rect x="{x - _HALF_WIDTH:.0f}" y="{y - _HALF_HEIGHT:.0f}" width="{2 * _HALF_WIDTH}" '
        f'height="{2 * _HALF_HEIGHT}" rx="{_HALF_HEIGHT if state in ("start", "end") else 5}" '
        'fill="var(--md-code-bg-color,#f5f5f5)" stroke="currentColor"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" fill="currentColor">'
        f"{escape(state)}</text>"
    )


# What a browser loads without being asked. The theme's script fetches mermaid for an element of that class,
# and the repository's number of stars for a component "source".
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\ssrc=["']?(?:https?:)?//[^>]*>"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon))[^>]*href=["']?(?:https?:)?//[^>]*>"""
    r"""|<\w+ class=["']?mermaid\b|\bdata-md-component=["']?source\b""",
    re.IGNORECASE,
)


def on_post_build(*, config: Any, **_: object) -> None:
    """Refuse a site that needs the network to be read."""
    for page in Path(config["site_dir"]).rglob("*.html"):
        found = LOADED.search(page.read_text(encoding="utf-8"))
        if found:
            message = f"{page} loads something from elsewhere: {found[0]}"
            raise PluginError(message)
