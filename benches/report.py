"""What all benchmarks print and write: a table, and JSON that says where its figures are from."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import torchetcd
from torchetcd.etcd_server import find_binary

Row = dict[str, Any]


def machine() -> dict[str, str]:
    """The machine and the versions that a figure depends on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    etcd = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": f"{len(os.sched_getaffinity(0))} x {model}",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchetcd": torchetcd.__version__,
        "etcd": etcd.stdout.splitlines()[0].split(":")[1].strip(),
    }


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser


class Report:
    """The rows of one benchmark, printed as they come."""

    def __init__(
        self, name: str, columns: Iterable[str], json_file: Path | None, **conditions: object
    ) -> None:
        self.name = name
        self.rows: list[Row] = []
        self._json_file = json_file
        self._columns = list(columns)
        self._machine = machine()
        self._conditions = conditions
        told = [f"{key}={value}" for key, value in conditions.items()]
        print(f"{name}: " + ", ".join([*self._machine.values(), *told]))
        self._print(dict(zip(self._columns, self._columns, strict=True)))

    def add(self, **row: Any) -> None:
        """Print the columns of a row and keep all of it."""
        self.rows.append(row)
        self._print(row)
        # Each time: a long benchmark may be interrupted.
        self._write()

    def _print(self, row: Row) -> None:
        cells = (_text(row.get(column)) for column in self._columns)
        widths = (max(len(column), 10) + 2 for column in self._columns)
        print(
            " ".join(f"{cell:>{width - 1}}" for cell, width in zip(cells, widths, strict=True)),
            flush=True,
        )

    def end(self) -> None:
        """Say where the rows are."""
        if self._json_file is not None:
            print(f"written to {self._json_file}")

    def _write(self) -> None:
        if self._json_file is None:
            return
        # Where things lie on this machine is nobody's business.
        words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
        command = f"python {shlex.join([os.path.relpath(sys.argv[0]), *words])}"
        content = {
            "benchmark": self.name,
            "command": command,
            "machine": self._machine,
            **self._conditions,
            "rows": self.rows,
        }
        self._json_file.parent.mkdir(parents=True, exist_ok=True)
        self._json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
