"""What the package shows to the outside: its names, its registration, the table of parameters."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed import Store
from torch.distributed.elastic.rendezvous import RendezvousHandler
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import RendezvousBackend

import torchetcd
from support import ROOT
from support.processes.zygote import Zygote, run_forked
from torchetcd._environment import VARIABLES
from torchetcd._rendezvous.options import PARAMETERS

# With torch's own, what the takeover has to make room for.
SHOW_REGISTRY = """
import logging
logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry as registry
{then}
for name in ("etcd", "etcd-v2", "etcd-v3", "c10d", "static"):
    print(name, registry._registry[name].__module__)
"""
TORCHS_OWN = "torch.distributed.elastic.rendezvous.registry"
OURS = "torchetcd._registration"


def _environment(env: dict[str, str] | None) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TORCHETCD_", "TORCH_"))}
    return inherited | (env or {})


def _run(
    source: str | Path, folder: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a text or a file as a program."""
    program = [str(source)] if isinstance(source, Path) else ["-c", source]
    return subprocess.run(
        [sys.executable, *program],
        cwd=folder,
        env=_environment(env),
        capture_output=True,
        text=True,
        check=True,
    )


# What remains of the start of the interpreter, and of the import of torch.
BEGINS = """
import os, sys
os.chdir({folder!r})
sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
sys.modules.pop("sitecustomize", None)
try:
    import sitecustomize
except ImportError:
    pass
import torch
if torch._is_device_backend_autoload_enabled():
    torch._import_device_backends()
"""


