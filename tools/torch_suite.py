"""Run PyTorch's own tests, unmodified, on torchetcd in place of PyTorch's etcd modules.

    python tools/torch_suite.py ~/pytorch/test/distributed/elastic/rendezvous/etcd_server_test.py

PyTorch's tests are not part of this project: give files or folders of a checkout of PyTorch that
fits the torch that is installed. `torch.distributed.elastic.rendezvous.etcd_server`, `etcd_store`,
`etcd_rendezvous`, `etcd_rendezvous_backend` and `etcd` then are torchetcd's modules, in the tests
and in every process that they start: a directory on PYTHONPATH holds a `sitecustomize` that
redirects the imports and, because torchetcd need not be installed, its entry point.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

_TORCH = "torch.distributed.elastic.rendezvous"
_NAMES = ("etcd_server", "etcd_store", "etcd_rendezvous", "etcd_rendezvous_backend")
_TARGETS = {"etcd": "torchetcd.etcd"} | {f"{_TORCH}.{name}": f"torchetcd.{name}" for name in _NAMES}

_PACKAGE = Path(__file__).resolve().parent.parent / "python"
_METADATA = "Metadata-Version: 2.1\nName: torchetcd\nVersion: 0\n"
_ENTRY_POINT = "[torchrun.handlers]\netcd-v3 = torchetcd._registration:torchrun_handler\n"
_NO_TESTS = 5  # pytest's exit status

# Fails if a name still means PyTorch's own module, which would make the results worthless.
_PROBE = """
import importlib
import torch, torchetcd, torchetcd._registration as registration
import torch.distributed.elastic.rendezvous as rendezvous
for name, target in {targets!r}.items():
    assert importlib.import_module(name) is importlib.import_module(target), name
registry = rendezvous.rendezvous_handler_registry._registry
for name in ("etcd", "etcd-v2"):
    assert (registry[name] is registration.create_handler) == {native!r}, name
print("torch", torch.__version__, "with torchetcd from", torchetcd.__path__[0], flush=True)
"""


class _Redirect(MetaPathFinder, Loader):
    """Finds torchetcd's module under the name of PyTorch's, as the very same module object."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for the names that are redirected, and none for others."""
        del path, target
        if fullname not in _TARGETS:
            return None
        return ModuleSpec(fullname, self, origin=_TARGETS[fullname])

    def exec_module(self, module: ModuleType) -> None:
        """Put torchetcd's module in the place of the empty one that Python has made."""
        sys.modules[module.__name__] = importlib.import_module(_TARGETS[module.__name__])


def redirect() -> None:
    """Redirect the imports of this process; `sitecustomize` calls it."""
    sys.meta_path.insert(0, _Redirect())


@dataclass
class _Result:
    """What became of the tests of one file."""

    path: Path
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    messages: list[str] = field(default_factory=list)

    def row(self) -> str:
        """Return a line of the summary."""
        figures = f"{self.passed:7}{self.failed:7}{self.skipped:8}{self.seconds:8.1f}"
        return f"{figures}  {self.path}"


def _write_hook(folder: Path, *, native: bool) -> None:
    folder.mkdir()
    # By path: the module's own folder stays off sys.path.
    (folder / "sitecustomize.py").write_text(
        "import importlib.util\n"
        f"_spec = importlib.util.spec_from_file_location('_torch_suite', {__file__!r})\n"
        "_module = importlib.util.module_from_spec(_spec)\n"
        "import sys\n"
        "sys.modules[_spec.name] = _module\n"
        "_spec.loader.exec_module(_module)\n"
        "_module.redirect()\n"
    )
    # An installed torchetcd has the same name, so that what stands here hides its metadata.
    info = folder / "torchetcd-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(_METADATA)
    if native:
        (info / "entry_points.txt").write_text(_ENTRY_POINT)


