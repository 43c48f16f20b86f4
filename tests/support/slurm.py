"""A Slurm of several nodes on one machine: all of it in one folder, on ports that were free."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from support.waiting import eventually
from torchetcd.etcd_server import find_free_port

# Daemons lie in a folder that is on the PATH of root only.
_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
# Interpreters with torch start slowly on a busy machine.
PATIENCE_S = 240

_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A job that is queued again begins when its credential has run out, 120 s unless said otherwise.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
# There is no database; finished jobs stay in the controller for an hour, and in a file.
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed
MinJobAge=3600
SlurmdTimeout=3600
ReturnToService=1
# Jobs that are queued again are looked at by the backfill scheduler only, each 30 s unless said otherwise.
SchedulerParameters=bf_interval=1,sched_interval=1
# The machine may have fewer cores than its nodes say.
SlurmdParameters=config_overrides
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverTimeLimit=UNLIMITED
"""


class Job:
    """A job of sbatch."""

    def __init__(self, slurm: Slurm, number: str, output: Path) -> None:
        self._slurm, self.number, self._output = slurm, number, output

    def text(self) -> str:
        """All that it has written."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def fields(self) -> dict[str, str]:
        """What `scontrol show job` says of it."""
        shown = self._slurm.ask("scontrol", "--oneliner", "show", "job", self.number)
        return dict(re.findall(r"(\S+?)=(\S*)", shown))

    def await_text(self, wanted: str, times: int = 1) -> None:
        """Wait until it has written this so many times (a regular expression)."""
        self._await(lambda: len(re.findall(wanted, self.text())) >= times, f"{times} x {wanted!r}")

    def await_state(self, *states: str) -> dict[str, str]:
        """Wait until it is in one of these states; what is said of it then."""
        self._await(lambda: self.fields()["JobState"] in states, " or ".join(states))
        return self.fields()

    def await_end(self) -> dict[str, str]:
        """Wait until it is over; what is said of it then."""
        going_on = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"}
        self._await(lambda: self.fields()["JobState"] not in going_on, "an end")
        return self.fields()

    def _await(self, condition: object, wanted: str) -> None:
        try:
            eventually(condition, PATIENCE_S)  # type: ignore[arg-type]
        except AssertionError:
            message = (
                f"no {wanted} of the job {self.fields()}:\n{self.text()}\n{self._slurm.logs()}"
            )
            raise AssertionError(message) from None


class Slurm:
    """The daemons, and the commands that talk to them."""

    def __init__(self, nodes: int, cpus: int = 4) -> None:
        self.names = [f"n{n}" for n in range(1, nodes + 1)]
        self._cpus = cpus
        # Sockets have short names, and munged wants a folder that others can look into.
        self._folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self._folder.chmod(0o711)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Slurm:
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End everything that is of this cluster, jobs as well."""
        for daemon in self._daemons.values():
            daemon.terminate()
        eventually(self._nothing_runs, 60)
        shutil.rmtree(self._folder)

    def _start(self) -> None:
        self._configure()
        key = self._folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files: dict[str, str | Path] = {
            "key-file": key,
            "log-file": "munged.log",
            "pid-file": "munged.pid",
        }
        files |= {"seed-file": "munged.seed", "socket": "munge.socket"}
        self._daemon(
            "munged",
            "munged",
            "--foreground",
            *(f"--{option}={self._folder / name}" for option, name in files.items()),
        )
        eventually((self._folder / "munge.socket").exists, 60)
        self._daemon("slurmctld", "slurmctld", "-D")
        for name in self.names:
            self.start_node(name)
        self.await_nodes("IDLE", *self.names)

    def _configure(self) -> None:
        (self._folder / "state").mkdir()
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(find_free_port()) for _ in range(len(self.names) + 1)]
            ports = [sock.getsockname()[1] for sock in sockets]
        host = socket.gethostname().partition(".")[0]
        text = _CONFIGURATION.format(
            host=host, port=ports[0], user=getpass.getuser(), folder=self._folder
        )
        for name, port in zip(self.names, ports[1:], strict=True):
            text += (
                f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
                f" CPUs={self._cpus} State=UNKNOWN\n"
            )
        self._conf.write_text(text)

    @property
    def _conf(self) -> Path:
        return self._folder / "slurm.conf"

    @property
    def _environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_", "TORCHETCD_", "PET_"))
        }
        return kept | {"SLURM_CONF": str(self._conf), "PATH": _PATH, "OMP_NUM_THREADS": "1"}

    def _daemon(self, name: str, *command: str) -> None:
        with (self._folder / f"{name}.out").open("wb") as log:
            self._daemons[name] = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self._folder,
                start_new_session=True,
            )

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        self._daemon(name, "slurmd", "-D", "-N", name)

    def await_nodes(self, state: str, *names: str) -> None:
        """Wait until nodes are in a state and nothing else."""

        def all_of_them() -> bool:
            shown = self.ask("sinfo", "--noheader", "--Node", "--format=%N %T", check=False)
            states = dict(line.split() for line in shown.splitlines())
            return all(states.get(name) == state.lower() for name in names)

        try:
            eventually(all_of_them, 120)
        except AssertionError:
            raise AssertionError(f"{names} are not {state}:\n{self.logs()}") from None

    def ask(self, *command: str, check: bool = True, env: dict[str, str] | None = None) -> str:
        """What one of Slurm's commands says."""
        ran = subprocess.run(
            list(command),
            env=self._environment | (env or {}),
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ran.returncode == 0 or not check, (command, ran.stdout, ran.stderr, self.logs())
        return ran.stdout.strip()

    def submit(self, script: Path, output: Path, *arguments: str, **env: str) -> Job:
        """Submit a script; options of sbatch are the arguments before `--`."""
        split = arguments.index("--")
        options, arguments = arguments[:split], arguments[split + 1 :]
        number = self.ask(
            "sbatch", "--parsable", f"--output={output}", *options, str(script), *arguments, env=env
        )
        return Job(self, number, output)

    def sacct(self, job: Job) -> list[str]:
        """Its states in turn: PENDING where it was queued again, RESIZING where a node had failed."""
        shown = self.ask("sacct", "--completion", "--format=jobid,nnodes,nodelist,state")
        print(shown)
        found = (line.split() for line in shown.splitlines())
        return [words[-1] for words in found if words[0] == job.number]

    def agent_on(self, name: str) -> int:
        """The process id of the agent on a node."""
        (agent,) = (pid for pid in self._tasks_of(name) if _is_agent(pid))
        return agent

    def lose_node(self, name: str) -> None:
        """Take a node away as a power failure does: its daemons and tasks are gone, and Slurm is told."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()
        tasks = self._tasks_of(name)
        # What has started them ends with them, without a word to the controller.
        steps = {int(_stat(pid)[1]) for pid in tasks} - set(tasks)
        for pid in [*(pid for pid in steps if _command(pid).startswith("slurmstepd")), *tasks]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.ask("scontrol", "update", f"nodename={name}", "state=down", "reason=power")

    def bring_back(self) -> None:
        """Switch on again what was lost, and wait until no node has anything to do."""
        for name in set(self.names) - set(self._daemons):
            self.start_node(name)
            self.ask("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        self.await_nodes("IDLE", *self.names)

    def _tasks_of(self, name: str) -> list[int]:
        wanted = f"SLURMD_NODENAME={name}".encode()
        return [pid for pid in self._processes() if wanted in _environ(pid)]

    def _processes(self) -> list[int]:
        """All that was started with this cluster's configuration."""
        wanted = f"SLURM_CONF={self._conf}".encode()
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in pids if wanted in _environ(pid)]

    def _nothing_runs(self) -> bool:
        for daemon in self._daemons.values():
            daemon.poll()
        pids = self._processes()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    def logs(self) -> str:
        """The last lines of what the daemons wrote."""
        shown = []
        for path in sorted([*self._folder.glob("*.log"), *self._folder.glob("*.out")]):
            lines = path.read_text(errors="replace").splitlines()[-15:]
            shown += [f"== {path.name}", *lines]
        return "\n".join(shown)


def _is_agent(pid: int) -> bool:
    interpreter, _, arguments = _command(pid).partition(" ")
    return "python" in interpreter and arguments.partition(" ")[0].endswith("/torchrun")


def _command(pid: int) -> str:
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")


def _environ(pid: int) -> list[bytes]:
    return _read(pid, "environ").split(b"\0")


def _stat(pid: int) -> list[str]:
    """State and parent, and what follows."""
    return _read(pid, "stat").decode().rpartition(")")[2].split() or ["X", "0"]


def _read(pid: int, name: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""
