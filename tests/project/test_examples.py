"""The examples: scripts run, manifests agree with their schemas and with each other.

`train.py` is run by `test_torchrun.py`, under all three names of the backend.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from torch.distributed.run import get_args_parser

from support import ROOT
from support.docs import commands
from support.docs.manifests import check_manifest, pod_template
from support.docs.terminals import environment, has_etcdctl
from support.network.ports import entry_ports
from support.waiting import eventually
from torchetcd._quorum.entries import parse_entries
from torchetcd.etcd import Client, EtcdException
from torchetcd.etcd_server import EtcdServer, find_binary, find_free_port
from torchetcd.metrics import METRICS

EXAMPLES = ROOT / "examples"
KUBERNETES = EXAMPLES / "kubernetes"
MANIFESTS = sorted(KUBERNETES.glob("*.yaml"))
# What starts agents, by file and kind.
JOBS = [
    ("job.yaml", "Job"),
    ("pytorchjob.yaml", "PyTorchJob"),
    ("jobset.yaml", "JobSet"),
    ("trainer.yaml", "TrainingRuntime"),
]
# Agents of torch start slowly on a busy machine.
PATIENCE_S = 300

pytestmark = pytest.mark.timeout(400)

# A worker that needs no torch.
WORKER = """
import os, sys
task, rank, world = (os.environ.get(name, "-") for name in ("SLURM_PROCID", "RANK", "WORLD_SIZE"))
# In one piece: others write to the same place.
os.write(1, " ".join(["task", task, "rank", rank, "of", world, *sys.argv[1:], "\\n"]).encode())
"""


def _run(command: list[str], folder: Path, **env: str) -> str:
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment(os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as ran:
        try:
            shown, _ = ran.communicate(timeout=PATIENCE_S)
        except BaseException:
            # Agents that it has started as well.
            os.killpg(ran.pid, signal.SIGKILL)
            raise
    assert ran.returncode == 0, shown
    return shown


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    made = tmp_path / "worker.py"
    made.write_text(WORKER)
    return made


@pytest.mark.slow(40)
@pytest.mark.needs_etcd
def test_scale(tmp_path: Path) -> None:
    """Up and down, and each time from the checkpoint."""
    shown = _run([sys.executable, str(EXAMPLES / "scale.py")], tmp_path)
    worlds = re.findall(r"world of (\d): training from step (\d+)", shown)
    assert [world for world, _ in worlds] == ["1", "2", "1"], shown
    assert int(worlds[-1][1]) > 0


@pytest.mark.slow(90)
@pytest.mark.needs_etcd
def test_demo_inside_the_job(tmp_path: Path) -> None:
    """The node of rank 0 and of etcd's leader is lost and replaced; nothing of etcd is left."""
    shown = _run([sys.executable, str(EXAMPLES / "demo.py"), "job"], tmp_path)
    worlds = re.findall(r"world of (\d): training from step (\d+)", shown)
    assert [world for world, _ in worlds] == ["3", "2", "3"], shown
    assert int(worlds[1][1]) > 0
    lost = re.findall(r"=== (node-\w) has rank 0, and its member at \S+ is etcd's leader", shown)
    # Where there is no etcdctl, whichever member leads is left to chance.
    assert lost or not has_etcdctl()
    assert "and etcd has 3 members" in shown
    assert "the members have ended, and no data of etcd is left" in shown