def _run_with(
    torch_alone: Zygote, source: str, folder: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a text as a program, but for the 3 s that it takes to import torch."""
    program = BEGINS.format(folder=str(folder)) + source
    done = run_forked(torch_alone, program, _environment(env))
    assert not done.returncode, done.stderr
    return done


class TestNames:
    def test_of_the_package(self) -> None:
        assert set(torchetcd.__all__) == {"__version__", "register"}
        assert torchetcd.__version__ == importlib.metadata.version("torchetcd")

    @pytest.mark.parametrize(
        ("module", "names"),
        [
            (
                "etcd_rendezvous",
                [
                    "EtcdRendezvous",
                    "EtcdRendezvousHandler",
                    "EtcdRendezvousRetryImmediately",
                    "EtcdRendezvousRetryableFailure",
                    "create_rdzv_handler",
                ],
            ),
            ("etcd_rendezvous_backend", ["EtcdRendezvousBackend", "create_backend"]),
            ("etcd_server", ["EtcdServer", "find_free_port", "stop_etcd"]),
            ("etcd_store", ["EtcdStore"]),
            ("etcd", ["Client", "EtcdResult", "EtcdException", "EtcdKeyNotFound"]),
        ],
    )
    def test_of_modules_are_torchs(self, module: str, names: list[str]) -> None:
        ours = importlib.import_module(f"torchetcd.{module}")
        for name in names:
            assert getattr(ours, name).__doc__
        if module != "etcd":
            # Found, not imported: some of torch's need python-etcd or urllib3.
            assert importlib.util.find_spec(f"torch.distributed.elastic.rendezvous.{module}")

    @pytest.mark.parametrize(
        ("module", "name", "parameters"),
        [
            (
                "etcd_rendezvous",
                "EtcdRendezvous",
                "client prefix run_id num_min_workers num_max_workers timeout last_call_timeout",
            ),
            ("etcd_rendezvous", "EtcdRendezvousHandler", "rdzv_impl local_addr"),
            ("etcd_rendezvous", "create_rdzv_handler", "params"),
            ("etcd_rendezvous_backend", "EtcdRendezvousBackend", "client run_id key_prefix ttl"),
            ("etcd_rendezvous_backend", "create_backend", "params"),
            ("etcd_server", "EtcdServer", "data_dir"),
            ("etcd_server", "find_free_port", ""),
            ("etcd_server", "stop_etcd", "subprocess data_dir"),
            ("etcd_store", "EtcdStore", "etcd_client etcd_store_prefix timeout"),
        ],
    )
    def test_parameters_are_torchs(self, module: str, name: str, parameters: str) -> None:
        """By position and, where users give them so, by name."""
        ours = getattr(importlib.import_module(f"torchetcd.{module}"), name)
        wanted = parameters.split()
        assert list(inspect.signature(ours).parameters)[: len(wanted)] == wanted

    def test_bases_are_torchs(self) -> None:
        from torchetcd.etcd_rendezvous import EtcdRendezvousHandler
        from torchetcd.etcd_rendezvous_backend import EtcdRendezvousBackend
        from torchetcd.etcd_store import EtcdStore

        assert issubclass(EtcdRendezvousHandler, RendezvousHandler)
        assert issubclass(EtcdRendezvousBackend, RendezvousBackend)
        assert issubclass(EtcdStore, Store)
        assert not inspect.isabstract(EtcdRendezvousHandler)

    def test_types_are_shipped(self) -> None:
        assert (Path(torchetcd.__file__).parent / "py.typed").is_file()


def test_an_import_is_cheap() -> None:
    """No torch, no thread; and no thread either where a handler could be made."""
    source = """
import sys, os
import torchetcd, torchetcd.etcd, torchetcd.etcd_server, torchetcd.aio
import torchetcd.metrics, torchetcd.diagnosis, torchetcd.tracing
import torchetcd._registration, torchetcd._rendezvous.options
assert not any(name == "torch" or name.startswith("torch.") for name in sys.modules)
assert len(os.listdir("/proc/self/task")) == 1, os.listdir("/proc/self/task")
client = torchetcd.etcd.Client("localhost")
assert len(os.listdir("/proc/self/task")) == 1, os.listdir("/proc/self/task")
import torch
before = len(os.listdir("/proc/self/task"))
import torchetcd.etcd_rendezvous, torchetcd.etcd_store, torchetcd.etcd_rendezvous_backend
assert len(os.listdir("/proc/self/task")) == before
assert not __import__("logging").getLogger("torchetcd").handlers
print("ok")
"""
    assert _run(source).stdout == "ok\n"


class TestRegistration:
    """In processes of their own: torch registers once, when its rendezvous package is imported."""

    @pytest.fixture(autouse=True)
    def _zygote(self, torch_alone: Zygote) -> None:
        self._torch_alone = torch_alone

    @pytest.fixture
    def python_etcd(self, tmp_path: Path) -> str:
        """Where a module named as python-etcd's is found."""
        package = tmp_path / "etcd"
        package.mkdir()
        (package / "__init__.py").write_text("")
        return str(tmp_path)

    def _registry(
        self, then: str = "", python_etcd: str | None = None, **env: str
    ) -> tuple[dict[str, str], str]:
        if python_etcd is not None:
            paths = [python_etcd, os.environ.get("PYTHONPATH", "")]
            env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        done = _run_with(self._torch_alone, SHOW_REGISTRY.format(then=then), env=env)
        shown = dict(line.split() for line in done.stdout.splitlines())
        assert shown.pop("c10d") == shown.pop("static") == TORCHS_OWN
        assert shown["etcd-v3"] == OURS
        assert shown["etcd"] == shown["etcd-v2"]
        lines = [line for line in done.stderr.splitlines() if line.startswith("torchetcd")]
        assert len(lines) == 1 + bool(then)
        return shown, lines[-1]

    def test_without_python_etcd(self) -> None:
        shown, line = self._registry()
        assert shown["etcd"] == OURS
        assert "'etcd' and 'etcd-v2': python-etcd is not installed" in line

    def test_with_python_etcd(self, python_etcd: str) -> None:
        shown, line = self._registry(python_etcd=python_etcd)
        assert shown["etcd"] == TORCHS_OWN
        assert "stay, because python-etcd is installed" in line
        assert "TORCHETCD_OVERRIDE=1" in line

    def test_by_the_environment(self, python_etcd: str) -> None:
        shown, line = self._registry(python_etcd=python_etcd, TORCHETCD_OVERRIDE="1")
        assert shown["etcd"] == OURS
        assert line.endswith("TORCHETCD_OVERRIDE=1 is set.")
        shown, _ = self._registry(python_etcd=python_etcd, TORCHETCD_OVERRIDE="0")
        assert shown["etcd"] == TORCHS_OWN

    def test_by_a_call(self, python_etcd: str) -> None:
        override = "import torchetcd; torchetcd.register(override=True)"
        shown, line = self._registry(override, python_etcd)
        assert shown["etcd"] == OURS
        assert "register(override=True) was called" in line
        shown, _ = self._registry("import torchetcd; torchetcd.register()", python_etcd)
        assert shown["etcd"] == TORCHS_OWN

    @pytest.mark.parametrize("stand_in", ["types.ModuleType('etcd')", "None"])
    def test_a_stand_in_is_no_python_etcd(self, tmp_path: Path, stand_in: str) -> None:
        """As programs make for what imports python-etcd and does not need it."""
        (tmp_path / "sitecustomize.py").write_text(
            f"import sys, types\nsys.modules['etcd'] = {stand_in}\n"
        )
        shown, line = self._registry(python_etcd=str(tmp_path))
        assert shown["etcd"] == OURS
        assert "python-etcd is not installed" in line

    def test_a_folder_named_etcd_is_no_python_etcd(self, tmp_path: Path) -> None:
        """Such as the data of a server in the working directory."""
        (tmp_path / "etcd" / "member").mkdir(parents=True)
        shown, _ = self._registry(python_etcd=str(tmp_path))
        assert shown["etcd"] == OURS


class TestImportOfTorch:
    """Where torchetcd is installed torch loads a part of it, and must come to no harm by it."""

    @pytest.mark.parametrize("kind", ["file", "package"])
    @pytest.mark.parametrize("of_agent", ["", "yes"])
    def test_another_module_of_the_name(
        self, tmp_path: Path, kind: str, of_agent: str, torch_alone: Zygote
    ) -> None:
        """Such as a script of the user's."""
        hides = tmp_path / ("torchetcd.py" if kind == "file" else "torchetcd/__init__.py")
        hides.parent.mkdir(exist_ok=True)
        hides.write_text("print('was run')\n")
        source, env = "import torch; print('imported')", {"TORCHETCD_WORKER_STORE": of_agent}
        if kind == "file" and of_agent:  # one of them as it is
            done = _run(source, tmp_path, env)
        else:
            done = _run_with(torch_alone, source, tmp_path, env)
        assert done.stdout == "imported\n"
        assert (f"{hides} hides the installed package torchetcd" in done.stderr) == bool(of_agent)

    def test_a_script_of_the_name_runs_once(self, tmp_path: Path) -> None:
        script = tmp_path / "torchetcd.py"
        script.write_text("""
print("begins")
import torch.distributed as dist, torch.distributed.elastic.rendezvous
try:
    dist.init_process_group("gloo", init_method="etcd-v3://localhost/job", rank=0, world_size=1)
except ImportError as exc:
    print(exc)
""")
        done = _run(script, tmp_path)
        assert done.stdout.splitlines() == [
            "begins", f"{script} hides the installed package torchetcd: give it another name.",
        ]  # fmt: skip

    @pytest.mark.parametrize("missing", ["register_rendezvous_handler", "_rendezvous_handlers"])
    def test_a_torch_that_cannot_be_told(self, missing: str, torch_alone: Zygote) -> None:
        """The only one of both that torch promises is the first."""
        source = f"""
import torch.distributed, sys
rendezvous = sys.modules["torch.distributed.rendezvous"]
del rendezvous.{missing}
import torchetcd_entry
torchetcd_entry.autoload()
print("went on")
"""
        told = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "TORCHETCD_WORKER_STORE": "yes"}
        done = _run_with(torch_alone, source, env=told)
        assert done.stdout == "went on\n"
        assert done.stderr.startswith("torchetcd cannot serve this process")
        assert missing in done.stderr or "handler of env:// can be replaced" in done.stderr

    def test_a_torch_whose_names_cannot_be_taken_over(self, torch_alone: Zygote) -> None:
        source = """
import logging
logging.basicConfig(format="%(name)s: %(message)s")
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry as registry
class Other:
    def register(self, name, creator):
        print("registered", name)
import torch.distributed.elastic.rendezvous.api as api
import torch.distributed.elastic.rendezvous as package
package.rendezvous_handler_registry = api.rendezvous_handler_registry = Other()
import torchetcd
torchetcd.register(override=True)
"""
        done = _run_with(torch_alone, source)
        assert done.stdout == "registered etcd-v3\n"
        assert "'etcd' and 'etcd-v2', so they stay its own: use 'etcd-v3'" in done.stderr

    def test_it_costs_next_to_nothing(self) -> None:
        """No module of the package is loaded."""
        source = """
import sys, torch
print([name for name in sys.modules if name.startswith("torchetcd")])
"""
        assert _run(source).stdout == "['torchetcd_entry']\n"

    def test_an_end_without_use_loads_nothing(self) -> None:
        """The end of the interpreter is no time to begin with the native half."""
        source = """
import atexit, sys
atexit.register(lambda: print("torchetcd._torchetcd" in sys.modules))
import torchetcd.etcd_store
"""
        assert _run(source).stdout == "False\n"

    def test_the_package_is_cheap_alone(self) -> None:
        """What the version is found with takes ten times as long as all else."""
        source = """
import sys
import torchetcd
print("importlib.metadata" in sys.modules, bool(torchetcd.__version__))
from torchetcd import __version__
print(__version__ == torchetcd.__version__, "importlib.metadata" in sys.modules)
try:
    torchetcd.nothing
except AttributeError as exc:
    print(exc)
"""
        assert _run(source).stdout.splitlines() == [
            "False True", "True True", "module 'torchetcd' has no attribute 'nothing'",
        ]  # fmt: skip


def test_the_tables_of_parameters_and_variables() -> None:
    """`python tools/parameters.py` writes them."""
    written = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "parameters.py"), "--print"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    page = (ROOT / "docs" / "reference" / "parameters.md").read_text(encoding="utf-8")
    tables = [
        page.split(f"<!-- {name} -->\n", 1)[1].split(f"<!-- /{name} -->")[0]
        for name in ("parameters", "variables")
    ]
    assert "".join(tables) == written
    for parameter in PARAMETERS:
        assert all(f"`{name}`" in tables[0] for name in parameter.names)
        assert parameter.meaning in tables[0]
    for variable in VARIABLES:
        assert f"| `{variable.name}` | {variable.readers} | {variable.meaning} |" in tables[1]
