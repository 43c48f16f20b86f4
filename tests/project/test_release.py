"""What a release needs to agree: versions, metadata, the sdist, and the workflows that make it.

The wheel itself is tried by `make test-wheel`, which builds it.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import check_wheel
import torchetcd
from support import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


class TestVersion:
    def test_of_the_package(self) -> None:
        assert torchetcd.__version__ == check_wheel.version()

    def test_of_the_lock_file(self) -> None:
        lock = (ROOT / "Cargo.lock").read_text(encoding="utf-8")
        assert f'name = "torchetcd"\nversion = "{check_wheel.version()}"' in lock

    def test_of_the_changelog(self) -> None:
        """The newest section is that of this version, or of the one to come."""
        changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        newest = re.search(r"^## \[(.+?)\]( - \d{4}-\d\d-\d\d)?$", changelog, re.MULTILINE)
        assert newest
        assert newest[1] in {"Unreleased", check_wheel.version()}
        assert bool(newest[2]) == (newest[1] != "Unreleased")

    def test_there_is_one_place_for_it(self) -> None:
        assert 'dynamic = ["version"]' in PYPROJECT
        assert not re.search(r"^version = ", PYPROJECT, re.MULTILINE)


class TestMetadata:
    def test_pythons(self) -> None:
        """The ABI, `requires-python`, the classifiers and CI's matrix name the same ones."""
        cargo = (ROOT / "Cargo.toml").read_text(encoding="utf-8")
        classified = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
        assert f"abi3-py{classified[0].replace('.', '')}" in cargo
        assert f'requires-python = ">={classified[0]}"' in PYPROJECT
        tested = {row["python"] for row in _matrix()}
        assert tested == set(classified)

    def test_the_oldest_torch_is_tested(self) -> None:
        oldest = re.search(r'dependencies = \["torch>=([\d.]+)"\]', PYPROJECT)
        assert oldest
        assert {row["torch"] for row in _matrix()} == {"torch", f"torch=={oldest[1]}.*"}

    def test_etcds(self) -> None:
        tested = {re.match(r"v(\d+\.\d+)", row["etcd"])[1] for row in _matrix()}
        assert tested == {"3.4", "3.5", "3.6", "3.7"}

    def test_entry_points(self) -> None:
        groups = re.findall(r'\[project\.entry-points\."(.+)"\]\n((?:[\w-]+ = ".+"\n)+)', PYPROJECT)
        assert "torchrun.handlers" in dict(groups)
        for _, lines in groups:
            for value in re.findall(r'= "(.+)"', lines):
                entry = importlib.metadata.EntryPoint("x", value, "x")
                assert callable(entry.load())


class TestSdist:
    def test_contents(self, tmp_path: Path) -> None:
        maturin = Path(sys.executable).with_name("maturin")
        if not maturin.is_file() or not shutil.which("cargo"):
            pytest.skip("maturin and cargo make it")
        made = subprocess.run(
            [str(maturin), "sdist", "--out", str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        (sdist,) = tmp_path.glob("*.tar.gz")
        check_wheel.check_sdist(sdist)

    def test_what_is_missing_is_seen(self, tmp_path: Path) -> None:
        path = tmp_path / "torchetcd-0.tar.gz"
        with tarfile.open(path, "w:gz") as sdist:
            sdist.add(ROOT / "Cargo.toml", "torchetcd-0/Cargo.toml")
        with pytest.raises(check_wheel.WrongPackageError, match=r"lacks .*Cargo.lock"):
            check_wheel.check_sdist(path)


class TestWheel:
    """That the check of a wheel sees what is wrong."""

    def _wheel(self, folder: Path, *, without: str = "", more: str = "", size: int = 1) -> Path:
        version = check_wheel.version()
        path = folder / f"torchetcd-{version}-cp310-abi3-manylinux_2_28_x86_64.whl"
        info = f"torchetcd-{version}.dist-info"
        texts = {
            f"{info}/METADATA": f"Version: {version}\nRequires-Python: >=3.10\nRequires-Dist: torch>=2.6\n\n",
            f"{info}/entry_points.txt": "[torchrun.handlers]\netcd-v3=x:y\n",
            f"{info}/licenses/LICENSE": "",
            "torchetcd/_torchetcd.abi3.so": "x" * size,
        }
        for file in (ROOT / "python").rglob("*"):
            if file.suffix in {".py", ".pyi"} or file.name == "py.typed":
                texts[file.relative_to(ROOT / "python").as_posix()] = ""
        if more:
            texts[more] = ""
        texts.pop(without, None)
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in texts.items():
                wheel.writestr(name, text)
        return path

    def test_a_good_one(self, tmp_path: Path) -> None:
        check_wheel.check_wheel(self._wheel(tmp_path))

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"without": "torchetcd/py.typed"}, "lacks .*py.typed"),
            ({"without": "torchetcd_entry.py"}, "lacks .*torchetcd_entry.py"),
            ({"without": "torchetcd/_torchetcd.abi3.so"}, "0 extensions"),
            ({"more": "tests/conftest.py"}, "tests/conftest.py"),
            ({"size": check_wheel.MOST_WHEEL}, "more than 6"),
        ],
    )
    def test_a_wrong_one(self, tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
        with pytest.raises(check_wheel.WrongPackageError, match=said):
            check_wheel.check_wheel(self._wheel(tmp_path, **wrong))


def _workflow(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _matrix() -> list[dict[str, str]]:
    jobs = _workflow(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    return jobs["test"]["strategy"]["matrix"]["include"]


def _steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", ())]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
class TestWorkflows:
    """By their structure; actionlint, by hand (docs/releasing.md), knows more."""

    def test_structure(self, path: Path) -> None:
        workflow = _workflow(path)
        # YAML 1.1 takes `on` for true.
        assert workflow.keys() - {True} <= {"name", "permissions", "concurrency", "env", "jobs"}
        assert True in workflow
        assert workflow["permissions"] == {"contents": "read"}
        jobs = workflow["jobs"]
        for name, job in jobs.items():
            needs = job.get("needs", [])
            assert set([needs] if isinstance(needs, str) else needs) <= jobs.keys(), name
            if "uses" in job:
                assert (ROOT / job["uses"]).is_file()
            else:
                assert job["runs-on"]
                assert 0 < job["timeout-minutes"] <= 90, name
                assert all(("run" in step) != ("uses" in step) for step in job["steps"])

    def test_actions_are_pinned(self, path: Path) -> None:
        """To a commit, with its version beside it for people."""
        lines = [line for line in path.read_text().splitlines() if re.match(r"\s*- uses: ", line)]
        assert lines
        for line in lines:
            assert re.search(r"- uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line

    def test_a_secret_is_for_one_job(self, path: Path) -> None:
        """No job but the one that publishes may do more than read, and checkouts leave no token behind."""
        for name, job in _workflow(path)["jobs"].items():
            assert ("permissions" in job) == (name == "publish")
        for step in _steps(_workflow(path)):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False

    def test_commands_are_there(self, path: Path) -> None:
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for step in _steps(_workflow(path)):
            for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
            for tool in re.findall(r"\b(tools/\w+\.py)", step.get("run", "")):
                assert (ROOT / tool).is_file(), tool


def test_what_is_published_is_checked_first() -> None:
    jobs = _workflow(ROOT / ".github" / "workflows" / "wheels.yml")["jobs"]
    assert set(jobs["check"]["needs"]) == {"linux", "macos", "etcd", "sdist"}
    assert set(jobs["publish"]["needs"]) == {"check", "tests"}
    assert jobs["publish"]["if"] == jobs["tests"]["if"] == "startsWith(github.ref, 'refs/tags/v')"
