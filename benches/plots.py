"""Draw what the benchmarks measured.

    pip install matplotlib && python benches/plots.py    # docs/benchmarks/data/*.json to ../*.svg

A benchmark without a file is left out. The same data and matplotlib make the same files, byte for byte. Each
plot says on what machine, with what versions, when and by what command its figures were made.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

Row = dict[str, Any]

DOCS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"

# Okabe and Ito's colours, which colour-blind people tell apart; each has a marker too, for print in grey.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
RED, SKY, GREY = "#D55E00", "#56B4E9", "#666666"
YELLOW, BLACK = "#F0E442", "#000000"
STYLES = {
    "torchetcd etcd-v3": (BLUE, "o"),
    "torchetcd dynamic": (SKY, "s"),
    "torch c10d": (ORANGE, "^"),
    "torch etcd": (RED, "v"),
    "torch etcd-v2": (PURPLE, "D"),
    "torchft manager": (GREEN, "P"),
    "torchft lighthouse": (BLACK, "X"),
    "nvrx c10d": (YELLOW, "<"),
}
STORES = {
    "torchetcd": ("torchetcd EtcdStore", BLUE),
    "raw": ("etcd-client, Rust", GREY),
    "TCPStore": ("torch TCPStore", ORANGE),
    "torch": ("torch EtcdStore", RED),
}
PHASES = {"first": ("first round", BLUE, "o"), "member lost": ("after a lost node", RED, "s")}

mpl.rcParams.update(
    {
        "svg.hashsalt": "torchetcd",
        # Text as text: outlines of letters were nine tenths of each file.
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Verdana"],
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
    }
)


def plain(value: float) -> str:
    """A number as people write it: three digits, no exponent."""
    if value == 0:
        return "0"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


PLAIN = FuncFormatter(lambda value, _: plain(value))


def panels(count: int, height: float = 3.4, width: float = 9.0) -> tuple[Figure, Sequence[Axes]]:
    figure, axes = plt.subplots(1, count, figsize=(width, height), squeeze=False)
    return figure, axes[0]


def over_n(axes: Axes, numbers: Iterable[int], title: str) -> None:
    """Both axes logarithmic; the numbers that were measured are the ticks."""
    ticks = sorted(set(numbers))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("nodes")
    axes.set_title(title)


def label_values(axis: Axis, low: float, high: float) -> None:
    """Ticks at every power of ten, and between them where there are few of those."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    axis.set_major_formatter(PLAIN)
    axis.set_minor_formatter(NullFormatter())


def fit(axes: Axes) -> None:
    """At least a decade, else a flat line looks like a mountain range."""
    low, high = axes.get_ylim()
    if high / low < 10:
        low, high = low / 2, high * 2
        axes.set_ylim(low, high)
    label_values(axes.yaxis, low, high)


def save(figure: Figure, name: str, content: Row, out: Path) -> None:
    machine = content["machine"]
    place = f"{machine['cpu']}, {machine['memory']}, {machine['system']}"
    versions = ", ".join(
        f"{one} {machine[one]}" for one in ("python", "torch", "torchetcd", "etcd")
    )
    caption = [f"{place}; {versions}; {machine['date']}"]
    caption += textwrap.wrap(content["command"], 130)
    below = 0.15 * len(caption) + 0.1
    labels = sum(len(legend.get_texts()) for legend in figure.legends)
    above = 0.1 + 0.2 * math.ceil(labels / LEGEND_COLUMNS) if labels else 0.0
    height = figure.get_figheight() + below + above
    figure.set_figheight(height)
    figure.tight_layout(rect=(0, below / height, 1, 1 - above / height))
    figure.text(0.012, 0.012, "\n".join(caption), fontsize=6.5, color="#555555", va="bottom")
    out.mkdir(parents=True, exist_ok=True)
    drawn = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(drawn, format="svg", metadata=metadata)
    (out / f"{name}.svg").write_text(small(drawn.getvalue()), encoding="utf-8")
    plt.close(figure)
    print(out / f"{name}.svg")


