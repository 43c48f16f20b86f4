"""A timeline as one HTML file that needs nothing else."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from torchetcd._phrasing import clock, plain
from torchetcd.cli.timeline.lanes import Lanes, lanes_of, tick, ticks
from torchetcd.cli.timeline.table import notes, text_of, time_of

if TYPE_CHECKING:
    from torchetcd.aio import Timeline

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 1100, 190, 20, 40, 30

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #222; --soft: #888; --line: #ddd; --back: #fff; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #ddd; --soft: #999; --line: #444; --back: #1b1b1b; }}
}}
body {{ font: 14px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 1140px; margin: 2em auto; padding: 0 1em; }}
h1 {{ font-size: 20px; }}
svg {{ width: 100%; height: auto; font: 11px system-ui, sans-serif; }}
svg text {{ fill: var(--ink); }}
.soft {{ fill: var(--soft); color: var(--soft); }}
.grid {{ stroke: var(--line); }}
.joined {{ fill: #e3a72f; }} .member {{ fill: #3b7dd8; }} .waiting {{ fill: #9a9a9a; }}
.lost {{ stroke: #d33; stroke-width: 2.5; fill: none; }}
.left {{ stroke: var(--ink); stroke-width: 1.5; fill: var(--back); }}
.final {{ stroke: #2a9d4e; }} .closed {{ stroke: #d33; }} .gone {{ stroke: #d33; }}
.opened, .reopened {{ stroke: #e3a72f; stroke-dasharray: 4 3; }}
table {{ border-collapse: collapse; margin-top: 1em; width: 100%; }}
th, td {{ text-align: left; padding: 2px 12px 2px 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }}
td:first-child {{ white-space: nowrap; font-variant-numeric: tabular-nums; }}
.legend span {{ margin-right: 1.5em; }}
.legend i {{ display: inline-block; width: 12px; height: 12px; margin-right: 5px; vertical-align: -1px; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="soft">Below {prefix}; times in UTC. {now}</p>
{notes}
<p class="legend">
<span><i style="background:#e3a72f"></i>in the barrier</span>
<span><i style="background:#3b7dd8"></i>member of a round</span>
<span><i style="background:#9a9a9a"></i>waiting or spare</span>
<span>&#9675; left</span> <span style="color:#d33">&#10005; lost</span>
<span style="color:#2a9d4e">| round complete</span> <span style="color:#e3a72f">&#8942; round opened</span>
</p>
{drawing}
<table>
<thead><tr><th>Time</th><th>Round</th><th>Event</th><th>What</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</body>
</html>
"""


def as_html(timeline: Timeline) -> str:
    """Make a page with a drawing and the table of all events. It loads nothing and runs nothing."""
    rows = "\n".join(
        "<tr>"
        + "".join(
            f"<td>{escape(plain(text))}</td>"
            for text in (
                time_of(event),
                "" if event.round is None else event.round,
                event.kind,
                text_of(event),
            )
        )
        + "</tr>"
        for event in timeline.events
    )
    run = timeline.run
    return _PAGE.format(
        title=escape(f"Run {plain(timeline.id)}"),
        prefix=escape(plain(timeline.prefix)),
        now=f"Made at {clock(run.observed_at)}." if run is not None else "Nothing is left of it.",
        notes="\n".join(f"<p>{escape(note)}</p>" for note in notes(timeline)),
        drawing=_drawing(lanes_of(timeline)),
        rows=rows,
    )


def _drawing(drawn: Lanes) -> str:
    # Many nodes get thin lanes, so that a page of a thousand can still be looked over.
    height = 22 if len(drawn.lanes) <= 40 else 12
    bottom = _TOP + height * max(1, len(drawn.lanes))
    scale = (_WIDTH - _LEFT - _RIGHT) / (drawn.end - drawn.start)

    def x(at: float) -> str:
        return f"{_LEFT + (at - drawn.start) * scale:.1f}"

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {bottom + _BOTTOM}" role="img" '
        'aria-label="When each node was in the barrier, a member, or gone">'
    ]
    long = drawn.end - drawn.start > 86400
    for at in ticks(drawn.start, drawn.end):
        parts.append(f'<line class="grid" x1="{x(at)}" x2="{x(at)}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(
            f'<text class="soft" x="{x(at)}" y="{bottom + 16}" text-anchor="middle">'
            f"{tick(at, long=long)}</text>"
        )
    for row, lane in enumerate(drawn.lanes):
        y = _TOP + row * height
        middle = y + height / 2
        parts.append(
            f'<text x="{_LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end">'
            f"{escape(lane.name[-28:])}</text>"
        )
        for span in lane.spans:
            width = max(1.0, (span.end - span.start) * scale)
            parts.append(
                f'<rect class="{span.phase}" x="{x(span.start)}" y="{y + height * 0.18:.1f}" '
                f'width="{width:.1f}" height="{height * 0.64:.1f}"><title>{escape(lane.name)}: {span.phase}, '
                f"{clock(span.start)} to {clock(span.end)}</title></rect>"
            )
        for mark in lane.marks:
            parts.append(_mark(mark.kind, float(x(mark.at)), middle, min(5.0, height / 3)))
    taken = -100.0
    for moment in drawn.moments:
        parts.append(
            f'<line class="{moment.kind}" x1="{x(moment.at)}" x2="{x(moment.at)}" y1="{_TOP - 6}" '
            f'y2="{bottom}">'
            f"<title>{escape(moment.text)}</title></line>"
        )
        # Labels that would lie on each other are left to the table.
        if moment.kind in ("final", "closed") and float(x(moment.at)) - taken > 60:
            taken = float(x(moment.at))
            label = "closed" if moment.kind == "closed" else "complete"
            parts.append(
                f'<text x="{x(moment.at)}" y="{_TOP - 12}" text-anchor="middle">{label}</text>'
            )
    parts.append("</svg>")
    return "\n".join(parts)


def _mark(kind: str, x: float, y: float, size: float) -> str:
    if kind == "left":
        return f'<circle class="left" cx="{x:.1f}" cy="{y:.1f}" r="{size - 1:.1f}"/>'
    a, b, c, d = x - size, x + size, y - size, y + size
    return (
        f'<path class="lost" d="M{a:.1f} {c:.1f}L{b:.1f} {d:.1f}M{a:.1f} {d:.1f}L{b:.1f} {c:.1f}"/>'
    )
