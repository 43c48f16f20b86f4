"""A timeline as a picture, by matplotlib."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from torchetcd._phrasing import plain
from torchetcd.cli.exit_codes import Failure
from torchetcd.cli.timeline.lanes import lanes_of, tick, ticks
from torchetcd.cli.timeline.table import notes

if TYPE_CHECKING:
    from torchetcd.aio import Timeline

_COLOURS = {"joined": "#e3a72f", "member": "#3b7dd8", "waiting": "#9a9a9a"}
_LINES = {
    "final": ("#2a9d4e", "-"),
    "closed": ("#dd3333", "-"),
    "gone": ("#dd3333", "-"),
    "opened": ("#e3a72f", "--"),
    "reopened": ("#e3a72f", "--"),
}
# Taller pictures than this cannot be made, or looked at.
_TALLEST = 60.0


def as_png(timeline: Timeline) -> bytes:
    """Draw a timeline.

    Raises:
        Failure: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - optional, comes with an extra
    except ModuleNotFoundError:
        message = "A picture needs matplotlib: pip install 'torchetcd[plot]' (or use --html)."
        raise Failure(message) from None
    drawn = lanes_of(timeline)
    figure = Figure(figsize=(11, min(_TALLEST, 1.6 + 0.26 * len(drawn.lanes))), dpi=110)
    axes = figure.add_subplot()
    for row, lane in enumerate(drawn.lanes):
        for span in lane.spans:
            axes.barh(row, span.end - span.start, 0.64, span.start, color=_COLOURS[span.phase])
        for mark in lane.marks:
            lost = mark.kind == "lost"
            colour = "#dd3333" if lost else "#222222"
            axes.plot(mark.at, row, "x" if lost else "o", color=colour, markersize=6, mfc="white")
    for moment in drawn.moments:
        colour, style = _LINES[moment.kind]
        axes.axvline(moment.at, color=colour, linestyle=style, linewidth=1)
    axes.set_yticks(range(len(drawn.lanes)), [lane.name for lane in drawn.lanes], fontsize=8)
    axes.set_ylim(len(drawn.lanes) - 0.5, -0.5)
    at = ticks(drawn.start, drawn.end)
    long = drawn.end - drawn.start > 86400
    axes.set_xticks(at, [tick(one, long=long) for one in at], fontsize=8)
    axes.set_xlim(drawn.start, drawn.end)
    axes.grid(visible=True, axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    handles = [
        axes.barh(0, 0, 0, drawn.start, color=_COLOURS[phase], label=label)
        for phase, label in (
            ("joined", "in the barrier"),
            ("member", "member of a round"),
            ("waiting", "waiting or spare"),
        )
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, fontsize=8, frameon=False)
    title = " ".join([f"Run {plain(timeline.id)} (UTC)", *notes(timeline)])
    # A name with a dollar is a name and no formula.
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)
    figure.subplots_adjust(
        left=0.2,
        right=0.98,
        bottom=0.9 / figure.get_figheight(),
        top=1 - 0.4 / figure.get_figheight(),
    )
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
