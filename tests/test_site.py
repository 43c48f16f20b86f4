"""Where the site is, and that what is linked to it exists."""

from __future__ import annotations

import yaml

from docs_blocks import ROOT

SITE = "https://torchetcd.github.io/torchetcd/"


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


def test_plots_are_small() -> None:
    """Text of a plot is text, not outlines of letters."""
    plots = sorted((ROOT / "docs" / "benchmarks").glob("*.svg"))
    assert plots
    for plot in plots:
        assert "<text" in plot.read_text(encoding="utf-8")
        assert plot.stat().st_size < 50_000, plot.name
