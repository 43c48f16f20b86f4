"""An etcd that ends and comes back on the same port: with its data, with older data, or with none."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.waiting import eventually
from torchetcd.etcd import EtcdException
from torchetcd.etcd_server import EtcdServer


class Restartable:
    """One server whose data can be saved, put back and wiped."""

    def __init__(self, directory: Path, *extra_args: str) -> None:
        self._data = directory / "etcd"
        self._saved = directory / "saved"
        self.server = EtcdServer(data_dir=str(self._data), extra_args=extra_args)

    @property
    def endpoint(self) -> str:
        return self.server.get_endpoint()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Kill the server, and start it again on the same port at the end of the block."""
        process = self._process()
        process.kill()
        process.wait()
        yield
        self._start(process.args)

    def save(self) -> None:
        """Keep a copy of the data, as a backup does."""
        with self.away():
            shutil.copytree(self._data, self._saved)

    def restore(self) -> None:
        """Go back to what was saved: the revision is a lower one."""
        with self.away():
            shutil.rmtree(self._data)
            shutil.copytree(self._saved, self._data)

    def wipe(self) -> None:
        """Lose all data; the cluster's id stays the same, as it is made from its addresses."""
        with self.away():
            shutil.rmtree(self._data)

    def replace(self, revision: int) -> None:
        """Put another cluster in this one's place, whose revision is this one at least."""
        process = self._process()
        process.kill()
        process.wait()
        shutil.rmtree(self._data)
        port = self.server.get_port()
        with EtcdServer(extra_args=["--initial-cluster-token=of another cluster"]) as other:
            with other.get_client() as client:
                while (client.write("/filler", "x").modifiedIndex or 0) <= revision:
                    pass
            other_process = other._process
            assert other_process is not None
            data = next(
                Path(argument.split("=", 1)[1])
                for argument in other_process.args  # type: ignore[union-attr]
                if str(argument).startswith("--data-dir=")
            )
            other_process.kill()
            other_process.wait()
            shutil.copytree(data, self._data)
        # Of a cluster that is there already only the data counts.
        assert port == self.server.get_port()
        self._start(process.args)

    def _process(self) -> subprocess.Popen[bytes]:
        process = self.server._process
        assert process is not None
        return process

    def _start(self, command: object) -> None:
        # `EtcdServer` itself would take other ports.
        self.server._process = subprocess.Popen(
            command,  # type: ignore[call-overload]
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def answers() -> bool:
            try:
                with self.server.get_client(read_timeout=1) as client:
                    return bool(client.read("/"))
            except EtcdException:
                return False

        eventually(answers, 60)

    def __enter__(self) -> Restartable:
        self.server.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.server.stop()