def test_the_names_in_the_table() -> None:
    """All that lies there is in the table of `examples/README.md`, and the other way round."""
    listed = set(
        re.findall(r"^\| \[([\w./]+?)/?\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    )
    there = {path.name for path in EXAMPLES.iterdir() if not path.name.startswith(("_", "."))}
    assert listed == there - {"README.md"}


class TestSlurm:
    SCRIPT = EXAMPLES / "slurm" / "train.sbatch"

    # Slurm's own, but all tasks run here: one for each node, with the options of srun left out.
    SRUN = """#!/bin/bash
set -eu
while [[ $1 == --* ]]; do echo "srun option: $1"; shift; done
for node in $(seq $((SLURM_JOB_NUM_NODES - 1)) -1 0); do
    SLURM_PROCID=$node "$@" & tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task"; done
"""

    # The names of the nodes, one a line. A job has no comment here.
    SCONTROL = """#!/bin/bash
[[ $1 != show ]] || tr " " "\\n" <<<"$3"
"""

    def _run_on(self, nodes: int, folder: Path, worker: Path, **env: str) -> str:
        programs = folder / "bin"
        programs.mkdir()
        for name, source in (("srun", self.SRUN), ("scontrol", self.SCONTROL)):
            (programs / name).write_text(source)
            (programs / name).chmod(0o755)
        path = os.pathsep.join(
            [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        )
        shown = _run(
            ["bash", str(self.SCRIPT), str(worker), "--epochs", "3"],
            folder,
            PATH=path,
            SLURM_JOB_NUM_NODES=str(nodes),
            MIN_NODES=str(nodes),
            **env,
        )
        for rank in range(nodes):
            # rank_order=infra
            assert f"task {rank} rank {rank} of {nodes} --epochs 3" in shown
        return shown

    @pytest.mark.needs_etcd
    def test_without_etcd(self, tmp_path: Path, worker: Path) -> None:
        """The nodes of the allocation are the entries of a quorum."""
        names = " ".join(f"127.0.0.1:{port}" for port in entry_ports(3))
        env = {"SLURM_JOB_ID": uuid.uuid4().hex, "SLURM_JOB_NODELIST": names}
        self._run_on(3, tmp_path, worker, TMPDIR=str(tmp_path), **env)
        assert not list(tmp_path.glob("torchetcd-quorum-*"))

    def test_run(self, etcd_server: EtcdServer, tmp_path: Path, worker: Path) -> None:
        job = uuid.uuid4().hex
        shown = self._run_on(2, tmp_path, worker, ETCD=etcd_server.get_endpoint(), SLURM_JOB_ID=job)
        with etcd_server.get_client() as client:
            assert client.read(f"/torchelastic/p2p/run_slurm-{job}-0/rdzv/head/control").value
        # As Slurm would end the whole job otherwise.
        assert "srun option: --kill-on-bad-exit=0" in shown

    def test_directives(self) -> None:
        """sbatch reads them up to the first command."""
        lines = self.SCRIPT.read_text().splitlines()
        first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
        directives = [n for n, line in enumerate(lines) if line.startswith("#SBATCH ")]
        assert directives
        assert max(directives) < first
        assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[n]) for n in directives)


def test_alert_rules() -> None:
    """They use metrics of ours with labels that these have."""
    metrics = {metric.full_name: metric for metric in METRICS}
    (group,) = yaml.safe_load((EXAMPLES / "prometheus" / "alerts.yaml").read_text())["groups"]
    ours = []
    for rule in group["rules"]:
        assert rule["annotations"]["summary"]
        for name, labels in re.findall(r"(torchetcd_\w+)(?:\{([^}]*)\})?", rule["expr"]):
            metric = metrics[re.sub("_(sum|count|bucket)$", "", name)]
            assert set(re.findall(r"(\w+)=", labels)) <= set(metric.labels), rule
            ours.append(metric)
        assert rule["expr"].count("(") == rule["expr"].count(")")
    assert len(ours) > 4


class TestTorchx:
    def test_run(self, etcd_server: EtcdServer, tmp_path: Path, worker: Path) -> None:
        # Beside the environment, not in it: torchx wants an old urllib3.
        torchx = Path(sys.prefix) / "torchx"
        if not torchx.is_dir():
            pytest.skip(f"there is no {torchx} (see .tools in the Makefile)")
        shown = _run(
            [
                sys.executable, "-m", "torchx.cli.main", "run",
                "--scheduler", "local_cwd", "--scheduler_args", f"log_dir={tmp_path}/logs",
                str(EXAMPLES / "torchx" / "etcd_ddp.py") + ":ddp",
                "--script", str(worker), "--j", "2:2x1", "--endpoint", etcd_server.get_endpoint(),
            ],
            tmp_path,
            PYTHONPATH=os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(torchx)])),
        )  # fmt: skip
        for rank in range(2):
            assert f"rank {rank} of 2" in shown
        assert "SUCCEEDED" in shown


def _documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def _kind(path: str, kind: str) -> dict[str, Any]:
    return next(document for document in _documents(KUBERNETES / path) if document["kind"] == kind)


