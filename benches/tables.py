"""Put the tables of docs/benchmarks/data/*.json into docs/benchmarks/README.md, between their markers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
Row = dict[str, Any]

# Where package and backend do not say what it is.
NAMES = {
    "torchetcd dynamic": "torch's `DynamicRendezvousHandler` on torchetcd's `EtcdRendezvousBackend`",
}


def text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(head: list[str], lines: list[list[object]]) -> str:
    rows = [head, ["---"] * len(head), *([text(cell) for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def rendezvous(rows: list[Row]) -> str:
    numbers = sorted({row["n"] for row in rows})
    found = {(row["package"], row["backend"], row["n"]): row for row in rows}
    names = list(dict.fromkeys((row["package"], row["backend"]) for row in rows))
    lines = [
        [NAMES.get(f"{package} {backend}", f"{package} `{backend}`")]
        + [(found.get((package, backend, n)) or {}).get("seconds") for n in numbers]
        for package, backend in names
    ]
    return table(["N", *map(str, numbers)], lines)


def columns(*names: str) -> Any:
    def make(rows: list[Row]) -> str:
        return table(list(names), [[row.get(name) for name in names] for row in rows])

    return make


def store(rows: list[Row]) -> str:
    own = [row for row in rows if row["store"] == "torchetcd" and row["kind"] != "rpcs"]
    names = ["operation", "median_us", "rate", "raw", "raw_mt", "TCPStore", "torch"]
    head = [
        "operation",
        "us",
        "per second",
        "to raw",
        "to raw_mt",
        "to TCPStore",
        "to torch's EtcdStore",
    ]
    return table(head, [[row.get(name) for name in names] for row in own])


TABLES = {
    "rendezvous": rendezvous,
    "scale": columns(
        "phase", "n", "seconds", "rounds", "rpcs", "renewals", "bytes", "keys", "events"
    ),
    "store": store,
    "recovery": columns(
        "backend", "fault", "ttl_s", "reported_s", "with_spare_s", "world_s", "first_step_s"
    ),
    "idle": columns("what", "value", "unit", "target"),
    "quorum": columns("what", "value", "unit", "target"),
    "watch": columns("what", "nodes", "events", "median_ms", "p99_ms", "max_ms"),
}


def main() -> None:
    page = DOCS / "README.md"
    content = page.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        data = DOCS / "data" / f"{name}.json"
        if not data.exists():
            continue
        made = make(json.loads(data.read_text(encoding="utf-8"))["rows"])
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        block = f"{begin}\n{made}\n{end}"
        content, count = re.subn(pattern, lambda _, block=block: block, content, flags=re.DOTALL)
        if count != 1:
            message = f"{page} has no place for the table of {name}"
            raise SystemExit(message)
    page.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