# Parts of the file that no reader sees: comments, metadata, names without a reference, rotations by zero.
UNSEEN = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>"
    r'|(?<=<g) id="[^"]*"| transform="rotate\(-?0 [^"]*"',
    re.DOTALL,
)


FRACTION = re.compile(r"-?\d+\.\d+")


def _tenths(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}".removesuffix(".0")


def small(svg: str) -> str:
    """Write the same picture shorter: to a tenth of a point, and a line for each group."""
    svg = UNSEEN.sub("", svg)
    svg = re.sub(r"<[^>]+>", lambda tag: FRACTION.sub(_tenths, tag[0]), svg)
    svg = re.sub(r"(?<=>)\s+|\s+(?=<|\"/?>)", "", re.sub(r"\s*\n\s*", " ", svg))
    return svg.replace("<g>", "\n<g>") + "\n"


def by_backend(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {name: [] for name in STYLES}
    for row in rows:
        found.setdefault(f"{row['package']} {row['backend']}", []).append(row)
    return {name: sorted(some, key=lambda row: row["n"]) for name, some in found.items()}


def backend_lines(axes: Axes, rows: list[Row], column: str) -> None:
    for name, some in by_backend(rows).items():
        color, marker = STYLES.get(name, (GREY, "x"))
        points = [(row["n"], row[column]) for row in some if row.get(column)]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=name)


def rendezvous(content: Row, out: Path) -> None:
    rows = content["rows"]
    numbers = [row["n"] for row in rows]
    figure, (barrier, assignment) = panels(2)
    over_n(barrier, numbers, "Rendezvous: seconds to the last rank")
    backend_lines(barrier, rows, "seconds")
    failures = [
        (row["n"], name)
        for name, some in by_backend(rows).items()
        for row in some
        if row.get("complete") is False
    ]
    low, high = barrier.get_ylim()
    # One above the other, over everything that was measured.
    for place, (n, name) in enumerate(failures):
        top = high * 1.7 ** (place + 1)
        barrier.plot(n, top, marker="x", color=STYLES[name][0], ms=7, mew=2, ls="none")
        # Towards the middle, as most of them are at the right end.
        barrier.annotate(
            f"{name} failed ", (n, top), ha="right", va="center", fontsize=7, color=STYLES[name][0]
        )
    if failures:
        barrier.set_ylim(low, high * 1.7 ** (len(failures) + 1))
    over_n(assignment, numbers, "Then assigning worker ranks: seconds more")
    backend_lines(assignment, rows, "assign_s")
    for axes in (barrier, assignment):
        fit(axes)
    legend_above(figure, barrier)
    save(figure, "rendezvous", content, out)

    figure, (rpcs, sizes) = panels(2)
    over_n(rpcs, numbers, "Rendezvous: RPCs per node at etcd")
    backend_lines(rpcs, rows, "rpcs")
    over_n(sizes, numbers, "Bytes per node at etcd, both ways")
    backend_lines(sizes, rows, "bytes")
    for axes in (rpcs, sizes):
        fit(axes)
    legend_above(figure, rpcs)
    save(figure, "rendezvous_cost", content, out)


# As many as fit beside each other.
LEGEND_COLUMNS = 5


