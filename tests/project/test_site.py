"""Where the site is, and that what is linked to it exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from support import ROOT

SITE = "https://torchetcd.github.io/torchetcd/"


def page_of(url: str) -> Path | None:
    """Give the source of a page of the site; `None` if there is none."""
    name = url.removeprefix(SITE).partition("#")[0].strip("/")
    docs = ROOT / "docs"
    for source in (docs / f"{name}.md", docs / name / "index.md", docs / name / "README.md"):
        if source.is_file():
            return source
    return None


def test_the_package_and_the_site_agree() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"\nsite_url: {SITE}\n" in config
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nDocumentation = "{SITE}"\n' in project


def test_a_workflow_publishes_it() -> None:
    path = ROOT / ".github" / "workflows" / "site.yml"
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    assert {"run": "make docs"} in jobs["build"]["steps"]
    assert jobs["publish"]["needs"] == "build"


def test_links_to_it_have_a_page() -> None:
    found = 0
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")):
        for url in re.findall(rf"{re.escape(SITE)}[^\s)\"']*", path.read_text(encoding="utf-8")):
            assert page_of(url), f"{path.name} links to {url}"
            found += 1
    assert found


def test_plots_are_small() -> None:
    """Text of a plot is text, not outlines of letters."""
    plots = sorted((ROOT / "docs" / "benchmarks").glob("*.svg"))
    assert plots
    for plot in plots:
        assert "<text" in plot.read_text(encoding="utf-8")
        assert plot.stat().st_size < 50_000, plot.name


def test_plots_stand_in_the_page() -> None:
    page = (ROOT / "docs" / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for plot in (ROOT / "docs" / "benchmarks").glob("*.svg"):
        assert re.search(rf"!\[[^\]]+\]\({plot.name}\)", page), plot.name


def test_the_readme_begins_with_what_a_reader_asks_first() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first, *sections = readme.split("\n## ")
    assert "docs/img/why.svg" in first
    names = [section.partition("\n")[0] for section in sections]
    wanted = ["Install", "Use", "What nothing else does", "Documentation", "Benchmarks", "Limits"]
    assert [name for name in names if name in wanted] == wanted


def test_lines_of_code_are_wrapped() -> None:
    """They ran out of their boxes where a screen was too narrow."""
    assert "extra_css: [site.css]" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    style = (ROOT / "docs" / "site.css").read_text(encoding="utf-8")
    assert re.search(r"pre > code \{\s+white-space: pre-wrap;", style)


def test_output_in_columns_stays_aligned() -> None:
    pytest.importorskip("mkdocs")
    from docs_hooks import MOST_COLUMNS, OUTPUT, columns

    table = "```text\nRUN     STATE\nmy-job     complete\n```"
    assert OUTPUT.sub(columns, table).startswith("```{ .text .columns }\n")
    for prose in (table.replace("     ", " "), table.replace("STATE", "x" * MOST_COLUMNS)):
        assert OUTPUT.sub(columns, prose) == prose


def _row(name: str, **wanted: object) -> dict[str, float]:
    path = ROOT / "docs" / "benchmarks" / "data" / f"{name}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return next(row for row in rows if wanted.items() <= row.items())


def test_figures_are_those_of_the_data() -> None:
    """After a new benchmark the first page and the README have its figures, too."""
    world = _row("rendezvous", package="torchetcd", backend="etcd-v3", n=256)["seconds"]
    told = _row("recovery", backend="etcd-v3", fault="SIGKILL")["reported_s"]
    large = _row("scale", phase="first", n=8000)["seconds"]
    home = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"^\*\*([\d.]+) s\*\*$", home, re.MULTILINE) == [
        f"{seconds:.1f}" for seconds in (world, told, large)
    ]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"learned of a killed node after {told:.1f} s" in readme
    assert f"8,000 nodes formed a world in {large:.1f} s" in readme
    assert f"| {world:.1f} |" in readme