def _environment(hook: Path, etcd: str | None) -> dict[str, str]:
    path = [str(hook)]
    # Without a built extension there, what is installed is meant.
    if any((_PACKAGE / "torchetcd").glob("_torchetcd*.so")):
        path.append(str(_PACKAGE))
    if inherited := os.environ.get("PYTHONPATH"):
        path.append(inherited)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "TORCHETCD_OVERRIDE": "1"}
    if etcd:
        environment["TORCHELASTIC_ETCD_BINARY_PATH"] = etcd
    return environment


def _test_files(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            files = sorted({*path.rglob("*_test.py"), *path.rglob("test_*.py")})
            # Scripts that the tests launch are called like tests, too.
            found += (file for file in files if file.parent.name != "bin")
        else:
            found.append(path)
    return found


def _run_file(
    path: Path, options: argparse.Namespace, folder: Path, environment: dict[str, str]
) -> _Result:
    # A process for each file: some have the same name, and some change the environment for good.
    result = _Result(path)
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-c", str(folder / "pytest.ini"), "--rootdir"]
    command += [str(path.parent), "-p", "no:cacheprovider", "-q", "--tb=short", "-rfE"]
    command += [f"--timeout={options.timeout}", f"--junitxml={report}"]
    command += ["-k", options.keyword] if options.keyword else []
    command += ["-vv", "--durations=5"] if options.verbose else []
    started = time.monotonic()
    process = subprocess.Popen([*command, str(path)], env=environment, start_new_session=True)
    try:
        status = process.wait()
    finally:
        # What a failed test has left running must not disturb the next file.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    result.seconds = time.monotonic() - started
    if report.exists():
        _read_report(report, result)
    if status not in (0, _NO_TESTS) and not result.failed:
        result.failed += 1
        result.messages.append(f"{path.name}: pytest ended with status {status}")
    return result


def _read_report(report: Path, result: _Result) -> None:
    for case in ElementTree.parse(report).iter("testcase"):
        failure = case.find("failure")
        if failure is None:
            failure = case.find("error")
        if failure is not None:
            result.failed += 1
            first_line = (failure.get("message") or "").partition("\n")[0]
            result.messages.append(f"{result.path.name}::{case.get('name')}: {first_line}")
        elif case.find("skipped") is not None:
            result.skipped += 1
        else:
            result.passed += 1


def _print_summary(results: Sequence[_Result]) -> None:
    print("\n passed failed skipped seconds  file")
    for result in results:
        print(result.row())
    total = _Result(Path("all"))
    for result in results:
        total.passed += result.passed
        total.failed += result.failed
        total.skipped += result.skipped
        total.seconds += result.seconds
    print(total.row())
    for result in results:
        for message in result.messages:
            print(f"FAILED {message}")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path, help="files and folders of PyTorch's tests")
    parser.add_argument("-k", dest="keyword", metavar="EXPRESSION", help="pytest's choice of tests")
    parser.add_argument("--etcd", metavar="PATH", help="the etcd to test with")
    parser.add_argument(
        "--handler",
        choices=("native", "torch"),
        default="native",
        help="what 'etcd-v2' is: torchetcd's handler (the default), or torch's own dynamic one on "
        "torchetcd's EtcdRendezvousBackend and EtcdStore",
    )
    parser.add_argument("--timeout", type=int, default=300, help="seconds a test may take")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each test")
    return parser.parse_args()


def main() -> int:
    """Run the tests; the result is the exit status."""
    options = _parse_arguments()
    native = options.handler == "native"
    with tempfile.TemporaryDirectory(prefix="torch_suite_") as folder:
        hook = Path(folder, "hook")
        _write_hook(hook, native=native)
        Path(folder, "pytest.ini").write_text("[pytest]\n")  # not that of a project around
        environment = _environment(hook, options.etcd)
        probe = _PROBE.format(targets=_TARGETS, native=native)
        if subprocess.run([sys.executable, "-c", probe], env=environment, check=False).returncode:
            print("PyTorch's etcd modules are not redirected; nothing was tested.")
            return 2
        files = _test_files(options.paths)
        results = [_run_file(file, options, Path(folder), environment) for file in files]
    _print_summary(results)
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