class TestKubernetes:
    @pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
    def test_schemas(self, path: Path) -> None:
        documents = _documents(path)
        assert documents
        for document in documents:
            check_manifest(document)

    @pytest.mark.needs_etcd
    def test_etcd_knows_the_flags(self) -> None:
        """Each etcd that tests run with has them."""
        known = subprocess.run(
            [find_binary(), "--help"], capture_output=True, text=True, check=False
        )
        for arg in pod_template(_kind("etcd.yaml", "StatefulSet"))["spec"]["containers"][0]["args"]:
            flag = arg.partition("=")[0]
            assert f"{flag} " in known.stdout + known.stderr, flag

    @pytest.mark.needs_etcd
    def test_three_members(self, tmp_path: Path) -> None:
        """The manifest's own arguments make a cluster, which wants certificates; its probes pass."""
        _run(["sh", str(KUBERNETES / "certificates.sh"), "tls"], tmp_path)
        container = pod_template(_kind("etcd.yaml", "StatefulSet"))["spec"]["containers"][0]
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(find_free_port()) for _ in range(9)]
            ports = [sock.getsockname()[1] for sock in sockets]
        clients, peers, metrics = ports[:3], ports[3:6], ports[6:]
        with contextlib.ExitStack() as stack:
            for n in range(3):
                args = [
                    self._here(arg, n, clients, peers, metrics, tmp_path)
                    for arg in container["args"]
                ]
                log = stack.enter_context((tmp_path / f"{n}.log").open("wb"))
                member = subprocess.Popen([find_binary(), *args], stdout=log, stderr=log)
                stack.callback(member.wait)
                stack.callback(member.kill)
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                path = container[probe]["httpGet"]["path"]
                for port in metrics:
                    eventually(
                        lambda port=port, path=path: _answers(f"http://127.0.0.1:{port}{path}"), 60
                    )
            endpoints = ",".join(f"https://127.0.0.1:{port}" for port in clients)
            tls: dict[str, Any] = {"ca_cert": f"{tmp_path}/tls/ca.pem", "read_timeout": 60}
            pair = (f"{tmp_path}/tls/client.pem", f"{tmp_path}/tls/client-key.pem")
            with Client(endpoints, cert=pair, **tls) as client:
                assert len(client.members) == 3
                client.write("/key", "value")
                assert client.read("/key").value == "value"
            with (
                Client(endpoints, **tls) as client,
                pytest.raises(EtcdException, match="certificate"),
            ):
                client.read("/key")

    def _here(
        self,
        arg: str,
        n: int,
        clients: list[int],
        peers: list[int],
        metrics: list[int],
        folder: Path,
    ) -> str:
        """An argument as a kubelet gives it to the member `n`, if all pods were on this host."""
        arg = arg.replace("$(POD_NAME)", f"etcd-{n}").replace("/etc/etcd/tls", f"{folder}/tls")
        arg = arg.replace("/var/lib/etcd", f"{folder}/member-{n}")
        for port, where in ((2379, clients), (2380, peers), (2381, metrics)):
            arg = arg.replace(f"0.0.0.0:{port}", f"127.0.0.1:{where[n]}")
            for m in range(3):
                arg = arg.replace(f"etcd-{m}.etcd:{port}", f"127.0.0.1:{where[m]}")
        return arg

    def test_the_parts_fit(self) -> None:
        """Names of members, ports, labels and volumes are those of the other manifests."""
        members, service = _kind("etcd.yaml", "StatefulSet"), _kind("etcd.yaml", "Service")
        assert members["spec"]["serviceName"] == service["metadata"]["name"]
        names = [
            f"{members['metadata']['name']}-{n}.{service['metadata']['name']}"
            for n in range(members["spec"]["replicas"])
        ]
        args = _arguments(members)
        assert args["--initial-cluster"] == ",".join(
            f"{name.partition('.')[0]}=https://{name}:2380" for name in names
        )
        labels = pod_template(members)["metadata"]["labels"]
        for part in ("PodDisruptionBudget", "Service", "NetworkPolicy"):
            spec = _kind("etcd.yaml", part)["spec"]
            selector = spec.get("podSelector") or spec["selector"]
            assert (selector.get("matchLabels") or selector).items() <= labels.items()
        assert _kind("etcd.yaml", "PodDisruptionBudget")["spec"]["minAvailable"] == len(names) - 1
        allowed = _kind("etcd.yaml", "NetworkPolicy")["spec"]["ingress"][0]["from"][0]
        for path, kind in JOBS:
            job = _kind(path, kind)
            given = pod_template(job)["metadata"]["labels"]
            assert allowed["podSelector"]["matchLabels"].items() <= given.items()
            endpoint = _torchrun(job).rdzv_endpoint
            assert endpoint == ",".join(f"https://{name}:2379" for name in names)

    @pytest.mark.parametrize(("path", "kind"), [*JOBS, ("job-quorum.yaml", "Job")])
    def test_each_pod_is_a_node_of_its_own(self, path: str, kind: str) -> None:
        """A pod that is replaced takes its place back: its name outlives it."""
        document = _kind(path, kind)
        container = pod_template(document)["spec"]["containers"][0]
        torchrun = _torchrun(document)
        used = set(
            re.findall(
                r"\$\((\w+)\)",
                " ".join(
                    [
                        torchrun.rdzv_endpoint,
                        torchrun.rdzv_conf,
                        torchrun.rdzv_id,
                        torchrun.local_addr,
                    ]
                ),
            )
        )
        assert "node_id=$(" in torchrun.rdzv_conf
        given = {variable["name"] for variable in container["env"]} | {"JOB_COMPLETION_INDEX"}
        assert used <= given

    def test_prometheus_finds_the_agents(self) -> None:
        monitor = _kind("podmonitor.yaml", "PodMonitor")["spec"]
        (endpoint,) = monitor["podMetricsEndpoints"]
        for path, kind in JOBS[:2]:
            template = pod_template(_kind(path, kind))
            container = template["spec"]["containers"][0]
            assert (
                monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
            )
            (port,) = container["ports"]
            assert port["name"] == endpoint["port"]
            env = {variable["name"]: variable.get("value") for variable in container["env"]}
            assert env["TORCHETCD_METRICS_PORT"] == str(port["containerPort"])
            # Not the loopback interface.
            assert env["TORCHETCD_METRICS_ADDRESS"] == "$(POD_IP)"

    def test_files_of_the_secrets(self, tmp_path: Path) -> None:
        """What the manifests want is what the script makes, for the names that they use."""
        folder = tmp_path / "certificates"
        _run(["sh", str(KUBERNETES / "certificates.sh"), str(folder)], tmp_path)
        made = {path.name for path in folder.iterdir()}
        names = set()
        for path in MANIFESTS:
            names |= set(re.findall(r"/etc/etcd/tls/([\w.-]+)", path.read_text()))
        assert names
        assert names <= made
        assert all(stat.S_IMODE((folder / name).stat().st_mode) == 0o600 for name in made)
        server = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
        shown = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        endpoint = _torchrun(_kind("job.yaml", "Job")).rdzv_endpoint
        wanted = re.findall(r"https://([\w.-]+):", endpoint)
        assert set(wanted) <= set(shown.get_values_for_type(x509.DNSName))

    def test_the_entries_of_a_quorum(self) -> None:
        """They are the names that Kubernetes gives the pods, at ports that are declared."""
        service, job = _kind("job-quorum.yaml", "Service"), _kind("job-quorum.yaml", "Job")
        spec, pod = service["spec"], pod_template(job)["spec"]
        name = service["metadata"]["name"]
        assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)
        # The controller of Jobs puts it on the pods.
        assert spec["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
        assert pod["subdomain"] == name
        endpoint = _torchrun(job).rdzv_endpoint.replace("$(NAMESPACE)", "default")
        entries = parse_entries(endpoint, 3)
        assert [entry.host for entry in entries.all] == [
            f"{job['metadata']['name']}-{n}.{name}.default.svc.cluster.local"
            for n in range(job["spec"]["completions"])
        ]
        (container,) = pod["containers"]
        ports = {port["containerPort"] for port in container["ports"]}
        assert ports == {port["port"] for port in spec["ports"]}
        assert ports == {entries.all[0].port, entries.all[0].peer_port}

    @pytest.mark.needs_etcd
    def test_a_quorum(self, tmp_path: Path, worker: Path) -> None:
        """The arguments of its pods, as if all were on this host, make a quorum with TLS."""
        job = _kind("job-quorum.yaml", "Job")
        (container,) = pod_template(job)["spec"]["containers"]
        (tmp_path / "secret").write_text(uuid.uuid4().hex)
        given = {
            f"train-{n}.train.$(NAMESPACE).svc.cluster.local": f"127.0.0.1:{port}"
            for n, port in enumerate(entry_ports(4))
        }
        given |= {"$(JOB_UID)": uuid.uuid4().hex, "$(POD_IP)": "127.0.0.1"}
        given |= {"/etc/quorum": str(tmp_path), "/var/lib/quorum": str(tmp_path)}
        given |= {"/app/train.py": str(worker), "last_call_timeout=30": "last_call_timeout=1"}
        with contextlib.ExitStack() as stack:
            pods = []
            for index in range(3):
                args = container["args"]
                for before, after in [*given.items(), ("$(JOB_COMPLETION_INDEX)", str(index))]:
                    args = [arg.replace(before, after) for arg in args]
                log = stack.enter_context((tmp_path / f"{index}.log").open("wb"))
                pod = subprocess.Popen(
                    [sys.executable, "-m", "torch.distributed.run", *args],
                    env=environment(os.environ["PATH"]) | {"JOB_COMPLETION_INDEX": str(index)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
                stack.callback(pod.wait)
                stack.callback(pod.kill)
                pods.append(pod)
            codes = [pod.wait(PATIENCE_S) for pod in pods]
        shown = "".join((tmp_path / f"{index}.log").read_text() for index in range(3))
        assert codes == [0, 0, 0], shown
        for rank in range(3):
            assert f"rank {rank} of 3 --checkpoint" in shown
        assert "has no secret" not in shown
        assert not list(tmp_path.glob("torchetcd-quorum-*"))

    @pytest.mark.parametrize(("path", "kind"), [*JOBS, ("job-quorum.yaml", "Job")])
    def test_torchrun_understands(self, path: str, kind: str) -> None:
        parsed = _torchrun(_kind(path, kind))
        assert parsed.rdzv_backend == "etcd-v3"
        assert parsed.nnodes == "2:4"
        assert parsed.max_restarts == 10
        assert parsed.training_script == "/app/train.py"
        assert parsed.training_script_args == ["--checkpoint=/checkpoints/checkpoint.pt"]
        commands.rdzv_conf(parsed.rdzv_conf)


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return answer.status == 200
    return False


def _arguments(document: dict[str, Any]) -> dict[str, str]:
    args = pod_template(document)["spec"]["containers"][0]["args"]
    return dict(arg.split("=", 1) for arg in args)


def _torchrun(document: dict[str, Any]) -> Any:
    """What the pod's torchrun understands, with the variables that Kubeflow's operator sets."""
    container = pod_template(document)["spec"]["containers"][0]
    program, *arguments = container["command"] + container.get("args", [])
    assert program == "torchrun"
    if document["kind"] == "TrainingRuntime":
        arguments += _kind("trainer.yaml", "TrainJob")["spec"]["trainer"]["args"]
    variables = {}
    policy = document["spec"].get("elasticPolicy")
    if policy:
        # As pkg/controller.v1/pytorch/elastic.go of its branch release-1.9 puts them together.
        variables = {
            "PET_RDZV_BACKEND": policy["rdzvBackend"],
            "PET_RDZV_ENDPOINT": f"{policy['rdzvHost']}:{policy['rdzvPort']}",
            "PET_RDZV_ID": policy["rdzvId"],
            "PET_NNODES": f"{policy['minReplicas']}:{policy['maxReplicas']}",
            "PET_MAX_RESTARTS": str(policy["maxRestarts"]),
            "PET_NPROC_PER_NODE": document["spec"]["nprocPerNode"],
        }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return get_args_parser().parse_args(arguments)


@pytest.mark.parametrize(
    "path", [*EXAMPLES.rglob("*.sh"), *EXAMPLES.rglob("*.sbatch")], ids=lambda path: path.name
)
def test_shell_scripts(path: Path) -> None:
    """They can be read; and shellcheck has nothing to say, where there is one."""
    shell = shlex.split(path.read_text().splitlines()[0].removeprefix("#!"))[-1]
    subprocess.run([shell, "-n", str(path)], check=True)
    shellcheck = shutil.which("shellcheck", path=programs_path())
    if shellcheck:
        said = subprocess.run([shellcheck, str(path)], capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stdout


def programs_path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