def legend_above(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, above them, where `save` leaves room for it."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(len(labels), LEGEND_COLUMNS)
    figure.legend(
        handles, labels, loc="upper left", ncols=columns, fontsize=8, bbox_to_anchor=(0, 1)
    )


def scale(content: Row, out: Path) -> None:
    rows = [row for row in content["rows"] if row.get("phase") in PHASES]
    figure, (seconds, cost) = panels(2)
    over_n(seconds, [row["n"] for row in rows], "Simulated nodes: seconds to the last rank")
    over_n(cost, [row["n"] for row in rows], "Per node at etcd")
    for phase, (label, color, marker) in PHASES.items():
        some = sorted((row for row in rows if row["phase"] == phase), key=lambda row: row["n"])
        for axes, column, what, style in (
            (seconds, "seconds", "", "-"),
            (cost, "rpcs", "RPCs, ", "-"),
            (cost, "keys", "keys, ", "--"),
        ):
            points = [(row["n"], row[column]) for row in some if row.get(column)]
            if points:
                line = {"color": color, "marker": marker, "ls": style, "label": what + label}
                axes.plot(*zip(*points, strict=True), **line)
    fit(seconds)
    seconds.legend(fontsize=8)
    # What is to be seen is that they do not grow.
    cost.set_yscale("linear")
    cost.set_ylim(0, cost.get_ylim()[1] * 1.4)
    cost.legend(fontsize=8, ncols=2, loc="upper left")
    save(figure, "scale", content, out)


def bars(axes: Axes, groups: list[str], series: list[tuple[str, str, list[float | None]]]) -> None:
    """Grouped horizontal bars on a logarithmic axis, each with its figure."""
    each = [value for _, _, values in series for value in values if value]
    height = 0.8 / len(series)
    for index, (label, color, values) in enumerate(series):
        places = [group + (index + 0.5) * height - 0.4 for group in range(len(groups))]
        there = [(at, value) for at, value in zip(places, values, strict=True) if value]
        if not there:
            continue
        ys, xs = zip(*there, strict=True)
        axes.barh(ys, xs, height * 0.9, color=color, label=label)
        for at, value in there:
            axes.annotate(
                plain(value),
                (value, at),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xscale("log")
    # From a power of ten to some room for the last figure.
    low = 10 ** math.floor(math.log10(min(each) * 0.9))
    high = max(each) * 3
    axes.set_xlim(low, high)
    label_values(axes.xaxis, low, high)


def store(content: Row, out: Path) -> None:
    rows = content["rows"]
    times = {
        (row["operation"], row["store"]): row["median_us"] for row in rows if "median_us" in row
    }
    put, get = times.get(("put", "raw")), times.get(("get", "raw"))
    floor = {"set": put, "get": get}
    if put and get:
        floor["wake get"] = floor["wake busy"] = put + 1.5 * get
    names = [name for name in STORES if any(row["store"] == name for row in rows)]

    def series(operations: list[str], unit: float) -> list[tuple[str, str, list[float | None]]]:
        found = []
        for name in names:
            label, color = STORES[name]
            values = [
                floor.get(operation) if name == "raw" else times.get((operation, name))
                for operation in operations
            ]
            found.append((label, color, [value and value / unit for value in values]))
        return [one for one in found if any(one[2])]

    figure, (single, many) = panels(2, height=5.6)
    ones = ["set", "get", "check", "add", "wake get", "wake busy"]
    bars(single, ones, series(ones, 1))
    single.set_yticks(
        range(len(ones)), [*ones[:-2], "set in A to\nget in B", "the same while\nC sets"]
    )
    single.set_title("One key: microseconds, median")
    thousands = ["multi_get", "multi_set", "wait"]
    bars(many, thousands, series(thousands, 1e3))
    many.set_title("1,000 keys: milliseconds, median")
    legend_above(figure, single)
    save(figure, "store_latency", content, out)

    rates = {(row["operation"], row["store"]): row["rate"] for row in rows if "rate" in row}
    counts = sorted({row["processes"] for row in rows if "rate" in row})
    if not counts:
        return
    figure, (axes,) = panels(1, height=0.9 + 0.9 * len(counts))
    found = []
    for name in names:
        label, color = STORES[name]
        found.append((label, color, [rates.get((f"add x {count}", name)) for count in counts]))
    bars(axes, [f"{count} processes" for count in counts], found)
    axes.set_title("Adding to one key: calls per second of all processes")
    legend_above(figure, axes)
    save(figure, "store_add", content, out)


def recovery(content: Row, out: Path) -> None:
    rows = content["rows"]
    faults = list(dict.fromkeys(row["fault"] for row in rows))
    moments = {
        "reported_s": "reported to survivors",
        "world_s": "new world",
        "first_step_s": "first step",
    }
    labels = list(dict.fromkeys(map(recovery_label, rows)))
    colors = recovery_colors(labels)
    figure, every = panels(len(faults), height=3.2, width=max(3.6 * len(faults), 7))
    for axes, fault in zip(every, faults, strict=True):
        some = [row for row in rows if row["fault"] == fault]
        height = 0.8 / len(some)
        for label in labels:
            axes.barh(0, 0, color=colors[label], label=label)
        for index, row in enumerate(some):
            for group, column in enumerate(moments):
                at = group + (index + 0.5) * height - 0.4
                recovery_bar(axes, at, height * 0.9, row.get(column), colors[recovery_label(row)])
        axes.set_yticks(range(len(moments)), moments.values() if axes is every[0] else [])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, axes.get_xlim()[1] * 1.2)
        axes.set_xlabel("seconds after the fault")
        axes.set_title(f"A node lost by {fault}")
    legend_above(figure, every[0])
    save(figure, "recovery", content, out)


def recovery_label(row: Row) -> str:
    ttl = row.get("ttl_s")
    return row["backend"] if ttl is None else f"{row['backend']}, TTL {ttl:g} s"


def recovery_colors(labels: list[str]) -> dict[str, str]:
    """Blue and green for this package, the warm colours for the others."""
    own, peers = itertools.cycle([BLUE, SKY, GREEN]), itertools.cycle([ORANGE, RED, PURPLE, GREY])
    return {label: next(own if "etcd" in label else peers) for label in labels}


def recovery_bar(axes: Axes, at: float, height: float, value: Any, color: str) -> None:
    """A number, or a text such as "> 60": beyond the limit."""
    if value is None:
        return
    length, text = (value, plain(value)) if isinstance(value, int | float) else (0.0, str(value))
    if text.startswith("> "):
        length = float(text[2:])
        axes.barh(at, length, height, color="white", edgecolor=color, hatch="////")
    else:
        axes.barh(at, length, height, color=color)
    axes.annotate(
        text, (length, at), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7
    )


def idle(content: Row, out: Path) -> None:
    """What has a limit, as a share of it."""
    found = []
    for row in content["rows"]:
        limit = str(row.get("target") or "").lstrip("<= ")
        if row.get("value") is not None and limit.replace(".", "", 1).isdigit():
            found.append((row, float(limit)))
    if not found:
        return
    figure, (axes,) = panels(1, height=0.8 + 0.28 * len(found))
    for at, (row, limit) in enumerate(found):
        # Where nothing is allowed, anything is too much.
        share = row["value"] / limit if limit else 2.0 * bool(row["value"])
        axes.barh(at, share * 100, 0.6, color=BLUE if share <= 1 else RED)
        text = f"{plain(row['value'])} {row.get('unit', '')}".strip() + f" (limit {plain(limit)})"
        axes.annotate(
            text,
            (share * 100, at),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.set_yticks(
        range(len(found)), [textwrap.fill(row["what"], 60) for row, _ in found], fontsize=7
    )
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.axvline(100, color=GREY, lw=1, ls="--")
    axes.set_xlim(0, max(axes.get_xlim()[1], 100) * 1.3)
    axes.set_xlabel("% of the limit")
    axes.set_title("An agent after the barrier")
    save(figure, "idle", content, out)


PLOTS: dict[str, Callable[[Row, Path], None]] = {
    "rendezvous": rendezvous,
    "scale": scale,
    "store": store,
    "recovery": recovery,
    "idle": idle,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DOCS / "data")
    parser.add_argument("--out", type=Path, default=DOCS)
    args = parser.parse_args()
    for name, draw in PLOTS.items():
        file = args.data / f"{name}.json"
        if file.is_file():
            draw(json.loads(file.read_text(encoding="utf-8")), args.out)
        else:
            print(f"{name}: no data")


if __name__ == "__main__":
    main()
